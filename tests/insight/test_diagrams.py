"""Curves stand where their values are."""

from __future__ import annotations

import math
import re

from samplernn.insight.diagrams import Series, diagram


def _dots(figure: str) -> list[tuple[float, float, float]]:
    """x, y and radius of each."""
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', figure)
    return [tuple(map(float, each)) for each in found]  # type: ignore[misc]


def _ticks(figure: str) -> dict[float, float]:
    """Value of each horizontal line -> its y."""
    found = re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)</text>', figure)
    return {float(value): float(y) - 4 for y, value in found}


def test_dots_stand_on_the_lines_of_their_values() -> None:
    for is_log in (False, True):
        figure = diagram("x", [Series("one", {0: 2.0, 10: 4.0, 20: 3.0}, is_marked=True)], is_log=is_log)
        ticks, dots = _ticks(figure), _dots(figure)
        for value, (_, y, _) in zip((2.0, 4.0, 3.0), dots, strict=True):
            assert abs(ticks[value] - y) < 0.2
        assert dots[1][0] - dots[0][0] == dots[2][0] - dots[1][0]


def test_the_lowest_dot_is_larger_and_every_dot_says_its_value() -> None:
    figure = diagram("x", [Series("one", {0: 2.0, 1000: 1.5, 2000: 1.75}, is_marked=True)])
    radii = [radius for _, _, radius in _dots(figure)]
    assert radii[1] > radii[0] == radii[2]
    assert "<title>step 1,000: 1.500</title>" in figure


def test_what_is_not_finite_or_has_no_logarithm_is_left_out() -> None:
    points = {0: 2.0, 1: math.nan, 2: math.inf, 3: -1.0, 4: 1.0}
    assert len(_dots(diagram("x", [Series("one", points, is_marked=True)]))) == 3
    assert len(_dots(diagram("x", [Series("one", points, is_marked=True)], is_log=True))) == 2
    assert "nan" not in diagram("x", [Series("one", points)])


def test_nothing_to_draw_is_nothing() -> None:
    assert diagram("x", [Series("one", {}), Series("two", {1: math.nan})]) == ""
    assert diagram("x", []) == ""


def test_one_point_and_equal_values_can_be_drawn() -> None:
    for points in ({0: 1.0}, {5: 2.0, 6: 2.0}, {0: 0.0, 1: 0.0}):
        assert "<svg" in diagram("x", [Series("one", points, is_marked=True)])


def test_yardsticks_are_dashed_lines_with_their_names() -> None:
    figure = diagram("x", [Series("one", {0: 2.0, 1: 3.0})], {"uniform": 8.0, "unigram": 7.9})
    assert figure.count('class="yardstick"') == 2
    places = [float(y) for y in re.findall(r'class="name" x="\d+" y="([\d.-]+)"', figure)]
    assert abs(places[0] - places[1]) >= 14  # the names do not meet
    assert "uniform 8.00" in figure


def test_a_long_curve_becomes_a_short_one_of_the_same_mean() -> None:
    points = {step: 1.0 + step % 2 for step in range(20_000)}
    figure = diagram("x", [Series("one", points)])
    assert len(figure) < 10_000
    (line,) = re.findall(r'points="([^"]+)"', figure)
    assert 100 < len(line.split()) <= 150
    assert len({place.split(",")[1] for place in line.split()}) == 1  # means of as many 1 as 2


def test_names_are_escaped() -> None:
    figure = diagram('"<b>', [Series("<script>", {0: 1.0})], {"<i>": 1.0})
    assert "<script>" not in figure
    assert "<b>" not in figure
    assert "<i>" not in figure
