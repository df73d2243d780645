"""What a stream hears before its first sample: recordings of any format, rate and length."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samplernn.audio.decoding import Decoded
from samplernn.audio.io import AudioError, to_int16
from samplernn.audio.scan import scan
from samplernn.config import UserError

Given = str | Path | NDArray[np.int16]
"""A file, a folder of audio, or int16 samples ``[T]`` at the model's rate."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Audio that can be heard more than once, in memory that does not grow with its length."""

    num_samples: int
    """At the model's rate."""
    sha256: str
    """Of the int16 samples."""
    file: Path | None
    """None: it came as samples."""
    problems: tuple[AudioError, ...]
    """What is wrong with the file although it could be used."""
    _decode: Callable[[], Iterator[NDArray[np.int16]]]

    def blocks(self) -> Iterator[NDArray[np.int16]]:
        """int16 ``[n]`` at the model's rate, from the beginning.

        Raises:
            AudioError: the file can no longer be read.
        """
        return self._decode()

    @classmethod
    def of_samples(cls, samples: NDArray[np.int16]) -> Prompt:
        """Of int16 ``[T]`` at the model's rate.

        Raises:
            UserError: of another type or shape.
        """
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise UserError(f"a prompt is int16 [T], got {samples.dtype} {list(samples.shape)}")
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        return cls(len(samples), digest, None, (), lambda: iter([samples]))

    @classmethod
    def of_file(cls, file: str | Path, sample_rate: int) -> Prompt:
        """Of a recording, which is decoded once to learn its length and again whenever it is heard.

        Raises:
            AudioError: it cannot be read.
        """

        def decode() -> Iterator[NDArray[np.int16]]:
            return (to_int16(block) for block in Decoded(file, sample_rate))

        decoded, digest, num_samples = Decoded(file, sample_rate), hashlib.sha256(), 0
        for block in decoded:
            samples = to_int16(block)
            digest.update(samples.tobytes())
            num_samples += len(samples)
        return cls(num_samples, digest.hexdigest(), Path(file), tuple(decoded.problems), decode)


def open_prompts(given: Given | Sequence[Given] | None, sample_rate: int) -> tuple[Prompt, ...]:
    """Prompts from what a person names; of a folder every audio file, in the order of names.

    Raises:
        UserError: a file cannot be read, or a folder holds no audio.
    """
    if given is None:
        return ()
    each = [given] if isinstance(given, str | Path | np.ndarray) else list(given)
    return tuple(
        Prompt.of_samples(one) if isinstance(one, np.ndarray) else Prompt.of_file(one, sample_rate)
        for some in each
        for one in _files(some)
    )


def _files(given: Given) -> list[Given]:
    if isinstance(given, np.ndarray) or not Path(given).is_dir():
        return [given]
    if files := scan(given):
        return list(files)
    raise UserError(f"{given}: holds no audio; name a recording, or a folder of recordings")


def in_pieces(blocks: Iterable[NDArray[np.int16]], first: int, size: int) -> Iterator[NDArray[np.int16]]:
    """The same samples in pieces of `size`, but for a first one of `first` and a shorter last one.

    Args:
        blocks: int16 ``[n]`` of any lengths.
        first: samples of the first piece.
        size: samples of the others.
    """
    held: list[NDArray[np.int16]] = []
    wanted = first
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) < wanted:
            continue
        samples = np.concatenate(held)
        while len(samples) >= wanted:
            yield samples[:wanted]
            samples, wanted = samples[wanted:], size
        held = [samples]
    if any(map(len, held)):
        yield np.concatenate(held)
