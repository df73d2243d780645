"""Training as one would write it with PyTorch alone: the yardstick for `samplernn train`.

The same network on the same batches, with the textbook form of the first layer, in float32, with
PyTorch's own recurrent layers, loss and AdamW as they come. Nothing here was made for speed, and a test
looks through the graph for anything that PyTorch does not have by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from samplernn.config import Config
from samplernn.model.cells import RNN
from samplernn.model.network import SampleRNN, State
from samplernn.training.loss import Batch


class PlainTraining:
    """A network and its optimizer.

    Args:
        config: sizes, learning rate and clipping.
        device: where.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        torch.manual_seed(config.seed_everything)
        self.model = SampleRNN(config.model, first_layer="convolution")
        for tier in self.model.tiers():
            plain = _PlainRNN(config.model, tier.rnn.input_size)
            plain.load_state_dict(tier.rnn.state_dict())
            tier.rnn = plain
        self.model.to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optim.lr,
            betas=config.optim.betas,
            weight_decay=config.optim.weight_decay,
        )
        self._trainer = config.trainer
        self._clipped = list(self.model.parameters())
        if config.trainer.gradient_clip_parameters == "recurrent":
            self._clipped = [p for tier in self.model.tiers() for p in tier.rnn.recurrent_parameters()]
        self._device = device

    def run(self, loader: Iterable[Batch], step_done: Callable[[], bool]) -> None:
        """Take steps, epoch after epoch, until `step_done` says that it is enough."""
        state: State | None = None
        while True:
            for batch in loader:
                batch = Batch(*(tensor.to(self._device) for tensor in batch))
                state = self.step(batch, state or self.model.initial_state(len(batch.reset)))
                if step_done():
                    return

    def step(self, batch: Batch, state: State) -> State:
        """One optimizer step; returns the state after the chunk."""
        codes = batch.codes  # [B, T]
        logits, state = self.model(codes, self.model.reset(state, batch.reset))
        nll = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
        loss = (nll * batch.mask.flatten()).sum() / batch.mask.sum()
        self.optimizer.zero_grad()
        loss.backward()
        limit = self._trainer.gradient_clip_val
        if limit is not None and self._trainer.gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self._clipped, limit)
        elif limit is not None:
            torch.nn.utils.clip_grad_norm_(self._clipped, limit)
        self.optimizer.step()
        return state.detach()


class _PlainRNN(RNN):
    """`nn.GRU` or `nn.LSTM`, called; other cells frame by frame."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.plain(x, state)
