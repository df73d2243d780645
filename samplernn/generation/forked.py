"""Generating in a forked process: what does not survive a fork, and does without it.

Threads stay in the parent. OpenMP, with which torch shares out its work, does not notice: the child waits for
the parent's threads for ever. With one thread it needs none.
"""

from __future__ import annotations

import os

import torch

from samplernn.config import UserError

_process = os.getpid()


def keep_to_one_thread() -> None:
    """In a process that was forked since this module was loaded, let torch use one thread from now on."""
    global _process
    if os.getpid() != _process:
        _process = os.getpid()
        torch.set_num_threads(1)


def require_own_gpu(engine: str, process: int) -> None:
    """A GPU that one process has opened is of no use in another.

    Args:
        engine: its name.
        process: in which it was opened.

    Raises:
        UserError: it was opened on a GPU, in the process that this one was forked from.
    """
    if engine == "cuda" and process != os.getpid():
        raise UserError(
            "a forked process cannot go on with the GPU of the one it comes from: start it with "
            "multiprocessing's spawn or forkserver, and open the checkpoint there"
        )
