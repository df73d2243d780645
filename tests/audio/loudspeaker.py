"""A stand-in for sounddevice: there is no audio hardware where the tests run."""

from __future__ import annotations

import threading
import time
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samplernn.audio.speaker import SpeakerSink


class Device(ModuleType):
    """A stand-in for sounddevice: one output device that plays at `speed` times real time."""

    class PortAudioError(Exception):
        pass

    def __init__(self, speed: float = 20.0) -> None:
        super().__init__("sounddevice")
        self.speed = speed
        self.heard = bytearray()
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.fails_after: float | None = None  # s
        self.reports_missed = False
        self.missing = False
        self.started_with = 0  # samples that were queued when playing began
        self.sink: SpeakerSink | None = None

    def RawOutputStream(self, samplerate: int, channels: int, dtype: str, latency: float) -> Device:  # noqa: N802
        assert (channels, dtype) == (1, "int16")
        if self.missing:
            raise self.PortAudioError("Error querying device -1")
        self.rate, self.latency = samplerate, latency / self.speed
        return self

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)

    def start(self) -> None:
        self._note("start")
        if self.sink:
            self.started_with = self.sink._queued

    def stop(self) -> None:
        self._note("stop")

    def abort(self) -> None:
        self._note("abort")

    def close(self) -> None:
        self._note("close")

    def write(self, content: bytes) -> bool:
        assert self.calls == ["start"]
        if self.fails_after is not None and len(self.heard) >= 2 * self.rate * self.fails_after:
            raise self.PortAudioError("Device unavailable")
        time.sleep(len(content) / 2 / self.rate / self.speed)
        self.heard += content
        return self.reports_missed
