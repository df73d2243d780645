"""Reports tell what the run's folder says, in every state that it can be in."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

import samplernn
from samplernn.cli import main
from samplernn.insight.page import LIMIT
from samplernn.insight.report import report
from samplernn.insight.runs import read
from samplernn.model.baselines import verdict
from tests.insight.conftest import RATE, sounds


def _text(document: str) -> str:
    """What there is to read."""
    body = document[document.index("<main>") : document.index("</main>")]
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", body))


def test_a_run_that_training_wrote(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_copy)]) == 0
    assert capsys.readouterr().out == f"{run_copy / 'report.html'}\n"
    document = (run_copy / "report.html").read_text("utf-8")
    run, said = read(run_copy), _text(document)
    assert run.best
    assert run.baselines
    assert f"{run.best[1]:.3f}" in said
    assert f"{run.baselines.previous_sample:.3f}" in said
    assert verdict(run.best[1], run.baselines)[1:] in said
    assert "6 for a blind guess among 64 values" in said
    assert "frame_sizes [8, 2]" in said
    assert len(sounds(document)) >= 2
    assert document.count('class="picture"') >= 4  # bits, validation alone, learning rate, gradients
    assert samplernn.report is report


def test_new_samples_stand_beside_recording_and_truth(new_run: Path, speech: NDArray[np.int16]) -> None:
    document = report(new_run).read_text("utf-8")
    said = _text(document)
    assert "Generated at step 6" in said or "Generated after the best validation" in said
    assert "A recording that it has not heard" in said
    assert "held/out.flac from 1.2 s" in said
    assert "How the recording goes on" in said
    assert said.count("How the model goes on") == 2  # the best and the first
    assert "noise" in said
    assert "5.0 dB from the corpus" in said
    # hero 2, twelve free samples, truth and two continuations
    assert len(sounds(document)) == 2 + 12 + 3
    assert any(np.array_equal(heard, np.concatenate([speech, speech])) for heard in sounds(document))
    # What is heard first is not the sample that fell into a trap.
    assert said.index("temperature 1") < said.index("Curves")


def test_old_samples_show_no_measures(old_run: Path) -> None:
    document = report(old_run).read_text("utf-8")
    said = _text(document)
    assert len(sounds(document)) == 2 + 4
    for word in ("corpus", "dBFS", "Continuations", "None", "nan"):
        assert word not in said.split("Settings")[0]


def _no_validation(run: Path) -> str:
    rows = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("step,train/lr,train/bits_per_sample\n2,0.1,5.5\n4,0.1,5.2\n")
    shutil.rmtree(run / "samples")
    assert rows
    return "No validation yet"


def _no_metrics(run: Path) -> str:
    (run / "metrics.csv").unlink()
    return "No curves yet"


def _no_samples(run: Path) -> str:
    shutil.rmtree(run / "samples")
    return "No samples yet"


def _broken_samples(run: Path) -> str:
    for file in (run / "samples").glob("*.wav"):
        file.write_bytes(file.read_bytes()[:20])
    return "cannot be read (yet)"


def _no_config(run: Path) -> str:
    (run / "config.yaml").unlink()
    return "config.yaml cannot be read"


def _no_facts(run: Path) -> str:
    (run / "run.json").unlink()
    return "state unknown"


def _only_begun(run: Path) -> str:
    for name in ("samples", "checkpoints"):
        shutil.rmtree(run / name)
    (run / "metrics.csv").unlink()
    facts = json.loads((run / "run.json").read_text())
    facts.pop("test")
    (run / "run.json").write_text(json.dumps({**facts, "state": "running"}))
    return "training"


def _diverged(run: Path) -> str:
    (run / "metrics.csv").write_text(
        "step,validation/bits_per_sample,validation/uniform_bits_per_sample,"
        "validation/unigram_bits_per_sample,validation/previous_sample_bits_per_sample\n"
        "2,3.0,6.0,5.0,4.0\n4,nan,6.0,5.0,4.0\n"
    )
    return "training has diverged"


def _strange_facts(run: Path) -> str:
    (run / "run.json").write_text('{"state": ["running"], "test": [], "folder": 3, "split": null}')
    (run / "config.yaml").write_text("model: 3\ndata: {sample_rate: x, 5: 6}\nmore: [1]\n")
    return "state unknown"


@pytest.mark.parametrize(
    "damage",
    [
        _no_validation,
        _no_metrics,
        _no_samples,
        _broken_samples,
        _no_config,
        _no_facts,
        _only_begun,
        _diverged,
        _strange_facts,
    ],
)
def test_what_is_missing_is_said_in_one_line(new_run: Path, damage) -> None:  # type: ignore[no-untyped-def]
    line = damage(new_run)
    document = report(new_run).read_text("utf-8")
    assert line in _text(document)
    assert "<h1>toy</h1>" in document


def test_a_run_of_which_nobody_has_heard_for_long_is_not_said_to_train(new_run: Path) -> None:
    import os
    import time

    facts = json.loads((new_run / "run.json").read_text())
    (new_run / "run.json").write_text(json.dumps({**facts, "state": "running"}))
    assert "training" in _text(report(new_run).read_text("utf-8"))[:60]
    for name in ("run.json", "config.yaml", "metrics.csv"):
        os.utime(new_run / name, (time.time() - 7300,) * 2)
    assert "silent for 2 hours" in _text(report(new_run).read_text("utf-8"))


def test_several_runs_in_one_page(
    new_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = new_run.parent / "other"
    shutil.copytree(new_run, other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("dim: 16", "dim: 32", 1))
    rows = (other / "metrics.csv").read_text()
    best = read(other).best
    assert best
    (other / "metrics.csv").write_text(rows.replace(f"{best[1]}", "1.25"))
    assert main(["report", str(new_run), str(other)]) == 0
    assert capsys.readouterr().out == "report.html\n"
    document = Path("report.html").read_text("utf-8")
    said = _text(document)
    assert "other has the fewest bits per sample, 1.250" in said
    differing = said[
        said.index("Options that differ") : said.index("finished", said.index("Options that differ"))
    ]
    assert "model.dim 16 32" in differing
    assert "learn_h0" not in differing
    assert "do not compare" not in said
    # The best of each, then the free ones of each.
    assert len(sounds(document)) == 2 * (1 + 3 * 4)
    (other / "config.yaml").write_text(config.replace("q_levels: 64", "q_levels: 256", 1))
    assert "do not compare: they differ in model.q_levels" in _text(
        report([new_run, other]).read_text("utf-8")
    )


def test_runs_of_one_name_are_told_apart(new_run: Path) -> None:
    shutil.copytree(new_run, "elsewhere/toy")
    said = _text(report([new_run, "elsewhere/toy"]).read_text("utf-8"))
    assert "elsewhere/toy" in said
    assert "runs/toy" in said


def test_names_from_outside_are_text(new_run: Path) -> None:
    name = "a<script>alert('1')<\u2215script>\"x"
    run = new_run.rename(new_run.parent / name)
    facts = json.loads((run / "run.json").read_text())
    nasty = "</main><script>alert(2)</script><img src=x onerror='alert(3)'>"
    (run / "run.json").write_text(
        json.dumps({**facts, "folder": nasty, "reason": nasty, "state": "finished"})
    )
    (run / "samples" / "prompt0.json").write_text(json.dumps({"file": nasty, "start_seconds": "0"}))
    sidecar = run / "samples" / "step-0000006-t0.80-0.json"
    sidecar.write_text(json.dumps({"traps": [nasty, {"kind": nasty}], "temperature": nasty}))
    with (run / "config.yaml").open("a") as file:
        file.write(f"\n{json.dumps(nasty)}: {json.dumps(nasty)}\n")
    rows = (run / "metrics.csv").read_text().splitlines()
    rows[0] = rows[0].replace("grad_norm/tier1", "grad_norm/<script>alert(4)</script>")
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    for document in (report(run).read_text("utf-8"), report([run, run]).read_text("utf-8")):
        assert document.count("<script") == 1
        assert document.count("</main>") == 1
        assert "<img src=x" not in document
        assert "alert(2)" in document
        assert "alert(4)" in document or "alert(" in document


def test_a_page_stays_small_and_says_what_it_leaves_out(new_run: Path) -> None:
    samples = new_run / "samples"
    noise = np.random.default_rng(0).integers(-20000, 20000, 30 * 44100).astype(np.int16)
    shutil.rmtree(samples)
    samples.mkdir()
    for step in range(1, 13):
        for number in range(2):
            sf.write(samples / f"step-{step:07d}-t0.90-{number}.wav", noise, 44100)
            bits = 6 - step / 10 if step < 9 else 6.0
            (samples / f"step-{step:07d}-t0.90-{number}.json").write_text(
                json.dumps({"validation_bits_per_sample": bits})
            )
    document = report(new_run).read_text("utf-8")
    assert len(document.encode()) < LIMIT + 500_000
    shown = [int(step) for step in re.findall(r"<h3>Step (\d+)", document)]
    assert 8 in shown  # the best
    assert f"{len(shown)} of 12 validations" in _text(document)


def test_first_best_and_last_come_before_what_is_between(old_run: Path) -> None:
    samples = old_run / "samples"
    wave = (samples / "step-0000004-0.wav").read_bytes()
    shutil.rmtree(samples)
    samples.mkdir()
    for step in range(1, 21):
        (samples / f"step-{step:07d}-0.wav").write_bytes(wave)
        (samples / f"step-{step:07d}-0.json").write_text(
            json.dumps({"validation_bits_per_sample": 4.0 if step == 17 else 5.0})
        )
    document = report(old_run).read_text("utf-8")
    shown = [int(step) for step in re.findall(r"<h3>Step (\d+)", document)]
    assert len(shown) == 7
    assert shown == sorted(shown)
    assert {1, 17, 20} <= set(shown)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "RUN"),
        (["nowhere"], "nowhere: no such folder"),
        (["."], "not a run"),
        (["runs/toy", "--out", "runs"], "is a folder"),
        (["runs/toy", "--out", "runs/toy/config.yaml/x.html"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    run_copy: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main(["report", *arguments]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_reading_a_run_changes_nothing_but_its_report(new_run: Path) -> None:
    def files() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in new_run.rglob("*")}

    before = files()
    report(new_run)
    after = files()
    del after[new_run / "report.html"]
    assert after == before


def test_audio_of_any_rate_can_be_played(new_run: Path) -> None:
    for rate in (8000, 48000):
        sf.write(new_run / "samples" / "recording.wav", np.zeros(rate, np.int16) + 5, rate)
        assert any(len(heard) == rate for heard in sounds(report(new_run).read_text("utf-8")))
    assert RATE == 4000
