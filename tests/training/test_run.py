"""Whole runs with the real Trainer: what they leave, how they stop, how they go on."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import samplernn
from samplernn import storage
from samplernn.audio.corpus import prepare
from samplernn.audio.lanes import quick_check
from samplernn.audio.shards import open_samples
from samplernn.audio.split import Split, locate
from samplernn.config import Config, DataConfig, UserError, from_dict, merged, presets, to_dict
from samplernn.generation.playback import Generator
from samplernn.generation.request import Request
from samplernn.model.checkpoint import load
from samplernn.model.network import SampleRNN, State
from samplernn.training import run
from samplernn.training.folder import RunFolder
from samplernn.training.loss import Batch, chunk_nll
from samplernn.training.module import TrainingModule
from samplernn.training.scoring import score_spans
from tests.conftest import CLIPS, TOY, slow, toy_arguments


def _config(**trainer: Any) -> Config:
    config: Config = from_dict(Config, merged(TOY, {"trainer": trainer}))
    return config


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _last(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return saved


def test_a_run_leaves_everything_in_its_folder(trained_run: Path) -> None:
    assert {path.name for path in (trained_run / "checkpoints").iterdir()} >= {"best.ckpt", "last.ckpt"}
    assert not list(trained_run.glob("checkpoints/.*"))
    assert json.loads((trained_run / "run.json").read_text())["state"] == "finished"
    with wave.open(str(trained_run / "samples" / "step-0000006-t0.90-0.wav")) as file:
        assert file.getnframes() == 400
    assert (trained_run / "samples" / "step-0000006.png").stat().st_size > 5000
    about = json.loads((trained_run / "samples" / "step-0000006-t0.90-0.json").read_text())
    assert about["step"] == 6


def test_a_run_ends_with_a_validation_even_in_the_middle_of_an_epoch(trained_run: Path) -> None:
    """val_check_interval is 4, max_steps 6: validations at 4 and, by the end, at 6."""
    validated = [int(row["step"]) for row in _rows(trained_run) if row["validation/bits_per_sample"]]
    assert validated == [4, 6]


def test_a_run_ends_with_the_score_of_its_best_checkpoint_on_the_test_split(
    trained_run: Path, clips: Path
) -> None:
    said = json.loads((trained_run / "run.json").read_text())["test"]
    checkpoint = load(trained_run)
    corpus = prepare(clips, DataConfig(sample_rate=4000))
    spans = quick_check(locate(corpus, Split.from_dict(checkpoint.split).test), checkpoint.config.data)
    assert said == score_spans(checkpoint, corpus, spans, "test").to_dict()
    assert said["num_samples"] == 4000  # validation_duration 1 s


def test_training_metrics_are_logged_at_their_interval_with_one_row_per_step(trained_run: Path) -> None:
    rows = _rows(trained_run)
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert all(0 < float(row["train/bits_per_sample"]) < 20 for row in rows)
    assert all(float(row["train/samples_per_s"]) > 0 for row in rows)
    seconds = [float(row["train/seconds"]) for row in rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert seconds[1] < load(trained_run / "checkpoints" / "last.ckpt").results["train_seconds"] + 0.1
    for row in rows:
        tiers = [float(row[f"grad_norm/tier{number}"]) for number in (1, 2, 3)]
        assert max(tiers) < float(row["grad_norm"]) < sum(tiers)
        assert row["skipped_steps"] == "0"
        assert 100 < float(row["memory/process_mb"]) < 20_000
        assert "memory/gpu_mb" not in row


def test_tensorboard_has_curves_audio_and_pictures(trained_run: Path) -> None:
    events = EventAccumulator(str(trained_run))
    events.Reload()
    tags = events.Tags()
    bits = {event.step: event.value for event in events.Scalars("validation/bits_per_sample")}
    logged = {int(row["step"]): row["validation/bits_per_sample"] for row in _rows(trained_run)}
    assert bits[6] == pytest.approx(float(logged[6]))
    assert "samples/spectrograms" in tags["images"]
    assert {"samples/t0_90-0", "samples/t1_00-0", "samples/recording"} <= set(tags["audio"])


def test_training_learns(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run.start(clips, _config(max_steps=60, val_check_interval=60))
    assert outcome.validation.bits_per_sample < outcome.validation.baselines.unigram
    assert outcome.folder == Path("runs/clips")


@pytest.mark.slow
def test_the_same_seed_trains_the_same_weights(
    trained_run: Path, tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run.start(clips, _config(), "again")
    assert load("runs/again").weights_hash() == load(trained_run).weights_hash()


def test_an_existing_name_is_refused(run_copy: Path, clips: Path) -> None:
    with pytest.raises(
        UserError, match=r"--resume \(in Python: samplernn\.resume\), or choose another --name"
    ):
        run.start(clips, _config(), "toy")


def test_a_finished_run_has_nothing_to_resume_and_a_later_limit_continues_it(run_copy: Path) -> None:
    assert run.resume("toy", {}) is None
    before = _last(run_copy)["global_step"]
    outcome = run.resume(None, {"trainer": {"max_steps": 9}})
    assert outcome is not None
    assert (before, outcome.step, _last(run_copy)["global_step"]) == (6, 9, 9)
    assert [int(row["step"]) for row in _rows(run_copy)] == [2, 4, 6, 8, 9]


@pytest.mark.parametrize("changes", [{"model": {"dim": 8}}, {"data": {"tbptt_len": 128}}])
def test_model_and_data_of_a_run_cannot_change(run_copy: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot change"):
        run.resume("toy", changes)


def test_resuming_what_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nothing to resume"):
        run.resume(None, {})
    with pytest.raises(UserError, match="no such run"):
        run.resume("nobody", {})


@pytest.mark.parametrize("how", [signal.SIGTERM, *map(slow, [signal.SIGINT, signal.SIGHUP])])
def test_an_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    """In the middle of an epoch: carried lane state, Adam's moments and the schedule's position."""
    monkeypatch.chdir(tmp_path)
    whole = run.start(clips, _config(max_steps=40), "whole")
    process = _start_process(clips, "torn", "--trainer.max_steps=40", "--checkpoint.every_steps=1")
    _wait_for(Path("runs/torn/checkpoints/last.ckpt"), process)
    process.send_signal(how)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + how, message
    assert "Ctrl-C again stops at once" in message
    assert "Continue with: samplernn train --resume --name torn" in message
    assert 1 <= _last(Path("runs/torn"))["global_step"] < 40
    resumed = run.resume("torn", {})
    assert resumed is not None
    assert (whole.step, resumed.step) == (40, 40)
    expected, got = (_last(Path("runs") / name)["state_dict"] for name in ("whole", "torn"))
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    steps = [int(row["step"]) for row in _rows(Path("runs/torn"))]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_a_run_of_64_bits_resumes_with_all_of_them(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def config(max_steps: int) -> Config:
        options = {"optim": {"schedule": "constant"}, "samples": {"num": 0}}
        options["trainer"] = {"max_steps": max_steps, "precision": "64-true"}
        return from_dict(Config, merged(TOY, options))

    run.start(clips, config(4), "whole", quiet=True)
    run.start(clips, config(2), "parts", quiet=True)
    run.resume("parts", {"trainer": {"max_steps": 4}}, quiet=True)
    expected, got = (_last(Path("runs") / name)["state_dict"] for name in ("whole", "parts"))
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    output = expected["model.sample_level_mlp.output.weight"]
    assert not torch.equal(output, output.float().double())


def test_a_run_trains_and_resumes_where_files_cannot_be_mapped(run_copy: Path, no_mmap: None) -> None:
    open_samples.cache_clear()
    again = run.resume("toy", {"trainer": {"max_steps": 8}})
    assert again is not None
    assert (again.step, len(_rows(run_copy))) == (8, 4)


@pytest.mark.slow
def test_a_run_outlives_a_moment_in_which_nothing_can_be_written(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second replacement fails, as while another program reads the file on Windows; and every second save."""
    calls: Counter[str] = Counter()
    replace, save = Path.replace, torch.save

    def fail(what: str, number: int) -> None:
        calls[what] += 1
        if calls[what] % 2:
            raise OSError(number, os.strerror(number))

    def held(self: Path, target: Path) -> Path:
        fail(target.name, errno.EACCES)
        return replace(self, target)

    def disturbed(*arguments: Any, **options: Any) -> None:
        fail("save", errno.ESTALE)
        save(*arguments, **options)

    monkeypatch.setattr(storage, "sleep", lambda seconds: None)
    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(torch, "save", disturbed)
    outcome = run.resume("toy", {"trainer": {"max_steps": 8}})
    assert outcome is not None
    assert outcome.step == 8
    assert _last(run_copy)["global_step"] == 8
    assert [int(row["step"]) for row in _rows(run_copy)] == [2, 4, 6, 8]
    assert {
        "last.ckpt",
        "run.json",
        "metrics.csv",
        "step-0000008.png",
        "step-0000008-t0.90-0.wav",
    } <= calls.keys()
    assert calls["save"] >= 2
    assert not [path for path in run_copy.rglob(".*") if "partial" in path.name]


