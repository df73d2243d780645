"""`python -m samplernn.insight.ablation.worker FOLDER CONFIG NAME`: one run below ``runs/``, to its end.

Standard input is a pipe from the study: when that ends, however it does, the run saves and stops.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import yaml

from samplernn.config import Config, UserError, from_dict, let_everything_be_printed


def main() -> int:
    """Train; returns the exit code. The last line that it writes says why it is not 0."""
    let_everything_be_printed()
    folder, file, name = sys.argv[1:]
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    from samplernn.training import run
    from samplernn.training.callbacks import Interrupted
    from samplernn.training.folder import run_folder
    from samplernn.training.processes import ProcessDied

    try:
        if (run_folder(name).path / "config.yaml").exists():
            run.resume(name, {}, folder)
        else:
            config: Config = from_dict(Config, yaml.safe_load(Path(file).read_text("utf-8")))
            run.start(folder, config, name)
    except Interrupted as interrupted:
        return 128 + interrupted.signal_number
    except (UserError, ProcessDied) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _stop_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
