"""What the user is told: one line per mistake, whatever a file is called."""

from __future__ import annotations

import io
import sys
from typing import Any

_SHOWN_CHARACTERS = 80


class UserError(ValueError):
    """A mistake of the user's that one line can explain: what, where, what to do.

    The command line prints it without a traceback and exits with code 2. Whatever a file's name holds,
    the message is one line (see `one_line`).
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    r"""Text that may hold a file's name, with what cannot be printed as an escape: always one line.

    A name can hold newlines, codes that command a terminal, marks that reverse the text, and (on Linux)
    bytes that are not Unicode. Joiners stay, as they hold emoji together.

    Example:
        >>> one_line("caf\udce9\n.wav")
        'caf\\xe9\\n.wav'
    """
    return "".join(char if char.isprintable() or char in "\u200c\u200d" else _escaped(char) for char in text)


def say(message: str) -> None:
    """Tell the user something, on standard error. Raises OSError if nobody can hear it any more."""
    print(message, file=sys.stderr, flush=True)


def let_everything_be_printed() -> None:
    """Output never fails over a character: what the encoding of a terminal or pipe lacks becomes an escape.

    Otherwise a file's name, or an ellipsis, would end a command after its work is done. For command lines:
    it changes `sys.stdout` and `sys.stderr`.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        gives_bytes_back = stream.errors == "surrogateescape" and stream.encoding.lower() in ("utf-8", "utf8")
        if not gives_bytes_back:  # that one prints names that are no Unicode as they are
            stream.reconfigure(errors="backslashreplace")


def _escaped(char: str) -> str:
    """One character as Python would write it; a byte that is not Unicode as that byte."""
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def brief(value: Any) -> str:
    """A value that anybody may have written, for a message: as Python writes it, cut short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number with thousands of digits; lists in lists in lists
        return f"a {type(value).__name__} of no use"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def require(condition: bool, message: str) -> None:
    """Raises UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)
