"""Which files of a corpus hold the same recording: the same take, another cut of it, an encoded copy.

Files are compared by their spectral peaks (see `fingerprint`). Three peaks that follow each other make a
hash; files that have several hashes in common, all with the same time between them, are candidates. Their
peaks are then laid over each other: where most of them coincide for some seconds, it is the same audio.
Different takes of one piece do not: a player is never as exact, and chance gives a few in a hundred.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from samplernn.audio.files import AudioFile
from samplernn.audio.fingerprint import FRAME, HOP, STEPS, Peaks, decode, steps_per_second

VERSION = 1
"""Of how files are compared: what another version found is not taken."""
MIN_SECONDS = 2.0
"""Files that share less are not joined: a drum sample or a short loop is no take."""
_SHARE = 0.5
"""Where two files are the same, more of the peaks of both coincide; of copies 55 to 95 in a hundred do."""
_MIN_GAIN = 8.0
"""So many more peaks must coincide there than `_SHARE` of them."""
_MOMENT, _MIN_MOMENTS = 4 * STEPS, 6
"""And they must be spread over so many moments of about 0.13 s: two clicks are no recording."""
_COVERAGE = 0.8
"""Where one file is laid over another, so much of it must be the same: a bar that a sequencer repeats is
the same for seconds, but the music around it is not."""
_LONG_SECONDS = 20.0
"""So much that is the same is enough by itself: something may have been cut out elsewhere."""
_MARGIN_SECONDS = 1.0
"""Silence before the first peak and after the last counts as shared to so much."""
_FRAME_STEPS = STEPS * FRAME // HOP
_FOLLOWERS = 3
"""A peak makes hashes with two of so many that follow it."""
_NEAR_TIME, _NEAR_BIN = STEPS, STEPS
"""Peaks coincide if they are no further apart: 32 ms, 7.8 Hz."""
_HASH_TIME, _HASH_BIN = STEPS, 2 * STEPS
"""Times and frequencies count as equal in hashes to so much."""
_MIN_HITS = 5
"""Hashes in common, at one offset, that make two files candidates."""
_OFFSETS = 4
"""Per pair of files that are compared, those with the most hits first."""
_COMPARED = 24
"""Candidates per file that are compared, those with the most hits first."""
_STOP = 32
"""Places at which a hash is looked for; of one that is everywhere (a drone, a loop) the nearest in order."""
_MAX_HITS = 10_000_000
"""Together: what bounds time and memory when all audio is alike."""
_CHUNK = 2**19
"""Peaks from which hashes are made at a time."""


class Overlap(NamedTuple):
    """Audio that two files share."""

    first: int
    """Index of a file."""
    second: int
    """Index of a later file."""
    start: float
    """Where it begins in the first file, in seconds."""
    shift: float
    """Seconds by which it begins later in the second file than in the first."""
    seconds: float
    """How long it is."""


Stretches: TypeAlias = Mapping[int, Sequence[tuple[float, float]]]
"""Start and stop in seconds of parts of files, by index of the file."""


class _Index(NamedTuple):
    """The peaks of all files, one file after the other."""

    times: NDArray[np.int64]
    bins: NDArray[np.int64]
    owners: NDArray[np.int64]
    """File of each peak."""
    starts: NDArray[np.int64]
    """First peak of each file, and the end."""
    seconds: Sequence[float]
    """Length of each file."""

    def of(self, file: int) -> Peaks:
        where = slice(self.starts[file], self.starts[file + 1])
        return Peaks(self.times[where], self.bins[where])


def overlaps(files: Sequence[AudioFile], sample_rate: int) -> tuple[Overlap, ...]:
    """Finds the pairs of files that share audio; of each pair the longest stretch.

    Of many copies of a recording not every pair need be found, but each is with some other.

    Args:
        files: with their fingerprints.
        sample_rate: Hz of the corpus.
    """
    index = _index(files, sample_rate)
    rate = steps_per_second(sample_rate)
    best: dict[tuple[int, int], tuple[float, Overlap]] = {}
    for first, second, offset in _candidates(index):
        gain, overlap = _compare(index, first, second, offset, rate)
        if overlap and gain > best.get((first, second), (0.0, overlap))[0]:
            best[first, second] = gain, overlap
    return tuple(best[pair][1] for pair in sorted(best))


def key(files: Sequence[AudioFile], sample_rate: int) -> str:
    """What `overlaps` depends on, as a SHA-256."""
    digest = hashlib.sha256(f"{VERSION} {sample_rate}\n".encode())
    for file in files:
        digest.update(f"{file.num_samples} {file.fingerprint}\n".encode())
    return digest.hexdigest()


def group(count: int, found: Sequence[Overlap]) -> list[list[int]]:
    """Deals `count` files into takes: files that share audio, directly or by way of others, are together.

    Returns:
        indices of the files, ascending in each take; takes by their first file.
    """
    parent = list(range(count))

    def root(file: int) -> int:
        while parent[file] != file:
            parent[file] = file = parent[parent[file]]
        return file

    for overlap in found:
        one, other = sorted((root(overlap.first), root(overlap.second)))
        parent[other] = one
    takes: dict[int, list[int]] = {}
    for file in range(count):
        takes.setdefault(root(file), []).append(file)
    return list(takes.values())


def shared(found: Sequence[Overlap]) -> dict[int, float]:
    """Seconds of each file that others hold too, by index; none of files that share nothing."""
    stretches: dict[int, list[tuple[float, float]]] = {}
    for overlap in found:
        for file, start in ((overlap.first, overlap.start), (overlap.second, overlap.start + overlap.shift)):
            stretches.setdefault(file, []).append((start, start + overlap.seconds))
    return {file: _length(stretches[file]) for file in sorted(stretches)}


def leaked(found: Sequence[Overlap], train: Stretches, held_out: Stretches) -> float:
    """Seconds of held-out audio that another file has in the training part.

    Args:
        found: from `overlaps`.
        train: what is trained on, by index of the file, in seconds.
        held_out: what is held out.
    """
    leaks: dict[int, list[tuple[float, float]]] = {}
    for one in found:
        later = Overlap(one.second, one.first, one.start + one.shift, -one.shift, one.seconds)
        for first, second, start, shift, seconds in (one, later):
            for begin, end in held_out.get(first, ()):
                for heard, over in train.get(second, ()):
                    low, high = max(begin, start, heard - shift), min(end, start + seconds, over - shift)
                    if low < high:
                        leaks.setdefault(first, []).append((low, high))
    return sum(_length(stretches) for stretches in leaks.values())


def _length(stretches: Sequence[tuple[float, float]]) -> float:
    """Of stretches together, what is in several once."""
    total, reached = 0.0, -math.inf
    for start, stop in sorted(stretches):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def _index(files: Sequence[AudioFile], sample_rate: int) -> _Index:
    """Of the files that are long enough to share anything."""
    nothing = decode("")
    least = MIN_SECONDS * sample_rate
    peaks = [decode(file.fingerprint) if file.num_samples >= least else nothing for file in files]
    counts = np.array([len(one.times) for one in peaks], np.int64)
    return _Index(
        times=np.concatenate([one.times for one in peaks] or [nothing.times]),
        bins=np.concatenate([one.bins for one in peaks] or [nothing.bins]),
        owners=np.repeat(np.arange(len(files)), counts),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        seconds=[file.num_samples / sample_rate for file in files],
    )


def _hashes(index: _Index) -> NDArray[np.uint64]:
    """All hashes, in order, each in 32 bits above the number of its first peak: ``[n]``."""
    found = [
        _hashes_of(index, start, min(start + _CHUNK, len(index.times)), near, far)
        for start in range(0, len(index.times), _CHUNK)
        for far in range(2, _FOLLOWERS + 1)
        for near in range(1, far)
    ]
    hashes = np.concatenate(found) if found else np.zeros(0, np.uint64)
    hashes.sort()
    return hashes


def _hashes_of(index: _Index, start: int, stop: int, near: int, far: int) -> NDArray[np.uint64]:
    """Hashes of the peaks from `start` to `stop`, each with the peaks that are `near` and `far` behind it.

    The order of peaks that are almost at once is uncertain, so the three are ordered by frequency.
    """
    stop = min(stop, len(index.times) - far)
    if stop <= start:
        return np.zeros(0, np.uint64)
    a, b, c = (
        (index.bins[at] << 40) + index.times[at]
        for at in (slice(start + by, stop + by) for by in (0, near, far))
    )
    a, b = np.minimum(a, b), np.maximum(a, b)
    b, c = np.minimum(b, c), np.maximum(b, c)
    a, b = np.minimum(a, b), np.maximum(a, b)
    code = np.zeros(len(a), np.int64)
    for peak in (a, b, c):
        code = (code << 8) + (peak >> 40) // _HASH_BIN
    for peak in (b, c):
        apart = ((peak & (2**40 - 1)) - (a & (2**40 - 1)) + _HASH_TIME // 2) // _HASH_TIME
        code = (code << 10) + np.clip(apart, -511, 511) + 511
    mixed = code.astype(np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )  # 2**64 over the golden ratio: the top bits mix all
    mixed = (mixed & np.uint64(2**64 - 2**32)) | np.arange(start, stop, dtype=np.uint64)
    return mixed[index.owners[start:stop] == index.owners[start + far : stop + far]]


def _candidates(index: _Index) -> Iterator[tuple[int, int, int]]:
    """Pairs of files and the steps by which the second is later, where hashes agree; most hits first."""
    files = len(index.starts)
    bits = 62 - (files * files).bit_length()  # for the offset: years, of a few files
    keys = _hits(index, bits)
    if not len(keys):
        return
    # hits of one offset may lie on both sides of a border, so one bin and the next count together
    bins = keys // STEPS
    begins = np.flatnonzero(np.diff(bins, prepend=-1))
    counts = np.diff(begins, append=len(keys))
    is_next = np.diff(bins[begins], append=-1) == 1
    together = counts + np.where(is_next, np.roll(counts, -1), 0)
    chosen = np.flatnonzero(together >= _MIN_HITS)
    chosen = chosen[np.argsort(-together[chosen], kind="stable")]
    per_pair: Counter[tuple[int, int]] = Counter()
    per_file: Counter[int] = Counter()
    for begin, count in zip(begins[chosen].tolist(), together[chosen].tolist(), strict=True):
        middle = int(keys[begin + count // 2])
        first, second = divmod(middle >> bits, files)
        if per_pair[first, second] >= _OFFSETS or min(per_file[first], per_file[second]) >= _COMPARED:
            continue
        per_pair[first, second] += 1
        per_file[first] += 1
        per_file[second] += 1
        yield first, second, (middle & (2**bits - 1)) - 2 ** (bits - 1)


def _hits(index: _Index, bits: int) -> NDArray[np.int64]:
    """Every two equal hashes of two files, in order: pair of files, and in the lower `bits` the offset."""
    hashes = _hashes(index)
    found: list[NDArray[np.int64]] = []
    total = 0
    left = np.arange(len(hashes))
    for distance in range(1, _STOP):
        left = left[: np.searchsorted(left, len(hashes) - distance)]
        left = left[(hashes[left] ^ hashes[left + distance]) < 2**32]
        one, other = ((hashes[at] & np.uint64(2**32 - 1)).astype(np.int64) for at in (left, left + distance))
        is_hit = index.owners[one] != index.owners[other]
        one, other = one[is_hit], other[is_hit]
        total += len(one)
        if not len(left) or (found and total > _MAX_HITS):
            break
        pair = index.owners[one] * len(index.starts) + index.owners[other]
        found.append((pair << bits) + index.times[other] - index.times[one] + 2 ** (bits - 1))
    keys = np.concatenate(found) if found else np.zeros(0, np.int64)
    keys.sort()
    return keys


def _compare(
    index: _Index, first: int, second: int, offset: int, rate: float
) -> tuple[float, Overlap | None]:
    """Lays the peaks of two files over each other; how well they agree, and where they are the same."""
    one, other = index.of(first), index.of(second)
    times = np.concatenate([one.times, other.times - offset])
    hits = np.concatenate([_coincide(one, other, offset), _coincide(other, one, -offset)])
    begin, end = max(one.times[0], other.times[0] - offset), min(one.times[-1], other.times[-1] - offset)
    inside = np.flatnonzero((times >= begin - _NEAR_TIME) & (times <= end + _NEAR_TIME))
    if not len(inside):
        return 0.0, None
    inside = inside[np.argsort(times[inside], kind="stable")]
    times, hits = times[inside], hits[inside]
    start, stop, gain = _best_stretch(np.where(hits, 1 - _SHARE, -_SHARE))
    if start == stop:
        return 0.0, None
    moments = np.unique(times[start:stop][hits[start:stop]] // _MOMENT)
    if gain < _MIN_GAIN or len(moments) < _MIN_MOMENTS:
        return 0.0, None
    if times[stop - 1] - times[start] >= _COVERAGE * (end - begin):
        least, margin = MIN_SECONDS, _MARGIN_SECONDS
    else:
        begin, end, least, margin = times[start], times[stop - 1], _LONG_SECONDS, 0.0
    shift = offset / rate
    low = max(0.0, -shift, begin / rate - margin)
    high = min(index.seconds[first], index.seconds[second] - shift, (end + _FRAME_STEPS) / rate + margin)
    if high - low < least:
        return 0.0, None
    return gain, Overlap(first, second, float(low), shift, float(high - low))


def _best_stretch(gains: NDArray[np.float64]) -> tuple[int, int, float]:
    """Start, stop and sum of the run of values whose sum is largest; an empty one if none is above 0."""
    sums = np.concatenate([[0.0], np.cumsum(gains)])
    rise = sums - np.minimum.accumulate(sums)
    stop = int(np.argmax(rise))
    return int(np.argmin(sums[: stop + 1])), stop, float(rise[stop])


def _coincide(one: Peaks, other: Peaks, offset: int) -> NDArray[np.bool_]:
    """Which peaks of the first the second has too, `offset` steps later."""
    times = one.times + offset
    low = np.searchsorted(other.times, times - _NEAR_TIME)
    high = np.searchsorted(other.times, times + _NEAR_TIME, "right")
    found = np.zeros(len(times), bool)
    for by in range(int((high - low).max(initial=0))):
        place = np.minimum(low + by, len(other.times) - 1)
        found |= (low + by < high) & (np.abs(other.bins[place] - one.bins) <= _NEAR_BIN)
    return found
