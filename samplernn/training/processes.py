"""One process per device: who started this one, what the others hear from the first, and starting them.

There are two ways to several processes. A launcher (torchrun, srun) starts them all, each with the
user's command; then `Team` joins them, and the first does alone what must be done once. Otherwise the
user's process prepares the run, and `train_in_processes` starts a worker per device, hands it what it has
to know, watches them all, and ends all when one dies. Neither way runs the user's
own script again, as Lightning's launcher would. Lightning sees externally created processes in both.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from samplernn import messages, signals
from samplernn.config import UserError

T = TypeVar("T")

USER_ERROR, PEER_LOST = 2, 3
"""Exit codes of a worker: a mistake of the user's; another worker could not be reached any more."""
REQUEUE = getattr(signal, "SIGUSR1", signal.SIGTERM)
"""What SLURM sends before a job's time is over (``#SBATCH --signal=USR1@120``): save, queue the job again."""
_INTERRUPTED = tuple(128 + number for number in (*signals.ENDING, REQUEUE))
_FIRST_SPECIAL_STEP = 2**32 - 16
"""Step numbers from here on mean the script or the shell of an allocation."""
_NOTICE_SECONDS = 20.0
"""A process that has waited for the others for so long says that it waits."""
_WAIT_FOR_THE_FIRST = datetime.timedelta(days=30)
"""The first process may decode a corpus for hours while the others wait."""
_GRACE_SECONDS = 15.0
"""How long workers may take to end by themselves once one has failed."""
_POLL_SECONDS = 0.1


class ProcessDied(Exception):
    """A process of the run ended before its time, and the run with it. The message is one line."""

    run = ""
    """Name of the run, for `--resume --name`."""


@dataclass(frozen=True)
class Launch:
    """How many processes a launcher has started, this one among them."""

    world_size: int
    devices: int
    """Processes on this machine."""
    num_nodes: int


def launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What torchrun, srun or `train_in_processes` say about their processes; None if there is only this."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        world_size = int(environment["WORLD_SIZE"])
        devices = int(environment.get("LOCAL_WORLD_SIZE", world_size))
    elif _is_of_srun(environment):
        world_size = int(environment.get("SLURM_NTASKS", 1))
        devices = world_size // int(environment.get("SLURM_NNODES", 1))
    else:
        return None
    return Launch(world_size, devices, world_size // devices) if world_size > 1 else None


def _is_of_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun has started this process, as one of several.

    SLURM sets ``SLURM_NTASKS`` in the whole allocation, so also in a batch script, in a shell and in a
    notebook, of which there is only one. A step is what srun makes of a command; the script and the shell of
    an allocation may be counted as steps, with numbers from the end of what 32 bits hold.
    """
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    is_step = step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP
    is_shell = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    is_alone = environment.get("SLURM_STEP_NUM_TASKS") == "1"
    return is_step and "SLURM_PROCID" in environment and not is_shell and not is_alone


def idle_tasks(environment: Mapping[str, str] = os.environ) -> str:
    """A line about tasks of a SLURM allocation that this process, being alone, does not use; or nothing."""
    tasks = environment.get("SLURM_NTASKS", "")
    if "RANK" in environment or launch(environment) or not tasks.isdecimal() or int(tasks) < 2:
        return ""
    return (
        f"SLURM has {tasks} tasks for this job, but srun did not start this process: it trains without the "
        "others. To use them all: srun samplernn train …"
    )


def slurm_job(environment: Mapping[str, str] = os.environ) -> str | None:
    """The SLURM job that this process belongs to, as scontrol names it."""
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def is_requeued(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether SLURM has started this job before."""
    return int(environment.get("SLURM_RESTART_COUNT", 0)) > 0


def requeue() -> str:
    """Queue this process's SLURM job again, if it is the first; returns what to say about it."""
    job = slurm_job()
    if job is None or not is_first():
        return ""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        return f"job {job} could not be queued again: {' '.join(reason.split())}"
    return f"job {job} is queued again, and will go on by itself"


def stop_signals() -> tuple[int, ...]:
    """What makes a run save and leave."""
    usual = signals.ending()
    return (*usual, REQUEUE) if slurm_job() and REQUEUE not in usual else usual


def is_first() -> bool:
    """Whether this is the first of all processes, which speaks and writes for them."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(message: str) -> None:
    """Tell the user something, on standard error; the first process speaks for all."""
    if is_first():
        messages.say(message)


class Team:
    """The processes that a launcher started, once they are connected; a single process is a team of one.

    While it waits for another process there is nothing that could be lost, and a signal ends it at once.

    Args:
        trainer: connects them; its strategy's process group is the one that training uses. None: there
            is only this process.

    Raises:
        UserError: the others do not come.
    """

    def __init__(self, trainer: pl.Trainer | None) -> None:
        self.rank, self._group = 0, None
        if trainer is not None and trainer.world_size > 1:
            with _waiting_for_others(trainer.world_size), signals.at_once():
                trainer.strategy.setup_environment()
                self._group = torch.distributed.new_group(backend="gloo", timeout=_WAIT_FOR_THE_FIRST)
            self.rank = trainer.global_rank

    def do_once(self, work: Callable[[], T]) -> T:
        """The first process works, the others wait; all get the result, or the same UserError."""
        if self._group is None:
            return work()
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = work()
            except BaseException as error:
                said[1] = error if isinstance(error, UserError) else UserError("the first process failed")
                self._share(said)
                raise
        self._share(said)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def _share(self, said: list[Any]) -> None:
        """Give all processes what the first has in this list."""
        with signals.at_once():
            torch.distributed.broadcast_object_list(said, src=0, group=self._group)


@contextlib.contextmanager
def _waiting_for_others(world_size: int) -> Iterator[None]:
    """Say so if it takes a while. Raises UserError if it fails."""
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
    who = f"process {rank + 1} of {world_size}"
    said = f"{who} waits for the others; does the launcher (srun, torchrun) start them all?"
    notice = threading.Timer(_NOTICE_SECONDS, messages.say, (said,))
    notice.daemon = True
    notice.start()
    try:
        yield
    except RuntimeError as error:
        if not is_peer_lost(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{who} cannot reach the others ({reason}); the launcher (srun, torchrun) has to start them all, "
            f"and MASTER_ADDR ({os.environ.get('MASTER_ADDR')}) to be the first one's machine"
        ) from error
    finally:
        notice.cancel()


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
    """At the end of the block, part from the other processes.

    Left to the end of Python, gloo's threads now and then abort the process. Where all processes leave at
    the same place, they wait for each other, so that none is cut off while it still listens.
    """
    is_agreed = False
    try:
        yield
        is_agreed = True
    except BaseException as error:
        is_agreed = getattr(error, "saved", False)  # of Interrupted: all have saved together
        raise
    finally:
        if torch.distributed.is_initialized():
            with contextlib.suppress(Exception):
                if is_agreed:
                    with signals.at_once():
                        torch.distributed.barrier()
                torch.distributed.destroy_process_group()


def is_peer_lost(error: BaseException) -> bool:
    """Whether this error of a collective means that another process is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "onnection closed" in str(error))


def train_in_processes(run: Path, task: bytes, devices: int) -> int | None:
    """Start a worker per device for a run, and wait for them.

    SIGINT, SIGTERM and SIGHUP are passed on to the workers. When one worker dies, the others are ended too.

    Args:
        run: folder of the run.
        task: pickled argument of `run.work`.
        devices: number of workers.

    Returns:
        The number of the signal that stopped the run; None if it ended by itself.

    Raises:
        ProcessDied: a worker ended before its time.
        UserError: a worker met a mistake of the user's.
    """
    shutil.rmtree(run / "logs", ignore_errors=True)
    (run / "logs").mkdir()
    with _workers(run, devices) as workers, _passing_signals_on(workers) as passed_on:
        for worker in workers:
            worker.hand_over(task)
        failed = _wait(workers, passed_on)
        silent = [worker.rank + 1 for worker in workers if worker.process.poll() is None]
    if failed is not None:
        if failed.lost_another and silent:
            names = " and ".join(map(str, silent))
            raise ProcessDied(f"process {names} of {len(workers)} does not answer any more")
        raise failed.why(len(workers))
    stopped = [worker.process.returncode for worker in workers if worker.process.returncode]
    return max(code - 128 if code > 0 else -code for code in stopped) if stopped else None


