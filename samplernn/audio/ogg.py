"""Ogg files (RFC 3533): streams behind each other, and FLAC, which libsndfile may be built without.

libsndfile reads the first stream of an Ogg file and stops at its end. Radio recordings, and files that were
joined by `cat`, have several; each begins with pages that say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from samplernn.audio.pieces import Layout, Piece, Stream, Window

_KINDS = {
    b"\x01vorbis": "Vorbis",
    b"OpusHead": "Opus",
    b"\x7fFLAC": "FLAC",
    b"Speex   ": "Speex",
    b"\x80theora": "Theora",
}
"""How the first packet of a stream begins."""
_FLAC_MAPPING = 9
"""Bytes of an Ogg FLAC's first packet before what is as in a FLAC file."""

_LONG_PAGE = 5
"""Seconds that no single page holds."""


class _Page(NamedTuple):
    start: int
    flags: int
    granule: int
    serial: int
    body: tuple[int, int]
    """Where its body is."""
    is_whole: bool

    @property
    def is_first(self) -> bool:
        """Of its stream."""
        return bool(self.flags & 2)


class _Link:
    """Streams that begin together, up to where others do."""

    def __init__(self, start: int) -> None:
        self.start = self.stop = start
        self.kind, self.serial, self.clock, self.granule = "", -1, 0, 0
        self.origin = -1
        self.bodies: list[tuple[int, int]] = []
        self.has_end = False

    def add(self, window: Window, page: _Page) -> None:
        """Takes in a page; of a stream other than the first that is sound, only its place counts."""
        self.stop = page.body[1]
        if page.is_first and self.kind in ("", "Theora"):
            packet = window.at(page.body[0], 64)
            kind = next((name for mark, name in _KINDS.items() if packet.startswith(mark)), "")
            if kind or not self.kind:
                self.kind, self.serial, self.clock = kind, page.serial, _clock(kind, packet)
        if page.serial == self.serial:
            self.granule = max(self.granule, page.granule)
            if self.origin < 0 and page.granule > 0:  # a recording of a broadcast does not begin at 0
                self.origin = page.granule if page.granule > _LONG_PAGE * self.clock else 0
            self.has_end = page.is_whole and bool(page.flags & 4)
            if self.kind == "FLAC":
                self.bodies.append(page.body)

    @property
    def stream(self) -> Stream:
        """As libsndfile is to read it."""
        seconds = (self.granule - max(0, self.origin)) / self.clock if self.clock else None
        if self.kind == "FLAC":
            first, *others = self.bodies
            pieces: tuple[Piece, ...] = ((first[0] + _FLAC_MAPPING, first[1]), *others)
            return Stream(pieces, seconds=seconds, is_cut=not self.has_end)
        name = self.kind if self.kind in ("Speex", "Theora") else ""
        return Stream(((self.start, self.stop),), seconds=seconds, name=name, is_cut=not self.has_end)


def _clock(kind: str, packet: bytes) -> int:
    """What a granule position counts, per second."""
    if kind == "Vorbis":
        return int.from_bytes(packet[12:16], "little")
    if kind == "FLAC":
        return int.from_bytes(packet[27:30], "big") >> 4
    return 48000 if kind == "Opus" else 0


def _pages(window: Window) -> Iterator[_Page]:
    """All pages, past garbage; the last one may not be whole."""
    position = 0
    while True:
        head = window.at(position, 27)
        if len(head) < 27:
            return
        if head[:5] != b"OggS\0":
            position = window.find(b"OggS\0", position + 1)
            if position < 0:
                return
            continue
        segments = window.at(position + 27, head[26])
        body = position + 27 + head[26]
        end = body + sum(segments)
        if (
            end < window.size and window.at(end, 5) != b"OggS\0"
        ):  # it may have been cut, and another stream follow
            found = window.find(b"OggS\0", position + 27)
            end = found if 0 < found < end else end
        granule, serial = (int.from_bytes(head[a:b], "little", signed=True) for a, b in ((6, 14), (14, 18)))
        is_whole = end == body + sum(segments) <= window.size
        yield _Page(position, head[5], granule, serial, (min(body, end), min(end, window.size)), is_whole)
        position = end


def layout(path: Path) -> Layout | None:
    """How to read an Ogg file; None if libsndfile does well by itself, or if it is none.

    Raises:
        OSError: the file cannot be read.
    """
    links: list[_Link] = []
    with path.open("rb") as stream:
        window, begins = Window(stream), False
        for page in _pages(window):
            if (page.is_first and not begins) or not links:
                links.append(_Link(page.start))
            begins = page.is_first
            links[-1].add(window, page)
    if not links or (len(links) == 1 and links[0].kind not in ("FLAC", "Speex", "Theora")):
        return None
    return Layout(tuple(link.stream for link in links))


def has_end(path: Path) -> bool:
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
