"""One audio file of a corpus: what is known about it, and its samples on their way into a shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from samplernn.audio.fingerprint import Fingerprint
from samplernn.audio.io import AudioError, Decoder, remedy_for, to_int16
from samplernn.audio.measures import Levels
from samplernn.config import one_line

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
    scale: float = 1.0
    """Factor by which the decoded samples were divided before they were stored."""
    fingerprint: str = field(default="", repr=False)
    """Its spectral peaks, see `fingerprint.encode`."""

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


class _Tally:
    """What is known about a file's samples once they have all passed by."""

    def __init__(self, sample_rate: int) -> None:
        self.num_samples = 0
        self.total = 0
        self.peak = 0
        self.levels = Levels(sample_rate)
        self.fingerprint = Fingerprint(sample_rate)
        self._hash = hashlib.sha256()

    def add(self, block: np.ndarray) -> None:
        """Counts a block, int16 `[n]`, n > 0."""
        low, high = int(block.min()), int(block.max())
        self.num_samples += len(block)
        self.total += int(block.sum(dtype=np.int64))
        self.peak = max(self.peak, -low, high)
        self.levels.add(block)
        self.fingerprint.add(block)
        self._hash.update(_bytes(block))

    @property
    def mean(self) -> float:
        """In int16 steps."""
        return self.total / self.num_samples

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def decode_into(
    stream: BinaryIO, folder: Path, source: Source, sample_rate: int, shard: str
) -> tuple[AudioFile | None, list[AudioError]]:
    """Appends one file's samples to a shard; returns its entry, None if it cannot be used, and why."""
    return _unless_changed(
        folder / source.path, source, lambda: _decode(stream, folder, source, sample_rate, shard)
    )


def measure(
    folder: Path, source: Source, sample_rate: int, shard: str, offset: int
) -> tuple[AudioFile | None, list[AudioError]]:
    """What `decode_into` would return, without keeping any samples."""
    return _unless_changed(
        folder / source.path, source, lambda: _measure(folder, source, sample_rate, shard, offset)
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
    except MemoryError:
        file = None
        errors = [AudioError(path, "takes too much memory to decode", "convert it, or remove it")]
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
    stream: BinaryIO, folder: Path, source: Source, sample_rate: int, shard: str
) -> tuple[AudioFile, list[AudioError]]:
    """Appends one file's samples to a shard; returns its entry and what is wrong with it all the same."""
    offset = stream.tell() // 2
    decoder = Decoder(folder / source.path, sample_rate)
    tally = raw = _Tally(sample_rate)
    for samples in map(to_int16, decoder):
        tally.add(samples)
        stream.write(_bytes(samples))
    if _has_dc(raw):
        tally = _subtract(stream, offset, raw, sample_rate)
    return _entry(source, decoder, raw, tally, shard, offset), decoder.problems


def _measure(
    folder: Path, source: Source, sample_rate: int, shard: str, offset: int
) -> tuple[AudioFile, list[AudioError]]:
    """As `_decode_into`, but the samples are forgotten: a file with DC is decoded a second time."""
    path = folder / source.path
    decoder = Decoder(path, sample_rate)
    tally = raw = _Tally(sample_rate)
    for samples in map(to_int16, decoder):
        tally.add(samples)
    if _has_dc(raw):
        tally = _Tally(sample_rate)
        for samples in map(to_int16, Decoder(path, sample_rate)):
            tally.add(_shifted(samples, raw))
    return _entry(source, decoder, raw, tally, shard, offset), decoder.problems


def _entry(
    source: Source, decoder: Decoder, raw: _Tally, tally: _Tally, shard: str, offset: int
) -> AudioFile:
    """What is known of a file, from its samples as decoded (`raw`) and as stored (`tally`)."""
    if tally.peak == 0:
        raise _silence(decoder)
    tally.levels.finish()
    tally.fingerprint.finish()
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
        scale=decoder.scale,
        fingerprint=tally.fingerprint.encoded,
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
