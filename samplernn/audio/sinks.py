"""The way out for audio: files that stay playable whatever ends the process, and pipes.

Every sink takes int16 blocks as they come (`Sink`). `FileSink` writes WAV, FLAC or Ogg by the file's
name; `PipeSink` writes to another program. Loudspeakers are in `speaker.py`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
import soundfile as sf

from samplernn.audio import ogg
from samplernn.audio.errors import AudioError, reason, remedy_for
from samplernn.audio.opening import native

FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
}
"""Lower-case suffix -> libsndfile's container and encoding of the files that can be written."""

WAV_LIMIT = 2**32 - 2**16
"""Bytes of samples that a WAV file can hold (its sizes are 32-bit), with some slack for the header."""

_INFO_CHUNKS = {
    "title": b"INAM",
    "artist": b"IART",
    "album": b"IPRD",
    "date": b"ICRD",
    "genre": b"IGNR",
    "comment": b"ICMT",
    "copyright": b"ICOP",
    "software": b"ISFT",
}
"""Tag -> chunk of a WAV file's LIST/INFO."""
TAGS = tuple(_INFO_CHUNKS)
"""Keys of the tags that every format holds."""

HIGHEST_RATE = 200_000
"""Hz; above that FLAC and Vorbis fail, and libsndfile can crash on closing a Vorbis file that failed."""

_PIECE = 1024
"""Samples per call of libsndfile. It can crash on a minute of Ogg in one call; and one piece completes at
most one FLAC frame (1152 samples or more), which is how `_Encoded` counts them."""

_FLAC_TOTAL = 2**36 - 1
"""The number of samples among the bits of a FLAC's STREAMINFO."""

Self = TypeVar("Self", bound="Sink")


class Sink(Protocol):
    """Where generated audio goes: a context manager that takes int16 blocks.

    Attributes:
        num_samples: samples taken so far.
    """

    num_samples: int

    def write(self, block: np.ndarray) -> None:
        """Takes samples, int16 `[n]`. Raises AudioError when it cannot."""

    def close(self) -> None:
        """Finishes; safe to call twice. Raises AudioError when it cannot."""

    def __enter__(self: Self) -> Self:
        """The sink itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""


class PipeClosed(AudioError):
    """The program that reads a pipe has ended or closed it. Often that is what the user wanted."""


class FileSink:
    """Streams mono int16 to a WAV, FLAC or Ogg Vorbis file, as its name says.

    What a process that is killed (SIGKILL) leaves opens everywhere, and its header promises what is there.
    Of the samples written before

    - WAV has lost none;
    - FLAC has lost less than a frame: at most 4096 samples, 0.26 s at 16 kHz. What is there is exact;
    - Ogg has lost less than a page of 4 KiB: at 16 kHz 0.5 to 0.8 s of sound on average, at most 1.7 s, or
      8 s of digital silence. Its end-of-stream mark is missing, so `Decoder` reports it as truncated.

    The same holds when the disk is full: `write` raises, and the file plays up to there.

    A WAV file that turns out longer than 4 GiB becomes RF64 in place (EBU Tech 3306), for which
    a chunk is reserved unless the length is known to fit; until then every program reads it.

    Args:
        path: the file, overwritten if it exists; its folder must exist; its suffix is one of `FORMATS`.
        sample_rate: Hz.
        expected_samples: how many samples will come. None: unknown, perhaps endless. It matters for WAV
            alone: RF64 from the start if they need it, no reserved chunk if they do not.
        tags: what the file says about itself (keys: `TAGS`), as LIST/INFO in WAV and as Vorbis comments in
            FLAC and Ogg, where libsndfile adds its own name to `software`. From WAV libsndfile reads up to
            2 KB of a tag. See `read_tags`.

    Attributes:
        num_samples: samples written so far.

    Raises:
        AudioError: the file cannot be created; from `write` and `close`: it cannot be written to.

    Example:
        >>> with FileSink("out.flac", 16000, tags={"comment": "temperature 0.9"}) as sink:
        ...     sink.write(np.zeros(1600, np.int16))
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int,
        expected_samples: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.num_samples = 0
        container, subtype = _format_for(self.path)
        texts = _cleaned(tags or {})
        if container != "WAV" and sample_rate > HIGHEST_RATE:
            problem = f"cannot be written as {container} at {sample_rate} Hz"
            raise AudioError(path, problem, "write WAV")
        self._file: _Wav | _Encoded
        try:
            if self.path.is_fifo():  # it would wait here for a reader
                raise AudioError(path, "is a pipe, not a file", "write to standard output instead")
            if container == "WAV":
                self._file = _Wav(self.path, sample_rate, expected_samples, texts)
            else:
                self._file = _Encoded(self.path, sample_rate, container, subtype, texts)
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            raise AudioError(path, problem, _remedy(error, "choose another place")) from None
        except sf.SoundFileError as error:
            problem = f"cannot be written as {container} at {sample_rate} Hz{reason(error)}"
            raise AudioError(path, problem, "choose another format") from None

    def write(self, block: np.ndarray) -> None:
        """Appends samples, int16 `[n]`."""
        _check_block(self, block)
        try:
            self._file.write(block)
        except OSError as error:
            raise self._write_error(error) from None
        self.num_samples += len(block)

    def close(self) -> None:
        """Finishes the file; safe to call twice."""
        try:
            self._file.close()
        except OSError as error:
            raise self._write_error(error) from None

    def _write_error(self, error: OSError | None = None) -> AudioError:
        why = f" ({error.strerror})" if error and error.strerror else ""
        problem = f"writing failed after {self.num_samples} samples{why}"
        return AudioError(self.path, problem, _remedy(error, "free some disk space"))

    def __enter__(self) -> FileSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # what went wrong first is the message
            with contextlib.suppress(AudioError):
                self.close()


