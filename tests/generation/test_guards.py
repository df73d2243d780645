"""Guards on real recordings, with and without traps spliced in; their state, repeats and timing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from samplernn.audio.io import load, to_int16
from samplernn.config import ModelConfig
from samplernn.generation.guards import REPEAT_SECONDS, Expected, Guard, Trap, expected_of, traps_in
from samplernn.model.baselines import count_pairs
from samplernn.model.codec import Codec
from samplernn.model.heads import SoftmaxHead
from samplernn.model.quantize import Quantizer

RATE, HOP = 16000, 4032
QUANTIZER = Quantizer(256, "linear")
HEAD = SoftmaxHead(ModelConfig())


@pytest.fixture(scope="module")
def recordings(clips: Path) -> dict[str, NDArray[np.int16]]:
    """Every embedded clip, int16 at 16 kHz."""
    return {
        f"{path.parent.name}/{path.stem}": to_int16(load(path, RATE))
        for path in sorted(clips.glob("*/*.flac"))
    }


@pytest.fixture(scope="module")
def gain(recordings: dict[str, NDArray[np.int16]]) -> float:
    peak = max(np.abs(x.astype(np.int32)).max() for x in recordings.values()) / 32768
    return 10 ** (-1 / 20) / float(peak)


@pytest.fixture(scope="module")
def expected(recordings: dict[str, NDArray[np.int16]], gain: float) -> Expected:
    """What a checkpoint trained on the clips would know of them."""
    codec = Codec(QUANTIZER, gain)
    pieces = (codec.encode(x) for x in recordings.values())
    return expected_of(count_pairs(pieces, codec.q_levels), codec, HEAD)


@pytest.fixture(scope="module")
def speech(recordings: dict[str, NDArray[np.int16]]) -> NDArray[np.int16]:
    """All spoken sentences, one after the other."""
    return np.concatenate([x for name, x in recordings.items() if name.startswith("speech/")])


def hear(guard: Guard, x: NDArray[np.int16]) -> list[Trap]:
    """All reports on `x`, whose last part of a hop is left out."""
    reports = (guard.hear(hop) for hop in x[: len(x) // guard.hop * guard.hop].reshape(-1, guard.hop))
    return [report for report in reports if report]


def seconds_of(trap: str, source: NDArray[np.int16], seconds: float) -> NDArray[np.int16]:
    """A trap, made of nothing or of a piece of a recording."""
    n, rng = round(seconds * RATE), np.random.default_rng(5)
    noise = rng.standard_normal(n)
    if trap == "digital silence":
        return np.zeros(n, np.int16)
    if trap == "a constant":
        return np.full(n, 300, np.int16)
    if trap == "near silence":
        return (noise * 8).round().astype(np.int16)
    if trap == "white noise":
        return (noise * 0.15 * 32768).clip(-32768, 32767).astype(np.int16)
    if trap == "square wave at rate/4":
        return np.tile(np.array([9000, 9000, -9000, -9000], np.int16), n // 4)
    kind, ms, snr = trap.split()  # such as "loop 300 20": the same 300 ms with noise 20 dB below it
    assert kind == "loop"
    length = int(ms) * RATE // 1000 + 1  # not a multiple of anything
    start = int(np.convolve(source.astype(float) ** 2, np.ones(length), "valid").argmax())
    piece = np.tile(source[start : start + length], n // length + 1)[:n].astype(float)
    if snr != "inf":
        piece += noise * piece.std() * 10 ** (-float(snr) / 20)
    return piece.clip(-32768, 32767).round().astype(np.int16)


def test_level_and_brightness_follow_from_the_counts(expected: Expected, recordings, gain) -> None:
    """As computed from the decoded samples themselves."""
    codec, plain = Codec(QUANTIZER, gain), Codec(QUANTIZER)
    heard = [plain.decode(codec.encode(x)) / 32768 / gain for x in recordings.values()]
    everything = np.concatenate(heard)
    energy = everything.var()
    differences = sum((np.diff(x, prepend=0.0) ** 2).sum() for x in heard) / len(everything)
    assert expected.level == pytest.approx(10 * math.log10(energy), abs=1e-3)
    assert expected.brightness == pytest.approx(differences / energy, rel=1e-3)
    assert expected.step == pytest.approx(1 / 128 / gain)


def test_counts_of_nothing_leave_the_defaults() -> None:
    none = np.zeros((256, 256), np.int64)
    silence = none.copy()
    silence[128, 128] = 1000
    for counts in (none, silence):
        usual = expected_of(counts, Codec(QUANTIZER), HEAD)
        assert (usual.level, usual.brightness, usual.step) == (-20.0, 0.25, 1 / 128)


@pytest.mark.parametrize("heard_as", ["recorded", "8 bit", "unknown"])
def test_recordings_raise_no_alarm(expected: Expected, recordings, gain: float, heard_as: str) -> None:
    """Each for itself and all in a row; as they are, as the model's codes, and without any counts."""
    if heard_as == "8 bit":
        codec = Codec(QUANTIZER, gain)
        recordings = {name: codec.decode(codec.encode(x)) for name, x in recordings.items()}
    if heard_as == "unknown":
        expected = Expected()
    everything = [*recordings.items(), ("all", np.concatenate(list(recordings.values())))]
    assert sum(len(x) for _, x in everything) > 4 * 60 * RATE
    assert {name: reports for name, x in everything if (reports := hear(Guard(expected, RATE, HOP), x))} == {}


