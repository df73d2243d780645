"""Random numbers against published vectors; distributions against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from samplernn.config import ModelConfig, UserError
from samplernn.generation.request import Sampling
from samplernn.generation.sampling import NO_FILTERS, philox, uniforms
from samplernn.model.heads import SoftmaxHead
from tests.generation.drawing import draws

draw = SoftmaxHead(ModelConfig()).draw


def _words(*values: int) -> list[np.ndarray]:
    return [np.array(value, dtype=np.uint64) for value in values]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox(_words(*counter), key)) == expected


def test_a_random_number_depends_on_its_key_alone() -> None:
    whole = uniforms(7, (0, 1, 2), 0, 100)
    assert np.array_equal(uniforms(7, (2,), 40, 60)[0], whole[2, 40:])
    for other in (
        uniforms(8, (0, 1, 2), 0, 100),
        uniforms(7, (3, 4, 5), 0, 100),
        uniforms(7, (0, 1, 2), 0, 100, draw=1),
        uniforms(7 + 2**32, (0, 1, 2), 0, 100),
        uniforms(7, (0, 1, 2), 2**32, 100),
    ):
        assert (other != whole).mean() > 0.99


def test_each_stream_may_be_at_a_place_of_its_own() -> None:
    numbers = uniforms(7, (0, 1), np.array([3, 2**33]), 5)
    assert np.array_equal(numbers[0], uniforms(7, (0, 1), 3, 5)[0])
    assert np.array_equal(numbers[1], uniforms(7, (0, 1), 2**33, 5)[1])


def test_uniforms_are_uniform_and_streams_uncorrelated() -> None:
    numbers = uniforms(0, (0, 1), 0, 100_000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    chi_squared = ((counts - 4000) ** 2 / 4000).sum()
    assert chi_squared < 95  # 49 degrees of freedom: p about 1e-4
    assert abs(np.corrcoef(numbers)[0, 1]) < 0.02


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match="seed"):
        Sampling(seed=seed)


@pytest.mark.parametrize(
    "arguments",
    [{"temperature": (-0.1,)}, {"temperature": (math.nan,)}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}],
)
def test_sampling_options_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Sampling(**arguments)  # type: ignore[arg-type]


def _frequencies(logits: torch.Tensor, count: int = 40_000, **options: float) -> np.ndarray:
    arrays = draws(count, 3, **options)  # of one stream, so that each of its samples may be a row
    uniform = torch.from_numpy(arrays.uniforms(torch.zeros(1))).T
    temperature, filters = torch.from_numpy(arrays.temperature).T, torch.from_numpy(arrays.filters)
    codes = draw(logits.expand(count, -1), uniform, temperature, filters.expand(count, -1))
    return np.bincount(codes[:, 0].numpy(), minlength=logits.shape[-1]) / count


def _drawn(logits: torch.Tensor, uniform: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """With nothing left out."""
    return draw(logits, uniform, temperature, torch.from_numpy(NO_FILTERS).expand(len(logits), -1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature: float) -> None:
    logits = torch.tensor([[1.0, -0.5, 0.3, 2.0, -3.0]])
    expected = torch.softmax(logits[0] / temperature, 0).numpy()
    assert np.abs(_frequencies(logits, temperature=temperature) - expected).max() < 0.01


def test_temperature_zero_takes_the_most_probable() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9], [5.0, 1.0, 1.0]])
    assert _drawn(logits, torch.full((2, 1), 0.999), torch.zeros(2, 1)).tolist() == [[1], [0]]


def test_the_least_temperature_is_greedy_too() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.9]])
    assert _drawn(logits, torch.full((1, 1), 0.5), torch.full((1, 1), 1e-42)).item() == 1


def test_each_draw_may_have_a_temperature_of_its_own() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9]]).expand(4, -1)
    uniform, temperature = torch.full((4, 1), 0.7), torch.tensor([[0.0], [0.01], [1.0], [100.0]])
    together = _drawn(logits, uniform, temperature)
    apart = [_drawn(logits[:1], uniform[:1], one[None]) for one in temperature]
    assert together[:, 0].tolist() == [int(code) for code in apart] == [1, 1, 2, 2]


def test_each_stream_may_have_filters_of_its_own() -> None:
    logits, uniform = torch.tensor([[0.0, 3.0, 2.9]]).expand(4, -1), torch.full((4, 1), 0.9)
    filters = torch.tensor([[0, 1], [1, 1], [0, 0.4], [50, 1.0]])
    assert draw(logits, uniform, torch.ones(4, 1), filters)[:, 0].tolist() == [2, 1, 1, 2]


def test_top_k_keeps_the_k_most_probable_in_proportion() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    frequencies = _frequencies(logits, top_k=2)
    assert frequencies[0] == frequencies[2] == 0
    assert frequencies[1] / frequencies[3] == pytest.approx(math.e, rel=0.05)


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert (_frequencies(logits, top_p=0.79) > 0).tolist() == [True, True, False, False]
    assert (_frequencies(logits, top_p=0.81) > 0).tolist() == [True, True, True, False]
    assert (_frequencies(logits, top_p=0.01) > 0).tolist() == [True, False, False, False]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_a_code_of_probability_zero_is_never_drawn(uniform: float) -> None:
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 0.0, -math.inf]])
    code = _drawn(logits, torch.tensor([[uniform]]), torch.ones(1, 1)).item()
    assert code == (1 if uniform == 0 else 3)
