"""Engines: ways to compute the same streams. `open_engine` picks one."""

from __future__ import annotations

import importlib.util

import torch

from samplernn.config import ModelConfig, UserError
from samplernn.generation.engines.base import Engine
from samplernn.generation.engines.cpu_plan import CELLS as CPU_CELLS
from samplernn.generation.engines.reference import ReferenceEngine
from samplernn.messages import say
from samplernn.model.network import SampleRNN

DTYPES = {
    "cuda": ("bfloat16", "float32"),
    "cpu": ("int8", "bfloat16", "float32"),
    "reference": ("float32",),
}
"""Engines, best first, and the dtypes of their weights, fastest first."""
CELLS = {"cuda": ("gru", "lstm"), "cpu": tuple(CPU_CELLS)}
"""The cells that an engine serves; engine reference, the generic one, steps every cell."""
HEADS = {"cuda": ("softmax",), "cpu": ("softmax",)}
"""The heads that an engine serves; engine reference serves every head."""
CUDA_HAS_RUN_ON_A_GPU = False
"""Whether `make test-gpu` has passed on a GPU. Until then ``auto`` leaves engine cuda alone, and a line says
that it is an experiment."""
CHOICES = ("auto", *DTYPES)
DTYPE_CHOICES = ("auto", *DTYPES["cpu"])


def open_engine(
    model: SampleRNN, engine: str = "auto", dtype: str = "auto", threads: int | None = None
) -> Engine:
    """An engine for `model`.

    Args:
        model: the network; it is copied, not changed.
        engine: one of `CHOICES`. ``auto`` looks at the model and the machine, never at the number of
            streams, so that a stream sounds the same whatever its neighbours.
        dtype: one of `DTYPE_CHOICES`; ``auto`` is the engine's fastest.
        threads: of engine cpu at most; None: one per core.

    Raises:
        UserError: an unknown engine, a dtype that the engine does not have, or a model that it cannot serve.
    """
    if engine not in CHOICES:
        raise UserError(f"unknown engine {engine!r}; there are: {', '.join(CHOICES)}")
    if dtype not in DTYPE_CHOICES:
        raise UserError(f"unknown dtype {dtype!r}; there are: {', '.join(DTYPE_CHOICES)}")
    if engine == "auto":
        return _best(model, dtype, threads)
    if dtype != "auto" and dtype not in DTYPES[engine]:
        raise UserError(f"engine {engine} has no dtype {dtype}; it has: {', '.join(DTYPES[engine])}")
    if missing := unserved(engine, model.config):
        raise UserError(f"engine {engine} has no {missing}: use engine reference, or auto")
    if engine != "cuda":
        return _opened(model, engine, dtype, threads)
    if reason := without_cuda():
        raise UserError(f"engine cuda cannot run here: {reason}; use engine cpu, or auto")
    if not CUDA_HAS_RUN_ON_A_GPU:
        say("engine cuda is an experiment: it has not run on a GPU before; engine cpu is the tested one")
    try:
        return _opened(model, engine, dtype, threads)
    except Exception as error:  # whatever drivers, compilers and GPUs may come up with
        raise UserError(f"engine cuda fails on this GPU ({first_line(error)}); use engine cpu") from error


def _best(model: SampleRNN, dtype: str, threads: int | None) -> Engine:
    """What `auto` stands for: engine cpu, or engine reference for a model that engine cpu does not serve.

    Once engine cuda has run on a GPU (`CUDA_HAS_RUN_ON_A_GPU`), it comes first where there is one.
    """
    is_served = not unserved("cuda", model.config) and dtype in ("auto", *DTYPES["cuda"])
    if CUDA_HAS_RUN_ON_A_GPU and is_served and not without_cuda():
        try:
            return open_engine(model, "cuda", dtype)
        except UserError as error:
            say(f"engine cpu, although there is a GPU: {error}")
    if missing := unserved("cpu", model.config):
        say(f"engine reference, the generic one: engine cpu has no {missing}")
        return open_engine(model, "reference", dtype)
    return open_engine(model, "cpu", dtype, threads)


def _opened(model: SampleRNN, engine: str, dtype: str, threads: int | None) -> Engine:
    """The engine; Numba and Triton take a moment to import, and only who asks for them waits for them."""
    dtype = DTYPES[engine][0] if dtype == "auto" else dtype
    if engine == "reference":
        return ReferenceEngine(model)
    if engine == "cuda":
        from samplernn.generation.engines.cuda import CudaEngine

        return CudaEngine(model, dtype)
    from samplernn.generation.engines.cpu import CpuEngine

    return CpuEngine(model, dtype, threads)


def without_cuda() -> str:
    """Why the CUDA engine cannot run on this machine; empty if it can."""
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU that PyTorch can use"
    try:
        capability = torch.cuda.get_device_capability()
    except RuntimeError as error:  # in a process that was forked from one that has used the GPU
        return first_line(error)
    if capability < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than Ampere and cannot multiply bfloat16"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with PyTorch for Linux)"
    return ""


def first_line(error: Exception) -> str:
    """The kind of an error, and what it says first."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]


def unserved(engine: str, config: ModelConfig) -> str:
    """What an engine lacks for a model, in a few words; empty: it serves it. Engine reference serves all."""
    if engine == "reference":
        return ""
    if config.rnn not in CELLS[engine]:
        return f"cell {config.rnn}"
    if config.head not in HEADS[engine]:
        return f"head {config.head}"
    if config.skip_connections and config.n_rnn > 1:
        return "skip connections"
    if not config.top_projection and config.lookback > config.dim:
        return f"tier that reads frames of {config.lookback} samples with {config.dim} units unprojected"
    return ""
