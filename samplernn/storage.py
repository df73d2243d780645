"""Files that appear whole or not at all, on disks that refuse now and then.

On Windows no file can be replaced while another program has it open, and a network disk may be gone for a
moment. What fails for such a reason is tried again for some seconds, before it ends hours of training. A disk
that is full or read-only stays so, and says so at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import BinaryIO, TypeVar

T = TypeVar("T")

WAITS = (0.1, 0.3, 1.0, 3.0)
"""Seconds between the attempts."""
_DISTURBED = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "EIO",
        "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN", "EREMOTEIO", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
}  # fmt: skip
_HELD = {errno.EACCES, errno.EPERM}
_HELD_ON_WINDOWS = {32, 33}
"""Numbers of Windows's own: shared with, or locked by, another program."""
_DISTURBED_ON_WINDOWS = {59, 64, 121}
"""Of its network disks."""


def may_pass(error: BaseException, replaces: bool = False) -> bool:
    """Whether what failed so may succeed a little later.

    Args:
        error: an OSError, or one that was raised where an OSError was handled.
        replaces: of changing or replacing a file that is there, which another program may have open.
    """
    cause = error if isinstance(error, OSError) else error.__context__
    if not isinstance(cause, OSError):
        return False
    windows = getattr(cause, "winerror", None)
    if cause.errno in _DISTURBED or windows in _DISTURBED_ON_WINDOWS | _HELD_ON_WINDOWS:
        return True
    return replaces and cause.errno in _HELD


def patiently(work: Callable[[], T], replaces: bool = False) -> T:
    """Do something that writes, and again for some seconds if it fails for a reason that may pass.

    Args:
        work: to be done, from its beginning each time.
        replaces: see `may_pass`.

    Returns:
        What the work returns.

    Raises:
        Exception: what the work raised last.
    """
    for wait in WAITS:
        try:
            return work()
        except Exception as error:
            if not may_pass(error, replaces):
                raise
        sleep(wait)
    return work()


def replace(partial: Path, path: Path) -> None:
    """Give a file that is complete its name, which an older one may have. Raises OSError."""
    patiently(lambda: partial.replace(path), replaces=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that appears whole or not at all: others read along, and this process may be killed.

    Args:
        path: of the file; an older one stays until then.
        write: writes it to a path beside, with the same suffix.

    Raises:
        Exception: what `write` raises, or OSError. Then nothing is left of it.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        patiently(lambda: write(partial))
        replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all. Raises OSError."""
    write_whole(path, lambda partial: partial.write_text(text, "utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all. Raises OSError."""
    write_whole(path, lambda partial: partial.write_bytes(content))


def write_to_disk(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is whole or not there, also if the power fails.

    Args:
        path: of the file.
        write: writes it to an open file.

    Raises:
        Exception: see `write_whole`.
    """

    def write_through(partial: Path) -> None:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write_through)
