"""What a run shows on its dashboards: read back from wandb's files and received by a wandb server."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import soundfile
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samplernn.audio.corpus import prepare
from samplernn.config import Config, DataConfig, from_dict, merged
from samplernn.model.baselines import BaselineBits
from samplernn.training import dashboards, run
from tests.conftest import TOY, toy_arguments
from tests.training.wandb_server import WandbServer

BASELINES = BaselineBits(uniform=6.0, unigram=5.0, previous_sample=4.0)
KEY = "0123456789" * 4
SHOWN = {
    "samples/t0_90-0": "step-0000006-t0.90-0",
    "samples/t1_00-0": "step-0000006-t1.00-0",
    "samples/prompt0-continued": "step-0000006-prompt0",
    "samples/prompt0": "prompt0",
    "samples/prompt0-truth": "prompt0-truth",
    "samples/recording": "recording",
}
"""Audio on the dashboards, and the file in samples/ that it is."""


def isolated(home: Path, **variables: str) -> dict[str, str]:
    """An environment without an account: no key, no netrc, nothing that wandb has been told before."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**kept, "HOME": str(home), "NETRC": str(home / "netrc"), "NO_PROXY": "127.0.0.1", **variables}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process in such an environment, in a current directory of its own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in isolated(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def _train(place: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samplernn", "train", *options, *toy_arguments()]
    home = place.parent / "home"
    return subprocess.run(
        command, cwd=place, env=isolated(home, **variables), capture_output=True, text=True, timeout=100
    )


