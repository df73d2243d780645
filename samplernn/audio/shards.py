"""Shards: the decoded samples of a few audio files in one int16 file, with a JSON file beside it.

A corpus is a set of shards. Each is built by itself, under temporary names that an atomic rename
makes final (the samples first, the JSON last), so a build that is killed resumes at the finished
shards and two processes that build the same one do no harm. The name of a shard is a hash of what
its source files were (path, size, time) and of the settings, so an unchanged shard is never rebuilt.

The JSON holds what is known of each file, its spectral peaks too. It carries a checksum of itself, and of
each file's samples; it also notes the size and time of the samples' file. While those are as noted the
samples are trusted, so that a start does not read the whole cache; otherwise they are checked, and built
again if they are not what was written.

Only what the bytes of a file decide is kept. A shard in which something else failed (a disk, a
permission, a file that somebody was writing to) gets a name of its own, serves the process that made
it, and is made anew by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from samplernn import storage
from samplernn.audio.files import AudioFile, Problem, Source, decode_into, measure
from samplernn.audio.io import AudioError
from samplernn.config import DECODE_TIMEOUT, UserError

FORMAT_VERSION = 5
"""Part of every key: raise it when the bytes of a shard would come out differently."""
SHARD_FILES = 32
SHARD_BYTES = 8 * 2**20
"""A shard is expected to hold about this many files, or this many source bytes if they are large."""
STALE_SECONDS = 24 * 3600.0
"""Shards that no longer belong to the corpus are kept this long: another run may still read them."""
MAX_OPEN_SHARDS = 256
"""At most; a quarter of the files that the process may open where that is less (macOS: 64)."""
_PIECE = 2**20
"""Samples that are processed at a time where a pass over a finished file is needed."""


class Shard(NamedTuple):
    """What a shard's JSON says."""

    files: tuple[AudioFile, ...]
    problems: tuple[Problem, ...]


class Damaged(Exception):
    """A shard that was complete is not what was written."""


def group(sources: Sequence[Source]) -> list[tuple[Source, ...]]:
    """Cuts a sorted list of sources into the groups that share a shard.

    Whether a group ends after a file depends on that file alone, so a file that is added or changed
    touches the one group that it falls into.
    """
    groups: list[tuple[Source, ...]] = []
    first = 0
    for index, source in enumerate(sources):
        digest = hashlib.sha256(os.fsencode(source.path)).digest()
        fraction = int.from_bytes(digest[:8], "big") / 2**64
        is_last = index + 1 == len(sources)
        if is_last or fraction < 1 / SHARD_FILES + source.size / SHARD_BYTES:
            groups.append(tuple(sources[first : index + 1]))
            first = index + 1
    return groups


