"""Files that appear whole or not at all, on disks that refuse now and then."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from samplernn import storage


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, in no time."""
    found: list[float] = []
    monkeypatch.setattr(storage, "sleep", found.append)
    return found


class Refusing:
    """Fails a number of times.

    Args:
        error: with this.
        times: so often.
    """

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    def __call__(self, *arguments: object) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "done"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY])
def test_what_may_pass_is_tried_again_with_growing_waits(waits: list[float], number: int) -> None:
    work = Refusing(OSError(number, "refused"), 3)
    assert storage.patiently(work) == "done"
    assert waits == [0.1, 0.3, 1.0]
    lasting = Refusing(OSError(number, "refused"), 100)
    with pytest.raises(OSError, match="refused"):
        storage.patiently(lasting)
    assert lasting.calls == 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOENT])
def test_what_lasts_is_said_at_once(waits: list[float], number: int) -> None:
    work = Refusing(OSError(number, "refused"), 100)
    with pytest.raises(OSError, match="refused"):
        storage.patiently(work, replaces=True)
    assert (work.calls, waits) == (1, [])


def test_only_a_file_that_is_there_may_be_held_by_another_program(waits: list[float]) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied")
    assert storage.patiently(Refusing(refused, 4), replaces=True) == "done"
    assert len(waits) == 4
    with pytest.raises(PermissionError):
        storage.patiently(Refusing(refused, 1))


def test_an_error_that_hides_what_the_system_said_counts_alike(waits: list[float]) -> None:
    hidden, other = ValueError("writing failed"), ValueError("something else")
    hidden.__context__ = OSError(errno.EIO, "Input/output error")
    assert storage.patiently(Refusing(hidden, 1)) == "done"
    with pytest.raises(ValueError, match="something else"):
        storage.patiently(Refusing(other, 1))


def test_a_file_is_replaced_as_soon_as_the_other_program_closes_it(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    file.write_text("old")
    refuse, replace = Refusing(PermissionError(errno.EACCES, "Permission denied"), 2), Path.replace

    def held(partial: Path, path: Path) -> Path:
        assert file.read_text() == "old"
        refuse()
        return replace(partial, path)

    monkeypatch.setattr(Path, "replace", held)
    storage.write_text(file, "new")
    assert file.read_text() == "new"
    assert len(waits) == 2
    refuse.times = 100
    file.write_text("old")
    with pytest.raises(PermissionError):
        storage.write_text(file, "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert file.read_text() == "old"


def test_a_file_is_written_from_its_beginning_each_time(tmp_path: Path, waits: list[float]) -> None:
    refuse = Refusing(OSError(errno.ESTALE, "Stale file handle"), 2)

    def write(partial: Path) -> None:
        assert partial.suffix == ".wav"  # by which a writer may go
        with partial.open("wb") as file:
            file.write(b"whole"[: refuse.calls + 3])
            refuse()

    storage.write_whole(tmp_path / "a.wav", write)
    assert (tmp_path / "a.wav").read_bytes() == b"whole"
    storage.write_to_disk(tmp_path / "a.wav", lambda opened: opened.write(b"bytes"))
    assert (tmp_path / "a.wav").read_bytes() == b"bytes"
