"""`samplernn doctor`: names exactly the bad files, agrees with `train`, writes nothing."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
from rich.console import Console

from samplernn.audio.corpus import prepare
from samplernn.audio.split import leaked_seconds, split
from samplernn.cli import main
from samplernn.config import Config, DataConfig, from_dict
from samplernn.insight.doctor import Diagnosis, examine, show
from samplernn.training.data import CorpusModule
from tests.conftest import CLIPS, TOY, toy_arguments

RATE = 4000
UNUSABLE = {
    "dangling.wav": "link to nothing",
    "nan.wav": "NaN",
    "no audio.m4a": "cannot be read",
    "pipe.flac": "FIFO",
    "twin.flac": "duplicate",
    "words.wav": "not readable as audio",
    "zero bytes.flac": "0 bytes",
    "zeros.wav": "silent",
}
FLAWED = {"brief.wav": "less than a chunk", "clipped.wav": "clipped", "cut.flac": "damaged", "off.wav": "DC"}
UNUSUAL = ["8 channels.wav", "folder.wav/Ünïcode.WAV", "song.mp3"]


def noise(seconds: float, rate: int = RATE, level: float = 0.1, seed: int = 0) -> np.ndarray:
    """Quiet enough never to clip, and without an offset worth a word."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate)).clip(-4, 4) * level
    return samples - samples.mean()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files among every kind of bad one."""
    folder = tmp_path_factory.mktemp("doctor") / "mixed"
    shutil.copytree(CLIPS / "guitar", folder)
    (folder / "words.wav").write_text("only words " * 100)
    (folder / "zero bytes.flac").touch()
    (folder / "no audio.m4a").write_bytes(b"....ftypM4A ")
    (folder / "notes.txt").write_text("not meant to be audio")
    (folder / ".hidden.wav").write_text("nor this")
    sf.write(folder / "cut.flac", noise(10, 16000, seed=1), 16000)
    os.truncate(folder / "cut.flac", 150_000)
    sf.write(folder / "nan.wav", np.append(noise(1), np.nan).astype(np.float32), RATE, "FLOAT")
    sf.write(folder / "zeros.wav", np.zeros(RATE), RATE)
    sf.write(folder / "brief.wav", noise(0.01), RATE)
    sf.write(folder / "clipped.wav", (noise(2, seed=2) * 20).clip(-1, 1), RATE)
    sf.write(folder / "off.wav", noise(2, seed=3) + 0.1, RATE)
    sf.write(folder / "8 channels.wav", noise(8, 96000, seed=4).reshape(-1, 8), 96000)
    sf.write(folder / "song.mp3", noise(3, 44100, seed=5), 44100)
    (folder / "folder.wav").mkdir()
    sf.write(folder / "folder.wav" / "Ünïcode.WAV", noise(2, seed=6), RATE, format="WAV")
    sf.write(folder / "first.flac", noise(2, seed=7), RATE)
    shutil.copy(folder / "first.flac", folder / "twin.flac")
    (folder / "dangling.wav").symlink_to("nothing.wav")
    (folder / "again").symlink_to(".")
    os.mkfifo(folder / "pipe.flac")
    return folder


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, at toy size."""
    return subprocess.run(
        [sys.executable, "-m", "samplernn", "doctor", *arguments, *toy_arguments()],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [folder, *folder.rglob("*")]
    }


def test_exactly_the_bad_files_are_named_and_nothing_is_written(mixed: Path, tmp_path: Path) -> None:
    before = everything(mixed), everything(tmp_path)
    result = run(str(mixed), "--json", XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (everything(mixed), everything(tmp_path)) == before
    found = json.loads(result.stdout)
    problems = {problem["path"]: problem for problem in found["problems"]}
    assert len(problems) == len(found["problems"])
    assert {path for path, problem in problems.items() if not problem["used"]} == set(UNUSABLE)
    assert {path for path, problem in problems.items() if problem["used"]} == set(FLAWED)
    for path, words in {**UNUSABLE, **FLAWED}.items():
        assert words in problems[path]["problem"]
        assert problems[path]["remedy"]
    good = len(list((CLIPS / "guitar").iterdir())) + len(UNUSUAL) + len(["first.flac"])
    assert found["usable_files"] == good + len(FLAWED)
    assert found["files"] == found["usable_files"] + len(UNUSABLE)
    assert found["trainable"] is True
    assert any("ffmpeg -i 'no audio.m4a'" in advice for advice in found["advice"])


def test_train_says_the_same_and_trains_on_the_rest(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    diagnosis = examine(mixed, from_dict(Config, TOY), seconds=0.1)
    assert main(["train", str(mixed), *toy_arguments()]) == 0
    said = capsys.readouterr().err
    assert f"{len(diagnosis.corpus.files)} files, {diagnosis.corpus.duration / 60:.1f} minutes usable" in said
    assert diagnosis.plan is not None
    assert diagnosis.cost is not None
    assert f"; {diagnosis.plan.steps_per_epoch} steps of 4 x 64 samples per epoch" in said
    assert f"{diagnosis.cost.parameters / 1e6:.2f} M parameters" in said
    lines = said.splitlines()
    first_ten = [f"  {problem}" for problem in diagnosis.problems[:10]]
    assert lines[lines.index(first_ten[0]) :][:10] == first_ten
    assert f"  … and {len(diagnosis.problems) - 10} more: samplernn doctor lists them all" in lines


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 64},
        {"batch_size": "auto"},
        {"segment_duration": 100.0},
        {"tbptt_len": 4096},
        {"split_seed": 7},
    ],
)
def test_the_plan_is_what_training_does(changes: dict[str, object], toy_config: Config) -> None:
    config = replace(toy_config, data=replace(toy_config.data, **changes))  # type: ignore[arg-type]
    diagnosis = examine(CLIPS, config, seconds=0.1)
    plan, config = diagnosis.plan, diagnosis.config
    assert plan is not None
    corpus = prepare(CLIPS, DataConfig(sample_rate=RATE))
    data = CorpusModule(config, corpus, split(corpus, config.data.split_seed))
    loader = data.train_dataloader()
    assert plan.steps_per_epoch == len(loader)
    assert plan.segments == len(loader.lanes.segments)
    batches = list(loader)
    heard = sum(int(batch.mask.sum()) for batch in batches)
    assert plan.train_seconds == heard / RATE
    assert plan.filled == pytest.approx(heard / (len(batches) * batches[0].mask.numel()))
    assert plan.split_by == "file"
    assert plan.validation_samples == next(iter(data.val_dataloader())).mask.numel()
    assert plan.train_seconds + plan.validation_seconds + plan.test_seconds == pytest.approx(corpus.duration)


