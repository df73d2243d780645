"""A function in a process of its own, so that its memory can be told apart."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from samplernn import signals
from samplernn.config import UserError

_Answer = TypeVar("_Answer")


def in_fresh_process(work: Callable[..., _Answer], *arguments: Any) -> _Answer:
    """What ``work(*arguments)`` returns in a fresh interpreter, which is dead afterwards, however this ends.

    Args:
        work: a function of a module.
        arguments: anything that can be pickled.

    Raises:
        UserError: as `work`, or there was too little memory.
        RuntimeError: it failed otherwise; it has said how.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, work, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:
            raise UserError("a measuring process was killed: perhaps there is too little memory") from None
        raise RuntimeError(f"a measuring process ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, UserError):
        raise answer
    return answer


def _answer(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for number in (signal.SIGINT, signals.HANGUP):  # a terminal sends them to both
        if number is not None:
            signal.signal(number, signal.SIG_IGN)  # the parent ends this process
    try:
        answer = work(*arguments)
    except UserError as error:
        answer = error
    except torch.OutOfMemoryError as error:
        answer = UserError(f"too little memory on the GPU ({str(error).splitlines()[0]})")
    sender.send(answer)


def peak_memory(device: torch.device) -> float | None:
    """Bytes that this process took at most: of memory, or allocated on its GPU; None: unknown."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu" or sys.platform == "win32":
        return None
    if sys.platform == "linux":  # ru_maxrss is never less than what the parent took when it started this one
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
