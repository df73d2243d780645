"""The process in which audio files are decoded; `decoding` starts and ends it.

It reads tasks from standard input and answers on standard output, both pickled. When its parent is gone, so
is it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from samplernn.audio.decoding import Task
from samplernn.audio.io import AudioError, Decoder
from samplernn.audio.shards import make_shard

_BEAT_SECONDS = 0.25
MEMORY = 2**30
"""Bytes that decoding may take beyond what the process takes when it starts."""
_Tasks: TypeAlias = "queue.SimpleQueue[tuple[str, tuple[Any, ...], str | None]]"
"""What to do, with which arguments, and from which folder."""


class _Answers:
    """Standard output, for more than one thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, kind: str, value: Any) -> None:
        """One answer."""
        with self._lock:
            pickle.dump((kind, value), self._stream)
            self._stream.flush()


def main() -> None:
    """Does what it is told until its parent is gone."""
    answers = _Answers(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what a C library prints is no answer
    _bound_memory()
    tasks: _Tasks = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(tasks,), daemon=True).start()
    threading.Thread(target=_beat, args=(answers,), daemon=True).start()
    while True:
        kind, arguments, current_folder = tasks.get()
        try:
            if current_folder:
                os.chdir(current_folder)
            if kind == "shard":
                task: Task = arguments[0]
                given_up, timeout = arguments[1:]
                begin = functools.partial(answers.send, "begin")
                answers.send("shard", make_shard(*task, begin, given_up, timeout))
            else:
                _send_blocks(answers, *arguments)
        except BaseException as error:
            answers.send("error", _picklable(error))


def _send_blocks(answers: _Answers, path: Path, sample_rate: int) -> None:
    answers.send("opening", None)
    try:
        decoder = Decoder(path, sample_rate)
        for block in decoder:
            answers.send("block", block)
    except MemoryError:
        raise AudioError(path, "takes too much memory to decode", "convert it, or remove it") from None
    answers.send("end", decoder.problems)


def _receive(tasks: _Tasks) -> None:
    """Waits for tasks even while a file is decoded, for that is how the parent's end is noticed."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            tasks.put(pickle.load(sys.stdin.buffer))
    os._exit(1)


def _beat(answers: _Answers) -> None:
    """Tells the seconds of computing: a decoder that hangs computes, one that waits for a disk does not."""
    with contextlib.suppress(OSError):
        while True:
            answers.send("cpu", time.process_time())
            time.sleep(_BEAT_SECONDS)
    os._exit(1)


def _bound_memory() -> None:
    """A damaged header can ask for any amount. Linux alone says how much is taken now."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        now = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
