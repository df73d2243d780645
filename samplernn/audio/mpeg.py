"""MPEG audio (MP3, MP2, MP1): its frames counted, because libsndfile believes what a file says of itself.

The first frame of most MP3s is no sound but says how many follow (Xing, Info, VBRI). Of two MP3s behind each
other it tells the length of the first, and no more than that would be used; in a file that was edited it may
tell anything; without it the length is a guess from the bit rate of the first frame. So we walk over the
headers of all frames, past tags and garbage, and give libsndfile streams that tell the truth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from samplernn.audio.pieces import ALL_USED, Layout, Piece, Stream, Window

_BIT_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""kbit/s by version (2.5 is as 2) and layer (ISO/IEC 11172-3 and 13818-3), from index 1 on."""
_RATES = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}
"""Hz by the two bits of the version."""


class _Kind(NamedTuple):
    """What all frames of one stream have in common, and the length of this one."""

    version: int
    """Its two bits: 0 (MPEG 2.5), 2 or 3 (MPEG 1)."""
    layer: int
    sample_rate: int
    bit_rate: int
    """kbit/s."""
    family: int
    """A number that tells version, layer and rate apart from others."""
    length: int
    """Bytes of the frame."""

    @property
    def samples(self) -> int:
        """Per frame."""
        if self.layer == 1:
            return 384
        return 1152 if self.layer == 2 or self.version == 3 else 576


