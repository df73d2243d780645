"""Shards: the decoded samples of a few audio files in one int16 file, with a JSON file beside it.

A corpus is a set of shards. Each is built by itself, under temporary names that an atomic rename
makes final (the samples first, the JSON last), so a build that is killed resumes at the finished
shards and two processes that build the same one do no harm. The name of a shard is a hash of what
its source files were (path, size, time) and of the settings, so an unchanged shard is never rebuilt.

The JSON carries a checksum of itself, and of each file's samples; it also notes the size and time of the
samples' file. While those are as noted the samples are trusted, so that a start does not read the whole
cache; otherwise they are checked, and built again if they are not what was written.

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
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from samplernn.audio.io import AudioError, Decoder, remedy_for, to_int16
from samplernn.audio.measures import Levels
from samplernn.config import UserError, one_line

FORMAT_VERSION = 2
"""Part of every key: raise it when the bytes of a shard would come out differently."""
SHARD_FILES = 32
SHARD_BYTES = 8 * 2**20
"""A shard is expected to hold about this many files, or this many source bytes if they are large."""
STALE_SECONDS = 24 * 3600.0
"""Shards that no longer belong to the corpus are kept this long: another run may still read them."""
MAX_OPEN_SHARDS = 256
"""At most; a quarter of the files that the process may open where that is less (macOS: 64)."""
DC_LIMIT = 1e-3
"""A file whose mean is further than this from zero (full scale 1.0) has its mean removed."""
_PIECE = 2**20
"""Samples that are processed at a time where a pass over a finished file is needed."""


@dataclass(frozen=True)
class Source:
    """An audio file as found in the folder."""

    path: str
    """Relative to the folder, with forward slashes."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change in ns."""


@dataclass(frozen=True)
class AudioFile:
    """The decoded samples of one audio file and where they are."""

    path: str
    """Relative to the audio folder, with forward slashes."""
    num_samples: int
    """At the corpus's sample rate."""
    shard: str
    """Name of the file that holds the samples."""
    offset: int
    """Samples of that file that come before."""
    peak: float
    """Largest magnitude, 0 to 1."""
    dc: float
    """Mean of the samples before it was removed (it is where beyond `DC_LIMIT`)."""
    clipped: int
    """Frames of the audio file, at its own rate, in which a channel is clipped."""
    sha256: str
    """Of the samples as stored, little-endian int16."""
    size: int
    """Bytes of the audio file."""
    mtime_ns: int
    """Time of the audio file's last change in ns."""
    source_rate: int
    """Sample rate of the audio file in Hz."""
    channels: int
    """Channels of the audio file."""
    rms: float = 0.0
    """Root mean square of the samples as stored, 0 to 1."""
    levels: tuple[int, ...] = ()
    """Samples as stored by the level of the 50 ms around them, see `measures.Levels.histogram`."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AudioFile:
        """Inverse of `dataclasses.asdict`, through JSON too. Raises TypeError and KeyError."""
        return cls(**{**values, "levels": tuple(values["levels"])})


@dataclass(frozen=True)
class Problem:
    """An audio file that is not used, or only in part: which, why, and what to do."""

    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.problem}; {self.remedy}")


class Shard(NamedTuple):
    """What a shard's JSON says."""

    files: tuple[AudioFile, ...]
    problems: tuple[Problem, ...]


class Cancelled(Exception):
    """The build was told to stop."""


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


def load_shard(shard_dir: Path, key: str, note: bool = True) -> Shard | None:
    """A finished shard, or None if there is none.

    Reads the samples only if their file is not the one that was written, by size and time: a copied
    cache is checked once, and then noted as right.

    Args:
        shard_dir: where it is.
        key: its name.
        note: a file of samples that had to be checked is noted as right; otherwise nothing is written.

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
            write_json(description, {**entry, "samples": stamp})
    return shard


def build_shard(
    folder: Path,
    sources: Sequence[Source],
    sample_rate: int,
    shard_dir: Path,
    key: str,
    advance: Callable[[int], None] = lambda size: None,
    stop: threading.Event | None = None,
) -> Shard:
    """Decodes a group of files into a shard.

    Args:
        folder: the audio folder.
        sources: the group.
        sample_rate: Hz of the decoded samples.
        shard_dir: where the shard goes.
        key: its name.
        advance: called with the size in bytes of each source that is done.
        stop: ends the build when set.

    Returns:
        the shard. Under another name than `key`, so that it is not found again, if a file was changed
        meanwhile or could not be read for another reason than its content.

    Raises:
        Cancelled: `stop` was set.
        OSError: the shard cannot be written.
    """
    files: list[AudioFile] = []
    problems: list[Problem] = []
    is_transient = False
    with _replacing(shard_dir / f"{key}.i16") as samples:
        for source in sources:
            start = samples.stream.tell()
            file, errors = _decode_into(samples.stream, folder, source, sample_rate, samples.path.name, stop)
            if file:
                files.append(file)
            else:
                samples.stream.seek(start)
                samples.stream.truncate()
            problems += [Problem(source.path, e.problem, e.remedy) for e in errors]
            is_transient |= any(error.transient for error in errors)
            advance(source.size)
        if is_transient:
            key = f"{key}-{secrets.token_hex(4)}"
            samples.path = shard_dir / f"{key}.i16"
            files = [replace(file, shard=samples.path.name) for file in files]
    _write_entry(shard_dir, key, files, problems)
    return Shard(tuple(files), tuple(problems))


def _write_entry(shard_dir: Path, key: str, files: Sequence[AudioFile], problems: Sequence[Problem]) -> None:
    """Writes a shard's JSON, once its samples are in place."""
    entry = {"files": [asdict(file) for file in files], "problems": [asdict(item) for item in problems]}
    check = {"checksum": _checksum(key, entry["files"], entry["problems"])}
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