class _Worker:
    """A process of a run.

    Args:
        run: folder of the run.
        rank: of the process. The first writes where this process does, the others to a file.
        environment: as torchrun would set it, but for the rank.
    """

    def __init__(self, run: Path, rank: int, environment: Mapping[str, str]) -> None:
        self.rank, self.run = rank, run
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log_file(run, rank).open("wb") if rank else contextlib.nullcontext() as log:
            # A session of its own: Ctrl-C reaches it through us, once.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "samplernn.training.worker", str(run)],
                env={**environment, **ranks},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def hand_over(self, task: bytes) -> None:
        """Write to its standard input, which stays open as long as this process lives."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it may die before it reads
            self.process.stdin.write(task)
            self.process.stdin.flush()

    def has_failed(self, passed_on: Sequence[int]) -> bool:
        """Whether it ended, and neither by finishing nor by a signal that was passed on to it."""
        code = self.process.poll()
        return bool(code) and code not in _INTERRUPTED and -(code or 0) not in passed_on

    @property
    def lost_another(self) -> bool:
        """It failed because another did."""
        return self.process.returncode == PEER_LOST

    def why(self, world_size: int) -> Exception:
        """What to say about its failure."""
        code, error = self.process.returncode, error_file(self.run, self.rank)
        said = error.read_text("utf-8") if error.exists() else ""
        if code == USER_ERROR:
            return UserError(said)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (perhaps there is too little memory)"
        how += (f": {said}" if said else "") + (f"; see {log_file(self.run, self.rank)}" if self.rank else "")
        return ProcessDied(f"process {self.rank + 1} of {world_size} {how}")


def log_file(run: Path, rank: int) -> Path:
    """Where the output of a worker, but for the first, goes."""
    return run / "logs" / f"rank-{rank}.txt"


def error_file(run: Path, rank: int) -> Path:
    """Where a worker leaves one line about its failure."""
    return run / "logs" / f"rank-{rank}.error"


@contextlib.contextmanager
def _workers(run: Path, devices: int) -> Iterator[list[_Worker]]:
    """Workers that are dead when the block is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "samplernn",  # by this Lightning knows torchrun's variables
    }
    workers: list[_Worker] = []
    try:
        for rank in range(devices):
            workers.append(_Worker(run, rank, environment))
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


def _wait(workers: Sequence[_Worker], passed_on: Sequence[int]) -> _Worker | None:
    """Wait until all have ended; returns the one that failed first, if any did."""
    failed: _Worker | None = None
    deadline = math.inf
    while True:
        is_over = all(worker.process.poll() is not None for worker in workers) or time.monotonic() > deadline
        for worker in workers:
            # One that lost another comes second, even if it is seen first.
            if worker.has_failed(passed_on) and (failed is None or failed.lost_another > worker.lost_another):
                failed = worker
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        if is_over:
            return failed
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _passing_signals_on(workers: Sequence[_Worker]) -> Iterator[list[int]]:
    """Signals to stop go to all workers instead of ending this process; yields those that came."""
    passed_on: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed_on.append(number)
        signals.let_go_of_terminal(number)
        for worker in workers:
            worker.process.send_signal(number)

    handlers = signals.Handlers(stop_signals())
    handlers.replace(pass_on)
    try:
        yield passed_on
    finally:
        handlers.put_back()
