from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from samplernn.model.baselines import BaselineBits, PairCounts, baseline_bits, count_pairs, verdict


def codes(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def test_pairs_of_a_short_sequence_worked_out_by_hand() -> None:
    # Silence is code 1 of 3. Before 2: 1, then 2-2, 2-0, 0-1, 1-2.
    counts = count_pairs([codes(2, 2, 0, 1, 2)], q_levels=3)
    assert counts.tolist() == [[0, 1, 0], [0, 0, 2], [1, 0, 1]]


def test_the_first_sample_follows_silence_and_pieces_are_joined() -> None:
    """Wherever a stream is cut, the counts are the same; an empty piece counts nothing."""
    counts = count_pairs([codes(3, 3), codes(), codes(0)], q_levels=4)
    expected = np.zeros((4, 4), dtype=int)
    expected[2, 3] = expected[3, 3] = expected[3, 0] = 1
    assert (counts == expected).all()


def test_bits_of_a_short_sequence_worked_out_by_hand() -> None:
    training = count_pairs([codes(1, 1, 0)], q_levels=2)
    # Pairs: 1-1 twice, 1-0 once. Add one: after 1, p(1) = 3/5 and p(0) = 2/5; after 0, each 1/2.
    # Singles: 0 once, 1 twice. Add one: p(0) = 2/5, p(1) = 3/5.
    evaluated = count_pairs([codes(1, 0, 0, 1)], q_levels=2)  # pairs 1-1, 1-0, 0-0, 0-1
    bits = baseline_bits(training, evaluated)
    assert bits.uniform == 1
    assert bits.unigram == pytest.approx(-(2 * math.log2(3 / 5) + 2 * math.log2(2 / 5)) / 4)
    assert bits.previous_sample == pytest.approx(-(math.log2(3 / 5) + math.log2(2 / 5) - 2) / 4)
    assert bits.to_dict() == {
        "uniform": bits.uniform,
        "unigram": bits.unigram,
        "previous_sample": bits.previous_sample,
    }


def test_pairs_unseen_in_training_cost_finite_bits() -> None:
    nothing: PairCounts = np.zeros((256, 256), dtype=np.int64)
    evaluated = count_pairs([np.arange(256)], q_levels=256)
    assert baseline_bits(nothing, evaluated) == BaselineBits(8.0, 8.0, 8.0)
    constant = count_pairs([np.full(1000, 7)], q_levels=256)
    bits = baseline_bits(constant, evaluated)
    assert math.isfinite(bits.previous_sample)
    assert bits.previous_sample > 8


def test_bits_equal_a_naive_loop_over_samples() -> None:
    rng = np.random.default_rng(0)
    q_levels = 9
    train = [rng.integers(0, q_levels, size) for size in (40, 1, 17)]
    test = [rng.integers(0, q_levels, size) for size in (23, 8)]
    single, pair = np.ones(q_levels), np.ones((q_levels, q_levels))
    for stream in train:
        previous = q_levels // 2
        for code in stream:
            single[code] += 1
            pair[previous, code] += 1
            previous = code
    unigram, previous_sample = [], []
    for stream in test:
        previous = q_levels // 2
        for code in stream:
            unigram.append(-math.log2(single[code] / single.sum()))
            previous_sample.append(-math.log2(pair[previous, code] / pair[previous].sum()))
            previous = code
    counts = [sum(count_pairs([stream], q_levels) for stream in part) for part in (train, test)]
    bits = baseline_bits(*counts)
    assert bits.uniform == pytest.approx(math.log2(9))
    assert bits.unigram == pytest.approx(np.mean(unigram))
    assert bits.previous_sample == pytest.approx(np.mean(previous_sample))


def test_nothing_to_score_is_an_error() -> None:
    counts = count_pairs([], q_levels=4)
    with pytest.raises(ValueError, match="no samples"):
        baseline_bits(counts, counts)


@pytest.mark.parametrize(
    ("bits", "sentence"),
    [
        (math.nan, "diverged"),
        (math.inf, "diverged"),
        (9.0, "worse than guessing"),
        (8.0, "worse than guessing"),
        (7.999, "worse than the unigram model"),
        (5.0, "worse than the unigram model"),
        (4.999, "worse than knowing the previous sample"),
        (3.0, "worse than knowing the previous sample"),
        (2.5, "0.50 bits better than knowing the previous sample"),
    ],
)
def test_verdict_at_the_boundaries(bits: float, sentence: str) -> None:
    said = verdict(bits, BaselineBits(uniform=8, unigram=5, previous_sample=3))
    assert sentence in said
    assert "\n" not in said
