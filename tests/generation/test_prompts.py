"""Prompts: any format, rate and length; heard in pieces as in one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

import samplernn
from samplernn.audio.io import AudioError, load, to_int16
from samplernn.config import UserError
from samplernn.generation.engines.base import PREFILL_CHUNK
from samplernn.generation.playback import Generator
from samplernn.generation.prompts import Prompt, in_pieces, open_prompts
from samplernn.generation.request import Request
from samplernn.model.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def checkpoint(trained_run: Path) -> Checkpoint:
    return samplernn.load(trained_run)


@given(lengths=st.lists(st.integers(0, 40), max_size=8), first=st.integers(1, 30), size=st.integers(1, 30))
def test_pieces_are_the_blocks_again(lengths: list[int], first: int, size: int) -> None:
    samples = np.arange(sum(lengths), dtype=np.int16)
    blocks = np.split(samples, np.cumsum(lengths)[:-1]) if lengths else []
    pieces = list(in_pieces(blocks, first, size))
    assert np.array_equal(np.concatenate([samples[:0], *pieces]), samples)
    wanted = [first, *[size] * len(samples)][: len(pieces)]
    assert [len(piece) for piece in pieces[:-1]] == wanted[:-1]
    assert all(0 < len(piece) <= most for piece, most in zip(pieces, wanted, strict=True))


def test_a_file_sounds_like_its_samples(clips: Path) -> None:
    """16 kHz FLAC at the model's 4 kHz, twice."""
    file = clips / "guitar" / "guit_em9.flac"
    prompt, samples = Prompt.of_file(file, 4000), to_int16(load(file, 4000))
    assert prompt.num_samples == len(samples)
    assert prompt.sha256 == Prompt.of_samples(samples).sha256
    for _ in range(2):
        assert np.array_equal(np.concatenate(list(prompt.blocks())), samples)


def test_a_folder_is_all_its_recordings_in_order(clips: Path, tmp_path: Path) -> None:
    for name in ("b.flac", "a.flac"):
        shutil.copy(clips / "guitar" / "guit_em9.flac", tmp_path / name)
    (tmp_path / "notes.txt").write_text("not audio")
    prompts = open_prompts(tmp_path, 4000)
    assert [prompt.file and prompt.file.name for prompt in prompts] == ["a.flac", "b.flac"]
    both = open_prompts([tmp_path / "b.flac", np.zeros(5, np.int16)], 4000)
    assert [prompt.num_samples for prompt in both] == [prompts[0].num_samples, 5]


@pytest.mark.parametrize("rate", [8000, 44_100])
@pytest.mark.parametrize("format", ["WAV", "OGG", "AIFF"])
def test_any_format_and_rate(tmp_path: Path, format: str, rate: int) -> None:
    file = tmp_path / f"x.{format.lower()}"
    soundfile.write(file, 0.1 * np.sin(np.arange(rate)[:, None] * [0.1, 0.2]), rate, format=format)
    assert open_prompts(str(file), 4000)[0].num_samples == pytest.approx(4000, abs=2)


def test_what_is_no_prompt_is_refused(tmp_path: Path, clips: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.wav").write_text("not audio")
    for wrong, message in (
        (tmp_path / "missing.wav", "cannot be opened"),
        (tmp_path / "text.wav", "not readable as audio"),
        (tmp_path / "empty", "holds no audio"),
        (np.zeros((2, 5), np.int16), r"int16 \[T\]"),
        (np.zeros(5, np.float32), r"int16 \[T\]"),
    ):
        with pytest.raises(UserError, match=message):
            open_prompts(wrong, 4000)  # type: ignore[arg-type]


def test_a_cut_prompt_is_used_and_reported(clips: Path, tmp_path: Path) -> None:
    content = (clips / "guitar" / "guit_em9.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    prompt = Prompt.of_file(tmp_path / "cut.flac", 4000)
    assert prompt.num_samples > 1000
    assert [isinstance(problem, AudioError) for problem in prompt.problems] == [True]


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("extra", [-3, 0, 5])
def test_a_long_prompt_is_heard_in_pieces_as_at_once(checkpoint: Checkpoint, engine: str, extra: int) -> None:
    samples = np.random.default_rng(0).normal(0, 3000, 2 * PREFILL_CHUNK + extra).astype(np.int16)
    generator = Generator(checkpoint, engine)
    heard: list[int] = []
    state = generator.hear(Prompt.of_samples(samples), heard.append)
    assert len(heard) >= 2
    assert sum(heard) == len(samples)
    padded = np.pad(samples, (-len(samples) % 8, 0))
    generator.engine.start(1)
    generator.engine.prefill(torch.from_numpy(generator.codec.encode(padded)))
    at_once = generator.engine.export_state()
    assert all((a == b).all() for a, b in zip(state.network.rnn, at_once.network.rnn, strict=True))
    assert (state.network.history == at_once.network.history).all()


def test_each_stream_has_its_own_prompt(checkpoint: Checkpoint) -> None:
    prompts = tuple(
        Prompt.of_samples(np.random.default_rng(i).normal(0, 5000, 500 + i).astype(np.int16))
        for i in range(2)
    )
    generator = Generator(checkpoint)

    def play(**request: object) -> np.ndarray:
        return np.concatenate(list(generator.stream(Request(800, **request))), axis=1)  # type: ignore[arg-type]

    both = play(streams=(0, 1), prompts=prompts)
    assert np.array_equal(both[:1], play(streams=(0,), prompts=prompts[:1]))
    assert np.array_equal(both[1:], play(streams=(1,), prompts=prompts[1:]))
    assert not np.array_equal(both[1], play(streams=(0, 1), prompts=prompts[:1])[1])
    with pytest.raises(UserError, match="2 of --prompt for 3 streams"):
        play(streams=(0, 1, 2), prompts=prompts)
