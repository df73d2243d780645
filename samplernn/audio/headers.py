"""AIFF, AU, CAF and W64 files whose headers libsndfile takes at their word, or does not understand.

A recorder that crashes leaves a length of zero or of the last time it was written, a program that writes to a
pipe one of -1. ffmpeg writes ALAC into CAF without the flags that libsndfile wants. Here such headers are
read anew; libsndfile then gets them as they should be.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from samplernn.audio.pieces import Layout, Stream, Window, edited, is_named, promise, promises_less

_MAX_CHUNKS = 1000
_AU_BITS = {1: 8, 2: 8, 3: 16, 4: 24, 5: 32, 6: 32, 7: 64, 23: 4, 25: 3, 26: 5, 27: 8}
"""Per sample, by the encoding."""
_AIFF_CONSTANT = (b"", b"NONE", b"sowt", b"twos", b"fl32", b"FL32", b"fl64", b"FL64", b"in24", b"in32")
"""Kinds of samples that take as many bits as the header says."""
_ALAC_FLAGS = {16: 1, 20: 2, 24: 3, 32: 4}
"""In a CAF's description, by the bits per sample."""
_Edits: TypeAlias = "dict[tuple[int, int], bytes]"
"""As for `pieces.edited`."""


def _au(path: Path) -> Layout | None:
    """How to read an AU file whose header promises too little; None if libsndfile does well by itself."""
    with path.open("rb") as stream:
        window = Window(stream)
        head = window.at(0, 24)
        if len(head) < 24:
            return None
        order = ">" if head.startswith(b".snd") else "<"
        start, length, encoding, sample_rate, channels = struct.unpack(f"{order}5I", head[4:])
        speed = sample_rate * channels * _AU_BITS.get(encoding, 8) / 8
        if not speed or not promises_less(window, start, length, speed, ""):
            return None
        held = window.size - start
        right = struct.pack(f"{order}I", min(held, 2**32 - 1))
        return Layout((Stream(edited(window.size, {(8, 12): right})),), promise(held / speed, length / speed))


def _aiff(path: Path) -> Layout | None:
    """How to read an AIFF file whose header promises too little; None if libsndfile does well by itself."""
    with path.open("rb") as stream:
        window, position, speed = Window(stream), 12, 0.0
        for _ in range(_MAX_CHUNKS):
            name, length = window.at(position, 4), int.from_bytes(window.at(position + 4, 4), "big")
            if not is_named(window, position):
                return None
            if name == b"COMM" and length >= 18:
                speed = _aiff_speed(window.at(position + 8, min(length, 22)))
            elif name == b"SSND":
                break
            position += 8 + length + length % 2
        start, samples = position + 8, position + 16
        # Where it says nothing at all, libsndfile takes what is there.
        if length <= 8 or not speed or not promises_less(window, start, length, speed, ">I"):
            return None
        right = min(window.size - start, 2**32 - 1).to_bytes(4, "big")
        words = promise((window.size - samples) / speed, (length - 8) / speed)
        return Layout((Stream(edited(window.size, {(position + 4, position + 8): right})),), words)


def _aiff_speed(body: bytes) -> float:
    """Bytes per second by a COMM chunk; 0 if they are not constant, or it makes no sense."""
    channels, _, bits, exponent, mantissa = struct.unpack(">HIHHQ", body[:18])
    if body[18:22] not in _AIFF_CONSTANT:
        return 0.0
    if not 16383 <= exponent < 16383 + 32:
        return 0.0
    return float(channels * (bits + 7) // 8 * (mantissa >> (16383 + 63 - exponent)))


def _caf(path: Path) -> Layout | None:
    """How to read a CAF file that libsndfile would misread; None if it does well by itself."""
    with path.open("rb") as stream:
        window = Window(stream)
        chunks = _caf_chunks(window)
        if b"desc" not in chunks or b"data" not in chunks:
            return None
        (at, _), (data, length) = chunks[b"desc"], chunks[b"data"]
        description = window.at(at + 12, 32)
        if len(description) < 32:
            return None
        edits: _Edits = {}
        if description[8:12] == b"alac" and description[12:16] == bytes(4) and b"kuki" in chunks:
            kuki = window.at(chunks[b"kuki"][0] + 12, min(64, chunks[b"kuki"][1]))
            kuki = kuki[24:] if kuki[4:8] == b"frma" else kuki  # Apple's older form, in two boxes
            flags = _ALAC_FLAGS.get(kuki[5], 0) if len(kuki) > 5 else 0
            edits[at + 24, at + 28] = flags.to_bytes(4, "big")
        words = _caf_length(window, description, data, length, edits)
        if not edits:
            return None
        return Layout((Stream(edited(window.size, edits)),), words)


def _caf_chunks(window: Window) -> dict[bytes, tuple[int, int]]:
    """Position and length of the chunks of a CAF, by name."""
    chunks: dict[bytes, tuple[int, int]] = {}
    position = 8
    while is_named(window, position) and len(chunks) < _MAX_CHUNKS:
        length = int.from_bytes(window.at(position + 4, 8), "big", signed=True)
        chunks.setdefault(window.at(position, 4), (position, length))
        if length < 0:
            break
        position += 12 + length
    return chunks


def _caf_length(window: Window, description: bytes, data: int, length: int, edits: _Edits) -> str:
    """Notes the right length of the data in `edits`, if it is another; the words for it if it is wrong."""
    rate, packet, frames = struct.unpack(">d", description[:8])[0], *struct.unpack(">II", description[16:24])
    speed = packet / frames * rate if packet and frames and 0 < rate < 2**32 else 0.0
    held = window.size - data - 12
    right = {(data + 4, data + 12): held.to_bytes(8, "big")}
    if length == -1:  # as far as the file goes, which the format allows
        edits.update(right)
    elif speed and promises_less(window, data + 12, length, speed, ">Q"):
        edits.update(right)
        return promise((held - 4) / speed, max(0, length - 4) / speed)
    return ""


def _w64(path: Path) -> Layout | None:
    """How to read a W64 file whose header says less than there is; None if it does not.

    libsndfile takes all that is behind the samples for samples, too.
    """
    with path.open("rb") as stream:
        window, position, speed = Window(stream), 40, 0.0
        for _ in range(_MAX_CHUNKS):
            name, length = window.at(position, 4), int.from_bytes(window.at(position + 16, 8), "little")
            if name == b"fmt ":
                speed = float(int.from_bytes(window.at(position + 32, 4), "little"))
            elif name == b"data":
                break
            if length < 24:
                return None
            position += -(-length // 8) * 8
        end = position + length
        if length >= 2**63 or end >= window.size or not speed:
            return None
        following = int.from_bytes(window.at(-(-end // 8) * 8 + 16, 8), "little")
        is_chunk = 24 <= following <= window.size - end
        start = position + 24
        if is_chunk or not promises_less(window, start, max(0, length - 24), speed, ""):
            return Layout((Stream(((0, max(end, start)),)),)) if length > 24 else None
        held, promised = (window.size - start) / speed, max(0, length - 24) / speed
        return Layout((Stream(None),), promise(held, promised))


LAYOUTS: dict[bytes, Callable[[Path], Layout | None]] = {
    b".snd": _au,
    b"dns.": _au,
    b"FORM": _aiff,
    b"caff": _caf,
    b"riff": _w64,
}
"""By the first four bytes of a file: how to read it; None if libsndfile does well by itself.

They raise OSError if the file cannot be read.
"""
