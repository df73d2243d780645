"""Hidden units over a recording: which of them follow loudness, onsets, pitch, or the clock of the tiers.

After Karpathy, Johnson & Fei-Fei (2015), 'Visualizing and Understanding Recurrent Networks'
(arXiv:1506.02078), who found single cells that count line lengths and open quotes. Among hundreds of units
one always looks as if it followed something, so each finding stands beside what the best unit reaches by
chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samplernn import plots
from samplernn.audio.decoding import Decoded
from samplernn.audio.io import from_int16, to_int16
from samplernn.config import UserError
from samplernn.insight import features
from samplernn.model.checkpoint import Checkpoint
from samplernn.model.network import SampleRNN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEATURES = ("loudness", "onset", "pitch", "phase")
RUN_UP_SECONDS = 2.0
"""What is heard before the part that is looked at, so that the state does not come from silence."""
MAX_SECONDS = 60.0
_MIN_SECONDS = 0.5
_TRIALS = 200
_CHANCE = 0.95
_CONSTANT = 1e-5
_LEGEND = (
    "blue: a unit (pale: its range); red: what it follows, scaled to it; "
    "phase: the unit at each step of the frame"
)
_MIN_VOICED = 0.05


@dataclass(frozen=True)
class Follows:
    """How one feature shows in the units of one tier."""

    best: float
    """Correlation of the unit that follows it most closely, with its sign (of phase: none)."""
    unit: int
    """That unit."""
    chance: float
    """What the best of all units exceeds in one of twenty cases if there is no connection."""
    num_above: int
    """Units beyond `chance`, on either side."""


@dataclass(frozen=True)
class Unit:
    """A hidden unit that follows something."""

    number: int
    feature: str
    """What it follows most closely."""
    correlation: float
    """With that; of phase: the share of its standard deviation that the position explains, 0 to 1."""
    highest_step: int | None
    """Of phase: the step (from 1) of the slower tier's frame at which it is highest on average."""


@dataclass(frozen=True, eq=False)
class TierActivations:
    """Hidden units of one tier's top RNN layer, one row per step (of what skip connections make of all)."""

    number: int
    """In Mehri's count: the sample-level MLP is tier 1."""
    frame_size: int
    ratio_above: int
    """Steps in a frame of the next slower tier, 1 in the slowest."""
    hidden: NDArray[np.float32]
    """``[F, D]``. A row is what the tier makes of everything before its step begins."""
    features: dict[str, NDArray[np.float64]]
    """``[F]`` each; NaN where there is no pitch."""
    follows: dict[str, Follows]
    """Of the features that could be compared."""
    remarks: dict[str, str]
    """Of those that could not: why."""
    num_constant: int
    """Units that do not change; they are left out."""
    units: tuple[Unit, ...]
    """The strongest, in the order of `FEATURES`, strongest first."""


@dataclass(frozen=True, eq=False)
class Activations:
    """What the hidden units of a model do while they hear a recording."""

    file: Path
    start: float
    """Seconds."""
    audio: NDArray[np.int16]
    """The part that was looked at, without gain, ``[T]``."""
    sample_rate: int
    """Hz."""
    tiers: tuple[TierActivations, ...]
    """Slowest first."""

    def to_dict(self) -> dict[str, Any]:
        """The table, as plain values for JSON."""
        return {
            "file": str(self.file),
            "start": self.start,
            "duration": len(self.audio) / self.sample_rate,
            "tiers": [
                {
                    "tier": tier.number,
                    "frame_size": tier.frame_size,
                    "steps": tier.hidden.shape[0],
                    "units": tier.hidden.shape[1],
                    "constant_units": tier.num_constant,
                    "follows": {name: vars(follows) for name, follows in tier.follows.items()},
                    "remarks": tier.remarks,
                    "strongest": [vars(unit) for unit in tier.units],
                }
                for tier in self.tiers
            ],
        }

    def lines(self) -> Iterator[str]:
        """The table, for people to read."""
        for tier in self.tiers:
            constant = f", {tier.num_constant} of them constant" if tier.num_constant else ""
            yield (
                f"{_name(tier, self.sample_rate)}: {tier.hidden.shape[1]} units{constant}, "
                f"{tier.hidden.shape[0]} steps"
            )
            for feature in FEATURES:
                if feature in tier.remarks:
                    yield f"  {feature:9} {tier.remarks[feature]}"
                    continue
                found = tier.follows[feature]
                sign = "" if feature == "phase" else "+"
                by_chance = f"the best of all units reaches {found.chance:.2f} by chance"
                if found.num_above:
                    yield (
                        f"  {feature:9} {found.best:{sign}.2f} in unit {found.unit}; {by_chance}; "
                        f"{found.num_above} above that"
                    )
                else:
                    yield (
                        f"  {feature:9} no unit: {found.best:{sign}.2f} in unit {found.unit}, but {by_chance}"
                    )

    def draw(self) -> Figure:
        """The strongest units over waveform and spectrogram."""
        groups = {}
        for tier in self.tiers:
            title = _name(tier, self.sample_rate)
            if not tier.units:
                title += ": no unit follows anything more closely than by chance"
            groups[title] = [_strip(tier, unit, self) for unit in tier.units]
        return plots.strips(f"{self.file.name}: {_LEGEND}", self.audio, self.sample_rate, groups, self.start)


