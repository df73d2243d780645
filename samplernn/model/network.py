"""The whole network: SampleRNN (Mehri et al., ICLR 2017, arXiv:1612.07837). Read from top to bottom.

`SampleRNN` is the container. Audio enters as codes ``[B, T]`` (see `quantize.py`). The tiers run
from the slowest clock to the fastest::

    frame_sizes = (64, 16)                                 one step every
      FrameLevelTier   64 samples -> RNN -> 4 vectors          64 samples
      FrameLevelTier   16 samples + 1 of those -> RNN -> 16    16 samples
      SampleLevelMLP   16 samples + 1 of those -> logits        1 sample

Each frame-level tier reads the frame that ended where its step begins, so the prediction of a
sample never sees that sample or a later one. Everything that outlives a call is in `State`,
passed in and returned, never kept on a module.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samplernn.config import ModelConfig
from samplernn.model.cells import RNN
from samplernn.model.heads import Head, head_of
from samplernn.model.weights import effective, row_lengths


class State(NamedTuple):
    """What the network remembers of the past, one row per stream; every tensor has the batch first."""

    history: Tensor
    """The last `lookback` codes, ``[B, lookback]``, oldest first."""
    rnn: tuple[Tensor, ...]
    """One per frame-level tier, slowest first, each ``[B, S, n_rnn, dim]`` (S: 1, or 2 for LSTMs)."""

    def detach(self) -> State:
        """The same values, cut from the graph: the T of truncated backpropagation through time."""
        return State(self.history.detach(), tuple(tier.detach() for tier in self.rnn))


class SampleRNN(nn.Module):
    """Distribution of every sample given all samples before it.

    Args:
        config: sizes and options.
        first_layer: how the MLP's first layer is computed. ``table`` multiplies embedding and weights
            once per call into a table and gathers; ``convolution`` is the textbook form. Equal
            parameters, equal results; the second exists for tests and as a yardstick.

    Example:
        >>> model = SampleRNN(ModelConfig())
        >>> x = torch.randint(256, (2, 128))                         # [B, T]
        >>> logits, state = model(x, model.initial_state(2))         # [B, T, Q]
        >>> logits, state = model(x, state)                          # the next chunk of the same streams
    """

    def __init__(self, config: ModelConfig, first_layer: Literal["table", "convolution"] = "table") -> None:
        super().__init__()
        self.config = config
        self.q_zero = config.q_levels // 2
        self.lookback = config.lookback
        self.head: Head = head_of(config)
        # A tier's `ratio` is how many steps of the next tier happen in one of its own.
        clocks = (*config.frame_sizes, 1)
        self.frame_level_tiers = nn.ModuleList(
            FrameLevelTier(config, frame_size, ratio=frame_size // next_size)
            for frame_size, next_size in itertools.pairwise(clocks)
        )
        self.sample_level_mlp = SampleLevelMLP(config, first_layer, self.head.num_outputs)

    def initial_state(self, batch_size: int) -> State:
        """State at the start of a segment: silence behind, h0 (learned or zero) in every RNN layer."""
        device = self.sample_level_mlp.output.weight.device
        history = torch.full((batch_size, self.lookback), self.q_zero, device=device)  # [B, lookback]
        return State(history, tuple(tier.rnn.initial_state(batch_size) for tier in self.tiers()))

    def reset(self, state: State, rows: Tensor) -> State:
        """`state` with the given rows (bool ``[B]``) back at the start of a segment.

        The initial state always takes part through ``torch.where``, so that a learned h0 has a
        gradient (possibly zero) in every step; DistributedDataParallel needs that.
        """
        fresh = self.initial_state(len(rows))
        history = torch.where(rows[:, None], fresh.history, state.history)
        rnn = (
            torch.where(rows[:, None, None, None], new, old)
            for new, old in zip(fresh.rnn, state.rnn, strict=True)
        )
        return State(history, tuple(rnn))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Predict every sample of a chunk (teacher forcing).

        Args:
            x: codes, int64 ``[B, T]``, T a multiple of the largest frame.
            state: `initial_state`, or what the previous chunk returned.

        Returns:
            Logits ``[B, T, Q]``, where ``logits[:, t]`` is the distribution of ``x[:, t]`` given everything
            before it, and the state after the chunk.

        Raises:
            ValueError: T is not a multiple of the largest frame.
        """
        hidden, after = self.listen(x, state)
        fastest = self.tiers()[-1]
        codes = torch.cat([state.history[:, -fastest.frame_size :], x[:, :-1]], dim=1)
        return self.sample_level_mlp(codes, fastest.conditioning(hidden)), after

    def listen(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The frame-level tiers alone: what remembering a chunk takes, without predicting its samples.

        Args:
            x: codes, int64 ``[B, T]``, T a multiple of the largest frame.
            state: `initial_state`, or what the previous chunk returned.

        Returns:
            Hidden vectors of the fastest tier ``[B, T/frame, D]`` and the state after the chunk.

        Raises:
            ValueError: T is not a multiple of the largest frame.
        """
        if x.shape[1] % self.lookback:
            raise ValueError(f"chunk of {x.shape[1]} samples: not a multiple of {self.lookback}")
        past_and_x = torch.cat([state.history, x], dim=1)  # [B, lookback + T]
        conditioning: Tensor | None = None
        rnn = []
        for tier, tier_state in zip(self.tiers(), state.rnn, strict=True):
            frames = self.frames(past_and_x, tier.frame_size)  # [B, T/frame, frame]
            hidden, tier_state = tier(frames, conditioning, tier_state)  # [B, T/frame, D]
            rnn.append(tier_state)
            if tier is not self.tiers()[-1]:
                conditioning = tier.conditioning(hidden)  # [B, T/frame·ratio, D]
        return hidden, State(past_and_x[:, -self.lookback :], tuple(rnn))

    def frames(self, past_and_x: Tensor, frame_size: int) -> Tensor:
        """The frames that a tier reads: each ends where the samples it conditions begin.

        Args:
            past_and_x: codes ``[B, lookback + T]``.
            frame_size: samples per frame.

        Returns:
            Amplitudes in [-2, 2), ``[B, T/frame_size, frame_size]``.
        """
        codes = past_and_x[:, self.lookback - frame_size : -frame_size]
        dtype = self.sample_level_mlp.output.weight.dtype
        amplitude = (codes - self.q_zero).to(dtype) * (4 / self.config.q_levels)
        return amplitude.unflatten(1, (-1, frame_size))

    def tiers(self) -> list[FrameLevelTier]:
        """The frame-level tiers, slowest first."""
        return list(self.frame_level_tiers)  # type: ignore[arg-type]

    def folded(self) -> SampleRNN:
        """A copy for inference; the same function with fewer products.

        Every weight norm is multiplied out. A linear layer of the MLP is multiplied into what it reads: the
        first layer and the upsampling of the fastest tier.
        """
        model = copy.deepcopy(self).eval().requires_grad_(False)
        for module in model.modules():
            if isinstance(module, Linear | RNN):
                module.fold()
        mlp = model.sample_level_mlp
        if mlp.linear is not None:
            model.tiers()[-1].upsampling.follow_by(mlp.linear)
            mlp.input.follow_by(mlp.linear)  # it has no bias: that of the linear layer counts once
            mlp.linear = None
        return model


class FrameLevelTier(nn.Module):
    """One recurrent tier: frames in, conditioning for the tier below out.

    Args:
        config: sizes and options.
        frame_size: samples per frame.
        ratio: conditioning vectors per frame.
    """

    def __init__(self, config: ModelConfig, frame_size: int, ratio: int) -> None:
        super().__init__()
        self.frame_size, self.ratio = frame_size, ratio
        self.input_projection: Linear | None = None
        if config.top_projection or frame_size < config.lookback:
            self.input_projection = Linear(frame_size, config.dim, config.weight_norm)
        self.rnn = RNN(config, None if self.input_projection else frame_size)
        if self.input_projection is not None and self.rnn.cell_class.has_fixed_inputs:
            self.input_projection.requires_grad_(False)
        # Learned upsampling: each of the `ratio` positions has its own weights and bias.
        self.upsampling = Linear(config.dim, ratio * config.dim, config.weight_norm)

    def forward(
        self, frames: Tensor, upper_tier_conditioning: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            frames: ``[B, F, frame_size]``.
            upper_tier_conditioning: ``[B, F, D]``, None in the slowest tier.
            state: RNN state ``[B, S, n_rnn, D]``.

        Returns:
            Hidden vectors ``[B, F, D]`` and the RNN state after the last frame.
        """
        return self.rnn(self.inputs(frames, upper_tier_conditioning), state)

    def inputs(self, frames: Tensor, upper_tier_conditioning: Tensor | None) -> Tensor:
        """What enters the RNN, ``[B, F, D]``; the frames themselves if they are not projected."""
        x = frames if self.input_projection is None else self.input_projection(frames)
        return x if upper_tier_conditioning is None else x + upper_tier_conditioning

    def conditioning(self, hidden: Tensor) -> Tensor:
        """Hidden vectors ``[B, F, D]`` to conditioning for the tier below, ``[B, F·ratio, D]``."""
        return self.upsampling(hidden).unflatten(2, (self.ratio, -1)).flatten(1, 2)


class SampleLevelMLP(nn.Module):
    """Tier 1: from the last few samples and the conditioning to the logits of the next sample.

    The first layer sees `frame_sizes[-1]` embedded samples side by side. Its product with the
    embedding is a table ``[frame, q, dim]`` of what code q at position j adds to each hidden unit;
    the layer is then a gather and a sum, which is exact and far cheaper. Without an embedding
    (`embedding_dim` 0) the layer reads its samples one-hot, and its weights are the table itself.
    """

    def __init__(
        self, config: ModelConfig, first_layer: Literal["table", "convolution"], num_outputs: int
    ) -> None:
        super().__init__()
        self.frame_size = config.frame_sizes[-1]
        self.first_layer = first_layer
        self.q_levels = config.q_levels
        is_one_hot = config.embedding_dim == 0
        self.embedding = None if is_one_hot else nn.Embedding(config.q_levels, config.embedding_dim)
        self.input = Linear(
            self.frame_size * (config.embedding_dim or config.q_levels),
            config.dim,
            config.weight_norm,
            bias=False,
            fan_in=self.frame_size if is_one_hot else None,  # so many inputs are 1, the others 0
        )
        self.linear: Linear | None = None
        if config.linear_mlp_layer:  # that there is no ReLU before it makes the layer before it linear
            self.linear = Linear(config.dim, config.dim, config.weight_norm)
        self.hidden = Linear(config.dim, config.dim, config.weight_norm)
        self.output = Linear(config.dim, num_outputs, config.weight_norm, init="lecun")

    def forward(self, codes: Tensor, conditioning: Tensor) -> Tensor:
        """
        Args:
            codes: the samples before and up to each predicted one, int64 ``[B, frame_size - 1 + T]``.
            conditioning: ``[B, T, D]``.

        Returns:
            Logits ``[B, T, Q]``.
        """
        windows = codes.unfold(1, self.frame_size, 1)  # [B, T, frame]
        if self.first_layer == "convolution":
            first = self.input(self.embedded(windows).flatten(2))  # [B, T, D]
        else:
            # Autocast makes a product's dtype that of the conditioning; one-hot codes take no product.
            table = self.table().to(conditioning.dtype)
            first = gather_and_add(table, windows)  # [B, T, D]
        return self.logits(first, conditioning)

    def embedded(self, codes: Tensor) -> Tensor:
        """Codes as vectors, ``[…]`` to ``[…, E]``; one-hot ones to ``[…, Q]``."""
        if self.embedding is None:
            return F.one_hot(codes, self.q_levels).to(self.input.weight.dtype)
        vectors: Tensor = self.embedding(codes)
        return vectors

    def table(self) -> Tensor:
        """Embedding times first layer, ``[frame, q, dim]``."""
        weight = self.input.effective_weight().unflatten(1, (self.frame_size, -1))  # [D, frame, E]
        if self.embedding is None:
            return weight.permute(1, 2, 0).contiguous()
        return torch.einsum("dfe,qe->fqd", weight, self.embedding.weight)

    def logits(self, first: Tensor, conditioning: Tensor) -> Tensor:
        """The rest of the MLP, after the first layer's sums ``[B, T, D]``."""
        x = first + conditioning
        if self.linear is not None:
            x = self.linear(x)
        x = F.relu(x)
        x = F.relu(self.hidden(x))
        return self.output(x)


def gather_and_add(table: Tensor, windows: Tensor) -> Tensor:
    """Sum over j of ``table[j, windows[..., j]]``.

    Args:
        table: ``[frame, q, D]``.
        windows: codes, int64 ``[B, T, frame]``.

    Returns:
        ``[B, T, D]``.
    """
    result: Tensor = _GatherAndAdd.apply(table, windows)
    return result


class _GatherAndAdd(torch.autograd.Function):
    """`F.embedding_bag` with a backward pass that is faster, and sums in at least float32: thousands of
    gradients meet in the row of a common code."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, windows: Tensor) -> Tensor:
        frame_size, q_levels, _ = table.shape
        ctx.save_for_backward(windows)
        ctx.table_shape, ctx.dtype = table.shape, table.dtype
        rows = windows + torch.arange(frame_size, device=windows.device) * q_levels  # row j·q + code
        sums = F.embedding_bag(rows.flatten(0, 1), table.flatten(0, 1), mode="sum")  # [B·T, D]
        return sums.unflatten(0, windows.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (windows,) = ctx.saved_tensors
        sums = table_gradient_by_products if grad.is_cuda else table_gradient_by_adding
        return sums(windows, grad.flatten(0, 1), ctx.table_shape).to(ctx.dtype), None


def table_gradient_by_adding(windows: Tensor, grad: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Gradient of the table: row by row, each to its place.

    Args:
        windows: codes, int64 ``[B, T, frame]``.
        grad: of the sums, ``[B·T, D]``.
        shape: of the table, ``[frame, q, D]``.

    Returns:
        In float32 at least.
    """
    grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
    result = grad.new_zeros(shape)
    for position, table in enumerate(result):
        table.index_add_(0, windows[..., position].flatten(), grad)
    return result


def table_gradient_by_products(windows: Tensor, grad: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The same as a product with a matrix of zeros and ones for each position, made for a GPU.

    There thousands of threads would wait for each other to add to the rows of common codes, in an order
    that changes from run to run; tensor cores do the sixteen products of 16-bit numbers in less time, and
    always alike.
    """
    codes = torch.arange(shape[1], device=grad.device)
    wide = torch.promote_types(grad.dtype, torch.float32)
    result = grad.new_empty(shape, dtype=wide)
    for position, table in enumerate(result):
        is_code = windows[..., position].flatten()[:, None] == codes  # [B·T, q]
        if grad.is_cuda and grad.dtype != wide:  # factors of 16 bits, sums of 32
            table.copy_(torch.mm(is_code.to(grad.dtype).t(), grad, out_dtype=wide))
        else:
            table.copy_(torch.mm(is_code.to(wide).t(), grad.to(wide)))
    return result


class Linear(nn.Module):
    """Affine layer with optional weight normalisation per output unit (see `weights`).

    Args:
        in_features: size of the input.
        out_features: size of the output.
        weight_norm: learn length and direction of each weight vector apart.
        bias: add a bias, zero at first.
        init: ``he`` before a ReLU and for projections, ``lecun`` before a softmax (both uniform).
        fan_in: how many inputs `init` expects to be other than zero; None: all.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_norm: bool,
        bias: bool = True,
        init: Literal["he", "lecun"] = "he",
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        bound = math.sqrt((6 if init == "he" else 3) / (fan_in or in_features))
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.g = nn.Parameter(row_lengths(self.weight)) if weight_norm else None

    def effective_weight(self) -> Tensor:
        """The matrix that multiplies the input, ``[out, in]``."""
        return effective(self.weight, self.g)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(), self.bias)

    def fold(self) -> None:
        """Multiply the weight norm out, in place."""
        self.weight = nn.Parameter(self.effective_weight().detach(), requires_grad=False)
        self.g = None

    def follow_by(self, after: Linear) -> None:
        """Become this folded layer and then another, which reads each block of its outputs; in place.

        A bias of the other is added only if this layer has one.
        """
        weight = after.weight.double()  # [out, out]: float32 sums would show
        blocks = self.weight.double().unflatten(0, (-1, weight.shape[1]))  # [blocks, out, in]
        self.weight = nn.Parameter((weight @ blocks).flatten(0, 1).to(self.weight.dtype), requires_grad=False)
        if self.bias is not None and after.bias is not None:
            bias = self.bias.double().unflatten(0, (-1, weight.shape[1])) @ weight.t() + after.bias.double()
            self.bias = nn.Parameter(bias.flatten().to(self.bias.dtype), requires_grad=False)
