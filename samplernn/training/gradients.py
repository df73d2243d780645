"""What happens to the gradients of a step: measured per tier, clipped, and refused where not finite.

Everything stays on the device; the host waits for it only in `GradientControl.read`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from samplernn.model.network import SampleRNN


class Reading(NamedTuple):
    """What `GradientControl` has found."""

    norms: dict[str, float]
    """``grad_norm`` and ``grad_norm/tier<n>``, before clipping: means over the steps that were taken since
    the last reading; empty if none was."""
    skipped: int
    """Steps skipped so far, over all sessions of the run."""
    in_a_row: int
    """How many of them were the last ones of this session."""


class GradientControl:
    """Measures, clips and judges the gradients of every step of a network.

    A step is skipped, weights and moments untouched, when the norm of its gradients is not finite. A fused
    optimizer does so on the device when its attribute `found_inf` is 1. For any other the host waits
    for the verdict and takes the gradients away: what has none is not touched.

    Args:
        model: whose gradients.
        clipped: which of them `judge` clips: of all parameters, or of the hidden-to-hidden matrices alone.
            Measured and judged are all.
    """

    def __init__(self, model: SampleRNN, clipped: Literal["all", "recurrent"] = "all") -> None:
        tiers = [*model.tiers(), model.sample_level_mlp]
        self._parameters = [list(tier.parameters()) for tier in tiers]
        self._recurrent: list[nn.Parameter] | None = None
        if clipped == "recurrent":
            self._recurrent = [p for tier in model.tiers() for p in tier.rnn.recurrent_parameters()]
        self._names = [f"grad_norm/tier{len(tiers) - index}" for index in range(len(tiers))] + ["grad_norm"]
        self._sums = torch.zeros(len(self._names) + 1)  # of the norms, and of the steps taken
        self._skips = torch.zeros(2, dtype=torch.int64)  # in all, in a row
        self.latest = Reading({}, 0, 0)
        """The last reading."""

    def state_dict(self) -> dict[str, list[float] | int]:
        """What a resumed run needs to read the same; waits for the device, and is no reading."""
        return {"sums": self._sums.tolist(), "skipped": int(self._skips[0])}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from `state_dict`; a resumed run has skipped no steps in a row."""
        self._sums, self._skips = torch.tensor(saved["sums"]), torch.tensor([saved["skipped"], 0])

    def counted(self) -> tuple[Tensor, Tensor]:
        """What has been counted since the last reading, for `count_from`; waits for nothing."""
        return self._sums.clone(), self._skips

    def count_from(self, counted: tuple[Tensor, Tensor]) -> None:
        """Go on from what `counted` gave."""
        self._sums, self._skips = counted

    @torch.no_grad()
    def judge(
        self, optimizer: torch.optim.Optimizer, clip_val: float | None, algorithm: str | None = None
    ) -> None:
        """Measure and clip the gradients; let the optimizer skip its step if they are not finite.

        Args:
            optimizer: about to take its step.
            clip_val: largest norm of all clipped gradients together, or largest value; None: as they are.
            algorithm: ``norm`` (also None) or ``value``.
        """
        by_tier = torch.stack([_norm(tier) for tier in self._parameters]).float()  # [n_tiers]
        norm = torch.linalg.vector_norm(by_tier)
        self._count(by_tier, norm)
        parameters = [parameter for tier in self._parameters for parameter in tier]
        clipped = parameters if self._recurrent is None else self._recurrent
        if clip_val is not None and algorithm == "value":
            # Lightning's own refuses a fused optimizer under mixed precision, with or without a scaler.
            nn.utils.clip_grad_value_(clipped, clip_val)
        elif clip_val is not None:
            theirs = norm if self._recurrent is None else _norm(self._recurrent)
            nn.utils.clip_grads_with_norm_(clipped, clip_val, theirs)
        if optimizer.defaults["fused"]:
            optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        elif not norm.isfinite():
            for parameter in parameters:
                parameter.grad = None

    def read(self) -> Reading:
        """What was found since the last call; waits for the device."""
        *sums, taken = self._sums.tolist()
        self._sums.zero_()
        norms = {name: total / taken for name, total in zip(self._names, sums, strict=True) if taken}
        self.latest = Reading(norms, *self._skips.tolist())
        return self.latest

    def _count(self, by_tier: Tensor, norm: Tensor) -> None:
        """Add one step's norms, per tier ``[n_tiers]`` and of all ``[]``, or count it as skipped."""
        self._sums, self._skips = self._sums.to(norm.device), self._skips.to(norm.device)
        is_finite = norm.isfinite()
        found = torch.cat([by_tier, norm[None], torch.ones_like(norm)[None]])
        self._sums += torch.where(is_finite, found, 0)
        total, in_a_row = self._skips.unbind()
        self._skips = torch.stack([total + ~is_finite, (in_a_row + 1) * ~is_finite])


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    """Of the gradients of some parameters together."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def fused_optimizer_works(device: torch.device, precision: str) -> bool:
    """Whether a fused optimizer can be told on the device to skip a step.

    Not with ``16-mixed``: its scaler keeps the unscaling to itself when the optimizer is a fused one, and
    clipping then has to wait; it makes the host wait in every step anyway.
    """
    return device.type in ("cpu", "cuda") and precision != "16-mixed"


def keep_fused(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer stay (un)fused when it loads the state of one that was not (or was)."""

    def adapted(optimizer: torch.optim.Optimizer, saved: dict[str, object]) -> dict[str, object]:
        groups = saved["param_groups"]
        assert isinstance(groups, list)
        fused = {"fused": optimizer.defaults["fused"]}
        return {**saved, "param_groups": [{**group, **fused} for group in groups]}

    optimizer.register_load_state_dict_pre_hook(adapted)
