"""What a large corpus costs: time and memory of a start, and the time of a step's audio.

    python scripts/measure_scale.py 1000 10000 100000

For each number of files: writes so many short WAV files, decodes them into a cache, and then measures, in a
process of its own, everything that training does before its first step, and the loader. Needs about
20 kB of disk for each file of half a second, twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile as sf

from samplernn.config import DataConfig

RATE, SECONDS = 16000, 0.5
FILES_PER_FOLDER = 1000
CHUNKS = 300


def write_files(folder: Path, count: int) -> None:
    """So many different files of noise, in folders of a thousand."""
    rng = np.random.default_rng(0)
    for index in range(count):
        place = folder / f"{index // FILES_PER_FOLDER:04d}"
        place.mkdir(exist_ok=True)
        noise = rng.integers(-8000, 8000, round(RATE * SECONDS), dtype=np.int16)
        sf.write(place / f"{index:06d}.wav", noise, RATE)


def measure(folder: Path, cache: Path) -> dict[str, float]:
    """Seconds and megabytes of one start with a complete cache; of the loader, microseconds per chunk."""
    import torch

    from samplernn.audio.corpus import locate, prepare, split
    from samplernn.audio.lanes import training_lanes
    from samplernn.config import Config
    from samplernn.insight.benchmark.fresh import peak_memory

    config = Config()
    data = replace(config.data, cache_dir=str(cache), segment_duration=SECONDS)
    before = peak_memory(torch.device("cpu")) or 0.0
    started = time.perf_counter()
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=str(cache)), progress=False)
    prepared = time.perf_counter()
    parts = split(corpus, data.split_seed)
    lanes = training_lanes(corpus, locate(corpus, parts.train), data, seed=0)
    chunks = lanes.chunks(epoch=0)
    next(chunks)
    ready = time.perf_counter()
    read = sum(1 for _ in zip(range(CHUNKS), chunks, strict=False))
    done = time.perf_counter()
    after = peak_memory(torch.device("cpu")) or 0.0
    return {
        "prepare s": prepared - started,
        "split, lanes, first chunk s": ready - prepared,
        "us per chunk": (done - ready) / read * 1e6,
        "MB": (after - before) / 1e6,
        "split in a checkpoint MB": len(json.dumps(parts.to_dict())) / 1e6,
    }


def main() -> None:
    """A line per size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=int, nargs="*", default=[1000, 10_000], help="how many (a row each)")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(*map(Path, options.inside))))
        return
    for count in options.files:
        with tempfile.TemporaryDirectory(prefix="samplernn-") as place:
            folder, cache = Path(place, "audio"), Path(place, "cache")
            folder.mkdir()
            write_files(folder, count)
            command = [sys.executable, __file__, "--inside", str(folder), str(cache)]
            results = [
                json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(2)
            ]
            cold, warm = results
            print(
                f"{count} files: decoding {cold['prepare s']:.1f} s; then "
                + ", ".join(f"{name} {value:.3g}" for name, value in warm.items()),
                flush=True,
            )


if __name__ == "__main__":
    main()
