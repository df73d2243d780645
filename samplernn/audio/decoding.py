"""Decoding in processes that can be ended.

libsndfile can loop for ever in one call, or crash, and a damaged file is all that it takes. No thread gets
that back. So files are decoded in processes of their own (`decoding_process`): one that takes too long is
killed and costs the one file that it was reading, and Ctrl-C waits for no decoder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samplernn import signals
from samplernn.audio import shards
from samplernn.audio.files import Source
from samplernn.audio.io import AudioError, Decoder
from samplernn.audio.shards import Shard
from samplernn.config import DECODE_TIMEOUT
from samplernn.messages import say

BYTES_PER_TIMEOUT = 4 * 2**20
"""Larger files than this have proportionally more time."""
_STARTUP_SECONDS = 120.0
"""For Python and NumPy to be read from a slow disk."""
_END_SECONDS = 1.0
"""A killed process is waited for this long; one that a broken disk holds cannot be ended by anybody."""
_COMPUTING = 0.1
"""A decoder that hangs computes for this part of the time at least, on a busy machine too; one that waits for
a disk does not."""
_GIVE_UP = "convert it, remove it, or give it more time (data.decode_timeout)"


class Task(NamedTuple):
    """A shard to be made."""

    folder: Path
    sources: tuple[Source, ...]
    sample_rate: int
    shard_dir: Path
    key: str
    store: bool
    """False: only measured, and nothing is written."""


class CannotStart(Exception):
    """No decoding process can be started here."""


def seconds_for(size: int, timeout: float) -> float:
    """How long a file of `size` bytes may take where one of up to 4 MiB has `timeout` seconds."""
    return timeout * max(1.0, size / BYTES_PER_TIMEOUT)


def make_shards(
    tasks: Sequence[Task], workers: int, timeout: float, advance: Callable[[int], None]
) -> dict[str, Shard]:
    """Makes shards in several processes.

    Args:
        tasks: what to make.
        workers: processes; 0: all is decoded in this process, and a decoder that hangs is waited for.
        timeout: seconds that a file of up to 4 MiB may take; larger ones in proportion.
        advance: called with the size in bytes of each source that is done.

    Returns:
        The shards by key.

    Raises:
        OSError: a shard cannot be written.
    """
    if not tasks:
        return {}
    try:
        if workers and sys.executable:
            return _make_in_processes(tasks, min(workers, len(tasks)), timeout, advance)
    except CannotStart as error:
        say(f"decoding in this process: {error}")
    return {task.key: _make_here(task, advance) for task in tasks}


def _make_here(task: Task, advance: Callable[[int], None]) -> Shard:
    count = _Count(task, advance)
    shard = shards.make_shard(*task, count.begin)
    count.begin(len(task.sources))
    return shard


def _make_in_processes(
    tasks: Sequence[Task], workers: int, timeout: float, advance: Callable[[int], None]
) -> dict[str, Shard]:
    """Threads hand the tasks out to a process each; all processes end with this call."""
    pending: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        pending.put(task)
    results: queue.SimpleQueue[tuple[str, Shard | BaseException]] = queue.SimpleQueue()
    processes = [DecodingProcess(timeout) for _ in range(workers)]

    def work(process: DecodingProcess) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                task = pending.get_nowait()
                try:
                    results.put((task.key, process.make(task, advance)))
                except BaseException as error:  # for the thread that waits for all of them
                    results.put((task.key, error))
                    return

    # Daemons, for a process that a broken disk holds cannot be ended, and would be waited for at the exit.
    threads = [threading.Thread(target=work, args=(process,), daemon=True) for process in processes]
    made: dict[str, Shard] = {}
    try:
        for thread in threads:
            thread.start()
        while len(made) < len(tasks):
            key, result = _next(results)
            if isinstance(result, BaseException):
                raise result
            made[key] = result
    finally:
        for process in processes:
            process.end()
        for thread in threads:
            thread.join(_END_SECONDS)
        for process in processes:
            process.clean_up()
    return made


def _next(results: queue.SimpleQueue[tuple[str, Shard | BaseException]]) -> tuple[str, Shard | BaseException]:
    """Waits so that Ctrl-C is heard on Windows too."""
    while True:
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=0.25)


class _Count:
    """Tells how many bytes are done; what is decoded a second time does not count again."""

    def __init__(self, task: Task, advance: Callable[[int], None]) -> None:
        self._task, self._advance, self._done = task, advance, 0

    def begin(self, index: int) -> None:
        """The sources before `index` are done."""
        for source in self._task.sources[self._done : index]:
            self._advance(source.size)
        self._done = max(self._done, index)


class DecodingProcess:
    """A process that decodes, started when it is first needed and again when it was ended.

    Args:
        timeout: seconds that a file of up to 4 MiB may take; larger ones in proportion.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False
        self._is_overdue = False
        self._lock = threading.Lock()
        self._temporary: list[tuple[Path, int]] = []
        self._cpu = self._cpu_at_begin = 0.0
        self._timer: threading.Timer | None = None

    def make(self, task: Task, advance: Callable[[int], None]) -> Shard:
        """Makes one shard; files at which the decoder hangs or crashes are left out and named.

        Raises:
            CannotStart: there is no process to do it.
            OSError: the shard cannot be written.
        """
        given_up: dict[str, AudioError] = {}
        count = _Count(task, advance)
        while True:
            shard, failed = self._try(task, given_up, count)
            if shard is not None:
                return shard
            if failed is None:
                raise CannotStart("a decoding process ended by itself")
            source, error = failed
            given_up[source.path] = error

    def _try(
        self, task: Task, given_up: dict[str, AudioError], count: _Count
    ) -> tuple[Shard | None, tuple[Source, AudioError] | None]:
        """A shard, or the file that ended the process and why."""
        self._send("shard", (task, given_up, self._timeout), task.shard_dir)
        source, limit, began = None, 0.0, 0.0
        for kind, value in self._answers(_STARTUP_SECONDS):
            if kind == "begin":
                count.begin(value)
                source = task.sources[value]
                limit, began = seconds_for(source.size, self._timeout), time.monotonic()
                self._watch(limit)
            elif kind == "shard":
                count.begin(len(task.sources))
                return value, None
        if source is None:
            return None, None
        return None, (source, self._why(task.folder / source.path, limit, time.monotonic() - began))

    def blocks(
        self, path: Path, sample_rate: int, timeout: float, problems: list[AudioError]
    ) -> Iterator[np.ndarray]:
        """Blocks of one file as `Decoder` gives them.

        Args:
            path: the file.
            sample_rate: Hz.
            timeout: seconds that a block may take.
            problems: gets what is wrong with the file although it could be used.

        Raises:
            AudioError: it cannot be decoded, or not in time.
            CannotStart: there is no process to do it.
        """
        self._send("blocks", (path, sample_rate))
        has_begun = False
        for kind, value in self._answers(_STARTUP_SECONDS):
            if kind == "block":
                self._watch(None)  # what follows may take its time
                yield value
            elif kind == "end":
                problems += value
                return
            if kind in ("block", "opening"):
                has_begun = True
                self._watch(timeout)
        if not has_begun:
            raise CannotStart("a decoding process ended by itself")
        raise self._why(path, timeout, timeout, "convert it to WAV or FLAC")

    def end(self) -> None:
        """Ends it, for good."""
        with self._lock:
            self._is_over = True
            if self._process:
                self._process.kill()

    def clean_up(self) -> None:
        """Removes the temporary files of processes that were killed."""
        for folder, pid in self._temporary:
            for path in folder.glob(f".*.{pid}-*.tmp"):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _send(self, kind: str, arguments: tuple[Any, ...], writes_to: Path | None = None) -> None:
        with self._lock:
            if self._is_over:
                raise CannotStart("it was ended")
            if self._process is None or self._process.poll() is not None:
                self._is_overdue = False
                self._process = _start()
            if writes_to:
                self._temporary.append((writes_to, self._process.pid))
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it is gone, as its answer will say
            pickle.dump((kind, arguments, _current_folder()), self._process.stdin)
            self._process.stdin.flush()

    def _answers(self, limit: float) -> Iterator[tuple[str, Any]]:
        """What the process says, until it ends or an answer was the last. Raises what it raised."""
        assert self._process
        assert self._process.stdout
        self._watch(limit)
        try:
            while True:
                kind, value = pickle.load(self._process.stdout)
                if kind == "error":
                    raise value
                if kind == "cpu":
                    self._cpu = value
                    continue
                if kind in ("begin", "opening"):
                    self._cpu_at_begin = self._cpu
                yield kind, value
        except (EOFError, pickle.UnpicklingError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        finally:
            self._watch(None)

    def _watch(self, limit: float | None) -> None:
        """Ends the process if nothing calls this again within `limit` seconds (None: there is no limit)."""
        if self._timer:
            self._timer.cancel()
        self._timer = None
        if limit is not None:
            self._timer = threading.Timer(limit, self._overdue, (self._process,))
            self._timer.daemon = True
            self._timer.start()

    def _overdue(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._is_overdue = process is self._process
            process.kill()

    def _why(self, path: Path, limit: float, seconds: float, remedy: str = _GIVE_UP) -> AudioError:
        """What became of a process that ended while it read a file."""
        assert self._process
        code = self._process.returncode
        if self._is_overdue and self._cpu - self._cpu_at_begin >= seconds * _COMPUTING:
            return AudioError(path, f"makes the decoder hang: it has not ended after {limit:.0f} s", remedy)
        if self._is_overdue:
            problem = f"cannot be read within {limit:.0f} s (the disk or network is slow)"
            return AudioError(path, problem, remedy, transient=True)
        name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        is_from_outside = code is not None and -code in (getattr(signal, "SIGKILL", 9), *signals.ENDING)
        problem = f"could not be decoded: the decoder was ended ({name})"
        if is_from_outside:
            return AudioError(path, problem, "free some memory and start again", transient=True)
        return AudioError(path, f"makes the decoder crash ({name})", "convert it, or remove it")


def _current_folder() -> str | None:
    """For relative paths; None where it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def command() -> list[str]:
    """Starts `decoding_process.main`, with the same Python and from the same folders as this process."""
    code = "from samplernn.audio.decoding_process import main; main()"
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]


def _start() -> subprocess.Popen[bytes]:
    """Starts a decoding process."""
    # In a group of its own, so that Ctrl-C in a terminal reaches this process alone.
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return subprocess.Popen(
        command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        **apart,
    )


@functools.lru_cache(maxsize=1)
def _spare(pid: int) -> list[DecodingProcess]:
    """Processes of `decoded` that wait for the next file; a forked child has none of its parent's."""
    return []


class Decoded:
    """One file as an iterator of blocks, decoded in a process that can be ended. See `Decoder`.

    Args:
        path: the file.
        sample_rate: Hz of the blocks.
        timeout: seconds within which the decoder must give a block.

    Attributes:
        problems: what is wrong with the file although it could be used, once the iteration is over.
    """

    def __init__(self, path: str | Path, sample_rate: int, timeout: float = DECODE_TIMEOUT) -> None:
        self._path, self._sample_rate, self._timeout = Path(path), sample_rate, timeout
        self.problems: list[AudioError] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        """Mono float32 ``[n]``. Raises AudioError."""
        spare = _spare(os.getpid())
        process = spare.pop() if spare else DecodingProcess(self._timeout)
        try:
            if not sys.executable:
                raise CannotStart("it is not known which Python runs")
            yield from process.blocks(self._path, self._sample_rate, self._timeout, self.problems)
        except CannotStart:
            decoder = Decoder(self._path, self._sample_rate)
            yield from decoder
            self.problems += decoder.problems
        except AudioError:
            spare.append(process)
            raise
        except BaseException:
            process.end()
            raise
        else:
            spare.append(process)
