"""How much memory training takes, and how much there is.

`RandomStep` counts what a forward pass keeps for the backward pass, `footprint` makes a formula of it,
`available_bytes` asks the machine. `samplernn doctor` and `data.batch_size: auto` both go by these.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samplernn.audio.lanes import SAMPLES_PER_STEP
from samplernn.config import Config
from samplernn.model.network import SampleRNN
from samplernn.training.hardware import total_bytes
from samplernn.training.loss import Batch, chunk_nll
from samplernn.training.precision import precision

# Fitted to the peak resident memory of seven runs (3 and 11 M parameters, 16 to 256 lanes, 32-true and
# bf16-mixed): within 12 %.
PROCESS_BYTES = 1000e6
_GPU_CONTEXT_BYTES = 500e6
_WEIGHT_COPIES = 6.0
_SAVED_COPIES = 1.5
_VALIDATION_COPIES = 3.5


class RandomStep:
    """One training step on random codes, with any number of lanes and any length of chunk.

    Args:
        config: of the run.
        device: where.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        arithmetic = precision(config)
        narrow = torch.bfloat16 if arithmetic.startswith("bf16") else torch.float16
        self.model = SampleRNN(config.model).to(device)
        if arithmetic.endswith("-true"):
            kinds = {"32": torch.float32, "64": torch.float64, "bf16": torch.bfloat16}
            self.model.to(kinds[arithmetic.removesuffix("-true")])
        self._autocast = torch.autocast(device.type, narrow, enabled=arithmetic.endswith("-mixed"))
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optim.lr)
        self.config, self.device = config, device

    def __call__(self, lanes: int, length: int) -> float:
        """Take the step; returns its seconds."""
        started = time.perf_counter()
        loss = self._loss(lanes, length)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def saved_bytes(self, lanes: int, length: int) -> int:
        """Bytes that a forward pass keeps for the backward pass, weights apart."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self._loss(lanes, length)
        return sum(kept.values())

    def _loss(self, lanes: int, length: int) -> Tensor:
        codes = torch.randint(self.config.model.q_levels, (lanes, length), device=self.device)  # [B, T]
        batch = Batch(codes, torch.ones_like(codes, dtype=torch.bool), torch.zeros_like(codes[:, 0]) > 0)
        with self._autocast:
            nats, _ = chunk_nll(self.model, batch, self.model.initial_state(lanes))
        return nats / codes.numel()


@dataclass(frozen=True)
class Footprint:
    """Memory of one training process, in bytes; on a GPU, of the GPU's memory."""

    fixed: float
    """Whatever its lanes: the process, weights, gradients, Adam's moments, the table."""
    lane: float
    """More for each lane of a step: activations and their gradients."""
    validated_sample: float
    """More for each sample of a validation step."""

    def peak(self, lanes: int, validation_samples: int = SAMPLES_PER_STEP) -> int:
        """Bytes at the peak.

        Args:
            lanes: that the process trains.
            validation_samples: of one of its validation steps; at most by default.
        """
        return round(self.fixed + max(lanes * self.lane, validation_samples * self.validated_sample))


def footprint(step: RandomStep) -> Footprint:
    """Count what training with the configuration of this step takes, whatever its lanes.

    What autograd keeps grows by the same amount with each further frame, whether it belongs to a longer
    chunk or to another lane, so two short passes tell all. They are of two lanes: a single one needs no
    copies to lie as the next layer reads it.
    """
    config, shortest = step.config, step.config.model.lookback
    one, two = (step.saved_bytes(2, n * shortest) for n in (1, 2))
    per_frame = max(0, two - one) / 2
    process = PROCESS_BYTES if step.device.type == "cpu" else _GPU_CONTEXT_BYTES
    weights = _WEIGHT_COPIES * 4 * sum(parameter.numel() for parameter in step.model.parameters())
    return Footprint(
        fixed=process + weights + _SAVED_COPIES * (one - 2 * per_frame),
        lane=_SAVED_COPIES * per_frame * (config.data.tbptt_len // shortest),
        validated_sample=_VALIDATION_COPIES * 4 * config.model.dim,
    )


def available_bytes(device: torch.device) -> int:
    """Memory that is free now on a GPU, or in this machine as far as this process may use it; 0: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [*_available_by_kernel(Path("/proc")), *_left_by_cgroups(Path("/proc"), Path("/sys/fs/cgroup"))]
    return max(1, min(known)) if known else total_bytes()  # not Linux: what it has, used or not


def _available_by_kernel(proc: Path) -> Iterator[int]:
    """What the kernel could hand out without swapping."""
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _left_by_cgroups(proc: Path, root: Path) -> Iterator[int]:
    """What each limit of a container or job that holds this process leaves, in versions 1 and 2.

    Files that were read and could be dropped count as used there, but not here.
    """
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage, droppable = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base = root / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
            droppable = "total_inactive_file"
        else:
            continue
        inner = base / path.lstrip("/")
        for group in (inner, *(above for above in inner.parents if above.is_relative_to(base))):
            bound, used = _lines(group / limit), _lines(group / usage)
            if not (bound and used) or not bound[0].isdecimal():  # "max": no limit
                continue
            entries = (entry.split() for entry in _lines(group / "memory.stat"))
            dropped = sum(int(entry[1]) for entry in entries if entry[0] == droppable)
            yield int(bound[0]) - int(used[0]) + dropped


def _lines(file: Path) -> list[str]:
    """Of a text file; none if it cannot be read."""
    try:
        return file.read_text("utf-8").splitlines()
    except OSError:
        return []
