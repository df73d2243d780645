"""What goes wrong with audio files, in the words of whoever has to act on it."""

from __future__ import annotations

import errno
from pathlib import Path

from samplernn.config import UserError, one_line


class AudioError(UserError):
    """A file that cannot be read or written as asked: which, why, and what to do about it.

    Args:
        path: the file.
        problem: what is wrong with it.
        remedy: what to do.
        transient: the file's content is not what is wrong with it (a disk or network failed, it may not
            be read, it is being written to), so another time it may be read.
    """

    def __init__(self, path: str | Path, problem: str, remedy: str, transient: bool = False) -> None:
        super().__init__(path, problem, remedy, transient)
        self.path = Path(path)
        self.problem = problem
        self.remedy = remedy
        self.transient = transient

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.problem}; {self.remedy}")


def remedy_for(error: OSError) -> str:
    """What to do about a file or folder that the operating system does not give out."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "close other programs or allow more open files (ulimit -n)"
    if error.errno == errno.EIO:
        return "check the disk or network"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "check its permissions"
    return "check that it is still there, and its permissions"


def reason(error: Exception) -> str:
    """libsndfile's own words in parentheses, or nothing if it has none."""
    words = getattr(error, "error_string", "").removeprefix("Error :").strip(" .")
    return f" ({words[0].lower()}{words[1:]})" if words else ""


def is_of_the_system(error: Exception) -> bool:
    """Whether libsndfile reports an error of the operating system (SF_ERR_SYSTEM)."""
    return getattr(error, "code", 0) == 2
