"""Draw recordings that a model continues: docs/continuation.png.

python scripts/draw_continuation.py CHECKPOINT OUT.png RECORDING… [--start SECONDS] [--temperature T]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import samplernn
from samplernn import plots
from samplernn.audio.io import load, to_int16


def main() -> None:
    """Parse, generate, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--start", type=float, default=20.0, help="second of the recordings")
    parser.add_argument("--prompt", type=float, default=4.0, help="seconds of them that are heard")
    parser.add_argument("--duration", type=float, default=6.0, help="seconds that are generated")
    parser.add_argument("--temperature", default="0.95")
    options = parser.parse_args()
    checkpoint = samplernn.load(options.checkpoint)
    rate = checkpoint.config.data.sample_rate
    first, last = (round(seconds * rate) for seconds in (options.start, options.start + options.prompt))
    recordings = [to_int16(load(path, rate)) for path in options.recordings]
    prompts = [recording[first:last] for recording in recordings]
    playback = samplernn.stream(
        checkpoint, options.duration, prompt=prompts, temperature=options.temperature, on_trap="rewind"
    )
    generated = np.concatenate(list(playback), axis=1)
    pictures = {}
    for path, recording, prompt, audio in zip(
        options.recordings, recordings, prompts, generated, strict=True
    ):
        pictures[f"{path.stem}: the prompt, then what the model plays"] = np.concatenate([prompt, audio])
        pictures[f"{path.stem}: as recorded"] = recording[first : last + len(audio)]
    figure = plots.spectrograms(pictures, rate)
    for axis in figure.axes[: len(pictures)]:
        axis.axvline(options.prompt, color="white", linestyle="--", linewidth=1)
    plots.save(figure, options.out)


if __name__ == "__main__":
    main()
