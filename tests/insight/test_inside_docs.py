"""Every command of docs/inside.md runs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import soundfile

from samplernn.cli import main

DOCS = Path(__file__).parents[2] / "docs"


def test_every_command_runs(
    trained_run: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_run, "runs/first")
    shutil.copytree(clips / "speech", "my-audio")
    soundfile.write("riff.wav", *soundfile.read(clips / "guitar" / "guit_em9.flac"))
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / "inside.md").read_text("utf-8"), flags=re.S)
    commands = [line for block in blocks for line in block.splitlines()]
    assert {command.split()[1] for command in commands} == {"activations", "gradients"}
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert {path.name for path in Path().glob("*.png")} == {"activations.png", "gradients.png"}


def test_pictures_of_the_document_are_there_and_small() -> None:
    names = re.findall(r"!\[[^]]+\]\((.+?)\)", (DOCS / "inside.md").read_text("utf-8"))
    assert names == ["activations.png", "gradients.png"]
    assert all((DOCS / name).stat().st_size < 300_000 for name in names)