def _kind(second: int, third: int) -> _Kind | None:
    """What the second and third byte of a frame say; None if they are not those of a frame."""
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bit_rate, rate, padding = third >> 4, third >> 2 & 3, third >> 1 & 1
    if second >> 5 != 7 or version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    sample_rate = _RATES[version][rate]
    kbits = _BIT_RATES[1 if version == 3 else 2, layer][bit_rate - 1]
    kind = _Kind(version, layer, sample_rate, kbits, version << 4 | layer << 2 | rate, 0)
    if layer == 1:
        return kind._replace(length=(12000 * kbits // sample_rate + padding) * 4)
    return kind._replace(length=kind.samples // 8 * 1000 * kbits // sample_rate + padding)


_KINDS = [_kind(index >> 7, index << 1 & 0xFF) for index in range(2**15)]
"""By the second byte and the upper seven bits of the third."""


class _Frame(NamedTuple):
    """A frame where it was found."""

    position: int
    kind: _Kind
    stream: int
    """What cannot change within a stream: the family, and whether it is mono."""
    head: bytes
    """Its first bytes, as far as the mark of a Xing, Info or VBRI header."""
    mark: int
    """Where its Xing, Info or VBRI header is; 0 if it is a frame of sound."""

    @property
    def is_mono(self) -> bool:
        """It has one channel."""
        return bool(self.stream & 1)


_HEAD = 46
_MARK = re.compile(b"Xing|Info|VBRI")


def _frame(window: Window, position: int) -> _Frame | None:
    head = window.at(position, _HEAD)
    if len(head) < 4 or head[0] != 0xFF:
        return None
    kind = _KINDS[head[1] << 7 | head[2] >> 1]
    if kind is None:
        return None
    mark = _MARK.search(head, 4) if kind.layer == 3 else None
    stream = kind.family << 1 | (head[3] >= 0xC0)
    return _Frame(position, kind, stream, head, mark.start() if mark else 0)


def _confirmed(window: Window, frame: _Frame, known: int | None) -> bool:
    """Whether what looks like a frame is one: others like it follow, or the file ends with it."""
    following = frame
    for _ in range(1 if frame.stream == known else 2):
        position = following.position + following.kind.length
        if position == window.size:
            return True
        after = _frame(window, position)
        if after is None or after.stream != frame.stream:
            return frame.stream == known and tag_length(window, position) > 0
        following = after
    return True


def tag_length(window: Window, position: int) -> int:
    """Bytes of the ID3 or APE tag at a position; 0 if there is none."""
    head = window.at(position, 32)
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
        footer = 10 if head[5] & 16 else 0
        return (
            10 + footer + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        )
    if head[:8] == b"APETAGEX" and len(head) == 32:
        return 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
    return 128 if head[:3] == b"TAG" else 0


def _frames(window: Window) -> Iterator[_Frame]:
    """All whole frames, past tags and garbage."""
    position, known, in_step = 0, None, False
    while position < window.size:
        frame = _frame(window, position)
        if frame and not (in_step and frame.stream == known) and not _confirmed(window, frame, known):
            frame = None
        if frame:
            known, in_step = frame.stream, True
            position += frame.kind.length
            if position <= window.size:
                yield frame
            continue
        in_step = False
        tag = tag_length(window, position)
        position = position + tag if tag else window.find(b"\xff", position + 1)
        if position < 0:
            return


class _Part:
    """Frames that one decoder can read in one go, and what their first one says about them."""

    def __init__(self, first: _Frame) -> None:
        self.first = first
        self.info: _Frame | None = first if first.mark else None
        self.frames = 0
        self.bit_rates: set[int] = set()
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._stop = -1
        if not first.mark:
            self.add(first)

    def add(self, frame: _Frame) -> None:
        """Takes in a frame of sound."""
        self.frames += 1
        kind, start = frame.kind, frame.position
        self.bit_rates.add(kind.bit_rate)
        if start != self._stop:
            self._starts.append(start)
            self._stops.append(self._stop)
        self._stop = start + kind.length

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Where frames stand without a gap."""
        return list(zip(self._starts, [*self._stops[1:], self._stop], strict=True))

    @property
    def num_bytes(self) -> int:
        """Of all frames."""
        return sum(stop - start for start, stop in self.runs) + (self.info.kind.length if self.info else 0)

    def seconds(self, frames: int) -> float:
        """Of so many frames."""
        return frames * self.first.kind.samples / self.first.kind.sample_rate


class _Promise(NamedTuple):
    """What a Xing, Info or VBRI header says; 0 is nothing."""

    frames: int
    num_bytes: int


def _promise(window: Window, info: _Frame) -> _Promise:
    start = info.position + info.mark
    if info.head[info.mark : info.mark + 4] == b"VBRI":
        body = window.at(start, 18)
        return _Promise(int.from_bytes(body[14:18], "big"), int.from_bytes(body[10:14], "big"))
    body = window.at(start, 16)
    flags, numbers = body[7], [int.from_bytes(body[at : at + 4], "big") for at in (8, 12)]
    return _Promise(numbers.pop(0) if flags & 1 else 0, numbers.pop(0) if flags & 2 else 0)


def _parts(window: Window) -> list[_Part]:
    parts: list[_Part] = []
    stream = None
    for frame in _frames(window):
        if frame.mark or frame.stream != stream:
            parts.append(_Part(frame))
            stream = frame.stream
        else:
            parts[-1].add(frame)
    return [part for part in parts if part.frames]


def layout(path: Path) -> Layout | None:
    """How to read a file of MPEG audio; None if libsndfile does well by itself, or if it is none.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        window = Window(stream)
        parts = _parts(window)
        if not parts:
            return None
        first, promise = parts[0], _promise(window, parts[0].info) if parts[0].info else _Promise(0, 0)
        lacks_bytes = _is_truncated(window, first, promise)
        # Of a file that is only cut, libsndfile reads what is there, and the length tells.
        if len(parts) == 1 and ((lacks_bytes and len(first.runs) == 1) or _is_plain(window, first, promise)):
            return None
        streams = tuple(_stream(window, part) for part in parts)
    if len(parts) > 1 or not promise.frames or abs(promise.frames - first.frames) <= 1:
        return Layout(streams)
    held, promised = first.seconds(first.frames), first.seconds(promise.frames)
    remedy = "what is there is used; copy or export the file again" if lacks_bytes else ALL_USED
    return Layout(streams, f"holds {held:.1f} s, but its header promises {promised:.1f} s", remedy)


def _is_truncated(window: Window, part: _Part, promise: _Promise) -> bool:
    """Whether the end is missing, and not only the header wrong: bytes are missing, too."""
    if promise.frames <= part.frames + 1:
        return False
    ends_within_a_frame = part.runs[-1][1] < window.size and _frame(window, part.runs[-1][1]) is not None
    return ends_within_a_frame or promise.num_bytes > part.num_bytes + 2 * part.first.kind.length


def _is_plain(window: Window, part: _Part, promise: _Promise) -> bool:
    """Whether libsndfile finds the length of a file that is a single stream."""
    start = part.info.position if part.info else part.runs[0][0]
    behind = window.size - part.runs[-1][1]
    if (start and start != tag_length(window, 0)) or (len(part.runs) > 1 and not part.info):
        return False
    if part.info:
        fits = (
            not promise.num_bytes or abs(promise.num_bytes - (window.size - start)) * 100 < promise.num_bytes
        )
        return fits and abs(promise.frames - part.frames) <= 1
    return len(part.bit_rates) == 1 and behind < 2 * part.first.kind.length


def _stream(window: Window, part: _Part) -> Stream:
    """A part with a first frame that tells its true length."""
    pieces: list[Piece] = [*part.runs]
    if part.first.kind.layer == 3:
        pieces.insert(0, _true_info(window, part))
    return Stream(tuple(pieces), seconds=part.seconds(part.frames))


def _true_info(window: Window, part: _Part) -> bytes:
    """The part's Xing or Info header with the true numbers; a new one if it has none."""
    info = part.info
    if info and info.head[info.mark : info.mark + 4] != b"VBRI":
        frame = bytearray(window.at(info.position, info.kind.length))
        if len(frame) > info.mark + 16 and frame[info.mark + 7] & 3 == 3:
            frame[info.mark + 8 : info.mark + 16] = _numbers(part.frames, part.num_bytes)
            return bytes(frame)
    second, third, fourth = part.first.head[1] | 1, part.first.head[2] & 0x0C, part.first.head[3]
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}
    at = 4 + side[part.first.kind.version == 3, part.first.is_mono]
    for bit_rate in range(1, 15):
        kind = _kind(second, bit_rate << 4 | third)
        if kind and kind.length >= at + 16:
            break
    assert kind
    frame = bytearray(kind.length)
    frame[:4] = 0xFF, second, bit_rate << 4 | third, fourth
    held = part.num_bytes - (info.kind.length if info else 0) + kind.length
    frame[at : at + 16] = b"Xing\0\0\0\3" + _numbers(part.frames, held)
    return bytes(frame)


def _numbers(frames: int, num_bytes: int) -> bytes:
    return frames.to_bytes(4, "big") + num_bytes.to_bytes(4, "big")
