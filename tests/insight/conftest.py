"""Runs as their folders look in different states and ages, with real audio."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from samplernn.audio.io import load, to_int16

RATE = 4000


@pytest.fixture(scope="session")
def speech(clips: Path) -> NDArray[np.int16]:
    """Two seconds at 4 kHz."""
    return to_int16(load(clips / "speech" / "austen_0870.flac", RATE))[: 2 * RATE]


@pytest.fixture
def old_run(run_copy: Path, speech: NDArray[np.int16]) -> Path:
    """Samples as they were first: streams of one temperature, few facts."""
    samples = run_copy / "samples"
    shutil.rmtree(samples)
    samples.mkdir()
    for step in (4, 6):
        for stream in range(2):
            stem = samples / f"step-{step:07d}-{stream}"
            sf.write(stem.with_suffix(".wav"), speech[stream * 1000 :], RATE)
            facts = {"step": step, "validation_bits_per_sample": 6.0 - step / 10, "temperature": 0.95}
            stem.with_suffix(".json").write_text(json.dumps({**facts, "seed": 0, "stream": stream}))
    return run_copy


@pytest.fixture
def new_run(run_copy: Path, speech: NDArray[np.int16]) -> Path:
    """Samples at two temperatures, continuations, a recording, measures."""
    samples = run_copy / "samples"
    shutil.rmtree(samples)
    samples.mkdir()
    for name in ("recording", "prompt0", "prompt0-truth"):
        sf.write(samples / f"{name}.wav", speech, RATE)
    (samples / "prompt0.json").write_text(json.dumps({"file": "held/out.flac", "start_seconds": 1.25}))
    for step in (2, 4, 6):
        streams = [(f"t{t:.2f}-{n}", t, n, None) for t in (0.8, 1.0) for n in range(2)]
        for name, temperature, number, prompt in [*streams, ("prompt0", 0.8, 0, 0)]:
            stem = f"step-{step:07d}-{name}"
            sf.write(samples / f"{stem}.wav", speech[: 1000 * (number + 1)], RATE)
            facts = {
                "step": step,
                "validation_bits_per_sample": 6.0 - step / 10,
                "kind": "free" if prompt is None else "continuation",
                "temperature": temperature,
                "seed": 0,
                "stream": number,
                "prompt": prompt,
                "seconds": 0.5,
                "level_db": -21.5,
                "spectral_distance_db": 5.0 + number,
                "traps": [{"kind": "noise"}] if name == "t0.80-0" else [],
            }
            (samples / f"{stem}.json").write_text(json.dumps(facts))
    return run_copy


def sounds(document: str) -> list[NDArray[np.int16]]:
    """What the players of a page play, ``[T]`` each."""
    found = re.findall(r'<audio controls [^>]*src="data:audio/wav;base64,([^"]+)"', document)
    return [_decoded(base64.b64decode(each)) for each in found]


def _decoded(wav: bytes) -> NDArray[np.int16]:
    audio: NDArray[np.int16] = sf.read(io.BytesIO(wav), dtype="int16")[0]
    return audio
