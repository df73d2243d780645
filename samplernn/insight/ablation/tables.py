"""What an ablation compares: rows of options, a budget that all of them get, seeds.

A file of tables looks like `configs/ablations.yaml`::

    common: {config: small, budget: 4m, seeds: 2}      # of every table that does not say otherwise
    tables:
      state:
        title: Is a learned h0 worth it?
        rows:
          learned: {model.learn_h0: true}
          zero: {model.learn_h0: false}
      cells:
        grid: {model.rnn: all}                         # a row for every combination of values
"""

from __future__ import annotations

import functools
import itertools
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from samplernn.config import Config, UserError, from_dict, merged, presets, to_dict

OPTIONS: dict[str, Any] = {
    "samples": {"num": 0},
    "optim": {"patience": 0},
    "checkpoint": {"every_minutes": 1.0},
}
"""What every row is given unless the table says otherwise: no time for audio, no early end, little lost when
killed."""
_RESERVED = ("trainer.max_time", "trainer.max_steps", "trainer.max_epochs", "seed_everything")
_MAY_DIFFER = ("batch_size", "tbptt_len", "segment_duration", "cache_dir", "decode_timeout")
"""Keys of `data` that change how training reads the audio, not which audio, as which codes, is scored."""
_MUST_AGREE = ("head", "q_levels", "quantization")
"""Keys of `model` that bits depend on by themselves."""


@dataclass(frozen=True)
class Budget:
    """What every run may use: seconds of training, or steps."""

    seconds: float | None = None
    steps: int | None = None

    def __str__(self) -> str:
        if self.steps is not None:
            return f"{self.steps:,} steps"
        seconds = self.seconds or 0.0
        return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"

    def options(self) -> dict[str, Any]:
        """As keys of the configuration."""
        limits: dict[str, Any] = {"max_epochs": -1, "max_steps": self.steps or -1, "max_time": None}
        if self.seconds is not None:
            rest, seconds = divmod(max(1, round(self.seconds)), 60)
            rest, minutes = divmod(rest, 60)
            days, hours = divmod(rest, 24)
            limits["max_time"] = f"{days:02}:{hours:02}:{minutes:02}:{seconds:02}"
        return {"trainer": limits}


@dataclass(frozen=True)
class Row:
    """One variant."""

    label: str
    changes: dict[str, Any]
    """Its own options, by dotted keys."""
    config: Config
    """All options, for the first seed."""

    @property
    def slug(self) -> str:
        """The label as part of a file's name."""
        return re.sub(r"[^\w.]+", "-", self.label).strip("-.").lower() or "row"

    def run(self, seed: int) -> str:
        """Name of its run with a seed."""
        return f"{self.slug}-seed{seed}"

    def with_seed(self, seed: int) -> Config:
        """Its options with a seed."""
        return replace(self.config, seed_everything=seed)


@dataclass(frozen=True)
class Table:
    """An ablation, checked."""

    title: str
    budget: Budget
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    incomparable: tuple[str, ...] = field(default=())
    """Keys in which rows differ although their bits then do not compare (the user insisted)."""

    def runs(self) -> Iterator[tuple[Row, int]]:
        """Every run in the order of training: all rows with the first seed, then with the next."""
        for seed in self.seeds:
            for row in self.rows:
                yield row, seed


def parse_budget(text: Any) -> Budget:
    """``90s``, ``4m``, ``1h30m`` of training, or ``2000 steps``.

    Raises:
        UserError: it is none of these.
    """
    said = str(text).strip()
    if steps := re.fullmatch(r"(\d+) *steps", said):
        budget = Budget(steps=int(steps[1]))
    elif said and (
        time := re.fullmatch(r"(?:([\d.]+) *h)? *(?:([\d.]+) *m(?:in)?)? *(?:([\d.]+) *s)?", said)
    ):
        try:
            hours, minutes, seconds = (float(part or 0) for part in time.groups())
        except ValueError:
            raise UserError(f"budget {said}: {_BUDGETS}") from None
        budget = Budget(seconds=3600 * hours + 60 * minutes + seconds)
    else:
        raise UserError(f"budget {said}: {_BUDGETS}")
    if not (budget.steps or budget.seconds):
        raise UserError(f"budget {said}: it must be above zero")
    return budget


_BUDGETS = "write the time of training per run, such as 4m, 90s or 1h30m, or such as 2000 steps"


