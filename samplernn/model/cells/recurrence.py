"""How our own cells run over frames and are derived.

A cell is a few matrix products of its hidden vector and pointwise functions, in which a unit sees nothing
but itself. So the slopes of the pointwise part are a few numbers per unit, found for all frames at once, and
the walk back over the frames is left with what depends on the frame after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samplernn.config import ModelConfig
from samplernn.model.cells.base import Product, lecun_uniform, orthogonal_blocks

Pointwise = Callable[..., Tensor]
"""Maps projected input ``[..., gates, D]``, recurrent sums (a sequence of ``[..., g, D]``), the state before
``[..., S, D]`` and coefficients ``[D]`` to ``[..., S, D]``; each unit for itself."""


class PointwiseCell(nn.Module):
    """A cell of our own: subclasses say its gates and its pointwise functions, and may initialise otherwise.

    There is one product for each matrix of `matrices`. The first multiplies the hidden vector, each further
    one what the pointwise function before it returns ``[..., 1, D]``; the last function returns the state.

    Args:
        config: takes `dim`, and what the subclass says.
        in_features: size of the input.
    """

    vectors: ClassVar[int] = 1
    gates: ClassVar[tuple[str, ...]] = ("new",)
    """Of the input and, unless `recurrent_gates` says otherwise, of the hidden vector, in order."""

    def __init__(self, config: ModelConfig, in_features: int) -> None:
        super().__init__()
        self.dim = config.dim
        rows = len(self.gates) * config.dim
        self.weight_ih: Tensor = nn.Parameter(torch.empty(rows, in_features))
        self.bias = nn.Parameter(torch.zeros(rows))
        lecun_uniform(self.weight_ih)
        self.weight_hh: Tensor
        if self.recurrent_gates(config):
            self.weight_hh = nn.Parameter(torch.empty(self.recurrent_gates(config) * config.dim, config.dim))
            orthogonal_blocks(self.weight_hh)
        self.g: nn.ParameterDict | None = None
        """With weight norm, the length of each row of each trained matrix, by name."""

    def add_weight_norm(self) -> None:
        """Give each row of each trained matrix a length of its own, at first the one that it has."""
        trained = {name: p for name, p in self.named_parameters() if name.startswith("weight")}
        self.g = nn.ParameterDict({name: p.detach().norm(dim=1) for name, p in trained.items()})

    def weight(self, name: str) -> Tensor:
        """What the cell multiplies with: one of its matrices, weight norm multiplied out."""
        matrix: Tensor = getattr(self, name)
        if self.g is None or name not in self.g:
            return matrix
        return torch._weight_norm(matrix, self.g[name][:, None])

    def fold(self) -> None:
        """See `Cell`."""
        for name in list(self.g or ()):
            getattr(self, name).copy_(self.weight(name))
        self.g = None

    @classmethod
    def recurrent_gates(cls, config: ModelConfig) -> int:
        """How many gates see the hidden vector: all."""
        return len(cls.gates)

    def pointwise(self) -> tuple[Pointwise, ...]:
        """See the class."""
        raise NotImplementedError

    def matrices(self) -> tuple[Tensor, ...]:
        """Of the recurrent products, each ``[g·D, D]``."""
        return (self.weight("weight_hh"),)

    def coefficients(self) -> tuple[Tensor, ...]:
        """What the pointwise functions take beside gates and state, each ``[D]``."""
        return ()

    def recurrent_blocks(self) -> dict[str, Tensor]:
        blocks = [block for matrix in self.matrices() for block in matrix.split(self.dim)]
        return dict(zip(self.gates, blocks, strict=True)) if blocks else {}

    def project(self, x: Tensor, product: Product = F.linear) -> Tensor:
        # Added apart, the bias keeps its precision where products are narrow.
        return product(x, self.weight("weight_ih"), None) + self.bias

    def project_frames(self, x: Tensor) -> Tensor:
        """`project`, frames first: ``[B, F, in]`` to ``[F, B, gates·D]``."""
        frames = x.transpose(0, 1)
        # Flat, for torch may make a batch of products of a view of three dimensions, and copy the weights.
        return self.project(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def step(self, projected: Tensor, state: Tensor, product: Product = F.linear) -> Tensor:
        gates = projected.unflatten(-1, (-1, self.dim))
        coefficients, sums = self.coefficients(), []
        matrices, functions = self.matrices(), self.pointwise()
        multiplied = state[:, 0]  # [B, D]
        for matrix, function in zip(matrices, functions, strict=False):
            sums.append(product(multiplied, matrix, None).unflatten(-1, (-1, self.dim)))
            if function is not functions[-1]:
                multiplied = function(gates, sums, state, *coefficients)[:, 0]
        return functions[-1](gates, sums, state, *coefficients)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        kind = x.device.type
        is_mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if is_mixed else x.dtype
        projected = self.project_frames(x).unflatten(-1, (-1, self.dim))  # [F, B, gates, D]
        matrices = self.matrices()
        hidden, last = Recurrence.apply(
            self.pointwise(), dtype, len(matrices), projected, state, *matrices, *self.coefficients()
        )
        return hidden.transpose(0, 1), last

    def plain(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden = []
        for projected in self.project(x).unbind(dim=1):
            state = self.step(projected, state)
            hidden.append(state[:, 0])
        return torch.stack(hidden, dim=1), state


class Recurrence(torch.autograd.Function):
    """A layer over all its frames; see the module.

    Products are in `dtype`, all else in the parameters' precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        functions: Sequence[Pointwise],
        dtype: torch.dtype,
        num_matrices: int,
        projected: Tensor,
        state: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            ctx: for the backward pass.
            functions: see `PointwiseCell`.
            dtype: of the products.
            num_matrices: how many of the tensors are matrices.
            projected: ``[F, B, gates, D]``.
            state: ``[B, S, D]``.
            tensors: matrices ``[g·D, D]``, then coefficients ``[D]``.

        Returns:
            Hidden vectors ``[F, B, D]`` and the last state ``[B, S, D]``.
        """
        matrices = [matrix.to(dtype) for matrix in tensors[:num_matrices]]
        coefficients = tensors[num_matrices:]
        num_frames, _, _, dim = projected.shape
        states = projected.new_empty(num_frames + 1, *state.shape)
        states[0] = state
        multiplied: list[list[Tensor]] = [[] for _ in matrices]  # what each matrix multiplies
        sums: list[list[Tensor]] = [[] for _ in matrices]
        for t in range(num_frames):
            now: list[Tensor] = []
            vector = states[t, :, 0]
            for k, matrix in enumerate(matrices):
                vector = vector.to(dtype)
                now.append(F.linear(vector, matrix).unflatten(-1, (-1, dim)))
                multiplied[k].append(vector)
                sums[k].append(now[k])
                if k < len(functions) - 1:
                    vector = functions[k](projected[t], now, states[t], *coefficients)[:, 0]
            states[t + 1] = functions[-1](projected[t], now, states[t], *coefficients)
        ctx.functions, ctx.num_coefficients = functions, len(coefficients)
        stacked = [torch.stack(each) for each in (*multiplied, *sums)]
        ctx.save_for_backward(projected, states, *matrices, *stacked, *coefficients)
        return states[1:, :, 0], states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of input, state, matrices and coefficients."""
        projected, states, *tensors = ctx.saved_tensors
        num = (len(tensors) - ctx.num_coefficients) // 3
        matrices, multiplied = tensors[:num], tensors[num : 2 * num]
        leaves = [one.to(states.dtype) for one in (projected, states[:-1], *tensors[2 * num :])]
        leaves = [one.detach().requires_grad_() for one in leaves]
        gates, before, sums, coefficients = leaves[0], leaves[1], leaves[2 : 2 + num], leaves[2 + num :]
        with torch.enable_grad():
            results = [
                function(gates, sums[: k + 1], before, *coefficients)
                for k, function in enumerate(ctx.functions)
            ]
            slopes = [_slopes(result, [before, *sums]) for result in results]
        # Gradients of the functions' results, of the state after each frame last, and of the sums.
        *of_vectors, of_state = of_results = [torch.zeros_like(result) for result in results]
        of_sums = [torch.zeros_like(one) for one in sums]
        carried = grad_last.clone()
        for t in range(len(projected) - 1, -1, -1):
            carried[:, 0] += grad_hidden[t]
            of_state[t] = carried
            receivers = [torch.zeros_like(carried), *(one[t] for one in of_sums)]
            _spread(of_state, slopes[-1], t, receivers)
            for k in range(num - 1, -1, -1):
                of_vector = of_sums[k][t].flatten(1).to(matrices[k].dtype) @ matrices[k]  # [B, D]
                if k == 0:
                    receivers[0][:, 0] += of_vector
                else:
                    of_vectors[k - 1][t, :, 0] = of_vector
                    _spread(of_vectors[k - 1], slopes[k - 1], t, receivers)
            carried = receivers[0]
        of_gates, *of_coefficients = torch.autograd.grad(results, [gates, *coefficients], of_results)
        of_matrices = [
            (one.flatten(0, 1).flatten(1).to(vectors.dtype).t() @ vectors.flatten(0, 1)).to(states.dtype)
            if is_needed
            else None
            for one, vectors, is_needed in zip(of_sums, multiplied, ctx.needs_input_grad[5:], strict=False)
        ]
        return (None, None, None, of_gates, carried, *of_matrices, *of_coefficients)


def _slopes(result: Tensor, by: list[Tensor]) -> list[tuple[Tensor | None, ...]]:
    """By how much each unit of a result ``[F, B, n, D]`` changes with what it depends on, n times."""
    return [
        torch.autograd.grad(one.sum(), by, retain_graph=True, allow_unused=True)
        for one in result.unbind(dim=2)
    ]


def _spread(
    of_result: Tensor, slopes: list[tuple[Tensor | None, ...]], t: int, receivers: list[Tensor]
) -> None:
    """Add to each receiver ``[B, …, D]`` what it has to do with the gradient of a result at frame t."""
    for which, by in enumerate(slopes):
        for receiver, slope in zip(receivers, by, strict=True):
            if slope is not None:
                receiver.addcmul_(of_result[t, :, which, None], slope[t])
