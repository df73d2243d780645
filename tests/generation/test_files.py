"""WAV files: lengths, readers, prompts, seeds, interruption by SIGKILL and SIGINT."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import samplernn
from samplernn.audio.io import load, to_int16
from samplernn.audio.sinks import FileSink
from samplernn.config import UserError
from samplernn.generation.files import generate, output_paths
from samplernn.generation.stream import BLOCK_SECONDS, Generator, Request, stream
from samplernn.model.checkpoint import Checkpoint


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
    codes = generator._prompt_codes(prompt).tolist()
    expected = checkpoint.quantizer.encode(torch.from_numpy(prompt / 32768 * checkpoint.gain))
    assert codes == [32] * 5 + expected.tolist()


def test_output_has_the_gain_undone(checkpoint: Checkpoint) -> None:
    generator = Generator(checkpoint)
    heard = np.concatenate(list(generator.stream(Request(4000))), axis=1)
    levels = checkpoint.quantizer.decode(torch.arange(64)).numpy()
    allowed = np.clip(np.round(levels / checkpoint.gain * 32768), -32768, 32767)
    assert set(heard.ravel().tolist()) <= set(allowed.astype(int).tolist())


@pytest.mark.parametrize(
    ("out", "num", "message"),
    [
        ("x.wav", 2, "cannot hold 2 streams"),
        ("x.mp3", 1, "only .wav files"),
        ("-", 1, "standard output"),
        ("taken", 1, "exists already"),
    ],
)
def test_output_that_cannot_be_is_refused(tmp_path: Path, out: str, num: int, message: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "000.wav").touch()
    with pytest.raises(UserError, match=message):
        output_paths(out if out == "-" else tmp_path / out, num)


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


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
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
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[how]
    assert "Traceback" not in message
    written = _wave(path)
    assert len(written) * 2 + 44 >= path.stat().st_size - 2 * 4000
    assert np.array_equal(written, soundfile.read(path, dtype="int16")[0])
    blocks = stream(samplernn.load(trained_run), duration=len(written) / 4000)
    assert np.array_equal(np.concatenate(list(blocks), axis=1)[0], written)
