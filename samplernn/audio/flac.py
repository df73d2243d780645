"""FLAC files behind each other in one, and such as hold more than they promise.

libsndfile stops where the first one ends, and at the number of samples that STREAMINFO gives. The last frame
tells the true number (RFC 9639, sections 8.2 and 9.1).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from samplernn.audio import mpeg
from samplernn.audio.pieces import Layout, Piece, Stream, Window, promise

_MARKS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
"""How a FLAC file begins: its name and the head of STREAMINFO, which may be its only block of metadata."""
_TAIL = 2**17
"""Bytes in which the last frame of a file is sought."""


def layout(path: Path) -> Layout | None:
    """How to read a FLAC file; None if libsndfile does well by itself.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        window = Window(file)
        starts, position = [], window.find(b"fLaC", 0)
        while position >= 0:
            if window.at(position, 8) in _MARKS:
                starts.append(position)
            position = window.find(b"fLaC", position + 4)
        flacs = [_Flac(window, start, stop) for start, stop in pairwise([*starts, window.size])]
    if len(flacs) == 1 and flacs[0].is_right:
        return None
    words = ""
    if len(flacs) == 1 and flacs[0].promised:
        words = promise(*(n / flacs[0].sample_rate for n in (flacs[0].held, flacs[0].promised)))
    return Layout(tuple(flac.stream for flac in flacs), words) if flacs else None


def follows_tag(path: Path) -> bool:
    """Whether a file that begins with an ID3 tag goes on as FLAC. Raises OSError."""
    with path.open("rb") as file:
        window = Window(file)
        return window.at(mpeg.tag_length(window, 0), 4) == b"fLaC"


class _Flac:
    """One FLAC within a file: what it promises, and what it holds."""

    def __init__(self, window: Window, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self._head = window.at(start, 26)
        numbers = int.from_bytes(
            self._head[18:], "big"
        )  # 20 bits Hz, 3 channels, 5 bits per sample, 36 samples
        self.sample_rate = max(1, numbers >> 44)
        self.promised = numbers & (2**36 - 1)
        """Samples per channel; 0 if that is left open."""
        self.held = _last_sample(window.at(max(start, stop - _TAIL), min(stop - start, _TAIL)), self._head)
        """Samples per channel by the last frame; 0 if it is not whole."""

    @property
    def is_right(self) -> bool:
        """There is no more than promised, and no end that is known although it was left open."""
        return self.held <= self.promised

    @property
    def stream(self) -> Stream:
        """As libsndfile is to read it."""
        samples = max(self.promised, self.held)
        pieces: tuple[Piece, ...] = ((self.start, self.stop),)
        if not self.is_right:
            numbers = int.from_bytes(self._head[18:], "big") >> 36 << 36 | self.held
            pieces = ((self.start, self.start + 18), numbers.to_bytes(8, "big"), (self.start + 26, self.stop))
        return Stream(pieces, seconds=samples / self.sample_rate or None)


def _last_sample(tail: bytes, head: bytes) -> int:
    """One past the last sample of the frame that a file ends with; 0 if none is found there."""
    if tail[-128:-125] == b"TAG":
        tail = tail[:-128]
    fixed, promised = int.from_bytes(head[10:12], "big"), int.from_bytes(head[18:], "big") & (2**36 - 1)
    position = len(tail)
    while (position := tail.rfind(b"\xff", 0, position)) >= 0:
        end = _end_of_frame(tail[position : position + 16].ljust(16, b"\0"), fixed)
        if end and (end == promised or _crc(tail[position:], 16, 0x8005) == 0):
            return end
    return 0


def _end_of_frame(head: bytes, fixed: int) -> int:
    """One past the last sample of the frame with this header; 0 if it is none.

    Args:
        head: the first 16 bytes.
        fixed: samples of all frames but the last, if their number does not change.
    """
    if head[:2] not in (b"\xff\xf8", b"\xff\xf9") or head[3] & 1:
        return 0
    size, rate = head[2] >> 4, head[2] & 15
    ones = next((n for n in range(8) if not head[4] >> (7 - n) & 1), 8)
    if size == 0 or rate == 15 or ones in (1, 8):
        return 0
    number = head[4] & (0x7F >> ones)
    for byte in head[5 : 4 + max(ones, 1)]:
        number = number << 6 | byte & 0x3F
    at = 4 + max(ones, 1)
    if size in (6, 7):
        samples = int.from_bytes(head[at : at + size - 5], "big") + 1
        at += size - 5
    else:
        samples = 192 if size == 1 else 576 << (size - 2) if size < 6 else 256 << (size - 8)
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if _crc(head[: at + 1], 8, 0x07):
        return 0
    return (number if head[1] & 1 else number * fixed) + samples


def _crc(content: bytes, bits: int, polynomial: int) -> int:
    """The remainder, 0 if the content ends with its own checksum."""
    table, mask = _TABLES[bits, polynomial], (1 << bits) - 1
    value = 0
    for byte in content:
        value = (value << 8 & mask) ^ table[value >> (bits - 8) ^ byte]
    return value


def _table(bits: int, polynomial: int) -> list[int]:
    values = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) & 1 else 0)
            value &= (1 << bits) - 1
        values.append(value)
    return values


_TABLES = {key: _table(*key) for key in ((8, 0x07), (16, 0x8005))}
