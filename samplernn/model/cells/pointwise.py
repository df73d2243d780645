"""The base of our own cells, and how they run over frames and train.

A cell is a few matrix products of its hidden vector and functions that work unit by unit: a unit sees nothing
but itself. So the derivatives of these functions are a few numbers per unit, computed for all frames at once,
and the backward loop over the frames is left with what depends on the frame after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samplernn.config import ModelConfig
from samplernn.model.weights import effective, lecun_uniform, orthogonal_blocks, row_lengths

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Maps ``x [..., in]``, ``weight [out, in]`` and a bias ``[out]`` or None to ``x @ weight.T + bias``:
`F.linear`, or an engine's own."""
UnitFunction = Callable[..., Tensor]
"""Takes what `PointwiseCell.next_state` takes, and works unit by unit."""


class PointwiseCell(nn.Module):
    """One layer of a cell of our own: D units, whose state is S vectors, the hidden one first.

    A cell says its gates and `next_state`; most need no more. Training calls `forward` with all frames; what
    walks frame by frame calls `project`, with as many frames as are known, and `step`. Both compute the same
    function, and a row of the batch never depends on the others.

    Args:
        config: takes `dim`, and what the cell says.
        in_features: size of the input.
        has_recurrent_matrix: the hidden vector is multiplied by a matrix, too.
    """

    vectors: ClassVar[int] = 1
    """S: 1, or 2 where a cell state stands behind the hidden vector."""
    gates: ClassVar[tuple[str, ...]] = ("new",)
    """Names of the blocks of D rows in the input's matrix and in the recurrent one, in order."""
    has_fixed_inputs: ClassVar[bool] = False
    """What enters the cell is not trained: neither its own matrices nor a tier's input projection."""

    def __init__(self, config: ModelConfig, in_features: int, has_recurrent_matrix: bool = True) -> None:
        super().__init__()
        self.dim = config.dim
        self.has_recurrent_matrix = has_recurrent_matrix
        rows = len(self.gates) * config.dim
        self.weight_ih: Tensor = nn.Parameter(torch.empty(rows, in_features))
        self.bias = nn.Parameter(torch.zeros(rows))
        lecun_uniform(self.weight_ih)
        self.weight_hh: Tensor
        if has_recurrent_matrix:
            self.weight_hh = nn.Parameter(torch.empty(rows, config.dim))
            orthogonal_blocks(self.weight_hh)
        self.g: nn.ParameterDict | None = None
        """With weight norm, the length of each row of each trained matrix, by name."""

    def add_weight_norm(self) -> None:
        """Give each row of each trained matrix a length of its own, at first the one that it has."""
        trained = {name: p for name, p in self.named_parameters() if name.startswith("weight")}
        self.g = nn.ParameterDict({name: row_lengths(p) for name, p in trained.items()})

    def weight(self, name: str) -> Tensor:
        """What the cell multiplies with: one of its matrices, weight norm multiplied out."""
        return effective(getattr(self, name), None if self.g is None else self.g.get(name))

    def fold(self) -> None:
        """Multiply the weight norm out, in place."""
        for name in self.g or ():
            getattr(self, name).copy_(self.weight(name))
        self.g = None

    def matrices(self) -> tuple[Tensor, ...]:
        """Of the recurrent products, each ``[g·D, D]``; one for each of `functions`, if there are any.

        The first multiplies the hidden vector, each further one what the function before it returns.
        """
        return (self.weight("weight_hh"),) if self.has_recurrent_matrix else ()

    def functions(self) -> tuple[UnitFunction, ...]:
        """One after each recurrent product. The last returns the state, the others ``[..., 1, D]``."""
        return (self.next_state,)

    def coefficients(self) -> tuple[Tensor, ...]:
        """What the functions take beside gates and state, each ``[D]``."""
        return ()

    def next_state(self, gates: Tensor, sums: list[Tensor], before: Tensor, *coefficients: Tensor) -> Tensor:
        """The state after a frame, unit by unit.

        Args:
            gates: what the input adds to each gate, ``[..., gates, D]``.
            sums: results of the recurrent products so far, each ``[..., g, D]``.
            before: the state before, ``[..., S, D]``.
            coefficients: as the method of this name has them.

        Returns:
            ``[..., S, D]``.
        """
        raise NotImplementedError

    def recurrent_blocks(self) -> dict[str, Tensor]:
        """The recurrent matrix of each gate, ``[D, D]``; none where the hidden vector is not multiplied."""
        blocks = [block for matrix in self.matrices() for block in matrix.split(self.dim)]
        return dict(zip(self.gates, blocks, strict=True)) if blocks else {}

    def project(self, x: Tensor, product: Product = F.linear) -> Tensor:
        """What the input adds to each gate, ``[..., in]`` to ``[..., gates·D]``: all that needs no state."""
        # Added apart, the bias keeps its precision where products are narrow.
        return product(x, self.weight("weight_ih"), None) + self.bias

    def project_frames(self, x: Tensor) -> Tensor:
        """`project`, frames first: ``[B, F, in]`` to ``[F, B, gates·D]``."""
        frames = x.transpose(0, 1)
        # Flat, for torch may make a batch of products of a view of three dimensions, and copy the weights.
        return self.project(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def step(self, projected: Tensor, state: Tensor, product: Product = F.linear) -> Tensor:
        """The state after a frame: ``[B, gates·D]`` and ``[B, S, D]`` to ``[B, S, D]``; changes neither."""
        gates = projected.unflatten(-1, (-1, self.dim))
        functions, coefficients, sums = self.functions(), self.coefficients(), list[Tensor]()
        result = state
        for matrix, function in zip(self.matrices(), functions, strict=False):
            sums.append(product(result[:, 0], matrix, None).unflatten(-1, (-1, self.dim)))
            result = function(gates, sums, state, *coefficients)
        return result if sums else functions[0](gates, sums, state, *coefficients)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: ``[B, F, in]``.
            state: ``[B, S, D]``.

        Returns:
            Hidden vectors ``[B, F, D]`` and the state after the last frame.
        """
        kind = x.device.type
        is_mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if is_mixed else x.dtype
        projected = self.project_frames(x).unflatten(-1, (-1, self.dim))  # [F, B, gates, D]
        matrices = self.matrices()
        hidden, last = Recurrence.apply(
            self.functions(), dtype, len(matrices), projected, state, *matrices, *self.coefficients()
        )
        return hidden.transpose(0, 1), last

    def plain(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` with nothing but PyTorch's own operations: the yardstick for speed."""
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
        functions: tuple[UnitFunction, ...],
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
        # The functions again, for all frames at once, and by how much each result changes with its inputs.
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
        carried = grad_last.clone()  # gradient of the state after frame t, [B, S, D]
        for t in range(len(projected) - 1, -1, -1):
            carried[:, 0] += grad_hidden[t]
            of_state[t] = carried
            receivers = [torch.zeros_like(carried), *(one[t] for one in of_sums)]
            _add_products(receivers, of_state, slopes[-1], t)
            for k in range(num - 1, -1, -1):
                of_vector = of_sums[k][t].flatten(1).to(matrices[k].dtype) @ matrices[k]  # [B, D]
                if k == 0:
                    receivers[0][:, 0] += of_vector
                else:
                    of_vectors[k - 1][t, :, 0] = of_vector
                    _add_products(receivers, of_vectors[k - 1], slopes[k - 1], t)
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


def _add_products(
    receivers: list[Tensor], of_result: Tensor, slopes: list[tuple[Tensor | None, ...]], t: int
) -> None:
    """Add to each gradient ``[B, …, D]`` that of a result at frame t, times the slope between the two."""
    for which, by in enumerate(slopes):
        for receiver, slope in zip(receivers, by, strict=True):
            if slope is not None:
                receiver.addcmul_(of_result[t, :, which, None], slope[t])
