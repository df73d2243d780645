"""The way in for audio: decode anything to mono float32 at one rate. The way out is `sinks.py`.

Decoding (`Decoder`, `decode`, `load`) streams through libsndfile, a mean over channels and the soxr
resampler, so a file of many hours needs no more memory than one of a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from samplernn.audio import fullscale
from samplernn.audio.errors import AudioError, is_of_the_system, reason, remedy_for
from samplernn.audio.measures import clipped_frames
from samplernn.audio.opening import HEADERLESS, SUFFIXES, UNSUPPORTED, look_into, open_stream, sniff, was_cut
from samplernn.audio.pieces import Stream

__all__ = [
    "HEADERLESS",
    "SUFFIXES",
    "UNSUPPORTED",
    "AudioError",
    "Decoder",
    "decode",
    "from_int16",
    "load",
    "remedy_for",
    "sniff",
    "to_int16",
]

RESAMPLER_QUALITY = "HQ"
MAX_BLOCK_VALUES = 2**22
"""Bound on frames times channels of one decoded block."""
_MP3_SLACK = 4608
"""Frames by which a complete MP3 may fall short of its header: encoder delay and padding."""


class Decoder:
    """One audio file as an iterator of mono float32 blocks, in bounded memory.

    A file that ends early (truncated, or damaged part-way) yields what could be decoded; `problems`
    then says so once the iteration is over.

    Args:
        path: the file.
        sample_rate: Hz of the blocks; the file is resampled if its own rate differs.
        block_seconds: length of the blocks that are read; the blocks that come out may be shorter.

    Attributes:
        source_rate: the file's own sample rate in Hz.
        channels: the file's number of channels.
        source_peak: largest magnitude in any channel so far, at the file's own rate, after scaling.
        scale: what the samples are divided by; other than 1 if floats go beyond full scale (see `fullscale`).
        clipped: frames so far in which a channel is clipped (see `measures.clipped_frames`).
        problems: what is wrong with the file although it could be used.

    Raises:
        AudioError: the file cannot be opened or is not audio; while iterating: it holds no samples,
            or a NaN, infinite or absurdly large one, or the disk fails.
    """

    def __init__(self, path: str | Path, sample_rate: int, block_seconds: float = 1.0) -> None:
        self.path = Path(path)
        self.sample_rate = sample_rate
        self.problems: list[AudioError] = []
        self.clipped = 0
        self.scale = 1.0
        self._block_seconds = block_seconds
        self._streams = look_into(self.path, self.problems).streams
        self._first: sf.SoundFile | None = open_stream(self.path, self._streams[0])
        self.source_rate: int = self._first.samplerate
        self.channels: int = self._first.channels
        self.source_peak = 0.0
        self._position = 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        is_empty = True
        self._find_scale()
        for block in self._resampled():
            if len(block):
                is_empty = False
                yield block
        if is_empty:
            raise AudioError(self.path, "holds no samples that can be decoded", "remove or replace it")

    def _find_scale(self) -> None:
        """Reads a file of floats to find out whether it goes beyond full scale."""
        if not self._first or self._first.subtype not in fullscale.SUBTYPES:
            return
        peak = fullscale.Peak()
        for stream in self._streams:
            with open_stream(self.path, stream) as file:
                peak.read(file)
        if fullscale.LARGEST < peak.value < math.inf:
            problem = f"holds samples of up to {peak.value:.0e} times full scale"
            raise AudioError(self.path, problem, "export it again")
        self.scale = peak.scale
        if self.scale != 1:
            remedy = f"none needed: it is divided by {self.scale:.7g}"
            self.problems.append(AudioError(self.path, str(peak), remedy))

    def _files(self) -> Iterator[tuple[sf.SoundFile, Stream]]:
        """The streams of the file, open one after the other; a remark if there are several."""
        lengths: list[float] = []
        for stream in self._streams:
            try:
                file, self._first = self._first or open_stream(self.path, stream), None
            except AudioError as error:
                if error.transient:
                    raise
                self._report_unread(error, lengths, stream)
                continue
            before = self._position
            with file:
                yield file, stream
            lengths.append(self._position - before)
        if len(lengths) > 1:
            listed = " + ".join(f"{length:.1f}" for length in lengths[:4]) + " + …" * (len(lengths) > 4)
            problem = f"is {len(lengths)} recordings behind each other ({listed} s)"
            self.problems.append(AudioError(self.path, problem, "none needed: each of them is used"))

    def _report_unread(self, error: AudioError, before: Sequence[float], stream: Stream) -> None:
        """That one of several streams cannot be used."""
        length = f"{stream.seconds:.1f} s" if stream.seconds else "length unknown"
        problem = f"has a part after {sum(before):.1f} s ({length}) that {error.problem}"
        self.problems.append(AudioError(self.path, problem, f"the rest is used; {error.remedy}"))

    def _resampled(self) -> Iterator[np.ndarray]:
        """Mono blocks float32 `[n]` at `sample_rate`; n may be 0."""
        resampler, rate = None, self.sample_rate
        for file, stream in self._files():
            if file.samplerate != rate:
                if resampler:
                    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
                rate = file.samplerate
                resampler = self._resampler(rate)
            for block in self._mono(file, stream):
                yield resampler.resample_chunk(block, last=False) if resampler else block
        if resampler:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)

    def _resampler(self, rate: int) -> soxr.ResampleStream | None:
        """From a rate in Hz to `sample_rate`; None if that is the same."""
        if rate == self.sample_rate:
            return None
        return soxr.ResampleStream(rate, self.sample_rate, 1, dtype="float32", quality=RESAMPLER_QUALITY)

    def _mono(self, file: sf.SoundFile, stream: Stream) -> Iterator[np.ndarray]:
        """Mono blocks float32 `[n]`, n > 0, of one stream at its own rate."""
        for block in self._frames(file, stream):
            if self.scale != 1:
                block /= self.scale
            mono = _mean_of_channels(block)
            if not np.isfinite(mono).all():
                where = self._position + int(np.argmin(np.isfinite(mono))) / file.samplerate
                raise AudioError(
                    self.path, f"holds NaN or infinite samples (first at {where:.3f} s)", "export it again"
                )
            self._position += len(mono) / file.samplerate
            self.source_peak = max(self.source_peak, float(block.max()), -float(block.min()))
            self.clipped += clipped_frames(block)
            yield mono

    def _frames(self, file: sf.SoundFile, stream: Stream) -> Iterator[np.ndarray]:
        """Blocks float32 `[n, channels]`, n > 0, up to the end or the first error of the decoder."""
        frames = int(file.samplerate * self._block_seconds)
        frames = max(1, min(frames, MAX_BLOCK_VALUES // file.channels))
        decoded, count, error = 0, 1, None
        while count and not error and decoded < file.frames:  # what is behind them may be a tag
            frames = min(frames, file.frames - decoded)
            block = np.full((frames, file.channels), np.nan, np.float32)
            try:
                count = len(file.read(out=block))
            except sf.SoundFileError as failure:
                if is_of_the_system(failure):
                    raise self._failure(decoded / file.samplerate) from None
                error = failure
                count = _frames_filled(block)
            decoded += count
            if count:
                yield block[:count]
        self._check_length(file, stream, decoded, error)

    def _failure(self, seconds: float) -> AudioError:
        problem = f"cannot be read after {seconds:.1f} s (the disk or network failed)"
        return AudioError(self.path, problem, "check the disk or network and start again", transient=True)

    def _check_length(
        self, file: sf.SoundFile, stream: Stream, decoded: int, error: sf.SoundFileError | None
    ) -> None:
        """Reports a stream with fewer frames than its header promised, or than were counted."""
        seconds = decoded / file.samplerate
        # A FLAC that was written to a pipe claims 2**63 - 1 frames, and its end looks like an error.
        total = file.frames / file.samplerate if file.frames < 2**62 else seconds
        length = _of(seconds, total)
        if error and (file.frames < 2**62 or stream.pieces is None):
            self._report_truncation(f"is damaged after {length}{reason(error)}")
        elif error:
            return
        elif (total - seconds) * file.samplerate > _MP3_SLACK:
            self._report_truncation(f"is truncated: it ends after {length}")
        elif (factor := was_cut(self.path, file, stream)) > 1:
            length = _of(seconds, seconds * factor if factor < math.inf else seconds)
            where = "it ends" if len(self._streams) == 1 else "a recording in it ends"
            self._report_truncation(f"is truncated: {where} after {length}")
        elif stream.seconds and stream.seconds - seconds > max(0.5, 0.01 * stream.seconds):
            problem = f"is decoded for {seconds:.1f} of {stream.seconds:.1f} s"
            self.problems.append(AudioError(self.path, problem, "convert it to FLAC with ffmpeg or sox"))

    def _report_truncation(self, problem: str) -> None:
        self.problems.append(
            AudioError(self.path, problem, "the part before is used; copy or export the file again")
        )


def decode(path: str | Path, sample_rate: int, block_seconds: float = 1.0) -> Iterator[np.ndarray]:
    """Mono float32 blocks `[n]` of an audio file at `sample_rate` (Hz). See `Decoder`.

    Raises:
        AudioError: the file is unreadable, not audio, empty, or holds NaN or infinite samples.
    """
    return iter(Decoder(path, sample_rate, block_seconds))


def load(path: str | Path, sample_rate: int) -> np.ndarray:
    """A whole audio file as mono float32 `[num_samples]` at `sample_rate` (Hz). Raises as `decode`."""
    return np.concatenate(list(decode(path, sample_rate)))


def to_int16(x: np.ndarray) -> np.ndarray:
    """Float samples (full scale 1.0) as int16: times 32768, rounded to nearest, clipped; any shape."""
    return np.clip(np.rint(x * np.float32(32768)), -32768, 32767).astype(np.int16)


def from_int16(x: np.ndarray) -> np.ndarray:
    """int16 samples as float32 in [-1, 1); the exact inverse of `to_int16`; any shape."""
    return x.astype(np.float32) / np.float32(32768)


def _of(seconds: float, total: float) -> str:
    """A length, and how long it should be if that is another."""
    if total - seconds < 0.001:
        return f"{seconds:.1f} s"
    digits = 1 if total - seconds >= 0.1 else 3
    return f"{seconds:.{digits}f} of {total:.{digits}f} s"


def _mean_of_channels(block: np.ndarray) -> np.ndarray:
    """Float32 `[n, channels]` -> `[n]`; column by column, several times faster than `mean(axis=1)`."""
    mono = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    mono /= block.shape[1]
    return mono


def _frames_filled(block: np.ndarray) -> int:
    """Frames that a read which failed has put into a block `[n, channels]` of NaN."""
    empty = np.isnan(block[:, 0])
    return int(empty.argmax()) if empty.any() else len(block)
