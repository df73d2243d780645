"""Which signals end a command, and their handlers for a while; what to do when the terminal is gone.

SIGHUP comes when a terminal is closed or an SSH connection is lost. It ends a command as SIGTERM does, unless
it was ignored when the command began, as nohup arranges. Windows does not have it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any]

HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""SIGHUP; None where there is none."""
ENDING: tuple[int, ...] = tuple(
    number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None
)
"""What may end a command."""


def ending() -> tuple[int, ...]:
    """What ends this process: `ENDING`, without SIGHUP where it is ignored."""
    return tuple(number for number in ENDING if number != HANGUP or not is_ignored(number))


def is_ignored(number: int) -> bool:
    """Whether this process ignores a signal."""
    return signal.getsignal(number) is signal.SIG_IGN


class Handlers:
    """The handlers of some signals as they are now, which can be replaced and put back.

    Only the main thread can set a handler. In another one, signals are somebody else's, and nothing is done.

    Args:
        numbers: of the signals.

    Attributes:
        before: the handlers, by signal. A handler that was not set in Python cannot be put back; its signal
            is left alone and is missing here.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in numbers}
            self.before = {number: handler for number, handler in found.items() if handler is not None}

    def replace(self, handler: Handler | signal.Handlers) -> None:
        """Let this one handle them all."""
        for number in self.before:
            signal.signal(number, handler)

    def put_back(self) -> None:
        """Let them be handled as they were."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside, signals that end a command end this process by the system's own handler.

    For waiting inside a library: there, Python hears of no signal until it is over. Nothing is cleaned up.
    """
    handlers = Handlers(ending())
    handlers.replace(signal.SIG_DFL)
    try:
        yield
    finally:
        handlers.put_back()


def exit_when_asked() -> None:
    """SIGTERM and SIGHUP unwind the stack from now on as Ctrl-C does, so that open files are closed."""
    Handlers(number for number in ending() if number != signal.SIGINT).replace(_exit)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    let_go_of_terminal(number)
    sys.exit(128 + number)


def let_go_of_terminal(number: int) -> None:
    """After SIGHUP, drop what would be written to a terminal that is gone, instead of failing at it.

    So is what standard error says into a pipe that nobody reads any more, as with ``2>&1 | tee``.

    Args:
        number: the signal that came.
    """
    if number != HANGUP or not hasattr(select, "poll"):
        return
    for file in (1, 2):
        with contextlib.suppress(OSError):
            poll = select.poll()
            poll.register(file, 0)
            is_gone = any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
            if is_gone and (file == 2 or stat.S_ISCHR(os.fstat(file).st_mode)):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, file)
                os.close(nowhere)


class Waiting:
    """While it is entered, signals to end wait until its end; work in pieces looks at `number` between them.

    At its end, if a signal has come, KeyboardInterrupt (SIGINT) or SystemExit is raised. What is ignored goes
    on being ignored.

    Args:
        patience: so many signals wait; whoever sends one more does not want to wait.

    Attributes:
        number: of the last signal that came, or 0.
    """

    def __init__(self, patience: int = 2) -> None:
        self.number = 0
        self._count = 0
        self._patience = patience
        self._handlers = Handlers(())

    @contextlib.contextmanager
    def interruptible(self, patience: int = 0) -> Iterator[None]:
        """Inside, only so many signals wait, those that came before it included."""
        before, self._patience = self._patience, patience
        try:
            yield
        finally:
            self._patience = before

    def __enter__(self) -> Waiting:
        self._handlers = Handlers(number for number in ENDING if not is_ignored(number))
        self._handlers.replace(self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        self._handlers.put_back()
        if kind is None and self.number:
            self.end()

    def _note(self, number: int, frame: FrameType | None) -> None:
        let_go_of_terminal(number)
        self.number = number
        self._count += 1
        if self._count > self._patience:
            self.end()

    def end(self) -> NoReturn:
        """What the signal that came is waiting for."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + self.number)
