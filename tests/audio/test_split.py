from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import samplernn
from samplernn.audio.corpus import AudioFile, Corpus, Overlap, prepare
from samplernn.audio.split import Span, Split, leaked_seconds, locate, split
from samplernn.config import DataConfig, UserError

CLIPS = Path(next(iter(samplernn.__path__))) / "clips"
RATE = 16000


def corpus_of(*lengths: int) -> Corpus:
    """A corpus of files with these lengths in samples, without any samples."""
    files = tuple(
        AudioFile(f"{i:03}.wav", n, "s.i16", 0, 0.5, 0.0, 0, f"hash{i}", 0, 0, RATE, 1)
        for i, n in enumerate(lengths)
    )
    return Corpus(Path("folder"), RATE, 1.0, files, (), Path("none"))


def with_overlaps(corpus: Corpus, *pairs: tuple[int, int]) -> Corpus:
    """As if files shared all of their audio, from the first sample on."""
    lengths = [file.num_samples / RATE for file in corpus.files]
    found = tuple(Overlap(a, b, 0.0, 0.0, min(lengths[a], lengths[b])) for a, b in pairs)
    vars(corpus)["overlaps"] = found  # where the cached property keeps it
    return corpus


def total(spans: tuple[Span, ...]) -> int:
    return sum(span.stop - span.start for span in spans)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=40), st.integers(0, 10))
