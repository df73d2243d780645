"""Curves over training steps as inline SVG: crisp at any size, in the page's colours, a few kilobytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from samplernn.insight.page import Html, html

COLOURS = 8
"""Colours of the style sheet, ``--c0`` and so on."""
_WIDTH, _HEIGHT = 500, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 12, 38
_MOST_POINTS = 150
_LINE_HEIGHT = 15


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    points: Mapping[int, float]
    """Step -> value; what is not finite is left out."""
    colour: int = 0
    """Of the style sheet."""
    is_marked: bool = False
    """Whether each point gets a dot, and the lowest one a larger one; else long curves are thinned out."""


@dataclass(frozen=True)
class _Axis:
    """Values to places along one side."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


def diagram(
    title: object,
    series: Sequence[Series],
    yardsticks: Mapping[str, float] | None = None,
    is_log: bool = False,
) -> Html:
    """Curves in one diagram, with a legend.

    Args:
        title: what the values are.
        series: the curves, those that shall be on top last.
        yardsticks: name -> value of horizontal lines.
        is_log: whether the values are drawn on a logarithmic scale; what is not positive is left out.

    Returns:
        A figure; nothing if there is nothing to draw.
    """
    drawn = [(one, _thinned(one, is_log)) for one in series]
    drawn = [(one, points) for one, points in drawn if points]
    if not drawn:
        return Html("")
    lines = {name: y for name, y in (yardsticks or {}).items() if math.isfinite(y) and (y > 0 or not is_log)}
    values = [y for _, points in drawn for _, y in points] + list(lines.values())
    steps = [x for _, points in drawn for x, _ in points]
    x_axis = _Axis(min(0, *steps), max(*steps, 1), _LEFT, _WIDTH - _RIGHT)
    y_axis = _around(min(values), max(values), is_log)
    place = f'x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT}" height="{_HEIGHT - _TOP - _BOTTOM}"'
    box = f"{_LEFT} {_TOP} {_WIDTH - _LEFT} {_HEIGHT - _TOP - _BOTTOM}"
    curves = [part for one, points in drawn for part in _curve(one, points, x_axis, y_axis)]
    inside = f'<svg {place} viewBox="{box}">{"".join(curves)}</svg>'  # cuts off what is outside
    parts = [*_grid(x_axis, y_axis), inside, *_yardsticks(lines, y_axis)]
    legend = "".join(
        f'<span><i style="background:var(--c{one.colour % COLOURS})"></i>{html(one.name)}</span>'
        for one, _ in drawn
    )
    return Html(
        f'<figure class="diagram"><figcaption>{html(title)}<div class="legend">{legend}</div></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html(title)} over the training step">'
        f"{''.join(parts)}</svg></figure>"
    )


def _thinned(series: Series, is_log: bool) -> list[tuple[float, float]]:
    """(step, value) in order; of a long curve the means of equally many points."""
    points = [
        (step, value)
        for step, value in sorted(series.points.items())
        if math.isfinite(value) and (value > 0 or not is_log)
    ]
    if series.is_marked or len(points) <= _MOST_POINTS:
        return [(float(step), value) for step, value in points]
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group))
        for group in groups
    ]


def _around(low: float, high: float, is_log: bool) -> _Axis:
    """A vertical axis with some air above and below."""
    if is_log:
        air = max((high / low) ** 0.04, 1.02)
        return _Axis(low / air, high * air, _HEIGHT - _BOTTOM, _TOP, True)
    air = max((high - low) * 0.05, abs(high) * 1e-3, 1e-9)
    return _Axis(low - air, high + air, _HEIGHT - _BOTTOM, _TOP)


def _grid(x_axis: _Axis, y_axis: _Axis) -> Iterable[str]:
    for value in _ticks(y_axis):
        y = y_axis.at(value)
        yield f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for value in _round_values(x_axis.low, x_axis.high, 5):
        label = f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
        anchor = "end" if x_axis.at(value) > _WIDTH - _RIGHT - 16 else "middle"
        yield f'<text x="{x_axis.at(value):.1f}" y="{_HEIGHT - 18}" text-anchor="{anchor}">{label}</text>'
    yield f'<text x="{_LEFT}" y="{_HEIGHT - 3}">step</text>'


def _ticks(axis: _Axis) -> list[float]:
    """Round values between the ends of a vertical axis, about five."""
    if not axis.is_log:
        return _round_values(axis.low, axis.high, 5)
    if axis.high / axis.low < 3:
        return _round_values(axis.low, axis.high, 4)
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5), (1,)):
        found = [
            d * 10.0**decade
            for decade in decades
            for d in digits
            if axis.low <= d * 10.0**decade <= axis.high
        ]
        if len(found) <= 7:
            break
    return found


def _round_values(low: float, high: float, count: int) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _yardsticks(lines: Mapping[str, float], axis: _Axis) -> Iterable[str]:
    """Dashed lines with their names at the right; names that would meet are pushed apart."""
    above = float("inf")
    for name, value in sorted(lines.items(), key=lambda line: line[1]):
        y = axis.at(value)
        if not _TOP <= y <= _HEIGHT - _BOTTOM:
            continue
        place = min(y - 5, above - _LINE_HEIGHT)
        place = y + 14 if place < _TOP - 2 else place
        above = place
        yield f'<line class="yardstick" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield (
            f'<text class="name" x="{_WIDTH - _RIGHT}" y="{place:.1f}" text-anchor="end">'
            f"{html(name)} {value:.2f}</text>"
        )


def _curve(
    series: Series, points: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis
) -> Iterable[str]:
    """The line and its dots."""
    places = [(x_axis.at(x), y_axis.at(y)) for x, y in points]
    colour = f"var(--c{series.colour % COLOURS})"
    thin = "" if series.is_marked or len(points) < 40 else " thin"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline class="line{thin}" style="stroke:{colour}" points="{path}"/>'
    if not series.is_marked:
        return
    lowest = min(value for _, value in points)
    for (x, y), (step, value) in zip(places, points, strict=True):
        radius = 5.5 if value == lowest else 2.8
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="fill:{colour}">'
            f"<title>step {step:,.0f}: {value:.3f}</title></circle>"
        )
