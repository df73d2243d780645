"""The options of `samplernn train` and `doctor`: configuration files, presets, keys on the command line."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse

from samplernn.config import Config, UserError, from_dict, merged, presets
from samplernn.reading import read_yaml

DEFAULT_PRESET = "small"


@dataclass(frozen=True)
class TrainOptions:
    """A parsed command line of `samplernn train`."""

    folder: str | None
    name: str | None
    resume: bool
    overfit_check: bool
    quiet: bool
    config: Config
    """Preset or files, then keys."""
    changes: dict[str, Any]
    """Only what the command line itself set, nested."""


@dataclass(frozen=True)
class DoctorOptions:
    """A parsed command line of `samplernn doctor`."""

    folder: str
    json: bool
    config: Config
    """Preset or files, then keys."""


def parse(argv: list[str]) -> TrainOptions:
    """Read a command line of `samplernn train`.

    Raises:
        UserError: an unknown or malformed option, a missing file, no folder.
    """
    prog = "samplernn train"
    files, rest = _split_config(argv)
    values = _values(_train_parser(prog), rest)
    folder, name = values.pop("folder", None), values.pop("name", None)
    resume, overfit_check, quiet = (
        bool(values.pop(name, False)) for name in ("resume", "overfit_check", "quiet")
    )
    if resume and overfit_check:
        raise UserError("--overfit-check tries the options of a new run: leave --resume out")
    if name == "":
        raise UserError("--name: a run's name cannot be empty; leave it out, or give one")
    if folder is None and not resume:
        raise UserError(f"{prog}: name the folder of audio  (see {prog} --help)")
    if resume and files:
        raise UserError("--resume continues a run with its own configuration: leave --config out")
    return TrainOptions(folder, name, resume, overfit_check, quiet, _config(files, values), values)


def parse_doctor(argv: list[str]) -> DoctorOptions:
    """Read a command line of `samplernn doctor`, which takes the configuration as `train` does.

    Raises:
        UserError: an unknown or malformed option, a missing file, no folder.
    """
    prog = "samplernn doctor"
    files, rest = _split_config(argv)
    values = _values(_doctor_parser(prog), rest)
    folder, as_json = values.pop("folder", None), bool(values.pop("json", False))
    if folder is None:
        raise UserError(f"{prog}: name the folder of audio  (see {prog} --help)")
    return DoctorOptions(folder, as_json, _config(files, values))


def _values(parser: jsonargparse.ArgumentParser, argv: list[str]) -> dict[str, Any]:
    """What the command line itself sets, nested; `--max-minutes` as `trainer.max_time`. Raises UserError."""
    try:
        values: dict[str, Any] = parser.parse_args(argv, defaults=False).as_dict()
    except argparse.ArgumentError as error:
        raise UserError(_one_line(str(error), parser.prog)) from error
    minutes = values.pop("max_minutes", None)
    if minutes is None:
        return values
    if "max_time" in (values.get("trainer") or {}):
        raise UserError("--max-minutes and --trainer.max_time both say when to end: give one of them")
    return merged(values, {"trainer": {"max_time": _max_time(minutes)}})


def _max_time(minutes: float) -> str:
    """Minutes as `trainer.max_time`, to the second, at least one.

    Raises:
        UserError: not above 0, or no number.

    Example:
        >>> _max_time(90.5)
        '00:01:30:30'
    """
    if not 0 < minutes < 1e9:
        raise UserError(f"--max-minutes must be above 0 and below 1e9, got {minutes:g}")
    rest, seconds = divmod(max(1, round(60 * minutes)), 60)
    rest, in_hour = divmod(rest, 60)
    days, hours = divmod(rest, 24)
    return f"{days:02}:{hours:02}:{in_hour:02}:{seconds:02}"


def _config(files: list[Path], values: dict[str, Any]) -> Config:
    """Files or the default preset, then keys. Raises UserError."""
    base: dict[str, Any] = {}
    for file in files or [preset_path(DEFAULT_PRESET)]:
        base = merged(base, _read(file))
    config: Config = from_dict(Config, merged(base, values))
    return config


def preset_path(name: str) -> Path:
    """The file that `--config NAME` means: a path, or a preset's name.

    Raises:
        UserError: neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = presets()
    if name not in known:
        raise UserError(f"--config {name}: no such file or preset; presets: {', '.join(known)}")
    return known[name]


def _read(file: Path) -> dict[str, Any]:
    """The options in a YAML file."""
    try:
        values = read_yaml(file) or {}
    except UserError as error:
        raise UserError(f"{error} (in a configuration)") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: not a configuration: it should hold options such as model: {{dim: 256}}")
    return values


def _train_parser(prog: str) -> jsonargparse.ArgumentParser:
    parser = _parser(
        prog,
        "Train on a folder of audio. Without limits (trainer.max_steps, max_epochs, max_time) "
        "training ends when it no longer improves.",
    )
    parser.add_argument("folder", nargs="?", help="of audio; a resumed run knows its own")
    parser.add_argument("--name", help="of the run, a folder below runs/ (default: the audio folder's name)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run --name, or the newest, with its own options"
    )
    parser.add_argument(
        "--overfit-check",
        action="store_true",
        help="only try, for a minute at most, whether these options learn a few seconds of one file by "
        "heart; keeps nothing. Exit code 0 if they do, 1 if not",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print only what is wrong, with files too, and the final table",
    )
    return _with_config(parser)


def _doctor_parser(prog: str) -> jsonargparse.ArgumentParser:
    parser = _parser(
        prog,
        "Say whether a folder of audio is fit for training, and what training on it would be like. Writes "
        "nothing. Exit code 0 if it is fit, 1 if not. Takes the options that train takes.",
    )
    parser.add_argument("folder", nargs="?", help="of audio")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return _with_config(parser)


def _parser(prog: str, description: str) -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False)


def _with_config(parser: jsonargparse.ArgumentParser) -> jsonargparse.ArgumentParser:
    """Adds `--config`, `--max-minutes` and every key of the configuration."""
    parser.add_argument(
        "--config",
        help=f"a file, or a preset: {', '.join(presets())} (default: {DEFAULT_PRESET})",
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        help="end after this many minutes of training, such as 30 or 0.5: short for trainer.max_time",
    )
    parser.add_class_arguments(Config, as_group=False)
    return parser


def _split_config(argv: list[str]) -> tuple[list[Path], list[str]]:
    """Take `--config` out of the arguments, so that keys win wherever they stand."""
    taker = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    taker.add_argument("--config", action="append", default=[])
    try:
        taken, rest = taker.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    return [preset_path(name) for name in taken.config], rest


def _one_line(message: str, prog: str) -> str:
    """jsonargparse's messages without line breaks and Python's way of writing types."""
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    message = re.sub(r'^Parser key "([^"]+)":', r"\1:", message)
    message = re.sub(
        r"Does not validate .*Subtypes: \[(.*?)\]\s.*Given value: ", _either, message, flags=re.S
    )
    return " ".join(message.split()) + f"  (see {prog} --help)"


def _either(union: re.Match[str]) -> str:
    """`int, Literal['auto']` for people."""
    kinds = re.sub(r"Literal\['(\w+)'\]", r"\1", union[1]).split(", ")
    return f"Expected {' or '.join(kinds)}. Got value: "
