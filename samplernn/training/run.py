"""A whole training run: its start or resumption, the processes that train it, its end."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from samplernn import __version__
from samplernn.audio.corpus import Corpus, prepare
from samplernn.audio.health import kept_together, leak, remarks
from samplernn.audio.lanes import Spans, quick_check
from samplernn.audio.split import Split, locate, lost, split
from samplernn.config import Config, TrainerConfig, UserError, from_dict, merged, one_line, to_dict
from samplernn.model.baselines import BaselineBits, PairCounts, baseline_bits
from samplernn.model.checkpoint import ENTRY, Checkpoint, load, read_archive
from samplernn.model.codec import Codec
from samplernn.model.entry import read_counts
from samplernn.model.heads import head_of
from samplernn.model.network import SampleRNN
from samplernn.training import processes
from samplernn.training.auto_lanes import resolve
from samplernn.training.callbacks import Checkpoints, Interrupted, Metrics, Stopping
from samplernn.training.dashboards import dashboards
from samplernn.training.data import CorpusModule
from samplernn.training.folder import RunFolder, damage_of, existing, free_name, run_folder, tensorboard
from samplernn.training.hardware import hardware, revision
from samplernn.training.loggers import MetricsFile, quiet_writers
from samplernn.training.module import STATE, TrainingModule
from samplernn.training.precision import left_wide
from samplernn.training.processes import ProcessDied, is_first, say
from samplernn.training.progress import ProgressDisplay
from samplernn.training.rescue import Rescue
from samplernn.training.samples import Samples
from samplernn.training.saved import require_resumable
from samplernn.training.scoring import Score, pair_counts, score_spans
from samplernn.training.trainer import make_trainer, silence_lightning

_PROBLEMS_SHOWN = 10


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


def start(
    folder: str | Path, config: Config | None = None, name: str | None = None, quiet: bool = False
) -> Outcome:
    """Train on a folder of audio from the beginning, in one process per device.

    Args:
        folder: of the audio.
        config: every option; None: the defaults, which are the preset `small`.
        name: of the run, a folder below ``runs/``. Default: the audio folder's name, numbered.
        quiet: say only what is wrong, on standard error.

    Returns:
        How it ended.

    Raises:
        UserError: the name is taken, the folder cannot be trained on, …
        Interrupted: a signal stopped it.
        ProcessDied: one of several processes ended before its time.
    """
    chosen = config or Config()

    run = run_folder(name or free_name(Path(folder)))

    def prepare_run(trainer: pl.Trainer) -> Prepared:
        if (run.path / "config.yaml").exists():
            raise UserError(
                f"{run.path}: this run exists. Continue it with --resume (in Python: samplernn.resume), "
                "or choose another --name"
            )
        corpus = prepare(folder, chosen.data, progress=not quiet)
        parts = split(corpus, chosen.data.split_seed, chosen.data.keep_takes_together)
        device = trainer.strategy.root_device
        config, lanes = resolve(chosen, corpus, parts, device, trainer.num_devices, trainer.num_nodes)
        if lanes and not quiet:
            say(lanes)
        run.write_facts(
            folder=str(Path(folder).resolve()),
            gain=corpus.gain,
            split=parts.to_dict(),
            state="running",
            slurm_job=processes.slurm_job(),
        )
        run.write_config(config)  # last: with it the run exists
        counts = _count_pairs(config, corpus, locate(corpus, parts.train))
        return Prepared(run, config, corpus, parts, counts, None, quiet)

    outcome = _prepare_train_score(run, chosen, prepare_run)
    assert outcome is not None
    return outcome


def resume(
    name: str | None, changes: dict[str, Any], folder: str | Path | None = None, quiet: bool = False
) -> Outcome | None:
    """Continue a run with its own configuration, on as many devices as there are now.

    Args:
        name: of the run; None: the newest.
        changes: options to change, nested as in `config.to_dict`; `model` and `data` stay.
        folder: where the audio is now; None: where it was.
        quiet: say only what is wrong, on standard error.

    Returns:
        How it ended; None if it had already finished.

    Raises:
        UserError: no such run, or an option that cannot change.
        Interrupted: a signal stopped it.
        ProcessDied: one of several processes ended before its time.
    """
    return _resume(existing(name), changes, folder, quiet)


def resume_folder(
    run_dir: str | Path, folder: str | Path | None = None, quiet: bool = False, **overrides: Any
) -> Outcome | None:
    """Continue a run from its folder, with its own configuration, on as many devices as there are now.

    What comes of it is the same, bit for bit, as if the run had never been interrupted, and as what
    ``samplernn train --resume`` makes of it.

    Args:
        run_dir: folder of the run, such as ``runs/first``.
        folder: where the audio is now; None: where it was.
        quiet: say only what is wrong, on standard error.
        **overrides: options to change, each a part with a table or, in a dict, a name with a point;
            `model` and `data` stay.

    Returns:
        How it ended; None if it had already finished, and nothing is changed.

    Raises:
        UserError: no such run, it is damaged, or an option that cannot change.
        Interrupted: a signal stopped it.
        ProcessDied: one of several processes ended before its time.

    Example:
        >>> outcome = samplernn.resume("runs/first", trainer={"max_steps": 20_000})
        >>> outcome = samplernn.resume("runs/first", **{"trainer.max_steps": 20_000, "optim.patience": 20})
    """
    run = RunFolder(Path(run_dir))
    if not run.exists:
        raise UserError(
            f"{run.path}: no run that could be continued; give a run's folder, such as runs/first"
        )
    changes: dict[str, Any] = {}
    for name, value in overrides.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        changes = merged(changes, value)
    return _resume(run, changes, folder, quiet)


def _resume(
    run: RunFolder, changes: dict[str, Any], folder: str | Path | None, quiet: bool
) -> Outcome | None:
    """See `resume`."""
    old = run.config
    config: Config = from_dict(Config, merged(to_dict(old), changes))
    if config.data.batch_size == "auto":  # the run has chosen
        config = replace(config, data=replace(config.data, batch_size=old.data.batch_size))
    here = {key: getattr(config.data, key) for key in ("cache_dir", "decode_timeout")}
    if config.model != old.model or config.data != replace(old.data, **here):
        raise UserError(f"{run.path}: model.* and data.* of a run cannot change; train a new one instead")

    def prepare_run(trainer: pl.Trainer) -> Prepared | None:
        begun = run.started()
        if begun.state == "finished" and config == old:
            return None
        audio = str(Path(folder).resolve()) if folder else begun.folder
        corpus = prepare(audio, config.data, begun.gain, progress=not quiet)
        last = _newest_whole(run, config)
        run.write_config(config)
        run.write_facts(state="running", folder=audio)
        counts = last.pair_counts if last else _count_pairs(config, corpus, locate(corpus, begun.split.train))
        return Prepared(run, config, corpus, begun.split, counts, last, quiet)

    return _prepare_train_score(run, config, prepare_run)


class Last(NamedTuple):
    """A checkpoint to continue from."""

    path: Path
    step: int
    processes: int
    seconds: float
    """Of training so far."""
    pair_counts: PairCounts


def _newest_whole(run: RunFolder, config: Config) -> Last | None:
    """The newest checkpoint that is whole; None before the first.

    Nothing of the file stays mapped into memory: training is about to replace it, which Windows refuses then,
    and a network disk would keep the old one.

    Raises:
        UserError: there are some, but all are damaged.
    """
    found = [run.path / "checkpoints" / name for name in ("last.ckpt", "last-previous.ckpt")]
    found = [path for path in found if path.exists()]
    for path in found:
        damage = damage_of(path)
        if damage is None:
            try:
                saved = read_archive(path)
                require_resumable(saved, config, path)
                num_codes = head_of(config.model).num_baseline_codes
                counts = read_counts(saved[ENTRY].get("pair_counts"), num_codes, path)
                lanes = saved[STATE]
                return Last(path, saved["global_step"], lanes["processes"], lanes["seconds"], counts)
            except UserError as error:
                damage = str(error).removeprefix(f"{path}: ")
        say(f"{path}: {damage}; it is passed over")
    if found:
        raise UserError(
            f"{run.path}: no checkpoint to continue from is whole; its checkpoints/best.ckpt may still "
            "generate, but to train, start a new run"
        )
    return None


@dataclass(frozen=True)
class Prepared:
    """A run whose folder and audio are ready to train: what each of its processes has to know."""

    run: RunFolder
    config: Config
    corpus: Corpus
    """As it was when the run was started or resumed, with the gain of the run."""
    parts: Split
    """Which audio is for what."""
    pair_counts: PairCounts
    """Code pairs of the training audio, for the baselines."""
    last: Last | None
    """What it goes on from; None: from the beginning."""
    quiet: bool
    """Say only what is wrong."""

    @property
    def about(self) -> dict[str, Any]:
        """What the run is made of besides its options, as plain values: code, corpus, machine."""
        corpus = self.corpus
        found: dict[str, Any] = {
            "samplernn": __version__,
            "corpus": {
                "sha256": corpus.sha256,
                "files": len(corpus.files),
                "minutes": round(corpus.duration / 60, 2),
            },
            "hardware": hardware(),
        }
        commit = revision()
        return {**found, "revision": commit} if commit else found

    @property
    def held_out(self) -> Spans:
        """What training validates on."""
        return quick_check(locate(self.corpus, self.parts.validation), self.config.data)

    @property
    def baselines(self) -> BaselineBits:
        """What the run must beat on that."""
        evaluated = _count_pairs(self.config, self.corpus, self.held_out)
        return baseline_bits(self.pair_counts, evaluated)


def _prepare_train_score(
    run: RunFolder, config: Config, prepare_run: Callable[[pl.Trainer], Prepared | None]
) -> Outcome | None:
    """Prepare a run once, train it in every process that there is or should be, judge it once."""
    silence_lightning()
    trainer = make_trainer(config)  # raises on what Lightning refuses, before anything is written
    starts_workers = processes.launch() is None and trainer.world_size > 1
    with contextlib.ExitStack() as until_the_end:
        until_the_end.enter_context(_explaining_its_end(run))
        until_the_end.enter_context(processes.leaving_together())
        team = processes.Team(None if starts_workers else trainer)

        def claim_and_prepare() -> Prepared | None:
            until_the_end.enter_context(run.claimed())
            return prepare_run(trainer)

        prepared = team.do_once(claim_and_prepare)
        if prepared is None:
            return None
        _describe_run(prepared, trainer.strategy.root_device)
        if starts_workers:
            _train_in_processes(prepared, trainer.num_devices)
        else:
            work(prepared)
        return team.do_once(lambda: _score_best(prepared))


@contextlib.contextmanager
def _explaining_its_end(run: RunFolder) -> Iterator[None]:
    """Say which run ended; of a disk that is full, read-only or gone in one line, as UserError."""
    try:
        yield
    except (Interrupted, ProcessDied) as ended:
        ended.run = run.path.name
        raise
    except BrokenPipeError:  # of whoever reads what the command says
        raise
    except OSError as error:
        if error.errno is None:  # not from the operating system: a library that does not load
            raise
        where = error.filename2 or error.filename or run.path  # of a rename, the lasting name
        said = f"{where}: {error.strerror or error}"
        if (run.path / "config.yaml").exists():
            said += (
                "; what was saved is whole. Once mended, continue with: samplernn train --resume "
                f"--name {run.path.name} (in Python: samplernn.resume)"
            )
        raise UserError(said) from error


def _train_in_processes(prepared: Prepared, devices: int) -> None:
    """Let workers do the work."""
    run = prepared.run
    run.write_facts(saved=False)
    if not prepared.quiet:
        say(f"{devices} processes; the output of all but the first goes to {run.path / 'logs'}")
    try:
        signal_number = processes.train_in_processes(run.path, pickle.dumps(prepared), devices)
    except BaseException:
        with contextlib.suppress(OSError):  # which may be why it ended
            run.write_facts(state="interrupted")
        raise
    if signal_number is not None:
        raise Interrupted(signal_number, run.facts["saved"])


def work(prepared: Prepared) -> None:
    """Train a prepared run to its end, as one of its processes.

    Raises:
        UserError: a mistake of the user's.
        Interrupted: a signal stopped it.
        ProcessDied: another process could not be reached any more.
    """
    silence_lightning()
    run, config, corpus = prepared.run, prepared.config, prepared.corpus
    pl.seed_everything(config.seed_everything, verbose=False)
    if not corpus.shard_dir.exists():  # another machine, with a cache of its own
        prepare(corpus.folder, config.data)
    data = CorpusModule(config, corpus, prepared.parts)
    facts = Checkpoint(
        config, {}, corpus.gain, pair_counts=prepared.pair_counts, split=prepared.parts.to_dict()
    )
    module = TrainingModule(facts, planned_steps_per_epoch=len(data.train_dataloader()))
    try:
        with _explaining_its_end(run), quiet_writers():
            step, reason = _fit(prepared, module, data)
    except BaseException as error:
        saved = isinstance(error, Interrupted) and error.saved
        if is_first():
            with contextlib.suppress(OSError):  # which may be why it ended
                run.write_facts(state="interrupted", saved=saved)
        if processes.is_peer_lost(error):
            raise ProcessDied("another process of this run ended, or can no longer be reached") from error
        raise
    if is_first():
        run.write_facts(state="trained", step=step, reason=reason)


def _score_best(prepared: Prepared) -> Outcome:
    """Score the best checkpoint on audio that neither training nor validation has heard; the run is over."""
    run, corpus = prepared.run, prepared.corpus
    best = load(run.path)
    bits = best.results["validation_bits_per_sample"]
    if bits is None:
        raise UserError(f"{best.source}: its validation is not finite: {run.facts['reason']}")
    spans = quick_check(locate(corpus, prepared.parts.test), prepared.config.data)
    test = score_spans(best, corpus, spans, "test", progress=not prepared.quiet)
    num_validated = sum(stop - start for _, start, stop in prepared.held_out)
    normalise = prepared.config.data.normalise
    validation = Score(bits, num_validated, prepared.baselines, "validation", normalise)
    run.write_facts(state="finished", test=test.to_dict())
    facts = run.facts
    return Outcome(run.path, facts["step"], facts["reason"], validation, test)


def _fit(prepared: Prepared, module: TrainingModule, data: CorpusModule) -> tuple[int, str]:
    """Train to the end, from the last checkpoint if there is one; returns the last step and why it is."""
    run, config, quiet, last = prepared.run, prepared.config, prepared.quiet, prepared.last
    baselines, about = prepared.baselines, prepared.about
    if is_first():
        run.write_facts(about=about)
    step = last.step if last else 0
    if last:
        if reached := _limit_reached(config.trainer, last):
            return step, reached
        if not quiet:
            say(f"continuing from {last.path}, step {step}")
    elif (run.path / "metrics.csv").exists() and not quiet:
        say(f"{run.path}: no checkpoint was saved, or they are gone; it begins from the first step")
    folder = run.path / "checkpoints"
    folder.mkdir(exist_ok=True)
    checkpoints, metrics = Checkpoints(folder, config), Metrics(baselines, about)
    rescue, stopping = Rescue(checkpoints.save_last), Stopping(checkpoints.save_last)
    boards = dashboards(config, run.path, baselines, step, quiet)
    samples = Samples(run.path / "samples", config, module.facts, data.recording(), data.prompts(), boards)
    # Stopping comes before Samples, which makes its last ones whole.
    callbacks: list[pl.Callback] = [rescue, metrics, rescue, stopping, samples, checkpoints]
    if config.trainer.enable_progress_bar and is_first() and not quiet:
        callbacks.append(ProgressDisplay(metrics, baselines, config.data.sample_rate))
    rows = MetricsFile(run.path / "metrics.csv")
    rows.rewind(step)
    trainer = make_trainer(config, callbacks, [*boards, rows])
    if last and last.processes != trainer.world_size and not quiet:
        say(
            f"processes: {last.processes} so far, now {trainer.world_size}; lanes go on as they stood, but "
            "sums are rounded otherwise, so from here on it is no longer the same bit for bit"
        )
    trainer.fit(module, data, ckpt_path=last and last.path, weights_only=True)
    return trainer.global_step, stopping.reason


def _limit_reached(limits: TrainerConfig, last: Last) -> str | None:
    """Why nothing is left to do after this checkpoint; None if something is."""
    if 0 < limits.max_steps <= last.step:
        return "trainer.max_steps is reached"
    return "trainer.max_time is reached" if last.seconds >= limits.max_seconds else None


def _describe_run(prepared: Prepared, device: torch.device) -> None:
    """Say what was found in the folder, what is about to be trained, and what it must beat.

    Raises:
        UserError: a part has no audio (any more).
    """
    corpus, config = prepared.corpus, prepared.config
    problems = remarks(corpus, config.data.tbptt_len)
    for problem in problems[:_PROBLEMS_SHOWN]:
        say(f"  {problem}")
    if len(problems) > _PROBLEMS_SHOWN:
        say(f"  … and {len(problems) - _PROBLEMS_SHOWN} more: samplernn doctor lists them all")
    parts = []
    for part in ("train", "validation", "test"):
        spans = getattr(prepared.parts, part)
        found = locate(corpus, spans)
        if not found:
            raise UserError(f"{corpus.folder}: none of this run's {part} audio is there any more")
        if len(found) < len(spans):
            for problem in lost(corpus, spans)[:_PROBLEMS_SHOWN]:
                say(f"  {problem}")
            gone = len(spans) - len(found)
            say(f"  {gone} of {len(spans)} {part} files are not there any more as they were")
        seconds = sum(stop - start for _, start, stop in found) / corpus.sample_rate
        parts.append(f"{part} {seconds / 60:.1f} min")
    if leaked := leak(corpus, prepared.parts, config.data.keep_takes_together):
        say(f"  {leaked}")
    if prepared.quiet:
        return
    takes = kept_together(corpus) if config.data.keep_takes_together and not leaked else None
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in SampleRNN(config.model).parameters())
    steps = len(CorpusModule(config, corpus, prepared.parts).train_dataloader())
    baselines, runs, minutes = prepared.baselines, prepared.run.path.parent, corpus.duration / 60
    lines = [
        processes.idle_tasks(),
        f"{one_line(str(corpus.folder))}: {len(corpus.files)} files, {minutes:.1f} minutes usable",
        f"split: {', '.join(parts)}",
        takes and f"takes: {takes} (samplernn doctor names them)",
        f"model: {config.model.n_tiers} tiers, {parameters / 1e6:.2f} M parameters; {steps} "
        f"steps of {config.data.lanes} x {config.data.tbptt_len} samples per epoch",
        left_wide(config, device),
        f"baselines in bits per sample: uniform {baselines.uniform:.3f}, unigram {baselines.unigram:.3f}, "
        f"previous sample {baselines.previous_sample:.3f}",
        f"run: {prepared.run.path}" + ("" if config.logger == "wandb" else f"   ({tensorboard(runs)})"),
    ]
    say("\n".join(line for line in lines if line))


def _count_pairs(config: Config, corpus: Corpus, spans: Spans) -> PairCounts:
    """Code pairs of some audio, as the model of the run sees it."""
    return pair_counts(corpus, spans, Codec.of(config.model, corpus.gain), head_of(config.model))
