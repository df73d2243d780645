"""TensorBoard and Weights & Biases: the same curves, audio and pictures under the same names.

wandb is imported only where it was asked for. Whatever goes wrong inside it is said once and never
ends a run; nothing that it does waits longer than a bounded time for a server.
"""

from __future__ import annotations

import contextlib
import os
import struct
import textwrap
import threading
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import yaml
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from samplernn.config import Config
from samplernn.messages import say
from samplernn.model.baselines import BaselineBits
from samplernn.plots import mel_image
from samplernn.training.processes import is_first

STEP = "trainer/global_step"
"""What wandb draws its curves over; the name is the one that Lightning gives it."""
PROJECT = "samplernn"
"""Where runs go at wandb, unless WANDB_PROJECT says otherwise."""
_ANSWER_SECONDS = 5.0
_INIT_SECONDS = 20.0
_FINISH_SECONDS = 15.0
"""A job that is preempted has about 30 s, and the checkpoint is written first."""
_GRACE_SECONDS = 3.0
"""After that wandb's own process has got stuck (seen when the server was gone), and is killed."""
_UPLOAD_SECONDS = 10.0
"""An upload that takes longer goes on as long as the server answers."""

# What a run says about the machine and its user is for its user to decide: WANDB_CONSOLE and so on win.
_DISCREET: dict[str, Any] = {
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


class GridStream(NamedTuple):
    """A generated stream, as a row of a table."""

    step: int
    what: str
    temperature: float
    seed: int
    stream: int
    prompt: int | None
    """Number of the prompt that it continues; None: free generation."""
    audio: Path
    """A WAV file."""


class TensorBoard(TensorBoardLogger):
    """Event files in the folder of a run.

    Args:
        run: the folder.
        baselines: drawn with the validation into one diagram, under 'custom scalars'.
        step: that the run goes on from; what is there of later steps is forgotten.

    Attributes:
        is_new: nothing of this run has been shown before this session.
    """

    def __init__(self, run: Path, baselines: BaselineBits, step: int) -> None:
        self.is_new = not any(run.glob("events.out.tfevents.*"))
        super().__init__(run, name="", version="", default_hp_metric=False, purge_step=step + 1)
        names = ["", *(f"{name}_" for name in baselines.to_dict())]
        tags = [f"validation/{name}bits_per_sample" for name in names]
        self.experiment.add_custom_scalars_multilinechart(tags, "validation", "bits per sample")
        self._step = step

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Show the configuration as text; a resumed run may have changed it."""
        super().log_hyperparams(params)  # for hparams.yaml; in the events it would need a metric
        shown = yaml.safe_dump(dict(params) if isinstance(params, dict) else vars(params), sort_keys=False)
        self.experiment.add_text("config", textwrap.indent(shown, "    "), self._step)

    @rank_zero_only
    def show(self, files: Mapping[str, Path], grid: Sequence[GridStream], step: int) -> None:
        """Show sounds (WAV) and pictures (PNG) as what their names sound or look like at a step.

        It has no tables for the grid: its audio and pictures stand side by side already.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, file in files.items():
            if file.suffix == ".png":
                content = file.read_bytes()  # of 256 colours: `add_image` would make it four times as large
                width, height = struct.unpack(">II", content[16:24])
                image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=content)
                summary = Summary(value=[Summary.Value(tag=name, image=image)])
                self.experiment._get_file_writer().add_summary(summary, step)
            else:
                audio, rate = soundfile.read(file, dtype="float32")
                self.experiment.add_audio(name, audio[None], step, rate)


