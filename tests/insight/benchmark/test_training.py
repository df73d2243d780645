"""Training: the benchmark's arithmetic, its output and what it measures; never its speed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samplernn.audio.corpus import prepare
from samplernn.audio.lanes import Lanes
from samplernn.cli import main
from samplernn.config import Config, DataConfig, ModelConfig, UserError
from samplernn.insight.benchmark import training
from samplernn.insight.benchmark.plain import PlainTraining
from samplernn.insight.benchmark.training import (
    Measured,
    Task,
    limit,
    looped_clips,
    measure,
    multiply_rate,
    trial_config,
)
from samplernn.model.codec import Codec
from samplernn.training.module import TrainingModule
from samplernn.training.trial import whole_loader

CPU = torch.device("cpu")
SCHEMA = {
    "what",
    "preset",
    "engine",
    "dtype",
    "streams",
    "samples_per_s",
    "times_real_time",
    "ratio_to_reference",
    "fraction_of_limit",
    "limit",
    "peak_memory_mb",
}


def test_variants_are_measured_in_one_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole command, in real processes; standard output holds the object alone."""
    monkeypatch.setattr(training, "_SECONDS", 0.05)
    monkeypatch.setattr(training, "_LOADER_SECONDS", 0.05)
    argv = "benchmark --what train --preset small --precision bf16-mixed --lanes 2 --tbptt-len 64 --json"
    assert main([*argv.split(), "--threads", "1"]) == 0
    measured = json.loads(capfd.readouterr().out)
    results = measured["results"]
    assert [(one["engine"], one["dtype"]) for one in results] == [
        ("plain", "float32"),
        ("table", "float32"),
        ("table", "bfloat16"),
    ]
    for one in results:
        assert set(one) == SCHEMA
        assert (one["what"], one["preset"], one["streams"]) == ("train", "small", 2)
        assert one["times_real_time"] == pytest.approx(one["samples_per_s"] / 2 / 16000)
        assert one["ratio_to_reference"] == pytest.approx(one["samples_per_s"] / results[0]["samples_per_s"])
        assert one["fraction_of_limit"] == pytest.approx(one["samples_per_s"] / one["limit"])
        assert one["peak_memory_mb"] > 100
    assert measured["training_uses"] == {"engine": "table", "dtype": "bfloat16"}
    assert measured["tbptt_len"] == 64
    assert measured["machine"]["threads"] == 1
    loader = measured["loader"]
    assert loader["samples_per_s"] == pytest.approx(loader["batches_per_s"] * 2 * 64)
    fastest = max(one["samples_per_s"] for one in results)
    assert loader["times_training"] == pytest.approx(loader["samples_per_s"] / fastest)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """No processes and no steps; returns what would be measured."""
    tasks: list[Task] = []

    def pretend(work: object, task: Task) -> Measured:
        tasks.append(task)
        seconds = {"plain": 2.0, "table": 0.5}[task.variant]
        dtype = {"32-true": "float32", "bf16-mixed": "bfloat16"}[task.config.trainer.precision]
        return Measured(seconds, dtype, peak_memory=1.5e9, multiply_rate=1e9, threads=1)

    monkeypatch.setattr(training, "in_fresh_process", pretend)
    monkeypatch.setattr(training, "_LOADER_SECONDS", 0.01)
    return tasks


def test_a_step_counts_all_lanes(quick: list[Task], capsys: pytest.CaptureFixture[str]) -> None:
    plain, table = training.benchmark("small", lanes=4, tbptt_len=128, precision="32-true").results
    assert (plain.samples_per_s, table.samples_per_s) == (4 * 128 / 2.0, 4 * 128 / 0.5)
    assert (plain.ratio_to_reference, table.ratio_to_reference) == (1.0, 4.0)
    assert table.peak_memory_mb == 1500.0


def test_float32_is_measured_once_if_training_uses_it(quick: list[Task]) -> None:
    training.benchmark("small", precision="32-true")
    assert [(task.variant, task.config.trainer.precision) for task in quick] == [
        ("table", "32-true"),
        ("plain", "32-true"),
    ]
    quick.clear()
    training.benchmark("small", precision="bf16-mixed")
    assert [(task.variant, task.config.trainer.precision) for task in quick] == [
        ("table", "bf16-mixed"),
        ("table", "32-true"),
        ("plain", "32-true"),
    ]


def test_the_table_is_for_people(quick: list[Task], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--what", "train", "--preset", "small"]) == 0
    out = capsys.readouterr().out
    assert "vs plain" in out
    assert "1,500 MB" in out
    assert "steps of 16 x 1024 samples; training uses variant table" in out
    assert "the loader alone:" in out


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--what", "train", "--preset", "huge"], "unknown preset 'huge'; there are: demo"),
        (["--what", "train", "--precision", "8"], "trainer.precision must be one of"),
        (["--what", "train", "--lanes", "0"], "data.batch_size must be at least 1, or auto, got 0"),
        (["--what", "train", "--preset", "small", "--tbptt-len", "100"], "is not a multiple of"),
        (["--what", "train", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["--lanes", "4"], "belong to --what train"),
    ],
)
def test_a_bad_option_is_one_line(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *argv]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_on_a_cpu_all_presets_are_measured_at_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "device_of", lambda config: CPU)
    data = trial_config("reference").data
    assert (data.batch_size, data.tbptt_len) == (16, 1024)
    monkeypatch.setattr(training, "device_of", lambda config: torch.device("cuda"))
    data = trial_config("paper-3tier").data
    assert (data.batch_size, data.tbptt_len) == (128, 512)
    assert trial_config("reference", lanes=64).data.batch_size == 64