def measure_shard(
    folder: Path,
    sources: Sequence[Source],
    sample_rate: int,
    shard_dir: Path,
    key: str,
    advance: Callable[[int], None] = lambda size: None,
    stop: threading.Event | None = None,
) -> Shard:
    """What `build_shard` would return, decoded for that alone: nothing is written.

    Raises:
        Cancelled: `stop` was set.
    """
    files: list[AudioFile] = []
    problems: list[Problem] = []
    samples = shard_dir / f"{key}.i16"
    offset = 0
    for source in sources:
        measure = functools.partial(_measure, folder, source, sample_rate, samples.name, offset, stop)
        file, errors = _unless_changed(folder / source.path, source, measure)
        if file:
            files.append(file)
            offset += file.num_samples
        problems += [Problem(source.path, e.problem, e.remedy) for e in errors]
        advance(source.size)
    return Shard(tuple(files), tuple(problems))


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file, whole or not at all. Raises OSError."""
    with _replacing(path, to_disk=False) as file:  # what a power cut leaves of a shard's fails its checksum
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


@functools.lru_cache(maxsize=_max_open())
def open_samples(path: Path) -> np.ndarray:
    """The samples of a shard, int16 `[n]`, read-only and memory-mapped. Raises UserError."""
    try:
        mapped = _map(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}): the cache was deleted or damaged while in use; start again"
        ) from None
    with contextlib.suppress(OSError):
        os.utime(path.with_suffix(".json"))  # in use: see `remove_stale`
    return mapped.view(np.ndarray)  # slicing a plain array is several times cheaper


def _map(path: Path) -> np.ndarray:
    """Maps int16 samples; if too many files are open, the shards that are open make room."""
    try:
        return np.memmap(path, "<i2", mode="r")
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        open_samples.cache_clear()
        return np.memmap(path, "<i2", mode="r")


class _Tally:
    """What is known about a file's samples once they have all passed by."""

    def __init__(self, sample_rate: int) -> None:
        self.num_samples = 0
        self.total = 0
        self.peak = 0
        self.levels = Levels(sample_rate)
        self._hash = hashlib.sha256()

    def add(self, block: np.ndarray) -> None:
        """Counts a block, int16 `[n]`, n > 0."""
        low, high = int(block.min()), int(block.max())
        self.num_samples += len(block)
        self.total += int(block.sum(dtype=np.int64))
        self.peak = max(self.peak, -low, high)
        self.levels.add(block)
        self._hash.update(_bytes(block))

    @property
    def mean(self) -> float:
        """In int16 steps."""
        return self.total / self.num_samples

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _decode_into(
    stream: BinaryIO, folder: Path, source: Source, sample_rate: int, shard: str, stop: threading.Event | None
) -> tuple[AudioFile | None, list[AudioError]]:
    """Appends one file's samples to a shard; returns its entry, None if it cannot be used, and why."""
    return _unless_changed(
        folder / source.path, source, lambda: _decode(stream, folder, source, sample_rate, shard, stop)
    )


def _unless_changed(
    path: Path, source: Source, read: Callable[[], tuple[AudioFile, list[AudioError]]]
) -> tuple[AudioFile | None, list[AudioError]]:
    """What reading a file gives; None and why if it cannot be used, or changed meanwhile."""
    file: AudioFile | None
    try:
        file, errors = read()
    except AudioError as error:
        file, errors = None, [error]
    # What was read of a file that changed meanwhile may be part old and part new, or half a file.
    if change := _change(path, source):
        return None, [change]
    return file, errors


def _change(path: Path, source: Source) -> AudioError | None:
    """An error if a file is not what it was when it was found."""
    try:
        status = path.stat()
    except OSError as error:
        problem = f"went away while it was read ({error.strerror})"
        return AudioError(path, problem, remedy_for(error), transient=True)
    if (status.st_size, status.st_mtime_ns) == (source.size, source.mtime_ns):
        return None
    return AudioError(
        path, "changed while it was read", "start again when nothing writes to it any more", transient=True
    )


