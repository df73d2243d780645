"""WAV files: lengths, readers, prompts, seeds, interruption by SIGKILL and SIGINT."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import samplernn
from samplernn.audio.io import load, to_int16
from samplernn.audio.sinks import FileSink
from samplernn.cli import main
from samplernn.config import UserError
from samplernn.generation.files import allow_open, generate, output_paths
from samplernn.generation.playback import BLOCK_SECONDS, Generator, Playback
from samplernn.generation.prompts import Prompt
from samplernn.generation.request import Request
from samplernn.generation.snapshots import Snapshot
from samplernn.generation.stream import stream
from samplernn.model.checkpoint import Checkpoint
from samplernn.signals import ENDING, Handlers
from tests.conftest import slow


@pytest.fixture(scope="module")
def checkpoint(trained_run: Path) -> Checkpoint:
    return samplernn.load(trained_run)


def _wave(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 4000)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")


def test_a_folder_holds_one_numbered_file_per_stream(checkpoint: Checkpoint, tmp_path: Path) -> None:
    paths = generate(checkpoint, tmp_path / "new" / "out", duration=0.30001, num=2, seed=4)
    assert paths == [tmp_path / "new" / "out" / "000.wav", tmp_path / "new" / "out" / "001.wav"]
    first, second = (_wave(path) for path in paths)
    assert len(first) == len(second) == 1200  # round(0.30001 s x 4000 Hz)
    assert np.array_equal(first, soundfile.read(paths[0], dtype="int16")[0])
    assert not np.array_equal(first, second)
    made_by = json.loads(paths[1].with_suffix(".json").read_text())
    assert (made_by["seed"], made_by["stream"], made_by["engine"]) == (4, 1, "cpu")
    assert made_by["weights"] == checkpoint.weights_hash()


def test_stream_i_of_a_seed_does_not_depend_on_num_or_duration(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    many = generate(checkpoint, tmp_path / "many", duration=0.5, num=3, seed=4)
    one = generate(checkpoint, tmp_path / "one.wav", duration=0.2, seed=4)
    assert np.array_equal(_wave(many[0])[:800], _wave(one[0]))
    other = generate(checkpoint, tmp_path / "other.wav", duration=0.2, seed=5)
    assert not np.array_equal(_wave(other[0]), _wave(one[0]))


def test_one_stream_of_many_again_alone(trained_run: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    many = generate(checkpoint, tmp_path / "many", duration=0.1, num=4, seed=3)
    argv = ["generate", str(trained_run), "--duration", "0.1", "--seed", "3", "--stream", "2"]
    assert main([*argv, "--out", str(tmp_path / "alone.wav")]) == 0
    np.testing.assert_array_equal(_wave(tmp_path / "alone.wav"), _wave(many[2]))
    assert main([*argv, "--num", "2"]) == 2
    assert main([*argv[:-1], "-1"]) == 2


def test_python_streams_the_same_samples_as_the_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = generate(checkpoint, tmp_path / "x.wav", duration=1.0, seed=2, temperature=1.0)[0]
    blocks = list(stream(checkpoint, duration=1.0, seed=2, temperature=1.0))
    assert max(block.shape[1] for block in blocks) <= BLOCK_SECONDS * 4000
    assert np.array_equal(np.concatenate(blocks, axis=1)[0], _wave(path))


def test_a_prompt_changes_what_follows_and_may_be_included(
    checkpoint: Checkpoint, clips: Path, tmp_path: Path
) -> None:
    recording = clips / "guitar" / "guit_em9.flac"  # 16 kHz: resampled to the model's 4 kHz
    plain = generate(checkpoint, tmp_path / "plain.wav", duration=0.2)[0]
    prompted = generate(checkpoint, tmp_path / "prompted.wav", duration=0.2, prompt=recording)[0]
    both = generate(checkpoint, tmp_path / "both.wav", duration=0.2, prompt=recording, include_prompt=True)[0]
    prompt = to_int16(load(recording, 4000))
    assert len(_wave(prompted)) == 800
    assert not np.array_equal(_wave(prompted), _wave(plain))
    assert np.array_equal(_wave(both)[: len(prompt)], prompt)
    assert np.array_equal(_wave(both)[len(prompt) :], _wave(prompted))


def test_a_prompt_is_heard_as_audio_before_the_first_sample(checkpoint: Checkpoint) -> None:
    """Prefilled codes equal quantized, gained samples, with silence in front up to whole frames."""
    prompt = np.array([1000, -20000, 32767], dtype=np.int16)
    generator = Generator(checkpoint)
    state = generator.hear(Prompt.of_samples(prompt))
    expected = checkpoint.codec.quantizer.encode(torch.from_numpy(prompt / 32768 * checkpoint.gain))
    assert state.network.history[0].tolist() == [32] * 5 + expected.tolist()


def test_output_has_the_gain_undone(checkpoint: Checkpoint) -> None:
    generator = Generator(checkpoint)
    heard = np.concatenate(list(generator.stream(Request(4000))), axis=1)
    levels = checkpoint.codec.quantizer.decode(torch.arange(64)).numpy()
    allowed = np.clip(np.round(levels / checkpoint.gain * 32768), -32768, 32767)
    assert set(heard.ravel().tolist()) <= set(allowed.astype(int).tolist())


@pytest.mark.parametrize(
    ("out", "num", "message"),
    [
        ("x.wav", 2, "cannot hold 2 streams"),
        ("x.mp3", 1, "cannot be written; name a file of .wav, .flac"),
        ("taken", 1, "exists already"),
    ],
)
def test_output_that_cannot_be_is_refused(tmp_path: Path, out: str, num: int, message: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "000.wav").touch()
    with pytest.raises(UserError, match=message):
        output_paths(tmp_path / out, num)


def test_nothing_is_touched_when_the_request_is_impossible(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match="seed"):
        generate(checkpoint, path, seed=-1, overwrite=True)
    assert path.read_bytes() == b"precious"


def test_a_json_file_of_the_same_name_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "kick.json").write_text("{}")
    with pytest.raises(UserError, match=r"kick.json: exists already"):
        output_paths(tmp_path / "kick.wav", 1)


def test_a_folder_may_look_like_it_had_a_suffix(tmp_path: Path) -> None:
    assert output_paths(tmp_path / "take-0.95", 1) == [tmp_path / "take-0.95" / "000.wav"]


def test_a_disk_that_fills_up_is_one_line_and_the_file_plays(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def limited(sink: FileSink, block: np.ndarray) -> None:
        if sum(written) > 1000:
            raise sink._write_error()
        written.append(len(block))
        write(sink, block)

    write = FileSink.write
    monkeypatch.setattr(FileSink, "write", limited)
    with pytest.raises(UserError, match="free some disk space") as caught:
        generate(checkpoint, tmp_path / "x.wav", duration=2.0)
    assert "\n" not in str(caught.value)
    assert len(_wave(tmp_path / "x.wav")) == sum(written)
    assert json.loads((tmp_path / "x.json").read_text())["num_samples"] == sum(written)


def test_overwrite_replaces(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"old" * 10_000)
    generate(checkpoint, path, duration=0.1, overwrite=True)
    assert len(_wave(path)) == 400


@pytest.mark.parametrize("bad", [{"num": 0}, {"duration": 0}, {"duration": float("nan")}, {"duration": 1e-9}])
def test_impossible_requests_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, bad: dict[str, float]
) -> None:
    with pytest.raises(UserError):
        generate(checkpoint, tmp_path / "x.wav", **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, *map(slow, [signal.SIGTERM, signal.SIGHUP])])
def test_an_ended_process_leaves_a_file_that_plays(
    trained_run: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """All but the last second is there: a file of the same seed begins with it."""
    path = tmp_path / "long.wav"
    command = [sys.executable, "-m", "samplernn", "generate", str(trained_run)]
    process = subprocess.Popen(
        [*command, "--duration", "3600", "--out", str(path)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 20_000):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    message = process.communicate(timeout=30)[1]
    assert process.returncode == -9 if how is signal.SIGKILL else 128 + how
    assert "Traceback" not in message
    written = _wave(path)
    assert len(written) * 2 >= path.stat().st_size - 2 * 4000
    assert np.array_equal(written, soundfile.read(path, dtype="int16")[0])
    blocks = stream(samplernn.load(trained_run), duration=len(written) / 4000)
    assert np.array_equal(np.concatenate(list(blocks), axis=1)[0], written)


# -- the same again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", *map(slow, ["flac", "ogg"])])
def test_a_sidecar_and_the_file_itself_make_it_again(
    checkpoint: Checkpoint, clips: Path, tmp_path: Path, suffix: str
) -> None:
    """One stream of several, with everything that can be said about it."""
    options = {
        "temperature": ["0:1.1,1:0.5", "0.8"],
        "top_k": 40,
        "top_p": 0.95,
        "prompt": [clips / "guitar" / "guit_em9.flac", _noise(tmp_path / "noise.wav")],
        "include_prompt": True,
        "on_trap": "rewind",
        "engine": "cpu",
        "dtype": "bfloat16",
    }
    out = tmp_path / "out"
    paths = generate(checkpoint, out, duration=1.23, num=4, seed=8, form=suffix, **options)  # type: ignore[arg-type]
    assert [path.name for path in paths] == [f"00{i}.{suffix}" for i in range(4)]
    made = paths[3]
    for like in (made, made.with_suffix(".json")):
        again = generate(checkpoint, tmp_path / f"again.{suffix}", like=like, overwrite=True)[0]
        assert np.array_equal(soundfile.read(again)[0], soundfile.read(made)[0])
        mine, original = (json.loads(path.with_suffix(".json").read_text()) for path in (again, made))
        assert mine == original
    if suffix != "ogg":  # an Ogg file has a random serial number
        assert again.read_bytes() == made.read_bytes()


def _noise(path: Path) -> Path:
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 3000), 4000)
    return path


def test_what_is_said_counts_more_than_what_it_shall_be_like(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = generate(checkpoint, tmp_path / "made.wav", duration=0.5, seed=8, temperature=0.7)[0]
    longer = generate(checkpoint, tmp_path / "longer.wav", like=made, duration=1.0)[0]
    assert np.array_equal(_wave(longer)[:2000], _wave(made))
    several = generate(checkpoint, tmp_path / "several", like=made, num=3)
    assert np.array_equal(_wave(several[0]), _wave(made))
    other = generate(checkpoint, tmp_path / "other.wav", like=made, seed=9)[0]
    plain = generate(checkpoint, tmp_path / "plain.wav", duration=0.5, seed=9, temperature=0.7)[0]
    assert np.array_equal(_wave(other), _wave(plain))


def test_a_fork_is_made_again_from_its_state(checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = tmp_path / "x.state"
    generate(checkpoint, tmp_path / "first.wav", duration=0.7, save_state=state, temperature=0.8)
    forks = generate(checkpoint, tmp_path / "forks", duration=0.5, from_state=state, num=3)
    facts = json.loads(forks[2].with_suffix(".json").read_text())
    assert (facts["temperature"], facts["stream"], facts["from_state"]["row"]) == (0.8, 2, 0)
    again = generate(checkpoint, tmp_path / "again.wav", like=forks[2])[0]
    assert np.array_equal(_wave(again), _wave(forks[2]))
    generate(checkpoint, tmp_path / "second.wav", duration=0.2, save_state=state)
    with pytest.raises(UserError, match=r"x.state: has changed since"):
        generate(checkpoint, tmp_path / "never.wav", like=forks[2])


def test_another_prompt_or_model_than_it_was_is_refused(
    checkpoint: Checkpoint, clips: Path, tmp_path: Path
) -> None:
    prompt = _noise(tmp_path / "noise.wav")
    made = generate(checkpoint, tmp_path / "made.wav", duration=0.2, prompt=prompt)[0]
    soundfile.write(prompt, np.zeros(3000), 4000)
    with pytest.raises(UserError, match=r"noise.wav: has changed since"):
        generate(checkpoint, tmp_path / "never.wav", like=made)
    own = {**checkpoint.weights, "sample_level_mlp.output.bias": torch.zeros(64)}
    with pytest.raises(UserError, match="is not the model that made"):
        generate(replace(checkpoint, weights=own), tmp_path / "never.wav", like=made)
    in_python = generate(checkpoint, tmp_path / "array.wav", duration=0.2, prompt=np.zeros(99, np.int16))[0]
    with pytest.raises(UserError, match="its prompt was in no file"):
        generate(checkpoint, tmp_path / "never.wav", like=in_python)
    for like, message in (
        (clips / "guitar" / "guit_em9.flac", "says nothing about"),
        ("no.json", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            generate(checkpoint, tmp_path / "never.wav", like=like)
    assert not (tmp_path / "never.wav").exists()


def test_traps_are_in_the_sidecar(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = generate(checkpoint, tmp_path / "x.wav", duration=4, temperature=0.0)[0]  # nothing but a cycle
    traps = json.loads(made.with_suffix(".json").read_text())["traps"]
    assert traps
    assert {"stream", "kind", "detail", "seconds", "until", "action"} == set(traps[0])
    assert traps[0]["kind"] in ("silence", "noise", "loop")
    assert f"at {traps[0]['seconds']:.1f} s: {traps[0]['kind']}" in capsys.readouterr().err


def test_a_killed_take_without_end_is_made_again_as_far_as_it_got(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    made = generate(checkpoint, tmp_path / "made.wav", duration=0.5)[0]
    facts = json.loads(made.with_suffix(".json").read_text())
    made.with_suffix(".json").write_text(json.dumps({**facts, "num_samples": None}))
    again = generate(checkpoint, tmp_path / "again.wav", like=made.with_suffix(".json"))[0]
    assert np.array_equal(_wave(again), _wave(made))


def test_names_are_also_looked_for_beside_the_sidecar(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studio").mkdir()
    monkeypatch.chdir(tmp_path / "studio")
    _noise(Path("noise.wav"))
    made = generate(checkpoint, "made.wav", duration=0.2, prompt="noise.wav")[0]
    whole = _wave(made)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(_wave(generate(checkpoint, "again.wav", like=Path("studio") / made)[0]), whole)


def test_of_a_state_each_stream_keeps_its_temperature_and_its_row(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    state, options = tmp_path / "x.state", {"temperature": [0.7, 1.0, 1.3], "seed": 2}
    takes = generate(checkpoint, tmp_path / "takes", duration=0.5, save_state=state, **options)  # type: ignore[arg-type]
    whole = generate(checkpoint, tmp_path / "whole", duration=0.8, **options)  # type: ignore[arg-type]
    fewer = generate(checkpoint, tmp_path / "fewer", duration=0.3, num=2, from_state=state)
    more = generate(checkpoint, tmp_path / "more", duration=0.3, num=5, from_state=state)
    for index in range(2):
        assert np.array_equal(_wave(fewer[index]), _wave(whole[index])[2000:])
        assert np.array_equal(_wave(more[index]), _wave(whole[index])[2000:])
    fork = json.loads(more[4].with_suffix(".json").read_text())
    assert (fork["stream"], fork["from_state"]["row"], fork["temperature"]) == (4, 1, 1.0)
    on = generate(checkpoint, tmp_path / "on.wav", like=takes[1], from_state=state, duration=0.3)[0]
    assert np.array_equal(_wave(on), _wave(whole[1])[2000:])
    greedy = generate(
        checkpoint, tmp_path / "greedy.wav", num=1, from_state=state, temperature=0, duration=0.3
    )[0]
    assert json.loads(greedy.with_suffix(".json").read_text())["temperature"] == 0


# -- nothing is lost ------------------------------------------------------------------------------------------


def test_a_request_that_fails_has_touched_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    mine = _noise(tmp_path / "mine.wav")
    before = mine.read_bytes()
    state = tmp_path / "x.state"
    generate(checkpoint, tmp_path / "take.wav", duration=0.1, save_state=state)
    other = replace(
        checkpoint, weights={**checkpoint.weights, "sample_level_mlp.output.bias": torch.zeros(64)}
    )
    with pytest.raises(UserError, match="is the prompt itself"):
        generate(checkpoint, mine, prompt=mine, overwrite=True)
    with pytest.raises(UserError, match="belongs to another model"):
        generate(other, mine, from_state=state, overwrite=True)
    with pytest.raises(UserError, match="belongs to another model"):
        generate(other, tmp_path / "new.wav", from_state=state)
    with pytest.raises(UserError, match=r"mine.wav: exists and is no state"):
        generate(checkpoint, tmp_path / "new.wav", save_state=mine)
    for clash in ("new.wav", "new.json"):
        with pytest.raises(UserError, match="is where audio goes"):
            generate(checkpoint, tmp_path / "new.wav", save_state=tmp_path / clash)
    with pytest.raises(UserError, match="cannot write the state"):
        generate(checkpoint, tmp_path / "new.wav", save_state=mine / "x.state")
    with pytest.raises(UserError, match="there is no prompt"):
        generate(checkpoint, tmp_path / "new.wav", include_prompt=True)
    with pytest.raises(UserError, match="cannot be written"):
        generate(checkpoint, tmp_path / ("x" * 300 + ".wav"))
    with pytest.raises(UserError, match="is a file; name a folder"):
        generate(checkpoint, state)
    assert mine.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.wav",
        "take.json",
        "take.wav",
        "x.state",
    ]


def test_a_state_that_cannot_be_renewed_does_not_end_the_take(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save, calls = Snapshot.save, []

    def sometimes(snapshot: Snapshot, file: Path) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise UserError("the disk is away")
        save(snapshot, file)

    monkeypatch.setattr(Snapshot, "save", sometimes)
    generate(checkpoint, tmp_path / "x.wav", duration=1.0, save_state=tmp_path / "x.state", every=0.2)
    assert len(calls) == 1 + 5 + 1  # in the beginning, on the way, in the end
    assert "warning: the disk is away; going on without it" in capsys.readouterr().err
    assert len(_wave(tmp_path / "x.wav")) == 4000


# -- real processes -----------------------------------------------------------------------------------------


def _command(trained_run: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "samplernn", "generate", str(trained_run), *map(str, arguments)]


@pytest.mark.slow
@pytest.mark.parametrize("batches", [5])
def test_kills_leave_files_that_play(
    trained_run: Path, checkpoint: Checkpoint, tmp_path: Path, batches: int
) -> None:
    """SIGKILL at any moment, four at a time: what is there is the stream's beginning, and its sidecar says which."""
    whole = np.concatenate(list(stream(checkpoint, duration=60)), axis=1)[0]
    rng = np.random.default_rng(5)
    for batch in range(batches):
        jobs = []
        for number in range(4):
            path = tmp_path / f"{batch}-{number}.{('wav', 'flac', 'ogg', 'wav')[number]}"
            command = _command(
                trained_run, "--duration", "inf", "--out", path, "--save-state", path.with_suffix(".state")
            )
            process = subprocess.Popen([*command, "--every", "0.5"], stderr=subprocess.DEVNULL)
            jobs.append((path, process))
        for path, process in jobs:
            deadline = time.monotonic() + 60
            while not (path.exists() and path.stat().st_size > 20_000):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
            process.wait()
            written = soundfile.read(path, dtype="int16")[0]
            assert len(written) > 1000
            if path.suffix != ".ogg":
                length = min(len(written), len(whole))
                assert np.array_equal(written[:length], whole[:length])
            facts = json.loads(path.with_suffix(".json").read_text())
            assert (facts["seed"], facts["num_samples"]) == (0, None)
            state = Snapshot.load(path.with_suffix(".state"))
            assert state.time + state.skip >= 2000
        assert not list(tmp_path.glob(".*.json.new"))


