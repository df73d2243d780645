"""The reference engine: steps the network sample by sample with plain torch operations.

It serves every model and is the yardstick for correctness and speed. All that does not depend on
the sample is computed once: weight norm is folded, embedding and first layer become a table,
each frame's conditioning is upsampled in one product, random numbers are drawn per call.

Rows do not influence each other, not even in rounding: every matrix product is a batch of
matrix-vector products, and gate functions run in place on row slices (a contiguous pass would
split vectors and scalar remainders at other places for another number of rows).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from samplernn.generation.engines.base import EngineState, heard, require_one
from samplernn.generation.sampling import Randomness, Sampling
from samplernn.model.network import FrameLevelTier, SampleRNN, State, gather_and_add

_ELEMENTS_PER_GROUP = 32768
"""Rows are stepped in groups below torch's threading grain, so that no pass is split inside a row."""

ChooseCode = Callable[[int, Tensor], Tensor]
"""Maps (sample index within the call, logits ``[B, Q]``) to codes ``[B, 1]``."""


class ReferenceEngine:
    """See `samplernn.generation.engines.base.Engine`."""

    name = "reference"
    dtype = "float32"

    def __init__(self, model: SampleRNN) -> None:
        self.model = model.folded().float().cpu()
        self.lookback = model.lookback
        self._rows_per_group = max(1, _ELEMENTS_PER_GROUP // (4 * model.config.dim))
        mlp = self.model.sample_level_mlp
        self._table = mlp.table().detach().contiguous()  # [frame, q, D]
        self.start(1)

    @torch.inference_mode()
    def start(self, num_streams: int) -> None:
        position = torch.zeros(num_streams, dtype=torch.int64)
        self._state = EngineState(self.model.initial_state(num_streams), position)

    @torch.inference_mode()
    def prefill(self, codes: Tensor) -> None:
        require_one(self._state)
        self._state = heard(self.model, self._state, codes)

    @torch.inference_mode()
    def advance(self, length: int, randomness: Randomness, sampling: Sampling) -> Tensor:
        position = self._state.position.numpy()
        uniforms = torch.from_numpy(randomness.uniforms(position, length))  # [B, length]
        temperatures = torch.from_numpy(sampling.temperatures(len(position), length).copy())

        def choose(rows: slice) -> ChooseCode:
            numbers, warmth = uniforms[rows], temperatures[rows]
            return lambda t, logits: sampling.draw(logits, numbers[:, t : t + 1], warmth[:, t : t + 1])

        codes = self._step_all(length, choose)
        self._state = EngineState(self._state.network, self._state.position + length)
        return codes

    @torch.inference_mode()
    def score(self, codes: Tensor) -> Tensor:
        nll = torch.empty(codes.shape)

        def choose(rows: slice) -> ChooseCode:
            def given(t: int, logits: Tensor) -> Tensor:
                code = codes[rows, t : t + 1]
                nll[rows, t : t + 1] = -logits.log_softmax(-1).gather(1, code)
                return code

            return given

        self._step_all(codes.shape[1], choose)
        return nll

    def export_state(self) -> EngineState:
        network = self._state.network
        return EngineState(
            State(network.history.clone(), tuple(tier.clone() for tier in network.rnn)),
            self._state.position,
        )

    def import_state(self, state: EngineState) -> None:
        self._state = state

    def _step_all(self, length: int, choose: Callable[[slice], ChooseCode]) -> Tensor:
        """Advance every stream by `length`, group by group; returns the codes ``[B, length]``."""
        if length % self.lookback:
            raise ValueError(f"length {length} is not a multiple of the largest frame, {self.lookback}")
        network = self._state.network
        num_streams = len(network.history)
        codes, states = [], []
        for first in range(0, num_streams, self._rows_per_group):
            rows = slice(first, first + self._rows_per_group)
            group_codes, group_state = self._step(length, _rows(network, rows), choose(rows))
            codes.append(group_codes)
            states.append(group_state)
        rnn = tuple(torch.cat(tiers) for tiers in zip(*(state.rnn for state in states), strict=True))
        history = torch.cat([state.history for state in states])
        self._state = EngineState(State(history, rnn), self._state.position)
        return torch.cat(codes)

    def _step(self, length: int, state: State, choose: ChooseCode) -> tuple[Tensor, State]:
        """Advance one group of rows; `choose` gives each next code."""
        tiers, mlp = self.model.tiers(), self.model.sample_level_mlp
        fastest = tiers[-1].frame_size
        num_rows = len(state.history)
        past_and_new = torch.empty(num_rows, self.lookback + length, dtype=torch.int64)
        past_and_new[:, : self.lookback] = state.history
        rnn = [tier_state.clone() for tier_state in state.rnn]
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
                    conditioning[level] = self._step_tier(tier, frame, above, rnn[level])
            window = past_and_new[:, None, now - fastest : now]
            x = gather_and_add(self._table, window)[:, 0]  # [B, D]
            x = x.add_(conditioning[-1][:, t % fastest]).relu_()
            x = linear(x, mlp.hidden.weight, mlp.hidden.bias).relu_()
            logits = linear(x, mlp.output.weight, mlp.output.bias)  # [B, Q]
            past_and_new[:, now : now + 1] = choose(t, logits)
        return past_and_new[:, self.lookback :], State(past_and_new[:, -self.lookback :], tuple(rnn))

    def _step_tier(self, tier: FrameLevelTier, frame: Tensor, above: Tensor | None, state: Tensor) -> Tensor:
        """One step of a frame-level tier; changes `state` ``[B, S, n_rnn, D]`` in place.

        Returns:
            Conditioning for the steps of the tier below, ``[B, ratio, D]``.
        """
        amplitude = (frame - self.model.q_zero) * (4 / self.model.config.q_levels)
        x = amplitude
        if tier.input_projection is not None:
            x = linear(amplitude, tier.input_projection.weight, tier.input_projection.bias)
        if above is not None:
            x = x + above
        layers = tier.rnn.layers
        step = lstm_step if tier.rnn.is_lstm else gru_step
        for layer in range(layers.num_layers):
            x = step(x, state[:, :, layer], *tier.rnn.weights(layer))
        return linear(x, tier.upsampling.weight, tier.upsampling.bias).unflatten(1, (tier.ratio, -1))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` as one matrix-vector product per row, ``[B, in]`` to ``[B, out]``."""
    num_rows = len(x)
    matrices = weight.t().expand(num_rows, -1, -1)
    if bias is None:
        return torch.bmm(x[:, None], matrices)[:, 0]
    return torch.baddbmm(bias.expand(num_rows, 1, -1), x[:, None], matrices)[:, 0]


def gru_step(
    x: Tensor, state: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Tensor:
    """One GRU step (Cho et al., 2014, in cuDNN's variant: the reset gate after the recurrent product).

    Args:
        x: ``[B, D]``.
        state: ``[B, 1, D]``, replaced in place by the new hidden vector.
        weight_ih: ``[3D, D]``, gates in the order reset, update, new; the others alike.

    Returns:
        The new hidden vector ``[B, D]``.
    """
    hidden = state[:, 0]
    dim = hidden.shape[1]
    from_x = linear(x, weight_ih, bias_ih)
    from_h = linear(hidden.contiguous(), weight_hh, bias_hh)
    gates = from_x[:, : 2 * dim].add_(from_h[:, : 2 * dim]).sigmoid_()
    reset, update = gates[:, :dim], gates[:, dim:]
    new = from_x[:, 2 * dim :].addcmul_(reset, from_h[:, 2 * dim :]).tanh_()
    hidden.copy_(torch.lerp(new, hidden, update))
    return hidden


def lstm_step(
    x: Tensor, state: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Tensor:
    """One LSTM step (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al., 2000).

    Args:
        x: ``[B, D]``.
        state: ``[B, 2, D]``, hidden and cell, replaced in place.
        weight_ih: ``[4D, D]``, gates in the order input, forget, cell, output; the others alike.

    Returns:
        The new hidden vector ``[B, D]``.
    """
    hidden, cell = state[:, 0], state[:, 1]
    dim = hidden.shape[1]
    gates = linear(x, weight_ih, bias_ih).add_(linear(hidden.contiguous(), weight_hh, bias_hh))
    open_in, keep = gates[:, :dim].sigmoid_(), gates[:, dim : 2 * dim].sigmoid_()
    new, open_out = gates[:, 2 * dim : 3 * dim].tanh_(), gates[:, 3 * dim :].sigmoid_()
    cell.mul_(keep).addcmul_(open_in, new)
    # A slice of the gates takes tanh(cell), so that the function runs row by row here too.
    hidden.copy_(new.copy_(cell).tanh_().mul_(open_out))
    return hidden


def _rows(state: State, rows: slice) -> State:
    return State(state.history[rows], tuple(tier[rows] for tier in state.rnn))
