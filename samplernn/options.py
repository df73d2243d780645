"""The options of `samplernn train`: configuration files, presets and keys on the command line."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from samplernn.config import Config, UserError, from_dict, merged, presets

DEFAULT_PRESET = "small"
_PROG = "samplernn train"


@dataclass(frozen=True)
class TrainOptions:
    """A parsed command line of `samplernn train`."""

    folder: str | None
    name: str | None
    resume: bool
    config: Config
    """Preset or files, then keys."""
    changes: dict[str, Any]
    """Only what the command line itself set, nested."""


def parse(argv: list[str]) -> TrainOptions:
    """Read a command line.

    Raises:
        UserError: an unknown or malformed option, a missing file, no folder.
    """
    files, rest = _split_config(argv)
    parser = _parser()
    try:
        given = parser.parse_args(rest, defaults=False)
    except argparse.ArgumentError as error:
        raise UserError(_one_line(str(error))) from error
    values = given.as_dict()
    folder, name = values.pop("folder", None), values.pop("name", None)
    resume = bool(values.pop("resume", False))
    if folder is None and not resume:
        raise UserError(f"{_PROG}: name the folder of audio  (see {_PROG} --help)")
    if resume and files:
        raise UserError("--resume continues a run with its own configuration: leave --config out")
    base: dict[str, Any] = {}
    for file in files or [preset_path(DEFAULT_PRESET)]:
        base = merged(base, _read(file))
    config = from_dict(Config, merged(base, values))
    return TrainOptions(folder, name, resume, config, values)


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
        values = yaml.safe_load(file.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: not a configuration: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: not a configuration: it should hold options such as model: {{dim: 256}}")
    return values


def _parser() -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=_PROG,
        description="Train on a folder of audio. Without limits (trainer.max_steps, max_epochs, max_time) "
        "training ends when it no longer improves.",
        exit_on_error=False,
    )
    parser.add_argument("folder", nargs="?", help="of audio; a resumed run knows its own")
    parser.add_argument("--name", help="of the run, a folder below runs/ (default: the audio folder's name)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run --name, or the newest, with its own options"
    )
    parser.add_argument(
        "--config",
        help=f"a file, or a preset: {', '.join(presets())} (default: {DEFAULT_PRESET})",
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


def _one_line(message: str) -> str:
    """jsonargparse's messages without line breaks and Python's way of writing types."""
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    message = re.sub(r'^Parser key "([^"]+)":', r"\1:", message)
    return " ".join(message.split()) + f"  (see {_PROG} --help)"
