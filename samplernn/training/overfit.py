"""`samplernn train FOLDER --overfit-check`: do these options learn at all?

A network that works learns a few seconds of audio by heart within a minute. One that does not will learn
nothing from hours of audio either, and a minute is the cheaper way to find out.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import LambdaCallback
from numpy.typing import NDArray

from samplernn.audio.corpus import Corpus, prepare
from samplernn.audio.decoding import Decoded
from samplernn.audio.io import AudioError, to_int16
from samplernn.audio.lanes import training_lanes
from samplernn.audio.scan import find
from samplernn.audio.sinks import FileSink
from samplernn.audio.spectrum import level_db
from samplernn.config import Config, DataConfig, UserError, one_line
from samplernn.messages import say
from samplernn.model.baselines import BaselineBits, baseline_bits
from samplernn.training.callbacks import Stopping
from samplernn.training.data import EvaluationLoader, LaneLoader
from samplernn.training.scoring import pair_counts, score
from samplernn.training.trainer import make_trainer, silence_lightning
from samplernn.training.trial import trial_module

MAX_TIME, MAX_SECONDS = "00:00:01:00", 60.0
_CLIP_SECONDS, _SHORT_SECONDS = 4.0, 1.0
_SEARCHED_FILES, _SEARCHED_BLOCKS = 100, 60
"""Of a folder, and of each file (a block is a second): for something that can be heard."""
_SILENT_DB = -60.0
_LANES, _CHUNK_SAMPLES, _WARMUP_STEPS = 8, 256, 20
"""Small steps, and many: on a CPU they teach more in a minute than large ones."""
_EARLY_END_SHARE = 0.75
"""Fewer bits than this share of the previous-sample baseline end the check early."""
_HEALTHY_SHARE = 0.9
"""At the end of the time, so much is clearly below."""
_DIVERGED_BITS = 0.1
"""So many bits more than at the beginning are no accident."""
_FEW_STEPS = 100
_LINE_SECONDS = 5.0


class Clip(NamedTuple):
    """A few seconds of one file."""

    path: str
    """Relative to the folder."""
    audio: NDArray[np.int16]
    """``[num_samples]``."""


@dataclass(frozen=True)
class OverfitCheck:
    """What a short training on a clip came to. Bits are per sample of the whole clip."""

    path: str
    """Of the file that the clip is from."""
    config: Config
    """As it was trained."""
    bits_before: float
    """Of the untrained network."""
    bits: float
    """In the end."""
    baselines: BaselineBits
    """That have counted the clip itself."""
    steps: int
    seconds: float

    @property
    def is_healthy(self) -> bool:
        """Whether the network came clearly below the previous-sample baseline."""
        return self.bits < _HEALTHY_SHARE * self.baselines.previous_sample

    @property
    def verdict(self) -> str:
        """One line: what was reached, and what to try if that is not enough."""
        lr, previous = self.config.optim.lr, self.baselines.previous_sample
        reached = (
            f"{self.bits_before:.2f} -> {self.bits:.2f} bits per sample in {self.seconds:.0f} s "
            f"({self.steps} steps) on {one_line(self.path)}; previous sample: {previous:.2f}"
        )
        if self.is_healthy:
            return f"healthy: {reached}"
        if not self.bits < self.bits_before + _DIVERGED_BITS:  # or not a number
            return f"not healthy, it diverges: {reached}. Try a lower rate, --optim.lr {lr / 10:.2g}"
        if self.steps < _FEW_STEPS:
            return f"not healthy, too slow to tell: {reached}. Try --config small, or a machine with a GPU"
        rate = f"a higher or lower --optim.lr (it is {lr:.2g}); if --config small passes, it is not the audio"
        return f"not healthy, it learns too little: {reached}. Try {rate}"


def overfit_check(folder: str | Path, config: Config | None = None, quiet: bool = False) -> OverfitCheck:
    """Train the configured network on a few seconds of one file, for a minute at most; nothing is kept.

    Model, precision, learning rate and the rest of the optimizer are those of the configuration, and so is a
    `trainer.max_time` below a minute; lanes, chunks, schedule and devices (one) are the check's own.

    Args:
        folder: of the audio.
        config: of the run to try; None: the defaults.
        quiet: do not say how it goes.

    Raises:
        UserError: no such folder, nothing usable in it, or an option that Lightning refuses.
        Interrupted: a signal stopped it.
    """
    silence_lightning()
    chosen = config or Config()
    clip = find_clip(Path(folder).absolute(), chosen.data.sample_rate)
    tried = _small_steps(chosen, clip)
    with tempfile.TemporaryDirectory(prefix="samplernn-", ignore_cleanup_errors=True) as place:
        return _train(tried, clip, _as_corpus(clip, tried.data.sample_rate, Path(place)), quiet)


def find_clip(folder: Path, sample_rate: int) -> Clip:
    """The loudest seconds of the first file that has some; of many short files the longest.

    Args:
        folder: of the audio.
        sample_rate: Hz.

    Raises:
        UserError: no such folder, or nothing in it that is audio and can be heard.
    """
    problems: list[str] = []
    longest: Clip | None = None
    for path in find(folder).paths[:_SEARCHED_FILES]:
        name = path.relative_to(folder).as_posix()
        try:
            blocks = map(to_int16, islice(Decoded(path, sample_rate), _SEARCHED_BLOCKS))
            audio = _loudest(np.concatenate(list(blocks)), round(_CLIP_SECONDS * sample_rate))
        except AudioError as error:
            problems.append(f"{name}: {error.problem}")
            continue
        if level_db(audio) < _SILENT_DB:
            problems.append(f"{name}: is silent")
            continue
        if longest is None or len(audio) > len(longest.audio):
            longest = Clip(name, audio)
        if len(audio) >= _SHORT_SECONDS * sample_rate:
            break
    if longest is None:
        raise UserError(f"{folder}: no audio that can be used: {'; '.join(problems[:3]) or 'no files'}")
    return longest


def _loudest(audio: NDArray[np.int16], length: int) -> NDArray[np.int16]:
    """The stretch of that many samples with the most energy, in steps of a quarter; or all there is."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
    starts = np.arange(0, max(1, len(audio) - length + 1), max(1, length // 4))
    stops = np.minimum(starts + length, len(audio))
    start = int(starts[np.argmax(energy[stops] - energy[starts])])
    return audio[start : start + length]


def _small_steps(config: Config, clip: Clip) -> Config:
    """The configuration with the lanes, chunks, schedule and limits of the check.

    Raises:
        UserError: the clip is shorter than a chunk.
    """
    lookback, num_samples = config.model.lookback, len(clip.audio)
    tbptt_len = max(1, round(_CHUNK_SAMPLES / lookback)) * lookback
    if num_samples < tbptt_len:
        raise UserError(
            f"{clip.path}: {num_samples} samples are too few to learn, and no file has more: add longer ones"
        )
    lanes = min(_LANES, num_samples // tbptt_len)
    segment_duration = num_samples / lanes / config.data.sample_rate
    trainer = config.trainer
    return replace(
        config,
        data=replace(config.data, batch_size=lanes, tbptt_len=tbptt_len, segment_duration=segment_duration),
        optim=replace(config.optim, schedule="constant", warmup_steps=_WARMUP_STEPS),
        trainer=replace(
            trainer,
            devices=1,
            num_nodes=1,
            max_steps=-1,
            max_epochs=-1,
            max_time=trainer.max_time if trainer.max_seconds < MAX_SECONDS else MAX_TIME,
            accumulate_grad_batches=1,
        ),
    )


def _as_corpus(clip: Clip, sample_rate: int, place: Path) -> Corpus:
    """The clip as a corpus of its own, in a folder that will be removed."""
    audio = place / "audio"
    audio.mkdir()
    with FileSink(audio / "clip.wav", sample_rate, len(clip.audio)) as sink:
        sink.write(clip.audio)
    data = DataConfig(sample_rate=sample_rate, cache_dir=str(place / "cache"))
    return prepare(audio, data, progress=False)


def _train(config: Config, clip: Clip, corpus: Corpus, quiet: bool) -> OverfitCheck:
    """Train until the bits of a pass over the clip are few enough or not a number, or time is over."""
    pl.seed_everything(config.seed_everything, verbose=False)
    # Whole steps only, so that every lane has the same to read.
    step_samples = config.data.lanes * config.data.tbptt_len
    spans = [(corpus.files[0], 0, corpus.num_samples // step_samples * step_samples)]
    lanes = training_lanes(corpus, spans, config.data, config.seed_everything)
    module = trial_module(config, corpus, lanes)
    codec = module.facts.codec
    counts = pair_counts(corpus, spans, codec, module.model.head)
    baselines = baseline_bits(counts, counts)

    def bits() -> float:
        return score(module.model, EvaluationLoader(lanes, codec)).bits_per_sample

    bits_before = bits()
    if not quiet:
        say(
            f"{one_line(clip.path)}: {spans[0][2] / corpus.sample_rate:.1f} s to learn, in at most "
            f"{config.trainer.max_seconds:.0f} s; bits per sample: untrained {bits_before:.2f}, "
            f"unigram {baselines.unigram:.2f}, previous sample {baselines.previous_sample:.2f}"
        )
    said_at = 0.0

    def after_pass(trainer: pl.Trainer, _: pl.LightningModule) -> None:
        nonlocal said_at
        bits, seconds = module.read_train_bits().bits_per_sample, module.clock.seconds
        trainer.should_stop |= bits < _EARLY_END_SHARE * baselines.previous_sample or not math.isfinite(bits)
        if not quiet and seconds - said_at >= _LINE_SECONDS:
            said_at = seconds
            say(f"  {seconds:3.0f} s  step {trainer.global_step}  {bits:.2f} bits")

    callbacks = [Stopping(save=lambda trainer: None), LambdaCallback(on_train_epoch_end=after_pass)]
    trainer = make_trainer(config, callbacks)
    trainer.fit(module, train_dataloaders=LaneLoader(lanes, codec))
    seconds = module.clock.seconds
    return OverfitCheck(clip.path, config, bits_before, bits(), baselines, trainer.global_step, seconds)
