"""Locks on a folder that end with the process that holds them, also on file systems that have no locks.

Where `flock` works, the operating system ends a lock with its process. Some network, FUSE and container file
systems refuse it; there a file beside the lock names the process that holds it, by machine and number. One
that has ended on this machine is passed over; whether one on another machine still runs cannot be seen from
here, so its user is told which file to remove.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import filelock

_ENOTSUPP = 524  # of Linux's kernel, which some file systems let through; it has no name outside
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, _ENOTSUPP}
_UNFINISHED_SECONDS = 0.2
"""How long a file that names no process may still be being written."""


class Busy(Exception):
    """Another process holds the lock; the message names it, as far as that is known.

    Args:
        holder: the other process.
        remedy: what to do if that has ended and could not say so; empty: its lock has then ended, too.
    """

    def __init__(self, holder: str = "another process", remedy: str = "") -> None:
        super().__init__(holder)
        self.remedy = remedy


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """No other process gets this lock inside the block.

    Args:
        path: of a file for the lock, in a folder that exists. It stays.

    Raises:
        Busy: another one has it.
        OSError: nothing can be written there.
    """
    owner = path.with_name(f"{path.name}-owner")
    if not _has_locks(path.parent):
        _claim(owner)
        try:
            yield
        finally:
            _give_back(owner)
        return
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Busy from None
    try:
        if (holder := _read(owner)) is not None:  # of a machine for which there are no locks
            _pass_over(owner, holder)
        yield
    finally:
        lock.release()


def _has_locks(folder: Path) -> bool:
    """Whether this file system has locks, tried on a file without a name. Raises OSError."""
    if sys.platform == "win32":
        return True
    import fcntl

    with tempfile.TemporaryFile(dir=folder) as trial:
        try:
            fcntl.flock(trial, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return True


class _Process(NamedTuple):
    """A process, told apart from all that have had or will have its number."""

    host: str
    pid: int
    boot: str
    """Of the machine, since it was started; empty where that is not known, as in the next two."""
    namespace: str
    """In which numbers of processes are unique: a container has its own."""
    started: str
    """When, in the system's own count."""

    @classmethod
    def current(cls) -> _Process:
        boot = namespace = ""
        with contextlib.suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
            namespace = str(Path("/proc/self/ns/pid").readlink())
        return cls(socket.gethostname(), os.getpid(), boot, namespace, _start_of(os.getpid()))

    def has_ended(self) -> bool | None:
        """Whether it has; None where that cannot be seen from here."""
        here = _Process.current()
        if self.host != here.host:
            return None
        if self.boot != here.boot:
            return True
        if self.namespace != here.namespace or sys.platform == "win32":
            return None
        with contextlib.suppress(PermissionError):  # it runs, and belongs to another user
            try:
                os.kill(self.pid, 0)
            except (ProcessLookupError, OverflowError):
                return True
        return self.started != _start_of(self.pid)


def _start_of(pid: int) -> str:
    """Field 22 of Linux's description of a process; empty where none is left but for its exit code."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _claim(owner: Path) -> None:
    """Make the file that names this process. Raises Busy, OSError."""
    while True:
        try:
            with owner.open("x", encoding="utf-8") as file:
                json.dump(_Process.current()._asdict(), file)
            return
        except FileExistsError:
            if (holder := _read(owner)) is not None:
                _pass_over(owner, holder)
        except BaseException:
            owner.unlink(missing_ok=True)
            raise


def _give_back(owner: Path) -> None:
    """Remove the file that names this process, unless somebody else has, and another process has it now."""
    with contextlib.suppress(OSError):
        if _process_in(owner.read_text("utf-8")) == _Process.current():
            owner.unlink()


def _read(owner: Path) -> str | None:
    """What the file says; None if there is none. Waits for one that is being written. Raises OSError."""
    try:
        text = owner.read_text("utf-8", "replace")
        if _process_in(text) is None:
            time.sleep(_UNFINISHED_SECONDS)
            text = owner.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    return text


def _process_in(text: str) -> _Process | None:
    """The process that the file names; None if it names none."""
    try:
        return _Process(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _pass_over(owner: Path, text: str) -> None:
    """Remove the file of a process that has ended. Raises OSError, and Busy if it may not have ended."""
    process = _process_in(text)
    has_ended = process.has_ended() if process else None
    if not has_ended:
        holder = f"another process ({process.pid} on {process.host})" if process else "another process"
        raise Busy(holder, f"if it has ended, remove {owner}" if has_ended is None else "")
    aside = owner.with_name(f"{owner.name}-{secrets.token_hex(4)}")
    try:
        owner.rename(aside)
    except FileNotFoundError:  # another process was faster
        return
    if aside.read_text("utf-8", "replace") == text:
        aside.unlink()
    else:  # and has it by now
        aside.rename(owner)
