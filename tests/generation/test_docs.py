"""Every command of docs/generation.md runs, in its order and with its names; only durations are made short."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile

import samplernn
from samplernn.cli import main
from samplernn.generation.arguments import flag_of, option_fields, shown_default
from samplernn.generation.request import Options, Output
from tests.audio.loudspeaker import Device

DOCUMENT = Path(__file__).parents[2] / "docs" / "generation.md"


@pytest.fixture
def studio(trained_run: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the document names, as current directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_run, "runs/first")
    recording, rate = soundfile.read(clips / "guitar" / "guit_em9.flac")
    for name in ("riff.wav", "a.wav", "b.flac"):
        soundfile.write(name, recording, rate)
    Path("riffs").mkdir()
    for name in ("a.wav", "b.flac"):
        shutil.copy(name, "riffs")
    return tmp_path


def _commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text("utf-8"), flags=re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    assert all(line.startswith("samplernn ") for line in lines)
    return lines


def test_every_command_runs(
    studio: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    commands = _commands()
    assert len(commands) > 25
    for command in commands:
        argv = shlex.split(command.split("|")[0])[1:]
        if "--duration" in argv:
            argv[argv.index("--duration") + 1] = "0.4"
        elif "--like" not in argv:
            argv += ["--duration", "0.4"]
        if argv[0] == "play":
            device.calls.clear()
        assert main(argv) == 0, (command, capfdbinary.readouterr().err.decode())
        printed = capfdbinary.readouterr().out
        if "-" in argv:
            Path("piped").write_bytes(printed)
            assert len(printed) >= 2 * 1600, command
            assert "raw" in argv or soundfile.info("piped").frames == 1600
        elif argv[0] == "generate":
            assert all(Path(line).is_file() for line in printed.decode().splitlines()), command
    assert len(device.heard) >= 2 * (1600 + 1600 + soundfile.info("riff.wav").duration * 4000)
    # What the document says of them:
    halves = [soundfile.read(f"{name}.wav", dtype="int16")[0] for name in ("first", "second")]
    assert main(["generate", "runs/first", "--duration", "0.8", "--out", "whole.wav"]) == 0
    assert np.array_equal(np.concatenate(halves), soundfile.read("whole.wav", dtype="int16")[0])
    assert np.array_equal(soundfile.read("forks/000.wav")[0], soundfile.read("second.wav")[0])
    for name in ("again.wav", "again2.wav"):
        assert Path(name).read_bytes() == Path("takes/002.wav").read_bytes()
    assert len(list(Path("eight").glob("*.wav"))) == 8
    assert json.loads(Path("curve.json").read_text())["temperature"] == "0.0:1.0,20.0:0.85,60.0:1.0"


def test_every_option_is_shown_and_in_the_table() -> None:
    text = DOCUMENT.read_text("utf-8")
    rows = ["| option | default | what it does |", "| --- | --- | --- |"]
    for option, help_text in option_fields(Output, Options):
        flag = flag_of(option)
        rows.append(f"| `{flag}` | {shown_default(option)} | {help_text} |")
        if option.name not in ("engine", "dtype"):
            assert f"{flag} " in text, flag
    table = "\n".join(rows)
    assert table in text, f"the table in {DOCUMENT.name} should be:\n{table}"


def test_help_lists_every_option() -> None:
    for function, missing in ((samplernn.generate, set()), (samplernn.stream, {"include_prompt", "stream"})):
        names = set(inspect.signature(function).parameters)
        assert {option.name for option in fields(Options)} - names == missing
        for name in names & {option.name for option in fields(Options)}:
            assert f"\n    {name}: " in inspect.getdoc(function)
    with pytest.raises(TypeError, match="unexpected keyword argument 'loudness'"):
        samplernn.stream(None, loudness=1)


def test_the_python_runs(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), flags=re.S)
    names: dict[str, object] = {}
    exec(program.replace("duration=20", "duration=0.4").replace("duration=5", "duration=0.3"), names)
    assert 0 < names["loudest"] <= 1  # type: ignore[operator]
    assert soundfile.info("forks.flac").frames == 1200
