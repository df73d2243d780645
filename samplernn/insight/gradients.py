"""How far back a tier's gradients reach: vanishing and exploding, made visible.

The loss at the end of a stretch of audio is derived by what each tier remembered at every earlier step.
Training cuts these gradients after `data.tbptt_len` samples; here they run on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from samplernn import plots
from samplernn.audio.corpus import AudioFile, Corpus, prepare
from samplernn.audio.split import Split, locate
from samplernn.config import UserError
from samplernn.insight import wording
from samplernn.model.cells import RNN, RecurrentLayer
from samplernn.model.checkpoint import Checkpoint
from samplernn.model.codec import Codec
from samplernn.model.network import SampleRNN, State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_UP_SECONDS = 1.0
"""What is heard before a stretch, without gradients."""
MAX_SECONDS = 30.0
_SILENT = 10 ** (-60 / 20)
_BINS_PER_DECADE = 16
_MAX_BYTES = 1 << 30
_JACOBIANS = 32
_JACOBIAN_VALUES = 1 << 24


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """Singular values of one recurrent layer, each ``[D]`` or as said, largest first."""

    gates: dict[str, NDArray[np.float64]]
    """Of the hidden-to-hidden matrix of each gate; empty for a cell without."""
    jacobians: NDArray[np.float64]
    """Of the derivative of the layer's state by the one a step before, at places in the audio, ``[n, S·D]``.
    The largest says by how much one step can stretch a small change of the state at most (below 1: every
    change fades); the root of their mean square, by how much it stretches one without direction."""

    @property
    def largest(self) -> float:
        """Median over the steps of the largest singular value of the Jacobian."""
        return float(np.median(self.jacobians[:, 0]))

    @property
    def typical(self) -> float:
        """Median over the steps of the root mean square of the Jacobian's singular values."""
        return float(np.median(np.sqrt((self.jacobians**2).mean(axis=1))))


