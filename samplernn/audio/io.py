"""The way in for audio: decode anything to mono float32 at one rate. The way out is `sinks.py`.

Decoding (`Decoder`, `decode`, `load`) streams through libsndfile, a mean over channels and the soxr
resampler, so a file of many hours needs no more memory than one of a second.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from samplernn.audio import riff
from samplernn.audio.measures import clipped_frames
from samplernn.config import UserError, one_line

SUFFIXES = frozenset(
    {".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mp1"}
    | {".aif", ".aiff", ".aifc", ".caf", ".au", ".snd", ".voc", ".sph", ".nist", ".ircam", ".sf"}
    | {".avr", ".htk", ".iff", ".svx", ".8svx", ".mat", ".paf", ".fap", ".pvf", ".sd2", ".sds", ".wve", ".xi"}
)
"""Lower-case suffixes of the files that libsndfile reads. The content decides what a file is."""

HEADERLESS = frozenset({".raw", ".pcm", ".gsm", ".vox"})
"""Lower-case suffixes of bare samples: nothing in such a file tells its rate and format."""

UNSUPPORTED = HEADERLESS | frozenset(
    {".m4a", ".m4b", ".m4r", ".mp4", ".aac", ".alac", ".wma", ".webm", ".mka", ".ape", ".wv", ".amr", ".3gp"}
    | {".ac3", ".dsf", ".dff", ".mpc", ".spx", ".tta", ".shn"}
)
"""Lower-case suffixes of audio that libsndfile does not read; such files are reported, not ignored."""

_MAGIC = {
    "WAV": rb"(RIFF|RIFX|RF64)....WAVE|riff\x2e\x91\xcf\x11",
    "AIFF": rb"FORM....AIF[FC]",
    "8SVX": rb"FORM....(8SVX|16SV)",
    "FLAC": rb"fLaC",
    "Ogg": rb"OggS",
    "MP3": rb"ID3[\x02-\x04]|\xff[\xfa\xfb\xf2\xf3][\x10-\xef]",
    "AU": rb"\.snd\0|dns\.",
    "CAF": rb"caff\0\x01",
    "VOC": rb"Creative Voi",
    "SPHERE": rb"NIST_1A\n",
    "M4A": rb"....ftyp(M4A|M4B)",
}
"""How files of audio begin that one meets under other names."""

_LFS_POINTER = b"version https://git-lfs"

RESAMPLER_QUALITY = "HQ"
MAX_BLOCK_VALUES = 2**22
"""Bound on frames times channels of one decoded block."""
PLAUSIBLE_RATES = range(100, 10_000_001)
"""Source sample rates in Hz outside of this are damaged headers."""
_MP3_SLACK = 4608
"""Frames by which a complete MP3 may fall short of its header: encoder delay and padding."""


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
        source_peak: largest magnitude in any channel so far, at the file's own rate.
        clipped: frames so far in which a channel is clipped (see `measures.clipped_frames`).
        problems: what is wrong with the file although it could be used.

    Raises:
        AudioError: the file cannot be opened or is not audio; while iterating: it holds no samples,
            or a NaN or infinite one, or the disk fails.
    """

    def __init__(self, path: str | Path, sample_rate: int, block_seconds: float = 1.0) -> None:
        self.path = Path(path)
        self.sample_rate = sample_rate
        self.problems: list[AudioError] = []
        self.clipped = 0
        self._is_damaged = False
        self._file = _open(self.path, self.problems)
        self.source_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.source_peak = 0.0
        frames = int(self.source_rate * block_seconds)
        self._block_frames = max(1, min(frames, MAX_BLOCK_VALUES // self.channels))

    def __iter__(self) -> Iterator[np.ndarray]:
        is_empty = True
        with self._file:
            for block in self._resampled():
                if len(block):
                    is_empty = False
                    yield block
        if is_empty:
            raise AudioError(self.path, "holds no samples that can be decoded", "remove or replace it")

    def _resampled(self) -> Iterator[np.ndarray]:
        """Mono blocks float32 `[n]` at `sample_rate`; n may be 0."""
        if self.source_rate == self.sample_rate:
            yield from self._mono()
            return
        resampler = soxr.ResampleStream(
            self.source_rate, self.sample_rate, 1, dtype="float32", quality=RESAMPLER_QUALITY
        )
        for block in self._mono():
            yield resampler.resample_chunk(block, last=False)
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)

    def _mono(self) -> Iterator[np.ndarray]:
        """Mono blocks float32 `[n]`, n > 0, at the file's own rate."""
        position = 0
        for block in self._frames():
            mono = _mean_of_channels(block)
            if not np.isfinite(mono).all():
                where = (position + int(np.argmin(np.isfinite(mono)))) / self.source_rate
                raise AudioError(
                    self.path, f"holds NaN or infinite samples (first at {where:.3f} s)", "export it again"
                )
            position += len(mono)
            self.source_peak = max(self.source_peak, float(block.max()), -float(block.min()))
            self.clipped += clipped_frames(block)
            yield mono
        self._check_length(position)

    def _frames(self) -> Iterator[np.ndarray]:
        """Blocks float32 `[n, channels]`, n > 0, up to the end or the first error of the decoder."""
        position = 0
        while True:
            block = np.full((self._block_frames, self.channels), np.nan, np.float32)
            error: sf.SoundFileError | None = None
            try:
                count = len(self._file.read(out=block))
            except sf.SoundFileError as failure:
                if _is_of_the_system(failure):
                    raise self._failure(position) from None
                error = failure
                count = _frames_filled(block)
            position += count
            if count:
                yield block[:count]
            if error and self._length_is_known():
                seconds = position / self.source_rate
                self._is_damaged = True
                self._report_truncation(f"is damaged after {seconds:.1f} s{reason(error)}")
            if error or not count:
                return

    def _failure(self, position: int) -> AudioError:
        seconds = position / self.source_rate
        problem = f"cannot be read after {seconds:.1f} s (the disk or network failed)"
        return AudioError(self.path, problem, "check the disk or network and start again", transient=True)

    def _length_is_known(self) -> bool:
        """A FLAC that was written to a pipe claims 2**63 - 1 frames, and its end looks like an error."""
        return self._file.frames < 2**62

    def _check_length(self, decoded: int) -> None:
        """Reports a file with fewer frames than its header promised."""
        if self._is_damaged or self._file.format == "RAW":
            return
        missing = self._file.frames - decoded if self._length_is_known() else 0
        if missing > _MP3_SLACK or _was_cut(self.path, self._file):
            self._report_truncation(f"is truncated: it ends after {decoded / self.source_rate:.1f} s")

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


def remedy_for(error: OSError) -> str:
    """What to do about a file or folder that the operating system does not give out."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "close other programs or allow more open files (ulimit -n)"
    if error.errno == errno.EIO:
        return "check the disk or network"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "check its permissions"
    return "check that it is still there, and its permissions"


def sniff(path: Path) -> str | None:
    """What kind of audio a file holds by its first bytes, whatever its name; None if that is not known."""
    try:
        with path.open("rb") as stream:
            start = stream.read(12)
    except OSError:
        return None
    return next((kind for kind, magic in _MAGIC.items() if re.match(magic, start, re.DOTALL)), None)


class _Stream(sf.SoundFile):
    """A file that is read from start to end.

    soundfile seeks to where it is after each read of a file that can seek. That is not harmless: MP3
    loses the bits that it keeps in earlier frames, and DWVW fails.
    """

    def seekable(self) -> bool:
        return False


class _BareStream(_Stream):
    """The samples of a WAV whose header is not to be read."""

    def __init__(self, path: Path, bare: riff.BareSamples) -> None:
        self._source = riff.Part(path, bare.start, bare.stop)
        super().__init__(
            self._source,
            samplerate=bare.sample_rate,
            channels=bare.channels,
            subtype=bare.subtype,
            format="RAW",
            endian="LITTLE",
        )

    def close(self) -> None:
        """Of a file object, soundfile leaves that to its owner."""
        super().close()
        self._source.close()


def _open(path: Path, problems: list[AudioError]) -> sf.SoundFile:
    """Opens an audio file; adds to `problems` what is wrong with it although it can be used.

    Raises:
        AudioError: it cannot; in the words of whoever has to act on it.
    """
    if path.exists() and not path.is_file():
        raise AudioError(path, "is not a regular file", "give an audio file")
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
        if not start:
            raise AudioError(path, "is empty (0 bytes)", "remove or replace it")
        if start == _LFS_POINTER:
            raise AudioError(path, "is a Git LFS pointer, not the audio itself", "run: git lfs pull")
        suffix = path.suffix.lower()
        if suffix in UNSUPPORTED:
            problems.append(_misnamed(path, suffix))
        bare = riff.misread(path)
    except OSError as error:
        problem = f"cannot be opened ({error.strerror})"
        raise AudioError(path, problem, remedy_for(error), transient=True) from None
    except AudioError:
        raise
    except ValueError as error:
        raise AudioError(path, str(error), "convert it to WAV or FLAC") from None
    try:
        file = _BareStream(path, bare) if bare else _Stream(native(path))
    except (sf.SoundFileError, TypeError) as error:
        problem, transient = f"is not readable as audio{reason(error)}", _is_of_the_system(error)
        raise AudioError(path, problem, "remove or replace it", transient) from None
    if bare:
        problems.append(AudioError(path, bare.problem, "none needed: all of it is used"))
    elif file.format == "RAW":  # for an .au or .snd that has no header libsndfile assumes u-law at 8 kHz
        file.close()
        raise AudioError(path, "is not readable as audio (it has no header)", "remove or replace it")
    if file.samplerate not in PLAUSIBLE_RATES:
        file.close()
        raise AudioError(path, f"claims a sample rate of {file.samplerate} Hz", "export it again")
    return file


def _misnamed(path: Path, suffix: str) -> AudioError:
    """That a file holds other audio than its name says. Raises AudioError if it may hold just that."""
    if suffix in HEADERLESS:
        problem = f"{suffix} files are bare samples without rate or format"
        raise AudioError(path, problem, "import it as raw data in an audio editor and export it as WAV")
    kind = sniff(path)
    if kind not in ("WAV", "AIFF", "FLAC", "Ogg", "MP3", "CAF"):
        raise AudioError(path, f"{suffix} files cannot be read", "convert it to WAV or FLAC")
    return AudioError(
        path, f"holds {kind} audio, but is named {suffix}", "none needed: it is used; rename it"
    )


def native(path: Path) -> str | bytes:
    """A path for soundfile, which refuses names on Linux that are not Unicode unless they are bytes."""
    return str(path) if os.name == "nt" else os.fsencode(path)


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


def reason(error: Exception) -> str:
    """libsndfile's own words in parentheses, or nothing if it has none."""
    words = getattr(error, "error_string", "").removeprefix("Error :").strip(" .")
    return f" ({words[0].lower()}{words[1:]})" if words else ""


def _is_of_the_system(error: Exception) -> bool:
    """Whether libsndfile reports an error of the operating system (SF_ERR_SYSTEM)."""
    return getattr(error, "code", 0) == 2


def _was_cut(path: Path, file: sf.SoundFile) -> bool:
    """Whether the container's own sizes say that bytes are missing at the end.

    libsndfile corrects a header that promises too much and mentions it only in its log. Programs that
    write to a pipe put 2**31 or 2**32 less a little there: those files are complete.
    """
    if file.format == "OGG":
        with contextlib.suppress(OSError):
            return not ogg_has_end(path)
    log: str = file.extra_info
    # ADPCM has a rate of bytes that programs compute in several ways; it is no size.
    sizes = re.findall(r"^(?!\s*Bytes/sec)[^:\n]*: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    sizes += [(b, a) for a, b in re.findall(r"frame count (\d+) does not match .* of (\d+)", log)]
    return any(
        int(promised) - int(found) > 16 and -int(promised) % 2**31 > 2**16 for promised, found in sizes
    )


def ogg_has_end(path: Path) -> bool:
    """Whether the last page of an Ogg file is whole and marked as the stream's end (RFC 3533, section 6)."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 2**17))  # a page has at most 65 307 bytes
        tail = stream.read(2**17)
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if not page.startswith(b"OggS") or len(page) < 27 or not page[5] & 4:
        return False
    segments = page[27 : 27 + page[26]]
    return len(segments) == page[26] and 27 + page[26] + sum(segments) <= len(page)