def test_a_checkpoint_that_can_never_be_replaced_ends_the_run_in_one_line(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace
    waits: list[float] = []

    def held(self: Path, target: Path) -> Path:
        if target.name == "last.ckpt":
            raise PermissionError(errno.EACCES, "Permission denied", str(self), None, str(target))
        return replace(self, target)

    monkeypatch.setattr(storage, "sleep", waits.append)
    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(UserError, match=r"last\.ckpt: Permission denied; what was saved is whole"):
        run.resume("toy", {"trainer": {"max_steps": 8}})
    assert waits == list(storage.WAITS)
    assert _last(run_copy)["global_step"] == 6


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
def test_no_checkpoint_stays_mapped_while_a_resumed_run_trains(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped: list[list[str]] = []
    training_step = TrainingModule.training_step

    def watched(self: TrainingModule, batch: Batch, index: int) -> torch.Tensor:
        mapped.append([line for line in Path("/proc/self/maps").read_text().splitlines() if ".ckpt" in line])
        return training_step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    run.resume("toy", {"trainer": {"max_steps": 8}})
    assert mapped == [[], []]


@pytest.mark.slow
def test_resuming_across_the_ends_of_epochs_is_exact(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of about a dozen steps; stopped in the middle of one and at the very end of one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips / "guitar", "few")
    options = {"data": {"tbptt_len": 512}, "trainer": {"max_steps": -1, "max_epochs": 3}}
    options["optim"] = {"schedule": "constant"}  # the plan differs while it is cut in pieces
    config: Config = from_dict(Config, merged(TOY, options))
    whole = run.start("few", config, "whole")
    per_epoch = whole.step // 3
    assert 5 < per_epoch < 40
    for stop in (per_epoch + 2, 2 * per_epoch):
        name = f"stopped-{stop}"
        shorter = merged(merged(TOY, options), {"trainer": {"max_steps": stop}})
        run.start("few", from_dict(Config, shorter), name)
        outcome = run.resume(name, {"trainer": {"max_steps": whole.step}})
        assert outcome is not None
        assert outcome.step == whole.step
        expected, got = (_last(Path("runs") / each)["state_dict"] for each in ("whole", name))
        assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_validation_and_samples_leave_no_trace_in_training(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    often = run.start(clips, _config(val_check_interval=1), "often")
    never: Config = from_dict(
        Config, merged(TOY, {"trainer": {"val_check_interval": 100}, "samples": {"num": 0}})
    )
    once = run.start(clips, never, "once")
    expected, got = (_last(outcome.folder)["state_dict"] for outcome in (often, once))
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_accumulated_gradients_make_one_step_one_row_and_one_save(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run.start(clips, _config(accumulate_grad_batches=3), "slow")
    rows = _rows(outcome.folder)
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert [bool(row["validation/bits_per_sample"]) for row in rows] == [False, True, True]
    assert _last(outcome.folder)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 18


def test_a_diverged_run_ends_with_one_line(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"optim": {"lr": 1e30}, "trainer": {"max_steps": 100, "val_check_interval": 2}}
    with pytest.raises(UserError, match=r"not finite") as caught:
        run.start(clips, from_dict(Config, merged(TOY, options)), "nan")
    assert "\n" not in str(caught.value)
    assert _last(Path("runs/nan"))["global_step"] <= 4  # it did not go on for 100 steps
    with pytest.raises(UserError, match="not finite"):
        load("runs/nan").build()


def _harm(monkeypatch: pytest.MonkeyPatch, calls: Callable[[int], bool], in_loss: bool) -> None:
    """Make training's chunks for whose number (from 1) `calls` is true give NaN: the loss, or one gradient."""
    count = 0

    def scored(*arguments: Any) -> tuple[torch.Tensor, State]:
        nonlocal count
        nats, state = chunk_nll(*arguments)
        if torch.is_grad_enabled():
            count += 1
            if calls(count) and in_loss:
                nats = nats * math.nan
            elif calls(count):
                weight = arguments[0].sample_level_mlp.hidden.weight
                hook = weight.register_hook(lambda gradient: (hook.remove(), gradient * math.nan)[1])
        return nats, state

    monkeypatch.setattr("samplernn.training.module.chunk_nll", scored)


def _without_steps(monkeypatch: pytest.MonkeyPatch, missing: set[int]) -> None:
    """Let the optimizer not take the steps of these numbers (from 1), of whose gradients nothing is wrong."""
    count = 0
    take = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, closure: Callable[[], Any]) -> Any:
        nonlocal count
        count += 1
        return closure() if count in missing else take(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


@pytest.mark.parametrize(
    ("chunks", "steps", "options"),
    [
        ({3}, {3}, {}),
        ({1, 4, 5}, {1, 4, 5}, {}),  # the first, when Adam has no moments yet
        ({4, 9}, {2, 5}, {"trainer": {"accumulate_grad_batches": 2}}),
        ({3}, {3}, {"trainer": {"gradient_clip_val": None}, "optim": {"ema_decay": 0.9}}),
        ({3}, {3}, {"trainer": {"gradient_clip_algorithm": "value", "precision": "bf16-mixed"}}),
        ({3}, {3}, {"trainer": {"precision": "16-mixed"}}),  # plain Adam; bf16 on the CPU
    ],
)
@pytest.mark.parametrize("in_loss", [True, slow(False)])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(
    tmp_path: Path,
    clips: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunks: set[int],
    steps: set[int],
    options: dict[str, Any],
    in_loss: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    config: Config = from_dict(Config, merged(merged(TOY, {"trainer": {"max_steps": 12}}), options))
    with monkeypatch.context() as patch:
        _harm(patch, chunks.__contains__, in_loss)
        harmed = run.start(clips, config, "harmed")
    _without_steps(monkeypatch, steps)
    run.start(clips, config, "spared")
    assert harmed.step == 12
    got, expected = (_last(Path("runs") / name) for name in ("harmed", "spared"))
    assert all(torch.equal(expected["state_dict"][key], got["state_dict"][key]) for key in got["state_dict"])
    ours, theirs = (saved["optimizer_states"][0]["state"] for saved in (got, expected))
    assert all(torch.equal(theirs[i][name], ours[i][name]) for i in theirs for name in theirs[i])
    assert theirs[0]["step"] == 12 - len(steps)
    rows = _rows(harmed.folder)
    assert [int(row["skipped_steps"]) for row in rows] == [
        sum(step <= int(row["step"]) for step in steps) for row in rows
    ]
    assert all(math.isfinite(float(row["train/bits_per_sample"])) for row in rows if int(row["step"]) > 6)


@pytest.mark.parametrize("good_steps", [slow(0), 5])
def test_a_run_that_only_skips_its_steps_ends_with_advice_and_goes_on_when_resumed(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, good_steps: int
) -> None:
    monkeypatch.chdir(tmp_path)
    few = merged(TOY, {"trainer": {"max_steps": max(1, good_steps)}, "optim": {"schedule": "constant"}})
    run.start(clips, from_dict(Config, few), "before")
    many = merged(few, {"trainer": {"max_steps": 300, "val_check_interval": 100}})
    with monkeypatch.context() as patch:
        _harm(patch, lambda count: count > good_steps, in_loss=False)
        outcome = run.start(clips, from_dict(Config, many), "harmed")
    assert good_steps + 10 <= outcome.step <= good_steps + 10 + 2  # log_every_n_steps is 2
    assert "\n" not in outcome.reason
    assert re.match(r"the loss or gradients of 1\d steps in a row were not finite", outcome.reason)
    assert all(name in outcome.reason for name in ("optim.lr", "gradient_clip_val", "precision"))
    assert outcome.validation.bits_per_sample > 0
    if good_steps:
        expected, got = (_last(Path("runs") / name) for name in ("before", "harmed"))
        assert all(
            torch.equal(value, got["state_dict"][key]) for key, value in expected["state_dict"].items()
        )
    skipped = outcome.step - good_steps
    assert int(_rows(outcome.folder)[-1]["skipped_steps"]) == skipped
    again = run.resume("harmed", {"optim": {"lr": 1e-3}, "trainer": {"max_steps": outcome.step + 10}})
    assert again is not None
    assert again.reason == "trainer.max_steps is reached"
    assert int(_rows(again.folder)[-1]["skipped_steps"]) == skipped
    assert not torch.equal(
        _bias(_last(again.folder)["state_dict"]),
        load("runs/before").weights["sample_level_mlp.output.bias"],
    )


def test_the_average_follows_the_weights_faster_at_first_and_leaves_them_alone(
    trained_run: Path, tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights: list[dict[str, torch.Tensor]] = []

    def note(module: TrainingModule, *_: Any) -> None:
        weights.append({name: value.detach().clone() for name, value in module.model.named_parameters()})

    monkeypatch.setattr(TrainingModule, "on_train_start", _noting_first(note))
    monkeypatch.setattr(TrainingModule, "on_train_batch_end", note)
    config: Config = from_dict(Config, merged(TOY, {"optim": {"ema_decay": 0.3}}))
    outcome = run.start(clips, config, "averaged")
    average = weights[0]
    for step, now in enumerate(weights[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
    kept = load(outcome.folder / "checkpoints" / "last.ckpt")
    assert len(weights) == 7
    for name, value in average.items():
        torch.testing.assert_close(kept.weights[name], value)
    # The training itself is that of a run without an average.
    trained = _last(trained_run)["state_dict"]
    assert all(torch.equal(value, trained[f"model.{name}"]) for name, value in weights[-1].items())
    assert not torch.equal(kept.weights["sample_level_mlp.output.bias"], _bias(trained))


def _noting_first(note: Callable[..., None]) -> Callable[[TrainingModule], None]:
    start = TrainingModule.on_train_start

    def on_train_start(module: TrainingModule) -> None:
        note(module)
        start(module)

    return on_train_start


def test_validation_and_samples_are_those_of_the_average(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run.start(clips, from_dict(Config, merged(TOY, {"optim": {"ema_decay": 0.99}})), "averaged")
    checkpoint = load("runs/averaged/checkpoints/last.ckpt")
    corpus = prepare(clips, DataConfig(sample_rate=4000))
    spans = quick_check(locate(corpus, Split.from_dict(checkpoint.split).validation), checkpoint.config.data)
    score = score_spans(checkpoint, corpus, spans, "validation")
    said = float(_rows(outcome.folder)[-1]["validation/bits_per_sample"])
    assert said == pytest.approx(score.bits_per_sample, rel=1e-5)
    request = Request(400, streams=(0,), seed=0, temperature=(0.9,))
    again = np.concatenate(list(Generator(checkpoint).stream(request)), axis=1)
    written = sf.read(outcome.folder / "samples/step-0000006-t0.90-0.wav", dtype="int16")[0]
    assert np.array_equal(written, again[0])


@pytest.mark.slow
def test_resuming_continues_weights_and_average_exactly(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"optim": {"ema_decay": 0.99, "schedule": "constant"}, "trainer": {"max_steps": 20}}
    run.start(clips, from_dict(Config, merged(TOY, options)), "whole")
    run.start(clips, from_dict(Config, merged(merged(TOY, options), {"trainer": {"max_steps": 9}})), "torn")
    resumed = run.resume("torn", {"trainer": {"max_steps": 20}})
    assert resumed is not None
    expected, got = (_last(Path("runs") / name) for name in ("whole", "torn"))
    for ours, theirs in (
        (got["state_dict"], expected["state_dict"]),
        (got["lane_state"]["weights"], expected["lane_state"]["weights"]),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert not torch.equal(*(_bias(part) for part in (got["state_dict"], got["lane_state"]["weights"])))


@pytest.mark.slow
def test_the_average_can_be_switched_on_and_off_in_a_run(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights in training go on as in a run that never had one."""
    monkeypatch.chdir(tmp_path)
    constant = merged(TOY, {"optim": {"schedule": "constant"}})
    run.start(clips, from_dict(Config, merged(constant, {"trainer": {"max_steps": 18}})), "plain")
    run.start(clips, from_dict(Config, constant), "mixed")
    run.resume("mixed", {"optim": {"ema_decay": 0.9}, "trainer": {"max_steps": 12}})
    saved = _last(Path("runs/mixed"))
    assert not torch.equal(_bias(saved["state_dict"]), _bias(saved["lane_state"]["weights"]))
    run.resume("mixed", {"optim": {"ema_decay": 0.0}, "trainer": {"max_steps": 18}})
    expected, got = (_last(Path("runs") / name)["state_dict"] for name in ("plain", "mixed"))
    assert got.keys() == expected.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def _bias(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return weights["model.sample_level_mlp.output.bias"]


@pytest.mark.slow
def test_a_run_that_stopped_improving_gets_another_chance_when_resumed(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate that rounding takes away nothing improves, on any processor."""
    monkeypatch.chdir(tmp_path)
    options = {"trainer": {"max_steps": -1, "val_check_interval": 2}, "optim": {"lr": 1e-30, "patience": 2}}
    stopped = run.start(clips, from_dict(Config, merged(TOY, options)), "stuck")
    assert stopped.step == 6  # of three validations the first is the best, and two follow
    again = run.resume("stuck", {"optim": {"patience": 4}})
    assert again is not None
    assert again.step == stopped.step + 8  # four validations, two steps apart


def test_a_run_that_ended_but_was_not_judged_is_judged_and_not_trained(run_copy: Path) -> None:
    before = (run_copy / "checkpoints" / "last.ckpt").read_bytes()
    RunFolder(run_copy).write_facts(state="running")
    outcome = run.resume("toy", {})
    assert outcome is not None
    assert (outcome.step, outcome.reason) == (6, "trainer.max_steps is reached")
    assert outcome.validation.bits_per_sample > 0
    assert (run_copy / "checkpoints" / "last.ckpt").read_bytes() == before
    assert RunFolder(run_copy).facts["state"] == "finished"


def test_without_its_last_checkpoint_a_run_resumes_from_the_one_before(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config: Config = from_dict(Config, merged(TOY, {"checkpoint": {"every_steps": 4}}))
    outcome = run.start(clips, config, "toy")
    (outcome.folder / "checkpoints" / "last.ckpt").unlink()
    RunFolder(outcome.folder).write_facts(state="interrupted")
    again = run.resume("toy", {})
    assert again is not None
    assert again.step == 6
    assert "last-previous.ckpt, step 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process = _start_process(clips, "killed", "--trainer.max_steps=40", "--checkpoint.every_steps=1")
    _wait_for(Path("runs/killed/checkpoints/last-previous.ckpt"), process)
    process.kill()
    process.communicate()
    outcome = run.resume("killed", {})
    assert outcome is not None
    assert outcome.step == 40


def test_a_run_without_a_checkpoint_yet_resumes_from_the_start(run_copy: Path) -> None:
    for checkpoint in (run_copy / "checkpoints").iterdir():
        checkpoint.unlink()
    RunFolder(run_copy).write_facts(state="interrupted")
    outcome = run.resume("toy", {})
    assert outcome is not None
    assert outcome.step == 6


def test_training_goes_on_where_the_audio_was_moved_to(run_copy: Path, clips: Path, tmp_path: Path) -> None:
    RunFolder(run_copy).write_facts(folder=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="gone"):
        run.resume("toy", {"trainer": {"max_steps": 7}})
    outcome = run.resume("toy", {"trainer": {"max_steps": 7}}, folder=clips)
    assert outcome is not None
    assert outcome.step == 7


def test_audio_that_is_gone_is_reported_and_what_is_needed_is_missed(
    run_copy: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thinned = tmp_path / "thinned"
    shutil.copytree(clips, thinned)
    files = RunFolder(run_copy).facts["split"]
    (thinned / files["train"][0][0]).unlink()
    changed = files["train"][1][0]
    sf.write(thinned / changed, sf.read(thinned / changed)[0][100:], 16000, format="FLAC")
    assert run.resume("toy", {"trainer": {"max_steps": 7}}, folder=thinned) is not None
    said = capsys.readouterr().err
    assert f"2 of {len(files['train'])} train files are not there any more" in said
    assert f"{files['train'][0][0]}: is not there any more; put the old one back" in said
    assert f"{changed}: has changed since the split was made, so it is not used" in said
    for path, *_ in files["test"]:
        (thinned / path).unlink()
    with pytest.raises(UserError, match="test audio"):
        run.resume("toy", {"trainer": {"max_steps": 8}}, folder=thinned)


@pytest.mark.parametrize("name", ["a/b", "../elsewhere", "/tmp/x", ".."])
def test_a_name_is_one_folder(
    name: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="without slashes"):
        run.start(clips, _config(), name)


@pytest.mark.slow
def test_a_run_ends_by_epochs_and_by_time(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"trainer": {"max_steps": -1, "val_check_interval": 1000}, "data": {"tbptt_len": 1024}}
    by_epoch: Config = from_dict(Config, merged(merged(TOY, options), {"trainer": {"max_epochs": 1}}))
    outcome = run.start(clips, by_epoch, "epochs")
    assert outcome.reason == "trainer.max_epochs is reached"
    steps_per_epoch = outcome.step
    assert 50 < steps_per_epoch < 400
    assert _last(outcome.folder)["samplernn"]["results"]["validation_bits_per_sample"] > 0
    by_time = from_dict(Config, merged(merged(TOY, options), {"trainer": {"max_time": "00:00:00:01"}}))
    outcome = run.start(clips, by_time, "time")
    assert outcome.reason == "trainer.max_time is reached"
    assert outcome.test.bits_per_sample > 0


@pytest.mark.slow
def test_without_limits_a_run_ends_when_it_no_longer_improves(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Adam steps of 10 destroy the model: no validation is ever better than the first.
    options = {"trainer": {"max_steps": -1, "val_check_interval": 2}, "optim": {"lr": 10.0, "patience": 2}}
    outcome = run.start(clips, from_dict(Config, merged(TOY, options)), "hopeless")
    assert outcome.reason == "it no longer improves"
    assert outcome.step <= 20


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_shipped_configuration_parses_and_builds(name: str) -> None:
    import yaml

    config: Config = from_dict(Config, yaml.safe_load(presets()[name].read_text()))
    with torch.device("meta"):
        model = SampleRNN(config.model)
    logits, _ = model(
        torch.zeros(1, config.data.tbptt_len, dtype=torch.int64, device="meta"), model.initial_state(1)
    )
    assert logits.shape == (1, config.data.tbptt_len, config.model.q_levels)


def test_the_preset_small_is_the_default_configuration() -> None:
    import yaml

    small: Config = from_dict(Config, yaml.safe_load(presets()["small"].read_text()))
    assert to_dict(small) == to_dict(Config())


def _start_process(clips: Path, name: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "samplernn", "train", str(clips), "--name", name]
    return subprocess.Popen(
        [*command, *toy_arguments(), *options], stderr=subprocess.PIPE, text=True, env=os.environ
    )


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_trains_outside_the_main_thread(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `wandb.agent(function=…)`: there, signals are somebody else's, before, during and after."""
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    during: list[object] = []
    on_train_end = TrainingModule.on_train_end
    monkeypatch.setattr(
        TrainingModule,
        "on_train_end",
        lambda self: (during.append(signal.getsignal(signal.SIGTERM)), on_train_end(self)),
    )
    with ThreadPoolExecutor(1) as other:
        outcome = other.submit(run.start, clips, _config(), "thread").result()
    assert outcome.step == 6
    assert during == [before[signal.SIGTERM]]
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


def test_resuming_from_python_is_resuming_by_command(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From any current folder, and with the same weights, moments and lanes in the end."""
    shutil.copytree(run_copy, tmp_path / "other")
    monkeypatch.chdir(tmp_path.parent)
    changes: dict[str, Any] = {"trainer.max_steps": 9, "optim": {"patience": 7}}
    outcome = samplernn.resume(tmp_path / "other", quiet=True, **changes)
    monkeypatch.chdir(tmp_path)
    by_command = run.resume("toy", {"trainer": {"max_steps": 9}, "optim": {"patience": 7}}, quiet=True)
    assert outcome is not None
    assert by_command is not None
    assert (outcome.step, outcome.folder) == (9, tmp_path / "other")
    assert outcome.test == by_command.test
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (tmp_path / "other", run_copy)
    )
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
    for mine, theirs in zip(one["lane_state"]["lanes"], other["lane_state"]["lanes"], strict=True):
        assert torch.equal(mine, theirs)
    assert samplernn.resume(tmp_path / "other", quiet=True) is None


def test_what_cannot_be_resumed_from_python_is_said(run_copy: Path) -> None:
    with pytest.raises(UserError, match=r"runs: no run that could be continued; give a run's folder"):
        samplernn.resume("runs")
    with pytest.raises(UserError, match="of a run cannot change"):
        samplernn.resume(run_copy, model={"dim": 8})
    with pytest.raises(UserError, match=r"unknown option trainer\.steps"):
        samplernn.resume(run_copy, **{"trainer.steps": 8})
    with pytest.raises(UserError, match=r"in Python: samplernn\.resume"):
        samplernn.train(CLIPS, name="toy", quiet=True)
