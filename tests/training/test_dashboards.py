"""What a run shows on its dashboards: read back from wandb's files and received by a wandb server."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samplernn.config import Config, from_dict, merged
from samplernn.model.baselines import BaselineBits
from samplernn.training import dashboards, run
from tests.conftest import TOY, toy_arguments
from tests.training.wandb_server import WandbServer

BASELINES = BaselineBits(uniform=6.0, unigram=5.0, previous_sample=4.0)
KEY = "0123456789" * 4


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
    assert [int(row["step"]) for row in logged] == sorted(shown) == [2, 4, 6]
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
    config: dict[str, Any] = {}
    for record in records:
        for holder in (record.get("run", {}).get("config", {}), record.get("config", {})):
            config.update(holder.get("update", {}))
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
    shown, rate = soundfile.read(files / media["samples/0.path"], dtype="int16")
    generated, _ = soundfile.read(folder / "samples" / "step-0000006-0.wav", dtype="int16")
    assert (rate, len(shown)) == (4000, 400)  # 0.1 s
    np.testing.assert_array_equal(shown, generated)
    assert soundfile.info(files / media["samples/recording.path"]).samplerate == 4000
    picture = (files / media["samples/spectrograms.path"]).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert _rows(records)[-1]["samples/spectrograms.width"] == 900


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
    assert board - {"epoch"} == keys - {"epoch", dashboards.STEP}
    assert {"validation/previous_sample_bits_per_sample", "samples/0", "samples/spectrograms"} < board
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
        (audio,) = [name for name in server.files if "samples/0_" in name]
        assert server.files[audio].startswith(b"RIFF")
        assert server.finished == [0]
        # Resumed, it goes on behind the rows that are there: the server drops what goes back.
        before = len(server.rows)
        run.resume("toy", {"trainer": {"max_steps": 8}})
        assert [row["_step"] for row in server.rows] == list(range(len(server.rows)))
        assert [row[dashboards.STEP] for row in server.rows[before:] if "train/lr" in row] == [8]
        names = {asked["name"] for operation, asked in server.asked if operation == "RunResumeStatus"}
        assert names == {dashboards._run_id(outcome.folder)}


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

    board = _wandb(alone)
    service = [pid for pid in _children() if "wandb-core" in _command(pid)]
    assert len(service) == 1
    os.kill(service[0], signal.SIGKILL)
    time.sleep(0.2)
    for step in range(3):
        board.log_metrics({"a": 1.0}, step)
        board.show_audio("b", np.zeros(10, np.int16), 4000, step)
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
