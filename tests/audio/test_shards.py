from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import samplernn
from samplernn.audio import shards
from samplernn.audio.files import Source

CLIPS = Path(next(iter(samplernn.__path__))) / "clips"


@given(st.lists(st.tuples(st.text("abcdefgh", min_size=1), st.integers(0, 2**23)), unique_by=lambda s: s[0]))
def test_a_new_file_touches_at_most_the_group_it_falls_into(files: list[tuple[str, int]]) -> None:
    sources = sorted((Source(path, size, 0) for path, size in files), key=lambda s: s.path)
    groups = shards.group(sources)
    assert list(itertools.chain(*groups)) == sources
    extra = Source("d", 2**20, 1)
    grown = shards.group(sorted([*sources, extra], key=lambda s: s.path))
    assert len(set(groups) - set(grown)) <= 1


def test_shards_are_of_bounded_size() -> None:
    small = shards.group([Source(f"{i:05}.wav", 1000, 0) for i in range(5000)])
    assert 100 < len(small) < 230  # 32 files each
    large = shards.group([Source(f"{i:05}.wav", 20 * 2**20, 0) for i in range(50)])
    assert len(large) == 50


def test_interrupted_builds_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "decode_into", interrupted)
    source = Source("piano/satie_gymnopedie1_1.flac", 1, 1)
    with pytest.raises(KeyboardInterrupt):
        shards.make_shard(CLIPS, [source], 16000, tmp_path, "key", store=True)
    assert list(tmp_path.iterdir()) == []