class Wandb(WandbLogger):
    """A run at Weights & Biases, or its files, to be uploaded later; only the first process has one.

    Args:
        session: what `wandb.init` returned.
        run: folder of our run.
        is_new: nothing of this run has been shown before this session.
    """

    def __init__(self, session: Any, run: Path, is_new: bool) -> None:
        super().__init__(experiment=session)
        self.is_new = is_new
        self._session, self._run = session, run
        self._has_failed = False
        self._best_bits: float | None = None

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Show the configuration; a resumed run may have changed it."""
        self._attempt(lambda: self._session.config.update(params, allow_val_change=True))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row.

        wandb's own step counts rows: it drops a row that goes back behind another, and a resumed run
        does some of its steps again.
        """
        self._best_bits = metrics.get("validation/best_bits_per_sample", self._best_bits)
        self._attempt(lambda: self._session.log({**metrics, STEP: step}))

    def show(self, files: Mapping[str, Path], grid: Sequence[GridStream], step: int) -> None:
        """Show sounds (WAV), pictures (PNG) and, as a table, the grid of a step.

        One table per step: one that grew would be uploaded whole each time.
        """
        import wandb

        def show() -> None:
            shown: dict[str, Any] = {
                name: (wandb.Image if file.suffix == ".png" else wandb.Audio)(str(file))
                for name, file in files.items()
            }
            if grid:
                rows = []
                for stream in grid:
                    audio, rate = soundfile.read(stream.audio, dtype="int16")
                    rows.append(
                        [*stream[:-1], wandb.Audio(str(stream.audio)), wandb.Image(mel_image(audio, rate))]
                    )
                shown["samples/grid"] = wandb.Table(columns=[*GridStream._fields, "spectrogram"], data=rows)
            with _staging_in(self._run / "wandb"):
                self._session.log({**shown, STEP: step})

        self._attempt(show)

    def finalize(self, status: str) -> None:
        """The run is over; if it ended by itself, its best checkpoint is uploaded."""
        succeeded = status == "success"
        later = f"Later: wandb sync {self._session.settings.sync_dir}"
        try:
            if succeeded and not self._session.offline:
                self._attempt(self._upload_best)
            with _at_most(_FINISH_SECONDS + _GRACE_SECONDS):
                self._session.finish(exit_code=0 if succeeded else 1)
        except TimeoutError:
            say(f"wandb: not everything was uploaded within {_FINISH_SECONDS:.0f} s. {later}")
        except Exception as error:
            self._complain(error)
        except BaseException:
            # One more Ctrl-C while another exception ends the run: that one goes on.
            if succeeded:
                raise
            say(f"wandb: interrupted. {later}")
        finally:
            _release()

    def _upload_best(self) -> None:
        import wandb
        from wandb.sdk.artifacts.exceptions import WaitTimeoutError

        best = self._run / "checkpoints" / "best.ckpt"
        server = self._session.settings.base_url
        if not best.exists():
            return
        facts = {"validation_bits_per_sample": self._best_bits}
        artifact = wandb.Artifact(f"model-{self._session.id}", type="model", metadata=facts)
        artifact.add_file(str(best), name=best.name, skip_cache=True, policy="immutable")
        logged = None
        try:
            while _answers(server):
                logged = logged or self._session.log_artifact(artifact, aliases=["best", "latest"])
                with contextlib.suppress(WaitTimeoutError):
                    logged.wait(timeout=_UPLOAD_SECONDS)
                    return
            say(f"wandb: {server} does not answer, so {best} was not uploaded")
        except KeyboardInterrupt:  # the run itself is over, and saved
            say(f"wandb: {best} was not uploaded")

    def _attempt(self, work: Callable[[], object]) -> None:
        """Do what concerns wandb alone; the run goes on if it fails."""
        try:
            work()
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            say(f"wandb failed, some of this run may be missing there: {_one_line(error)}")


Dashboard = TensorBoard | Wandb


