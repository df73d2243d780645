"""WAV files whose chunks libsndfile misreads: where their samples lie, found by walking the chunks.

A malformed LIST chunk makes libsndfile loop for ever, a PEAK chunk of another length makes it refuse the
file, and where a recorder crashed before it wrote the sizes, or a program wrote too small ones, it reads no
more than the header promises. ffmpeg and sox read all of these. So do we: libsndfile gets the file without
these chunks, and with sizes that are right.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal, NamedTuple

from samplernn.audio.pieces import Layout, Stream, Window, edited, is_named, promise, promises_less

_BITS = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}
"""Bits per sample by the format tag, of samples that are as long as these bits say."""
_EXTENSIBLE = 0xFFFE
_MAX_CHUNKS = 1000
"""No real file has more; a walk over many tiny ones would take long."""
_IN_DS64 = 2**32 - 1
"""The length of an RF64's data, which really stands in its ds64 chunk."""
_OPEN = (2**64 - 1, 2**63 - 1)
"""Lengths in a ds64 chunk of a file that was never closed."""
Order = Literal["little", "big"]


class _Format(NamedTuple):
    """What a ``fmt`` chunk says."""

    channels: int
    sample_rate: int
    bytes_per_second: int


class _Wave:
    """The chunks of a WAV file as far as they matter here.

    Args:
        window: on the file.

    Attributes:
        form: what its ``fmt`` chunk says; None if that is missing, or makes no sense.
        data: where the data chunk is; -1 if there is none.
        length: of the data in bytes, as the header says.
        faults: what libsndfile fails at, by the first byte and one past the last.
    """

    def __init__(self, window: Window) -> None:
        head = window.at(0, 12)
        self.order: Order = "big" if head.startswith(b"RIFX") else "little"
        self.form: _Format | None = None
        self.data, self.length = -1, 0
        self.faults: dict[tuple[int, int], str] = {}
        self._window = window
        self._ds64 = -1
        """Where the contents of the ds64 chunk begin."""
        if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:] == b"WAVE":
            self._walk()

    def _walk(self) -> None:
        position, window = 12, self._window
        for _ in range(_MAX_CHUNKS):
            if not is_named(window, position):
                return
            header = window.at(position, 8)
            name, length = header[:4], int.from_bytes(header[4:], self.order)
            end = position + 8 + length + length % 2
            if name == b"data" and self.data < 0:
                self.data, self.length = position, self._length_of_data(length)
                end = position + 8 + self.length + self.length % 2
            elif fault := self._take(name, position + 8, length):
                self.faults[position, min(end, window.size)] = fault
            position = end

    def _take(self, name: bytes, start: int, length: int) -> str:
        """Takes in a chunk; the words for what libsndfile would fail at."""
        body = self._window.at(start, min(length, 2**16))
        if name == b"fmt ":
            self.form = _format(body, self.order)
        elif name == b"ds64" and length >= 24:
            self._ds64 = start
        elif name == b"LIST" and not _is_sound_list(body, length, self._window.size - start, self.order):
            return "has a malformed LIST chunk"
        elif name == b"PEAK" and self.form and length != 8 + 8 * self.form.channels:
            return f"has a PEAK chunk of {length} bytes"
        return ""

    def _length_of_data(self, length: int) -> int:
        if self._ds64 >= 0 and length == _IN_DS64:
            length = int.from_bytes(self._window.at(self._ds64 + 8, 8), "little")
        return self._window.size - self.start if length in _OPEN else length

    @property
    def start(self) -> int:
        """Where the samples begin."""
        return self.data + 8

    @property
    def is_open(self) -> bool:
        """A ds64 chunk says that the file was never closed."""
        return self._ds64 >= 0 and int.from_bytes(self._window.at(self._ds64 + 8, 8), "little") in _OPEN

    @property
    def unpromised(self) -> str:
        """What is wrong with the length of the data, or nothing: samples that lie behind its end."""
        if self.form is None or not self.form.bytes_per_second:
            return ""
        sign, speed = "<I" if self.order == "little" else ">I", self.form.bytes_per_second
        if not promises_less(self._window, self.start, self.length, speed, sign):
            return ""
        return promise((self._window.size - self.start) / speed, self.length / speed)

    def mended(self, to_the_end: bool) -> Stream:
        """The file without its faults, and with sizes that are right.

        Args:
            to_the_end: all that follows the start of the samples is samples.
        """
        size = self._window.size
        stop = size if to_the_end else min(size, self.start + self.length)
        cuts = [span for span in self.faults if span[0] < self.data or span[0] >= stop]
        edits = dict.fromkeys(cuts, b"")
        whole, held = size - 8 - sum(b - a for a, b in cuts), stop - self.start
        if not to_the_end and self.start + self.length > size:  # cut, as its sizes go on saying
            whole, held = whole + self.start + self.length - size, self.length
        if self._ds64 >= 0:
            form = self.form
            width = form.bytes_per_second // form.sample_rate if form else 0
            sizes = struct.pack("<QQQ", whole, held, held // width if width else 0)
            edits[self._ds64, self._ds64 + 24] = sizes
            edits[self.data + 4, self.start] = b"\xff" * 4
        else:
            edits[4, 8] = min(whole, 2**32 - 1).to_bytes(4, self.order)
            edits[self.data + 4, self.start] = min(held, 2**32 - 1).to_bytes(4, self.order)
        return Stream(edited(size, edits))


def layout(path: Path) -> Layout | None:
    """How to read a WAV that libsndfile would misread; None if it reads it well, or if it is none.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        wave = _Wave(Window(stream))
        if wave.data < 0:  # libsndfile says it better
            return None
        unpromised = wave.unpromised
        if not (wave.faults or unpromised or wave.is_open):
            return None
        words = dict.fromkeys([*wave.faults.values(), *([unpromised] if unpromised else [])])
        return Layout((wave.mended(to_the_end=bool(unpromised) or wave.is_open),), " and ".join(words))


def _format(body: bytes, order: Order) -> _Format | None:
    """A ``fmt`` chunk; None if it makes no sense."""
    if len(body) < 16:
        return None
    signs = "<HHIIHH" if order == "little" else ">HHIIHH"
    tag, channels, sample_rate, bytes_per_second, _, bits = struct.unpack(signs, body[:16])
    if tag == _EXTENSIBLE and len(body) >= 26:
        tag = int.from_bytes(body[24:26], order)
    if not (channels and sample_rate):
        return None
    if bits in _BITS.get(tag, ()):  # what else it says of the rate of bytes is known to be wrong at times
        bytes_per_second = channels * sample_rate * bits // 8
    return _Format(channels, sample_rate, bytes_per_second)


def _is_sound_list(body: bytes, length: int, left: int, order: Order) -> bool:
    """Whether the items of a LIST chunk lie within it.

    Args:
        body: of the chunk, as far as it was read.
        length: of the chunk, as it says.
        left: bytes of the file from there on.
        order: of the bytes of a number.
    """
    if body[:4] not in (b"INFO", b"adtl", b"exif"):
        return True
    position = 4
    while position + 8 <= min(length, len(body)):
        item = int.from_bytes(body[position + 4 : position + 8], order)
        # Where the file is cut within the chunk, an item may go on behind the end.
        if item > length - position - 8 and (length <= left or item >= 2**31):
            return False
        position += 8 + item + item % 2
    return True