def _records(session: Path) -> list[dict[str, Any]]:
    """Every record of a session's file, read by wandb's own tool."""
    (file,) = session.glob("*.wandb")
    tool = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file.name]
    done = subprocess.run(tool, capture_output=True, text=True, cwd=session, timeout=60)
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def _wandb_config(records: list[dict[str, Any]]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for record in records:
        for holder in (record.get("run", {}).get("config", {}), record.get("config", {})):
            config.update(holder.get("update", {}))
    return config


def _sessions(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("*run-*-*"))


def _config(logger: str = "wandb", **trainer: Any) -> Config:
    config: Config = from_dict(Config, merged(TOY, {"logger": logger, "trainer": trainer}))
    return config


@pytest.fixture(scope="module")
def offline(
    tmp_path_factory: pytest.TempPathFactory, clips: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run on both dashboards by somebody who has no account."""
    place = tmp_path_factory.mktemp("offline") / "here"
    place.mkdir()
    done = _train(place, str(clips), "--name", "toy", "--logger", "both")
    assert done.returncode == 0, done.stderr
    return place, done


@pytest.fixture(scope="module")
def records(offline: tuple[Path, subprocess.CompletedProcess[str]]) -> list[dict[str, Any]]:
    """What that run left for wandb."""
    (session,) = _sessions(offline[0] / "runs" / "toy")
    return _records(session)


def test_without_a_key_a_run_goes_to_files_and_says_so_in_one_line(
    offline: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    place, done = offline
    assert done.stdout == ""
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("wandb")]
    assert said == (
        "wandb: offline (there is no key; `wandb login` stores one). "
        "Upload later with: wandb sync runs/toy/wandb/offline-run-*"
    )
    assert [path.name for path in place.iterdir()] == ["runs"]


def test_wandb_gets_every_row_of_the_metrics_file_with_the_training_step(
    offline: tuple[Path, subprocess.CompletedProcess[str]], records: list[dict[str, Any]]
) -> None:
    shown: dict[int, dict[str, Any]] = {}
    for row in _rows(records):
        shown.setdefault(row[dashboards.STEP], {}).update(row)
    with (offline[0] / "runs" / "toy" / "metrics.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    assert [int(row["step"]) for row in logged] == [2, 4, 6]
    assert sorted(shown) == [0, 2, 4, 6]  # recordings that do not change are shown at step 0
    assert {key.partition(".")[0] for key in shown[0]} & set(logged[0]) == set()
    for row in logged:
        expected = {name: float(value) for name, value in row.items() if name != "step" and value}
        assert {name: shown[int(row["step"])][name] for name in expected} == pytest.approx(expected)
    axes = [record["metric"] for record in records if record["type"] == "metric"]
    assert {axis["glob_name"]: axis["step_metric"] for axis in axes if "glob_name" in axis} == {
        "*": dashboards.STEP
    }


def test_wandb_gets_configuration_and_baselines(
    offline: tuple[Path, subprocess.CompletedProcess[str]], records: list[dict[str, Any]]
) -> None:
    config = _wandb_config(records)
    assert config["model"]["dim"] == 16
    assert config["logger"] == "both"
    last = _rows(records)[-1], [row for row in _rows(records) if "validation/bits_per_sample" in row][-1]
    for name, bits in config["baselines"].items():
        assert last[1][f"validation/{name}_bits_per_sample"] == pytest.approx(bits)
    facts = json.loads((offline[0] / "runs" / "toy" / "run.json").read_text())
    assert config["baselines"].keys() == facts["test"]["baselines"].keys()
    assert config["baselines"]["uniform"] == 6.0  # 64 levels


def test_audio_at_wandb_is_what_was_generated_and_the_picture_is_there(
    offline: tuple[Path, subprocess.CompletedProcess[str]], records: list[dict[str, Any]]
) -> None:
    folder = offline[0] / "runs" / "toy"
    files = _sessions(folder)[0] / "files"
    media = {key: value for row in _rows(records) for key, value in row.items() if key.endswith(".path")}
    for name, file in SHOWN.items():
        shown, rate = soundfile.read(files / media[f"{name}.path"], dtype="int16")
        written, _ = soundfile.read(folder / "samples" / f"{file}.wav", dtype="int16")
        assert rate == 4000
        assert len(shown) == 400 or not file.startswith("step")  # 0.1 s
        np.testing.assert_array_equal(shown, written)
    pictures = {"": "spectrograms", "-codes": "codes", "-spectrum": "spectrum"}
    for suffix, name in pictures.items():
        picture = (files / media[f"samples/{name}.path"]).read_bytes()
        assert picture.startswith(b"\x89PNG")
        ours = matplotlib.image.imread(folder / "samples" / f"step-0000006{suffix}.png")
        at_wandb = matplotlib.image.imread(files / media[f"samples/{name}.path"])
        np.testing.assert_array_equal(at_wandb, ours)
        assert (ours[..., 3:] == 1).all()  # opaque
        (width,) = {row[f"samples/{name}.width"] for row in _rows(records) if f"samples/{name}.width" in row}
        assert width == 900


def test_tensorboard_gets_the_same_audio_and_pictures(
    offline: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder = offline[0] / "runs" / "toy"
    events = EventAccumulator(str(folder)).Reload()
    for name, file in SHOWN.items():
        shown = events.Audio(name)
        assert [entry.step for entry in shown][-1] == (6 if file.startswith("step") else 0)
        got, rate = soundfile.read(io.BytesIO(shown[-1].encoded_audio_string), dtype="int16")
        written, _ = soundfile.read(folder / "samples" / f"{file}.wav", dtype="int16")
        assert rate == 4000
        np.testing.assert_allclose(got, written, atol=1)  # by way of floats
    for suffix, name in {"": "spectrograms", "-codes": "codes", "-spectrum": "spectrum"}.items():
        got = matplotlib.image.imread(
            io.BytesIO(events.Images(f"samples/{name}")[-1].encoded_image_string), format="png"
        )
        ours = matplotlib.image.imread(folder / "samples" / f"step-0000006{suffix}.png")
        np.testing.assert_array_equal(got, ours)


def test_the_grid_at_wandb_has_a_row_for_every_stream_of_a_step(
    offline: tuple[Path, subprocess.CompletedProcess[str]], records: list[dict[str, Any]]
) -> None:
    folder = offline[0] / "runs" / "toy"
    assert "samples/grid.artifact_path" in {key for row in _rows(records) for key in row}
    contents = [record["artifact"]["manifest"]["contents"] for record in records if "artifact" in record][-1]
    kept = {entry["path"]: Path(entry["local_path"]) for entry in contents}
    assert all(path.is_relative_to(folder.resolve()) for path in kept.values())  # not in the user's home
    grid = json.loads(kept["samples/grid.table.json"].read_text())
    columns = grid["columns"]
    assert columns == ["step", "what", "temperature", "seed", "stream", "prompt", "audio", "spectrogram"]
    rows = [dict(zip(columns, row, strict=True)) for row in grid["data"]]
    assert [(row["step"], row["temperature"], row["stream"], row["prompt"]) for row in rows] == [
        (6, 0.9, 0, None),
        (6, 1.0, 0, None),
        (6, 0.9, 0, 0),
    ]
    for row, name in zip(rows, ("t0.90-0", "t1.00-0", "prompt0"), strict=True):
        heard, _ = soundfile.read(kept[row["audio"]["path"]], dtype="int16")
        written, _ = soundfile.read(folder / "samples" / f"step-0000006-{name}.wav", dtype="int16")
        np.testing.assert_array_equal(heard, written)
        assert kept[row["spectrogram"]["path"]].read_bytes().startswith(b"\x89PNG")


def test_both_get_what_the_run_is_made_of(
    offline: tuple[Path, subprocess.CompletedProcess[str]], records: list[dict[str, Any]], clips: Path
) -> None:
    """Corpus, machine and, as the current directory is no repository, no revision."""
    folder = offline[0] / "runs" / "toy"
    config = _wandb_config(records)
    corpus = prepare(clips, DataConfig(sample_rate=4000))
    assert config["corpus"]["sha256"] == corpus.sha256
    assert config["corpus"]["files"] == len(corpus.files)
    assert config["hardware"]["cores"] == os.cpu_count()
    assert set(config["hardware"]) == {"processor", "cores", "memory_gb", "gpus", "torch"}
    assert "revision" not in config
    assert socket.gethostname() not in json.dumps({**config["hardware"], **config["corpus"]})
    text = EventAccumulator(str(folder)).Reload().Tensors("config/text_summary")
    (shown,) = [entry.tensor_proto.string_val[0].decode() for entry in text]
    assert yaml.safe_load(textwrap.dedent(shown)) == {
        key: value for key, value in config.items() if not key.startswith("_")
    }
    assert json.loads((folder / "run.json").read_text())["about"] == {
        key: config[key] for key in ("samplernn", "corpus", "hardware")
    }


def test_the_revision_is_that_of_the_current_directory(alone: Path, clips: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    outcome = run.start(clips, _config(), "toy")
    (session,) = _sessions(outcome.folder)
    records = _records(session)
    assert _wandb_config(records)["revision"] == head.strip()
    assert "git" not in next(record["run"] for record in records if record["type"] == "run")


def test_nothing_about_the_machine_and_its_user_is_kept_for_upload(
    offline: tuple[Path, subprocess.CompletedProcess[str]], records: list[dict[str, Any]]
) -> None:
    files = _sessions(offline[0] / "runs" / "toy")[0] / "files"
    assert {path.name for path in files.iterdir()} == {"media"}  # no requirements, code, console, metadata
    assert not {"output", "output_raw", "environment"} & {record["type"] for record in records}
    assert "git" not in next(record["run"] for record in records if record["type"] == "run")


def test_tensorboard_and_wandb_show_the_same_under_the_same_names(
    offline: tuple[Path, subprocess.CompletedProcess[str]], records: list[dict[str, Any]]
) -> None:
    events = EventAccumulator(str(offline[0] / "runs" / "toy"))
    events.Reload()
    tags = events.Tags()
    board = {*tags["scalars"], *tags["images"], *tags["audio"]}
    keys = {key.partition(".")[0] for row in _rows(records) for key in row if not key.startswith("_")}
    assert board - {"epoch"} == keys - {"epoch", dashboards.STEP, "samples/grid"}
    assert {"validation/previous_sample_bits_per_sample", "samples/spectrograms", *SHOWN} < board
    assert {"train/lr", "grad_norm/tier3", "train/samples_per_s", "memory/process_mb"} < board
    diagram = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"validation/bits_per_sample" in diagram
    assert b"validation/unigram_bits_per_sample" in diagram


def test_a_resumed_run_keeps_its_id_and_loses_no_row(
    alone: Path, offline: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    shutil.copytree(offline[0] / "runs", alone / "runs")
    outcome = run.resume("toy", {"trainer": {"max_steps": 8}})
    assert outcome is not None
    sessions = [_records(session) for session in _sessions(outcome.folder)]
    began = [next(record["run"] for record in session if record["type"] == "run") for session in sessions]
    saved = (outcome.folder / "wandb" / "run-id").read_text().strip()
    assert [one["run_id"] for one in began] == [saved, saved]
    assert all(one["resume"] for one in began)  # uploaded, the second goes on behind the first
    assert [row[dashboards.STEP] for row in _rows(sessions[1]) if "train/lr" in row] == [8]
    assert "samples/recording.path" not in {key for row in _rows(sessions[1]) for key in row}  # shown before
    events = EventAccumulator(str(outcome.folder)).Reload()
    assert [entry.step for entry in events.Audio("samples/prompt0-truth")] == [0]
    assert events.Audio("samples/t0_90-0")[-1].step == 8


def test_with_a_server_everything_arrives_the_best_checkpoint_too(
    alone: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        outcome = run.start(clips, _config(), "toy")
        said = capfd.readouterr()
        assert said.out == ""
        told = [line for line in said.err.splitlines() if line.startswith("wandb")]
        assert told == [f"wandb: {server.url}/someone/samplernn/runs/{dashboards._run_id(outcome.folder)}"]
        steps = [row[dashboards.STEP] for row in server.rows if "train/bits_per_sample" in row]
        assert steps == [2, 4, 6]
        best = (outcome.folder / "checkpoints" / "best.ckpt").read_bytes()
        assert server.files["artifact/best.ckpt"] == best
        (audio, *_) = [name for name in server.files if "samples/t0_90-0_" in name]
        assert server.files[audio].startswith(b"RIFF")
        assert server.finished == [0]
        # Resumed, it goes on behind the rows that are there: the server drops what goes back.
        before = len(server.rows)
        run.resume("toy", {"trainer": {"max_steps": 8}})
        assert [row["_step"] for row in server.rows] == list(range(len(server.rows)))
        assert [row[dashboards.STEP] for row in server.rows[before:] if "train/lr" in row] == [8]
        names = {asked["name"] for operation, asked in server.asked if operation == "RunResumeStatus"}
        assert names == {dashboards._run_id(outcome.folder)}


@pytest.mark.slow
def test_a_server_that_vanishes_takes_nothing_with_it(
    alone: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(dashboards, "_FINISH_SECONDS", 1.0)
    with WandbServer(vanish_after="UpsertBucket") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        outcome = run.start(clips, _config(), "toy")
    assert outcome.step == 6
    (session,) = _sessions(outcome.folder)
    said = capfd.readouterr().err
    assert f"wandb: {server.url} does not answer, so runs/toy/checkpoints/best.ckpt was not uploaded" in said
    assert f"not everything was uploaded within 1 s. Later: wandb sync runs/toy/wandb/{session.name}" in said
    assert [row[dashboards.STEP] for row in _rows(_records(session)) if "train/lr" in row] == [2, 4, 6]


@pytest.mark.slow
def test_online_without_a_server_a_run_trains_offline_and_says_why(tmp_path: Path, clips: Path) -> None:
    (tmp_path / "here").mkdir()
    online = {"WANDB_MODE": "online", "WANDB_API_KEY": KEY, "WANDB_HTTP_TIMEOUT": "1"}
    done = _train(
        tmp_path / "here",
        str(clips),
        *("--name", "toy", "--logger", "wandb"),
        WANDB_BASE_URL="http://127.0.0.1:9",
        **online,
    )
    assert done.returncode == 0, done.stderr
    assert "wandb: offline (http://127.0.0.1:9 does not answer). Upload later with: wandb sync" in done.stderr
    assert "finished after 6 steps" in done.stderr
    (session,) = _sessions(tmp_path / "here" / "runs" / "toy")
    assert session.name.startswith("offline-run-")
    assert not list((tmp_path / "here" / "runs" / "toy").glob("events.*"))  # no TensorBoard


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def _wandb(folder: Path) -> dashboards.Wandb:
    (found,) = dashboards.dashboards(_config(), folder, BASELINES, 0)
    assert isinstance(found, dashboards.Wandb)
    return found


def test_a_server_that_never_answers_is_not_waited_for(
    alone: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setattr(dashboards, "_ANSWER_SECONDS", 1.0)
    started = time.monotonic()
    board = _wandb(alone)
    assert time.monotonic() - started < 30  # forever, otherwise
    board.finalize("success")
    assert f"wandb: offline ({silent_server} does not answer)" in capfd.readouterr().err


def test_a_failure_inside_wandb_is_said_once_and_nothing_else_happens(
    alone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    sound = alone / "b.wav"
    soundfile.write(sound, np.zeros(10, np.int16), 4000)
    board = _wandb(alone)
    service = [pid for pid in _children() if "wandb-core" in _command(pid)]
    assert len(service) == 1
    os.kill(service[0], signal.SIGKILL)
    time.sleep(0.2)
    for step in range(3):
        board.log_metrics({"a": 1.0}, step)
        board.show({"b": sound}, [], step)
    board.finalize("success")
    said = capfd.readouterr().err
    assert said.count("wandb failed") == 1
    assert "Traceback" not in said
    assert wandb.run is None


def test_a_wandb_that_is_stuck_does_not_hold_up_the_end(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboards, "_FINISH_SECONDS", 0.5)
    monkeypatch.setattr(dashboards, "_GRACE_SECONDS", 0.5)
    board = _wandb(alone)
    (service,) = [pid for pid in _children() if "wandb-core" in _command(pid)]
    os.kill(service, signal.SIGSTOP)
    board.log_metrics({"a": 1.0}, 1)
    board.finalize("success")
    assert _command(service) == ""
    assert capfd.readouterr().err.count("wandb failed") == 1


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("WANDB_MODE", "offline", "wandb: offline (as WANDB_MODE says)"),
        ("WANDB_MODE", "disabled", "wandb: switched off by WANDB_MODE"),
        ("WANDB_MODE", "sideways", "wandb failed, training goes on without it: ValidationError"),
    ],
)
def test_the_mode_is_the_users(
    alone: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    said: str,
) -> None:
    monkeypatch.setenv(variable, value)
    for board in dashboards.dashboards(_config(), alone, BASELINES, 0):
        board.finalize("success")
    told = capfd.readouterr().err
    assert told.startswith(said)
    assert told.count("\n") == 1


@pytest.mark.slow
def test_a_terminated_run_closes_its_files_and_leaves_no_process(tmp_path: Path, clips: Path) -> None:
    place = tmp_path / "here"
    place.mkdir()
    command = [sys.executable, "-m", "samplernn", "train", str(clips), "--name", "toy", "--logger", "wandb"]
    endless = ["--trainer.max_steps=1000000", "--trainer.val_check_interval=1000000"]
    process = subprocess.Popen(
        [*command, *toy_arguments(), *endless],
        cwd=place,
        env=isolated(tmp_path / "home"),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (place / "runs" / "toy" / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    service = [pid for pid in _children(process.pid) if "wandb-core" in _command(pid)]
    assert len(service) == 1
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM, saved" in said
    assert "wandb-core" not in _command(service[0])
    (session,) = _sessions(place / "runs" / "toy")
    assert _records(session)[-1]["exit"]["exit_code"] == 1


@pytest.mark.slow
def test_of_two_processes_one_has_a_dashboard(alone: Path, clips: Path) -> None:
    outcome = run.start(clips, _config("both", devices=2), "toy")
    (session,) = _sessions(outcome.folder)
    assert [row[dashboards.STEP] for row in _rows(_records(session)) if "train/lr" in row] == [2, 4, 6]
    assert len(list(outcome.folder.glob("events.*"))) == 1


def _children(parent: int | None = None) -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").glob("[0-9]*")
        if f"\nPPid:\t{parent or os.getpid()}\n" in _status(entry)
    ]


def _status(entry: Path) -> str:
    try:
        return (entry / "status").read_text()
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize(
    "error", [TypeError("Descriptors cannot be created directly."), OSError("Could not load this library")]
)
def test_a_tensorboard_that_does_not_load_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """However its libraries fail; what the disk refuses is another matter."""

    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(dashboards, "TensorBoard", fails)
    baselines = BaselineBits(6.0, 5.0, 4.0)
    assert dashboards.dashboards(from_dict(Config, TOY), tmp_path, baselines, 0, False) == []
    said = capsys.readouterr().err
    assert said.count("tensorboard cannot be loaded, training goes on without it") == 1
    assert str(error) in said
    error = OSError(28, "No space left on device", "events")
    with pytest.raises(OSError, match="No space left"):
        dashboards.dashboards(from_dict(Config, TOY), tmp_path, baselines, 0, False)