@dataclass(frozen=True, eq=False)
class TierGradients:
    """How the loss at the end depends on what one tier remembered before."""

    number: int
    """In Mehri's count: the sample-level MLP is tier 1."""
    frame_size: int
    lags: NDArray[np.float64]
    """Seconds from the beginning of a step to the end of the stretch, ascending, ``[F]``."""
    norms: NDArray[np.float64]
    """Of the gradient with respect to the state after that step (all layers; of an LSTM hidden and cell),
    nats per unit of the state, ``[places, F]``."""
    layers: tuple[LayerSpectrum, ...]

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Quartiles over all places and steps of similar lag.

        Returns:
            Lags in seconds ``[n]``, evenly spaced on a logarithmic scale; lower quartile, median and upper
            quartile ``[3, n]``.
        """
        bins = np.floor(np.log10(self.lags) * _BINS_PER_DECADE)
        each = [bins == one for one in np.unique(bins)]
        lags = np.array([np.exp(np.log(self.lags[chosen]).mean()) for chosen in each])
        return lags, np.stack(
            [np.quantile(self.norms[:, chosen], [0.25, 0.5, 0.75]) for chosen in each], axis=1
        )

    def reach(self, share: float) -> float:
        """The longest lag, in seconds, at which the median still has this share of its largest value."""
        lags, (_, median, _) = self.curve()
        return float(lags[median >= share * median.max()].max(initial=lags[0]))

    def verdict(self, sample_rate: int) -> str:
        """One plain sentence."""
        name = f"tier {self.number} (a step every {1000 * self.frame_size / sample_rate:.3g} ms)"
        if not np.isfinite(self.norms).all():
            return f"{name}: the gradients are not finite, they explode"
        lags, (_, median, _) = self.curve()
        if not median.max() > 0:
            return f"{name}: no gradient arrives at all"
        if median.argmax() > len(median) // 2 and median.max() > 10 * median[0]:
            return (
                f"{name}: the gradient grows to {median.max() / median[0]:.3g} times within "
                f"{_seconds(lags[median.argmax()])}: it explodes"
            )
        tenth, hundredth = self.reach(0.1), self.reach(0.01)
        longest = float(lags[-1])
        if tenth >= longest:
            return (
                f"{name} hears further back than {_seconds(longest)}: more than a tenth of its largest "
                "gradient is left"
            )
        rest = (
            f"at {_seconds(longest)} {median[-1] / median.max():.2g} of it is left"
            if hundredth >= longest
            else f"{_seconds(hundredth)} to a hundredth"
        )
        return f"{name} hears {_seconds(tenth)} back to a tenth of its largest gradient, {rest}"


@dataclass(frozen=True, eq=False)
class GradientReach:
    """How far back a model's gradients reach."""

    sample_rate: int
    """Hz."""
    duration: float
    """Seconds that gradients run back."""
    num_places: int
    tbptt_len: int
    """Samples after which training cut them."""
    tiers: tuple[TierGradients, ...]
    """Slowest first."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of the singular values the five largest."""
        result: dict[str, Any] = {
            "duration": self.duration,
            "places": self.num_places,
            "tbptt_seconds": self.tbptt_len / self.sample_rate,
            "tiers": [],
        }
        for tier in self.tiers:
            lags, quartiles = tier.curve()
            result["tiers"].append(
                {
                    "tier": tier.number,
                    "frame_size": tier.frame_size,
                    "verdict": tier.verdict(self.sample_rate),
                    "reach_tenth_seconds": tier.reach(0.1),
                    "reach_hundredth_seconds": tier.reach(0.01),
                    "curve": {
                        "lag_seconds": lags.tolist(),
                        **dict(zip(("lower", "median", "upper"), map(_finite, quartiles), strict=True)),
                    },
                    "layers": [
                        {
                            "singular_values": {gate: v[:5].tolist() for gate, v in layer.gates.items()},
                            "jacobian_largest": layer.largest,
                            "jacobian_typical": layer.typical,
                        }
                        for layer in tier.layers
                    ],
                }
            )
        return result

    def lines(self) -> Iterator[str]:
        """What was found, for people to read."""
        for tier in self.tiers:
            yield f"{tier.verdict(self.sample_rate)}."
            for number, layer in enumerate(tier.layers, 1):
                which = f"layer {number}: " if len(tier.layers) > 1 else ""
                gates = ", ".join(f"{gate} {values[0]:.2f}" for gate, values in layer.gates.items())
                yield (
                    f"  {which}a step stretches a change of the state by up to {layer.largest:.2f}, "
                    f"one without direction by {layer.typical:.2f}; "
                    + (f"largest singular values: {gates}" if gates else "no recurrent matrix")
                )
        cut = _seconds(self.tbptt_len / self.sample_rate)
        where = wording.count(self.num_places, "place")
        yield f"training cut the gradients after {cut} (data.tbptt_len); measured at {where}."

    def draw(self) -> Figure:
        """Gradient norms over the lag, and singular values."""
        curves: list[plots.Decay] = []
        spectra: dict[str, NDArray[np.float64]] = {}
        for tier in self.tiers:
            lags, quartiles = tier.curve()
            step = 1000 * tier.frame_size / self.sample_rate
            title = f"tier {tier.number}, a step every {step:.3g} ms"
            floor = np.finfo(np.float32).tiny
            curves.append(plots.Decay(title, 1000 * lags, np.maximum(quartiles, floor)))
            for number, layer in enumerate(tier.layers, 1):
                which = f"tier {tier.number}" + (f" layer {number}" if len(tier.layers) > 1 else "")
                spectra |= {f"{which} {gate}": values for gate, values in layer.gates.items()}
                spectra[f"{which} Jacobian"] = layer.jacobians.ravel()
        marks = {"training cuts here": 1000 * self.tbptt_len / self.sample_rate}
        return plots.decays(curves, "norm of dLoss(end)/dh(lag), nats per unit", marks, spectra)