def activations(
    checkpoint: Checkpoint, file: str | Path, start: float = 0.0, duration: float = 8.0, top: int = 8
) -> Activations:
    """Let a model hear a recording, and find the hidden units that follow something in it.

    Args:
        checkpoint: the model.
        file: a recording of any format and rate.
        start: seconds from its beginning.
        duration: seconds to look at, from 0.5 to 60; less if the recording ends before.
        top: units to pick per tier: the strongest of each feature first, then the second, and so on, so that
            no feature crowds out the others.

    Raises:
        UserError: an argument out of range, or the file cannot be read.
    """
    if not 0 <= start < math.inf:
        raise UserError(f"start must be 0 or more seconds, got {start:g}")
    if not _MIN_SECONDS <= duration <= MAX_SECONDS:
        raise UserError(f"duration must be from {_MIN_SECONDS:g} to {MAX_SECONDS:g} s, got {duration:g}")
    if top < 1:
        raise UserError(f"top must be at least 1, got {top}")
    model, rate = checkpoint.build().float(), checkpoint.config.data.sample_rate
    samples, run_up = _read(Path(file), rate, start, duration, model.lookback)
    codes = torch.from_numpy(checkpoint.codec.encode(samples))
    heard = from_int16(samples).astype(np.float64) * checkpoint.gain
    tiers: list[TierActivations] = []
    above = model.lookback
    for tier, hidden in zip(model.tiers(), hidden_units(model, codes), strict=True):
        times = np.arange(run_up, len(samples), tier.frame_size)
        number = model.config.n_tiers - len(tiers)
        rows = hidden[run_up // tier.frame_size :].numpy()
        described = _features(heard, rate, times, above // tier.frame_size)
        tiers.append(_examine(number, tier.frame_size, above // tier.frame_size, rows, described, top))
        above = tier.frame_size
    return Activations(Path(file), start, samples[run_up:], rate, tuple(tiers))


@torch.inference_mode()
def hidden_units(model: SampleRNN, codes: Tensor) -> list[Tensor]:
    """Hidden vectors of every tier's top RNN layer while the model hears codes.

    Args:
        model: the network.
        codes: int64 ``[T]``, T a multiple of the largest frame.

    Returns:
        ``[T/frame, D]`` per frame-level tier, slowest first.
    """
    collected: list[Tensor] = []

    def collect(module: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        collected.append(outputs[0][0])

    hooks = [tier.register_forward_hook(collect) for tier in model.tiers()]
    try:
        model.listen(codes[None], model.initial_state(1))
    finally:
        for hook in hooks:
            hook.remove()
    return collected


def correlations(hidden: NDArray[np.float32], feature: NDArray[np.float64]) -> NDArray[np.float32]:
    """Pearson's correlation of every unit with a feature.

    Args:
        hidden: ``[F, D]``.
        feature: ``[F]``, or several, ``[n, F]``.

    Returns:
        ``[D]`` or ``[n, D]``; 0 for units and features that do not change.
    """
    return np.asarray(_standard(feature.T).T @ _standard(hidden) / len(hidden), np.float32)


def phase_strength(hidden: NDArray[np.float32], positions: NDArray[np.int64], ratio: int) -> NDArray[Any]:
    """The share of each unit's standard deviation that the position explains (the correlation ratio).

    Args:
        hidden: ``[F, D]``.
        positions: 0 … ratio - 1, ``[F]``, each equally often.
        ratio: number of positions.

    Returns:
        ``[D]``, 0 to 1.
    """
    at_position = np.eye(ratio, dtype=np.float32)[positions]  # [F, ratio]
    means = at_position.T @ _standard(hidden) * (ratio / len(hidden))  # [ratio, D]
    return np.asarray(np.sqrt((means**2).mean(axis=0)))


def _read(
    file: Path, sample_rate: int, start: float, duration: float, lookback: int
) -> tuple[NDArray[np.int16], int]:
    """The part of a recording with its run-up, whole frames of each, and the length of the run-up."""
    first = round(start * sample_rate)
    run_up = min(first, round(RUN_UP_SECONDS * sample_rate)) // lookback * lookback
    end = first + round(duration * sample_rate) // lookback * lookback
    pieces, position = [], 0
    for block in Decoded(file, sample_rate):
        pieces.append(to_int16(block[max(0, first - run_up - position) :]))
        position += len(block)
        if position >= end:
            break
    samples = np.concatenate(pieces)[: run_up + end - first]
    samples = samples[: len(samples) // lookback * lookback]
    if len(samples) - run_up < _MIN_SECONDS / 2 * sample_rate:
        raise UserError(
            f"{file}: of its {position / sample_rate:.2f} s too little is left after {start:g} s; "
            "take an earlier --start or a longer recording"
        )
    return samples, run_up


def _features(
    audio: NDArray[np.float64], sample_rate: int, times: NDArray[np.int64], ratio: int
) -> dict[str, NDArray[np.float64]]:
    found = {
        "loudness": features.loudness(audio, sample_rate, times),
        "onset": features.onset(audio, sample_rate, times),
        "pitch": features.pitch(audio, sample_rate, times),
    }
    return {**found, "phase": (np.arange(len(times)) % ratio).astype(float)} if ratio > 1 else found


def _examine(
    number: int,
    frame_size: int,
    ratio: int,
    hidden: NDArray[np.float32],
    described: dict[str, NDArray[np.float64]],
    top: int,
) -> TierActivations:
    """Compare every unit of a tier with every feature, and these with chance."""
    is_constant = hidden.std(axis=0) < _CONSTANT
    strengths, follows, remarks = {}, {}, {}
    for name in FEATURES:
        if problem := _unusable(name, described.get(name)):
            remarks[name] = problem
            continue
        strength, chance = _compare(name, hidden, described[name], ratio)
        best = int(np.abs(strength).argmax())
        above = int((np.abs(strength) > chance).sum())
        follows[name] = Follows(float(strength[best]), best, chance, above)
        strengths[name] = strength
    if is_constant.all():
        remarks = dict.fromkeys(FEATURES, "no unit changes")
        follows = {}
    units = _strongest(hidden, strengths, follows, ratio, top)
    return TierActivations(
        number, frame_size, ratio, hidden, described, follows, remarks, int(is_constant.sum()), units
    )


def _unusable(name: str, feature: NDArray[np.float64] | None) -> str | None:
    """Why units cannot be compared with a feature, if so."""
    if feature is None:
        return "there is no slower tier"
    known = feature[~np.isnan(feature)]
    if len(known) < max(20, _MIN_VOICED * len(feature)):
        return f"only {len(known) / len(feature):.0%} of the recording has one"
    smallest = {"loudness": 0.5, "onset": 1e-3, "pitch": 0.01, "phase": 0.0}[name]
    return None if known.std() > smallest else "does not vary in this recording"


def _compare(
    name: str, hidden: NDArray[np.float32], feature: NDArray[np.float64], ratio: int
) -> tuple[NDArray[np.float32], float]:
    """Strength of every unit ``[D]``, and what the best of them exceeds by chance in one of twenty cases.

    Chance: the same units and the same feature, but at other times. Loudness, onset and pitch are moved along
    by random times, ends joined, which keeps how slowly they change: slow things look alike easily. That
    would leave phase as it is; its positions are shuffled within each frame of the slower tier.
    """
    random = np.random.default_rng(0)
    if name == "phase":
        frames = len(hidden) // ratio
        maxima = [
            phase_strength(hidden, random.permuted(_positions(frames, ratio), axis=1).ravel(), ratio).max()
            for _ in range(_TRIALS // 2)
        ]
        strength = phase_strength(hidden, feature.astype(np.int64), ratio)
        return strength, float(np.quantile(maxima, _CHANCE))
    known = ~np.isnan(feature)
    hidden, feature = hidden[known], feature[known]
    margin = len(feature) // 10
    shifts = random.integers(margin, len(feature) - margin, _TRIALS)
    moved = np.stack([np.roll(feature, shift) for shift in shifts])
    by_chance = np.abs(correlations(hidden, moved)).max(axis=1)
    return correlations(hidden, feature), float(np.quantile(by_chance, _CHANCE))


def _positions(frames: int, ratio: int) -> NDArray[np.int64]:
    return np.tile(np.arange(ratio), (frames, 1))


def _strongest(
    hidden: NDArray[np.float32],
    strengths: dict[str, NDArray[np.float32]],
    follows: dict[str, Follows],
    ratio: int,
    top: int,
) -> tuple[Unit, ...]:
    """The strongest units of each feature by turns, among those beyond chance."""
    names = list(follows)
    if not names:
        return ()
    size = np.abs(np.stack([strengths[name] for name in names]))  # [features, D]
    size[size <= np.array([[follows[name].chance] for name in names])] = 0
    followed = size.argmax(axis=0)
    queues = [
        [
            unit
            for unit in np.argsort(-size[i], kind="stable").tolist()
            if followed[unit] == i and size[i, unit]
        ]
        for i in range(len(names))
    ]
    turns = sorted((rank, i) for i, queue in enumerate(queues) for rank in range(len(queue)))[:top]
    chosen = []
    for rank, i in sorted(turns, key=lambda turn: (turn[1], turn[0])):
        number = queues[i][rank]
        highest = None
        if names[i] == "phase":
            highest = int(hidden[:, number].reshape(-1, ratio).mean(axis=0).argmax()) + 1
        chosen.append(Unit(number, names[i], float(strengths[names[i]][number]), highest))
    return tuple(chosen)


def _standard(values: NDArray[Any]) -> NDArray[np.float32]:
    """Columns ``[F, …]`` with mean 0 and standard deviation 1, or all 0 where nothing changes."""
    deviation = values.std(axis=0)
    scale = np.where(deviation < _CONSTANT, 0, 1 / np.maximum(deviation, _CONSTANT))
    result: NDArray[np.float32] = ((values - values.mean(axis=0)) * scale).astype(np.float32)
    return result


def _name(tier: TierActivations, sample_rate: int) -> str:
    step = 1000 * tier.frame_size / sample_rate
    return f"tier {tier.number}, a step every {step:.3g} ms"


def _strip(tier: TierActivations, unit: Unit, whole: Activations) -> plots.Strip:
    """What `plots` needs to draw a unit."""
    values, feature = tier.hidden[:, unit.number], tier.features[unit.feature]
    seconds = whole.start + np.arange(len(values)) * tier.frame_size / whole.sample_rate
    if unit.feature == "phase":
        where = f"highest at step {unit.highest_step} of {tier.ratio_above}"
        title = f"unit {unit.number}: phase {unit.correlation:.2f}, {where}"
        return plots.Strip(title, seconds, values, None, tier.ratio_above)
    known = ~np.isnan(feature)
    slope, constant = np.polyfit(feature[known], values[known], 1)
    title = f"unit {unit.number}: {unit.feature} {unit.correlation:+.2f}"
    return plots.Strip(title, seconds, values, slope * feature + constant)
