"""What a run that fails still saves: the state after its last whole step."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl

from samplernn.training.callbacks import Interrupted, is_validation_next
from samplernn.training.module import Moment, TrainingModule

_VALIDATION = "epoch_loop.val_loop.batch_progress"


class _WholeStep(NamedTuple):
    """What has changed since the last step, besides the weights and the optimizer, which have not."""

    number: int
    loops: dict[str, Any]
    """Where Lightning was."""
    moment: Moment
    """Where the module was."""


class Rescue(pl.Callback):
    """Saves `last.ckpt` when training, validation, or anything around them ends by an exception.

    Weights and optimizer change within a step's last part only, so from a step's end to that part of the next
    they are those of that step. All the rest is small, is noted at a step's end, and is put back before
    saving. If the step's validation was due, a resumed run begins with it.

    Nothing is saved when the exception comes while the weights change, when the run has come to its planned
    end (its last validation would be missed), nor among several processes, which would have to agree.

    It comes right after what logs: what is logged is not counted again. `first` comes before that, for
    logging, too, may fail; then a row is missing, and the next one is of more steps.

    Args:
        save: writes the last checkpoint.

    Attributes:
        first: a callback to be put first of all.
    """

    def __init__(self, save: Callable[[pl.Trainer], None]) -> None:
        self._save = save
        self.first = _AtStepEnd(self.note)
        self._step: _WholeStep | None = None
        self._step_before = 0
        self._is_saving = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_before = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        self._step = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.note(trainer, pl_module)

    def note(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where a step's end is, if a step was taken. It may be noted again."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step == self._step_before or trainer.world_size > 1:
            return
        if self._step is None:
            loops = copy.deepcopy(trainer.fit_loop.state_dict())
            if is_validation_next(trainer):
                _begin_validation(loops)
            self._step = _WholeStep(trainer.global_step, loops, pl_module.moment())
        self._step = self._step._replace(moment=pl_module.moment())

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if self._step is None or trainer.should_stop or getattr(exception, "saved", False):
            return
        number = self._step.number
        try:
            pl_module.return_to(self._step.moment)
            self._is_saving = True
            self._save(trainer)
        except Exception as error:  # such as the one that has ended the run
            _say(f"step {number} could not be saved: {error}")
            return
        finally:
            self._is_saving = False
        if isinstance(exception, Interrupted):
            exception.saved = True
        else:
            _say(f"saved as of step {number}")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._is_saving and self._step is not None:
            checkpoint["loops"]["fit_loop"] = self._step.loops


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more, which may be why it ended
        print(message, file=sys.stderr, flush=True)


class _AtStepEnd(pl.Callback):
    def __init__(self, note: Callable[[pl.Trainer, pl.LightningModule], None]) -> None:
        self._note = note

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._note(trainer, pl_module)


def _begin_validation(loops: dict[str, Any]) -> None:
    """Let Lightning find, when it resumes, that a validation had been begun and has to be done."""
    progress = loops[_VALIDATION]
    done = progress["total"]["completed"]
    progress["total"].update(ready=done + 1, started=done + 1, processed=done)
    progress["current"] = dict.fromkeys(progress["current"], 0)
    progress["is_last_batch"] = False
