"""docs/quickstart.ipynb: what it uses exists; `make test-notebook` executes it."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
NOT_INSTALLED = {"IPython"}  # comes with Jupyter; here it need not be


def code_cells() -> list[str]:
    """Source of each code cell, without the lines that only IPython understands."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [
        "\n".join("" if line.startswith("%") else line for line in source.splitlines()) for source in sources
    ]


def mistakes(cells: list[str]) -> list[str]:
    """What cannot work: names and attributes of modules that are not there, calls that do not fit."""
    found: list[str] = []
    known: dict[str, Any] = dict(vars(builtins))
    for cell in cells:
        tree = ast.parse(cell)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found += _imported(node, known)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known[node.id] = None
            elif isinstance(node, ast.FunctionDef):
                known[node.name] = None
                known |= dict.fromkeys(argument.arg for argument in node.args.args)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id not in known:
                found.append(f"{node.id} is not defined")
            elif isinstance(node, ast.Attribute):
                owner = _value(node.value, known)
                if inspect.ismodule(owner) and not hasattr(owner, node.attr):
                    found.append(f"{owner.__name__} has no {node.attr}")
            elif isinstance(node, ast.Call) and not any(keyword.arg is None for keyword in node.keywords):
                found += _unfit(_value(node.func, known), node)
    return found


def _imported(node: ast.Import | ast.ImportFrom, known: dict[str, Any]) -> list[str]:
    found = []
    for alias in node.names:
        module = node.module if isinstance(node, ast.ImportFrom) else alias.name
        value: Any = None
        if str(module).partition(".")[0] not in NOT_INSTALLED:
            value = importlib.import_module(str(module))
            if isinstance(node, ast.ImportFrom):
                try:
                    value = _attribute_or_module(value, alias.name)
                except ImportError:
                    found.append(f"{module} has no {alias.name}")
                    value = None
        known[alias.asname or alias.name.partition(".")[0]] = value
    return found


def _attribute_or_module(owner: Any, name: str) -> Any:
    """What ``from owner import name`` gives."""
    return (
        getattr(owner, name) if hasattr(owner, name) else importlib.import_module(f"{owner.__name__}.{name}")
    )


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and inspect.ismodule(owner := _value(node.value, known)):
        return getattr(owner, node.attr, None)
    return None


def _unfit(function: Callable[..., Any] | None, call: ast.Call) -> list[str]:
    if not str(getattr(function, "__module__", "")).startswith("samplernn"):
        return []
    try:
        inspect.signature(function).bind(  # type: ignore[arg-type]
            *call.args, **{str(keyword.arg): keyword.value for keyword in call.keywords}
        )
    except TypeError as error:
        return [f"{function.__name__}: {error}"]  # type: ignore[union-attr]
    return []


def test_the_notebook_uses_what_exists() -> None:
    cells = code_cells()
    assert len(cells) >= 6
    assert mistakes(cells) == []


@pytest.mark.parametrize(
    ("cell", "mistake"),
    [
        ("import samplernn\nsamplernn.sing()", "samplernn has no sing"),
        ("import samplernn\nsamplernn.load(path=outcome)", "outcome is not defined"),
        (
            "import samplernn\nsamplernn.load('x', loud=True)",
            "load: got an unexpected keyword argument 'loud'",
        ),
        ("from samplernn.config import TrainerConfig\nTrainerConfig(max_minutes=3)", "'max_minutes'"),
        ("from samplernn import plots\nplots.curves()", "missing a required argument"),
        ("from samplernn.audio.io import hear", "samplernn.audio.io has no hear"),
    ],
)
def test_the_check_sees_a_mistake(cell: str, mistake: str) -> None:
    found = mistakes([cell])
    assert len(found) == 1
    assert mistake in found[0]


def test_the_notebook_is_committed_without_outputs() -> None:
    """So that a change of it can be read, and nothing in it is older than the code."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert NOTEBOOK.stat().st_size < 300_000


@pytest.mark.notebook
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbformat, nbclient = importlib.import_module("nbformat"), importlib.import_module("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises when a cell does
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if output["output_type"] == "display_data"]
    assert sum("image/png" in data for data in shown) == 4
    players = [data["text/html"] for data in shown if "<audio" in data.get("text/html", "")]
    assert len(players) == 3
    assert all("base64," in player for player in players)
    said = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert "bits per sample" in said
    assert "hears" in said
    assert (tmp_path / "runs").is_dir()