def dashboards(
    config: Config, run: Path, baselines: BaselineBits, step: int, quiet: bool = False
) -> list[Dashboard]:
    """The dashboards of a run, ready to log.

    Args:
        config: says which.
        run: folder of the run.
        baselines: on the validation audio.
        step: that the run goes on from. TensorBoard forgets what a session before logged later than that.
        quiet: say only what fails.
    """
    found: list[Dashboard] = []
    if config.logger in ("tensorboard", "both"):
        try:
            found.append(TensorBoard(run, baselines, step))
        except Exception as error:  # also of protobuf or NumPy: built for another version
            if isinstance(error, OSError) and error.errno is not None:  # the disk
                raise
            say(f"tensorboard cannot be loaded, training goes on without it: {_one_line(error)}")
    if config.logger in ("wandb", "both") and is_first():
        session = None
        try:
            is_new = _run_id(run) is None
            session = _start_wandb(run, quiet)
        except Exception as error:
            say(f"wandb failed, training goes on without it: {_one_line(error)}")
        if session is None:
            _release()
        else:
            found.append(Wandb(session, run, is_new))
    return found


def _start_wandb(run: Path, quiet: bool) -> Any:
    """Begin or continue the run at wandb, and say how unless `quiet`; None if it is switched off.

    Without a key, or without a server, it is written to files that can be uploaded later.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or wandb reports on itself, offline too
    import wandb

    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    if settings.mode == "disabled":
        if not quiet:
            say("wandb: switched off by WANDB_MODE")
        return None
    wanted: dict[str, Any] = {
        "dir": str(run),
        "id": _run_id(run),
        "resume": "allow",
        "reinit": "create_new",
        "project": settings.project or PROJECT,
        "name": settings.run_name or run.name,
        "settings": wandb.Settings(
            silent=True,
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            **{key: value for key, value in _DISCREET.items() if f"WANDB_{key.upper()}" not in os.environ},
        ),
    }
    session, why_offline = None, _why_offline(settings)
    if not why_offline:
        try:
            session = wandb.init(mode="online", **wanted)
            said = session.url
        except Exception as error:  # the key is of no use, or the server has just gone
            why_offline = _one_line(error)
    if session is None:
        session = wandb.init(mode="offline", **wanted)
        said = f"offline ({why_offline}). Upload later with: wandb sync {run}/wandb/offline-run-*"
    if not quiet:
        say(f"wandb: {said}")
    (run / "wandb" / "run-id").write_text(session.id + "\n", "utf-8")
    session.define_metric(STEP)
    session.define_metric("*", step_metric=STEP)
    return session


def _why_offline(settings: Any) -> str:
    """Why nothing can be uploaded now; empty if it can. Never asks, and waits some seconds at most."""
    import wandb

    if settings.mode in ("offline", "dryrun"):
        return "as WANDB_MODE says"
    if wandb.run is not None:  # the user's own script is logged in, or has decided not to
        return "as the run that is active" if wandb.run.offline else ""
    if not wandb.login(prompt=False, verify=False):
        return "there is no key; `wandb login` stores one"
    return "" if _answers(settings.base_url) else f"{settings.base_url} does not answer"


@contextlib.contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """What wandb keeps until it is uploaded stays with the run, not in the user's home."""
    name = "WANDB_DATA_DIR"
    is_ours = name not in os.environ  # else the user has decided
    if is_ours:
        os.environ[name] = str(folder.resolve())
    try:
        yield
    finally:
        if is_ours:
            del os.environ[name]


def _release() -> None:
    """End wandb's process, and let a later run in this process read its environment anew."""
    with contextlib.suppress(Exception, SystemExit):  # it exits as its process did
        import wandb

        if wandb.run is None:  # the user's own script may have a run
            with _at_most(_GRACE_SECONDS):
                wandb.teardown()  # now, for at exit it would raise after a failure


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Kill wandb's process if the block takes longer; a call that waits for it then fails."""
    import wandb

    # There is no public way to the process; none if it belongs to the user's own script.
    connection = getattr(wandb.setup(), "_connection", None) if wandb.run is None else None
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    timer = threading.Timer(seconds, process.kill if process else lambda: None)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _answers(server: str) -> bool:
    """Whether anything at that address answers within some seconds, be it with an error."""
    try:
        urllib.request.urlopen(server, timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _run_id(run: Path) -> str | None:
    """Of the wandb run that this folder has used before."""
    saved = run / "wandb" / "run-id"
    return saved.read_text("utf-8").strip() or None if saved.exists() else None


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 300)
