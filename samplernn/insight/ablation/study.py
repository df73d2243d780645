"""Runs of an ablation, one at a time; killed at any moment and begun again it goes on where it stood."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from samplernn import __version__, plots, signals, storage
from samplernn.audio.corpus import prepare, split
from samplernn.config import Config, UserError, from_dict, one_line, to_dict
from samplernn.generation.engines import open_engine
from samplernn.insight import runs
from samplernn.insight.ablation import results
from samplernn.insight.ablation.results import Measured, Result
from samplernn.insight.ablation.tables import Row, Table, differences
from samplernn.insight.benchmark.fresh import in_fresh_process
from samplernn.insight.benchmark.generation import samples_per_second
from samplernn.insight.benchmark.results import machine
from samplernn.insight.evaluate import evaluate
from samplernn.insight.words import count, duration
from samplernn.locks import Busy, locked
from samplernn.model.checkpoint import load
from samplernn.model.network import SampleRNN

_EARLY_ENDS = ("it has diverged", "the loss or gradients")
"""How the reasons begin for which training gives up."""


class Stopped(Exception):
    """A signal ended the study.

    Args:
        signal_number: which.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Study:
    """An ablation on a folder of audio, kept in a folder of its own: runs, results, table, picture.

    Args:
        table: what is compared.
        folder: of the audio.
        out: ``ablation.{md,csv,png}``, ``results/``, ``runs/``, ``logs/`` are there; made if absent.
    """

    def __init__(self, table: Table, folder: str | Path, out: str | Path) -> None:
        self.table, self.folder, self.out = table, Path(folder).absolute(), Path(out).absolute()
        self._facts_file = self.out / "study.json"

    def run(self, redo: bool = False) -> Path:
        """Train and measure whatever has not been yet, and write the table after each run.

        Args:
            redo: what was defined otherwise before, and what failed, is thrown away and run again.

        Returns:
            The table, a Markdown file.

        Raises:
            UserError: a row has another definition than before, the audio has changed, …
            Stopped: a signal.
        """
        facts = self._facts()  # first, for it says what is wrong with the folder
        try:
            for name in ("results", "configs", "logs"):
                (self.out / name).mkdir(parents=True, exist_ok=True)
            with self._claimed():
                self._agree_with_before(facts, redo)
                for number, (row, seed) in enumerate(self.table.runs(), 1):
                    if self._result(row, seed) is None:
                        self._do(row, seed, number)
                return self.write_table()
        except OSError as error:
            raise UserError(
                f"{error.filename or self.out}: {error.strerror or error}; what was written is whole, "
                "and the same command goes on"
            ) from error

    def write_table(self) -> Path:
        """Make table and picture of the results that there are; returns the Markdown file."""
        found = [result for row, seed in self.table.runs() if (result := self._result(row, seed))]
        file = self.out / "ablation.md"
        storage.write_text(file, results.as_markdown(self.table, found, self._about()))
        storage.write_text(self.out / "ablation.csv", results.as_csv(self.table, found))
        figure = results.draw(self.table, found, self.out / "runs")
        if figure is not None:
            storage.write_whole(self.out / "ablation.png", functools.partial(plots.save, figure))
        return file

    def failures(self) -> list[Result]:
        """The runs that have ended without a result."""
        found = (self._result(row, seed) for row, seed in self.table.runs())
        return [result for result in found if result and result.failure]

    def plan(self) -> list[str]:
        """A line for each run: its name, and what has come of it."""
        said, before = [], (self._facts_before() or {}).get("definitions", {})
        for row, seed in self.table.runs():
            name, result = row.run(seed), self._result(row, seed)
            state = "to be done" if result is None else result.failure or "done"
            if name in before and (difference := _difference(before[name], self._config(row, seed))):
                state = f"was made otherwise ({difference})"
            said.append(f"{name:32} {state}")
        return said

    def _do(self, row: Row, seed: int, number: int) -> None:
        """One run from beginning (or where it stood) to result."""
        name, started = row.run(seed), time.monotonic()
        place = f"[{number}/{len(self.table.rows) * len(self.table.seeds)}]"
        _say(f"{place} {row.label}, seed {seed}: {self.table.budget}{self._left()}  log: {self._log(name)}")
        failure = self._train(row, seed)
        measured = None
        if failure is None:
            try:
                measured = in_fresh_process(measure, self.out / "runs" / name, self.folder)
            except (UserError, RuntimeError) as error:
                failure = f"cannot be measured: {error}"
            except KeyboardInterrupt:
                raise Stopped(signal.SIGINT) from None
        seconds = round(time.monotonic() - started, 1)
        failure = None if failure is None else one_line(failure)
        results.write(Result(row.label, seed, name, seconds, failure, measured), self._result_file(name))
        if measured:
            training = measured.train_samples_per_s
            _say(
                f"{place} {row.label}, seed {seed}: {measured.bits:.3f} bits (previous sample "
                f"{measured.baselines.previous_sample:.3f}) after {measured.steps:,} steps"
                + (f" at {training:,.0f} samples/s" if training else "")
                + f"; generates {measured.generate_samples_per_s:,.0f} samples/s"
            )
        else:
            _say(f"{place} {row.label}, seed {seed}: failed: {failure}")
        self.write_table()

    def _train(self, row: Row, seed: int) -> str | None:
        """Begin or continue a run in a process of its own; returns why it failed, None if it has not.

        Raises:
            Stopped: a signal ended it, or this process.
        """
        name = row.run(seed)
        config, log = self.out / "configs" / f"{name}.yaml", self._log(name)
        config.write_text(yaml.safe_dump(to_dict(self._config(row, seed)), sort_keys=False), "utf-8")
        self._wait_for_former_worker(name)
        command = [sys.executable, "-m", "samplernn.insight.ablation.worker"]
        with log.open("ab") as said:
            before = said.tell()
            worker = subprocess.Popen(
                [*command, str(self.folder), str(config), name],
                stdin=subprocess.PIPE,  # which tells it when this process is gone
                stdout=said,
                stderr=said,
                cwd=self.out,
                env=_environment(),
            )
            code = _wait(worker)
        if code == 0:
            reason = str(runs.read(self.out / "runs" / name).facts.get("reason", ""))
            return f"ended before its budget: {reason}" if reason.startswith(_EARLY_ENDS) else None
        if (number := code - 128 if code > 0 else -code) in signals.ENDING:
            raise Stopped(number)
        if code < 0:
            return f"killed by signal {-code}; perhaps there is too little memory"
        with log.open("rb") as heard:
            heard.seek(before)
            last = [line for line in heard.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return last[-1].strip() if last else f"ended with exit code {code}"

    def _wait_for_former_worker(self, name: str) -> None:
        """The run of a study that was killed saves before it ends."""
        folder = self.out / "runs" / name
        if not folder.is_dir():
            return
        started, is_said = time.monotonic(), False
        while True:
            try:
                with locked(folder / ".lock"):
                    return
            except Busy as busy:
                if busy.remedy:  # nobody would ever see it end
                    raise UserError(f"{folder}: {busy} is training this run; {busy.remedy}") from None
            if not is_said and time.monotonic() - started > 1:
                _say(f"{folder}: waiting for the process that trains it")
                is_said = True
            time.sleep(0.1)

    def _facts(self) -> dict[str, Any]:
        """What the audio is, and what each run is made of; decodes the audio, so that no run has to."""
        data = self.table.rows[0].config.data
        corpus = prepare(self.folder, data)
        parts = split(corpus, data.split_seed, data.keep_takes_together)
        described = json.dumps(parts.to_dict(), sort_keys=True)
        return {
            "samplernn": __version__,
            "audio": {"gain": corpus.gain, "split": hashlib.sha256(described.encode()).hexdigest()[:16]},
            "minutes": round(corpus.duration / 60, 1),
            "machine": machine(),
            "definitions": {
                row.run(seed): to_dict(self._config(row, seed)) for row, seed in self.table.runs()
            },
        }

    def _agree_with_before(self, facts: dict[str, Any], redo: bool) -> None:
        """Compare with what this folder holds already; keep what is defined now.

        Raises:
            UserError: something has changed, and it is not to be done again.
        """
        before = self._facts_before()
        if before is None:
            if any(self.out.glob("runs/*")):
                raise UserError(f"{self.out}: holds runs, but no study; choose another folder")
            before = {"audio": facts["audio"], "definitions": {}}
        old: dict[str, Any] = before["definitions"]
        changed = {} if before["audio"] == facts["audio"] else dict.fromkeys(old, "other audio")
        for name, values in facts["definitions"].items():
            if name in old:
                now: Config = from_dict(Config, values)
                if difference := _difference(old[name], now):
                    changed.setdefault(name, difference)
        if changed and not redo:
            name, difference = next(iter(changed.items()))
            raise UserError(
                f"{self.out}: {name} was made otherwise ({difference}); choose another folder, or throw away "
                f"{count(len(changed), 'run')} and begin again with --redo"
            )
        again = set(changed)
        if redo:
            ended = ((row.run(seed), self._result(row, seed)) for row, seed in self.table.runs())
            again |= {name for name, result in ended if result and result.failure}
        for name in sorted(again):
            _say(f"{name}: is run again")
            self._forget(name)
        kept = {name: values for name, values in old.items() if name not in changed}
        facts = {**facts, "definitions": {**kept, **facts["definitions"]}}
        storage.write_text(self._facts_file, json.dumps(facts, indent=1) + "\n")

    def _forget(self, name: str) -> None:
        """Delete what has come of a run; never half of it, for the other half would be continued."""
        run, rubbish = self.out / "runs" / name, self.out / "runs" / f".{name}.deleted"
        shutil.rmtree(rubbish, ignore_errors=True)
        if run.exists():
            run.rename(rubbish)
            shutil.rmtree(rubbish)
        self._log(name).unlink(missing_ok=True)
        self._result_file(name).unlink(missing_ok=True)

    def _facts_before(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._facts_file.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self._facts_file}: is damaged; choose another folder") from error
        return found

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """No other study in this folder meanwhile. Raises UserError if there is one."""
        with contextlib.ExitStack() as until_the_end:
            try:
                until_the_end.enter_context(locked(self.out / ".lock"))
            except Busy as busy:
                advice = busy.remedy or "choose another folder"
                raise UserError(f"{self.out}: another study is running there; {advice}") from None
            yield

    def _about(self) -> str:
        facts = self._facts_before() or {}
        found = facts.get("machine", {})
        return (
            f"`{self.folder.name}`: {facts.get('minutes', 0)} minutes of audio. samplernn {__version__}, "
            f"torch {found.get('torch')}, {count(found.get('cores') or 1, 'core')} of "
            f"{found.get('processor')}. "
            f"Training of {self.table.budget} per run; seeds {', '.join(map(str, self.table.seeds))}."
        )

    def _left(self) -> str:
        """How much longer it will take, judging by the runs that have ended."""
        found = [self._result(row, seed) for row, seed in self.table.runs()]
        seconds = [result.wall_seconds for result in found if result and not result.failure]
        each = sum(seconds) / len(seconds) if seconds else self.table.budget.seconds
        return f", about {duration(each * found.count(None))} left in all," if each else ""

    def _config(self, row: Row, seed: int) -> Config:
        """Options of a run; paths hold wherever it works."""
        config = row.with_seed(seed)
        if (cache := config.data.cache_dir) is None:
            return config
        return replace(config, data=replace(config.data, cache_dir=str(Path(cache).absolute())))

    def _result(self, row: Row, seed: int) -> Result | None:
        return results.read(self._result_file(row.run(seed)))

    def _result_file(self, name: str) -> Path:
        return self.out / "results" / f"{name}.json"

    def _log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.log"


def measure(run: Path, folder: Path) -> Measured:
    """Score a finished run on its whole test split, and time its generation.

    Args:
        run: its folder.
        folder: of the audio.

    Raises:
        UserError: it has no model that can be used.
    """
    checkpoint, read = load(run), runs.read(run)
    config = checkpoint.config
    score = evaluate(checkpoint, folder, "test", progress=False, cache_dir=config.data.cache_dir)
    engine = open_engine(checkpoint.build())
    with torch.device("meta"):
        trained = [one for one in SampleRNN(config.model).parameters() if one.requires_grad]
    return Measured(
        parameters=sum(one.numel() for one in trained),
        steps=read.facts["step"],
        train_seconds=load(run / "checkpoints" / "last.ckpt").results["train_seconds"],
        bits=score.bits_per_sample,
        num_samples=score.num_samples,
        baselines=score.baselines,
        gain=checkpoint.gain,
        sample_rate=config.data.sample_rate,
        train_samples_per_s=read.samples_per_s,
        generate_samples_per_s=samples_per_second(engine, 1),
        engine=f"{engine.name} {engine.dtype}",
    )


def _difference(before: dict[str, Any], now: Config) -> str:
    """What has changed in a definition, shortly; empty: nothing."""
    try:
        found = differences(from_dict(Config, before), now)
    except UserError as error:  # of another version
        found = [str(error)]
    return ", ".join(found[:3]) + (", …" if len(found) > 3 else "")


def _environment() -> dict[str, str]:
    """Of a worker: this very package, wherever it works; threads as `samplernn` sets them."""
    package = str(Path(__file__).parents[3])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"GOMP_SPINCOUNT": "10000", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _wait(worker: subprocess.Popen[bytes]) -> int:
    """Its exit code. Ctrl-C reaches it by itself (and lets it save). Raises Stopped after one."""
    is_stopped = False
    while True:
        try:
            code = worker.wait()
            break
        except KeyboardInterrupt:
            if not is_stopped:
                _say("stopping after this step; Ctrl-C again stops at once")
            is_stopped = True
        except BaseException:  # SystemExit of a signal handler, say: the pipe's end tells the worker
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()
            raise
    if is_stopped:
        raise Stopped(signal.SIGINT)
    return code


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
