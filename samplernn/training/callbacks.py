"""What happens around the steps: stopping, saving, metrics. Audio and pictures: see `samples`."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from samplernn import signals, storage
from samplernn.config import Config, to_dict
from samplernn.model.baselines import BaselineBits
from samplernn.training.data import lane_loader
from samplernn.training.hardware import memory_mb
from samplernn.training.module import TrainingModule
from samplernn.training.processes import say, stop_signals

_SKIPS_IN_A_ROW = 10
"""After so many skipped steps one after the other, training is given up."""
_SCALER_SKIPS = 16
"""So many more are no sign of harm while the scaler of 16-mixed halves its 65536 to what fits."""
_SAME_CTRL_C_SECONDS = 0.5
"""A second SIGINT within this time is the first one once more."""


class Interrupted(BaseException):
    """A signal ended the run; like KeyboardInterrupt no error, which a library might catch and pass over.

    Args:
        signal_number: which.
        saved: everything up to the last completed step is in `last.ckpt`.
    """

    run = ""
    """Name of the run, for `--resume --name`."""

    def __init__(self, signal_number: int, saved: bool) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.saved = saved


class StepCallback(pl.Callback):
    """A callback that hears of whole optimizer steps, however many batches each one accumulates."""

    is_mid_step = False
    """The last batch did not complete a step."""
    _step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._step = trainer.global_step
        self.before_training(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.is_mid_step = trainer.global_step == self._step
        if not self.is_mid_step:
            self._step = trainer.global_step
            self.after_step(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.after_validation(trainer, pl_module)

    def before_training(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Training begins, or goes on from a checkpoint."""

    def after_step(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """A step is complete; its validation, if one is due, comes later."""

    def after_validation(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """A validation is complete."""


class Stopping(StepCallback):
    """Ends the run at its planned end, when it no longer improves or only skips its steps, or after a signal.

    A planned end goes through `trainer.should_stop`, which makes Lightning validate once more even
    in the middle of an epoch. A signal is only noted by its handler; all processes learn of it in
    the next steps (`Agreement`), save together and leave. A second SIGINT stops at once (see `Rescue`);
    one within half a second counts as the first, for a terminal and a launcher may both pass it on.

    Args:
        save: writes the last checkpoint; called on all processes.
    """

    def __init__(self, save: Callable[[pl.Trainer], None]) -> None:
        self._save = save
        self._signal = signal.SIGTERM
        self._noted_at = 0.0
        self._module: TrainingModule | None = None
        # Taken here, before Lightning sets its own, and put back at the end.
        self._handlers = signals.Handlers(stop_signals())
        self.reason = ""

    def before_training(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self._module = module
        self._handlers.replace(self._note)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        agreed, config, loader = module.agreement.agreed, module.config.trainer, lane_loader(trainer)
        if agreed.must_stop and not is_validation_next(trainer):
            self._save(trainer)
            raise Interrupted(self._signal, saved=True)
        epochs_done = loader.epoch + (loader.position >= len(loader))
        if 0 < config.max_steps <= trainer.global_step:
            self._stop(trainer, "trainer.max_steps is reached")
        if 0 < config.max_epochs <= epochs_done:
            self._stop(trainer, "trainer.max_epochs is reached")
        if agreed.seconds >= config.max_seconds:
            self._stop(trainer, "trainer.max_time is reached")
        skipped = module.gradients.latest.in_a_row
        if skipped >= _SKIPS_IN_A_ROW + (_SCALER_SKIPS if config.precision == "16-mixed" else 0):
            self._stop(
                trainer,
                f"the loss or gradients of {skipped} steps in a row were not finite, and no step was taken; "
                "a lower optim.lr or trainer.gradient_clip_val, or another trainer.precision, may help",
            )

    def after_validation(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if not math.isfinite(module.validation_bits):
            self._stop(trainer, "it has diverged; a lower optim.lr may help")
        elif 0 < module.config.optim.patience <= module.validations_since_best:
            module.validations_since_best = 0  # resumed on purpose, it gets another chance
            self._stop(trainer, "it no longer improves")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._handlers.put_back()

    def _stop(self, trainer: pl.Trainer, reason: str) -> None:
        self.reason = self.reason or reason
        trainer.should_stop = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        assert self._module is not None
        if number == signal.SIGINT and self._module.stop_requested:
            if time.monotonic() - self._noted_at > _SAME_CTRL_C_SECONDS:
                raise Interrupted(number, saved=False)
            return
        self._noted_at = time.monotonic()
        self._signal = signal.Signals(number)
        self._module.stop_requested = True
        signals.let_go_of_terminal(number)
        with contextlib.suppress(OSError):  # nobody is there any more: no reason not to save
            say("\nstopping after this step; Ctrl-C again stops at once")


def is_validation_next(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after the batch that it has just trained on.

    Nothing is saved between the two: a run that was resumed there would miss the validation.
    """
    every = trainer.val_check_batch
    assert every is not None
    return (trainer.fit_loop.total_batch_idx + 1) % every == 0


class Checkpoints(StepCallback):
    """Keeps `best.ckpt` (lowest validation bits) and `last.ckpt` with the one before it.

    A checkpoint appears whole or not at all: it is written beside its place, flushed to the disk
    and renamed. What is due at a validation is written after it and after its samples, so this callback
    comes last.

    Args:
        folder: of the checkpoints.
        config: of the run.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self._every_steps = config.checkpoint.every_steps
        self._every_seconds = config.checkpoint.every_minutes * 60
        self._saved_at = time.monotonic()
        self._has_asked = False
        self._is_due = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        waited = time.monotonic() - self._saved_at
        pl_module.save_requested = 0 < self._every_seconds <= waited and not self._has_asked
        self._has_asked |= pl_module.save_requested  # once: the answer takes a step among several processes

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._is_due |= pl_module.agreement.agreed.must_save
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self._is_due |= self._every_steps > 0 and trainer.global_step % self._every_steps == 0
        if self._is_due and not is_validation_next(trainer):
            self.save_last(trainer)

    def after_validation(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if module.validation_bits <= module.best_bits:
            trainer.save_checkpoint(self.folder / "best.ckpt")
        if self._is_due and not self.is_mid_step:
            self.save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt`; all processes call it."""
        draft, last, before = (self.folder / f"{name}.ckpt" for name in (".draft", "last", "last-previous"))
        trainer.save_checkpoint(draft)
        if trainer.is_global_zero:
            if last.exists():  # gets a second name, so that it can be replaced and is never missing
                storage.patiently(lambda: _link(last, before), replaces=True)
            storage.replace(draft, last)
        trainer.strategy.barrier()
        self._saved_at = time.monotonic()
        self._has_asked = self._is_due = False


def _link(path: Path, other: Path) -> None:
    """Give a file another name, too."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:  # a file system without links
        shutil.copyfile(path, other)


class Metrics(StepCallback):
    """Publishes training metrics at a fixed interval, and every validation, to all loggers.

    Args:
        baselines: on the validation audio; published with every validation, as lines to compare with.
        about: what the run is made of besides its options; published once, with them.
    """

    def __init__(self, baselines: BaselineBits, about: Mapping[str, Any]) -> None:
        self._baselines, self._about = baselines.to_dict(), about
        self.latest: dict[str, float] = {}
        self._since = time.monotonic()
        self._paused_at: float | None = None

    def before_training(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self._since = time.monotonic()
        for logger in trainer.loggers:
            logger.log_hyperparams({**to_dict(module.config), "baselines": self._baselines, **self._about})

    def after_step(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if trainer.global_step % module.config.trainer.log_every_n_steps and not trainer.should_stop:
            return
        count = module.read_train_bits()
        seconds = time.monotonic() - self._since
        self._since = time.monotonic()
        gradients = module.gradients.read()
        metrics = {
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "skipped_steps": gradients.skipped,
            **gradients.norms,
            **memory_mb(module.device),
        }
        if count.num_samples:
            metrics["train/bits_per_sample"] = count.bits_per_sample
            metrics["train/samples_per_s"] = count.num_samples / max(seconds, 1e-9)
        self._publish(trainer, module, metrics)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused_at = time.monotonic()

    def after_validation(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        bits = {"": module.validation_bits, "best_": module.best_bits}
        bits.update({f"{name}_": value for name, value in self._baselines.items()})
        metrics = {f"validation/{name}bits_per_sample": value for name, value in bits.items()}
        self._publish(trainer, module, metrics)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._paused_at is not None:  # the time of validation and samples is not training time
            self._since += time.monotonic() - self._paused_at
            self._paused_at = None

    def _publish(self, trainer: pl.Trainer, module: TrainingModule, metrics: dict[str, float]) -> None:
        self.latest.update(metrics)
        place = {"epoch": lane_loader(trainer).epoch, "train/seconds": module.clock.seconds}
        for logger in trainer.loggers:
            logger.log_metrics({**place, **metrics}, step=trainer.global_step)
