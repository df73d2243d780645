"""Which files share audio: copies and cuts are found with their places, other music of the same sounds is not."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr

from samplernn.audio import takes
from samplernn.audio.corpus import AudioFile, prepare
from samplernn.audio.fingerprint import Fingerprint, Peaks, encode, steps_per_second
from samplernn.audio.io import load, to_int16
from samplernn.audio.split import leaked_seconds, split
from samplernn.audio.takes import Overlap, group, leaked, overlaps, shared
from samplernn.config import DataConfig
from tests.conftest import CLIPS

RATE = 16000


def file_of(x: np.ndarray, path: str = "a.wav", rate: int = RATE) -> AudioFile:
    """What the corpus would know of float samples `[n]`."""
    fingerprint = Fingerprint(rate)
    fingerprint.add(to_int16(x))
    fingerprint.finish()
    return AudioFile(path, len(x), "s", 0, 0.5, 0.0, 0, "", 0, 0, rate, 1, fingerprint=fingerprint.encoded)


def melody(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Notes of decaying harmonics, at random times, with a little noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(round(seconds * rate)) * 1e-4
    for _ in range(round(4 * seconds)):
        start, pitch = rng.integers(len(x)), 110 * 2 ** (rng.integers(0, 36) / 12)
        t = np.arange(min(rate // 2, len(x) - start)) / rate
        note = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in (1, 2, 3, 4))
        x[start : start + len(t)] += 0.05 * note * np.exp(-6 * t)
    return x


def mp3(x: np.ndarray, path: Path, rate: int = RATE) -> np.ndarray:
    sf.write(path, x, rate, format="MP3")
    return load(path, rate)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_cuts_of_one_recording_are_found_with_their_places(rate: int) -> None:
    x = melody(30, 0, rate)
    first, second, other = x[: 14 * rate], x[round(9.3 * rate) : 24 * rate], melody(14, 1, rate)
    (found,) = overlaps([file_of(part, rate=rate) for part in (first, other, second)], rate)
    assert (found.first, found.second) == (0, 2)
    assert found.start == pytest.approx(9.3, abs=0.02)
    assert found.shift == pytest.approx(-9.3, abs=0.02)
    assert found.seconds == pytest.approx(4.7, abs=0.04)


@pytest.mark.parametrize("clip", ["piano/satie_gymnopedie1_1", "speech/austen_0890", "speech/austen_0930"])
@pytest.mark.parametrize("kind", ["mp3", "quieter", "8 kHz", "later"])
def test_a_copy_is_found_all_over(clip: str, kind: str, tmp_path: Path) -> None:
    x = load(CLIPS / f"{clip}.flac", RATE)
    if kind == "mp3":
        copy = mp3(x, tmp_path / "copy.mp3")
    elif kind == "quieter":
        copy = 0.1 * x
    elif kind == "8 kHz":
        copy = soxr.resample(soxr.resample(x, RATE, 8000), 8000, RATE)
    else:
        copy = np.concatenate([np.zeros(12_345, np.float32), x])
    (found,) = overlaps([file_of(x), file_of(copy)], RATE)
    assert found.seconds == pytest.approx(len(x) / RATE, abs=0.1)
    assert found.shift == pytest.approx(12_345 / RATE if kind == "later" else 0.0, abs=0.1)


def test_other_sentences_and_sounds_are_nothing_to_each_other() -> None:
    clips = [
        *(CLIPS / "speech").glob("*.flac"),
        *(CLIPS / "tabla").glob("*.flac"),
        *(CLIPS / "guitar").glob("*.flac"),
    ]
    files = [file_of(load(path, RATE)) for path in sorted(clips)]
    assert overlaps([*files, *(file_of(melody(10, seed)) for seed in range(8))], RATE) == ()


def beat(seconds: int, seed: int, tune: float) -> np.ndarray:
    """The same drum samples in the same bars, and a tune of its own."""
    drums = np.random.default_rng(0)
    t = np.arange(RATE // 4) / RATE
    kick = np.sin(2 * np.pi * (50 * t + 1 - np.exp(-30 * t))) * np.exp(-12 * t)
    hat = drums.standard_normal(len(t)) * np.exp(-60 * t)
    x = np.zeros((seconds + 1) * RATE)
    for step in range(8 * seconds):
        at = step * RATE // 8
        if step % 4 == 0:
            x[at : at + len(t)] += 0.4 * kick
        if step % 4 == 2:
            x[at : at + len(t)] += 0.1 * hat
    return x[: seconds * RATE] + tune * melody(seconds, seed)


def test_loops_of_a_drum_machine_are_no_take_but_for_the_same_track() -> None:
    one, other = beat(16, 1, 1.0), beat(16, 2, 1.0)
    assert overlaps([file_of(one), file_of(other)], RATE) == ()
    (found,) = overlaps([file_of(one), file_of(other), file_of(one[5 * RATE :])], RATE)
    assert (found.first, found.second) == (0, 2)


def test_a_sample_that_two_tracks_share_for_a_moment_joins_nothing() -> None:
    one, other, sample = melody(12, 1), melody(12, 2), melody(1.5, 3)
    for track, place in ((one, 2), (other, 7)):
        track[place * RATE : place * RATE + len(sample)] = sample
    assert overlaps([file_of(one), file_of(other)], RATE) == ()


def test_half_a_minute_of_another_track_is_found_although_the_rest_differs() -> None:
    piece = melody(24, 3)
    one = np.concatenate([melody(15, 1), piece, melody(15, 4)])
    other = np.concatenate([melody(15, 2), piece, melody(15, 5)])
    (found,) = overlaps([file_of(one), file_of(other)], RATE)
    assert found.seconds == pytest.approx(24, abs=1)
    assert found.start == pytest.approx(15, abs=0.5)


@pytest.mark.parametrize("kind", ["hum", "noise", "silence", "clicks"])
def test_drones_noise_and_clicks_join_nothing(kind: str) -> None:
    def one(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        n, noise = 8 * RATE, rng.standard_normal(8 * RATE)
        if kind == "hum":
            t = np.arange(n) / RATE
            return 1e-3 * noise + sum(0.1 / k * np.sin(2 * np.pi * 50 * k * t) for k in range(1, 20))
        if kind == "noise":
            return 0.1 * noise
        if kind == "silence":
            return np.round(noise) / 32768
        x = np.zeros(n)
        x[rng.integers(0, n, 30)] = 0.5
        return x

    assert overlaps([file_of(one(seed)) for seed in range(6)], RATE) == ()


def test_nothing_and_short_files_are_no_trouble() -> None:
    assert overlaps([], RATE) == ()
    x = melody(1.9, 0)
    assert overlaps([file_of(x), file_of(x)], RATE) == ()


def random_peaks(seed: int, seconds: int = 20) -> Peaks:
    rng = np.random.default_rng(seed)
    count = 15 * seconds
    times = np.sort(rng.integers(0, round(seconds * steps_per_second(RATE)), count))
    return Peaks(times, rng.integers(30, 2000, count))


def with_peaks(peaks: Peaks) -> AudioFile:
    return AudioFile("a", 20 * RATE, "s", 0, 0.5, 0.0, 0, "", 0, 0, RATE, 1, fingerprint=encode(peaks))


def test_many_copies_of_one_recording_become_one_take() -> None:
    files = [with_peaks(random_peaks(seed)) for seed in range(30)]
    for late in range(120):
        peaks = random_peaks(7)
        files.append(with_peaks(Peaks(peaks.times + 10 * late, peaks.bins)))
    found = group(len(files), overlaps(files, RATE))
    sizes = sorted(len(take) for take in found)
    assert sizes == [1] * 29 + [121]


def test_work_is_bounded_where_all_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takes, "_MAX_HITS", 20_000)
    rng = np.random.default_rng(0)
    drones = [random_peaks(seed)._replace(bins=rng.choice([400, 800, 1200], 300)) for seed in range(60)]
    index = takes._index([with_peaks(peaks) for peaks in drones], RATE)
    pairs = list(takes._candidates(index))
    assert len(takes._hits(index, 30)) <= 60 * 300 * 3  # the first round is always whole
    assert len(pairs) <= 60 * takes._COMPARED


def test_takes_are_joined_by_way_of_others() -> None:
    found = [Overlap(0, 3, 0, 0, 5), Overlap(2, 3, 0, 0, 5), Overlap(4, 5, 0, 0, 5)]
    assert group(7, found) == [[0, 2, 3], [1], [4, 5], [6]]
    assert group(0, []) == []


def test_shared_seconds_count_once() -> None:
    found = [Overlap(0, 1, 2.0, 1.0, 4.0), Overlap(0, 2, 5.0, -5.0, 3.0)]
    assert shared(found) == {0: 6.0, 1: 4.0, 2: 3.0}


def brute_leaks(found: list[Overlap], train: takes.Stretches, held: takes.Stretches) -> float:
    """By sampling every hundredth of a second."""
    count = 0
    for file, tick in itertools.product(range(4), range(2000)):
        t = tick / 100 + 0.005
        if not any(a <= t < b for a, b in held.get(file, ())):
            continue
        places = [
            (o.second, t + o.shift) for o in found if o.first == file and o.start <= t < o.start + o.seconds
        ]
        places += [
            (o.first, t - o.shift)
            for o in found
            if o.second == file and o.start <= t - o.shift < o.start + o.seconds
        ]
        count += any(a <= at < b for other, at in places for a, b in train.get(other, ()))
    return count / 100


def test_leaks_are_what_training_hears_elsewhere() -> None:
    found = [Overlap(0, 1, 2.0, 1.0, 6.0), Overlap(1, 2, 0.0, 3.0, 9.0), Overlap(0, 3, 0.0, 0.0, 10.0)]
    train = {0: [(0.0, 5.0)], 2: [(4.0, 6.0)], 3: [(9.0, 12.0)]}
    held = {1: [(0.0, 10.0)], 0: [(8.0, 12.0)], 3: [(0.0, 2.0)]}
    expected = 3.0 + 2.0 + 1.0 + 2.0
    assert leaked(found, train, held) == pytest.approx(expected)
    assert brute_leaks(found, train, held) == pytest.approx(expected)
    assert leaked(found, {}, held) == leaked([], train, held) == 0.0


def test_the_corpus_deals_copies_and_cuts_to_one_side(tmp_path: Path) -> None:
    """From files to the split: the same take as WAV and MP3, and pieces that overlap."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for seed in range(8):
        sf.write(folder / f"other {seed}.wav", melody(8, seed), RATE)
    long = melody(16, 100)
    sf.write(folder / "piece 1.wav", long[: 9 * RATE], RATE)
    sf.write(folder / "piece 2.wav", long[6 * RATE :], RATE)
    sf.write(folder / "other 3.mp3", melody(8, 3), RATE, format="MP3")
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache"))
    together = [[file.path for file in take] for take in corpus.takes if len(take) > 1]
    assert together == [["other 3.mp3", "other 3.wav"], ["piece 1.wav", "piece 2.wav"]]
    leaks = []
    for seed in range(12):
        assert leaked_seconds(corpus, split(corpus, seed)) == 0
        leaks.append(leaked_seconds(corpus, split(corpus, seed, keep_takes_together=False)))
    assert max(leaks) > 2.5
    assert pickle.loads(pickle.dumps(corpus)).overlaps == corpus.overlaps


def test_what_was_found_is_kept_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = melody(12, 0)
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio" / "a.flac", x, RATE)
    sf.write(tmp_path / "audio" / "b.flac", x[RATE * 3 :], RATE)
    first = prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache")).overlaps
    assert [(one.first, one.second) for one in first] == [(0, 1)]
    kept = next((tmp_path / "cache").rglob("overlaps.json"))
    with monkeypatch.context() as patch:
        patch.setattr(takes, "overlaps", lambda *_: pytest.fail("compared again"))
        assert (
            prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache")).overlaps
            == first
        )
    whole = kept.read_text()
    infinite = whole.replace('"overlaps": [', '"overlaps": [[Infinity, 1, 0, 0, 1],')
    assert infinite != whole
    for damaged in ("", "[]", '{"key": 1}', whole.replace('"overlaps": [', '"overlaps": [[7],'), infinite):
        kept.write_text(damaged)
        assert (
            prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache")).overlaps
            == first
        )
    sf.write(tmp_path / "audio" / "b.flac", melody(9, 1), RATE)
    assert (
        prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache")).overlaps == ()
    )
