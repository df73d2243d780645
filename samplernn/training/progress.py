"""The progress display: bits now and best, samples per second, time left; on standard error."""

from __future__ import annotations

import math
import sys
import time

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from samplernn.model.baselines import BaselineBits, verdict
from samplernn.training.callbacks import Metrics, StepCallback
from samplernn.training.data import lane_loader
from samplernn.training.module import TrainingModule

_PLAIN_SECONDS = 10.0
"""Seconds between lines where standard error is not a terminal."""


_CLEARLY_WORSE_BITS = 0.1
"""A validation this much above the best one is no noise."""


class ProgressDisplay(StepCallback):
    """A live bar on a terminal, otherwise a line every ten seconds; a line for each validation.

    Only the first process has one.

    Args:
        metrics: where the numbers come from.
        baselines: on the validation audio.
        sample_rate: Hz.
    """

    def __init__(self, metrics: Metrics, baselines: BaselineBits, sample_rate: int) -> None:
        self._metrics = metrics
        self._baselines = baselines
        self._sample_rate = sample_rate
        self._console = Console(file=sys.stderr, highlight=False)
        self._bar: Progress | None = None
        self._printed_at = 0.0

    def before_training(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            self._bar.add_task("starting", total=1.0)
            self._bar.start()

    def after_step(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        due = time.monotonic() - self._printed_at >= (0.2 if self._bar else _PLAIN_SECONDS)
        if not due or "train/bits_per_sample" not in self._metrics.latest:
            return
        self._printed_at = time.monotonic()
        text, progress = self._describe(trainer, module), module.progress()
        if self._bar is None:
            self._console.print(text, soft_wrap=True)
        else:
            total = None if progress is None else 1.0
            self._bar.update(self._bar.task_ids[0], description=text, completed=progress or 0.0, total=total)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=f"step {trainer.global_step}: validating …")
        else:
            self._console.print(f"step {trainer.global_step:>7}  validating …")

    def after_validation(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        bits = module.validation_bits
        best = "  (best so far)" if bits <= module.best_bits else f"  (best {module.best_bits:.3f})"
        train_bits = self._metrics.latest.get("train/bits_per_sample", math.nan)
        said = diagnosis(bits, module.best_bits, train_bits) or verdict(bits, self._baselines)
        when = f"step {trainer.global_step:>7}  {_clock(module.clock.seconds)}"
        self._console.print(f"{when}  validation {bits:.3f} bits{best}: {said}", soft_wrap=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _describe(self, trainer: pl.Trainer, module: TrainingModule) -> str:
        latest = self._metrics.latest
        now = latest.get("train/bits_per_sample", math.nan)
        best = "" if math.isinf(module.best_bits) else f", best {module.best_bits:.3f}"
        speed = latest.get("train/samples_per_s", 0)
        skipped = module.gradients.latest.skipped
        skips = f", {skipped} steps skipped" if skipped else ""
        progress = module.progress()
        left = ""
        if progress:
            left = f"  {_clock(module.clock.seconds * (1 - progress) / progress)} left"
        return (
            f"epoch {lane_loader(trainer).epoch}  step {trainer.global_step}  {now:.3f} bits now{best} "
            f"(previous sample {self._baselines.previous_sample:.3f}){skips}  {speed:,.0f} samples/s "
            f"({speed / self._sample_rate:,.1f}x real time)  {_clock(module.clock.seconds)}{left}"
        )


def diagnosis(validation_bits: float, best_bits: float, train_bits: float) -> str | None:
    """What it means that a validation is clearly worse than the best one; None if it is not, or no number."""
    if math.isnan(validation_bits) or validation_bits <= best_bits + _CLEARLY_WORSE_BITS:
        return None
    if train_bits < best_bits:
        return "it memorises its training audio; the best checkpoint is kept. More audio would help"
    return "training has become unstable; the best checkpoint is kept. A lower optim.lr would help"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
