"""The LightningModule: truncated backpropagation through time as ordinary training steps.

One chunk is one `training_step` under automatic optimisation, so clipping, accumulation, precision
and schedulers work as everywhere. The network's state travels from step to step, detached, in
`lane_state`; validation has its own.

A step whose loss or gradients are not finite is skipped (see `gradients`); a lane whose state is not
finite starts afresh.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from samplernn.config import Config, to_dict
from samplernn.model.checkpoint import ENTRY, Checkpoint
from samplernn.model.network import SampleRNN, State
from samplernn.training.agreement import Agreed, Agreement
from samplernn.training.data import lane_loader
from samplernn.training.gradients import GradientControl, fused_optimizer_works, keep_fused
from samplernn.training.loss import Batch, BitCount, chunk_nll
from samplernn.training.precision import precision

STATE = "lane_state"
"""Key of what only training needs, inside a checkpoint."""


class Moment(NamedTuple):
    """Where training stands besides weights and optimizer."""

    lane_state: State | None
    loader: dict[str, int]
    unread: list[tuple[Tensor, Tensor]]
    gradients: tuple[Tensor, Tensor]
    validation: tuple[float, float, int]
    """Last and best bits, and validations since the best."""


class TrainingModule(pl.LightningModule):
    """SampleRNN with its loss, optimizer and the state of its lanes.

    Args:
        facts: what a checkpoint of this run says beside the weights: configuration, gain, baselines,
            split. Its own weights are ignored.
        planned_steps_per_epoch: chunks per epoch, to plan a schedule by epochs.
    """

    def __init__(self, facts: Checkpoint, planned_steps_per_epoch: int) -> None:
        super().__init__()
        self.facts = facts
        self.config: Config = facts.config
        self.model = SampleRNN(self.config.model)
        self.averaged: SampleRNN | None = None
        """The same network with the moving average of its weights, if there is one."""
        if self.config.optim.ema_decay:
            self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.gradients = GradientControl(self.model, self.config.trainer.gradient_clip_parameters)
        self.planned_steps_per_epoch = planned_steps_per_epoch
        self.clock = Clock()
        self.agreement = Agreement()
        self.lane_state: State | None = None
        self.validation_bits = math.nan
        """Bits per sample of the last validation."""
        self.best_bits = math.inf
        """Lowest of all validations."""
        self.validations_since_best = 0
        self.stop_requested = False
        """This process was asked to stop (a signal)."""
        self.save_requested = False
        """A checkpoint is due by this process's clock."""
        self._validation_state: State | None = None
        self._validation_bits = BitCount()
        self._loader_state: dict[str, int] | None = None
        self._unread: list[tuple[Tensor, Tensor]] = []

    def on_train_start(self) -> None:
        """Restored lanes follow the model to its device and go on where they stood; the clock starts."""
        if self._loader_state is not None:
            lane_loader(self.trainer).load_state_dict(self._loader_state)
            self._loader_state = None
        if self.lane_state is not None:
            history, rnn = self.lane_state
            self.lane_state = State(history.to(self.device), tuple(tier.to(self.device) for tier in rnn))
        self.agreement = Agreement(self.clock.seconds)
        self.clock.start()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss in nats per real sample of all processes, for one chunk ``[B, T]``."""
        state = self.lane_state or self.model.initial_state(len(batch.reset))
        batch = batch._replace(reset=batch.reset | _spoilt_rows(state))
        nats, state = chunk_nll(self.model, batch, state)
        self.lane_state = state.detach()
        real = batch.mask.sum()
        everywhere = self._agree(real)
        self._unread.append((nats.detach(), real))
        # Lightning averages gradients over processes, so the sum of each counts world_size times. Added is
        # zero or, for a loss that is not finite, NaN: then the gradients of all processes have some too.
        weight = self.trainer.world_size + 0 * nats.detach()
        return nats * (weight / everywhere.clamp(min=1))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure and clip the gradients of all processes, and see to it that bad ones do no harm."""
        self.gradients.judge(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Let the average follow each step of the weights, faster at first."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.averaged is not None:
            step = self.global_step  # not yet counted
            decay = min(self.config.optim.ema_decay, (1 + step) / (10 + step))
            average, weights = (list(model.parameters()) for model in (self.averaged, self.model))
            get_ema_multi_avg_fn(decay)(average, weights, step)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the bits of one chunk of the walk over the validation files, as `evaluate` would.

        Not in the bfloat16 of training: bits should depend on the weights alone, not on the machine.
        """
        state = self._validation_state
        if state is None or batch_idx == 0:
            state = self.evaluated.initial_state(len(batch.reset))
        with torch.autocast(self.device.type, enabled=False):
            nats, self._validation_state = chunk_nll(self.evaluated, batch, state)
        self._validation_bits.add(nats.item(), int(batch.mask.sum()))

    def on_validation_epoch_end(self) -> None:
        """Sum over processes; keep the best."""
        self.validation_bits = self._everywhere(self._validation_bits).bits_per_sample
        self._validation_bits, self._validation_state = BitCount(), None
        is_best = self.validation_bits < self.best_bits
        self.validations_since_best = 0 if is_best else self.validations_since_best + 1
        self.best_bits = min(self.best_bits, self.validation_bits)

    def moment(self) -> Moment:
        """Where training stands now; nothing in it will change."""
        return Moment(
            self.lane_state,
            lane_loader(self.trainer).state_dict(),
            list(self._unread),
            self.gradients.counted(),
            (self.validation_bits, self.best_bits, self.validations_since_best),
        )

    def return_to(self, moment: Moment) -> None:
        """Stand there again. Weights and optimizer stay as they are."""
        self.lane_state, self._unread = moment.lane_state, list(moment.unread)
        lane_loader(self.trainer).load_state_dict(moment.loader)
        self.gradients.count_from(moment.gradients)
        self.validation_bits, self.best_bits, self.validations_since_best = moment.validation

    def read_train_bits(self) -> BitCount:
        """Bits of the lanes of all processes since the last call; all processes call it.

        Chunks whose loss is not finite do not count.
        """
        count = BitCount()
        for nats, real in self._unread:
            if math.isfinite(nats.item()):
                count.add(nats.item(), int(real))
        self._unread.clear()
        return self._everywhere(count)

    @property
    def evaluated(self) -> SampleRNN:
        """The network that is validated, sampled and saved for use."""
        return self.model if self.averaged is None else self.averaged

    def progress(self) -> float | None:
        """How far the run is towards its planned end, 0 to 1; None if it has no planned end."""
        trainer = self.config.trainer
        shares = []
        if trainer.max_steps > 0:
            shares.append(self.global_step / trainer.max_steps)
        if trainer.max_epochs > 0:
            steps = trainer.max_epochs * self.planned_steps_per_epoch / trainer.accumulate_grad_batches
            shares.append(self.global_step / steps)
        if trainer.max_time is not None:
            shares.append(self.agreement.agreed.seconds / trainer.max_seconds)
        return min(1.0, max(shares)) if shares else None

    def lr_factor(self, step: int) -> float:
        """Learning rate at an optimizer step as a fraction of its peak: warm-up, then the schedule."""
        optim = self.config.optim
        warmup = min(1.0, (step + 1) / (optim.warmup_steps + 1))
        progress = self.progress() if self._trainer is not None else None
        if optim.schedule == "constant" or progress is None:
            return warmup
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return warmup * (optim.final_lr + (1 - optim.final_lr) * cosine)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optim = self.config.optim
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=optim.lr,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
            fused=fused_optimizer_works(self.device, self.config.trainer.precision),
        )
        keep_fused(optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what loads without Lightning (see `model.checkpoint`) and the state of all lanes.

        With an average of the weights, that is the model; the weights in training go beside the lanes.
        """
        bits = self.validation_bits
        results = {
            "step": self.global_step,
            "train_seconds": round(self.clock.seconds, 1),
            "validation_bits_per_sample": None if math.isnan(bits) else bits,
        }
        if self.validations_since_best and not math.isfinite(bits):
            results["diverged"] = True
        checkpoint[ENTRY] = {**self.facts.entry(), "results": results}
        checkpoint["hyper_parameters"] = to_dict(self.config)
        checkpoint[STATE] = {
            "processes": self.trainer.world_size,
            "lanes": None if self.lane_state is None else self._gather(self.lane_state),
            "loader": lane_loader(self.trainer).state_dict(),
            "seconds": self.clock.seconds,
            "validation_bits": self.validation_bits,
            "best_bits": self.best_bits,
            "validations_since_best": self.validations_since_best,
            "gradients": self.gradients.state_dict(),
            "unread": self._gather_unread(),
        }
        if self.averaged is not None:
            tensors = checkpoint["state_dict"]
            checkpoint["state_dict"] = _renamed(tensors, "averaged.", "model.")
            checkpoint[STATE]["weights"] = _renamed(tensors, "model.", "model.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back this process's rows of the lanes' state, and the weights in training.

        The average begins with them where the run had none so far.
        """
        if precision(self.config) == "64-true":  # Lightning would convert only what float32 has rounded
            self.double()
        saved = checkpoint[STATE]
        average = checkpoint["state_dict"]
        checkpoint["state_dict"] = weights = saved.get("weights", average)
        if self.averaged is not None:
            checkpoint["state_dict"] = {**weights, **_renamed(average, "model.", "averaged.")}
        self.gradients.load_state_dict(saved["gradients"])
        self._take_unread(saved["unread"])
        self._loader_state = saved["loader"]
        self.clock.seconds_before = saved["seconds"]
        self.validation_bits, self.best_bits = saved["validation_bits"], saved["best_bits"]
        self.validations_since_best = saved["validations_since_best"]
        lanes = saved["lanes"]
        if lanes is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            history, *rnn = (whole.chunk(world_size)[rank] for whole in lanes)
            self.lane_state = State(history, tuple(rnn))

    def _agree(self, real: Tensor) -> Tensor:
        """Tell the other processes how this one stands; returns the real samples of all."""
        wish = Agreed(self.stop_requested, self.save_requested, self.clock.seconds)
        several = self.trainer.world_size > 1
        return self.agreement.exchange(
            real, wish, self.trainer.global_rank, self._sum_over_processes if several else None
        )

    def _everywhere(self, count: BitCount) -> BitCount:
        """What all processes counted together."""
        if self.trainer.world_size == 1:
            return count
        mine = torch.tensor([count.nats, count.num_samples], dtype=torch.float64, device=self.device)
        nats, num_samples = self._sum_over_processes(mine).tolist()
        return BitCount(nats, int(num_samples))

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    def _gather(self, state: State) -> list[Tensor]:
        """The rows of all processes, in lane order, on the CPU."""
        mine = [state.history, *state.rnn]
        if self.trainer.world_size > 1:
            mine = [cast(Tensor, self.all_gather(tensor)).flatten(0, 1) for tensor in mine]
        return [tensor.cpu() for tensor in mine]

    def _gather_unread(self) -> Tensor:
        """Nats and real samples of chunks not logged yet, float64 ``[processes, n, 2]``, on the CPU."""
        pairs = [[nats.item(), real.item()] for nats, real in self._unread]
        mine = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)
        if self.trainer.world_size == 1 or not pairs:
            return mine[None]
        return cast(Tensor, self.all_gather(mine.to(self.device))).cpu()

    def _take_unread(self, everyone: Tensor) -> None:
        """Take back this process's share of `_gather_unread`."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if len(everyone) != world_size:  # on other devices now: the first speaks for all
            everyone = everyone.reshape(1, -1, 2)
        mine = everyone[rank] if rank < len(everyone) else ()
        self._unread = [(nats, real) for nats, real in mine]


def _spoilt_rows(state: State) -> Tensor:
    """Rows whose RNN state is not finite, bool ``[B]``."""
    finite = [tier.isfinite().flatten(1).all(dim=1) for tier in state.rnn]  # [B] each
    return ~torch.stack(finite).all(dim=0)


def _renamed(tensors: dict[str, Tensor], prefix: str, new: str) -> dict[str, Tensor]:
    """The tensors whose name has the prefix, with another one."""
    return {
        new + name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
    }


class Clock:
    """Seconds spent training, over all sessions of a run."""

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self._started: float | None = None

    def start(self) -> None:
        """A session begins."""
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Total so far."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self.seconds_before + running