def read_file(file: str | Path) -> dict[str, dict[str, Any]]:
    """The definitions of all tables in a file, each completed by what is common to them.

    Raises:
        UserError: it cannot be read, or holds no tables.
    """
    try:
        values = yaml.safe_load(Path(file).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{file}: cannot be read as tables: {reason}") from error
    tables = values.get("tables") if isinstance(values, dict) else None
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(f"{file}: no file of tables; it should hold tables: {{NAME: {{rows: …}}}}")
    if unknown := set(values) - {"common", "tables"}:
        raise UserError(f"{file}: unknown entry {unknown.pop()}; known here: common, tables")
    common = values.get("common") or {}
    return {str(name): merged({"title": str(name), **common}, table) for name, table in tables.items()}


def define(definition: dict[str, Any], insist: bool = False) -> Table:
    """Check a definition and work out its rows, before anything is trained.

    Args:
        definition: ``title``, ``config`` (a preset or file), ``budget``, ``seeds`` (how many, or a list),
            ``options`` of all rows, ``rows`` (label -> options), ``grid`` (key -> values, or ``all``).
        insist: let rows differ in what makes bits incomparable.

    Raises:
        UserError: an unknown entry or option, a value that does not fit, rows that cannot be compared.
    """
    known = ("title", "config", "budget", "seeds", "options", "rows", "grid")
    if unknown := sorted(set(definition) - set(known)):
        raise UserError(f"table: unknown entry {unknown[0]}; known here: {', '.join(known)}")
    budget = parse_budget(definition.get("budget", "4m"))
    base = merged(_base(str(definition.get("config", "small"))), OPTIONS)
    shared = _options(definition.get("options"), "options")
    _refuse_reserved(shared, "options")
    base = merged(merged(base, nested(shared)), budget.options())
    rows = tuple(
        _row(label, changes, base)
        for label, changes in [*_named(definition.get("rows")), *_grid(definition.get("grid"), base)]
    )
    if not rows:
        raise UserError("table: no rows; give rows, or a grid")
    for name in ("label", "slug"):
        seen = [getattr(row, name) for row in rows]
        if twice := next((one for one in seen if seen.count(one) > 1), None):
            raise UserError(f"table: two rows are called {twice}")
    seeds = _seeds(definition.get("seeds", 1))
    return Table(str(definition.get("title", "Ablation")), budget, seeds, rows, _incomparable(rows, insist))


def parse_row(text: str) -> tuple[str, dict[str, Any]]:
    """Label and options of a row as it is typed: ``no h0: model.learn_h0=false model.dim=128``.

    Without a label the options are it, without options it is the base.

    Raises:
        UserError: something in it is no option.

    Example:
        >>> parse_row("2 tiers: model.frame_sizes=[16]")
        ('2 tiers', {'model.frame_sizes': [16]})
    """
    labelled = re.match(r"([^=:]+):(?:\s+|$)", text)
    label, rest = (labelled[1].strip(), text[labelled.end() :]) if labelled else (text.strip(), text)
    if not labelled and "=" not in text:
        return label, {}
    changes: dict[str, Any] = {}
    for assignment in re.split(r"\s+(?=[\w.]+=)", rest.strip()) if rest.strip() else ():
        key, value = parse_assignment(assignment, f"--row {text}")
        changes[key] = value
    return label, changes


def parse_assignment(text: str, where: str) -> tuple[str, Any]:
    """``model.dim=128`` as key and value. Raises UserError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{where}: {text!r} is no option; write KEY=VALUE, such as model.dim=128")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {value!r} cannot be read") from error


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested ones.

    Example:
        >>> nested({"model.dim": 8, "model.rnn": "lstm"})
        {'model': {'dim': 8, 'rnn': 'lstm'}}
    """
    result: dict[str, Any] = {}
    for key, value in options.items():
        inner = functools.reduce(lambda held, part: {part: held}, reversed(str(key).split(".")), value)
        result = merged(result, inner)
    return result


def flat(options: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    result: dict[str, Any] = {}
    for key, value in options.items():
        inner = flat(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
        result.update(inner)
    return result


def differences(one: Config, other: Config) -> list[str]:
    """What has changed from one configuration to another, as ``model.rnn: gru -> lstm``."""
    old, new = flat(to_dict(one)), flat(to_dict(other))
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in new if old.get(key) != new.get(key)]


def shown(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "null" if value is None else str(value)


def _base(name: str) -> dict[str, Any]:
    file = Path(name) if Path(name).is_file() else presets().get(name)
    if file is None:
        raise UserError(f"config {name}: no such file or preset; presets: {', '.join(presets())}")
    try:
        values = yaml.safe_load(file.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: not a configuration: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: not a configuration: it should hold options such as model: {{dim: 256}}")
    return values


def _options(values: Any, where: str) -> dict[str, Any]:
    """Dotted keys, however they were written."""
    if values is not None and not isinstance(values, dict):
        raise UserError(f"table: {where} must hold options such as model.dim: 128, got {values!r}")
    return flat(values or {})


def _named(rows: Any) -> list[tuple[str, dict[str, Any]]]:
    if rows is not None and not isinstance(rows, dict):
        raise UserError(f"table: rows must be labels with options, got {rows!r}")
    return [(str(label), _options(changes, f"row {label}")) for label, changes in (rows or {}).items()]


def _grid(grid: Any, base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row for every combination of values."""
    axes: dict[str, Sequence[Any]] = {}
    for key, values in _options(grid, "grid").items():
        if values == "all":
            values = _all_values(key)
        if not isinstance(values, list) or not values:
            raise UserError(f"table: grid {key} must be a list of values, or all, got {values!r}")
        axes[key] = values
    for combination in itertools.product(*axes.values()) if axes else ():
        changes = dict(zip(axes, combination, strict=True))
        yield ", ".join(_of_grid(key, value, len(axes)) for key, value in changes.items()), changes


def _of_grid(key: str, value: Any, num_axes: int) -> str:
    """A value as a label: words speak for themselves."""
    name = key.rpartition(".")[2]
    return value if isinstance(value, str) and num_axes == 1 else f"{name} {shown(value)}"


def _all_values(key: str) -> list[Any]:
    """Every value that a key can take, if it is a choice of words, or on and off."""
    kind: Any = Config
    for part in key.split("."):
        hints = (
            typing.get_type_hints(kind) if isinstance(kind, type) and hasattr(kind, "__annotations__") else {}
        )
        if part not in hints:
            raise UserError(f"table: grid {key}: unknown option; known here: {', '.join(sorted(hints))}")
        kind = hints[part]
    if kind is bool:
        return [True, False]
    if typing.get_origin(kind) is Literal:
        return list(typing.get_args(kind))
    raise UserError(f"table: grid {key}: all is for options that are a choice; give a list of values")


def _row(label: str, changes: dict[str, Any], base: dict[str, Any]) -> Row:
    _refuse_reserved(changes, f"row {label}")
    try:
        return Row(label, changes, from_dict(Config, merged(base, nested(changes))))
    except UserError as error:
        raise UserError(f"row {label}: {error}") from error


def _refuse_reserved(changes: dict[str, Any], where: str) -> None:
    for key in _RESERVED:
        if key in changes:
            remedy = "seeds" if key == "seed_everything" else "budget"
            raise UserError(f"{where}: {key} is the same for all rows; set the table's {remedy} instead")


def _seeds(given: Any) -> tuple[int, ...]:
    seeds = list(range(given)) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"table: seeds must be how many, or a list such as [0, 1, 2], got {given!r}")
    return tuple(dict.fromkeys(seeds))


def _incomparable(rows: Sequence[Row], insist: bool) -> tuple[str, ...]:
    """In what rows differ that must be the same wherever bits are compared.

    Raises:
        UserError: in something, and the user does not insist.
    """
    found: dict[str, str] = {}
    first = _what_bits_depend_on(rows[0].config)
    for row in rows:
        for key, value in _what_bits_depend_on(row.config).items():
            if value != first[key]:
                found.setdefault(key, f"row {row.label} has {key} {value}, row {rows[0].label} {first[key]}")
    if found and not insist:
        raise UserError(
            f"{next(iter(found.values()))}: bits compare only at equal head, quantization, gain and split; "
            "make tables of their own, or say --insist"
        )
    return tuple(found)


def _what_bits_depend_on(config: Config) -> dict[str, Any]:
    values = to_dict(config)
    model = {f"model.{key}": values["model"][key] for key in _MUST_AGREE}
    return {**model, **{f"data.{key}": v for key, v in values["data"].items() if key not in _MAY_DIFFER}}
