"""Pictures of audio and of curves. Figures are drawn without a display and returned as files or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

_MELS = 96
_FLOOR_DB = -80.0
_ROUND_HERTZ = (50, 100, 200, 500, 1000, 2000, 4000, 8000, 16000)


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


def mel_image(audio: NDArray[np.int16], sample_rate: int) -> NDArray[np.uint8]:
    """A mel spectrogram without axes, lowest band at the bottom: one pixel per 10 ms, two per band.

    Args:
        audio: int16 ``[T]``.
        sample_rate: Hz.

    Returns:
        uint8 ``[192, frames, 3]``.
    """
    from matplotlib import colormaps

    levels = 1 - mel_spectrogram(audio, sample_rate)[::-1] / _FLOOR_DB
    return colormaps["magma"](np.repeat(levels, 2, axis=0), bytes=True)[..., :3].copy()


def code_histograms(corpus: NDArray[np.int64], found: Mapping[str, NDArray[np.int64]]) -> Figure:
    """How often each code occurs: in the corpus as an area, in generated audio as a line each.

    Args:
        corpus: counts ``[Q]``.
        found: title and counts ``[Q]`` of each.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    smallest = 0.3 / max(1, *(int(counts.sum()) for counts in (corpus, *found.values())))
    shares = {title: counts / max(1, counts.sum()) for title, counts in found.items()}
    codes = np.arange(len(corpus))
    axis.fill_between(
        codes,
        smallest,
        corpus / max(1, corpus.sum()),
        step="mid",
        color="0.75",
        label="corpus (training part)",
    )
    for title, share in shares.items():
        axis.step(codes, np.maximum(share, smallest), where="mid", linewidth=1, label=title)
    axis.set_yscale("log")
    axis.set_ylim(smallest, 1)
    axis.set_xlim(0, len(corpus) - 1)
    axis.set_xlabel(f"code ({len(corpus) // 2} is silence)")
    axis.set_ylabel("share of samples")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def long_term_spectra(
    edges: NDArray[np.float64], corpus: NDArray[np.float64], found: Mapping[str, NDArray[np.float64]]
) -> Figure:
    """Long-term average spectra: of a recording as an area, of generated audio as a line each.

    Args:
        edges: Hz between which the bands lie, ``[bands + 1]``.
        corpus: dB per band, ``[bands]``.
        found: title and dB per band of each.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    floor = min(float(levels.min()) for levels in (corpus, *found.values())) - 3
    axis.stairs(corpus, edges, baseline=floor, fill=True, color="0.75", label="corpus (held-out recording)")
    centres = np.sqrt(edges[:-1] * edges[1:])
    for title, levels in found.items():
        axis.plot(centres, levels, linewidth=1.5, label=title)
    axis.set_xscale("log")
    axis.set_xlim(edges[0], edges[-1])
    axis.set_xticks([hertz for hertz in _ROUND_HERTZ if edges[0] <= hertz <= edges[-1]])
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("Hz")
    axis.set_ylabel("dB in each mel band")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
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


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file."""
    FigureCanvasAgg(figure).print_png(str(path))


def save_pixels(picture: NDArray[np.uint8], path: Path) -> None:
    """Write an image, uint8 ``[height, width, 3]``, to a PNG file."""
    from PIL import Image  # which matplotlib needs, too

    Image.fromarray(picture).save(path, format="PNG")


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
