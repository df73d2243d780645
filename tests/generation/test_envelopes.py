"""Envelopes: what is written, what is meant, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from samplernn.config import UserError
from samplernn.generation.envelopes import Envelope, envelopes


def test_straight_lines_between_points_and_constant_outside() -> None:
    envelope = Envelope.parse("1:1.0,3:0.5,4:0.5,5:2")
    at = envelope.at(np.array([0, 100, 200, 300, 350, 450, 500, 9999]), sample_rate=100)
    assert at.dtype == np.float32
    assert at.tolist() == [1.0, 1.0, 0.75, 0.5, 0.5, 1.25, 2.0, 2.0]


@pytest.mark.parametrize("number", ["0.95", 0.95, "0:0.95", np.float64(0.95)])
def test_a_number_is_an_envelope(number: str | float) -> None:
    (envelope,) = envelopes(number)
    assert (envelope.at(np.array([0, 10**9]), 16_000) == np.float32(0.95)).all()
    assert str(envelope) == "0.95"


def test_what_is_written_can_be_read_again() -> None:
    envelope = Envelope.parse(" 0.1: 1 , 20:0.85,60.5:1e-1")
    assert Envelope.parse(str(envelope)) == envelope


@pytest.mark.parametrize(
    "text",
    ["warm", "", "1:", ":1", "0:1,1", "0:1;2:3", "1:0.9,1:0.8", "2:1,1:1", "-1:1", "0:-1", "nan", "0:inf"],
)
def test_nonsense_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="temperature") as caught:
        Envelope.parse(text)
    assert "\n" not in str(caught.value)


def test_none_is_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        envelopes([])


def test_one_or_several() -> None:
    assert envelopes(1) == envelopes("1") == envelopes(["1"]) == envelopes(Envelope.parse(1))
    assert [str(one) for one in envelopes(["0.9", 1.1, "0:1,2:3"])] == ["0.9", "1.1", "0.0:1.0,2.0:3.0"]
