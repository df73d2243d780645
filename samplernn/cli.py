"""The command line: verbs to functions. Heavy imports stay inside the verb that needs them.

Errors of the user's making arrive here as `UserError` and leave as one line and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from samplernn import __version__, signals
from samplernn.config import Config, UserError, let_everything_be_printed, to_dict
from samplernn.messages import say

if TYPE_CHECKING:
    from samplernn.insight.activations import Activations
    from samplernn.insight.gradients import GradientReach
    from samplernn.model.checkpoint import Checkpoint

Verb = Callable[[list[str]], int]
VERBS: dict[str, Verb] = {}
"""What a person can type, in the order of the help."""

Argument = tuple[tuple[str, ...], dict[str, Any]]


def _argument(*names: str, **settings: Any) -> Argument:
    """The arguments of `add_argument`."""
    return names, settings


_CHECKPOINT = "a .ckpt file, a run directory or an exported directory"
_JSON = _argument("--json", action="store_true", help="print one JSON object")
_CACHE_DIR = _argument("--cache-dir", help="for decoded audio (default: the user's cache folder)")


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}  (see {self.prog} --help)")


def verb(
    *arguments: Argument, description: str | None = None
) -> Callable[[Callable[[argparse.Namespace], int]], Verb]:
    """Decorate what a command does with its parsed arguments; its docstring is the line in the help."""

    def named(run: Callable[[argparse.Namespace], int]) -> Verb:
        def parse_and_run(argv: list[str]) -> int:
            parser = Parser(prog=f"samplernn {run.__name__}", description=description or run.__doc__)
            for names, settings in arguments:
                parser.add_argument(*names, **settings)
            return run(parser.parse_args(argv))

        parse_and_run.__doc__ = run.__doc__
        VERBS[run.__name__] = parse_and_run
        return parse_and_run

    return named


def doctor(argv: list[str]) -> int:
    """Say whether a folder of audio is fit for training."""
    from samplernn.options import parse_doctor

    options = parse_doctor(argv)
    from rich.console import Console

    from samplernn.insight.doctor import examine, show

    diagnosis = examine(options.folder, options.config)
    if options.json:
        print(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        show(diagnosis, Console(highlight=False), shlex.join(["samplernn", "train", *argv]))
    return 0 if diagnosis.trainable else 1


def train(argv: list[str]) -> int:
    """Train on a folder of audio."""
    from samplernn.options import parse

    options = parse(argv)
    if options.resume:
        from samplernn.training.folder import existing

        _ = existing(options.name).config  # raises, before seconds go by with imports
    if options.folder is not None:
        from samplernn.audio.scan import require_audio

        require_audio(options.folder)
    if options.overfit_check:
        assert options.folder is not None
        return _overfit_check(options.folder, options.config, options.quiet)
    from samplernn.training import run
    from samplernn.training.callbacks import Interrupted
    from samplernn.training.folder import RUNS, newest, of_job
    from samplernn.training.processes import REQUEUE, ProcessDied, is_requeued, requeue, slurm_job
    from samplernn.training.scoring import table

    try:
        if options.resume:
            outcome = run.resume(options.name, options.changes, options.folder, options.quiet)
            if outcome is None:
                name = options.name or newest().name
                if not options.quiet:
                    run.say(
                        f"{RUNS / name}: already finished. A later limit or more optim.patience continues it"
                    )
                return 0
        elif is_requeued() and (begun := of_job(slurm_job() or "")):
            outcome = run.resume(begun, {}, quiet=options.quiet)
            if outcome is None:
                return 0
        else:
            assert options.folder is not None
            outcome = run.start(options.folder, options.config, options.name, options.quiet)
    except Interrupted as interrupted:
        saved = "saved" if interrupted.saved else "unsaved since the last checkpoint"
        run.say(
            f"\nstopped by {interrupted}, {saved}. "
            f"Continue with: samplernn train --resume --name {interrupted.run}"
        )
        if interrupted.saved and interrupted.signal_number == REQUEUE and slurm_job():
            run.say(requeue())
        return 128 + interrupted.signal_number
    except ProcessDied as died:
        run.say(
            f"\nerror: {died}. Continue from the last checkpoint with: "
            f"samplernn train --resume --name {died.run}"
        )
        return 1
    if options.quiet:
        run.say(table(outcome.validation, outcome.test))
        return 0
    run.say(
        f"\nfinished after {outcome.step} steps: {outcome.reason}.\n"
        f"{table(outcome.validation, outcome.test)}\n"
        f"{outcome.test.verdict}.\n"
        f"next: samplernn generate {outcome.folder}"
    )
    return 0


def _overfit_check(folder: str, config: Config, quiet: bool) -> int:
    """Say whether these options learn a few seconds of the folder by heart."""
    from samplernn.training.callbacks import Interrupted
    from samplernn.training.overfit import overfit_check

    try:
        check = overfit_check(folder, config, quiet)
    except Interrupted as interrupted:
        say(f"\nstopped by {interrupted}")
        return 128 + interrupted.signal_number
    print(check.verdict)
    return 0 if check.is_healthy else 1


def generation_parser(verb: str, description: str, **chosen: Any) -> Parser:
    """The parser of `generate` or `play`; what is not given is absent from its result.

    Args:
        verb: its name.
        description: what it does.
        **chosen: see `arguments.add_options`.
    """
    from samplernn.generation.arguments import add_options
    from samplernn.generation.request import Options, Output

    parser = Parser(
        prog=f"samplernn {verb}",
        description=f"{description} Not said: as in --like, else as in --from-state, else the default.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("checkpoint", nargs="?", help=f"{_CHECKPOINT} (with --like: default as it was)")
    add_options(parser, Output, Options, **chosen)
    return parser


def generate(argv: list[str]) -> int:
    """Generate audio from a checkpoint."""
    arguments = vars(generation_parser("generate", str(generate.__doc__)).parse_args(argv))

    from samplernn.audio.sinks import PipeClosed, PipeSink
    from samplernn.generation.files import generate as write_audio

    checkpoint = _checkpoint(arguments)
    if arguments.get("out") != "-":
        for path in write_audio(checkpoint, **arguments):
            print(path)
        return 0
    form = arguments.pop("form", "au")
    if form not in ("au", "raw"):
        raise UserError(f"--format {form} cannot go into a pipe; au and raw can")
    if sys.stdout.isatty():
        raise UserError("--out -: standard output is a terminal; pipe it into a player, such as: | ffplay -")
    arguments["out"] = lambda sample_rate, tags: PipeSink(
        sys.stdout.buffer, sample_rate, form, tags["comment"]
    )
    try:
        write_audio(checkpoint, **arguments)
    except PipeClosed as closed:  # often it is what the user wanted
        say(f"stopped: {closed.problem}")
        return 141
    return 0


def play(argv: list[str]) -> int:
    """Play a checkpoint through the loudspeakers."""
    chosen = {"without": ("num", "stream", "out", "form", "overwrite"), "duration": "until Ctrl-C"}
    arguments = vars(generation_parser("play", str(play.__doc__), **chosen).parse_args(argv))

    from samplernn.audio.speaker import SpeakerSink
    from samplernn.generation.files import generate as write_audio

    speakers: list[SpeakerSink] = []

    def open_speaker(sample_rate: int, tags: Mapping[str, str]) -> SpeakerSink:
        speakers.append(SpeakerSink(sample_rate))
        return speakers[0]

    if "like" not in arguments:
        arguments = {"duration": math.inf, "num": 1, **arguments}
    try:
        write_audio(_checkpoint(arguments), **arguments, out=open_speaker)
    finally:
        if speakers and (gaps := speakers[0].underruns):
            say(f"the sound had {gaps} gaps: the model is too large for this machine, or it is busy")
    return 0


def _checkpoint(arguments: dict[str, Any]) -> Checkpoint:
    """Take the checkpoint from parsed arguments, else from the file that it shall be like."""
    from samplernn.generation.settings import read_sidecar
    from samplernn.model.checkpoint import load

    given = arguments.pop("checkpoint", None)
    if given is not None:
        return load(given)
    if "like" not in arguments:
        raise UserError(f"give a checkpoint: {_CHECKPOINT}")
    source = read_sidecar(arguments["like"]).checkpoint
    try:
        return load(source)
    except UserError as error:
        raise UserError(f"{error}. Name the checkpoint that made {arguments['like']}") from None


VERBS |= {"doctor": doctor, "train": train, "generate": generate, "play": play}


@verb(
    _argument("checkpoint", help=_CHECKPOINT),
    _argument("folder", help="of audio"),
    _argument("--split", default="test", help="test (default), validation, train, or all files"),
    _CACHE_DIR,
    _JSON,
)
def evaluate(options: argparse.Namespace) -> int:
    """Score a checkpoint on audio, in bits per sample, beside the baselines."""
    from samplernn.insight.evaluate import evaluate
    from samplernn.model.checkpoint import load
    from samplernn.training.scoring import table

    result = evaluate(load(options.checkpoint), options.folder, options.split, cache_dir=options.cache_dir)
    if options.json:
        print(json.dumps(result.to_dict(), indent=2))
        return 0
    print(f"{result.num_samples} samples\n{table(result)}\n{result.verdict}")
    return 0


@verb(
    _argument("checkpoint", help="a .ckpt file or a run directory"),
    _argument("directory", help="made if absent; must be empty"),
    description="Write model.safetensors, config.yaml, README.md.",
)
def export(options: argparse.Namespace) -> int:
    """Write a checkpoint as a folder that explains itself."""
    from samplernn.model.checkpoint import export, load

    print(export(load(options.checkpoint), options.directory))
    return 0


@verb(
    _argument("checkpoint", help=_CHECKPOINT),
    _JSON,
    description="What a model is made of, how it was trained, and how to generate from it.",
)
def info(options: argparse.Namespace) -> int:
    """Say what a model is made of and how good it is."""
    from samplernn.model.checkpoint import load

    checkpoint = load(options.checkpoint)
    if not options.json:
        from samplernn.insight.info import describe

        print(describe(checkpoint, options.checkpoint))
        return 0
    facts: dict[str, Any] = {
        "file": str(checkpoint.source),
        "weights_sha256": checkpoint.weights_hash(),
        "parameters": sum(value.numel() for value in checkpoint.weights.values()),
        "gain": checkpoint.gain,
        "results": checkpoint.results,
        "config": to_dict(checkpoint.config),
    }
    print(json.dumps(facts, indent=2))
    return 0


@verb(
    _argument("runs", nargs="+", metavar="RUN", help="a run's folder, finished or still training"),
    _argument(
        "--out", metavar="FILE.html", help="default: report.html in the run's folder; of several runs, here"
    ),
)
def report(options: argparse.Namespace) -> int:
    """Write a page about a run, or several beside each other: curves, audio, settings."""
    from samplernn.insight.report import report

    print(report(options.runs, options.out))
    return 0


@verb(
    _argument("checkpoints", nargs="+", metavar="CHECKPOINT", help=_CHECKPOINT),
    _argument("--temperature", nargs="+", metavar="T", help="numbers or envelopes (default: 0.85 0.95 1.05)"),
    _argument(
        "--prompt",
        nargs="+",
        metavar="FILE",
        help="recordings that streams continue, beside those that continue nothing",
    ),
    _argument("--seeds", type=int, default=2, help="streams of each combination (default: 2)"),
    _argument("--duration", type=float, default=5.0, help="seconds of each (default: 5)"),
    _argument("--out", default="audition.html", metavar="FILE.html", help="default: audition.html"),
)
def audition(options: argparse.Namespace) -> int:
    """Write a page with audio of checkpoints at several temperatures, prompts and seeds, best first."""
    from samplernn.insight.audition import audition

    given = {name: value for name, value in vars(options).items() if value is not None}
    print(audition(**given))
    return 0


@verb(
    _argument("checkpoint", help=_CHECKPOINT),
    _argument("file", help="a recording that the model listens to"),
    _argument("--out", help="a .png file, written anew (default: activations.png; with --json: none)"),
    _argument("--start", type=float, default=0.0, help="seconds into the recording (default: 0)"),
    _argument("--duration", type=float, default=8.0, help="seconds to look at (default: 8)"),
    _argument("--top", type=int, default=8, help="units to draw per tier (default: 8)"),
    _JSON,
)
def activations(options: argparse.Namespace) -> int:
    """Draw the hidden units that follow loudness, onsets, pitch or phase in a recording."""
    out = _picture(options.out, options.json, "activations.png")

    from samplernn.insight.activations import activations
    from samplernn.model.checkpoint import load

    found = activations(load(options.checkpoint), options.file, options.start, options.duration, options.top)
    return _show(found, options.json, out)


@verb(
    _argument("checkpoint", help=_CHECKPOINT),
    _argument("folder", help="of audio; what the model was not trained on is preferred"),
    _argument("--out", help="a .png file, written anew (default: gradients.png; with --json: none)"),
    _argument("--duration", type=float, default=2.0, help="seconds that gradients run back (default: 2)"),
    _argument("--places", type=int, default=32, help="stretches of audio (default: 32)"),
    _CACHE_DIR,
    _JSON,
)
def gradients(options: argparse.Namespace) -> int:
    """Draw how far back the gradients of each tier reach."""
    out = _picture(options.out, options.json, "gradients.png")

    from samplernn.insight.gradients import gradients
    from samplernn.model.checkpoint import load

    checkpoint = load(options.checkpoint)
    found = gradients(
        checkpoint, options.folder, options.duration, options.places, cache_dir=options.cache_dir
    )
    return _show(found, options.json, out)


def _picture(given: str | None, is_json: bool, default: str) -> Path | None:
    """Where a picture goes, if one is wanted."""
    if given is None:
        return None if is_json else Path(default)
    if not given.lower().endswith(".png"):
        raise UserError(f"--out {given}: pictures are PNG files; give a name that ends in .png")
    return Path(given)


def _show(found: Activations | GradientReach, is_json: bool, out: Path | None) -> int:
    """Print what was found and draw it."""
    from samplernn import plots

    if out:
        try:
            plots.save(found.draw(), out)
        except OSError as error:
            raise UserError(f"{out}: the picture cannot be written: {error.strerror or error}") from None
    if is_json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    for line in found.lines():
        print(line)
    print(f"picture: {out}")
    return 0


@verb(
    _argument("--preset", default="reference", help="sizes of the model (default: reference)"),
    _argument("--what", default="generate", choices=["generate", "train"], help="default: generate"),
    _argument("--threads", type=int, help="cores to use (default: all)"),
    _JSON,
    _argument("--precision", help="with --what train: a trainer.precision (default: the preset's)"),
    _argument(
        "--lanes", type=int, help="with --what train (default: the preset's data.batch_size; on a CPU 16)"
    ),
    _argument(
        "--tbptt-len",
        type=int,
        help="with --what train: samples per chunk (default: the preset's; on a CPU 1024)",
    ),
)
def benchmark(options: argparse.Namespace) -> int:
    """Measure how fast this machine generates or trains, and what it could do."""
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads must be at least 1, got {options.threads}")
    sizes = {name: getattr(options, name) for name in ("precision", "lanes", "tbptt_len")}
    if options.what == "generate" and any(value is not None for value in sizes.values()):
        raise UserError("--precision, --lanes and --tbptt-len belong to --what train")

    from rich.console import Console

    from samplernn.insight.benchmark.results import show

    if options.what == "train":
        from samplernn.insight.benchmark import training

        measured = training.benchmark(options.preset, options.threads, **sizes)
    else:
        from samplernn.insight.benchmark import generation

        measured = generation.benchmark(options.preset, options.threads)
    if options.json:
        print(json.dumps(measured.to_dict(), indent=2))
        return 0
    for name, value in measured.machine.items():
        print(f"{name}: {value}")
    Console(width=None if sys.stdout.isatty() else 100).print(show(measured))
    for remark in measured.remarks:
        print(remark)
    return 0


@verb(
    _argument("--out", default="demo-output", help="folder for the new audio (default: demo-output)"),
    _argument("--steps", type=int, help="of training (default: those of the preset demo)"),
)
def demo(options: argparse.Namespace) -> int:
    """Train on the embedded clips for three minutes at most, and generate."""
    from samplernn.insight.demo import demo as run_demo
    from samplernn.training.callbacks import Interrupted

    try:
        run_demo(options.out, steps=options.steps)
    except Interrupted as interrupted:
        say(f"\nstopped by {interrupted}")
        return 128 + interrupted.signal_number
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the console script `samplernn`.

    Returns:
        The exit code: 0, 1 for a folder or options that `doctor` or `--overfit-check` finds unfit, 2 for a
        mistake of the user's, 128 + number for a signal.
    """
    parser = Parser(
        prog="samplernn",
        description="Learn raw audio from a folder, and generate it.",
        epilog="verbs:\n"
        + "\n".join(f"  {name:12}{verb.__doc__}" for name, verb in VERBS.items())
        + "\n\nsamplernn VERB --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"samplernn {__version__}")
    parser.add_argument("verb", help="what to do", metavar="VERB")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the verb", metavar="…")
    let_everything_be_printed()
    signals.exit_when_asked()
    # Torch's threads spin while they wait for each other. At the default of 300 000 turns any other
    # busy process stalls them for seconds; at 10 000 a machine of its own costs a few percent.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        options = parser.parse_args(argv)
        if options.verb not in VERBS:
            raise UserError(f"unknown verb {options.verb!r}; there are: {', '.join(VERBS)}")
        return VERBS[options.verb](options.arguments)
    except UserError as error:
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":  # the first speaks for all
            say(f"error: {error}")
        return 2
    except MemoryError as error:
        say(f"error: not enough memory for these sizes ({error or 'none is left'})")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush into the pipe
        return 141


if __name__ == "__main__":
    sys.exit(main())
