"""The CUDA engine: one program on the whole GPU, that stays there for thousands of samples.

`cuda_program` is what happens in a sample; here streams are put before it, and its tiles' shapes chosen.
Where Triton's kernels are interpreted (``TRITON_INTERPRET=1``) the same runs on the CPU, for tests.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from samplernn.generation.engines import cuda_kernels, cuda_program
from samplernn.generation.engines.base import EngineState, heard, require_one
from samplernn.generation.engines.cuda_weights import Packed, round_up
from samplernn.generation.request import Draws
from samplernn.generation.sampling import DrawArrays, draw_arrays
from samplernn.model.network import SampleRNN, State

_AT_ONCE = 4096
"""Streams that one call of the program advances, at most."""
_CONDITIONING = 2**30
"""Numbers of conditioning of these streams, at most: places in it are counted with 32 bits."""
_PER_LAUNCH = 8192
"""Samples of a stream after which the program ends, about, so that a GPU can draw the screen in between, and
Ctrl-C is heard; fewer of more than 64 streams."""
_TOLERANCE = 0.01
"""Of the surprise that the network feels: bfloat16 takes a seventh of it at most, on random codes."""


class Tiles(NamedTuple):
    """Shapes of `cuda_program.advance`. They decide about speed alone, not about a bit of the result."""

    IS_ALONE: bool
    IS_MASKED: bool
    BM: int
    """Rows."""
    BN: int
    """Columns of the MLP's hidden layer."""
    BN_UP: int
    """Columns of upsampling."""
    BN_OUT: int
    """Columns of logits."""
    BU: int
    """Units of an RNN layer."""
    BK: int
    """Inputs that a block reads at a time."""
    BK_QUARTER: int
    """Inputs that it reads at a time of each of four chains."""
    BD: int
    """Units of the first layer."""
    STAGES: int
    """How many inputs at a time are on their way at once, and in use."""
    IS_PAIR: bool
    """Two tiles of rows share the weights that are read."""

    @property
    def rows(self) -> int:
        """Streams are padded to a multiple."""
        return 2 * self.BM if self.IS_PAIR else self.BM


