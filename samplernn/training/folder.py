"""The folder of a run: where it is, what it is called, what is in it."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from samplernn import storage
from samplernn.audio.split import Split
from samplernn.config import Config, UserError, checked, from_dict, to_dict
from samplernn.locks import Busy, locked
from samplernn.messages import require
from samplernn.reading import read_json, read_yaml

RUNS = Path("runs")
"""Where runs live, under the current directory."""


@dataclass(frozen=True)
class Started:
    """What was settled when a run began."""

    folder: str
    """Of the audio."""
    gain: float
    split: Split
    state: str
    """``running``, ``interrupted``, ``trained`` or ``finished``."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """No other process may train this run inside the block. Ends with the process, however that ends.

        Raises:
            UserError: another one does, or the folder cannot be made.
        """
        with contextlib.ExitStack() as lock:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock.enter_context(locked(self.path / ".lock"))
            except Busy as busy:
                advice = busy.remedy or "wait for it, or choose another --name"
                raise UserError(f"{self.path}: {busy} is training this run; {advice}") from None
            except OSError as error:
                raise UserError(f"{self.path}: cannot write the run there: {error.strerror}") from error
            try:
                yield
            finally:
                lock.close()
                if not (self.path / "config.yaml").exists():  # no run has come of it
                    with contextlib.suppress(OSError):
                        (self.path / ".lock").unlink(missing_ok=True)
                        self.path.rmdir()
                        self.path.parent.rmdir()

    @property
    def exists(self) -> bool:
        """Whether it is a run, and no other folder."""
        return (self.path / "config.yaml").exists() and (self.path / "run.json").exists()

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says: folder of the audio, gain, split, state. Raises UserError if damaged."""
        file = self.path / "run.json"
        return checked(read_json(file), dict[str, Any], f"{file}: what it says")

    def started(self) -> Started:
        """What a run that is continued needs of `run.json`.

        Raises:
            UserError: it is damaged.
        """
        from samplernn.model.entry import read_gain, read_split  # PyTorch: a wrong name is said without it

        facts, file = self.facts, self.path / "run.json"
        try:
            for name in ("folder", "gain", "split", "state"):
                require(name in facts, f"{name} is missing")
            split = read_split(facts["split"])
            require("train" in split, "split.train is missing")
            return Started(
                checked(facts["folder"], str, "folder"),
                read_gain(facts["gain"]),
                Split.from_dict(split),
                checked(facts["state"], str, "state"),
            )
        except UserError as error:
            raise UserError(f"{file}: damaged, so the run cannot be continued: {error}") from None

    def write_facts(self, **changes: Any) -> None:
        """Change entries of `run.json`."""
        facts = {**(self.facts if (self.path / "run.json").exists() else {}), **changes}
        storage.write_text(self.path / "run.json", json.dumps(facts, indent=1) + "\n")

    @property
    def config(self) -> Config:
        """What `config.yaml` says. Raises UserError if it is damaged."""
        file = self.path / "config.yaml"
        values = read_yaml(file)
        try:
            return from_dict(Config, values)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None

    def write_config(self, config: Config) -> None:
        """Write `config.yaml`, which is also a file for `--config`."""
        storage.write_text(self.path / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))


def tensorboard(runs: Path) -> str:
    """The command that shows runs; by itself TensorBoard would leave out all but ten steps of audio."""
    return f"tensorboard --logdir {shlex.quote(str(runs))} --samples_per_plugin audio=1000,images=1000"


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint file, found by reading all of it; None if it is whole."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            damaged = archive.testzip()
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        return f"cannot be read ({error})"
    return f"is damaged (checksum of {damaged})" if damaged else None


def newest() -> Path:
    """The run that was written to last.

    Raises:
        UserError: there is none.
    """
    found = sorted(names(), key=lambda name: _last_written(RUNS / name))
    if not found:
        raise UserError(f"no runs below {RUNS.resolve()}: nothing to resume")
    return RUNS / found[-1]


def of_job(job: str) -> str | None:
    """The run that a SLURM job began, if it has."""
    for name in names():
        with contextlib.suppress(UserError):  # the damage of another run is nothing to this one
            if RunFolder(RUNS / name).facts.get("slurm_job") == job:
                return name
    return None


def names() -> list[str]:
    """All runs below the current directory."""
    return sorted(path.name for path in RUNS.glob("*") if RunFolder(path).exists)


def run_folder(name: str) -> RunFolder:
    """The folder of a run of this name, whether it exists or not. Raises UserError if it cannot be one."""
    if Path(name).name != name or name == "..":
        raise UserError(f"--name {name}: a run's name is one folder below {RUNS}, without slashes")
    return RunFolder(RUNS / name)


def existing(name: str | None) -> RunFolder:
    """The folder of a run that can be continued.

    Args:
        name: of the run; None: the newest.

    Raises:
        UserError: there is none, or what it says about itself is damaged.
    """
    run = run_folder(name or newest().name)
    if not run.exists:
        raise UserError(f"{run.path}: no such run; there are: {', '.join(names()) or 'none'}")
    return run


def _last_written(run: Path) -> float:
    return max(path.stat().st_mtime for path in (run / "run.json", *run.glob("checkpoints/*.ckpt")))


def free_name(folder: Path) -> str:
    """A name for a new run: the folder's own, numbered if it is taken."""
    stem = re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.") or "run"
    taken = {path.name for path in RUNS.glob("*")}
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)
