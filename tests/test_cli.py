"""The command line as a user meets it, and every command of the README at toy size."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samplernn.cli import VERBS, main
from samplernn.config import Config, UserError
from samplernn.options import parse, parse_doctor
from tests.conftest import CLIPS, toy_arguments

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "docs" / "train.md", ROOT / "docs" / "watch.md"]
"""docs/generation.md has a test of its own."""


def _fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail as a user's mistake; returns its one line."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "VERB"),
        (["sing"], "unknown verb 'sing'"),
        (["train"], "folder of audio"),
        (["train", "nowhere"], "nowhere"),
        (["train", "x", "--model.dim", "many"], "model.dim"),
        (["train", "x", "--model.frame_sizes", "[2,8]"], "write [8, 2]"),
        (["train", "x", "--model.tiers", "3"], "--model.tiers"),
        (["train", "x", "--data.tbptt_len", "100"], "take 128"),
        (["train", "x", "--config", "enormous"], "presets: demo"),
        (["train", "x", "--trainer.max_time", "10min"], "00:00:10:00"),
        (["train", "x", "--max-minutes", "0"], "--max-minutes must be above 0 and below 1e9, got 0"),
        (["train", "x", "--max-minutes", "-2"], "--max-minutes must be above 0"),
        (["train", "x", "--max-minutes", "1e300"], "--max-minutes must be above 0"),
        (["train", "x", "--max-minutes", "nan"], "max_minutes: Expected a float"),
        (["train", "x", "--max-minutes", "ten"], "max_minutes: Expected a float. Got value: ten"),
        (["train", "x", "--max-minutes", "3", "--trainer.max_time", "00:00:03:00"], "give one of them"),
        (["train", "--resume", "--overfit-check"], "leave --resume out"),
        (["train", "nowhere", "--overfit-check"], "nowhere: no such folder"),
        (["train", "--overfit-check"], "folder of audio"),
        (
            ["train", "x", "--data.batch_size", "many"],
            "data.batch_size: Expected int or auto. Got value: many",
        ),
        (["train", "--resume", "--config", "small"], "leave --config out"),
        (["train", str(CLIPS), "--trainer.precision", "bf16-mixe"], "trainer.precision"),
        (["train", str(CLIPS), "--trainer.gradient_clip_algorithm", "size"], "gradient_clip_algorithm"),
        (["train", str(CLIPS), "--trainer.gradient_clip_parameters", "gru"], "gradient_clip_parameters"),
        (["train", str(CLIPS), "--trainer.accelerator", "gpuu"], "gpuu"),
        (
            ["train", str(CLIPS), "--trainer.accelerator", "tpu"],
            "trainer.accelerator tpu: cannot be used here",
        ),
        (["train", str(CLIPS), "--name", ""], "a run's name cannot be empty"),
        (["train", str(CLIPS), "--model.dim", "10000000000"], "model.dim must be from 1 to 65536"),
        (["train", str(CLIPS), "--model.forget_bias", "nan"], "model.forget_bias: Expected a float"),
        (["train", str(CLIPS.parent / "cells")], "no such folder"),
        (["train", str(CLIPS.parent / "cli.py")], "is not a folder"),
        (["train", str(CLIPS.parent / "training")], "no audio files found"),
        (["train", "--resume", "--name", "none"], "no such run"),
        (["train", str(CLIPS), "--data.tbptt_len", "64000000000"], "1024000000000 samples at once"),
        (["demo", "--out", str(CLIPS.parent / "cli.py")], "cli.py: is a file"),
        (["train", str(CLIPS), "--trainer.devices", "3"], "take 18"),
        (["train", str(CLIPS), "--seed_everything", "-1"], "seed_everything"),
        (["train", str(CLIPS), "--samples.seed", "-1"], "samples.seed"),
        (["doctor"], "folder of audio"),
        (["doctor", "nowhere"], "nowhere: no such folder"),
        (["doctor", str(CLIPS), "--model.tiers", "3"], "samplernn doctor --help"),
        (["doctor", str(CLIPS), "--config", "enormous"], "presets: demo"),
        (["doctor", str(CLIPS), "--data.cache_dir", str(CLIPS / "cache")], "inside the audio folder"),
        (["generate"], "checkpoint"),
        (["generate", "nowhere"], "nowhere"),
        (["generate", "nowhere", "--num", "x"], "--num"),
        (["evaluate", "nowhere", "nowhere"], "nowhere"),
        (["export", "nowhere", "there"], "nowhere"),
        (["activations", "nowhere", "x.wav"], "nowhere"),
        (["activations", str(CLIPS), "x.wav", "--out", "x.jpg"], ".png"),
        (["gradients", "nowhere", str(CLIPS)], "nowhere"),
        (["gradients", "nowhere", str(CLIPS), "--places", "many"], "--places"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in _fails(argv, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_configuration_file_names_the_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model:\n  dimm: 3\n")
    assert "dimm" in _fails(["train", "x", "--config", str(file)], capsys)
    file.write_text("model: [")
    assert "mine.yaml" in _fails(["train", "x", "--config", str(file)], capsys)


def test_keys_win_over_the_configuration_wherever_they_stand() -> None:
    before = parse(["x", "--model.dim=512", "--config", "reference"])
    after = parse(["x", "--config=reference", "--model.dim", "512"])
    assert before.config == after.config
    assert before.config.model.dim == 512
    assert before.config.model.n_rnn == 2  # of the preset
    assert before.changes["model"]["dim"] == 512


def test_the_keys_of_clipping_come_through() -> None:
    keys = ["val=0.5", "algorithm=value", "parameters=recurrent"]
    options = parse(["x", *(f"--trainer.gradient_clip_{key}" for key in keys)]).config.trainer
    assert options.gradient_clip_val == 0.5
    assert (options.gradient_clip_algorithm, options.gradient_clip_parameters) == ("value", "recurrent")


def test_the_default_preset_is_small() -> None:
    assert parse(["x"]).config == parse(["x", "--config", "small"]).config
    assert parse(["x"]).changes == {}


def test_a_saved_configuration_is_a_configuration_file(trained_run: Path) -> None:
    assert parse(["x", "--config", str(trained_run / "config.yaml")]).config.model.dim == 16


def test_resume_takes_only_what_was_typed() -> None:
    options = parse(["--resume", "--name", "n", "--trainer.max_steps", "9"])
    assert (options.folder, options.name, options.resume) == (None, "n", True)
    assert options.changes == {"trainer": {"max_steps": 9}}


@pytest.mark.parametrize(
    ("minutes", "max_time"),
    [
        ("30", "00:00:30:00"),
        ("0.5", "00:00:00:30"),
        ("90.25", "00:01:30:15"),
        ("59.999", "00:01:00:00"),
        ("1e-9", "00:00:00:01"),
        ("3000", "02:02:00:00"),
    ],
)
def test_max_minutes_is_short_for_max_time(minutes: str, max_time: str) -> None:
    options = parse(["x", "--max-minutes", minutes, "--trainer.max_epochs=3"])
    assert options.config.trainer.max_time == max_time
    assert options.changes == {"trainer": {"max_time": max_time, "max_epochs": 3}}
    assert parse(["--resume", f"--max-minutes={minutes}"]).changes == {"trainer": {"max_time": max_time}}
    assert parse_doctor(["x", "--max-minutes", minutes]).config.trainer.max_time == max_time


def test_max_minutes_wins_over_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("trainer:\n  max_time: '00:02:00:00'\n  max_steps: 5\n")
    trainer = parse(["x", "--config", str(file), "--max-minutes", "30"]).config.trainer
    assert (trainer.max_time, trainer.max_steps) == ("00:00:30:00", 5)


def test_max_minutes_ends_a_run_and_more_of_them_continue_it(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Minutes count over both sessions; the schedule follows them."""
    monkeypatch.chdir(tmp_path)
    toy = [key for key in toy_arguments() if "max_steps" not in key and "val_check" not in key]
    assert main(["train", str(clips), "--name", "timed", *toy, "--max-minutes", "0.017"]) == 0
    assert "trainer.max_time is reached" in capsys.readouterr().err
    assert main(["train", "--resume", "--max-minutes", "0.017"]) == 0
    assert "already finished" in capsys.readouterr().err
    assert main(["train", "--resume", "--max-minutes", "0.034"]) == 0
    assert "trainer.max_time is reached" in capsys.readouterr().err
    with Path("runs/timed/metrics.csv").open(newline="") as file:
        rates = [float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]]
    assert rates[-1] < 0.2 * max(rates)
    saved = torch.load("runs/timed/checkpoints/last.ckpt", weights_only=True)
    assert saved["lane_state"]["seconds"] >= 2.0  # of both sessions; a step on a busy machine may last long