@pytest.mark.parametrize(
    ("trap", "kind"),
    [
        ("digital silence", "silence"),
        ("a constant", "silence"),
        ("near silence", "silence"),
        ("white noise", "noise"),
        ("square wave at rate/4", "noise"),
        ("loop 6 inf", "loop"),
        ("loop 20 inf", "loop"),
        ("loop 20 20", "loop"),
        ("loop 300 inf", "loop"),
        ("loop 300 20", "loop"),
        ("loop 980 inf", "loop"),
        ("loop 980 20", "loop"),
    ],
)
def test_a_trap_is_named_in_time(expected: Expected, speech: NDArray[np.int16], trap: str, kind: str) -> None:
    for onset in (0, 5 * HOP, 5 * HOP + 1, 6 * HOP - 1, 7 * HOP + HOP // 2):
        x = np.concatenate([speech[:onset], seconds_of(trap, speech, 4), speech[onset:]])
        report, *more = hear(Guard(expected, RATE, HOP), x)
        assert (report.kind, more) == (kind, []), onset
        assert report.begin <= onset <= report.begin + 2 * HOP
        assert report.seen - report.begin < 3 * RATE
        assert report.seen - onset <= 2.55 * RATE
        if kind == "loop":  # the period itself, not a multiple (a piece may itself be periodic)
            assert float(report.detail.split()[1]) <= float(trap.split()[1]) + 0.2


@pytest.mark.parametrize("trap", ["digital silence", "white noise", "loop 20 20", "loop 300 20"])
def test_less_than_a_second_is_no_trap(expected: Expected, speech: NDArray[np.int16], trap: str) -> None:
    x = np.concatenate([speech[:40000], seconds_of(trap, speech, 0.9), speech[40000:]])
    assert hear(Guard(expected, RATE, HOP), x) == []


def test_a_tone_that_dies_away_is_no_loop(expected: Expected) -> None:
    """A plucked string repeats its period as exactly as a loop does, but decays, here 3 dB per second."""
    t = np.arange(5 * RATE) / RATE
    steady = (9000 * np.sin(2 * np.pi * 220.3 * t)).astype(np.int16)
    assert [trap.kind for trap in hear(Guard(expected, RATE, HOP), steady)] == ["loop"]
    assert hear(Guard(expected, RATE, HOP), (steady * 10 ** (-3 * t / 20)).astype(np.int16)) == []


def test_noisy_training_audio_makes_noise_normal(speech: NDArray[np.int16]) -> None:
    noise = seconds_of("white noise", speech, 10)
    level = 20 * math.log10(0.15)
    assert [trap.kind for trap in hear(Guard(Expected(level, 0.1), RATE, HOP), noise)] == ["noise"]
    assert hear(Guard(Expected(level, 1.9), RATE, HOP), noise) == []


def test_quiet_training_audio_makes_quiet_normal(speech: NDArray[np.int16]) -> None:
    quiet = (speech / 100).round().astype(np.int16)  # about -65 dBFS
    assert {trap.kind for trap in hear(Guard(Expected(-20, 0.1), RATE, HOP), quiet)} == {"silence"}
    assert hear(Guard(Expected(-60, 0.1), RATE, HOP), quiet) == []


def test_a_long_trap_is_reported_again_and_a_new_one_anew(
    expected: Expected, speech: NDArray[np.int16]
) -> None:
    guard = Guard(expected, RATE, HOP)
    silence, sound = np.zeros(70 * RATE // HOP * HOP, np.int16), speech[: 10 * HOP]
    reports = hear(guard, silence)
    assert [trap.begin for trap in reports] == [0, 0, 0]
    assert np.diff([trap.seen for trap in reports]) / RATE == pytest.approx(REPEAT_SECONDS, abs=HOP / RATE)
    assert guard.trap == reports[-1]
    assert hear(guard, sound) == []
    assert guard.trap is None
    (again,) = hear(guard, silence[: 20 * HOP])
    assert again.begin == len(silence) + len(sound) - HOP


def test_a_click_does_not_end_a_silence(expected: Expected) -> None:
    x = np.zeros(40 * HOP, np.int16)
    x[20 * HOP + 7 : 20 * HOP + 1000] = 9000
    x[30 * HOP - 100 : 30 * HOP + 100] = -9000
    assert len(hear(Guard(expected, RATE, HOP), x)) == 1


def test_forget_starts_afresh_at_the_same_time(expected: Expected) -> None:
    guard, silence = Guard(expected, RATE, HOP), np.zeros(9 * HOP, np.int16)
    assert len(hear(guard, silence)) == 1
    guard.forget()
    assert guard.trap is None
    (again,) = hear(guard, silence)
    assert again.begin == 8 * HOP  # never before what it remembers, but for the hop of doubt
    assert again.seen == 17 * HOP


def test_copies_and_restored_guards_say_the_same(expected: Expected, speech: NDArray[np.int16]) -> None:
    """From any moment on: before, while and after each of the traps."""
    parts = [speech[:30000]]
    for trap in ("near silence", "white noise", "loop 20 20", "loop 300 inf"):
        parts += [seconds_of(trap, speech, 5), speech[30000:80000]]
    hops = np.concatenate(parts)[: sum(map(len, parts)) // HOP * HOP].reshape(-1, HOP)
    guard = Guard(expected, RATE, HOP)
    said, copies, states = [], [], []
    for hop in hops:
        copies.append(guard.copy())
        states.append(guard.export_state())
        said.append(guard.hear(hop))
    assert [trap.kind for trap in said if trap] == ["silence", "noise", "loop", "loop"]
    end = guard.export_state()
    for start in range(len(hops)):
        restored = Guard(expected, RATE, HOP)
        restored.import_state(states[start])
        for other in (copies[start], restored):
            state = other.export_state()
            assert all(np.array_equal(state[name], states[start][name]) for name in states[start])
            assert [other.hear(hop) for hop in hops[start : start + 20]] == said[start : start + 20]
    hear(copies[0], hops[20:].ravel())
    state = copies[0].export_state()
    assert all(np.array_equal(state[name], end[name]) for name in end)


def test_float_and_integer_samples_are_the_same(expected: Expected, speech: NDArray[np.int16]) -> None:
    x = np.concatenate([speech[:HOP], seconds_of("white noise", speech, 3)])
    whole, floats = Guard(expected, RATE, HOP), Guard(expected, RATE, HOP)
    for hop in x[: len(x) // HOP * HOP].reshape(-1, HOP):
        assert whole.hear(hop) == floats.hear(hop.astype(np.float32) / 32768)
    assert whole.trap is not None


def test_the_callers_buffer_may_be_reused(expected: Expected, speech: NDArray[np.int16]) -> None:
    guard, buffer = Guard(expected, RATE, HOP), np.empty(HOP, np.int16)
    for hop in speech[: 10 * HOP].reshape(-1, HOP):
        buffer[:] = hop
        guard.hear(buffer)
    assert np.array_equal(guard.export_state()["samples"][-2], speech[8 * HOP : 9 * HOP])


@pytest.mark.parametrize("rate", [4000, 8000, 22050, 48000])
def test_other_sample_rates(clips: Path, rate: int) -> None:
    hop = round(0.25 * rate) // 16 * 16
    x = to_int16(load(clips / "speech" / "austen_0870.flac", rate))[: 10 * hop]
    energy = x.astype(float) ** 2 / 2**30
    expected = Expected(10 * math.log10(energy.mean()), (np.diff(x / 32768) ** 2).sum() / energy.sum())
    period = rate // 100
    loop = np.tile(x[5 * hop : 5 * hop + period], 3 * rate // period)
    for trap, kind in ((np.zeros(3 * rate, np.int16), "silence"), (loop, "loop")):
        assert [found.kind for found in hear(Guard(expected, rate, hop), np.concatenate([x, trap]))] == [kind]


def test_wrong_hops_are_refused(expected: Expected) -> None:
    with pytest.raises(ValueError, match=r"0\.1 s to 0\.5 s, got 160 samples at 16000 Hz"):
        Guard(expected, RATE, 160)
    guard = Guard(expected, RATE, HOP)
    with pytest.raises(ValueError, match="4032 samples at a time, got shape"):
        guard.hear(np.zeros(HOP - 1, np.int16))
    with pytest.raises(ValueError, match="another hop"):
        Guard(expected, RATE, 4000).import_state(guard.export_state())


def test_a_report_reads_well(expected: Expected) -> None:
    (trap,) = hear(Guard(expected, RATE, HOP), np.zeros(9 * HOP, np.int16))
    assert trap.describe(RATE) == "silence since 0.0 s (no sound at all)"


def test_the_traps_of_a_whole_recording_are_those_that_a_guard_reports(
    recordings: dict[str, NDArray[np.int16]],
) -> None:
    speech = recordings["speech/austen_0870"]
    assert traps_in(speech, Expected(), RATE, HOP) == []
    silenced = np.concatenate([speech[: 8 * HOP], np.zeros(20 * HOP + 17, np.int16)])
    guard, reported = Guard(Expected(), RATE, HOP), []
    for start in range(0, 28 * HOP, HOP):
        if trap := guard.hear(silenced[start : start + HOP]):
            reported.append(trap)
    assert [trap.kind for trap in reported] == ["silence"]
    assert traps_in(silenced, Expected(), RATE, HOP) == reported
    assert traps_in(speech[: HOP - 1], Expected(), RATE, HOP) == []