def read_tags(path: str | Path) -> dict[str, str]:
    """What an audio file says about itself: title, comment, software, date and the like.

    Raises:
        AudioError: the file cannot be read as audio.
    """
    try:
        with sf.SoundFile(native(Path(path))) as file:
            return file.copy_metadata()
    except sf.SoundFileError as error:
        raise AudioError(path, f"is not readable as audio{reason(error)}", "give an audio file") from None


class PipeSink:
    """Streams mono int16 to a program at the other end of a pipe; each block is flushed.

    Args:
        stream: binary, such as `sys.stdout.buffer`; it is not closed.
        sample_rate: Hz.
        form: `au`: Sun/NeXT audio, big-endian PCM-16 after a header that leaves the length open, as
            ``ffplay -`` and ``aplay`` take it; `raw`: little-endian PCM-16 without header.
        comment: is put into the header of `au`.

    Attributes:
        num_samples: samples written so far.

    Raises:
        PipeClosed: the reader has closed the pipe; from the constructor and `write`.
        AudioError: it cannot be written to otherwise.

    Example:
        >>> with PipeSink(sys.stdout.buffer, 16000) as sink:  # samplernn … | ffplay -
        ...     sink.write(np.zeros(1600, np.int16))
    """

    def __init__(self, stream: BinaryIO, sample_rate: int, form: str = "au", comment: str = "") -> None:
        if form not in ("au", "raw"):
            raise ValueError(f"form must be au or raw, got {form!r}")
        self.sample_rate = sample_rate
        self.num_samples = 0
        self._dtype = ">i2" if form == "au" else "<i2"
        name = getattr(stream, "name", None)
        self._name = name if isinstance(name, str) else "<pipe>"
        self._stream = stream
        self._send(_au_header(sample_rate, comment) if form == "au" else b"")

    def write(self, block: np.ndarray) -> None:
        """Sends samples, int16 `[n]`; waits while the reader is not ready for them."""
        _check_block(self, block)
        self._send(block.astype(self._dtype).tobytes())
        self.num_samples += len(block)

    def close(self) -> None:
        """Does nothing: every block has been sent, and the stream belongs to the caller."""

    def _send(self, content: bytes) -> None:
        try:
            self._stream.flush()
            # Past the buffer, for what cannot be sent would stay there and fail again when Python ends.
            raw = getattr(self._stream, "raw", self._stream)
            rest = memoryview(content)
            while rest:
                count = raw.write(rest)
                if count is None:  # another program has set the pipe to non-blocking
                    time.sleep(0.01)
                rest = rest[count or 0 :]
            self._stream.flush()
        except OSError as error:
            seconds = self.num_samples / self.sample_rate
            if _is_closed_pipe(error):
                problem = f"the reader closed the pipe after {seconds:.1f} s"
                raise PipeClosed(self._name, problem, "nothing more is sent") from None
            problem = f"writing failed after {seconds:.1f} s ({error.strerror})"
            raise AudioError(self._name, problem, _remedy(error, "check where the output goes")) from None

    def __enter__(self) -> PipeSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Wav:
    """Mono PCM-16 in WAV or RF64, its header brought up to date after every block.

    Not libsndfile's: its RF64 that shrinks back to WAV ends as WAVE_FORMAT_EXTENSIBLE, which simple
    readers do not take, and only a private function of soundfile makes it update a header. All errors of
    writing are OSError.
    """

    def __init__(
        self, path: Path, sample_rate: int, expected_samples: int | None, tags: Mapping[str, str]
    ) -> None:
        self._rate = sample_rate
        self._expected_size = 2 * (expected_samples or 0)
        self._may_grow = expected_samples is None or self._expected_size > WAV_LIMIT
        self._info = _list_chunk(tags)
        self.num_samples = 0
        self._raw = io.FileIO(path, "w")
        try:
            self._start = len(self._header(0))
            self._put(0, self._header(0))
        except OSError:
            self._raw.close()
            raise

    def write(self, block: np.ndarray) -> None:
        end = 2 * (self.num_samples + len(block))
        if end > WAV_LIMIT and not self._may_grow:
            raise ValueError("more samples than expected_samples, and a WAV file holds at most 4 GiB")
        try:
            self._put(self._start + 2 * self.num_samples, block.astype("<i2").tobytes())
            self._put(0, self._header(end))
        except OSError:
            self._keep_whole_blocks()
            raise
        self.num_samples += len(block)

    def close(self) -> None:
        self._raw.close()

    def _keep_whole_blocks(self) -> None:
        """Takes away what a write that failed has left; the header may be of that block already."""
        size = 2 * self.num_samples
        with contextlib.suppress(OSError):
            self._raw.truncate(self._start + size)
            self._put(0, self._header(size))

    def _put(self, position: int, content: bytes) -> None:
        self._raw.seek(position)
        rest = memoryview(content)
        while rest:
            rest = rest[self._raw.write(rest) :]

    def _header(self, size: int) -> bytes:
        """Everything before `size` bytes of samples."""
        is_rf64 = max(size, self._expected_size) > WAV_LIMIT
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, self._rate, 2 * self._rate, 2, 16)
        reserved = 36 if self._may_grow else 0
        whole = 4 + reserved + len(form) + len(self._info) + 8 + size  # all after the size of the file
        sizes = b""
        if is_rf64:
            sizes = struct.pack("<4sIQQQI", b"ds64", 28, whole, size, size // 2, 0)
        elif reserved:
            sizes = struct.pack("<4sI28x", b"JUNK", 28)
        start = struct.pack("<4sI4s", *((b"RF64", 2**32 - 1) if is_rf64 else (b"RIFF", whole)), b"WAVE")
        return (
            start + sizes + form + self._info + struct.pack("<4sI", b"data", 2**32 - 1 if is_rf64 else size)
        )


class _Encoded:
    """Mono FLAC or Ogg by libsndfile, cut back to whole frames or pages if writing fails.

    All errors of writing are OSError.
    """

    def __init__(
        self, path: Path, sample_rate: int, container: str, subtype: str, tags: Mapping[str, str]
    ) -> None:
        self.num_samples = 0
        self._path = path
        self._is_flac = container == "FLAC"
        self._frames = -1  # what is written first is the header
        self._size = 0
        self._raw = io.FileIO(path, "w+")  # tells the system's reasons; libsndfile opens the file again
        try:
            self._file = sf.SoundFile(native(path), "w", sample_rate, 1, subtype, format=container)
            for tag, text in tags.items():
                setattr(self._file, tag, text)
        except sf.SoundFileError:
            self._raw.close()
            raise

    def write(self, block: np.ndarray) -> None:
        for start in range(0, len(block), _PIECE):
            piece = block[start : start + _PIECE]
            try:
                self._file.write(piece)
            except (sf.SoundFileError, AssertionError):
                raise self._abandon() from None
            self.num_samples += len(piece)
            self._note_growth()

    def close(self) -> None:
        if self._raw.closed:
            return
        with contextlib.suppress(sf.SoundFileError):
            self._file.close()
        if not self._is_complete():  # libsndfile does not tell
            raise self._abandon()
        self._raw.close()

    def _note_growth(self) -> None:
        """Remembers where what is whole ends, and lets a FLAC say how many samples that is.

        The encoder does that only at the end: a killed file would claim an unknown length, and
        programs that ask for its length before they read would fail.
        """
        size = os.fstat(self._raw.fileno()).st_size
        if size == self._size:
            return
        self._size = size
        self._frames += 1
        if self._is_flac and self._frames:
            with contextlib.suppress(OSError):
                frame_size, fields = self._streaminfo()
                self._raw.seek(18)
                self._raw.write(struct.pack(">Q", fields & ~_FLAC_TOTAL | self._frames * frame_size))

    def _streaminfo(self) -> tuple[int, int]:
        """Samples per frame, and the 64 bits that end in the number of samples (RFC 9639, section 8.2)."""
        self._raw.seek(0)
        start = self._raw.read(26)
        frame_size, fields = struct.unpack_from(">8xH8xQ", start) if len(start) == 26 else (0, 0)
        return frame_size, fields

    def _is_complete(self) -> bool:
        if self._is_flac:
            return self._streaminfo()[1] & _FLAC_TOTAL == self.num_samples
        return ogg.has_end(self._path)

    def _abandon(self) -> OSError:
        """Closes the file with what is whole; returns why it cannot be written to."""
        with contextlib.suppress(sf.SoundFileError):
            self._file.close()
        why = OSError()
        with contextlib.suppress(OSError):
            self._raw.truncate(self._size)
        try:
            self._raw.seek(0, os.SEEK_END)
            for _ in range(2):  # the first may be a part
                self._raw.write(bytes(2**16))
        except OSError as error:
            why = error
        with contextlib.suppress(OSError):
            self._raw.truncate(self._size)
        self._raw.close()
        return why


def _format_for(path: Path) -> tuple[str, str]:
    """libsndfile's container and encoding for a file's name. Raises AudioError that lists what there is."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        problem = f"{suffix} files cannot be written" if suffix else "has no suffix that tells the format"
        raise AudioError(path, problem, f"name it {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _cleaned(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as text that every container takes; those without text are left out."""
    unknown = sorted(set(tags) - set(TAGS))
    if unknown:
        raise ValueError(f"no such tag: {', '.join(unknown)}; there are {', '.join(TAGS)}")
    texts = {
        tag: text.replace("\0", "").encode("utf-8", "backslashreplace").decode() for tag, text in tags.items()
    }
    return {tag: text for tag, text in texts.items() if text}


def _list_chunk(tags: Mapping[str, str]) -> bytes:
    """Tags as a WAV chunk LIST of type INFO; nothing for none."""
    if not tags:
        return b""
    entries = b""
    for tag, text in sorted(tags.items(), key=lambda item: len(item[1])):  # libsndfile stops at a long one
        content = text.encode() + b"\0"
        entries += struct.pack("<4sI", _INFO_CHUNKS[tag], len(content)) + content + b"\0" * (len(content) % 2)
    return struct.pack("<4sI4s", b"LIST", 4 + len(entries), b"INFO") + entries


def _au_header(sample_rate: int, comment: str) -> bytes:
    """A Sun/NeXT header for mono PCM-16 of unknown length, the comment in its field for remarks."""
    remark = comment.encode("utf-8", "backslashreplace")
    remark += b"\0" * (8 - len(remark) % 8)  # never empty, which sox would warn of
    return struct.pack(">4s5I", b".snd", 24 + len(remark), 2**32 - 1, 3, sample_rate, 1) + remark


def _check_block(sink: Sink, block: np.ndarray) -> None:
    if block.dtype != np.int16 or block.ndim != 1:
        name = type(sink).__name__
        raise TypeError(f"{name}.write takes int16 [n], got {block.dtype} {list(block.shape)}")


def _remedy(error: OSError | None, otherwise: str) -> str:
    code = error.errno if error else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "free some disk space"
    if code == errno.EFBIG:
        return "allow larger files (ulimit -f; a FAT file system holds 4 GiB) or write FLAC"
    if code in (errno.EACCES, errno.EPERM, errno.EIO):
        return remedy_for(error) if error else otherwise
    return otherwise


def _is_closed_pipe(error: OSError) -> bool:
    """Whether the reader has gone; Windows says EINVAL."""
    return isinstance(error, (BrokenPipeError, ConnectionResetError)) or (
        os.name == "nt" and error.errno == errno.EINVAL
    )