def test_split_parts_never_share_audio(lengths: list[int], seed: int) -> None:
    corpus = corpus_of(*lengths)
    by_time = len(lengths) < 3 or max(lengths) > 0.8 * sum(lengths)
    if by_time and sum(lengths) < 0.1 * RATE:
        with pytest.raises(UserError, match=r"at least 0\.1 s"):
            split(corpus, seed)
        return
    parts = split(corpus, seed)
    assert all([parts.train, parts.validation, parts.test])
    spans = [*parts.train, *parts.validation, *parts.test]
    size = {file.path: file.num_samples for file in corpus.files}
    assert leaked_seconds(corpus, parts) == 0
    assert all(0 <= span.start < span.stop <= size[span.path] for span in spans)
    for one, other in itertools.combinations(spans, 2):
        if one.path == other.path:
            assert by_time
            gap = max(other.start - one.stop, one.start - other.stop)
            assert gap >= min(RATE, size[one.path] // 50)
    if not by_time:
        assert {(span.path, span.start, span.stop) for span in spans} == {(p, 0, n) for p, n in size.items()}


def test_split_by_file_takes_a_tenth_each() -> None:
    parts = split(corpus_of(*[RATE] * 100), 0)
    assert [total(part) // RATE for part in (parts.train, parts.validation, parts.test)] == [80, 10, 10]


def test_split_by_file_lets_long_files_train() -> None:
    lengths = (79 * RATE, 15 * RATE, 6 * RATE)
    for seed in range(5):
        parts = split(corpus_of(*lengths), seed)
        assert [span.path for span in parts.train] == ["000.wav"]


def test_split_by_time_of_one_long_file() -> None:
    n = 100 * RATE
    parts = split(corpus_of(n), 0)
    spans = [(span.start / RATE, span.stop / RATE) for (span,) in (parts.train, parts.validation, parts.test)]
    assert spans == [(0, 80), (81, 91), (92, 100)]


def test_split_depends_on_seed_and_path_alone() -> None:
    corpus = corpus_of(*[RATE] * 50)
    parts = split(corpus, 0)
    assert split(corpus, 0) == parts
    assert split(corpus, 1) != parts
    # pinned: a change here would silently move test audio into the training part of old runs
    assert [span.path[:3] for span in parts.test] == ["000", "008", "030", "043", "044"]
    longer = split(corpus_of(*[RATE] * 51), 0)
    assert len({span.path for span in longer.test} - {span.path for span in parts.test}) <= 2


@settings(max_examples=200)
@given(
    st.lists(st.integers(RATE, 60 * RATE), min_size=3, max_size=30),
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=20),
    st.integers(0, 10),
)
def test_takes_stay_on_one_side_where_that_can_be(
    lengths: list[int], pairs: list[tuple[int, int]], seed: int
) -> None:
    known = sorted({(min(a, b), max(a, b)) for a, b in pairs if a != b and max(a, b) < len(lengths)})
    corpus = with_overlaps(corpus_of(*lengths), *known)
    sizes = [sum(file.num_samples for file in take) for take in corpus.takes]
    parts = split(corpus, seed)
    assert all([parts.train, parts.validation, parts.test])
    if len(sizes) >= 3 and max(sizes) <= 0.8 * sum(sizes):
        side = {span.path: name for name in ("train", "validation", "test") for span in getattr(parts, name)}
        assert all(len({side[file.path] for file in take}) == 1 for take in corpus.takes)
        assert len(side) == len(lengths)
        assert leaked_seconds(corpus, parts) == 0
    else:
        apart = split(corpus, seed, keep_takes_together=False)
        held_out, as_before = (total((*some.validation, *some.test)) for some in (parts, apart))
        assert leaked_seconds(corpus, parts) / held_out <= leaked_seconds(corpus, apart) / as_before


def test_takes_change_nothing_where_there_are_none_or_the_option_is_off() -> None:
    plain = split(corpus_of(*[RATE] * 50), 0)
    corpus = with_overlaps(corpus_of(*[RATE] * 50), (8, 20), (20, 30))
    assert split(corpus, 0, keep_takes_together=False) == plain
    assert leaked_seconds(corpus, plain) == 2.0  # 8 and 30 test, and 20 trains
    together = split(corpus, 0)
    assert leaked_seconds(corpus, together) == 0
    test = {span.path[:3] for span in together.test}
    assert {"008", "020", "030"} <= test
    assert len(test - {span.path[:3] for span in plain.test}) <= 2


def test_copies_of_one_recording_alone_are_split_by_time() -> None:
    corpus = with_overlaps(corpus_of(*[100 * RATE] * 4), (0, 1), (1, 2), (2, 3), (0, 2), (0, 3), (1, 3))
    by_file = split(corpus, 0, keep_takes_together=False)
    assert leaked_seconds(corpus, by_file) == 200.0
    parts = split(corpus, 0)
    assert [(span.start, span.stop) for span in parts.train] == [(0, 80 * RATE)] * 4
    assert leaked_seconds(corpus, parts) == 0


def test_overlapping_pieces_of_one_recording_are_split_by_file_as_nothing_is_better() -> None:
    corpus = corpus_of(*[20 * RATE] * 30)
    vars(corpus)["overlaps"] = tuple(Overlap(i, i + 1, 10.0, -10.0, 10.0) for i in range(29))
    assert split(corpus, 0) == split(corpus, 0, keep_takes_together=False)
    assert leaked_seconds(corpus, split(corpus, 0)) > 0


def test_split_survives_json() -> None:
    parts = split(corpus_of(*[RATE] * 5), 0)
    assert Split.from_dict(json.loads(json.dumps(parts.to_dict()))) == parts


def test_locate_finds_audio_that_was_moved_and_renamed(tmp_path: Path) -> None:
    folder, cache = tmp_path / "audio", tmp_path / "cache"
    shutil.copytree(CLIPS / "tabla", folder)
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    parts = split(corpus, 0)
    expected = [corpus.read(*place).tolist() for place in locate(corpus, parts.train)]
    moved = folder.parent / "moved" / "deeper"
    shutil.copytree(folder, moved)
    for path in list(moved.iterdir()):
        path.rename(path.with_name(f"renamed {path.name}"))
    other = prepare(moved.parent, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert [other.read(*place).tolist() for place in locate(other, parts.train)] == expected
    (moved / f"renamed {parts.train[0].path}").unlink()
    fewer = prepare(moved.parent, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert [fewer.read(*place).tolist() for place in locate(fewer, parts.train)] == expected[1:]