def gradients(
    checkpoint: Checkpoint,
    folder: str | Path,
    duration: float = 2.0,
    num_places: int = 32,
    progress: bool = True,
    cache_dir: str | None = None,
) -> GradientReach:
    """Derive the loss at the end of stretches of audio by what each tier remembered before.

    The loss is the mean over the samples of the last frame of the fastest tier. The audio is what the model
    has not been trained on, if the folder holds it, else all.

    Args:
        checkpoint: the model.
        folder: of audio.
        duration: seconds that gradients run back, at most 30.
        num_places: stretches, evenly spread over the audio; silent ends are avoided.
        progress: show a bar on a terminal while audio is decoded.
        cache_dir: for decoded audio; None: the default.

    Raises:
        UserError: an argument out of range, or the folder holds nothing long enough.
    """
    model, data = checkpoint.build().float().requires_grad_(False), checkpoint.config.data
    least = 4 * model.lookback / data.sample_rate
    if not least <= duration <= MAX_SECONDS:
        raise UserError(f"duration must be from {least:.3g} to {MAX_SECONDS:g} s, got {duration:g}")
    length = round(duration * data.sample_rate) // model.lookback * model.lookback
    if num_places < 1:
        raise UserError(f"places must be at least 1, got {num_places}")
    corpus = prepare(folder, replace(data, cache_dir=cache_dir), checkpoint.gain, progress)
    places = _places(checkpoint, corpus, length, num_places)
    norms: list[list[Tensor]] = []
    jacobians: list[list[Tensor]] = []
    for first in range(0, len(places), per_pass := _places_per_pass(model, length)):
        heard = [
            _hear(model, corpus, checkpoint.codec, file, start, length)
            for file, start in places[first : first + per_pass]
        ]
        codes = torch.stack([one for one, _ in heard])
        state = State(
            torch.cat([state.history for _, state in heard]),
            tuple(torch.cat(tier) for tier in zip(*(state.rnn for _, state in heard), strict=True)),
        )
        unrolled = unroll(model, codes, state)
        norms.append(gradient_norms(unrolled))
        jacobians.append(
            [tier.jacobians(_num_jacobians(tier.rnn, len(heard) / len(places))) for tier in unrolled.tiers]
        )
    tiers = []
    for index, tier in enumerate(model.tiers()):
        each = torch.cat([some[index] for some in norms]).numpy()
        lags = (length - np.arange(each.shape[1]) * tier.frame_size) / data.sample_rate
        along = torch.cat([some[index] for some in jacobians], dim=1)  # [n_rnn, n, S·D]
        layers = tuple(
            LayerSpectrum(_gate_spectra(cell), along[layer].double().numpy())
            for layer, cell in enumerate(tier.rnn.cells())
        )
        number = checkpoint.config.model.n_tiers - index
        tiers.append(TierGradients(number, tier.frame_size, lags[::-1], each[:, ::-1], layers))
    return GradientReach(
        data.sample_rate, length / data.sample_rate, len(places), data.tbptt_len, tuple(tiers)
    )


@dataclass(frozen=True, eq=False)
class UnrolledTier:
    """One tier's walk through a stretch, with every state a tensor of its own."""

    rnn: RNN
    states: list[list[Tensor]]
    """``[n_rnn][F]`` times ``[B, S, D]``: hidden and, of an LSTM, cell after each step."""
    output: Tensor
    """Of the layers together, ``[B, F, D]``."""
    gates_x: list[Tensor]
    """What the input adds to each gate, ``[n_rnn]`` times ``[B, F, gates·D]``."""

    def jacobians(self, number: int) -> Tensor:
        """Singular values of d state / d state before, at steps spread over rows and time.

        Args:
            number: of steps.

        Returns:
            ``[n_rnn, number, S·D]``, largest first.
        """
        num_rows, num_steps = self.gates_x[0].shape[:2]
        rows = [index % num_rows for index in range(number)]
        steps = [1 + int((index + 0.5) / number * (num_steps - 1)) for index in range(number)]
        found = []
        for cell, states, gates_x in zip(self.rnn.cells(), self.states, self.gates_x, strict=True):
            before = torch.stack([states[step - 1][row] for row, step in zip(rows, steps, strict=True)])
            jacobians = state_jacobians(cell, before.detach(), gates_x[rows, steps].detach())
            found.append(torch.linalg.svdvals(jacobians))
        return torch.stack(found)


