"""`python -m samplernn.training.worker RUN`: one process of a run, started by `train_in_processes`."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from pathlib import Path

from samplernn.config import UserError, let_everything_be_printed


def main() -> int:
    """Train; returns the exit code, and leaves a line about a failure in the run's folder."""
    let_everything_be_printed()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until training starts there is nothing to save
    from samplernn.training import processes, run
    from samplernn.training.callbacks import Interrupted

    said = processes.error_file(Path(sys.argv[1]), int(os.environ["RANK"]))
    task = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with processes.leaving_together():
            run.work(task)
    except Interrupted as interrupted:
        return 128 + interrupted.signal_number
    except UserError as error:
        said.write_text(str(error), "utf-8")
        return processes.USER_ERROR
    except processes.ProcessDied:
        return processes.PEER_LOST
    except Exception as error:
        said.write_text(" ".join(f"{type(error).__name__}: {error}".split()), "utf-8")
        raise
    return 0


def _end_with_parent() -> None:
    """Standard input is a pipe from the parent: it ends when the parent does, however it does."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
