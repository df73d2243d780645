"""A run that fails saves its last whole step, and goes on from it as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samplernn.audio.lanes import Lanes
from samplernn.config import Config, UserError, from_dict, merged
from samplernn.training import run
from samplernn.training.callbacks import Checkpoints, Metrics
from samplernn.training.module import TrainingModule
from samplernn.training.progress import ProgressDisplay
from samplernn.training.samples import Samples
from tests.conftest import TOY
from tests.training.test_run import _last, _rows

# Validations at 5, 10, 15 and 20; epochs of about a dozen steps; a row every third step.
_OPTIONS = {
    "trainer": {"max_steps": 20, "val_check_interval": 5, "log_every_n_steps": 3},
    "optim": {"ema_decay": 0.9},
    "data": {"tbptt_len": 1024},
    "checkpoint": {"every_minutes": 0},
}
_CONFIG: Config = from_dict(Config, merged(TOY, _OPTIONS))


class Broken(Exception):
    """Whatever."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, clips: Path, private_cache: None) -> Path:
    """A run that nothing has happened to."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run.start(clips / "guitar", _CONFIG, "whole")
    return folder / "runs" / "whole"


def _fails_at(
    patch: pytest.MonkeyPatch, owner: type, name: str, call: int, error: BaseException, after: bool = False
) -> None:
    """Let a method raise in its call of that number: instead of what it does, or after it."""
    original: Callable[..., Any] = getattr(owner, name)
    count = 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == call and not after:
            raise error
        result = original(*arguments, **named)
        if count == call:
            raise error
        return result

    patch.setattr(owner, name, failing)


def _repeatable(folder: Path) -> list[dict[str, str]]:
    clocks = ("samples_per_s", "train/seconds", "memory/")
    return [{k: v for k, v in row.items() if not any(c in k for c in clocks)} for row in _rows(folder)]


@pytest.mark.parametrize(
    ("owner", "name", "call", "after", "saved"),
    [
        pytest.param(TrainingModule, "training_step", 9, False, 8, marks=pytest.mark.slow),
        (TrainingModule, "training_step", 14, True, 13),  # in the backward pass, say
        pytest.param(
            ProgressDisplay, "after_step", 7, False, 7, marks=pytest.mark.slow
        ),  # nobody reads what it says, say
        (TrainingModule, "validation_step", 1, False, 5),  # the first validation
        pytest.param(Samples, "after_validation", 2, True, 10, marks=pytest.mark.slow),
        pytest.param(
            Checkpoints, "after_validation", 2, False, 10, marks=pytest.mark.slow
        ),  # no room for best.ckpt, say
    ],
)
def test_a_failed_run_goes_on_from_its_last_whole_step(
    whole: Path,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    owner: type,
    name: str,
    call: int,
    after: bool,
    saved: int,
) -> None:
    """Also where a validation was due: it is made up for, with row, samples and best checkpoint."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        _fails_at(patch, owner, name, call, Broken("somewhere"), after)
        with pytest.raises(Broken, match="somewhere"):
            run.start(clips / "guitar", _CONFIG, "torn")
    torn = Path("runs/torn")
    assert _last(torn)["global_step"] == saved
    assert f"saved as of step {saved}" in capfd.readouterr().err
    assert json.loads((torn / "run.json").read_text())["state"] == "interrupted"
    outcome = run.resume("torn", {})
    assert outcome is not None
    assert outcome.step == 20
    one, other = _last(torn), _last(whole)
    for key in ("state_dict", "lane_state"):
        _assert_equal(one[key], other[key])
    assert _repeatable(torn) == _repeatable(whole)


def test_a_logger_that_fails_costs_its_row(
    whole: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        _fails_at(patch, Metrics, "_publish", 3, Broken("step 6, after a row and a validation"))
        with pytest.raises(Broken):
            run.start(clips / "guitar", _CONFIG, "torn")
    assert _last(Path("runs/torn"))["global_step"] == 6
    run.resume("torn", {})
    _assert_equal(_last(Path("runs/torn"))["state_dict"], _last(whole)["state_dict"])
    kept = [row for row in _repeatable(whole) if row["step"] not in ("6", "9")]
    assert [row for row in _repeatable(Path("runs/torn")) if row["step"] != "9"] == kept


def test_audio_that_cannot_be_read_at_an_epochs_beginning(
    whole: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        chunks = Lanes.chunks

        def unreadable(self: Lanes, epoch: int, start: int = 0) -> Any:
            if epoch == 1:
                raise OSError(5, "Input/output error", "audio.npy")
            return chunks(self, epoch, start)

        patch.setattr(Lanes, "chunks", unreadable)
        with pytest.raises(UserError, match=r"audio\.npy: Input/output error"):
            run.start(clips / "guitar", _CONFIG, "torn")
    torn = Path("runs/torn")
    assert 5 < _last(torn)["global_step"] < 20
    assert _last(torn)["lane_state"]["loader"]["epoch"] == 0
    run.resume("torn", {})
    _assert_equal(_last(torn)["state_dict"], _last(whole)["state_dict"])
    assert _repeatable(torn) == _repeatable(whole)


def _assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"seconds"}:
            _assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            _assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_nothing_is_saved_while_the_weights_change(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _fails_at(monkeypatch, TrainingModule, "optimizer_step", 4, Broken("in the average"), after=True)
    with pytest.raises(Broken):
        run.start(clips, _CONFIG, "torn")
    assert not Path("runs/torn/checkpoints/last.ckpt").exists()


def test_a_disk_that_refuses_is_said_and_the_first_error_is_raised(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device", "last.ckpt")

    monkeypatch.setattr(Checkpoints, "save_last", full)
    _fails_at(monkeypatch, TrainingModule, "training_step", 4, OSError(5, "Input/output error", "a.npy"))
    with pytest.raises(UserError, match=r"a\.npy: Input/output error"):
        run.start(clips, _CONFIG, "torn")
    assert "step 3 could not be saved: [Errno 28] No space left" in capfd.readouterr().err
