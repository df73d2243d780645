"""Pictures of audio and of curves. Figures are drawn without a display and returned as files or arrays."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

_MELS = 96
_FLOOR_DB = -80.0
_MOST_COLUMNS = 800


def mel_spectrogram(audio: NDArray[np.int16], sample_rate: int) -> NDArray[np.float32]:
    """Mel power spectrogram in dB relative to full scale, at least -80.

    Args:
        audio: int16 ``[T]``.
        sample_rate: Hz.

    Returns:
        ``[96, frames]``, lowest band first, one frame every 10 ms.
    """
    from torchaudio.transforms import MelSpectrogram

    window = 2 ** round(np.log2(sample_rate * 0.064))
    audio = np.pad(audio, (0, max(0, window - len(audio))))
    transform = MelSpectrogram(
        sample_rate, n_fft=window, hop_length=max(1, sample_rate // 100), n_mels=_MELS, f_min=30.0
    )
    # A full-scale sine in a Hann window: a peak of (window/4)², spread over 1.5 bins, is 0 dB.
    power = transform(torch.from_numpy(audio.astype(np.float32) / 32768)) / (1.5 * (window / 4) ** 2)
    return (10 * power.clamp(min=10 ** (_FLOOR_DB / 10)).log10()).numpy()


def spectrograms(clips: Mapping[str, NDArray[np.int16]], sample_rate: int) -> Figure:
    """One mel spectrogram per clip below each other, on one scale.

    Args:
        clips: title and int16 ``[T]`` of each.
        sample_rate: Hz.
    """
    figure = Figure(figsize=(9, 0.4 + 1.7 * len(clips)), layout="constrained")
    axes = figure.subplots(len(clips), squeeze=False, sharex=True)[:, 0]
    longest = max(len(audio) for audio in clips.values()) / sample_rate
    for axis, (title, audio) in zip(axes, clips.items(), strict=True):
        axis.imshow(
            mel_spectrogram(audio, sample_rate),
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=_FLOOR_DB,
            vmax=0,
            extent=(0, len(audio) / sample_rate, 0, _MELS),
        )
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_yticks(*_mel_ticks(sample_rate))
        axis.set_ylabel("Hz", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.set_xlim(0, longest)
    axes[-1].set_xlabel("seconds", fontsize=8)
    bar = figure.colorbar(axes[0].images[0], ax=list(axes), pad=0.01)
    bar.set_label("dB", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def curves(series: Mapping[str, Mapping[int, float]], ylabel: str = "bits per sample") -> Figure:
    """Curves over the training step in one diagram, thick and thin by turns: of two equal ones both show.

    Args:
        series: title and, for every step, the value of each.
        ylabel: what the values are.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    for number, (title, points) in enumerate(series.items()):
        steps, is_thin = sorted(points), number % 2 == 1
        width, alpha = (1.2, 1.0) if is_thin else (4.5, 0.5)
        axis.plot(steps, [points[step] for step in steps], label=title, linewidth=width, alpha=alpha)
    axis.set_xlabel("step")
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def spectrogram_png(audio: NDArray[np.int16], sample_rate: int) -> bytes:
    """The picture of a mel spectrogram alone, without axes, as a small PNG file of 256 colours.

    Args:
        audio: int16 ``[T]``.
        sample_rate: Hz.
    """
    levels = mel_spectrogram(audio, sample_rate)[::-1]
    group = -(-levels.shape[1] // _MOST_COLUMNS)
    columns = levels.shape[1] // group * group
    levels = levels[:, :columns].reshape(_MELS, -1, group).max(axis=2)
    picture = Image.fromarray(np.rint(255 * (levels / -_FLOOR_DB + 1)).clip(0, 255).astype(np.uint8))
    picture.putpalette(np.rint(255 * colormaps["magma"](np.arange(256))[:, :3]).astype(np.uint8).tobytes())
    stored = io.BytesIO()
    picture.save(stored, "PNG", optimize=True)
    return stored.getvalue()


def frequency_marks(sample_rate: int) -> list[tuple[float, str]]:
    """Where round frequencies lie in `spectrogram_png`: part of its height from below, and a short name."""
    positions, labels = _mel_ticks(sample_rate)
    names = {"500": "500 Hz", "2000": "2 kHz", "8000": "8 kHz"}
    marks = zip(positions, labels, strict=True)
    return [(band / _MELS, names[label]) for band, label in marks if label in names and band < 0.96 * _MELS]


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file."""
    FigureCanvasAgg(figure).print_png(str(path))


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as an image, uint8 ``[height, width, 3]``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _mel_ticks(sample_rate: int) -> tuple[Sequence[float], Sequence[str]]:
    """Positions (in bands) and labels of round frequencies on a mel axis."""

    def mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    low, high = mel(30.0), mel(sample_rate / 2)
    shown = [hertz for hertz in (100, 500, 1000, 2000, 4000, 8000, 16000) if hertz <= sample_rate / 2]
    return [_MELS * (mel(hertz) - low) / (high - low) for hertz in shown], [str(hertz) for hertz in shown]
