"""The CUDA engine: one program on the whole GPU, that stays there for thousands of samples.

`cuda_program` is what happens in a sample; here streams are put before it, and its tiles' shapes chosen.
Where Triton's kernels are interpreted (``TRITON_INTERPRET=1``) the same runs on the CPU, for tests.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from samplernn.generation.engines import cuda_kernels, cuda_program
from samplernn.generation.engines.base import Engine, EngineState, round_up
from samplernn.generation.engines.cuda_weights import Packed
from samplernn.generation.request import Draws
from samplernn.generation.sampling import DrawArrays, draw_arrays
from samplernn.messages import say
from samplernn.model.network import SampleRNN, State

_STREAMS_AT_ONCE = 4096
"""Streams that one call of the program advances, at most."""
_CONDITIONING = 2**30
"""Numbers of conditioning of these streams, at most: places in it are counted with 32 bits."""
_SAMPLES_PER_LAUNCH = 8192
"""Samples of a stream after which the program ends, about, so that a GPU can draw the screen in between, and
Ctrl-C is heard; fewer of more than 64 streams."""
_TOLERANCE = 0.01
"""Of the negative log-likelihood of random codes: bfloat16 takes a seventh of it at most."""


class Tiles(NamedTuple):
    """Shapes of `cuda_program.advance`. They decide about speed alone, not about a bit of the result."""

    IS_ALONE: bool
    IS_MASKED: bool
    BM: int
    """Rows; streams are padded to a multiple."""
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


class CudaEngine(Engine):
    """Runs on the model's GPU, else on the current one; on the CPU where kernels are interpreted.

    Args:
        model: the network; it is copied.
        dtype: of weights and of what is multiplied with them: bfloat16 or float32. Sums and states are
            float32.

    Raises:
        RuntimeError: the program does not compute here what the network computes.
    """

    name = "cuda"

    def __init__(self, model: SampleRNN, dtype: str = "bfloat16") -> None:
        super().__init__(model, dtype, _device(model))
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._packed = Packed(self.model, self._dtype, self.device)
        self._blocks, self._shared_memory = 1, 0
        if self.device.type == "cuda":
            found = triton.runtime.driver.active.utils.get_device_properties(self.device.index)
            self._blocks, self._shared_memory = found["multiprocessor_count"], found["max_shared_mem"]
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
                raise RuntimeError(f"negative log-likelihood is off by {share:.2%} with {num} streams")
        drawn = []
        for num in (1, 3, 17):
            self.start(num)
            drawn.append(self.advance(draw_arrays(Draws(streams=tuple(range(num))), length)))
            if not ((drawn[-1] >= 0) & (drawn[-1] < config.q_levels)).all():
                raise RuntimeError(f"codes are out of range with {num} streams")
        if not all(torch.equal(codes[0], drawn[0][0]) for codes in drawn):
            raise RuntimeError("a stream depends on its neighbours")

    def _hear(self, codes: Tensor) -> None:
        with _exact():
            super()._hear(codes)

    @torch.inference_mode()
    def advance(self, draws: DrawArrays) -> Tensor:
        codes, _ = self._run(None, draws)
        self._state = EngineState(self._state.network, self._state.position + draws.length)
        return codes

    @torch.inference_mode()
    def score(self, codes: Tensor) -> Tensor:
        unused = draw_arrays(Draws(streams=(0,) * len(codes)), codes.shape[1])
        return self._run(codes, unused)[1]

    def _run(self, given: Tensor | None, draws: DrawArrays) -> tuple[Tensor, Tensor]:
        """Advance every stream, some of them at a time, by as many samples as a launch may take.

        Args:
            given: codes, int64 ``[B, length]``; None: draw them.
            draws: how; of given codes only the shape counts.

        Returns:
            Codes and, if they were given, their negative log-likelihoods, ``[B, length]``.
        """
        length = draws.length
        self._require_whole_frames(length)
        state, num = self._state, len(self._state.position)
        at_once = min(_STREAMS_AT_ONCE, max(32, _CONDITIONING // (self._packed.ratios * self._packed.dim)))
        per_launch = min(_SAMPLES_PER_LAUNCH, 64 * _SAMPLES_PER_LAUNCH // min(num, at_once))
        per_launch = max(1, per_launch // self.lookback) * self.lookback
        codes = torch.empty(num, length, dtype=torch.int64)
        nll = torch.empty(num, length if given is not None else 0)
        after = []
        for first in range(0, num, at_once):
            rows = slice(first, first + at_once)
            group = state.rows(rows)
            for start in range(0, length, per_launch):
                piece = slice(start, min(start + per_launch, length))
                now = codes[rows, piece]
                if given is not None:
                    now.copy_(given[rows, piece])
                part = draws.part(rows, piece)
                group, nll[rows, piece] = self._launch(group, now, given is not None, part)
            after.append(group)
        self._state = EngineState(EngineState.joined(after).network, state.position)
        return codes, nll

    def _launch(
        self, state: EngineState, codes: Tensor, is_given: bool, draws: DrawArrays
    ) -> tuple[EngineState, Tensor]:
        """Run the program once, for some streams and a part of a call; writes the codes that it draws.

        Returns:
            The state after the last sample and, if codes were given, their negative log-likelihoods.
        """
        packed, config, device = self._packed, self.model.config, self.device
        num, length = codes.shape
        shapes = tiles(num, packed.dim, packed.codes, self._blocks, self._dtype, self._shared_memory)
        rows = round_up(num, shapes.BM)

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        def padded(values: Tensor) -> Tensor:
            """``[num, …]`` to ``[rows, …]`` on the device."""
            return F.pad(values, (0, 0) * (values.dim() - 1) + (0, rows - num)).to(device)

        is_lstm = config.rnn == "lstm"
        # Hidden vectors and, of an LSTM, cell states, [S, tiers, n_rnn, rows, D].
        vectors = zeros(2 if is_lstm else 1, len(config.frame_sizes), config.n_rnn, rows, packed.dim)
        for tier, found in enumerate(state.network.rnn):  # [B, S, n_rnn, D]
            vectors[:, tier, :, :num, : config.dim] = found.permute(1, 2, 0, 3)
        narrow = zeros(2, *vectors.shape[1:], dtype=self._dtype)
        narrow[0] = vectors[0]
        past_and_new = torch.cat([state.network.history, codes.to(device)], dim=1).int()
        past_and_new = F.pad(past_and_new, (0, 0, 0, rows - num), value=self.model.q_zero)
        nll = zeros(rows, length if is_given else 0)
        seed = draws.seed
        launch(
            self._blocks,
            device,
            **packed.tensors,
            codes=past_and_new,
            hidden=vectors[0],
            cell=vectors[-1],
            narrow=narrow,
            tier_input=zeros(rows, packed.dim, dtype=self._dtype),
            conditioning=zeros(packed.ratios, rows, packed.dim),
            first=zeros(rows, packed.dim, dtype=self._dtype),
            second=zeros(rows, packed.dim, dtype=self._dtype),
            logits=zeros(rows, packed.codes),
            nll=nll,
            inverse_temperatures=padded(torch.from_numpy(draws.inverse_temperatures())),
            positions=padded(state.position),
            streams=padded(torch.tensor(draws.streams)),
            seeds=torch.tensor([seed - (1 << 64) if seed >> 63 else seed], device=device),
            filters=padded(torch.from_numpy(draws.filters)),
            counter=zeros(1, dtype=torch.int32),
            num=num,
            num_rows=rows,
            length=length,
            TIERS=tuple(packed.tiers),
            LAYERS=config.n_rnn,
            D=packed.dim,
            Q=packed.codes,
            Q_LEVELS=config.q_levels,
            IS_LSTM=is_lstm,
            IS_GIVEN=is_given,
            IS_FILTERED=draws.is_filtered,
            **shapes._asdict(),
        )
        codes.copy_(past_and_new[:num, self.lookback :])
        after = vectors[:, :, :, :num, : config.dim].permute(1, 3, 0, 2, 4)  # [tiers, B, S, n_rnn, D]
        network = State(past_and_new[:num, -self.lookback :].long(), tuple(after.unbind()))
        return EngineState(network, state.position + length), nll[:num].cpu()


def launch(blocks: int, device: torch.device, **arguments: Any) -> None:
    """Run `cuda_program.advance`; the first time of a shape, compile it and say so if that takes a while."""
    if device.type == "cpu":
        cuda_program.advance[(blocks,)](**arguments)
        return
    said = "compiling the engine for this GPU: once for each kind of request, some seconds each …"
    notice = threading.Timer(2.0, say, (said,))
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
