"""Numbers that move over time: the temperature of a stream as a curve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from samplernn.config import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Envelope:
    """Straight lines between points, constant before the first and after the last.

    Args:
        points: (seconds since the stream's start, value), in order of time.

    Raises:
        UserError: no points, times out of order, a time or value that is negative or not finite.

    Example:
        >>> Envelope.parse("0:1.0,20:0.8").at(np.array([10 * 16_000]), 16_000)
        array([0.9], dtype=float32)
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        times = [seconds for seconds, _ in self.points]
        if not self.points:
            raise UserError("an envelope needs at least one point")
        if not all(0 <= number < math.inf for point in self.points for number in point):
            raise UserError(f"temperature {self}: times and values must be at least 0 and finite")
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            raise UserError(f"temperature {self}: times must rise from point to point")

    @classmethod
    def parse(cls, text: str | float) -> Envelope:
        """Of a number, or of ``SECONDS:VALUE,SECONDS:VALUE,…``.

        Raises:
            UserError: it is neither.
        """
        points = []
        for part in str(text).split(","):
            seconds, separator, value = part.partition(":")
            try:
                points.append((float(seconds), float(value)) if separator else (0.0, float(seconds)))
            except ValueError:
                raise UserError(
                    f"temperature {text!r}: expected a number, or SECONDS:VALUE,SECONDS:VALUE,…"
                ) from None
        return cls(tuple(points))

    def at(self, samples: NDArray[np.int64], sample_rate: int) -> NDArray[np.float32]:
        """Values at some samples, counted from the stream's start; float32 of the same shape."""
        import numpy as np  # here, as the options' help needs envelopes, and must be instant

        times, values = zip(*self.points, strict=True)
        return np.interp(samples / sample_rate, times, values).astype(np.float32)

    def __str__(self) -> str:
        if len(self.points) == 1 and self.points[0][0] == 0:
            return repr(self.points[0][1])
        return ",".join(f"{seconds!r}:{value!r}" for seconds, value in self.points)


def envelopes(given: str | float | Envelope | Sequence[str | float | Envelope]) -> tuple[Envelope, ...]:
    """One envelope for all streams, or one for each, from what a person writes.

    Raises:
        UserError: none, or see `Envelope`.
    """
    each: list[Any] = [given] if isinstance(given, str | Real | Envelope) else list(given)  # type: ignore
    if not each:
        raise UserError("temperature: give at least one")
    return tuple(one if isinstance(one, Envelope) else Envelope.parse(one) for one in each)
