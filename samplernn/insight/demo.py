"""`samplernn demo`: the whole path, from the embedded clips to new audio, in one to three minutes."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import yaml

from samplernn import plots
from samplernn.audio.corpus import prepare
from samplernn.audio.io import load as load_audio
from samplernn.audio.io import to_int16
from samplernn.audio.split import Split, locate
from samplernn.config import Config, UserError, from_dict, presets
from samplernn.generation.files import output_paths, write
from samplernn.generation.playback import Generator
from samplernn.generation.request import Output, Request
from samplernn.insight.report import report
from samplernn.model.checkpoint import load
from samplernn.training import run
from samplernn.training.folder import free_name, tensorboard
from samplernn.training.scoring import Score, table

DURATION = 4.0
NUM = 3


def clips() -> Path:
    """The folder of the embedded clips."""
    return Path(str(resources.files("samplernn"))) / "clips"


def demo(out: str | Path = "demo-output", config: Config | None = None, steps: int | None = None) -> Score:
    """Train on the embedded clips, judge on held-out clips, generate, draw, report.

    Args:
        out: new audio, a picture and a report go here.
        config: default: the preset `demo`.
        steps: to train; default: those of the configuration.

    Returns:
        The score on the test split.
    """
    out = Path(out)
    config = config or from_dict(Config, yaml.safe_load(presets()["demo"].read_text("utf-8")))
    if steps is not None:
        config = replace(config, trainer=replace(config.trainer, max_steps=steps))
    paths = output_paths(out, NUM, overwrite=True)  # raises, before minutes go by, if they cannot be there
    outcome = run.start(clips(), config, free_name(Path("demo")))
    checkpoint = load(outcome.folder)
    run.say(f"generating {NUM} x {DURATION:.0f} s …")
    generator = Generator(checkpoint)
    num_samples = round(DURATION * generator.sample_rate)
    temperature = config.samples.temperatures[:1]
    request = Request(num_samples, streams=tuple(range(NUM)), temperature=temperature)
    seconds = write(generator, request, paths, Output()).seconds
    picture = out / "spectrograms.png"
    try:
        _draw(checkpoint.split, config, paths, picture)
    except UserError as error:
        run.say(str(error))
    page = report(outcome.folder, out / "report.html")
    rate = NUM * num_samples / seconds
    print(
        f"\n{table(outcome.validation, outcome.test)}\n{outcome.test.verdict}.\n\n"
        f"generated {NUM} x {DURATION:.0f} s at {rate:,.0f} samples/s "
        f"({rate / NUM / generator.sample_rate:.2f}x real time each):\n"
        + "".join(f"  {path}\n" for path in paths)
        + (f"picture:\n  {picture}\n" if picture.exists() else "")
        + f"report, to see and hear how it learned (any browser, no network):\n  {page}\n\n"
        f"so little training teaches it timbre, not yet form. Next:\n"
        f"  samplernn generate {outcome.folder} --duration 30 --temperature 0.9\n"
        f"  samplernn audition {outcome.folder}\n"
        f"  samplernn train YOUR_FOLDER\n"
        f"  {tensorboard(outcome.folder.parent)}"
    )
    return outcome.test


def _draw(split: dict[str, list[list[object]]], config: Config, paths: list[Path], picture: Path) -> None:
    """Generated audio above held-out audio."""
    corpus = prepare(clips(), config.data)
    rate = config.data.sample_rate
    drawn = {f"generated: {path.name}": to_int16(load_audio(path, rate)) for path in paths}
    for file, start, stop in locate(corpus, Split.from_dict(split).test)[:2]:
        drawn[f"held-out: {file.path}"] = corpus.read(file, start, min(stop, start + round(DURATION * rate)))
    plots.save(plots.spectrograms(drawn, rate), picture)
