"""`samplernn info`: what a model is made of, what it was trained on and how well, how to generate from it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from samplernn.config import UserError, checked, one_line
from samplernn.insight.wording import count, duration
from samplernn.model.checkpoint import Checkpoint
from samplernn.model.network import SampleRNN
from samplernn.reading import read_json
from samplernn.training.scoring import OWN_GAINS


def describe(checkpoint: Checkpoint, given: str | Path) -> str:
    """A page of plain text.

    Args:
        checkpoint: the model.
        given: what the user called it: a file, a run or an export.
    """
    config, results = checkpoint.config, checkpoint.results
    facts = _facts(Path(given))
    parts = [
        one_line(str(checkpoint.source)),
        "",
        diagram(checkpoint),
        "",
        _line("model", _model(checkpoint)),
        _line(
            "audio",
            f"{config.data.sample_rate} Hz, {config.model.q_levels} {config.model.quantization} codes",
        ),
        _line("data", _data(checkpoint, facts)),
        _line("trained", _trained(results, facts)),
        _line("bits", _bits(results, facts, config.data.normalise)),
        _line("weights", f"SHA-256 {checkpoint.weights_hash()[:16]}…"),
        "",
        f"samplernn generate {shlex.quote(str(given))} --duration 10 --num 4 --temperature 0.95",
    ]
    return "\n".join(part for part in parts if part is not None)


def diagram(checkpoint: Checkpoint) -> str:
    """The tiers below each other, slowest first: frame, rate, layers, parameters."""
    config = checkpoint.config
    rate, model = config.data.sample_rate, config.model
    with torch.device("meta"):
        network = SampleRNN(model)
    rows = [("tier", "frame", "rate", "layers", "parameters")]
    between = []
    sizes = [*model.frame_sizes, 1]
    for index, tier in enumerate([*network.tiers(), network.sample_level_mlp]):
        size, is_last = sizes[index], index == len(sizes) - 1
        parameters = sum(value.numel() for value in tier.state_dict().values())  # fixed ones too
        layers = f"{model.n_rnn} x {model.rnn.upper()} {model.dim}"
        if index == 0 and not model.top_projection:
            layers += ", frames unprojected"
        if is_last:
            more = ", one linear layer more" if model.linear_mlp_layer else ""
            layers = f"MLP {model.dim}{more}, of the last {count(sizes[index - 1], 'sample')}"
        rows.append(
            (
                str(len(sizes) - index),
                f"{count(size, 'sample')}, {_milliseconds(1000 * size / rate)}",
                f"{rate / size:,.0f} Hz",
                layers,
                f"{parameters / 1e6:.2f} M",
            )
        )
        if not is_last:
            between.append(f"  | {size // sizes[index + 1]} per frame")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column in (2, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    drawn = [lines[0], lines[1]]
    for arrow, line in zip(between, lines[2:], strict=True):
        drawn += [arrow, line]
    return "\n".join(drawn)


def _line(name: str, text: str | None) -> str | None:
    return None if text is None else f"{name:<9}{text}"


def _model(checkpoint: Checkpoint) -> str:
    parameters = sum(value.numel() for value in checkpoint.weights.values())
    return f"{checkpoint.config.model.n_tiers} tiers, {parameters / 1e6:.2f} M parameters"


def _data(checkpoint: Checkpoint, facts: dict[str, Any]) -> str:
    """How much audio; training's own part is known from the counts of its codes."""
    trained = int(checkpoint.pair_counts.sum()) / checkpoint.config.data.sample_rate
    text = f"{duration(trained)} of training audio"
    corpus = _table(_table(facts, "about"), "corpus")
    minutes, files = _number(corpus, "minutes"), _number(corpus, "files")
    if minutes is not None and files is not None:
        text += f", of {duration(60 * minutes)} in {count(int(files), 'file')}"
    return text


def _trained(results: dict[str, Any], facts: dict[str, Any]) -> str | None:
    if "step" not in results:
        return None
    text = count(results["step"], "step")
    if results.get("train_seconds"):
        text += f", {duration(results['train_seconds'])}"
    step, state = _number(facts, "step"), facts.get("state")
    if facts.get("reason") and step is not None:
        text += f"; the run ended after {count(int(step), 'step')}: {one_line(str(facts['reason']))}"
    elif isinstance(state, str):
        text += f"; the run is {one_line(state)}"
    return text


def _bits(results: dict[str, Any], facts: dict[str, Any], normalise: str) -> str | None:
    """Per sample, beside what the baselines need."""
    bits = results.get("validation_bits_per_sample")
    found = [] if bits is None else [f"validation {bits:.3f}"]
    test = _table(facts, "test")
    baselines = _table(test, "baselines")
    tested = _number(test, "bits_per_sample")
    names = ("previous sample", "unigram", "uniform")
    numbers = [_number(baselines, name.replace(" ", "_")) for name in names]
    if tested is not None and None not in numbers:
        listed = ", ".join(f"{name} {number:.3f}" for name, number in zip(names, numbers, strict=True))
        found.append(f"test {tested:.3f} ({listed})")
    own = "" if normalise == "corpus" else f"; {OWN_GAINS}"
    return f"{', '.join(found)} per sample{own}" if found else None


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms"


def _facts(given: Path) -> dict[str, Any]:
    """What `run.json` says, if a run was given; without it if it is damaged, and one line says so."""
    file = given / "run.json"
    if not file.exists():
        return {}
    try:
        found: dict[str, Any] = checked(read_json(file), dict[str, Any], f"{file}: what it says")
    except UserError as error:
        print(f"{error}; left out", file=sys.stderr, flush=True)
        return {}
    return found


def _table(values: dict[str, Any], key: str) -> dict[str, Any]:
    """A table within another; empty where there is none."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _number(values: dict[str, Any], key: str) -> float | None:
    """A finite number in a table; None where there is none."""
    found = values.get(key)
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    return found if abs(found) < 1e15 else None
