"""What Numba has compiled, kept on disk where that is possible; nothing fails because it is not.

Numba looks for a folder that it can write to: ``NUMBA_CACHE_DIR``, ``__pycache__`` beside the module, the
user's cache. It raises an error if there is none (a read-only installation without a home), if the disk is
full when it writes, and if what it reads is damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numba import njit
from numba.core.errors import NumbaError

Function = TypeVar("Function", bound=Callable[..., Any])

_NO_PLACE = "there is no folder to keep it in; NUMBA_CACHE_DIR may name one"


class Kept:
    """Functions that are compiled when they are first called, and kept on disk.

    Attributes:
        problem: why they are not kept; empty: they are.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._dispatchers: list[Any] = []

    def compiled(self, function: Function, **options: Any) -> Function:
        """Compile a function; `options` are those of `numba.njit`."""
        if not self.problem:
            try:
                dispatcher = njit(cache=True, **options)(function)
                # Numba has no public way. By itself it looks at the function's own file alone.
                dispatcher._cache._cache_file._source_stamp = _source_stamp()
            except (RuntimeError, OSError):
                self.problem = _NO_PLACE
            else:
                self._dispatchers.append(dispatcher)
                return dispatcher
        return njit(**options)(function)

    def call(self, work: Callable[[], None]) -> None:
        """Let `work` call compiled functions for the first time.

        What is damaged on disk is thrown away; what cannot be written is not kept, and `problem` says why.
        """
        for is_last in (False, True):
            try:
                return work()
            except NumbaError:  # it does not compile, on disk or not
                raise
            except Exception as error:
                if self.problem or not self._dispatchers:
                    raise
                if is_last or isinstance(error, OSError) or not self._emptied():
                    self._do_without(error)
        return work()

    def _emptied(self) -> bool:
        """Whether what is kept could be thrown away."""
        try:
            for dispatcher in self._dispatchers:
                dispatcher._cache.flush()  # Numba has no public way
        except OSError:
            return False
        return True

    def _do_without(self, error: Exception) -> None:
        for dispatcher in self._dispatchers:
            dispatcher._cache.disable()
        self.problem = f"it cannot be kept ({type(error).__name__}: {error})"


def _source_stamp() -> tuple[tuple[str, float, int], ...]:
    """Name, time and size of every file of the engines: when one has changed, all is compiled again."""
    files = sorted(Path(__file__).parent.glob("cpu*.py"))
    return tuple((file.name, file.stat().st_mtime, file.stat().st_size) for file in files)


KEPT = Kept()
"""The functions of the CPU engine's program."""
OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False}
"""Of all of them: without Python's lock; IEEE division; and no reference counts, for threads that share
arrays would spend their time counting."""


def compiled(function: Function) -> Function:
    """Compile a function; the machine code is kept on disk."""
    return KEPT.compiled(function, **OPTIONS)


def compiled_reordering(function: Function) -> Function:
    """The same for what has no order and no NaN: maxima, and sums that need not be exact."""
    return KEPT.compiled(function, **OPTIONS, fastmath={"nnan", "nsz", "reassoc"})
