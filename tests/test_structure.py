"""The rooms of the package and who may import whom (DESIGN.md, section 5)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import samplernn

PACKAGE = Path(samplernn.__file__).parent

# What stands further down may import what stands further up; rooms of one line do not know each other.
ROOMS = [
    {"__init__"},
    {"messages", "signals"},
    {"values"},
    {"config"},
    {"plots", "locks", "reading", "storage"},
    {"audio", "model"},
    {"generation"},
    {"training"},
    {"insight"},
    {"cli", "options", "__main__"},  # one room: the command line
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
COMMAND_LINE = ROOMS[-1]

OWNERS = {  # which folders may import a library
    "lightning": ("training",),
    "pytorch_lightning": ("training",),
    "lightning_fabric": ("training",),
    "wandb": ("training",),
    "numba": ("generation/engines",),
    "triton": ("generation/engines",),
    "sounddevice": ("audio",),
}


def imported_names(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, wherever it stands; `package` resolves relative ones.

    ``from a import b`` gives ``a.b``, for b may be a module. `importlib.import_module("a")` counts too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = [*above, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*start, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(package: Path) -> list[str]:
    """What the modules below `package`, a folder named samplernn, import although they may not."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        room = inside.parts[0].removesuffix(".py")
        if room not in FLOOR:
            found.append(f"{inside}: belongs to no room; give it one in ROOMS")
            continue
        for line, name in imported_names(
            ast.parse(path.read_text("utf-8")), ["samplernn", *inside.parts[:-1]]
        ):
            top, *rest = name.split(".")
            where = f"{inside}:{line}: imports {name}"
            if top == "scripts":
                found.append(f"{where}: nothing imports scripts")
            if top in OWNERS and not any(inside.is_relative_to(owner) for owner in OWNERS[top]):
                found.append(f"{where}: only {' and '.join(OWNERS[top])} may")
            if top != "samplernn":
                continue
            # `from samplernn import __version__` names no room: it means the package itself.
            other = rest[0] if rest and not rest[0].startswith("__version") else "__init__"
            if other not in FLOOR:
                found.append(f"{where}: belongs to no room; give it one in ROOMS")
            elif other != room and not ({room, other} <= COMMAND_LINE) and FLOOR[other] >= FLOOR[room]:
                found.append(f"{where}: {room} may not know {other}")
    return found


def test_rooms_only_import_what_stands_before_them() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > 20, "the package was not found"
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("model/network.py", "import samplernn.training.run", "model may not know training"),
        ("model/network.py", "from samplernn.audio.io import load", "model may not know audio"),
        ("audio/io.py", "from samplernn import model", "audio may not know model"),
        ("audio/io.py", "from ..model.quantize import Quantizer", "audio may not know model"),
        ("audio/io.py", "from .. import generation", "audio may not know generation"),
        ("audio/deep/er.py", "from ... import model", "audio may not know model"),
        ("config.py", "from samplernn.plots import waveform", "config may not know plots"),
        ("config.py", "from .audio import io", "config may not know audio"),
        ("__init__.py", "from samplernn.config import Config", "__init__ may not know config"),
        ("generation/stream.py", "def f():\n    from samplernn.training import run", "may not know training"),
        ("generation/stream.py", "if 0:\n    import samplernn.insight as i", "may not know insight"),
        ("training/run.py", "import samplernn.cli", "training may not know cli"),
        ("training/run.py", "importlib.import_module('samplernn.insight.doctor')", "may not know insight"),
        ("insight/doctor.py", "from samplernn.options import parse", "insight may not know options"),
        ("insight/doctor.py", "import lightning.pytorch as pl", "only training may"),
        ("generation/stream.py", "def f():\n    from lightning import Trainer", "only training may"),
        ("generation/stream.py", "import os, numba", "only generation/engines may"),
        ("model/cells.py", "import triton.language as tl", "only generation/engines may"),
        ("cli.py", "from scripts import train", "nothing imports scripts"),
        ("extras.py", "import os", "belongs to no room"),
        ("cli.py", "from samplernn.extras import thing", "belongs to no room"),
    ],
)
def test_the_check_sees_a_violation(tmp_path: Path, module: str, source: str, complaint: str) -> None:
    file = tmp_path / "samplernn" / module
    file.parent.mkdir(parents=True)
    file.write_text(source)
    found = violations(tmp_path / "samplernn")
    assert len(found) == 1
    assert found[0].startswith(module)
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.py", "from samplernn import __version__, options\nimport samplernn.training.run"),
        ("__main__.py", "from samplernn.cli import main"),
        ("insight/evaluate.py", "from samplernn.training.scoring import score\nfrom .report import table"),
        ("training/run.py", "import lightning.pytorch\nfrom samplernn import plots\nfrom ..audio import io"),
        ("generation/engines/cpu.py", "import numba\nfrom samplernn.model.network import State"),
        ("generation/engines/base.py", "from . import cpu\nfrom .. import sampling"),
        ("model/network.py", "import torch\nfrom samplernn.model.cells import RNN"),
    ],
)
def test_the_check_lets_lawful_imports_pass(tmp_path: Path, module: str, source: str) -> None:
    file = tmp_path / "samplernn" / module
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert violations(tmp_path / "samplernn") == []


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    script = f"{code}\nimport sys\nprint('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    """`samplernn --help` and a mistyped verb answer at once."""
    loaded = loaded_after("import samplernn.config, samplernn.cli")
    assert "samplernn" in loaded
    heavy = {"torch", "torchaudio", "lightning", "wandb", "matplotlib", "numba", "tensorboard"}
    assert loaded & heavy == set()
