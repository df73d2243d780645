"""A whole training run: its folder, its start or resumption, its end."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from samplernn.audio.corpus import Corpus, Split, locate, prepare, split
from samplernn.audio.health import remarks
from samplernn.config import Config, TrainerConfig, UserError, from_dict, merged, to_dict
from samplernn.model.baselines import BaselineBits, baseline_bits
from samplernn.model.checkpoint import Checkpoint, load
from samplernn.model.quantize import Quantizer
from samplernn.training.callbacks import Checkpoints, Interrupted, Metrics, Samples, Stopping
from samplernn.training.data import CorpusModule
from samplernn.training.loggers import MetricsFile
from samplernn.training.module import STATE, TrainingModule
from samplernn.training.progress import ProgressDisplay
from samplernn.training.scoring import Score, pair_counts, quick_check, score_spans

RUNS = Path("runs")
"""Where runs live, under the current directory."""
_PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def last(self) -> Path | None:
        """The newest checkpoint, or the one before it, or None before the first."""
        for name in ("last.ckpt", "last-previous.ckpt"):
            if (self.path / "checkpoints" / name).exists():
                return self.path / "checkpoints" / name
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says: folder of the audio, gain, split, state."""
        return json.loads((self.path / "run.json").read_text("utf-8"))

    def write_facts(self, **changes: Any) -> None:
        """Change entries of `run.json`."""
        facts = {**(self.facts if (self.path / "run.json").exists() else {}), **changes}
        self._write("run.json", json.dumps(facts, indent=1) + "\n")

    def write_config(self, config: Config) -> None:
        """Write `config.yaml`, which is also a file for `--config`."""
        self._write("config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))

    def _write(self, name: str, text: str) -> None:
        """Replace a file, whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(text, "utf-8")
        partial.replace(self.path / name)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    step: int
    reason: str
    """Why."""
    validation: Score
    """Of the best checkpoint."""
    test: Score
    """Of the best checkpoint, on at most `data.validation_duration` seconds."""


def start(folder: str | Path, config: Config | None = None, name: str | None = None) -> Outcome:
    """Train on a folder of audio from the beginning.

    Args:
        folder: of the audio.
        config: every option; None: the defaults, which are the preset `small`.
        name: of the run, a folder below ``runs/``. Default: the audio folder's name, numbered.

    Returns:
        How it ended.

    Raises:
        UserError: the name is taken, the folder cannot be trained on, …
        Interrupted: a signal stopped it.
    """
    config = config or Config()
    _quiet()
    _trainer(config)  # raises on what Lightning refuses, before anything is written
    run = _folder(name or free_name(Path(folder)))
    if (run.path / "config.yaml").exists():
        raise UserError(f"{run.path}: this run exists. Continue it with --resume, or choose another --name")
    corpus = prepare(folder, config.data.sample_rate, config.data.cache_dir)
    parts = split(corpus, config.data.split_seed)
    try:
        (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        run.write_config(config)
    except OSError as error:
        raise UserError(f"{run.path}: cannot write the run there: {error.strerror}") from error
    run.write_facts(
        folder=str(Path(folder).resolve()), gain=corpus.gain, split=parts.to_dict(), state="running"
    )
    return _train(run, config, corpus, parts)


def resume(name: str | None, changes: dict[str, Any], folder: str | Path | None = None) -> Outcome | None:
    """Continue a run with its own configuration.

    Args:
        name: of the run; None: the newest.
        changes: options to change, nested as in `config.to_dict`; `model` and `data` stay.
        folder: where the audio is now; None: where it was.

    Returns:
        How it ended; None if it had already finished.

    Raises:
        UserError: no such run, or an option that cannot change.
        Interrupted: a signal stopped it.
    """
    run = _folder(name or newest().name)
    if not (run.path / "config.yaml").exists() or not (run.path / "run.json").exists():
        raise UserError(f"{run.path}: no such run; there are: {', '.join(names()) or 'none'}")
    saved = yaml.safe_load((run.path / "config.yaml").read_text("utf-8"))
    config: Config = from_dict(Config, merged(saved, changes))
    old: Config = from_dict(Config, saved)
    if config.model != old.model or config.data != replace(old.data, cache_dir=config.data.cache_dir):
        raise UserError(f"{run.path}: model.* and data.* of a run cannot change; train a new one instead")
    _quiet()
    _trainer(config)
    facts = run.facts
    if facts["state"] == "finished" and config == old:
        return None
    corpus = prepare(folder or facts["folder"], config.data.sample_rate, config.data.cache_dir)
    corpus = replace(corpus, gain=facts["gain"])
    run.write_facts(state="running")
    run.write_config(config)
    return _train(run, config, corpus, Split.from_dict(facts["split"]))


def newest() -> Path:
    """The run that was written to last.

    Raises:
        UserError: there is none.
    """
    found = sorted(names(), key=lambda name: _last_written(RUNS / name))
    if not found:
        raise UserError(f"no runs below {RUNS.resolve()}: nothing to resume")
    return RUNS / found[-1]


def names() -> list[str]:
    """All runs below the current directory."""
    return sorted(path.parent.name for path in RUNS.glob("*/run.json"))


def _folder(name: str) -> RunFolder:
    if Path(name).name != name or name == "..":
        raise UserError(f"--name {name}: a run's name is one folder below {RUNS}, without slashes")
    return RunFolder(RUNS / name)


def _last_written(run: Path) -> float:
    return max(path.stat().st_mtime for path in (run / "run.json", *run.glob("checkpoints/*.ckpt")))


def free_name(folder: Path) -> str:
    """A name for a new run: the folder's own, numbered if it is taken."""
    stem = re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.") or "run"
    taken = {path.name for path in RUNS.glob("*")}
    number = 1
    while (name := stem if number == 1 else f"{stem}-{number}") in taken:
        number += 1
    return name


def _train(run: RunFolder, config: Config, corpus: Corpus, parts: Split) -> Outcome:
    """Fit, from the last checkpoint if there is one, and judge the result."""
    pl.seed_everything(config.seed_everything, verbose=False)
    _report(corpus, parts, config)
    codes = Quantizer(config.model.q_levels, config.model.quantization).int16_to_code(corpus.gain).numpy()
    counts = pair_counts(corpus, locate(corpus, parts.train), codes, config.model.q_levels)
    facts = Checkpoint(config, {}, gain=corpus.gain, pair_counts=counts, split=parts.to_dict())
    held_out = quick_check(locate(corpus, parts.validation), config.data)
    baselines = baseline_bits(counts, pair_counts(corpus, held_out, codes, config.model.q_levels))
    data = CorpusModule(config, corpus, parts)
    module = TrainingModule(facts, planned_steps_per_epoch=len(data.train_dataloader()))
    _announce(run, module, baselines)
    try:
        step, reason = _fit(run, module, data, baselines)
        test = _test(run, corpus, parts)
    except BaseException as error:
        run.write_facts(state="interrupted")
        if isinstance(error, Interrupted):
            error.run = run.path.name
        raise
    run.write_facts(state="finished", reason=reason, step=step, test=test.to_dict())
    num_validated = sum(stop - start for _, start, stop in held_out)
    validation = Score(module.best_bits, num_validated, baselines, "validation")
    return Outcome(run.path, step, reason, validation, test)


def _fit(
    run: RunFolder, module: TrainingModule, data: CorpusModule, baselines: BaselineBits
) -> tuple[int, str]:
    """Train to the end, from the newest checkpoint if there is one; returns the last step and why it is."""
    config = module.config
    if run.last:
        saved = torch.load(run.last, map_location="cpu", weights_only=True, mmap=True)
        if reached := _limit_reached(config.trainer, saved["global_step"], saved[STATE]["seconds"]):
            module.best_bits = saved[STATE]["best_bits"]
            return saved["global_step"], reached
        say(f"continuing from {run.last}, step {saved['global_step']}")
    checkpoints, metrics = Checkpoints(run.path / "checkpoints", config), Metrics()
    stopping = Stopping(checkpoints.save_last)
    samples = Samples(run.path / "samples", config, module.facts, data.recording())
    # Stopping comes before Samples, which makes its last ones whole.
    callbacks: list[pl.Callback] = [metrics, checkpoints, stopping, samples]
    if config.trainer.enable_progress_bar:
        callbacks.append(ProgressDisplay(metrics, baselines))
    loggers: list[Logger] = [
        TensorBoardLogger(run.path, name="", version="", default_hp_metric=False),
        MetricsFile(run.path / "metrics.csv"),
    ]
    trainer = _trainer(config, callbacks, loggers)
    trainer.fit(module, data, ckpt_path=run.last, weights_only=True)
    return trainer.global_step, stopping.reason


def _limit_reached(limits: TrainerConfig, step: int, seconds: float) -> str | None:
    """Why a checkpoint at this step and time has nothing left to do; None if it has."""
    if 0 < limits.max_steps <= step:
        return "trainer.max_steps is reached"
    return "trainer.max_time is reached" if seconds >= limits.max_seconds else None


def _test(run: RunFolder, corpus: Corpus, parts: Split) -> Score:
    """Score the best checkpoint on audio that neither training nor validation has heard."""
    checkpoint = load(run.path)
    spans = quick_check(locate(corpus, parts.test), checkpoint.config.data)
    return score_spans(checkpoint, corpus, spans, "test")


def _trainer(
    config: Config, callbacks: list[pl.Callback] | None = None, loggers: list[Logger] | None = None
) -> pl.Trainer:
    """A Trainer with our callbacks; `Stopping` alone decides when it ends.

    Raises:
        UserError: Lightning refuses an option.
    """
    options = config.trainer
    if options.devices not in ("auto", 1, "1") or options.num_nodes > 1:
        raise UserError(
            "training on several devices is not there yet: leave trainer.devices and trainer.num_nodes at 1"
        )
    try:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=1,
            strategy=options.strategy,
            precision=options.precision,
            max_epochs=-1,
            gradient_clip_val=options.gradient_clip_val,
            gradient_clip_algorithm=options.gradient_clip_algorithm,
            accumulate_grad_batches=options.accumulate_grad_batches,
            val_check_interval=options.val_check_interval * options.accumulate_grad_batches,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            logger=loggers or False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer.*: {' '.join(str(error).split())}") from error


def _report(corpus: Corpus, parts: Split, config: Config) -> None:
    """Say what was found in the folder and how it is split.

    Raises:
        UserError: a part has no audio (any more).
    """
    problems = remarks(corpus, config.data.tbptt_len)
    for problem in problems[:_PROBLEMS_SHOWN]:
        say(f"  {problem}")
    if len(problems) > _PROBLEMS_SHOWN:
        say(f"  … and {len(problems) - _PROBLEMS_SHOWN} more: samplernn doctor lists them all")
    say(f"{corpus.folder}: {len(corpus.files)} files, {corpus.duration / 60:.1f} minutes usable")
    lengths = []
    for part in ("train", "validation", "test"):
        spans = getattr(parts, part)
        found = locate(corpus, spans)
        if not found:
            raise UserError(f"{corpus.folder}: none of this run's {part} audio is there any more")
        if len(found) < len(spans):
            say(f"  {len(spans) - len(found)} of {len(spans)} {part} files are not there any more")
        minutes = sum(stop - start for _, start, stop in found) / corpus.sample_rate / 60
        lengths.append(f"{part} {minutes:.1f} min")
    say(f"split: {', '.join(lengths)}")


def _announce(run: RunFolder, module: TrainingModule, baselines: BaselineBits) -> None:
    """Say what is about to be trained, and what it must beat."""
    config = module.config
    millions = sum(parameter.numel() for parameter in module.model.parameters()) / 1e6
    say(
        f"model: {config.model.n_tiers} tiers, {millions:.2f} M parameters; {module.planned_steps_per_epoch} "
        f"steps of {config.data.batch_size} x {config.data.tbptt_len} samples per epoch"
    )
    say(
        f"baselines in bits per sample: uniform {baselines.uniform:.3f}, unigram {baselines.unigram:.3f}, "
        f"previous sample {baselines.previous_sample:.3f}"
    )
    say(f"run: {run.path}   (tensorboard --logdir {run.path.parent})")


def say(message: str) -> None:
    """A message to the user, on standard error."""
    print(message, file=sys.stderr, flush=True)


def _quiet() -> None:
    """Silence Lightning's notes that do not concern our user."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