def shard_key(sources: Sequence[Source], sample_rate: int) -> str:
    """Name of the shard of these sources, without suffix."""
    described = [FORMAT_VERSION, sample_rate, [[s.path, s.size, s.mtime_ns] for s in sources]]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def load_shard(shard_dir: Path, key: str, note: bool = True, timeout: float = DECODE_TIMEOUT) -> Shard | None:
    """A finished shard, or None if there is none.

    Reads the samples only if their file is not the one that was written, by size and time: a copied
    cache is checked once, and then noted as right.

    Args:
        shard_dir: where it is.
        key: its name.
        note: a file of samples that had to be checked is noted as right; otherwise nothing is written.
        timeout: `data.decode_timeout`. A shard without a file that had less time than that does not count.

    Raises:
        Damaged: it is to be built again.
    """
    samples, description = shard_dir / f"{key}.i16", shard_dir / f"{key}.json"
    try:
        entry = json.loads(description.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        raise Damaged(key) from None
    try:
        if entry["checksum"] != _checksum(key, entry["files"], entry["problems"]):
            raise Damaged(key)
        if entry["decode_timeout"] is not None and entry["decode_timeout"] < timeout:
            return None
        shard = Shard(
            tuple(AudioFile.from_dict(item) for item in entry["files"]),
            tuple(Problem(**item) for item in entry["problems"]),
        )
        stamp = _stamp(samples)
        if stamp["size"] != 2 * sum(file.num_samples for file in shard.files):
            raise Damaged(key)
        if stamp != entry["samples"] and not _is_intact(samples, shard.files):
            raise Damaged(key)
    except (OSError, TypeError, KeyError):
        raise Damaged(key) from None
    if note and stamp != entry["samples"]:
        with contextlib.suppress(OSError):  # a cache that cannot be written to can be read all the same
            write_json(description, {**entry, "samples": stamp}, is_patient=False)
    return shard


def make_shard(
    folder: Path,
    sources: Sequence[Source],
    sample_rate: int,
    shard_dir: Path,
    key: str,
    store: bool,
    begin: Callable[[int], None] = lambda index: None,
    given_up: Mapping[str, AudioError] = MappingProxyType({}),
    timeout: float = math.inf,
) -> Shard:
    """Decodes a group of files into a shard, or finds out what that would give and writes nothing.

    Args:
        folder: the audio folder.
        sources: the group.
        sample_rate: Hz of the decoded samples.
        shard_dir: where the shard goes.
        key: its name.
        store: whether it is written.
        begin: called with the index of each source before it is read.
        given_up: files that are not to be read, by path, and why.
        timeout: `data.decode_timeout`, which those did not keep.

    Returns:
        the shard. Under another name than `key`, so that it is not found again, if a file was changed
        meanwhile or could not be read for another reason than its content.

    Raises:
        OSError: the shard cannot be written.
    """
    if not store:
        return _measure_shard(folder, sources, sample_rate, f"{key}.i16", begin, given_up)
    return storage.patiently(
        lambda: _store_shard(folder, sources, sample_rate, shard_dir, key, begin, given_up, timeout)
    )


def _store_shard(
    folder: Path,
    sources: Sequence[Source],
    sample_rate: int,
    shard_dir: Path,
    key: str,
    begin: Callable[[int], None],
    given_up: Mapping[str, AudioError],
    timeout: float,
) -> Shard:
    """`make_shard` where it is written."""
    files: list[AudioFile] = []
    problems: list[Problem] = []
    is_transient = False
    with _replacing(shard_dir / f"{key}.i16") as samples:
        for index, source in enumerate(sources):
            begin(index)
            start = samples.stream.tell()
            if source.path in given_up:
                file, errors = None, [given_up[source.path]]
            else:
                file, errors = decode_into(samples.stream, folder, source, sample_rate, samples.path.name)
            if file:
                files.append(file)
            else:
                samples.stream.seek(start)
                samples.stream.truncate()
            problems += [Problem(source.path, e.problem, e.remedy) for e in errors]
            is_transient |= any(error.transient for error in errors)
        if is_transient:
            key = f"{key}-{secrets.token_hex(4)}"
            samples.path = shard_dir / f"{key}.i16"
            files = [replace(file, shard=samples.path.name) for file in files]
    _write_entry(shard_dir, key, files, problems, timeout if given_up else None)
    return Shard(tuple(files), tuple(problems))


def _measure_shard(
    folder: Path,
    sources: Sequence[Source],
    sample_rate: int,
    shard: str,
    begin: Callable[[int], None],
    given_up: Mapping[str, AudioError],
) -> Shard:
    """What `make_shard` would return, decoded for that alone."""
    files: list[AudioFile] = []
    problems: list[Problem] = []
    offset = 0
    for index, source in enumerate(sources):
        begin(index)
        if source.path in given_up:
            file, errors = None, [given_up[source.path]]
        else:
            file, errors = measure(folder, source, sample_rate, shard, offset)
        if file:
            files.append(file)
            offset += file.num_samples
        problems += [Problem(source.path, e.problem, e.remedy) for e in errors]
    return Shard(tuple(files), tuple(problems))


def _write_entry(
    shard_dir: Path,
    key: str,
    files: Sequence[AudioFile],
    problems: Sequence[Problem],
    timeout: float | None,
) -> None:
    """Writes a shard's JSON, once its samples are in place."""
    entry = {"files": [asdict(file) for file in files], "problems": [asdict(item) for item in problems]}
    check = {"checksum": _checksum(key, entry["files"], entry["problems"]), "decode_timeout": timeout}
    write_json(shard_dir / f"{key}.json", {**entry, **check, "samples": _stamp(shard_dir / f"{key}.i16")})


def _checksum(key: str, files: object, problems: object) -> str:
    """Of a shard's JSON, all but what it notes about the file of the samples."""
    return hashlib.sha256(json.dumps([key, files, problems], sort_keys=True).encode()).hexdigest()


def _stamp(samples: Path) -> dict[str, int]:
    """By what a file that nobody touched is recognised. Raises OSError."""
    status = samples.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _is_intact(samples: Path, files: Iterable[AudioFile]) -> bool:
    """Whether the samples of all files are what they were. Raises OSError."""
    with samples.open("rb") as stream:
        for file in files:
            digest = hashlib.sha256()
            stream.seek(2 * file.offset)
            for done in range(0, file.num_samples, _PIECE):
                digest.update(stream.read(2 * min(_PIECE, file.num_samples - done)))
            if digest.hexdigest() != file.sha256:
                return False
    return True


def write_json(path: Path, value: object, is_patient: bool = True) -> None:
    """Writes a JSON file, whole or not at all.

    Args:
        path: of the file.
        value: of plain values.
        is_patient: see `storage.patiently`; otherwise the file can be done without.

    Raises:
        OSError: it cannot be written.
    """
    # Not to the disk: what a power cut leaves of a shard's fails its checksum.
    with _replacing(path, to_disk=False, is_patient=is_patient) as file:
        file.stream.write(json.dumps(value, indent=1).encode())


def remove_stale(shard_dir: Path, keys: Iterable[str]) -> None:
    """Deletes shards other than `keys`, and left-over temporary files, that nobody used for a day."""
    wanted = set(keys)
    limit = time.time() - STALE_SECONDS
    for path in sorted(shard_dir.iterdir(), reverse=True):  # the samples' file after the JSON
        with contextlib.suppress(OSError):  # another process may be doing the same
            if path.name.split(".")[0] in wanted or path.stat().st_mtime > limit:
                continue
            mark = path.with_suffix(".json")
            if not (mark.exists() and mark.stat().st_mtime > limit):
                path.unlink()


def _max_open() -> int:
    """Shards to keep open: each takes one of the files that this process may have open."""
    if sys.platform == "win32":
        return MAX_OPEN_SHARDS
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_OPEN_SHARDS if limit < 0 else max(1, min(MAX_OPEN_SHARDS, limit // 4))


class Samples(Protocol):
    """The samples of a shard."""

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """A part from a start to a stop, int16 `[n]`, read-only."""


@functools.lru_cache(maxsize=_max_open())
def open_samples(path: Path) -> Samples:
    """The samples of a shard, memory-mapped where the file system can. Raises UserError."""
    try:
        mapped = _map(path)
    except (OSError, ValueError) as error:
        raise _gone(path, error) from None
    with contextlib.suppress(OSError):
        os.utime(path.with_suffix(".json"))  # in use: see `remove_stale`
    return mapped


def _gone(path: Path, reason: object) -> UserError:
    """What to say where a shard cannot be read any more."""
    return UserError(
        f"{path}: cannot be read ({reason}): the cache was deleted or damaged while in use; start again"
    )


def _map(path: Path) -> Samples:
    """Maps int16 samples; if too many files are open, the shards that are open make room."""
    try:
        return _mapped_or_read(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        open_samples.cache_clear()
        return _mapped_or_read(path)


def _mapped_or_read(path: Path) -> Samples:
    """Some network, FUSE and container file systems cannot map a file; there it is read piece by piece."""
    try:
        # Slicing a plain array is several times cheaper.
        return np.memmap(path, "<i2", mode="r").view(np.ndarray)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise
        return _ReadSamples(path)


class _ReadSamples:
    """Samples that are read whenever a part of them is asked for, from a file that stays open.

    Args:
        path: of the shard. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._stream = path.open("rb", buffering=0)
        self._length = os.fstat(self._stream.fileno()).st_size // 2

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """See `Samples`. Raises UserError if the file was cut short, or cannot be read any more."""
        start, stop, _ = part.indices(self._length)
        content = bytearray(2 * max(0, stop - start))
        room, done = memoryview(content), 0
        try:
            with self._lock:
                self._stream.seek(2 * start)
                while done < len(room) and (got := self._stream.readinto(room[done:])):
                    done += got
        except OSError as error:
            raise _gone(self._path, error) from None
        if done < len(room):
            raise _gone(self._path, "it was cut short")
        found = np.frombuffer(content, "<i2")
        found.flags.writeable = False
        return found


@dataclass
class _Replacement:
    """A file that is being written, and the name that it is to get."""

    stream: BinaryIO
    path: Path


@contextlib.contextmanager
def _replacing(path: Path, to_disk: bool = True, is_patient: bool = True) -> Iterator[_Replacement]:
    """A binary file that takes the name `path` once it is complete (and on disk), or vanishes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w+b") as stream:
            replacement = _Replacement(stream, path)
            yield replacement
            stream.flush()
            if to_disk:
                os.fsync(stream.fileno())
        rename = storage.replace if is_patient else Path.replace
        try:
            rename(temporary, replacement.path)
        except IsADirectoryError:
            replacement.path.rmdir()  # an empty folder is no loss, and a full one stays
            rename(temporary, replacement.path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