class CudaEngine:
    """See `samplernn.generation.engines.base.Engine`.

    Args:
        model: the network; it is copied.
        dtype: of weights and of what is multiplied with them: bfloat16 or float32. Sums and states are
            float32.
        device: a CUDA device, or the CPU where kernels are interpreted; None: the model's GPU, or the current
            one.

    Raises:
        RuntimeError: the program does not compute here what the network computes.
    """

    name = "cuda"

    def __init__(
        self, model: SampleRNN, dtype: str = "bfloat16", device: torch.device | str | None = None
    ) -> None:
        self.dtype = dtype
        self.device = _device(model) if device is None else torch.device(device)
        if self.device == torch.device("cuda"):
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.model = model.folded().float().to(self.device)
        self.lookback = model.lookback
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._packed = Packed(self.model, self._dtype, self.device)
        self._blocks, self._shared_memory = 1, 0
        if self.device.type == "cuda":
            properties = triton.runtime.driver.active.utils.get_device_properties(self.device.index)
            self._blocks, self._shared_memory = (
                properties["multiprocessor_count"],
                properties["max_shared_mem"],
            )
            self._try()
        self.start(1)

    @torch.inference_mode()
    def _try(self) -> None:
        """Compile the program for one stream, few and many, compare it with the network and with itself.

        A GPU on which something fails, or comes out wrong, is better known before than heard.
        """
        config, length = self.model.config, 2 * self.lookback
        generator = torch.Generator().manual_seed(0)
        for num in (1, 17):
            codes = torch.randint(config.q_levels, (num, length), generator=generator)
            self.start(num)
            stepped = self.score(codes)
            with _exact():
                on_device = codes.to(self.device)
                logits, _ = self.model(on_device, self.model.initial_state(num))
            expected = F.cross_entropy(logits.transpose(1, 2), on_device, reduction="none").cpu()
            share = (stepped - expected).abs().mean() / expected.mean()
            if not share < _TOLERANCE:  # not a number, too
                raise RuntimeError(f"surprise is off by {share:.2%} with {num} streams")
        drawn = []
        for num in (1, 3, 17):
            self.start(num)
            drawn.append(self.advance(draw_arrays(Draws(streams=tuple(range(num))), length)))
            if not ((drawn[-1] >= 0) & (drawn[-1] < config.q_levels)).all():
                raise RuntimeError(f"codes are out of range with {num} streams")
        if not all(torch.equal(codes[0], drawn[0][0]) for codes in drawn):
            raise RuntimeError("a stream depends on its neighbours")

    @torch.inference_mode()
    def start(self, num_streams: int) -> None:
        position = torch.zeros(num_streams, dtype=torch.int64)
        self._state = EngineState(self.model.initial_state(num_streams), position)

    @torch.inference_mode()
    def prefill(self, codes: Tensor) -> None:
        require_one(self._state)
        with _exact():
            self._state = heard(self.model, self._state, codes.to(self.device))

    @torch.inference_mode()
    def advance(self, draws: DrawArrays) -> Tensor:
        codes, _ = self._run(None, draws)
        self._state = EngineState(self._state.network, self._state.position + draws.length)
        return codes

    @torch.inference_mode()
    def score(self, codes: Tensor) -> Tensor:
        unused = draw_arrays(Draws(streams=(0,) * len(codes)), codes.shape[1])
        return self._run(codes, unused)[1]

    def export_state(self) -> EngineState:
        network = self._state.network
        rnn = tuple(tier.detach().cpu().clone() for tier in network.rnn)
        return EngineState(State(network.history.cpu().clone(), rnn), self._state.position)

    def import_state(self, state: EngineState) -> None:
        network = state.network
        rnn = tuple(tier.to(self.device) for tier in network.rnn)
        self._state = EngineState(State(network.history.to(self.device), rnn), state.position)

    def _run(self, given: Tensor | None, draws: DrawArrays) -> tuple[Tensor, Tensor]:
        """Advance every stream; returns codes and, if given, their negative log-likelihoods, ``[B, length]``.

        Args:
            given: codes, int64 ``[B, length]``; None: draw them.
            draws: how.
        """
        length = draws.length
        if length % self.lookback:
            raise ValueError(f"length {length} is not a multiple of the largest frame, {self.lookback}")
        state, num = self._state, len(self._state.position)
        at_once = min(_AT_ONCE, max(32, _CONDITIONING // (self._packed.ratios * self._packed.dim)))
        per_launch = min(_PER_LAUNCH, 64 * _PER_LAUNCH // min(num, at_once))
        per_launch = max(1, per_launch // self.lookback) * self.lookback
        codes = torch.empty(num, length, dtype=torch.int64)
        nll = torch.empty(num, length if given is not None else 0)
        after = []
        for first in range(0, num, at_once):
            rows = slice(first, first + at_once)
            streams = _Streams(self, state.rows(rows), draws.of_rows(rows))
            for start in range(0, length, per_launch):
                piece = slice(start, min(start + per_launch, length))
                codes[rows, piece], scores = streams.advance(
                    piece, None if given is None else given[rows, piece]
                )
                if given is not None:
                    nll[rows, piece] = scores
            after.append(streams.exported())
        self._state = EngineState(EngineState.joined(after).network, state.position)
        return codes, nll


class _Streams:
    """Some streams on their way: the program's buffers.

    Args:
        engine: whose network they run through.
        state: where they start.
        draws: how their codes are drawn.
    """

    def __init__(self, engine: CudaEngine, state: EngineState, draws: DrawArrays) -> None:
        self._engine, packed, device = engine, engine._packed, engine.device
        config = engine.model.config
        self.num = num = len(draws.streams)
        self._tiles = tiles(
            num, packed.dim, packed.codes, engine._blocks, engine._dtype, engine._shared_memory
        )
        self._num_rows = rows = round_up(num, self._tiles.rows)
        self._shape = shape = (len(config.frame_sizes), config.n_rnn, rows, packed.dim)
        self._history = state.network.history

        def floats(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self._vectors = floats(2 if config.rnn == "lstm" else 1, *shape)  # hidden, cell
        for tier, vectors in enumerate(state.network.rnn):  # [B, S, n_rnn, D]
            self._vectors[:, tier, :, :num, : config.dim] = vectors.permute(1, 2, 0, 3)
        narrow = engine._dtype
        self._buffers = {
            "hidden": self._vectors[0],
            "cell": self._vectors[-1],
            "narrow": floats(2, *shape, dtype=narrow),
            "tier_input": floats(rows, packed.dim, dtype=narrow),
            "conditioning": floats(packed.ratios, rows, packed.dim),
            "first": floats(rows, packed.dim, dtype=narrow),
            "second": floats(rows, packed.dim, dtype=narrow),
            "logits": floats(rows, packed.codes),
        }
        self._positions = torch.zeros(rows, dtype=torch.int64)
        self._positions[:num] = state.position
        self._numbers = torch.zeros(rows, dtype=torch.int64)
        self._numbers[:num] = torch.tensor(draws.streams)
        self._seed = torch.tensor([draws.seed - (1 << 64) if draws.seed >> 63 else draws.seed])
        self._inverse_temperatures = torch.zeros(rows, draws.length)
        self._inverse_temperatures[:num] = torch.from_numpy(draws.inverse_temperatures())
        self._filters = torch.zeros(rows, draws.filters.shape[1])
        self._filters[:num] = torch.from_numpy(draws.filters)
        self._is_filtered = draws.is_filtered

    def advance(self, piece: slice, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the program once.

        Args:
            piece: of the samples of a call.
            given: codes of the piece, ``[B, length]``; None: draw them.

        Returns:
            Codes and negative log-likelihoods, ``[B, length]``, on the CPU.
        """
        engine, packed, config = self._engine, self._engine._packed, self._engine.model.config
        device, length, rows = engine.device, piece.stop - piece.start, self._num_rows
        codes = torch.full(
            (rows, engine.lookback + length), engine.model.q_zero, dtype=torch.int32, device=device
        )
        codes[: self.num, : engine.lookback] = self._history
        if given is not None:
            codes[: self.num, engine.lookback :] = given.to(device)
        nll = torch.zeros(rows, 0 if given is None else length, device=device)
        self._buffers["narrow"][0] = self._vectors[0]
        launch(
            engine._blocks,
            device,
            **packed.tensors,
            **self._buffers,
            codes=codes,
            nll=nll,
            inverse_temperatures=self._inverse_temperatures[:, piece].contiguous().to(device),
            positions=(self._positions + piece.start).to(device),
            streams=self._numbers.to(device),
            seeds=self._seed.to(device),
            filters=self._filters.to(device),
            counter=torch.zeros(1, dtype=torch.int32, device=device),
            num=self.num,
            num_rows=rows,
            length=length,
            TIERS=tuple(packed.tiers),
            LAYERS=config.n_rnn,
            D=packed.dim,
            Q=packed.codes,
            Q_LEVELS=config.q_levels,
            IS_LSTM=config.rnn == "lstm",
            IS_GIVEN=given is not None,
            IS_FILTERED=self._is_filtered,
            **self._tiles._asdict(),
        )
        self._history = codes[: self.num, -engine.lookback :].long()
        return codes[: self.num, engine.lookback :].cpu().long(), nll[: self.num].cpu()

    def exported(self) -> EngineState:
        """The network's state after the last sample."""
        dim, num = self._engine.model.config.dim, self.num
        vectors = self._vectors[:, :, :, :num, :dim].permute(1, 3, 0, 2, 4)  # [tiers, B, S, n_rnn, D]
        return EngineState(State(self._history, tuple(vectors.unbind())), self._positions[:num])


def launch(blocks: int, device: torch.device, **arguments: Any) -> None:
    """Run `cuda_program.advance`; the first time of a shape, compile it and say so if that takes a while."""
    if device.type == "cpu":
        cuda_program.advance[(blocks,)](**arguments)
        return
    said = "compiling the engine for this GPU: once for each kind of request, some seconds each …"
    notice = threading.Timer(2.0, lambda: print(said, file=sys.stderr, flush=True))
    notice.start()
    try:
        with torch.cuda.device(device):
            # All blocks wait for each other, so all must run: the driver refuses where they cannot.
            cuda_program.advance[(blocks,)](
                **arguments, num_warps=cuda_kernels.WARPS, launch_cooperative_grid=True
            )
    finally:
        notice.cancel()


def tiles(num: int, dim: int, codes: int, blocks: int, dtype: torch.dtype, shared_memory: int) -> Tiles:
    """Shapes that keep the blocks busy.

    Args:
        num: streams.
        dim: padded hidden units.
        codes: padded codes.
        blocks: that run at once.
        dtype: of the weights.
        shared_memory: bytes that a block may have; 0: any number.
    """

    def share(columns: int) -> int:
        """Columns of a block if all get some, a power of two."""
        return min(columns, max(8, 1 << (-(-columns // blocks) - 1).bit_length()))

    whole = dim & -dim  # the largest power of two that divides it
    kept = dim * (share(dim) + share(codes)) * dtype.itemsize  # bytes, of the MLP's weights in a block
    is_alone = num == 1 and whole == dim and (kept <= shared_memory // 2 or not shared_memory)
    few, wide = num <= 16, dtype == torch.float32
    is_roomy = shared_memory >= 160_000 or not shared_memory
    return Tiles(
        IS_ALONE=is_alone,
        IS_MASKED=few,
        BM=16 if few or wide else 32,
        BN=share(dim) if is_alone else 8 if few else 16 if wide else 64,
        BN_UP=32 if few or wide else 64,
        BN_OUT=share(codes) if is_alone else 8 if few else 16 if wide else min(32, codes),
        BU=8 if few or wide else 32,
        BK=32 if wide else min(128 if few else 64, whole),
        BK_QUARTER=min(16 if wide else 32 if few and not is_roomy else 64, whole // 4),
        BD=min(256, whole),
        STAGES=4 if few and is_roomy else 3,
        IS_PAIR=num >= 512 and not wide,
    )


@contextmanager
def _exact() -> Iterator[None]:
    """The network itself in float32, not in what tensor cores make of it by default."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _device(model: SampleRNN) -> torch.device:
    """Where to run if nobody says."""
    if interpreted():
        return torch.device("cpu")
    here = model.sample_level_mlp.hidden.weight.device
    return here if here.type == "cuda" else torch.device("cuda", torch.cuda.current_device())


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)