@dataclass(frozen=True, eq=False)
class Unrolled:
    """A whole network's walk through a stretch."""

    tiers: list[UnrolledTier]
    nll: Tensor
    """Nats of each sample of the fastest tier's last frame, ``[B, frame]``."""


def unroll(model: SampleRNN, x: Tensor, state: State) -> Unrolled:
    """`SampleRNN.forward` with the recurrent layers step by step, up to the loss of the last frame.

    Args:
        model: the network, its parameters without gradients.
        x: codes, int64 ``[B, T]``, T a multiple of the largest frame.
        state: what was heard before.
    """
    past_and_x = torch.cat([state.history, x], dim=1)
    conditioning: Tensor | None = None
    tiers: list[UnrolledTier] = []
    with torch.enable_grad():
        for tier, tier_state in zip(model.tiers(), state.rnn, strict=True):
            inputs = tier.inputs(model.frames(past_and_x, tier.frame_size), conditioning)  # [B, F, D]
            walked = walk(tier.rnn, inputs, tier_state.detach())
            tiers.append(walked)
            conditioning = tier.conditioning(walked.output)  # [B, F·ratio, D]
        assert conditioning is not None
        frame = model.tiers()[-1].frame_size
        codes = past_and_x[:, -2 * frame : -1]  # [B, 2·frame - 1]
        logits = model.sample_level_mlp(codes, conditioning[:, -frame:])  # [B, frame, Q]
        nll = F.cross_entropy(logits.transpose(1, 2), x[:, -frame:], reduction="none")
    return Unrolled(tiers, nll)


def walk(rnn: RNN, x: Tensor, state: Tensor) -> UnrolledTier:
    """`RNN.forward` step by step.

    Args:
        rnn: the layers of one tier.
        x: ``[B, F, D]``.
        state: ``[B, S, n_rnn, D]``.
    """
    all_states, all_gates = [], []
    hidden: list[Tensor] = []  # [B, F, D] of each layer
    for layer, cell in enumerate(rnn.cells()):
        inputs = rnn.layer_input(x, hidden[-1] if hidden else None)
        gates_x = cell.project(inputs)  # [B, F, gates·D]
        now = state[:, :, layer].clone().requires_grad_()
        states = []
        for step in gates_x.unbind(dim=1):
            now = cell.step(step, now)
            states.append(now)
        hidden.append(torch.stack([step[:, 0] for step in states], dim=1))
        all_states.append(states)
        all_gates.append(gates_x)
    return UnrolledTier(rnn, all_states, rnn.output(hidden), all_gates)


def gradient_norms(unrolled: Unrolled) -> list[Tensor]:
    """Norms of the gradient of the mean loss with respect to each tier's state after each step.

    Everything counts that the state changes later, in its own tier and in those below it.

    Returns:
        ``[B, F]`` per tier.
    """
    states = [state for tier in unrolled.tiers for layer in tier.states for state in layer]
    # Rows do not know each other, so the gradient of their sum holds each one's own.
    found = iter(
        torch.autograd.grad(unrolled.nll.mean(dim=1).sum(), states, allow_unused=True, materialize_grads=True)
    )
    norms = []
    for tier in unrolled.tiers:
        layers = [torch.stack([next(found) for _ in layer], dim=1) for layer in tier.states]  # [B, F, S, D]
        norms.append(torch.stack(layers).double().pow(2).sum(dim=(0, 3, 4)).sqrt())
    return norms


