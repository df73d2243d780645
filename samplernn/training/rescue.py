"""What a run that fails still saves: the state after its last whole step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl

from samplernn.training.callbacks import Interrupted, is_validation_next
from samplernn.training.module import Moment, TrainingModule
from samplernn.training.processes import say

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

    It stands twice among the callbacks: before what logs, for logging, too, may fail (then a row is missing,
    and the next one is of more steps), and right after it, so that what is logged is not counted again.

    Args:
        save: writes the last checkpoint.
    """

    def __init__(self, save: Callable[[pl.Trainer], None]) -> None:
        self._save = save
        self._step: _WholeStep | None = None
        self._saving: _WholeStep | None = None
        self._last_batch = -1
        """The batch with which the optimizer took its last step."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        self._step, self._last_batch = None, trainer.fit_loop.total_batch_idx

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.fit_loop.total_batch_idx != self._last_batch or trainer.world_size > 1:
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
        self._saving, self._step = self._step, None
        if self._saving is None or trainer.should_stop or getattr(exception, "saved", False):
            return
        try:
            pl_module.return_to(self._saving.moment)
            self._save(trainer)
        except Exception as error:  # such as the one that has ended the run
            said = f"step {self._saving.number} could not be saved: {error}"
        else:
            said = f"saved as of step {self._saving.number}"
            if isinstance(exception, Interrupted):
                exception.saved = True
                return
        with contextlib.suppress(OSError):  # nobody listens any more, which may be why it ended
            say(said)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._saving is not None:
            checkpoint["loops"]["fit_loop"] = self._saving.loops


def _begin_validation(loops: dict[str, Any]) -> None:
    """Let Lightning find, when it resumes, that a validation had been begun and has to be done."""
    progress = loops[_VALIDATION]
    done = progress["total"]["completed"]
    progress["total"].update(ready=done + 1, started=done + 1, processed=done)
    progress["current"] = dict.fromkeys(progress["current"], 0)
    progress["is_last_batch"] = False
