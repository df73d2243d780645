"""A few steps of training, timed: module, loader and Trainer of a run, without what surrounds the steps."""

from __future__ import annotations

import time
from collections.abc import Sized
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback

from samplernn.audio.corpus import Corpus
from samplernn.audio.lanes import training_lanes
from samplernn.config import Config
from samplernn.model.checkpoint import Checkpoint
from samplernn.model.codec import Codec
from samplernn.model.network import SampleRNN
from samplernn.training.data import LaneLoader
from samplernn.training.module import TrainingModule
from samplernn.training.trainer import make_trainer, silence_lightning

_STEPS_PER_READING = 10
"""On a GPU, where the host runs ahead of it: waiting for it after each step would slow it down."""
_WARM_UP_SECONDS = 1.0
_MIN_READINGS, _MAX_READINGS = 2, 50


class Stopwatch:
    """Times steps until there are enough of them; those of the first second, at least one, do not count.

    Args:
        device: where the steps are computed; it is waited for before the clock is read.
        seconds: to measure, about.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.step_seconds: list[float] = []
        """Seconds per step: one reading each, on a GPU of several steps."""
        self._device, self._seconds = device, seconds
        self._steps_per_reading = 1 if device.type == "cpu" else _STEPS_PER_READING
        self._steps = 0
        self._started = self._since = time.perf_counter()
        self._is_warm = False

    def step_done(self) -> bool:
        """Call it after each step. Returns whether enough was measured."""
        self._steps += 1
        if self._steps % self._steps_per_reading:
            return False
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        now = time.perf_counter()
        if self._is_warm:
            self.step_seconds.append((now - self._since) / self._steps_per_reading)
        self._is_warm |= now - self._started >= min(_WARM_UP_SECONDS, self._seconds)
        self._since = now
        readings = len(self.step_seconds)
        measured = sum(self.step_seconds) * self._steps_per_reading
        return readings >= _MAX_READINGS or (readings >= _MIN_READINGS and measured >= self._seconds)


class Trial(NamedTuple):
    """What a few steps took."""

    model: SampleRNN
    """After the steps."""
    step_seconds: list[float]
    """Of a step, waiting for the loader included; see `Stopwatch`."""
    precision: str
    """What the Trainer calculated in."""


def train_briefly(config: Config, corpus: Corpus, seconds: float) -> Trial:
    """Train on all files of a corpus, on one device, and keep nothing.

    Args:
        config: of a run; its limits are not looked at.
        corpus: the audio.
        seconds: to measure, about.

    Raises:
        UserError: as `make_trainer`.
    """
    silence_lightning()
    pl.seed_everything(config.seed_everything, verbose=False)
    loader = whole_loader(config, corpus)
    module = trial_module(config, corpus, loader)
    watches: list[Stopwatch] = []

    def begin(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        watches.append(Stopwatch(module.device, seconds))

    def after_batch(trainer: pl.Trainer, *others: Any) -> None:
        trainer.should_stop |= watches[0].step_done()

    trainer = make_trainer(config, [LambdaCallback(on_train_start=begin, on_train_batch_end=after_batch)])
    trainer.fit(module, train_dataloaders=loader)
    return Trial(module.model, watches[0].step_seconds, str(trainer.precision))


def trial_module(config: Config, corpus: Corpus, steps: Sized) -> TrainingModule:
    """A module that trains on a corpus without being that of a run: split and baselines stay unknown.

    Args:
        config: of the model and its training.
        corpus: gives the gain.
        steps: of an epoch; their number counts.
    """
    facts = Checkpoint(config, {}, corpus.gain, pair_counts=np.zeros((0, 0), np.int64), split={})
    return TrainingModule(facts, planned_steps_per_epoch=len(steps))


def whole_loader(config: Config, corpus: Corpus) -> LaneLoader:
    """The loader of a run that trains on everything."""
    spans = [(file, 0, file.num_samples) for file in corpus.files]
    lanes = training_lanes(corpus, spans, config.data, config.seed_everything)
    return LaneLoader(lanes, Codec.of(config.model, corpus.gain))


def device_of(config: Config) -> torch.device:
    """Where a run of one process would train."""
    silence_lightning()
    return make_trainer(config).strategy.root_device