def _decode(
    stream: BinaryIO, folder: Path, source: Source, sample_rate: int, shard: str, stop: threading.Event | None
) -> tuple[AudioFile, list[AudioError]]:
    """Appends one file's samples to a shard; returns its entry and what is wrong with it all the same."""
    offset = stream.tell() // 2
    decoder = Decoder(folder / source.path, sample_rate)
    tally = raw = _Tally(sample_rate)
    for samples in _blocks(decoder, stop):
        tally.add(samples)
        stream.write(_bytes(samples))
    if _has_dc(raw):
        tally = _subtract(stream, offset, raw, sample_rate)
    return _entry(source, decoder, raw, tally, shard, offset), decoder.problems


def _measure(
    folder: Path, source: Source, sample_rate: int, shard: str, offset: int, stop: threading.Event | None
) -> tuple[AudioFile, list[AudioError]]:
    """As `_decode_into`, but the samples are forgotten: a file with DC is decoded a second time."""
    path = folder / source.path
    decoder = Decoder(path, sample_rate)
    tally = raw = _Tally(sample_rate)
    for samples in _blocks(decoder, stop):
        tally.add(samples)
    if _has_dc(raw):
        tally = _Tally(sample_rate)
        for samples in _blocks(Decoder(path, sample_rate), stop):
            tally.add(_shifted(samples, raw))
    return _entry(source, decoder, raw, tally, shard, offset), decoder.problems


def _blocks(decoder: Decoder, stop: threading.Event | None) -> Iterator[np.ndarray]:
    """Decoded blocks int16 `[n]`. Raises Cancelled."""
    for block in decoder:
        if stop is not None and stop.is_set():
            raise Cancelled
        yield to_int16(block)


def _entry(
    source: Source, decoder: Decoder, raw: _Tally, tally: _Tally, shard: str, offset: int
) -> AudioFile:
    """What is known of a file, from its samples as decoded (`raw`) and as stored (`tally`)."""
    if tally.peak == 0:
        raise _silence(decoder)
    tally.levels.finish()
    return AudioFile(
        path=source.path,
        num_samples=tally.num_samples,
        shard=shard,
        offset=offset,
        peak=tally.peak / 32768,
        dc=raw.mean / 32768,
        clipped=decoder.clipped,
        sha256=tally.sha256,
        size=source.size,
        mtime_ns=source.mtime_ns,
        source_rate=decoder.source_rate,
        channels=decoder.channels,
        rms=tally.levels.rms,
        levels=tally.levels.histogram,
    )


def _silence(decoder: Decoder) -> AudioError:
    """Why a file's samples are all zero."""
    if decoder.source_peak == 0:
        return AudioError(decoder.path, "is silent throughout", "remove or replace it")
    if decoder.source_peak < 0.5 / 32768:
        problem = "is quieter than the smallest step of 16 bits"
        return AudioError(decoder.path, problem, "export it louder")
    if decoder.channels > 1:
        return AudioError(
            decoder.path,
            f"is silent when its {decoder.channels} channels are mixed: they cancel each other out",
            "keep one channel, or invert one",
        )
    return AudioError(decoder.path, "is silent throughout, but for a constant", "remove or replace it")


def _has_dc(raw: _Tally) -> bool:
    return abs(raw.mean) > DC_LIMIT * 32768


def _shifted(samples: np.ndarray, raw: _Tally) -> np.ndarray:
    """int16 samples without the mean of the whole file."""
    return np.clip(samples.astype(np.int32) - round(raw.mean), -32768, 32767).astype(np.int16)


def _subtract(stream: BinaryIO, offset: int, raw: _Tally, sample_rate: int) -> _Tally:
    """Removes the mean of the samples from `offset` to the end of a shard, in place."""
    tally = _Tally(sample_rate)
    for start in range(offset, offset + raw.num_samples, _PIECE):
        stream.seek(2 * start)
        samples = _shifted(np.frombuffer(stream.read(2 * _PIECE), "<i2"), raw)
        tally.add(samples)
        stream.seek(2 * start)
        stream.write(_bytes(samples))
    return tally


def _bytes(samples: np.ndarray) -> bytes:
    """Samples as little-endian int16, whatever the machine."""
    return samples.astype("<i2", copy=False).tobytes()


@dataclass
class _Replacement:
    """A file that is being written, and the name that it is to get."""

    stream: BinaryIO
    path: Path


@contextlib.contextmanager
def _replacing(path: Path, to_disk: bool = True) -> Iterator[_Replacement]:
    """A binary file that takes the name `path` once it is complete (and on disk), or vanishes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w+b") as stream:
            replacement = _Replacement(stream, path)
            yield replacement
            stream.flush()
            if to_disk:
                os.fsync(stream.fileno())
        try:
            temporary.replace(replacement.path)
        except IsADirectoryError:
            replacement.path.rmdir()  # an empty folder is no loss, and a full one stays
            temporary.replace(replacement.path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
