"""The reference engine: steps the network sample by sample with plain torch operations.

It serves every model and is the yardstick for correctness and speed. All that does not depend on
the sample is computed once: weight norm is folded, embedding and first layer become a table,
each frame's conditioning is upsampled in one product, random numbers are drawn per call.

Rows do not influence each other, not even in rounding: every matrix product is a batch of
matrix-vector products, and the number of rows is padded so that every pass over rows that follow each
other in memory is a whole number of vectors (what torch does with a remainder may round otherwise).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from samplernn.generation.engines.base import Engine, EngineState
from samplernn.generation.sampling import DrawArrays
from samplernn.model.network import FrameLevelTier, SampleRNN, State, gather_and_add

_ELEMENTS_PER_GROUP = 32768
"""Rows are stepped in groups below torch's threading grain, so that no pass is split inside a row."""
_LINE = 16
"""Elements in a cache line."""
_VECTOR = 64
"""Elements that are a whole number of vectors on any processor, also where torch takes several at once."""

ChooseCode = Callable[[slice, int, Tensor], Tensor]
"""Maps (rows, sample index within the call, outputs ``[rows, num_outputs]``) to codes ``[rows, 1]``."""


class ReferenceEngine(Engine):
    """Serves every model, in float32, on the CPU.

    Args:
        model: the network; it is copied.
    """

    name = "reference"

    def __init__(self, model: SampleRNN) -> None:
        super().__init__(model, "float32")
        self._rows_per_group, self._unit = grouping(model.config.dim)
        self._table = self.model.sample_level_mlp.table().detach().contiguous()  # [frame, q, D]
        self.start(1)

    @torch.inference_mode()
    def advance(self, draws: DrawArrays) -> Tensor:
        position = self._state.position
        head = self.model.head
        each = [torch.from_numpy(draws.uniforms(position, draw)) for draw in range(head.num_uniforms)]
        uniforms = torch.stack(each, dim=-1)  # [B, length, num_uniforms]
        temperatures, filters = torch.from_numpy(draws.temperature), torch.from_numpy(draws.filters)

        def choose(rows: slice, t: int, outputs: Tensor) -> Tensor:
            return head.draw(outputs, uniforms[rows, t], temperatures[rows, t : t + 1], filters[rows])

        codes = self._step_all(draws.length, choose)
        self._state = EngineState(self._state.network, position + draws.length)
        return codes

    @torch.inference_mode()
    def score(self, codes: Tensor) -> Tensor:
        nll = torch.empty(codes.shape)

        def take_given(rows: slice, t: int, outputs: Tensor) -> Tensor:
            nll[rows, t] = self.model.head.nll(outputs, codes[rows, t])
            return codes[rows, t : t + 1]

        self._step_all(codes.shape[1], take_given)
        return nll

    def _step_all(self, length: int, choose: ChooseCode) -> Tensor:
        """Advance every stream by `length`, group by group; returns the codes ``[B, length]``."""
        self._require_whole_frames(length)
        codes, states = [], []
        for first in range(0, len(self._state.position), self._rows_per_group):
            rows = slice(first, first + self._rows_per_group)
            group = self._state.rows(rows)
            group_codes, network = self._step(length, group.network, functools.partial(choose, rows))
            codes.append(group_codes)
            states.append(group._replace(network=network))
        self._state = EngineState.joined(states)
        return torch.cat(codes)

    def _step(
        self, length: int, state: State, choose: Callable[[int, Tensor], Tensor]
    ) -> tuple[Tensor, State]:
        """Advance one group of rows; `choose` gives each next code."""
        tiers, mlp = self.model.tiers(), self.model.sample_level_mlp
        fastest = tiers[-1].frame_size
        num_rows = len(state.history)
        idle = -num_rows % self._unit  # they hear nothing but code 0
        past_and_new = torch.zeros(num_rows + idle, self.lookback + length, dtype=torch.int64)
        past_and_new[:num_rows, : self.lookback] = state.history
        rnn = [F.pad(tier_state, (0, 0, 0, 0, 0, 0, 0, idle)) for tier_state in state.rnn]
        conditioning: list[Tensor] = [torch.empty(0)] * len(tiers)  # of each tier's frame, [B, ratio, D]
        for t in range(length):
            now = self.lookback + t
            for level, tier in enumerate(tiers):
                if t % tier.frame_size == 0:
                    above = None
                    if level > 0:
                        step_in_frame = t % tiers[level - 1].frame_size // tier.frame_size
                        above = conditioning[level - 1][:, step_in_frame]
                    frame = past_and_new[:, now - tier.frame_size : now]
                    conditioning[level], rnn[level] = self._step_tier(tier, frame, above, rnn[level])
            window = past_and_new[:, None, now - fastest : now]
            x = gather_and_add(self._table, window)[:, 0]  # [B, D]
            x = x.add_(conditioning[-1][:, t % fastest]).relu_()
            x = linear(x, mlp.hidden.weight, mlp.hidden.bias).relu_()
            outputs = linear(x, mlp.output.weight, mlp.output.bias)[:num_rows]  # [B, num_outputs]
            past_and_new[:num_rows, now : now + 1] = choose(t, outputs)
        codes = past_and_new[:num_rows]
        after = tuple(tier_state[:num_rows] for tier_state in rnn)
        return codes[:, self.lookback :], State(codes[:, -self.lookback :], after)

    def _step_tier(
        self, tier: FrameLevelTier, frame: Tensor, above: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of a frame-level tier.

        Returns:
            Conditioning for the steps of the tier below, ``[B, ratio, D]``, and the state after the step.
        """
        amplitude = (frame - self.model.q_zero) * (4 / self.model.config.q_levels)
        x = amplitude
        if tier.input_projection is not None:
            x = linear(amplitude, tier.input_projection.weight, tier.input_projection.bias)
        if above is not None:
            x = x + above
        x, state = tier.rnn.step(x, state, linear)
        upsampled = linear(x, tier.upsampling.weight, tier.upsampling.bias)
        return upsampled.unflatten(1, (tier.ratio, -1)), state


def grouping(dim: int) -> tuple[int, int]:
    """How many rows are stepped together at most, and of how many that number is a multiple."""
    most = max(1, _ELEMENTS_PER_GROUP // (4 * dim))
    unit = _VECTOR // math.gcd(_VECTOR, dim)
    return (most // unit * unit, unit) if unit <= most else (1, 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` as one matrix-vector product per row, ``[B, in]`` to ``[B, out]``."""
    num_rows, inputs = x.shape
    # Each row begins on a cache line: what does not, MKL may add up in another order.
    x = F.pad(x, (0, -inputs % _LINE))[:, :inputs] if inputs % _LINE else x.contiguous()
    matrices = weight.t().expand(num_rows, -1, -1)
    if bias is None:
        return torch.bmm(x[:, None], matrices)[:, 0]
    return torch.baddbmm(bias.expand(num_rows, 1, -1), x[:, None], matrices)[:, 0]
