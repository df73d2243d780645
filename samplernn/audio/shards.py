"""Shards: the decoded samples of a few audio files in one int16 file, with a JSON file beside it.

A corpus is a set of shards. Each is built by itself, under temporary names that an atomic rename
makes final (the samples first, the JSON last), so a build that is killed resumes at the finished
shards and two processes that build the same one do no harm. The name of a shard is a hash of what
its source files were (path, size, time) and of the settings, so an unchanged shard is never rebuilt.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from samplernn.audio.io import AudioError, Decoder, to_int16
from samplernn.audio.measures import Levels
from samplernn.config import UserError

FORMAT_VERSION = 2
"""Part of every key: raise it when the bytes of a shard would come out differently."""
SHARD_FILES = 32
SHARD_BYTES = 8 * 2**20
"""A shard is expected to hold about this many files, or this many source bytes if they are large."""
STALE_SECONDS = 24 * 3600.0
"""Shards that no longer belong to the corpus are kept this long: another run may still read them."""
MAX_OPEN_SHARDS = 256
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
        return f"{self.path}: {self.problem}; {self.remedy}"


class Shard(NamedTuple):
    """What a shard's JSON says."""

    files: tuple[AudioFile, ...]
    problems: tuple[Problem, ...]


class Cancelled(Exception):
    """The build was told to stop."""


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


def load_shard(shard_dir: Path, key: str) -> Shard | None:
    """A finished shard, or None if it is missing, or damaged and to be built again."""
    try:
        entry = json.loads((shard_dir / f"{key}.json").read_text("utf-8"))
        shard = Shard(
            tuple(AudioFile.from_dict(item) for item in entry["files"]),
            tuple(Problem(**item) for item in entry["problems"]),
        )
        expected = 2 * sum(file.num_samples for file in shard.files)
        complete = (shard_dir / f"{key}.i16").stat().st_size == expected
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return shard if complete else None


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

    Raises:
        Cancelled: `stop` was set.
        OSError: the shard cannot be written.
    """
    files: list[AudioFile] = []
    problems: list[Problem] = []
    samples = shard_dir / f"{key}.i16"
    with _replacing(samples) as stream:
        for source in sources:
            start = stream.tell()
            try:
                file, warnings = _decode_into(stream, folder, source, sample_rate, samples.name, stop)
                files.append(file)
                problems += [Problem(source.path, w.problem, w.remedy) for w in warnings]
            except AudioError as error:
                stream.seek(start)
                stream.truncate()
                problems.append(Problem(source.path, error.problem, error.remedy))
            advance(source.size)
    shard = Shard(tuple(files), tuple(problems))
    entry = {"files": [asdict(file) for file in files], "problems": [asdict(p) for p in problems]}
    write_json(shard_dir / f"{key}.json", entry)
    return shard


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
        try:
            file, warnings = _measure(folder, source, sample_rate, samples.name, offset, stop)
            files.append(file)
            problems += [Problem(source.path, w.problem, w.remedy) for w in warnings]
            offset += file.num_samples
        except AudioError as error:
            problems.append(Problem(source.path, error.problem, error.remedy))
        advance(source.size)
    return Shard(tuple(files), tuple(problems))


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file atomically. Raises OSError."""
    with _replacing(path) as stream:
        stream.write(json.dumps(value, indent=1).encode())


def remove_stale(shard_dir: Path, keys: Iterable[str]) -> None:
    """Deletes shards other than `keys`, and left-over temporary files, that nobody used for a day."""
    wanted = set(keys)
    for path in shard_dir.iterdir():
        with contextlib.suppress(OSError):  # another process may be doing the same
            if path.name.split(".")[0] not in wanted and time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


@functools.lru_cache(maxsize=MAX_OPEN_SHARDS)
def open_samples(path: Path) -> np.ndarray:
    """The samples of a shard, int16 `[n]`, read-only and memory-mapped. Raises UserError."""
    try:
        mapped = np.memmap(path, "<i2", mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}): the cache was deleted or damaged while in use; start again"
        ) from None
    with contextlib.suppress(OSError):
        os.utime(path)  # in use: see `remove_stale`
    return mapped.view(np.ndarray)  # slicing a plain array is several times cheaper


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
        raise AudioError(decoder.path, "is silent throughout", "remove or replace it")
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


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` once it is complete and on disk, or vanishes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
