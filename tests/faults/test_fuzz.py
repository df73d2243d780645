"""Damaged audio files of every container, beside good ones."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.corpus import inspect
from samplernn.config import DataConfig

RATE = 16000
GOOD = 10
SUFFIXES = {
    "MAT4": ".mat",
    "MAT5": ".mat",
    "MPC2K": ".snd",
    "NIST": ".sph",
    "RAW": None,
    "SD2": None,
    "SVX": ".iff",
    "WAVEX": ".wav",
}
"""Of containers whose suffix is not their name; None: they need more than one file, or tell nothing."""


def _samples(seconds: float, seed: int) -> np.ndarray:
    """A few partials and noise, int16, without a mean."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * rng.uniform(100, 4000) * time + rng.uniform(0, 6)) for _ in range(4))
    samples = np.rint(4000 * tones + rng.normal(0, 500, len(time)))
    return (samples - samples.mean()).clip(-30000, 30000).astype(np.int16)


def originals() -> dict[str, bytes]:
    """A second or two in every container that libsndfile writes, by suffix and subtype."""
    found = {}
    for container in sf.available_formats():
        suffix = SUFFIXES.get(container, f".{container.lower()}")
        if suffix is None:
            continue
        for subtype in sf.available_subtypes(container):
            for rate in (RATE, 8000):
                file = io.BytesIO()
                try:
                    sf.write(file, _samples(1.5, len(found)), rate, subtype, format=container)
                except (sf.LibsndfileError, ValueError):
                    continue
                found[f"{container}-{subtype}{suffix}"] = file.getvalue()
                break
    return found


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """What was done to a file, and what became of it."""
    data = bytearray(content)
    kind = ("header", "bytes", "cut", "doubled", "zeros", "inserted", "removed")[rng.integers(7)]
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    if kind == "header":
        for position in rng.integers(0, min(len(data), 128), rng.integers(1, 8)):
            data[position] = rng.integers(256)
    elif kind == "bytes":
        for position in rng.integers(0, len(data), rng.integers(1, 200)):
            data[position] = rng.integers(256)
    elif kind == "cut":
        del data[at:]
    elif kind == "doubled":
        data[at:at] = data
    elif kind == "zeros":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "inserted":
        data[at:at] = rng.bytes(length)
    else:
        del data[at : at + length]
    return kind, bytes(data)


@pytest.mark.fault(
    "an audio file of any container damaged: bytes changed, removed, inserted, cut, doubled",
    "no hang, no traceback; used, or named; the ten good files beside are whole",
    few=80,
    many=500,
)
def test_damaged_files_cost_themselves_alone(tmp_path: Path, times: int, rng: np.random.Generator) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    good = {f"good {index}.flac": _samples(1.0, 1000 + index) for index in range(GOOD)}
    for name, samples in good.items():
        sf.write(folder / name, samples, RATE)
    kept = originals()
    assert {name.split("-")[0] for name in kept} >= {
        "WAV",
        "AIFF",
        "FLAC",
        "OGG",
        "MP3",
        "CAF",
        "W64",
        "RF64",
        "AU",
    }
    names = sorted(kept)
    kinds = {}
    for index in range(times):
        original = names[index % len(names)]
        kind, content = damaged(kept[original], rng)
        name = f"{index:04} {original}"
        (folder / name).write_bytes(content)
        kinds[name] = kind
    corpus = inspect(
        folder, DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache", decode_timeout=5.0), workers=2
    )
    used = {file.path: file for file in corpus.files}
    for name, samples in good.items():
        assert used[name].num_samples == len(samples)
        assert used[name].peak == np.abs(samples.astype(np.int32)).max() / 32768
    assert not any(problem.path in good for problem in corpus.problems)
    named = {problem.path: problem.problem for problem in corpus.problems}
    assert {path.name for path in folder.iterdir()} == used.keys() | named.keys()
    counts = Counter(_outcome(name in used, named.get(name)) for name in kinds)
    print(f"{times} damaged files: {dict(counts)}")
    if report := os.environ.get("FUZZ_REPORT"):  # a file that gets a line for each of them
        lines = [f"{kinds[name]:9}{name}: {named.get(name, 'used')}\n" for name in kinds]
        Path(report).write_text("".join(lines), "utf-8")


def _outcome(is_used: bool, problem: str | None) -> str:
    if problem and ("hang" in problem or "crash" in problem):
        return "decoder hangs or crashes"
    if not is_used:
        return "left out, named"
    return "used, named" if problem else "used"
