"""Auditions: every combination once, best first, each with the command that makes it again."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

import samplernn
from samplernn.audio.spectrum import level_db, long_term_spectrum, spectral_distance
from samplernn.cli import main
from samplernn.insight import audition as module
from samplernn.insight import page
from samplernn.insight.audition import audition
from tests.insight.conftest import RATE, sounds


def _commands(document: str) -> list[list[str]]:
    found = re.findall(r'<code class="command">(.*?)</code>', document)
    return [shlex.split(html.unescape(re.sub("<[^>]*>", "", each))) for each in found]


def _figures(document: str, what: str) -> list[float]:
    return [float(figure) for figure in re.findall(rf"{what} (-?[\d.]+) dB", document)]


@pytest.fixture
def riff(tmp_path: Path, speech: NDArray[np.int16]) -> Path:
    """A prompt of three quarters of a second."""
    file = tmp_path / "riff <b>.wav"
    sf.write(file, speech[:3000], RATE)
    return file


def test_every_cell_is_there_and_its_command_makes_the_same_samples(
    run_copy: Path, riff: Path, capsys: pytest.CaptureFixture[str], speech: NDArray[np.int16]
) -> None:
    argv = ["--temperature", "0.9", "0:1.0,1:0.8", "--prompt", str(riff), "--seeds", "2", "--duration", "0.3"]
    assert main(["audition", str(run_copy), *argv]) == 0
    said = capsys.readouterr()
    assert said.out == "audition.html\n"
    assert "4 streams of 0.3 s" in said.err
    document = Path("audition.html").read_text("utf-8")
    commands, heard = _commands(document), sounds(document)
    assert len(commands) == 2 * 2 * 2
    assert len({tuple(command) for command in commands}) == 8
    assert len(heard) == 9  # and the prompt
    np.testing.assert_array_equal(heard[8], speech[:3000])
    for number, command in enumerate(commands):
        assert command[0] == "samplernn"
        out = f"again/{number}.wav"
        assert main([*command[1:], "--out", out]) == 0
        np.testing.assert_array_equal(sf.read(out, dtype="int16")[0], heard[number])
    assert "riff &lt;b&gt;.wav" in document
    assert "riff <b>" not in document


def test_no_traps_first_then_the_nearest(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = module.traps_in, []

    def every_third(audio: NDArray[np.int16], *others: object) -> list[object]:
        calls.append(audio)
        assert real(audio, *others) == []  # type: ignore[arg-type]
        trap = module.Trap("loop", 0, len(audio), "every 10 ms")
        return [trap] if len(calls) % 3 == 0 else []

    monkeypatch.setattr(module, "traps_in", every_third)
    document = audition(run_copy, [0.7, 1.0, 1.3], seeds=2, duration=0.2).read_text("utf-8")
    distances = _figures(document, "distance")
    assert len(calls) == len(distances) == 6
    assert distances[:4] == sorted(distances[:4])
    assert distances[4:] == sorted(distances[4:])
    badges = re.findall(r">(no traps|loop since 0\.0 s)<", document)
    assert badges == ["no traps"] * 4 + ["loop since 0.0 s"] * 2
    assert "2 fell into a trap" in document


def test_a_real_trap_is_seen(run_copy: Path) -> None:
    """Greedy, a model that has learned nothing says the same code for ever."""
    document = audition(run_copy, 0.0, seeds=1, duration=4.0).read_text("utf-8")
    assert re.search(r"badge bad\">(silence|loop|noise) since", document)
    assert "1 fell into a trap" in document


def test_the_recording_of_the_run_is_what_streams_are_compared_with(
    run_copy: Path, riff: Path, speech: NDArray[np.int16]
) -> None:
    recording = run_copy / "samples" / "recording.wav"
    recording.unlink(missing_ok=True)
    alone = audition(run_copy, 0.9, seeds=1, duration=0.3).read_text("utf-8")
    assert "only level and brightness" in alone
    prompted = audition(run_copy, 0.9, riff, seeds=1, duration=0.3).read_text("utf-8")
    assert "The corpus here is the prompts" in prompted
    sf.write(recording, speech, RATE)
    document = audition(run_copy, 0.9, seeds=1, duration=0.3).read_text("utf-8")
    assert "held-out recording" in document
    (heard,) = sounds(document)
    expected = spectral_distance(long_term_spectrum(heard, RATE), long_term_spectrum(speech, RATE))
    assert _figures(document, "distance") == [pytest.approx(expected, abs=0.06)]
    assert _figures(document, "level") == [pytest.approx(level_db(heard), abs=0.06)]


def test_the_training_audio_itself_is_near_by_level_and_brightness(trained_run: Path, clips: Path) -> None:
    from samplernn.audio.io import load, to_int16

    checkpoint = samplernn.load(trained_run)
    reference = module._reference(checkpoint, ())
    assert reference.spectrum is None or "recording" in reference.words
    known = module.Reference(None, reference.expected, "")
    files = sorted(clips.rglob("*.flac"))
    everything = np.concatenate([to_int16(load(file, RATE)) for file in files])
    noise = np.random.default_rng(0).integers(-30000, 30000, RATE).astype(np.int16)
    assert known.distance(everything, RATE) < 3
    assert known.distance(noise, RATE) > 6
    assert known.distance(np.zeros(RATE, np.int16), RATE) > 20


def test_several_checkpoints_and_an_export(run_copy: Path) -> None:
    assert main(["export", str(run_copy), "exported"]) == 0
    document = audition([run_copy, "exported"], 1.0, seeds=1, duration=0.2).read_text("utf-8")
    assert len(sounds(document)) == 2
    assert "<h1>2 checkpoints</h1>" in document
    assert {command[2] for command in _commands(document)} == {str(run_copy), "exported"}


def test_what_does_not_fit_is_listed(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LIMIT", 60_000)
    document = audition(run_copy, [0.8, 1.0], seeds=3, duration=1.0).read_text("utf-8")
    heard = len(sounds(document))
    assert 0 < heard < 6
    assert f"{6 - heard} streams did not fit" in document
    assert len(_commands(document)) == 6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--duration", "0"], "--duration must be above 0"),
        (["--duration", "inf"], "finite"),
        (["--temperature", "warm"], "warm"),
        (["--prompt", "nowhere.wav"], "nowhere.wav"),
        (["--seeds", "1000"], "more than anybody listens to"),
        (["--out", "."], "is a folder"),
    ],
)
def test_mistakes_are_one_line(
    run_copy: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main(["audition", str(run_copy), *arguments]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_names_of_checkpoints_are_text(run_copy: Path) -> None:
    name = "x<script>alert(1)<\u2215script>\"'"
    shutil.move(run_copy, name)
    document = audition(name, 1.0, seeds=1, duration=0.1).read_text("utf-8")
    assert document.count("<script") == 1
    assert "alert(1)" in document
    assert _commands(document)[0][2] == name
