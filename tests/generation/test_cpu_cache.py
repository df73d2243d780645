"""Numba's cache: without a place for it, full, damaged; the engine runs."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core import caching

import samplernn
from samplernn.generation.engines.cpu_cache import Kept


def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Numba keeps what the test compiles; it looks nowhere else."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])
    return tmp_path


def _hits(kept: Kept) -> int:
    function = kept.compiled(add)
    found: list[int] = []
    kept.call(lambda: found.append(function(1, 2)))
    assert found == [3]
    return sum(function.stats.cache_hits.values())  # type: ignore[attr-defined]


def test_what_was_compiled_is_kept(folder: Path) -> None:
    assert [_hits(Kept()), _hits(Kept())] == [0, 1]


def test_without_a_place_it_is_compiled_each_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder / "file" / "below"))
    kept = Kept()
    assert [_hits(kept), _hits(kept)] == [0, 0]
    assert kept.problem == "there is no folder to keep it in; NUMBA_CACHE_DIR may name one"


def test_a_full_disk_is_no_reason_to_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    kept = Kept()
    assert _hits(kept) == 0
    assert kept.problem == "it cannot be kept (OSError: [Errno 28] No space left on device)"


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_what_is_damaged_is_made_anew(folder: Path, suffix: str, content: bytes | None) -> None:
    """Empty after a power cut, something else, or cut short."""
    _hits(Kept())
    (file,) = folder.rglob(f"*.{suffix}")
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    kept = Kept()
    assert _hits(kept) == 0
    assert kept.problem == ""
    assert _hits(Kept()) == 1


def test_an_error_of_the_work_itself_is_raised(folder: Path) -> None:
    kept, calls = Kept(), []

    def work() -> None:
        calls.append(1)
        raise pickle.UnpicklingError("always")

    kept.compiled(add)
    with pytest.raises(pickle.UnpicklingError, match="always"):
        kept.call(work)
    assert len(calls) == 3  # as it was, with an empty cache, without one
    kept = Kept()
    with pytest.raises(numba.core.errors.TypingError):
        kept.call(lambda: kept.compiled(add)(1, "one"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_generate_needs_no_place_that_can_be_written(trained_run: Path, tmp_path: Path) -> None:
    """The package read-only, no home: __pycache__ and all other places are below a file here."""
    nowhere = tmp_path / "file"
    nowhere.touch()
    package = Path(samplernn.__file__).parent
    copied = tmp_path / "lib" / "samplernn"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("__pycache__", "clips"))
    for folder in [copied, *(path for path in copied.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").touch()
    places = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere / "x", "NUMBA_CACHE_DIR": nowhere / "y"}
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}}
    process = subprocess.run(
        [sys.executable, "-m", "samplernn", "generate", trained_run, "--duration", "0.5", "--out", "x.wav"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(copied.parent)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert "each time, for there is no folder to keep it in; NUMBA_CACHE_DIR may name one" in process.stderr
    assert (tmp_path / "x.wav").stat().st_size > 4000
