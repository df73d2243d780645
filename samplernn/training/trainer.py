"""Lightning's Trainer as a run needs it, on the devices that there are."""

from __future__ import annotations

import datetime
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from samplernn import storage
from samplernn.config import Config, UserError
from samplernn.training.precision import precision
from samplernn.training.processes import launch

_SILENT: dict[str, Any] = {
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Options of a Trainer whose checkpoints and progress bar are ours."""


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint, whole or not at all, beside its place and until it is on the disk.

    Lightning's own makes a copy in memory, writes that to the folder for temporary files, which may be
    small, and moves it from there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises OSError, with the path, if it cannot be written; then nothing is left of it."""
        try:
            storage.write_to_disk(Path(path), lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch hides the first in the second
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from error
            raise


def make_trainer(
    config: Config, callbacks: list[pl.Callback] | None = None, loggers: list[Logger] | None = None
) -> pl.Trainer:
    """A Trainer with our callbacks; `Stopping` alone decides when it ends.

    Raises:
        UserError: Lightning refuses an option, or the lanes cannot be shared out evenly to the devices.
    """
    options = config.trainer
    try:
        devices, num_nodes = _devices(config)
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=_strategy(config, _count(config, devices) * num_nodes),
            precision=precision(config),
            max_epochs=-1,
            gradient_clip_val=options.gradient_clip_val,
            gradient_clip_algorithm=options.gradient_clip_algorithm,
            accumulate_grad_batches=options.accumulate_grad_batches,
            val_check_interval=options.val_check_interval * options.accumulate_grad_batches,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            logger=loggers or False,
            plugins=[CheckpointFile(), *_environment()],
            use_distributed_sampler=False,
            **_SILENT,
        )
    except UserError:
        raise
    except ImportError as error:  # of an accelerator that needs a library of its own
        needs = " ".join(str(error).split())
        raise UserError(f"trainer.accelerator {options.accelerator}: cannot be used here: {needs}") from error
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer.*: {' '.join(str(error).split())}") from error


def _devices(config: Config) -> tuple[int | str, int]:
    """Devices per machine, and machines: as configured, as a launcher has decided, or all that can be used.

    Raises:
        UserError: the configuration contradicts the launcher.
    """
    options, started = config.trainer, launch()
    if started is None:
        if options.num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes {options.num_nodes}: start one process per device with torchrun or srun "
                "(see README), which then also says how many machines there are"
            )
        if options.devices != "auto":
            return options.devices, 1
        # All, unless the lanes cannot be shared out evenly to so many.
        found, lanes = _count(config, "auto"), config.data.batch_size
        return next(n for n in range(found, 0, -1) if lanes == "auto" or lanes % n == 0), 1
    devices = started.devices if options.devices == "auto" else options.devices
    num_nodes = options.num_nodes if options.num_nodes > 1 else started.num_nodes
    needed = _count(config, devices) * num_nodes
    if needed != started.world_size:
        raise UserError(
            f"{started.world_size} processes were started, but trainer.devices {options.devices} on "
            f"{num_nodes} machines need {needed}: leave trainer.devices out"
        )
    return devices, num_nodes


def _environment() -> list[Any]:
    """What keeps Lightning from waiting for processes that nobody has started.

    It takes any process of a SLURM allocation of several tasks for one of several.
    """
    return [LightningEnvironment()] if launch() is None else []


def _strategy(config: Config, world_size: int) -> DDPStrategy | str:
    """DDP among several processes.

    Raises:
        UserError: the lanes cannot be shared out evenly.
    """
    lanes = config.data.batch_size
    if world_size == 1:
        return "auto"
    if lanes != "auto" and lanes % world_size:
        raise UserError(
            f"data.batch_size {lanes} cannot be shared out evenly to {world_size} devices: "
            f"take {-(-lanes // world_size) * world_size}"
        )
    # The only buffer is a constant table; gradients that live in the buckets save a copy.
    patience = datetime.timedelta(minutes=config.trainer.process_timeout_minutes)
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, timeout=patience)


def _count(config: Config, devices: int | str) -> int:
    """How many devices of this machine Lightning takes that for."""
    options: dict[str, Any] = {"accelerator": config.trainer.accelerator, "devices": devices}
    return pl.Trainer(**options, plugins=_environment(), logger=False, **_SILENT).num_devices


def silence_lightning() -> None:
    """Silence Lightning's notes that do not concern our user."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    # With weight norm, cuDNN's weights are made anew in each step.
    for message in (".*LeafSpec.*", ".*not part of single contiguous chunk of memory.*"):
        warnings.filterwarnings("ignore", message=message)