def test_after_ctrl_c_file_and_state_agree(trained_run: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, state = tmp_path / "x.flac", tmp_path / "x.state"
    command = _command(trained_run, "--duration", "inf", "--out", path, "--save-state", state)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    _wait_for(path, process)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "what is written so far plays" in message
    first = soundfile.read(path, dtype="int16")[0]
    assert json.loads(path.with_suffix(".json").read_text())["num_samples"] == len(first)
    second = np.concatenate(list(stream(checkpoint, duration=1.0, from_state=state)), axis=1)[0]
    whole = np.concatenate(list(stream(checkpoint, duration=len(first) / 4000 + 1)), axis=1)[0]
    assert np.array_equal(np.concatenate([first, second]), whole)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_wherever_a_signal_comes_file_sidecar_and_state_agree(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
    as_python_starts: None,
) -> None:
    """While a block is made, written, or counted, or the state is saved; also a second time; by the system's handler."""
    whole = np.concatenate(list(stream(checkpoint, duration=3)), axis=1)[0]
    path, state = tmp_path / "x.wav", tmp_path / "x.state"
    places = [(Playback, "__next__"), (FileSink, "write"), (Snapshot, "save"), (Playback, "snapshot")]
    for owner, name in places:
        for signals_at in ([4], [3, 4], [4, 4]):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, _raising(how, getattr(owner, name), signals_at))
                with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
                    generate(checkpoint, path, 2, save_state=state, every=0.1, overwrite=True, quiet=True)
            assert how == signal.SIGINT or caught.value.code == 128 + how
            first = soundfile.read(path, dtype="int16")[0]
            assert len(first) >= 400
            assert json.loads(path.with_suffix(".json").read_text())["num_samples"] == len(first)
            second = np.concatenate(list(stream(checkpoint, duration=0.5, from_state=state)), axis=1)[0]
            assert np.array_equal(np.concatenate([first, second]), whole[: len(first) + 2000])


