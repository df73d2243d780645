from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.corpus import AudioFile, Corpus, Overlap, prepare
from samplernn.audio.health import kept_together, leak, remarks
from samplernn.audio.split import Span, Split, split
from samplernn.config import DataConfig
from tests.conftest import CLIPS

RATE = 16000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One good file; the tests add others."""
    (tmp_path / "audio").mkdir()
    write(tmp_path / "audio" / "m good.wav", note())
    return tmp_path / "audio"


def note(seconds: float = 1.0, frequency: float = 220, gain: float = 0.5, rate: int = RATE) -> np.ndarray:
    return gain * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    sf.write(path, samples, rate)  # PCM-16, clipped at full scale


def said(folder: Path, tmp_path: Path) -> list[tuple[str, str]]:
    found = remarks(
        prepare(folder, DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache")), tbptt_len=1024
    )
    assert all(problem.remedy for problem in found)
    return [(problem.path, problem.problem) for problem in found]


def test_a_good_folder_has_no_remarks(folder: Path, tmp_path: Path) -> None:
    write(folder / "normalised.wav", note(gain=32767 / 32768))
    write(folder / "exactly a chunk.wav", note(1024 / RATE, frequency=500))
    assert said(folder, tmp_path) == []


def test_the_embedded_clips_are_sound_but_for_the_offset_of_some_drums() -> None:
    for remark in remarks(prepare(CLIPS, DataConfig(sample_rate=RATE)), 1024):
        assert remark.path.startswith("tabla/")
        assert "DC offset" in remark.problem


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_clipping_is_seen_at_any_rate_and_in_one_channel(
    folder: Path, tmp_path: Path, rate: int, channels: int
) -> None:
    clean, clipped = note(rate=rate), note(gain=2, rate=rate)
    write(folder / "x.wav", np.stack([clean, clipped], axis=1)[:, -channels:], rate)
    write(folder / "y.wav", np.stack([clean, note(frequency=330, rate=rate)], axis=1), rate)
    ((path, problem),) = said(folder, tmp_path)
    assert path == "x.wav"
    assert "is clipped (6" in problem


def test_files_that_are_left_out_come_first(folder: Path, tmp_path: Path) -> None:
    write(folder / "a offset.wav", note() * 0.9 + 0.05)
    write(folder / "b short.wav", note(0.02, frequency=200))
    (folder / "z empty.wav").touch()
    assert said(folder, tmp_path) == [
        ("z empty.wav", "is empty (0 bytes)"),
        ("a offset.wav", "has a DC offset of 5 % of full scale"),
        ("b short.wav", "lasts 20 ms, less than a chunk (64 ms)"),
    ]


def overlapping(count: int, *pairs: tuple[int, int], seconds: float = 10.0) -> Corpus:
    """Files of ten seconds without samples, of which pairs share audio from their first sample on."""
    files = tuple(
        AudioFile(f"{i}.wav", 10 * RATE, "s.i16", 0, 0.5, 0.0, 0, f"hash{i}", 0, 0, RATE, 1)
        for i in range(count)
    )
    corpus = Corpus(Path("folder"), RATE, 1.0, files, (), Path("none"))
    vars(corpus)["overlaps"] = tuple(Overlap(a, b, 0.0, 0.0, seconds) for a, b in pairs)
    return corpus


def test_audio_that_is_held_out_and_trained_on_is_said_with_its_length_and_a_remedy() -> None:
    corpus = overlapping(12, (0, 5), (5, 7))
    together = split(corpus, 0)
    assert leak(corpus, together, True) is None
    apart = Split(
        train=tuple(span for span in split(overlapping(12), 0).train if span.path != "5.wav"),
        validation=(Span("5.wav", "hash5", 0, 5 * RATE),),
        test=(Span("11.wav", "hash11", 0, 10 * RATE),),
    )
    assert {"0.wav", "7.wav"} & {span.path for span in apart.train}
    said = leak(corpus, apart, False)
    assert said is not None
    assert said.startswith("5.0 s of the 15.0 s held out are in other files that train")
    assert said.endswith("leave data.keep_takes_together on")
    assert str(leak(corpus, apart, True)).endswith("a new run does so")


def test_one_recording_in_pieces_is_said_to_be_one() -> None:
    corpus = overlapping(4, (0, 1), (1, 2), (2, 3), (0, 2), (0, 3), (1, 3))
    assert leak(corpus, split(corpus, 0), True) is None  # by time
    assert kept_together(corpus) == (
        "4 files share audio: they hold one recording, or little else, which cannot be kept on one side of the split"
    )
    by_file = split(corpus, 0, keep_takes_together=False)
    assert str(leak(corpus, by_file, True)).endswith("so add others, or remove the copies")


def test_files_that_share_audio_are_counted() -> None:
    assert kept_together(overlapping(5)) is None
    assert (
        kept_together(overlapping(9, (0, 1), (3, 4), (4, 5))) == "5 files share audio and are kept together"
    )
