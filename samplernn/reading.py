"""Reading small text files that anybody may have written: YAML and JSON as plain values.

A model that was downloaded, a run's folder that was damaged and a configuration with a slip in it have in
common that nothing about the file is certain. Whatever it holds, reading it ends soon, takes little memory,
and either gives plain values or raises a `UserError` of one line. Nothing in a file is ever executed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from samplernn.config import UserError

MOST_BYTES = 64 * 2**20
"""A larger file is none of ours: the longest list of files of a corpus takes a few MiB."""
_MOST_YAML_BYTES = 32 * 2**20
"""The same of YAML, which takes a hundred times as long to read."""
_MOST_DEPTH = 40
"""Values within values; ours have at most five of them."""
_MOST_NODES = 5_000_000
"""Values in a YAML file, each counted as often as it is referred to."""


def read_text(file: str | Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a small UTF-8 file.

    Args:
        file: where it is.
        most_bytes: how large it may be.

    Raises:
        UserError: it is missing, no regular file, cannot be read, is too large, or not UTF-8.
    """
    file = Path(file)
    try:
        if file.exists() and not file.is_file():  # a pipe would keep whoever reads it waiting
            raise UserError(f"{file}: is not a file")
        with file.open("rb") as opened:
            content = opened.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(content) > most_bytes:
        raise UserError(f"{file}: larger than {most_bytes / 2**20:.0f} MiB, so it is none of samplernn's")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not text in UTF-8 (byte {error.start})") from None


def read_json(file: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: see `read_text`; or it is not JSON.
    """
    return parse_json(read_text(file), file)


def parse_json(text: str, source: str | Path) -> Any:
    """What a JSON text says.

    Args:
        text: it.
        source: where it is from, for messages.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{source}: values within values, too deep to be one of samplernn's") from None
    except ValueError as error:  # also of numbers with thousands of digits
        raise UserError(f"{source}: not JSON: {_first_words(error)}") from None


def read_yaml(file: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        UserError: see `read_text`; or it is not YAML of plain values, nested too deep, or its references
            (anchors and aliases) amount to too much.
    """
    text = read_text(file, _MOST_YAML_BYTES)
    try:
        return yaml.load(text, _Loader)
    except _TooMuchError as error:
        raise UserError(f"{file}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{file}{where}: not YAML of plain values: {_first_words(problem)}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # of dates and of long numbers
        raise UserError(f"{file}: not YAML of plain values: {_first_words(error)}") from None


class _TooMuchError(Exception):
    """A file that would take too much memory or too deep a recursion."""


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, with a limit to depth and size.

    Sizes count what an alias stands for as often as it stands there: nine lines, each with nine references to
    the one before, are a few hundred bytes and would be 400 million values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            name = event.anchor or ""
            if name in self.anchors and name not in self._sizes:
                raise _TooMuchError(f"refers to *{name[:40]} within itself")
            self._count(self._sizes.get(name, 0))
            return super().compose_node(parent, index)
        self._count(1)
        before = self._nodes
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise _TooMuchError("values within values, too deep to be one of samplernn's")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before + 1
        return node

    def _count(self, more: int) -> None:
        self._nodes += more
        if self._nodes > _MOST_NODES:
            raise _TooMuchError("too many values to be one of samplernn's")


def _first_words(error: object) -> str:
    """The beginning of what a parser says, on one line."""
    return " ".join(str(error).split())[:120]
