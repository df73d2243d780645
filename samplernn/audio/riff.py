"""WAV files whose chunks libsndfile misreads: where their samples lie, found by walking the chunks.

A malformed LIST chunk makes libsndfile loop for ever, a PEAK chunk of another length makes it refuse the
file, and where a recorder crashed before it wrote the sizes, or a program wrote too small ones, it reads no
more than the header promises. ffmpeg and sox read all of these. So do we: as bare samples, from the data
chunk on.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SUBTYPES = {
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}
"""soundfile's name of a format tag and bits per sample."""
_EXTENSIBLE = 0xFFFE
_MAX_CHUNKS = 1000
"""No real file has more; a walk over many tiny ones would take long."""
_WORTH_SECONDS = 0.1
"""Bytes behind the data that are no chunks count as samples if there are so many; editors pad files."""


class BareSamples(NamedTuple):
    """How to read a WAV without its header."""

    sample_rate: int
    """Hz."""
    channels: int
    subtype: str
    """As soundfile calls it."""
    start: int
    """Bytes before the first sample."""
    stop: int
    """Bytes up to the end of the last."""
    problem: str
    """What is wrong with the header."""


class Format(NamedTuple):
    """What a ``fmt`` chunk says."""

    subtype: str | None
    channels: int
    sample_rate: int
    bytes_per_second: int


def misread(path: Path) -> BareSamples | None:
    """How to read a WAV that libsndfile would misread; None if it reads it well, or if it is none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it would be misread, and its samples have a format that cannot be read without it.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        head = stream.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return None
        form, fault, position = None, "", 12
        for _ in range(_MAX_CHUNKS):
            chunk = _chunk(stream, position)
            if chunk is None:
                return None  # no data chunk: libsndfile says it better
            name, length = chunk
            if name == b"data":
                break
            body = stream.read(min(length, 2**16))
            if name == b"fmt ":
                form = _format(body)
            elif name == b"LIST" and not _is_sound_list(body, length, size - position - 8):
                fault = fault or "has a malformed LIST chunk"
            elif name == b"PEAK" and form and length != 8 + 8 * form.channels:
                fault = fault or f"has a PEAK chunk of {length} bytes"
            position += 8 + length + length % 2
        else:
            return None
        start, unpromised = position + 8, _unpromised(stream, form, position + 8, length, size)
    if not (fault or unpromised):
        return None
    if form is None or form.subtype is None:
        raise ValueError(fault)
    stop = size if unpromised else min(start + length, size)
    return BareSamples(form.sample_rate, form.channels, form.subtype, start, stop, fault or unpromised)


def _chunk(stream: io.BufferedReader, position: int) -> tuple[bytes, int] | None:
    """Name and length of the chunk that begins at a position; None if none does."""
    stream.seek(position)
    header = stream.read(8)
    if len(header) < 8 or not all(32 <= byte < 127 for byte in header[:4]):
        return None
    return header[:4], int.from_bytes(header[4:], "little")


def _format(body: bytes) -> Format | None:
    """A ``fmt`` chunk; None if it makes no sense."""
    if len(body) < 16:
        return None
    tag, channels, sample_rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if tag == _EXTENSIBLE and len(body) >= 26:
        tag = int.from_bytes(body[24:26], "little")
    if not (channels and sample_rate and bits):
        return None
    return Format(_SUBTYPES.get((tag, bits)), channels, sample_rate, channels * sample_rate * bits // 8)


def _is_sound_list(body: bytes, length: int, left: int) -> bool:
    """Whether the items of a LIST chunk lie within it."""
    if body[:4] != b"INFO" or length > left:
        return True  # libsndfile has words of its own for these
    position = 4
    while position + 8 <= min(length, len(body)):
        item = int.from_bytes(body[position + 4 : position + 8], "little")
        if item > length - position - 8:
            return False
        position += 8 + item + item % 2
    return True


def _unpromised(stream: io.BufferedReader, form: Format | None, start: int, length: int, size: int) -> str:
    """What is wrong with the length of the data chunk, or nothing: samples that lie behind its end."""
    end = start + length + length % 2
    if form is None or form.subtype is None or size - end < _WORTH_SECONDS * form.bytes_per_second:
        return ""
    if _chunk(stream, end) is not None:
        return ""
    stream.seek(end)
    if not any(stream.read(2**16)):  # padding
        return ""
    promised, held = (n / form.bytes_per_second for n in (length, size - start))
    return f"holds {held:.1f} s, but its header promises {promised:.1f} s"


class Part(io.RawIOBase):
    """A stretch of a file, to be read as a file of its own.

    Args:
        path: the file.
        start: bytes before the stretch.
        stop: bytes up to its end.
    """

    def __init__(self, path: Path, start: int, stop: int) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._start, self._size, self._position = start, stop - start, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file, counted from the start of the stretch."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """As of any file."""
        target = memoryview(buffer).cast("B")
        self._file.seek(self._start + self._position)
        count = self._file.readinto(target[: max(0, self._size - self._position)]) or 0
        self._position += count
        return count

    def close(self) -> None:
        """As of any file."""
        self._file.close()
        super().close()
