"""What the progress display says of a run's health."""

from __future__ import annotations

import math

from samplernn.training.progress import diagnosis


def test_a_validation_near_the_best_needs_no_diagnosis() -> None:
    assert diagnosis(2.05, best_bits=2.0, train_bits=1.5) is None
    assert diagnosis(2.0, best_bits=2.0, train_bits=math.nan) is None


def test_rising_validation_with_falling_training_is_memorising() -> None:
    assert "memorises" in str(diagnosis(2.5, best_bits=2.0, train_bits=1.5))


def test_rising_validation_with_rising_training_is_instability() -> None:
    assert "optim.lr" in str(diagnosis(9.0, best_bits=2.0, train_bits=8.5))


def test_what_is_not_a_number_is_not_called_memorising() -> None:
    """The verdict says that it has diverged."""
    assert diagnosis(math.nan, best_bits=math.inf, train_bits=2.0) is None
    assert diagnosis(math.nan, best_bits=2.0, train_bits=1.5) is None