def test_one_file_is_split_by_time(tmp_path: Path, toy_config: Config) -> None:
    sf.write(tmp_path / "one.wav", noise(20), RATE)
    plan = examine(tmp_path, toy_config, seconds=0.1).plan
    assert plan is not None
    assert plan.split_by == "time"
    assert plan.train_seconds == 16.0


def unfit(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run doctor and train, which must agree that the folder will not do; returns doctor's reason."""
    assert main(["train", str(folder), *toy_arguments()]) == 2
    refused = capsys.readouterr().err
    assert main(["doctor", str(folder), "--json", *toy_arguments()]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["trainable"] is False
    assert found["obstacle"] in refused
    assert main(["doctor", str(folder), *toy_arguments()]) == 1
    assert f"not trainable: {found['obstacle']}" in capsys.readouterr().out
    return found["obstacle"]


def test_an_unfit_folder_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "audio"
    folder.mkdir()
    assert "no audio files found" in unfit(folder, capsys)
    (folder / "words.wav").write_text("words")
    (folder / "dangling.wav").symlink_to("nothing")
    assert "none of its 2 audio files can be used" in unfit(folder, capsys)
    sf.write(folder / "blink.wav", noise(0.05), RATE)
    assert "0.050 s of audio are too little" in unfit(folder, capsys)
    assert not Path("runs").exists()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read_are_named(tmp_path: Path, toy_config: Config) -> None:
    sf.write(tmp_path / "mine.wav", noise(5), RATE)
    sf.write(tmp_path / "secret.wav", noise(5, seed=1), RATE)
    (tmp_path / "secret.wav").chmod(0)
    (problem,) = examine(tmp_path, toy_config, seconds=0.1).problems
    assert problem.path == "secret.wav"
    assert "permission" in problem.remedy


def test_neither_lightning_nor_wandb_is_imported() -> None:
    program = (
        "import sys; from samplernn.cli import main;"
        f"code = main(['doctor', {str(CLIPS)!r}, '--json', *{toy_arguments()!r}]);"
        "print(code, [name for name in ('lightning', 'wandb', 'tensorboard') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    """Names that a terminal, markup or an encoding might choke on."""
    folder = tmp_path_factory.mktemp("awkward")
    shutil.copy(next((CLIPS / "guitar").iterdir()), folder)
    deep = folder / ("a very long name for a folder " * 4).strip() / ("and another one " * 8).strip()
    deep.mkdir(parents=True)
    for name in ["[bold]new\nline\x1b[31m.wav", os.fsdecode(b"caf\xe9.wav"), "naïve ♪.wav"]:
        (deep / name).touch()
    return examine(folder, from_dict(Config, TOY), seconds=0.1)


def shown(diagnosis: Diagnosis, **console: object) -> str:
    stream = io.StringIO()
    show(diagnosis, Console(file=stream, highlight=False, **console), "samplernn train x")  # type: ignore[arg-type]
    return stream.getvalue()


def test_in_a_pipe_a_problem_is_one_plain_line(awkward: Diagnosis) -> None:
    text = shown(awkward, width=80)
    text.encode("utf-8")
    lines = [line for line in text.splitlines() if "is empty (0 bytes)" in line]
    assert len(lines) == 3
    folder = str(Path(awkward.problems[0].path).parent)
    for name in [r"[bold]new\nline\x1b[31m.wav", r"caf\udce9.wav", "naïve ♪.wav"]:
        (line,) = (line for line in lines if f"{folder}/{name}" in line)
        assert line.endswith("remove or replace it")
    assert not set("─│━\x1b") & set(text)
    assert not any(line.endswith(" ") for line in text.splitlines())
    assert text.splitlines()[-1].startswith("trainable: ")


def test_a_narrow_terminal_wraps_and_loses_nothing(awkward: Diagnosis) -> None:
    text = shown(awkward, width=80, force_terminal=True, no_color=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 80
    first_column = "".join(line[:30].split("  ")[0].strip() for line in text.splitlines())
    assert r"\x1b[31m.wav" in first_column.replace(" ", "")


def test_standard_output_that_is_not_unicode_is_no_trap(tmp_path: Path) -> None:
    shutil.copy(next((CLIPS / "guitar").iterdir()), tmp_path)
    (tmp_path / "naïve ♪.wav").touch()
    result = run(str(tmp_path), PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert r"na\xefve \u266a.wav" in result.stdout


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten files of noise, one of them as MP3 too, and two pieces of another that overlap by 3 s."""
    folder = tmp_path_factory.mktemp("doubled") / "audio"
    folder.mkdir()
    for seed in range(10):
        sf.write(folder / f"{seed}.wav", noise(6, seed=seed), RATE)
    sf.write(folder / "4 again.mp3", soxr.resample(noise(6, seed=4), RATE, 4 * RATE), 4 * RATE)
    long = noise(10, seed=99)
    sf.write(folder / "left.wav", long[: 6 * RATE], RATE)
    sf.write(folder / "right.wav", long[3 * RATE :], RATE)
    return folder


def test_files_that_share_audio_are_named_with_how_much_and_where(doubled: Path, toy_config: Config) -> None:
    diagnosis = examine(doubled, toy_config, seconds=0.1)
    found = diagnosis.to_dict()["takes"]
    pairs = {(one["first"], one["second"]): one for one in found["overlaps"]}
    assert set(pairs) == {("4 again.mp3", "4.wav"), ("left.wav", "right.wav")}
    cut = pairs["left.wav", "right.wav"]
    assert (cut["first_start"], cut["second_start"]) == pytest.approx((3.0, 0.0), abs=0.05)
    assert cut["seconds"] == pytest.approx(3.0, abs=0.05)
    assert found["files"] == 4
    assert found["seconds"] == pytest.approx(18.0, abs=0.3)
    (line,) = (line for line in shown(diagnosis).splitlines() if line.startswith("takes"))
    assert "4 files share 18 s with others: " in line
    assert "left.wav with right.wav (3.0 s, from 3.0 s)" in line
    assert json.loads(json.dumps(found)) == found


def test_a_folder_that_shares_nothing_has_no_line_on_it(mixed: Path, toy_config: Config) -> None:
    diagnosis = examine(mixed, toy_config, seconds=0.1)
    assert diagnosis.to_dict()["takes"] == {"files": 0, "seconds": 0, "overlaps": []}
    assert not any(line.startswith("takes") for line in shown(diagnosis).splitlines())


def test_of_many_pairs_a_handful_is_shown(tmp_path: Path, toy_config: Config) -> None:
    long = noise(40, seed=1)
    for index in range(9):
        sf.write(tmp_path / f"{index}.wav", long[4 * index * RATE : (4 * index + 7) * RATE], RATE)
    diagnosis = examine(tmp_path, toy_config, seconds=0.1)
    assert len(diagnosis.corpus.overlaps) == 8
    (line,) = (line for line in shown(diagnosis).splitlines() if line.startswith("takes"))
    assert line.count(" with ") == 6
    assert "they hold one recording, or little else" in line
    assert line.endswith(", and 3 more pairs")


def test_doctor_and_train_say_how_much_held_out_audio_trains_and_that_files_are_kept_together(
    doubled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = prepare(doubled, DataConfig(sample_rate=RATE))
    seed = next(seed for seed in range(99) if leaked_seconds(corpus, split(corpus, seed, False)) > 0)
    toy = [*toy_arguments(), f"--data.split_seed={seed}", "--samples.num=0", "--trainer.max_steps=1"]
    apart = [*toy, "--data.keep_takes_together=false"]
    assert main(["train", str(doubled), *apart]) == 0
    warning = "held out are in other files that train"
    (said,) = (line.strip() for line in capsys.readouterr().err.splitlines() if warning in line)
    assert said.endswith("leave data.keep_takes_together on")
    assert main(["doctor", str(doubled), "--json", *apart]) == 0
    assert said in json.loads(capsys.readouterr().out)["advice"]
    assert main(["train", str(doubled), *toy, "--name", "together"]) == 0
    told = capsys.readouterr().err
    assert warning not in told
    assert "takes: 4 files share audio and are kept together (samplernn doctor names them)\n" in told
    parts = json.loads(Path("runs/together/run.json").read_text("utf-8"))["split"]
    assert parts == split(corpus, seed).to_dict()
    assert main(["train", "--resume", "--name", "together", "--trainer.max_steps=2"]) == 0
    assert json.loads(Path("runs/together/run.json").read_text("utf-8"))["split"] == parts
