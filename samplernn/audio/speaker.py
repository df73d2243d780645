"""The way out to the loudspeakers, over the optional library sounddevice (PortAudio)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from samplernn.audio.io import AudioError

QUEUE_SECONDS = 1.0
"""Audio that waits to be played at most; `write` waits when there is more."""
START_SECONDS = 0.3
"""Audio that must wait before playing begins, and begins again after an underrun."""

_PIECE_SECONDS = 0.1
"""Audio that is given to the device at a time; an interruption is heard after it."""
_LATENCY_SECONDS = 0.2
"""Audio that the device holds. PortAudio's own choice (35 ms on ALSA) is short beside a busy Python."""
_NAME = "loudspeaker"


class SpeakerSink:
    """Plays mono int16 on the default output device while it comes.

    `write` puts a block into a queue and returns as soon as there is room; a thread plays the queue. `close`
    returns when all has been played. An exception inside ``with`` (Ctrl-C too) stops the sound at once.

    Args:
        sample_rate: Hz.

    Attributes:
        num_samples: samples taken so far.
        underruns: how often the player ran dry, which is heard as a gap, although more was to come.

    Raises:
        AudioError: sounddevice or PortAudio is missing, or no device plays at this rate; from `write` and
            `close`: the device failed.

    Example:
        >>> with SpeakerSink(16000) as sink:
        ...     sink.write(np.zeros(1600, np.int16))
    """

    def __init__(self, sample_rate: int) -> None:
        self.num_samples = 0
        self.underruns = 0
        self._rate = sample_rate
        self._piece = max(1, int(_PIECE_SECONDS * sample_rate))
        self._stream = _open(sample_rate)
        self._queue: deque[np.ndarray] = deque()
        self._queued = 0  # samples in the queue
        self._played = 0
        self._ended = self._aborted = self._finished = False
        self._error: Exception | None = None
        self._changed = threading.Condition()  # guards all of the above
        self._thread = threading.Thread(target=self._play, name="samplernn-speaker", daemon=True)
        self._thread.start()

    def write(self, block: np.ndarray) -> None:
        """Queues samples, int16 `[n]`; waits while the queue is full."""
        if block.dtype != np.int16 or block.ndim != 1:
            raise TypeError(f"SpeakerSink.write takes int16 [n], got {block.dtype} {list(block.shape)}")
        if self._ended:
            raise ValueError("SpeakerSink.write after close")
        for start in range(0, len(block), self._piece):
            piece = block[start : start + self._piece].copy()  # the caller may use its array again
            with self._changed:
                while not self._finished and self._queued + len(piece) > QUEUE_SECONDS * self._rate:
                    self._changed.wait(0.1)  # a wait without end cannot be interrupted on Windows
                self._raise_error()
                self._queue.append(piece)
                self._queued += len(piece)
                self._changed.notify_all()
            self.num_samples += len(piece)

    def close(self) -> None:
        """Plays what is queued and closes the device; safe to call twice."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        try:
            with self._changed:
                while (
                    not self._finished
                ):  # not join: after Ctrl-C in it Python 3.11 takes the thread for ended
                    self._changed.wait(0.1)
        except BaseException:
            self._abort()
            raise
        self._raise_error()

    def _abort(self) -> None:
        """Stops the sound. A device that does not answer within two seconds is left to itself."""
        with self._changed:
            self._ended = self._aborted = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._finished, 2.0)

    def _raise_error(self) -> None:
        if self._error is not None:
            seconds = self._played / self._rate
            problem = f"playing failed after {seconds:.1f} s ({_words(self._error)})"
            raise AudioError(_NAME, problem, "check the output device, or write to a file") from None

    def _play(self) -> None:
        """The thread's work; all that concerns the device happens here."""
        try:
            self._play_queue()
            self._stream.abort() if self._aborted else self._stream.stop()
        except Exception as error:
            self._error = error
        with contextlib.suppress(Exception):
            self._stream.close()
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def _play_queue(self) -> None:
        is_started = False
        while self._wait_for(START_SECONDS):
            if is_started:
                self.underruns += 1  # only now: when nothing more comes, it was the end
            else:
                self._stream.start()
                is_started = True
            is_first = True  # the device has had nothing until now, and says so
            while (piece := self._next_piece()) is not None:
                missed = self._stream.write(piece.tobytes())
                self.underruns += bool(missed and not is_first)
                self._played += len(piece)
                is_first = False
        if is_started and not self._aborted:  # with some sound servers stopping loses what the device holds
            self._stream.write(bytes(2 * int(2 * self._stream.latency * self._rate)))

    def _wait_for(self, seconds: float) -> bool:
        """Waits until so much is queued or no more will come; False if there is nothing to play."""
        with self._changed:
            while not (self._ended or self._aborted or self._queued >= seconds * self._rate):
                self._changed.wait()
            return self._queued > 0 and not self._aborted

    def _next_piece(self) -> np.ndarray | None:
        """The next piece, or None when the queue stays empty until the device has played what it holds."""
        deadline = time.monotonic() + float(self._stream.latency)
        with self._changed:
            while not (self._queue or self._ended or self._aborted):
                rest = deadline - time.monotonic()
                if rest <= 0:
                    return None
                self._changed.wait(rest)
            if self._aborted or not self._queue:
                return None
            piece = self._queue.popleft()
            self._queued -= len(piece)
            self._changed.notify_all()
            return piece

    def __enter__(self) -> SpeakerSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._abort()


def _open(sample_rate: int) -> Any:
    """A stream of sounddevice that is not started yet."""
    sounddevice = _sounddevice()
    try:
        return sounddevice.RawOutputStream(sample_rate, channels=1, dtype="int16", latency=_LATENCY_SECONDS)
    except sounddevice.PortAudioError as error:
        problem = f"no output device plays at {sample_rate} Hz ({_words(error)})"
        raise AudioError(_NAME, problem, "connect one, or write to a file or a pipe") from None


def _sounddevice() -> ModuleType:
    """The library, imported only here: it starts PortAudio at once, which can take a second."""
    try:
        import sounddevice
    except ImportError:
        problem, remedy = "playing needs the library sounddevice", "pip install 'samplernn[play]'"
    except OSError as error:
        problem = f"PortAudio cannot be loaded ({_words(error)})"
        remedy = "install it (Debian and Ubuntu: apt install libportaudio2)"
    except Exception as error:  # PortAudio does not start; its exception's class is not to be had
        problem, remedy = f"PortAudio does not start ({_words(error)})", "write to a file or a pipe"
    else:
        return sounddevice
    raise AudioError(_NAME, problem, remedy)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