def state_jacobians(cell: RecurrentLayer, states: Tensor, gates_x: Tensor) -> Tensor:
    """Derivatives of a layer's next state by its state, the input given.

    Args:
        cell: the layer.
        states: ``[n, S, D]``.
        gates_x: what the input adds to each gate, ``[n, gates·D]``.

    Returns:
        ``[n, S·D, S·D]``.
    """
    shape = states.shape[1:]

    def step(state: Tensor, gates: Tensor) -> Tensor:
        return cell.step(gates[None], state.view(1, *shape)).flatten()

    jacobians: Tensor = torch.func.vmap(torch.func.jacrev(step))(states.flatten(1), gates_x)
    return jacobians


def _gate_spectra(cell: RecurrentLayer) -> dict[str, NDArray[np.float64]]:
    return {
        gate: torch.linalg.svdvals(block.detach().double()).numpy()
        for gate, block in cell.recurrent_blocks().items()
    }


def _num_jacobians(rnn: RNN, share: float) -> int:
    """Of so large a share of the places: some thirty of all, fewer of large layers."""
    size = rnn.h0.shape[0] * rnn.h0.shape[2]
    return max(1, round(share * min(_JACOBIANS, max(1, _JACOBIAN_VALUES // size**2))))


def _places_per_pass(model: SampleRNN, length: int) -> int:
    """Stretches that may be unrolled side by side: some dozen vectors per step and layer are kept."""
    config = model.config
    steps = sum(length // frame_size for frame_size in config.frame_sizes)
    return max(1, _MAX_BYTES // (steps * config.n_rnn * config.dim * 4 * 16))


def _places(checkpoint: Checkpoint, corpus: Corpus, length: int, number: int) -> list[tuple[AudioFile, int]]:
    """Where the stretches begin, evenly over all audio that is long enough, not ending in silence."""
    held_out = Split.from_dict({"train": [], **checkpoint.split})
    spans = locate(corpus, held_out.test + held_out.validation)
    spans = _long(spans, length) or _long([(file, 0, file.num_samples) for file in corpus.files], length)
    if not spans:
        longest = max(file.num_samples for file in corpus.files) / corpus.sample_rate
        raise UserError(
            f"{corpus.folder}: its longest file has {longest:.2f} s, too short for stretches of "
            f"{length / corpus.sample_rate:.2f} s; take a smaller --duration"
        )
    room = np.cumsum([stop - start - length + 1 for _, start, stop in spans])
    window = round(0.05 * corpus.sample_rate)
    places: list[tuple[AudioFile, int]] = []
    for part in range(number):
        for offset in (0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875):  # the first that is not silent
            place = int((part + offset) / number * room[-1])
            index = int(np.searchsorted(room, place, side="right"))
            file, start, _ = spans[index]
            start += place - (int(room[index - 1]) if index else 0)
            heard = corpus.read(file, start + length - min(window, length), start + length) / 32768
            if np.sqrt((heard**2).mean()) * checkpoint.gain > _SILENT:
                places.append((file, start))
                break
    if not places:
        raise UserError(f"{corpus.folder}: silent at every place that was tried; take another folder")
    return list(dict.fromkeys(places))


def _long(spans: list[tuple[AudioFile, int, int]], length: int) -> list[tuple[AudioFile, int, int]]:
    return [(file, start, stop) for file, start, stop in spans if stop - start >= length]


def _hear(
    model: SampleRNN, corpus: Corpus, codec: Codec, file: AudioFile, start: int, length: int
) -> tuple[Tensor, State]:
    """The codes of a stretch ``[T]``, and the state of one stream that heard what came before."""
    run_up = min(start, round(RUN_UP_SECONDS * corpus.sample_rate)) // model.lookback * model.lookback
    codes = torch.from_numpy(codec.encode(corpus.read(file, start - run_up, start + length)))
    state = model.initial_state(1)
    if run_up:
        with torch.no_grad():
            _, state = model.listen(codes[None, :run_up], state)
    return codes[run_up:], state


def _finite(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers that JSON has; None for those that it has not."""
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{float(f'{1000 * seconds:.2g}'):g} ms"