def test_a_preset_without_a_number_of_lanes_needs_one_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU all presets have 16."""
    preset = Config(data=DataConfig(batch_size="auto"))
    monkeypatch.setattr(training, "preset_config", lambda name, changes: preset)
    monkeypatch.setattr(training, "device_of", lambda config: CPU)
    assert trial_config("mine").data.batch_size == 16
    monkeypatch.setattr(training, "device_of", lambda config: torch.device("cuda"))
    assert trial_config("mine", lanes=64).data.batch_size == 64
    with pytest.raises(UserError, match="batch_size is auto, and this needs a number"):
        trial_config("mine")


def test_the_limit_is_what_products_alone_would_take() -> None:
    """3 gates of 2 matrices and 8 upsampling steps every 8 samples; projection, hidden, output, first layer."""
    config = ModelConfig(frame_sizes=(8,), dim=64, n_rnn=1, q_levels=32, embedding_dim=4)
    others = (6 + 8) * 64 * 64 / 8 + 64 + 64 * 64 + 32 * 64
    convolution = 8 * 4 * 64
    table = 8 * 4 * 64 * 32 / 1000
    assert limit(config, "plain", 1000, 1e9) == pytest.approx(1e9 / (3 * (others + convolution)))
    assert limit(config, "table", 1000, 1e9) == pytest.approx(1e9 / (3 * (others + table)))


def test_products_are_counted_while_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a product that takes 1 ms: a thousand a second, of the larger size."""
    monkeypatch.setattr(training.F, "linear", lambda x, weight: time.sleep(1e-3))
    rate = multiply_rate(16, torch.float32, CPU, seconds=0.1)
    assert 0.3 * 1000 * 2048**3 < rate <= 1000 * 2048**3


def test_the_corpus_is_the_clips_without_padding(toy_config: Config, tmp_path: Path, clips: Path) -> None:
    corpus = looped_clips(toy_config, tmp_path)
    batches = list(whole_loader(toy_config, corpus))
    assert len(batches) == 2000 // 64  # segments of half a second at 4 kHz
    assert all(batch.codes.shape == (4, 64) and batch.mask.all() for batch in batches)
    assert [bool(batch.reset.any()) for batch in batches] == [True] + [False] * 30
    assert batches[0].reset.all()
    real = prepare(clips, DataConfig(sample_rate=4000))
    audio = np.concatenate([real.read(file, 0, file.num_samples) for file in real.files])
    codes = Codec.of(toy_config.model, real.gain).encode(audio)
    lanes = {tuple(torch.cat([batch.codes[lane] for batch in batches]).tolist()) for lane in range(4)}
    assert lanes == {tuple(piece) for piece in codes[: 4 * 31 * 64].reshape(4, -1).tolist()}
    assert corpus.gain == real.gain


def test_the_loader_is_the_real_one(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If lanes took 5 ms per chunk there could be no more than 200 per second; and every chunk is read."""
    corpus = looped_clips(toy_config, tmp_path)
    chunk, read = Lanes._chunk, []

    def slow(self: Lanes, lanes: list[Any], index: int) -> Any:
        time.sleep(5e-3)
        read.append(index)
        return chunk(self, lanes, index)

    monkeypatch.setattr(Lanes, "_chunk", slow)
    rate = training.loader_rate(toy_config, corpus, 0.2)
    assert 0 < rate <= 200
    assert read[:31] == list(range(31))
    assert len(read) % 31 == 0


@pytest.mark.parametrize(
    ("variant", "precision", "dtype"),
    [("table", "32-true", "float32"), ("table", "bf16-mixed", "bfloat16"), ("plain", "32-true", "float32")],
)
def test_a_variant_takes_its_own_steps(
    variant: training.Variant,
    precision: str,
    dtype: str,
    toy_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`table` those of the Trainer, `plain` not."""
    monkeypatch.setattr(training, "multiply_rate", lambda *sizes: 1e9)
    taken: list[str] = []

    def spy_on(owner: type, method: str) -> None:
        original = getattr(owner, method)

        def spy(self: Any, *args: Any) -> Any:
            taken.append(owner.__name__)
            return original(self, *args)

        monkeypatch.setattr(owner, method, spy)

    spy_on(TrainingModule, "training_step")
    spy_on(PlainTraining, "step")
    config = replace(toy_config, trainer=replace(toy_config.trainer, precision=precision, devices=1))
    one = measure(Task(variant, config, looped_clips(config, tmp_path), 0.01, None))
    assert one.dtype == dtype
    assert one.step_seconds > 0
    assert set(taken) == {"TrainingModule" if variant == "table" else "PlainTraining"}


def test_an_unknown_preset_is_refused_before_anything_is_measured(quick: list[Task]) -> None:
    with pytest.raises(UserError):
        training.benchmark("huge")
    assert quick == []
