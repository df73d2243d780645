"""Measures how well shared audio is found: recall by codec, offset, gain and overlap; false pairs; cost.

    python scripts/measure_takes.py FOLDER [FOLDER ...]

Each folder holds recordings of which no two share audio. Pieces of them are changed, put beside the originals
and looked for. Nothing is written but to a temporary folder.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from samplernn.audio.corpus import AudioFile, scan
from samplernn.audio.fingerprint import Fingerprint
from samplernn.audio.io import decode, load, to_int16
from samplernn.audio.takes import overlaps

RATE = 16000
CODEC_RATE = 44100
PIECES = 60


def described(x: np.ndarray, path: str) -> AudioFile:
    """What the corpus would know of float samples `[n]`."""
    fingerprint = Fingerprint(RATE)
    fingerprint.add(to_int16(x))
    fingerprint.finish()
    blank = AudioFile(path, len(x), "", 0, 0.5, 0.0, 0, "", 0, 0, RATE, 1)
    return replace(blank, fingerprint=fingerprint.encoded)


def encode(x: np.ndarray, level: float, options: dict[str, str]) -> bytes:
    """Samples at `CODEC_RATE` as a file; in pieces, as one long write to Vorbis can crash libsndfile."""
    stream = io.BytesIO()
    with sf.SoundFile(stream, "w", CODEC_RATE, 1, compression_level=level, **options) as file:
        for start in range(0, len(x), CODEC_RATE):
            file.write(x[start : start + CODEC_RATE])
    return stream.getvalue()


def through(kbits: float, **options: str) -> Callable[[np.ndarray], np.ndarray]:
    """Through a codec, at the level that gives noise the bit rate nearest to this (kbit/s)."""
    noise = np.random.default_rng(0).standard_normal(4 * CODEC_RATE) / 10
    rates = {
        level: 2 * len(encode(noise, level, options)) / 1000 for level in np.linspace(0, 0.99, 34).tolist()
    }
    best = min(rates, key=lambda level: abs(rates[level] - kbits))

    def change(x: np.ndarray) -> np.ndarray:
        file = encode(soxr.resample(x, RATE, CODEC_RATE), best, options)
        return soxr.resample(sf.read(io.BytesIO(file), dtype="float32")[0], CODEC_RATE, RATE)

    return change


def changes() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What is done to the second piece."""
    mp3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT"}
    poor = through(64, **mp3)
    return {
        "none": lambda x: x,
        "gain -12 dB": lambda x: x / 4,
        "by way of 8 kHz": lambda x: soxr.resample(soxr.resample(x, RATE, 8000), 8000, RATE),
        "MP3, 128 kbit/s": through(128, **mp3),
        "MP3, 64 kbit/s": poor,
        "Vorbis, 64 kbit/s": through(64, format="OGG", subtype="VORBIS"),
        "MP3, 64 kbit/s, -12 dB": lambda x: poor(x) / 4,
    }


def pieces(
    paths: list[Path], seconds: float, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two cuts of a recording, at any sample: they share `seconds` and have half as many of their own."""
    found = []
    long_enough = [path for path in paths if sf.info(path).duration > 2 * seconds + 0.1]
    for number in range(PIECES if long_enough else 0):
        path = long_enough[number % len(long_enough)]
        start = rng.uniform(0, sf.info(path).duration - 2 * seconds - 0.05)
        rate = sf.info(path).samplerate
        x, _ = sf.read(path, start=int(start * rate), frames=int(2 * seconds * rate), dtype="float32")
        x = soxr.resample(x, rate, RATE)
        cut = int(0.5 * seconds * RATE) + int(rng.integers(-400, 400))
        found.append((x[: cut + int(seconds * RATE)], x[cut:]))
    return found


def recall(paths: list[Path]) -> None:
    """Prints a row of the table for each change, with a column for each length of what is shared."""
    lengths = (2.5, 3.0, 4.0, 6.0, 10.0)
    print("| change | " + " | ".join(f"{seconds:g} s" for seconds in lengths) + " |")
    for name, change in changes().items():
        cells = []
        for seconds in lengths:
            rng, found, wrong = np.random.default_rng(0), 0, 0
            cuts = pieces(paths, seconds, rng)
            for first, second in cuts:
                pair = overlaps([described(first, "a"), described(change(second), "b")], RATE)
                found += bool(pair)
                wrong += bool(pair) and abs(pair[0].seconds - seconds) > 0.5
            cells.append(f"{found} of {len(cuts)}" + (f" ({wrong} wrong)" if wrong else "") if cuts else "")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def cost(path: Path) -> None:
    """Prints the processor time of decoding a file and of its fingerprint, the least of some."""
    blocks = [to_int16(block) for block in decode(path, RATE)]
    seconds = sum(map(len, blocks)) / RATE
    decoding, printing = np.inf, np.inf
    for _ in range(9):
        start = time.process_time()
        for block in decode(path, RATE):
            to_int16(block)
        middle = time.process_time()
        fingerprint = Fingerprint(RATE)
        for block in blocks:
            fingerprint.add(block)
        fingerprint.finish()
        size = len(fingerprint.encoded)
        decoding, printing = min(decoding, middle - start), min(printing, time.process_time() - middle)
    micro = 1e6 / seconds
    print(
        f"{path.name}, per second: decoding {decoding * micro:.0f} us, fingerprint {printing * micro:.0f} us"
    )
    print(f"{size / seconds:.0f} bytes per second")


def main(folders: list[str]) -> None:
    """All of it, folder by folder."""
    every = []
    for folder in folders:
        paths = scan(folder)
        files = [described(load(path, RATE), str(path)) for path in paths]
        every += files
        print(f"\n{folder}: {len(files)} files, false pairs: {len(overlaps(files, RATE))}\n")
        recall(paths)
        cost(max(paths, key=lambda path: path.stat().st_size))
    start = time.perf_counter()
    found = overlaps(every, RATE)
    print(f"\nall together: {len(every)} files, {len(found)} pairs, {time.perf_counter() - start:.1f} s")
    for one in found:
        print(f"  {every[one.first].path} {every[one.second].path} {one.seconds:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
