"""Finding audio files below a folder without opening any, and without walking in circles."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from samplernn.audio.files import Problem, Source
from samplernn.audio.io import SUFFIXES, UNSUPPORTED, remedy_for, sniff
from samplernn.config import UserError


def scan(folder: str | Path) -> list[Path]:
    """Audio files below a folder, ordered by relative path, judged by their suffix.

    Regular files only; hidden files and folders are left out, links are followed once. The list
    includes files in formats that cannot be read (`UNSUPPORTED`), so that they can be reported.

    Raises:
        UserError: there is no such folder.
    """
    return find(Path(folder)).paths


def require_audio(folder: str | Path) -> None:
    """Says at once that a folder cannot be trained on, as far as names tell; `prepare` finds the rest.

    Raises:
        UserError: there is no such folder, or no file in it that is named like audio.
    """
    root = Path(folder).absolute()
    _require_folder(root)
    for _, _, names in os.walk(root, followlinks=True):  # a circle of links ends at the system's limit
        if any(Path(name).suffix.lower() in SUFFIXES | UNSUPPORTED for name in names):
            return
    found = find(root)
    if not found.paths and not found.problems:
        raise UserError(f"{folder}: no audio files found ({', '.join(sorted(SUFFIXES))})")


class Found(NamedTuple):
    """What lies below a folder."""

    paths: list[Path]
    """Regular files with the suffix of audio, ordered by relative path."""
    irregular: list[Problem]
    """What carries such a suffix and is no file; it is never opened."""
    misnamed: list[Problem]
    """Audio by another name, such as `take.wav.bak`; it is left out."""
    unsearchable: list[Problem]
    """Folders that could not be searched."""

    @property
    def problems(self) -> list[Problem]:
        """All of them."""
        return self.irregular + self.misnamed + self.unsearchable

    @property
    def num_files(self) -> int:
        """What carries the suffix of audio, file or not."""
        return len(self.paths) + len(self.irregular)


def find(folder: Path) -> Found:
    """Searches a folder as `scan` does, and says what is in the way. Raises UserError."""
    _require_folder(folder)
    found = Found([], [], [], [])
    seen: set[tuple[int, int]] = set()
    pending = deque([folder])
    while pending:
        directory = pending.popleft()
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    # links last: a folder's own path wins over a link to it
                    (pending.append if entry.is_symlink() else pending.appendleft)(directory / entry.name)
                else:
                    _sort_in(found, folder, directory / entry.name, entry)
        except OSError as error:
            where = directory.relative_to(folder).as_posix()
            problem = f"cannot be searched ({error.strerror})"
            found.unsearchable.append(Problem(where, problem, remedy_for(error)))
    found.paths.sort(key=lambda path: path.relative_to(folder).as_posix())
    return found


def _require_folder(folder: Path) -> None:
    """Raises UserError if there is none."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        raise UserError(f"{folder}: no such folder; give the folder that holds the audio files") from None
    except (OSError, ValueError) as error:  # a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder}: cannot be read: {reason}; give the folder that holds the audio files"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{folder}: is not a folder; give the folder that holds the audio files")


def _sort_in(found: Found, folder: Path, path: Path, entry: os.DirEntry[str]) -> None:
    """Puts what is no folder where it belongs, or nowhere."""
    relative = path.relative_to(folder).as_posix()
    if path.suffix.lower() in SUFFIXES | UNSUPPORTED:
        if irregularity := _irregularity(entry):
            found.irregular.append(Problem(relative, *irregularity))
        else:
            found.paths.append(path)
    elif _is_file(entry) and (kind := sniff(path)):
        problem = f"holds {kind} audio, but is not named like it, so it is left out"
        found.misnamed.append(Problem(relative, problem, "rename it (.wav, .flac, …) to use it"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link in a circle is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file or a link to one."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _irregularity(entry: os.DirEntry[str]) -> tuple[str, str] | None:
    """Problem and remedy of what carries the suffix of audio but is no regular file; nothing is opened."""
    try:
        if entry.is_file():  # mostly answered by the directory itself
            return None
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return "is a link to nothing", "remove it, or put its target back"
    except OSError as error:
        return f"cannot be reached ({error.strerror})", "remove the link, or check permissions on its way"
    kind = "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    return f"is {kind}, not a file", "move it elsewhere"


def states(folder: Path, paths: Iterable[Path]) -> tuple[list[Source], list[Problem]]:
    """The state of the files, and those that may not be read (never cached: permissions have no mtime)."""
    sources: list[Source] = []
    problems: list[Problem] = []
    for path in paths:
        relative = path.relative_to(folder).as_posix()
        try:
            status = path.stat()
            if not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
            sources.append(Source(relative, status.st_size, status.st_mtime_ns))
        except OSError as error:
            problems.append(Problem(relative, f"cannot be opened ({error.strerror})", remedy_for(error)))
    return sources, problems
