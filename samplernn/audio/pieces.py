"""What a file holds where libsndfile has to be told: streams behind each other, made of pieces of the file.

The modules that know a container (`riff`, `headers`, `mpeg`, `ogg`, `flac`) find that out by walking its
headers; `opening` opens what they found.
"""

from __future__ import annotations

import bisect
import io
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

Piece = tuple[int, int] | bytes
"""First byte and one past the last of a stretch of the file, or bytes to read in its place."""
ALL_USED = "none needed: all of it is used"
_WINDOW = 2**20
_WORTH_SECONDS = 0.1
"""Bytes behind the samples that are no chunks count as samples if there are so many; editors pad files."""
_TRAILING = (
    b"LIST",
    b"JUNK",
    b"bext",
    b"id3 ",
    b"ID3 ",
    b"_PMX",
    b"iXML",
    b"cue ",
    b"free",
    b"info",
    b"pakt",
)
"""Chunks that stand behind samples even if the file is cut within them."""


class Stream(NamedTuple):
    """One stream of audio within a file."""

    pieces: tuple[Piece, ...] | None
    """What libsndfile is to read; None: the whole file, as it is."""
    seconds: float | None = None
    """What the stream holds, where that was counted."""
    is_cut: bool = False
    """Its end is missing."""
    name: str = ""
    """What it is, if it is known that libsndfile does not read that."""


class Layout(NamedTuple):
    """What a file holds."""

    streams: tuple[Stream, ...]
    """At least one, in their order."""
    problem: str = ""
    """What is wrong with the file although its audio can be used."""
    remedy: str = ALL_USED


def edited(size: int, edits: Mapping[tuple[int, int], bytes]) -> tuple[Piece, ...]:
    """A whole file with other bytes in some places, or without some.

    Args:
        size: of the file in bytes.
        edits: what is to be read instead, by the first byte and one past the last of what it replaces;
            nothing overlaps.
    """
    pieces: list[Piece] = []
    position = 0
    for start, stop in sorted(edits):
        pieces += [(position, start), edits[start, stop]]
        position = stop
    return tuple(piece for piece in (*pieces, (position, size)) if piece)


def is_named(window: Window, position: int) -> bool:
    """Whether a chunk's name, and room for its length, are there."""
    head = window.at(position, 8)
    return len(head) == 8 and all(32 <= byte < 127 for byte in head[:4])


def promises_less(window: Window, start: int, length: int, bytes_per_second: float, sign: str) -> bool:
    """Whether samples lie behind the end of what a header says, and no chunks or padding.

    Args:
        window: on the file.
        start: where the samples begin.
        length: what the header says, in bytes.
        bytes_per_second: of the samples.
        sign: how the length of a chunk is written, as for `struct`; empty if there are no chunks.
    """
    end = start + length + length % 2
    if window.size - end < _WORTH_SECONDS * bytes_per_second or not any(window.at(end, 2**16)):
        return False
    if not (sign and is_named(window, end)):
        return True
    if window.at(end, 4) in _TRAILING:
        return False
    width = struct.calcsize(sign)
    (chunk,) = struct.unpack(sign, window.at(end + 4, width))
    return bool(end + 4 + width + chunk > window.size)  # samples may look like a name


def promise(held: float, promised: float) -> str:
    """The words for a header that says less, or more, than there is. Lengths in seconds."""
    return f"holds {held:.1f} s, but its header promises {promised:.1f} s"


class Pieces(io.RawIOBase):
    """Pieces of a file, to be read as a file of its own.

    Args:
        path: the file.
        pieces: in their order.
    """

    def __init__(self, path: Path, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._pieces = pieces
        lengths = (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
        self._starts = list(accumulate(lengths, initial=0))
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file, counted from the start of the first piece."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """As of any file; fills the buffer from as many pieces as that takes."""
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target):
            count = self._read_from_one(target[done:])
            if not count:
                break
            done += count
            self._position += count
        return done

    def _read_from_one(self, target: memoryview) -> int:
        """Reads bytes of the piece at the position; 0 at the end."""
        index = bisect.bisect_right(self._starts, self._position) - 1
        if index >= len(self._pieces):
            return 0
        piece, within = self._pieces[index], self._position - self._starts[index]
        target = target[: self._starts[index + 1] - self._position]
        if isinstance(piece, bytes):
            target[:] = piece[within : within + len(target)]
            return len(target)
        self._file.seek(piece[0] + within)
        return self._file.readinto(target) or 0

    def close(self) -> None:
        """As of any file."""
        self._file.close()
        super().close()


class Window:
    """Bytes of a file by their position, read in large blocks: for walks that go forward.

    Args:
        stream: the open file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size = stream.seek(0, io.SEEK_END)
        self._start, self._bytes = 0, b""

    def at(self, position: int, count: int) -> bytes:
        """`count` bytes from a position on; fewer at the end of the file."""
        start = position - self._start
        if start < 0 or (start + count > len(self._bytes) and self._start + len(self._bytes) < self.size):
            self._stream.seek(position)
            self._bytes = self._stream.read(max(count, _WINDOW))
            self._start = position
            start = 0
        return self._bytes[start : start + count]

    def find(self, mark: bytes, position: int) -> int:
        """Where some bytes come next, at or behind a position; -1 if they do not."""
        while position < self.size:
            block = self.at(position, min(_WINDOW, self.size - position))
            if len(block) < len(mark):
                break
            found = block.find(mark)
            if found >= 0:
                return position + found
            position += len(block) - len(mark) + 1
        return -1
