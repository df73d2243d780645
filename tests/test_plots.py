"""Pictures show what they claim: the right band, the right level."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samplernn import plots
from samplernn.config import UserError


def _tone(hertz: float, level_db: float = 0.0, rate: int = 16000) -> np.ndarray:
    t = np.arange(rate) / rate
    return (10 ** (level_db / 20) * 32767 * np.sin(2 * np.pi * hertz * t)).astype(np.int16)


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 5000.0])
def test_a_tone_is_brightest_at_its_own_frequency(hertz: float) -> None:
    picture = plots.mel_spectrogram(_tone(hertz), 16000)
    band = int(picture[:, 50].argmax())
    positions, labels = plots._mel_ticks(16000)
    expected = np.interp(hertz, [float(label) for label in labels], positions)
    assert abs(band - expected) < 3


def test_level_is_relative_to_full_scale_and_has_a_floor() -> None:
    loud, quiet = (plots.mel_spectrogram(_tone(1000, level), 16000)[:, 50].max() for level in (0, -20))
    assert loud - quiet == pytest.approx(20, abs=0.5)
    assert -3 < loud <= 0
    assert plots.mel_spectrogram(np.zeros(16000, np.int16), 16000).max() == -80


def test_spectrograms_of_unequal_length_become_one_png(tmp_path: Path) -> None:
    figure = plots.spectrograms({"one": _tone(300), "short": _tone(900)[:100]}, 16000)
    plots.save(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    pixels = plots.pixels(figure)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert pixels.std() > 10


def test_curves_have_a_line_for_each_series_in_the_order_of_steps() -> None:
    figure = plots.curves({"one": {20: 2.0, 10: 3.0}, "two": {10: 2.5}})
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["one", "two"]
    assert lines[0].get_xydata().tolist() == [[10, 3], [20, 2]]
    assert plots.pixels(figure).min() < 128


def _strip(title: str, **changes: object) -> plots.Strip:
    seconds = np.arange(4000) / 1000
    options = {"values": np.sin(seconds), "reference": np.cos(seconds), **changes}
    return plots.Strip(title, seconds, **options)  # type: ignore[arg-type]


def test_strips_share_the_time_axis_of_the_audio() -> None:
    audio = np.tile(_tone(440), 4)
    groups = {"tier 3": [_strip("one"), _strip("two", reference=None)], "tier 2, $none$": []}
    figure = plots.strips("a $ and $ b", audio, 16000, groups, start=2.0)
    waveform, spectrogram, heading, one, two, empty = figure.axes
    assert waveform.get_xlim() == (2.0, 6.0)
    assert spectrogram.images[0].get_extent()[:2] == [2.0, 6.0]
    assert [axis.texts[0].get_text() for axis in (heading, one, two)] == ["tier 3", "one", "two"]
    assert (len(one.lines), len(two.lines)) == (2, 1)
    assert not empty.axison
    assert plots.pixels(figure).std() > 10


def test_a_strip_of_turns_draws_each_of_them_apart() -> None:
    values = np.tile([0.0, 1.0, 2.0, 3.0], 1000)
    figure = plots.strips(
        "x", np.tile(_tone(440), 4), 16000, {"": [_strip("t", values=values, reference=None, turns=4)]}
    )
    lines = figure.axes[-1].lines
    assert [set(line.get_ydata()) for line in lines] == [{0.0}, {1.0}, {2.0}, {3.0}]


def test_decays_show_medians_marks_and_the_largest_of_each_spectrum() -> None:
    lags = np.array([1.0, 10.0, 100.0])
    quartiles = np.array([[0.5, 0.05, 0.0], [1.0, 0.1, 1e-30], [2.0, 0.2, 1e-29]])
    spectra = {"reset": np.array([3.0, 1.0]), "new": np.array([0.5, 2.0])}
    figure = plots.decays([plots.Decay("slow", lags, quartiles)], "left", {"cut": 32.0}, spectra)
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [1.0, 0.1, 1e-30]
    assert list(left.lines[1].get_xdata()) == [32.0, 32.0]
    assert left.get_ylim()[0] == pytest.approx(2e-8)  # what is smaller still is nothing
    assert [label.get_text() for label in right.get_yticklabels()] == ["reset", "new"]
    assert [line.get_xdata()[0] for line in right.lines if line.get_marker() == "."] == [3.0, 2.0]
    assert plots.pixels(figure).std() > 10


def test_the_small_picture_shows_the_tone_at_the_mark_of_its_frequency() -> None:
    marks = {label: height for height, label in plots.frequency_marks(16000)}
    assert set(marks) == {"500 Hz", "2 kHz"}
    for hertz, label in ((500.0, "500 Hz"), (2000.0, "2 kHz")):
        picture = np.array(Image.open(io.BytesIO(plots.spectrogram_png(_tone(hertz), 16000))).convert("L"))
        row = int(picture[:, 50].argmax())
        assert 1 - row / picture.shape[0] == pytest.approx(marks[label], abs=0.03)


def test_the_small_picture_of_a_long_recording_is_no_wider() -> None:
    picture = Image.open(io.BytesIO(plots.spectrogram_png(np.tile(_tone(300, -30), 30), 16000)))
    assert 700 < picture.size[0] <= 800


def test_a_mel_image_is_the_spectrogram_with_its_lowest_band_at_the_bottom() -> None:
    picture = plots.mel_image(_tone(200), 16000)
    frames = plots.mel_spectrogram(_tone(200), 16000).shape[1]
    assert picture.shape == (192, frames, 3)
    assert picture.dtype == np.uint8
    brightness = picture.sum(axis=2, dtype=int)[:, 50]
    band = int(plots.mel_spectrogram(_tone(200), 16000)[:, 50].argmax())
    assert brightness.argmax() // 2 == 95 - band


def test_a_picture_of_few_colours_is_a_quarter_of_the_size_and_looks_the_same() -> None:
    exact, stored = (
        draw(plots.spectrograms({"a tone": _tone(200), "another": _tone(3000, -30)}, 16000))
        for draw in (plots.pixels, plots.png)  # each a figure of its own: drawn twice, its parts move
    )
    assert isinstance(exact, np.ndarray)
    assert isinstance(stored, bytes)
    shown = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))
    assert shown.shape == exact.shape
    assert np.abs(shown.astype(int) - exact).max() <= 24  # of 255
    whole = io.BytesIO()
    Image.fromarray(exact).save(whole, "PNG")
    assert len(stored) < 0.6 * len(whole.getvalue())


def test_code_histograms_are_shares_of_samples() -> None:
    figure = plots.code_histograms(
        np.array([10, 80, 10, 0]), {"cold": np.array([0, 4, 0, 0]), "hot": np.array([1, 1, 1, 1])}
    )
    axis = figure.axes[0]
    cold, hot = axis.lines
    assert [line.get_label() for line in axis.lines] == ["cold", "hot"]
    assert cold.get_ydata()[1] == 1
    assert hot.get_ydata().tolist() == [0.25] * 4
    assert 0 < min(cold.get_ydata()) < 0.1  # never 0, which a logarithm does not show
    area = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert area.max() == pytest.approx(0.8)
    assert plots.pixels(figure).min() < 128


def test_long_term_spectra_are_drawn_at_their_frequencies() -> None:
    edges = np.array([100.0, 400.0, 1600.0])
    figure = plots.long_term_spectra(edges, np.array([-30.0, -50.0]), {"one": np.array([-20.0, -60.0])})
    axis = figure.axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[pytest.approx(200), -20], [pytest.approx(800), -60]]
    corpus = axis.patches[0].get_data()
    assert corpus.values.tolist() == [-30, -50]
    assert corpus.edges.tolist() == edges.tolist()
    assert axis.get_xlim() == (100, 1600)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_our_mel_spectrogram_is_torchaudios(sample_rate: int) -> None:
    """Noise with a tone in it, within 1e-3 dB in every band and frame."""
    transforms = pytest.importorskip("torchaudio.transforms", exc_type=Exception)
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, sample_rate).astype(np.float32))
    x += 0.3 * torch.sin(2 * torch.pi * 440 / sample_rate * torch.arange(sample_rate))
    window, hop = 2 ** round(np.log2(sample_rate * 0.064)), sample_rate // 100
    theirs = transforms.MelSpectrogram(sample_rate, n_fft=window, hop_length=hop, n_mels=96, f_min=30.0)(x)
    ours = plots.own_mel_transform(sample_rate, window, hop)(x)
    heard = theirs > 0  # a band narrower than a bin has no power in either
    assert torch.equal(heard, ours > 0)
    assert (10 * (ours[heard] / theirs[heard]).log10()).abs().max() < 1e-3


def test_a_torchaudio_that_does_not_load_costs_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine where its library lacks a symbol of the torch beside it (OSError)."""
    expected = plots.mel_spectrogram(_tone(1000), 16000)
    monkeypatch.setattr(builtins, "__import__", _without("torchaudio"))
    plots._mel_transform.cache_clear()
    try:
        pictures = [plots.mel_spectrogram(_tone(1000), 16000) for _ in range(2)]
    finally:
        plots._mel_transform.cache_clear()
    assert np.abs(pictures[1] - expected).max() < 1e-3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "torchaudio cannot be loaded (Could not load this library)" in said


def test_a_matplotlib_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "__import__", _without("matplotlib"))
    with pytest.raises(UserError, match="no pictures: matplotlib cannot be loaded") as failure:
        plots.spectrograms({"a": _tone(1000)}, 16000)
    assert "pip install --force-reinstall matplotlib" in str(failure.value)


def _without(library: str) -> Callable[..., Any]:
    """An import that fails for one library, as a broken installation does."""
    load = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == library:
            raise OSError("Could not load this library")
        return load(name, *args, **kwargs)

    return broken