def test_a_train_folder_is_required_without_resume() -> None:
    with pytest.raises(UserError, match="folder"):
        parse(["--name", "n"])


@pytest.mark.parametrize("verb", [*VERBS, ""])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"] if verb else ["--help"])
    assert stopped.value.code == 0
    assert "usage: samplernn" in capsys.readouterr().out


def test_unusable_files_are_named_and_the_rest_trains(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips / "guitar", "mixed")
    Path("mixed/notes.wav").write_text("these are only words")
    Path("mixed/nothing.flac").touch()
    Path("mixed/voice.m4a").write_bytes(b"....ftypM4A ")
    assert main(["train", "mixed", *toy_arguments()]) == 0
    said = capsys.readouterr().err
    for name in ("notes.wav", "nothing.flac", "voice.m4a"):
        assert len([line for line in said.splitlines() if name in line and ";" in line]) == 1
    assert "4 files" in said
    assert "better than" in said or "worse than" in said


def test_a_folder_without_usable_audio_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    for name in ("a.wav", "b.wav"):
        (tmp_path / "bad" / name).write_text("words")
    assert "a.wav" in _fails(["train", "bad", "--name", "x"], capsys)
    assert not Path("runs").exists()


def test_evaluate_prints_one_json_object_and_nothing_else(trained_run: Path, clips: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "samplernn", "evaluate", str(trained_run), str(clips), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    scored = json.loads(result.stdout)
    assert {"bits_per_sample", "num_samples", "baselines"} <= set(scored)
    assert set(scored["baselines"]) == {"uniform", "unigram", "previous_sample"}


def test_quiet_training_says_nothing_but_warnings_about_files_and_the_final_table(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips / "guitar", "mixed")
    Path("mixed/nothing.flac").touch()
    for options in (["mixed", *toy_arguments()], ["--resume", "--trainer.max_steps=8"]):
        assert main(["train", *options, "--quiet", "--logger=both"]) == 0
        captured = capsys.readouterr()
        assert captured.out == ""
        warning, title, validation, test = captured.err.splitlines()
        assert "nothing.flac" in warning
        assert title.startswith("bits per sample")
        assert validation.split()[0] == "validation"
        assert test.split()[0] == "test"
    assert main(["train", "--resume", "--quiet"]) == 0  # nothing left to do
    assert capsys.readouterr() == ("", "")
    assert "nowhere" in _fails(["train", "nowhere", "--quiet"], capsys)


def test_quiet_generation_prints_nothing_but_paths(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even the traps that it falls into after six steps."""
    options = ["--duration", "3", "--num", "2", "--out", str(tmp_path / "new")]
    assert main(["generate", str(trained_run), *options]) == 0
    assert "noise" in capsys.readouterr().err
    assert main(["generate", str(trained_run), *options, "--overwrite", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [str(tmp_path / "new" / f"{stream:03}.wav") for stream in (0, 1)]


def test_info_of_a_run_says_all_and_its_last_line_generates(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(trained_run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == {"file", "weights_sha256", "parameters", "gain", "results", "config"}
    assert main(["info", str(trained_run)]) == 0
    said = capsys.readouterr().out
    command = said.splitlines()[-1]
    monkeypatch.chdir(tmp_path)
    argv = shlex.split(command)
    assert argv[:2] == ["samplernn", "generate"]
    argv[argv.index("--duration") + 1] = "0.1"
    assert main(argv[1:]) == 0
    assert len(capsys.readouterr().out.splitlines()) == int(argv[argv.index("--num") + 1])


def test_generate_and_help_import_neither_lightning_nor_wandb(trained_run: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from samplernn.cli import main;"
        f"code = main(['generate', {str(trained_run)!r}, '--duration', '0.1', '--out', {str(tmp_path / 'x.wav')!r}]);"
        "print(code, [name for name in ('lightning', 'wandb', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"


def _commands() -> list[str]:
    """Of the README and the pages, each once."""
    text = "".join(page.read_text("utf-8") for page in PAGES)
    blocks = re.findall(r"```(?:sh|console|bash)\n(.*?)```", text, flags=re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("samplernn ")))


def test_every_command_of_the_readme_and_pages_runs_at_toy_size(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, trained_run: Path
) -> None:
    """In their order, in one folder, with their own names; only sizes are made small."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips / "tabla", "my-audio")
    shutil.copytree(clips / "piano", "other-audio")
    shutil.copy(clips / "guitar" / "guit_em9.flac", "riff.wav")
    commands = _commands()
    assert {command.split()[1] for command in commands} == set(VERBS) - {"demo", "play"}
    for command in commands:
        argv = shlex.split(command)[1:]
        if argv[0] == "benchmark":
            continue  # measures for minutes; see tests/insight/test_benchmark.py
        if argv[0] in ("train", "doctor"):
            small = [key for key in toy_arguments() if "--resume" not in argv or "trainer.max_steps" in key]
            argv += small
        if "--overfit-check" in argv:
            argv += ["--optim.lr=0.01"]  # a network that small takes large steps
        if argv[0] == "generate":
            argv += ["--duration", "0.05"]
        assert main(argv) == 0, command
    assert (tmp_path / "runs").is_dir()


def test_the_python_of_the_readme_runs_at_toy_size(
    tmp_path: Path,
    clips: Path,
    toy_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips / "tabla", "my-audio")
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.S)
    program = program.replace('name="second"', 'name="second", config=toy').replace(
        "duration=30", "duration=0.1"
    )
    names: dict[str, object] = {"toy": toy_config}
    exec(program, names)
    assert float(capsys.readouterr().out) > 0
    assert sorted(path.name for path in Path("generated").glob("*.wav")) == [f"{i:03}.wav" for i in range(4)]
    assert names["block"].shape == (1, 400)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "nowhere"],
        ["train", str(CLIPS.parent / "training")],
        ["train", str(CLIPS.parent / "cli.py")],
        ["train", "--resume", "--name", "none"],
    ],
)
def test_a_wrong_folder_or_run_is_said_without_the_heavy_libraries(argv: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\nfrom samplernn.cli import main\n"
        f"code = main({argv!r})\n"
        "print(code, sorted({'torch', 'lightning', 'tensorboard'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(CLIPS.parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout == "2 []\n"
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("argv", [["--help"], ["generate", "--help"], ["doctor", "…\u4e2d"]], ids=" ".join)
def test_output_never_fails_over_a_character(argv: list[str], encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CLIPS.parent.parent), "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-m", "samplernn", *argv], capture_output=True, cwd=tmp_path, env=environment
    )
    assert b"Traceback" not in done.stderr
    if argv[-1] == "--help":
        assert done.returncode == 0
        assert ("…" in done.stdout.decode(encoding)) == (encoding != "ascii") or len(argv) > 1
    else:
        assert done.returncode == 2
        said = "…\u4e2d".encode(encoding, "backslashreplace")
        assert done.stderr.splitlines()[0].startswith(b"error: ")
        assert said + b": no such folder" in done.stderr