@pytest.fixture
def as_python_starts() -> Iterator[None]:
    """The handlers of a program that has not set any."""
    handlers = Handlers(ENDING)
    for number in ENDING:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    handlers.put_back()


def _raising(how: signal.Signals, function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """The function, during whose calls of these numbers a signal comes."""
    count = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        for call in calls:
            if call == count:
                signal.raise_signal(how)
        return function(*arguments, **named)

    return wrapped


def test_a_signal_before_the_first_block_leaves_no_files(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Snapshot, "save", _raising(signal.SIGINT, Snapshot.save, [1]))
    with pytest.raises(KeyboardInterrupt):
        generate(checkpoint, tmp_path / "x.wav", 1, save_state=tmp_path / "x.state", quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"x.state"}
    assert Snapshot.load(tmp_path / "x.state").time == 0


def test_a_signal_while_the_prompt_is_written_waits_for_its_end(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is behind the prompt, so the file has to be."""
    path, state = tmp_path / "x.wav", tmp_path / "x.state"
    prompt = np.arange(-2000, 2000, dtype=np.int16)
    monkeypatch.setattr(FileSink, "write", _raising(signal.SIGINT, FileSink.write, [1]))
    with pytest.raises(KeyboardInterrupt):
        generate(
            checkpoint, path, 1, prompt=prompt, include_prompt=True, save_state=state, every=1, quiet=True
        )
    assert np.array_equal(soundfile.read(path, dtype="int16")[0], prompt)
    assert json.loads(path.with_suffix(".json").read_text())["num_samples"] == len(prompt)
    assert Snapshot.load(state).time == 0


def test_a_closed_pipe_leaves_a_state_that_goes_on_from_what_was_sent(
    trained_run: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    state = tmp_path / "x.state"
    command = _command(
        trained_run, "--duration", "inf", "--out", "-", "--format", "raw", "--save-state", state
    )
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert writer.stdout
    sent = np.frombuffer(writer.stdout.read(30_000), "<i2")
    writer.stdout.close()
    assert writer.wait(timeout=30) == 141
    snapshot = Snapshot.load(state)
    now = snapshot.time + snapshot.skip
    assert now >= len(sent)
    rest = np.concatenate(list(stream(checkpoint, duration=0.5, from_state=state)), axis=1)[0]
    whole = np.concatenate(list(stream(checkpoint, duration=now / 4000 + 0.5)), axis=1)[0]
    assert np.array_equal(rest, whole[now:])


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_reader_that_sleeps(trained_run: Path, tmp_path: Path) -> None:
    state = tmp_path / "x.state"
    command = _command(trained_run, "--duration", "inf", "--out", "-", "--save-state", state)
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout
    writer.stdout.read(1000)
    time.sleep(1.0)  # the pipe is full now
    writer.send_signal(signal.SIGINT)
    assert writer.wait(timeout=10) == 130
    assert Snapshot.load(state).time > 0


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 20_000):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("form", ["au", slow("raw")])
def test_a_pipe_gets_the_stream(trained_run: Path, checkpoint: Checkpoint, tmp_path: Path, form: str) -> None:
    command = _command(
        trained_run, "--duration", "1.5", "--out", "-", *(["--format", "raw"] if form == "raw" else [])
    )
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if form == "au":
        (tmp_path / "x.au").write_bytes(done.stdout)
        got, rate = soundfile.read(tmp_path / "x.au", dtype="int16")
        assert rate == 4000
    else:
        got = np.frombuffer(done.stdout, "<i2")
    assert np.array_equal(got, np.concatenate(list(stream(checkpoint, duration=1.5)), axis=1)[0])


def test_a_reader_that_closes_early_ends_it_in_one_line(
    trained_run: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    writer = subprocess.Popen(
        _command(trained_run, "--duration", "inf", "--out", "-"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout
    assert writer.stderr
    (tmp_path / "x.au").write_bytes(writer.stdout.read(10_000))
    writer.stdout.close()
    assert writer.wait(timeout=30) == 141
    message = writer.stderr.read().decode()
    assert "stopped: the reader closed the pipe after" in message
    assert "Traceback" not in message
    got = soundfile.read(tmp_path / "x.au", dtype="int16")[0]
    whole = np.concatenate(list(stream(checkpoint, duration=2)), axis=1)[0]
    assert len(got) > 4000
    assert np.array_equal(got, whole[: len(got)])


@pytest.mark.parametrize("suffix", ["wav", *map(slow, ["flac", "ogg"])])
def test_a_disk_that_is_full_is_one_line_and_the_file_plays_on(
    trained_run: Path, checkpoint: Checkpoint, small_disk: Path, suffix: str
) -> None:
    done = subprocess.run(
        _command(trained_run, "--duration", "inf", "--out", small_disk / f"x.{suffix}"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: {small_disk / f'x.{suffix}'}: writing failed after")
    assert "free some disk space" in error
    got = soundfile.read(small_disk / f"x.{suffix}", dtype="int16")[0]
    assert len(got) > 8000
    if suffix != "ogg":
        whole = np.concatenate(list(stream(checkpoint, duration=len(got) / 4000)), axis=1)[0]
        assert np.array_equal(got, whole)
    assert json.loads((small_disk / "x.json").read_text())["weights"] == checkpoint.weights_hash()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "hot"], "temperature 'hot': expected a number"),
        (["--temperature", "1", "2", "--num", "3"], ""),
        (["--temperature", "1", "2", "3", "--num", "2"], "3 of --temperature for 2 streams"),
        (["--prompt", "missing.wav"], "missing.wav: cannot be opened"),
        (["--from-state", "missing"], "missing: no such file; --save-state writes one"),
        (["--every", "3"], "needs --save-state FILE"),
        (["--out", "-", "--num", "2"], "one pipe or loudspeaker plays one stream, not 2"),
        (["--out", "-", "--format", "wav"], "--format wav cannot go into a pipe"),
        (["--out", "x.flac", "--format", "wav"], "says another format"),
        (["--format", "au"], "--format au: files can be wav, flac, ogg"),
        (["--duration", "nan"], "duration must be above 0"),
        (["--like", "missing.json"], "missing.json: cannot be read"),
        (["--on-trap", "panic"], "invalid choice"),
    ],
)
def test_nonsense_on_the_command_line_is_one_line(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    from samplernn.cli import main

    monkeypatch.chdir(tmp_path)
    code = main(["generate", str(trained_run), "--duration", "0.1", *arguments])
    said = capfd.readouterr()
    assert code == (2 if message else 0)
    assert message in said.err.splitlines()[-1]
    assert said.out == "" or not message
    assert list(tmp_path.rglob("*.*")) == [] or not message


DECODERS = {
    "flac": ["flac", "--decode", "--silent", "--force", "--output-name"],
    "sox": ["sox"],
    "ffmpeg": ["ffmpeg", "-loglevel", "error", "-y", "-i"],
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_another_decoder_reads_the_same_samples(
    checkpoint: Checkpoint, tmp_path: Path, decoder: str, suffix: str
) -> None:
    if shutil.which(decoder) is None:
        pytest.skip(f"{decoder} is not installed here")
    if (decoder, suffix) == ("flac", "wav"):
        pytest.skip("flac reads FLAC alone")
    path = generate(checkpoint, tmp_path / f"x.{suffix}", duration=1.5)[0]
    decoded = tmp_path / "decoded.wav"
    files = [decoded, path] if decoder == "flac" else [path, decoded]
    subprocess.run([*DECODERS[decoder], *map(str, files)], check=True, capture_output=True)
    assert np.array_equal(soundfile.read(decoded, dtype="int16")[0], soundfile.read(path, dtype="int16")[0])


def test_the_limit_to_open_files_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        allow_open(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 356
        asked = []
        monkeypatch.setattr(resource, "getrlimit", lambda which: (356, 512))
        monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
        with pytest.raises(UserError) as caught:
            allow_open(1100)
        assert str(caught.value) == (
            "--num 1100: too many open files: so many are written at once, and 356 may be; "
            "write fewer at a time, or raise the limit (ulimit -n)"
        )
        assert asked == [(512, 512)]
    finally:
        monkeypatch.undo()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
