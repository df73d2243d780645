"""What happens around the steps: stopping, saving, metrics. Audio and pictures: see `samples`."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import sys
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
from samplernn.training.loggers import MetricsFile
from samplernn.training.module import TrainingModule
from samplernn.training.processes import is_first, stop_signals

_SKIPS_IN_A_ROW = 10
"""So many steps skipped one after the other, and training is given up."""
_SCALER_SKIPS = 16
"""So many more are no sign of harm while the scaler of 16-mixed halves its 65536 to what fits."""
_SAME_CTRL_C = 0.5
"""Seconds within which a second SIGINT is the first one once more."""


class Interrupted(BaseException):
    """A signal ended the run; like KeyboardInterrupt no error, which a library might catch and pass over.

    Args:
        signal_number: which.
        saved: everything up to the last completed step is in `last.ckpt`.
        run: name of the run, for `--resume --name`.
    """

    def __init__(self, signal_number: int, saved: bool, run: str = "") -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.saved = saved
        self.run = run


class Stopping(pl.Callback):
    """Ends the run at its planned end, when it no longer improves or only skips its steps, or, saved, at the
    step after a signal.

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
        self._step = 0
        # Taken here, before Lightning sets its own, and put back at the end.
        self._handlers = signals.Handlers(stop_signals())
        self.reason = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._module, self._step = pl_module, trainer.global_step
        self._handlers.replace(self._note)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        agreed = pl_module.agreement.agreed
        if agreed.must_stop and not is_validation_next(trainer):
            self._save(trainer)
            raise Interrupted(self._signal, saved=True)
        config, loader = pl_module.config.trainer, lane_loader(trainer)
        epochs_done = loader.epoch + (loader.position >= len(loader))
        reached = {
            "max_steps": 0 < config.max_steps <= trainer.global_step,
            "max_epochs": 0 < config.max_epochs <= epochs_done,
            "max_time": agreed.seconds >= config.max_seconds,
        }
        for limit, is_reached in reached.items():
            if is_reached:
                self._stop(trainer, f"trainer.{limit} is reached")
        skipped = pl_module.gradients.latest.in_a_row
        if skipped >= _SKIPS_IN_A_ROW + (_SCALER_SKIPS if config.precision == "16-mixed" else 0):
            self._stop(
                trainer,
                f"the loss or gradients of {skipped} steps in a row were not finite, and no step was taken; "
                "a lower optim.lr or trainer.gradient_clip_val, or another trainer.precision, may help",
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        patience = pl_module.config.optim.patience
        if not math.isfinite(pl_module.validation_bits):
            self._stop(trainer, "it has diverged; a lower optim.lr may help")
        elif 0 < patience <= pl_module.validations_since_best:
            pl_module.validations_since_best = 0  # resumed on purpose, it gets another chance
            self._stop(trainer, "it no longer improves")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._handlers.put_back()

    def _stop(self, trainer: pl.Trainer, reason: str) -> None:
        self.reason = self.reason or reason
        trainer.should_stop = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        assert self._module is not None
        if number == signal.SIGINT and self._module.stop_requested:
            if time.monotonic() - self._noted_at > _SAME_CTRL_C:
                raise Interrupted(number, saved=False)
            return
        self._noted_at = time.monotonic()
        self._signal = signal.Signals(number)
        self._module.stop_requested = True
        if number == signals.HANGUP:
            signals.let_go_of_terminal()
        if is_first():
            said = "\nstopping after this step; Ctrl-C again stops at once"
            with contextlib.suppress(OSError):  # nobody is there any more: no reason not to save
                print(said, file=sys.stderr, flush=True)


def is_validation_next(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after the batch that it has just trained on.

    Nothing is saved between the two: a run that was resumed there would miss the validation.
    """
    every = trainer.val_check_batch
    assert every is not None
    return (trainer.fit_loop.total_batch_idx + 1) % every == 0


class Checkpoints(pl.Callback):
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
        self._is_accumulating = False
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step

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
        self._is_accumulating = trainer.global_step == self._step
        if self._is_accumulating:
            return
        self._step = trainer.global_step
        self._is_due |= self._every_steps > 0 and trainer.global_step % self._every_steps == 0
        if self._is_due and not is_validation_next(trainer):
            self.save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if pl_module.validation_bits <= pl_module.best_bits:
            self._write(trainer, "best.ckpt")
        if self._is_due and not self._is_accumulating:
            self.save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt`; all processes call it."""
        self._write(trainer, "last.ckpt", keep="last-previous.ckpt")
        self._saved_at = time.monotonic()
        self._has_asked = self._is_due = False

    def _write(self, trainer: pl.Trainer, name: str, keep: str | None = None) -> None:
        path, partial = self.folder / name, self.folder / f".{name}.partial"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            if keep and path.exists():
                other = self.folder / keep
                storage.patiently(lambda: _link(path, other), replaces=True)
            storage.replace(partial, path)
        trainer.strategy.barrier()


def _link(path: Path, other: Path) -> None:
    """Make `other` a second name of a file, so that the first can be replaced and never be missing."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:  # a file system without links
        shutil.copyfile(path, other)


class Metrics(pl.Callback):
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
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._step = time.monotonic(), trainer.global_step
        assert isinstance(pl_module, TrainingModule)
        for logger in trainer.loggers:
            logger.log_hyperparams({**to_dict(pl_module.config), "baselines": self._baselines, **self._about})
            if isinstance(logger, MetricsFile):
                logger.rewind(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        if self._step % pl_module.config.trainer.log_every_n_steps and not trainer.should_stop:
            return
        count = pl_module.read_train_bits()
        seconds = time.monotonic() - self._since
        self._since = time.monotonic()
        gradients = pl_module.gradients.read()
        metrics = {
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "skipped_steps": gradients.skipped,
            **gradients.norms,
            **memory_mb(pl_module.device),
        }
        if count.num_samples:
            metrics["train/bits_per_sample"] = count.bits_per_sample
            metrics["train/samples_per_s"] = count.num_samples / max(seconds, 1e-9)
        self._publish(trainer, metrics)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused_at = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._publish(
            trainer,
            {
                "validation/bits_per_sample": pl_module.validation_bits,
                "validation/best_bits_per_sample": pl_module.best_bits,
                **{f"validation/{name}_bits_per_sample": bits for name, bits in self._baselines.items()},
            },
        )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._paused_at is not None:  # the time of validation and samples is not training time
            self._since += time.monotonic() - self._paused_at
            self._paused_at = None

    def _publish(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        self.latest.update(metrics)
        assert isinstance(trainer.lightning_module, TrainingModule)
        place = {"epoch": lane_loader(trainer).epoch, "train/seconds": trainer.lightning_module.clock.seconds}
        for logger in trainer.loggers:
            logger.log_metrics({**place, **metrics}, step=trainer.global_step)
