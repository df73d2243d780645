"""What a model must beat: predictors that only count.

Three of them, from the same matrix of code pairs (add-one smoothing, counted on the training split):
uniform knows nothing, unigram how often each code occurs, previous-sample how often each code
follows each other code. A pair matrix of the evaluated samples is all that scoring them needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

PairCounts = NDArray[np.int64]


@dataclass(frozen=True)
class BaselineBits:
    """Bits per sample of the three baselines on one set of samples."""

    uniform: float
    unigram: float
    previous_sample: float

    def to_dict(self) -> dict[str, float]:
        """Plain values by name."""
        return asdict(self)


def count_pairs(pieces: Iterable[NDArray[np.int64]], q_levels: int) -> PairCounts:
    """How often code b follows code a in one stream, ``[Q, Q]`` indexed ``[a, b]``.

    Args:
        pieces: the stream's codes in pieces of any length, each ``[T]``. Silence counts as the sample
            before the first.
        q_levels: number of codes.
    """
    counts = np.zeros(q_levels * q_levels, dtype=np.int64)
    last = q_levels // 2
    for codes in pieces:
        if len(codes):
            previous = np.concatenate([[last], codes[:-1]])
            counts += np.bincount(previous * q_levels + codes, minlength=q_levels * q_levels)
            last = int(codes[-1])
    return counts.reshape(q_levels, q_levels)


def baseline_bits(training: PairCounts, evaluated: PairCounts) -> BaselineBits:
    """Score the baselines that `training` defines on the samples that `evaluated` counts.

    Args:
        training: pair counts of the training split, ``[Q, Q]``.
        evaluated: pair counts of the samples to score, ``[Q, Q]``.

    Raises:
        ValueError: `evaluated` holds no samples.
    """
    q_levels, total = len(training), evaluated.sum()
    if total == 0:
        raise ValueError("no samples to score")
    pairs = training + 1.0
    previous_sample = np.log2(pairs / pairs.sum(axis=1, keepdims=True))
    singles = training.sum(axis=0) + 1.0
    unigram = np.log2(singles / singles.sum())
    return BaselineBits(
        uniform=math.log2(q_levels),
        unigram=float(-(evaluated.sum(axis=0) * unigram).sum() / total),
        previous_sample=float(-(evaluated * previous_sample).sum() / total),
    )


def verdict(bits: float, baselines: BaselineBits) -> str:
    """One plain sentence on what `bits` per sample amounts to."""
    if not math.isfinite(bits):
        return "not a number: training has diverged"
    if bits >= baselines.uniform:
        return "worse than guessing: something is wrong"
    if bits >= baselines.unigram:
        return "worse than the unigram model: it has learned nothing yet"
    if bits >= baselines.previous_sample:
        return "better than the unigram model, worse than knowing the previous sample: keep training"
    gain = baselines.previous_sample - bits
    return f"{gain:.2f} bits better than knowing the previous sample: it has learned from further back"
