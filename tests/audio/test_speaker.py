from __future__ import annotations

import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from samplernn.audio.io import AudioError
from samplernn.audio.speaker import QUEUE_SECONDS, SpeakerSink
from tests.audio.loudspeaker import Device

RATE = 16000


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    return device


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-20000, 20000, num_samples).astype(np.int16)


@pytest.mark.parametrize("block", [160, 1600, 1601, 50_000])
def test_everything_is_played_in_order(device: Device, block: int) -> None:
    samples = noise(3 * RATE + 7)
    with SpeakerSink(RATE) as sink:
        device.sink = sink
        for start in range(0, len(samples), block):
            again = samples[start : start + block].copy()
            sink.write(again)
            again[:] = 0  # the caller may use its array again
    assert bytes(device.heard[: 2 * len(samples)]) == samples.tobytes()
    assert not any(device.heard[2 * len(samples) :])  # silence, since stopping may lose what the device holds
    assert len(device.heard) >= 2 * (len(samples) + int(device.latency * RATE))
    assert sink.num_samples == len(samples)
    assert device.calls == ["start", "stop", "close"]
    assert device.started_with >= 0.3 * RATE
    assert device.threads == {"samplernn-speaker"}  # PortAudio is not made for several
    assert sink.underruns == 0
    sink.close()
    with pytest.raises(ValueError, match="after close"):
        sink.write(samples)


def test_less_than_it_waits_for_is_played_at_the_end(device: Device) -> None:
    with SpeakerSink(RATE) as sink:
        sink.write(noise(1000))
        time.sleep(0.05)
        assert device.calls == []
    assert bytes(device.heard[:2000]) == noise(1000).tobytes()
    assert sink.underruns == 0


def test_nothing_is_played_of_nothing(device: Device) -> None:
    with SpeakerSink(RATE) as sink:
        sink.write(np.zeros(0, np.int16))
    assert device.heard == b""
    assert device.calls[-1] == "close"


def test_a_fast_producer_waits(device: Device) -> None:
    """Memory stays bounded, and stopping is not heard minutes later."""
    most = 0
    with SpeakerSink(RATE) as sink:
        for start in range(0, 5 * RATE, 800):
            sink.write(noise(5 * RATE)[start : start + 800])
            most = max(most, sink._queued)
    assert 0.5 * RATE < most <= QUEUE_SECONDS * RATE
    assert bytes(device.heard[: 2 * 5 * RATE]) == noise(5 * RATE).tobytes()


def test_a_slow_producer_is_counted(device: Device) -> None:
    samples = noise(3 * RATE)
    with SpeakerSink(RATE) as sink:
        for start in range(0, len(samples), RATE):
            sink.write(samples[start : start + RATE])
            time.sleep(0.3)  # a second is played in 0.05 s here
    assert sink.underruns == 2  # the third time nothing more was to come
    assert bytes(device.heard[: 2 * len(samples)]) == samples.tobytes()


def test_what_the_device_missed_is_counted(device: Device) -> None:
    """The queue was not empty, but the thread came too late."""
    device.reports_missed = True
    with SpeakerSink(RATE) as sink:
        sink.write(noise(RATE))
    assert sink.underruns == 9  # ten pieces; before the first it had nothing to play


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_stops_the_sound_at_once(device: Device, error: type[BaseException]) -> None:
    device.speed = 1.0

    def interrupted() -> None:
        with SpeakerSink(RATE) as sink:
            sink.write(noise(RATE))
            raise error

    started = time.monotonic()
    with pytest.raises(error):
        interrupted()
    assert len(device.heard) <= 2 * RATE * 0.4
    assert device.calls[-2:] == ["abort", "close"]
    assert time.monotonic() - started < 30  # it does not hang
    for thread in threading.enumerate():
        if thread.name == "samplernn-speaker":
            thread.join(timeout=5)
            assert not thread.is_alive()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("moment", ["write", "close"])
def test_ctrl_c_reaches_a_writer_that_waits(device: Device, moment: str) -> None:
    import _thread

    device.speed = 0.01  # as good as stuck

    def waiting() -> None:
        with SpeakerSink(RATE) as sink:
            sink.write(noise(RATE))
            timer.start()
            if moment == "write":
                sink.write(noise(RATE))

    timer = threading.Timer(0.2, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        waiting()
    device.speed = 1e9


def test_an_error_of_the_device_reaches_the_writer(device: Device) -> None:
    device.fails_after = 1.0

    def endless() -> None:
        with SpeakerSink(RATE) as sink:
            for _ in range(1000):
                sink.write(noise(RATE))

    with pytest.raises(AudioError) as caught:
        endless()
    assert str(caught.value) == (
        "loudspeaker: playing failed after 1.0 s (Device unavailable); check the output device, or write to a file"
    )
    assert device.calls == ["start", "close"]


def test_an_error_of_the_device_at_the_very_end_is_told(device: Device) -> None:
    device.fails_after = 0.5
    sink = SpeakerSink(RATE)
    sink.write(noise(RATE))
    with pytest.raises(AudioError, match=r"failed after 0\.5 s"):
        sink.close()


def test_no_device(device: Device) -> None:
    device.missing = True
    with pytest.raises(AudioError) as caught:
        SpeakerSink(RATE)
    assert str(caught.value) == (
        "loudspeaker: no output device plays at 16000 Hz (Error querying device -1); "
        "connect one, or write to a file or a pipe"
    )


class Finder:
    """Lets the import of sounddevice fail with a given exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, *rest: Any) -> None:
        if name == "sounddevice":
            raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module"), "needs the library sounddevice; pip install 'samplernn[play]'"),
        (OSError("PortAudio library not found"), "(PortAudio library not found); install it (Debian"),
        (
            RuntimeError("Error initializing"),
            "PortAudio does not start (Error initializing); write to a file",
        ),
    ],
)
def test_what_is_missing_is_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(error), *sys.meta_path])
    with pytest.raises(AudioError) as caught:
        SpeakerSink(RATE)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_other_types_are_refused(device: Device) -> None:
    with SpeakerSink(RATE) as sink, pytest.raises(TypeError, match=r"int16 \[n\]"):
        sink.write(np.zeros((2, 3), np.int16))
