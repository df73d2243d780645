"""A folder of audio as a corpus: found, decoded once into a cache, given one gain.

`prepare` is the entrance. It decodes what it has not decoded before (see `shards`), never writes into
the audio folder, and reports files that cannot be used instead of failing on them; `inspect` finds out
the same and writes nothing at all.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from samplernn.audio import shards, takes
from samplernn.audio.decoding import Task, make_shards
from samplernn.audio.files import AudioFile, Problem, Source
from samplernn.audio.io import SUFFIXES, remedy_for
from samplernn.audio.scan import Found, find, scan, states
from samplernn.audio.shards import Shard
from samplernn.audio.takes import Overlap
from samplernn.config import DataConfig, UserError, one_line
from samplernn.messages import say

__all__ = [
    "AudioFile",
    "Corpus",
    "Overlap",
    "Problem",
    "inspect",
    "prepare",
    "scan",
]

PEAK_AFTER_GAIN = 10 ** (-1 / 20)
"""-1 dBFS."""


@dataclass(frozen=True)
class Corpus:
    """The usable audio of a folder. Plain values only: it can be pickled, and forked."""

    folder: Path
    """The audio folder."""
    sample_rate: int
    """Hz."""
    gain: float
    """What a model multiplies the samples by; the stored samples are without it. By default the factor that
    brings the corpus's peak to -1 dBFS."""
    files: tuple[AudioFile, ...]
    """Usable files, ordered by path; of exact duplicates only the first."""
    problems: tuple[Problem, ...]
    """Files that are not used, or only in part."""
    shard_dir: Path
    """Where the samples are."""
    found: int = 0
    """Files that were found, usable or not."""
    normalise: Literal["corpus", "clip"] = "corpus"
    """See `DataConfig.normalise`."""

    @property
    def num_samples(self) -> int:
        """Samples of all files together."""
        return sum(file.num_samples for file in self.files)

    @property
    def duration(self) -> float:
        """Seconds of all files together."""
        return self.num_samples / self.sample_rate

    @functools.cached_property
    def overlaps(self) -> tuple[Overlap, ...]:
        """Audio that two files share, by their indices; see `takes`. `prepare` keeps it in the cache."""
        kept = _kept_overlaps(self)
        return takes.overlaps(self.files, self.sample_rate) if kept is None else kept

    @property
    def takes(self) -> tuple[tuple[AudioFile, ...], ...]:
        """The files, those that share audio together; each take and all of them in order of path."""
        groups = takes.group(len(self.files), self.overlaps)
        return tuple(tuple(self.files[index] for index in group) for group in groups)

    @property
    def sha256(self) -> str:
        """Identity of what is learned from: SHA-256 over the rate and the names and samples of all files."""
        lines = [f"{self.sample_rate}\n", *(f"{file.sha256} {file.path}\n" for file in self.files)]
        return hashlib.sha256(b"".join(os.fsencode(line) for line in lines)).hexdigest()

    def gain_of(self, file: AudioFile) -> float:
        """Factor between the stored samples of a file and what a model hears of it."""
        return self.gain if self.normalise == "corpus" else PEAK_AFTER_GAIN / file.peak

    def read(self, file: AudioFile | int, start: int, stop: int) -> np.ndarray:
        """Samples of one file, without the corpus's gain: a read-only int16 view `[stop - start]`.

        If each file has a gain of its own, what that is beyond the corpus's is applied here, to a copy. All
        that follows need not know of it: at the corpus's gain, the file reaches -1 dBFS.

        Args:
            file: one of `files`, or its index.
            start: first sample within the file.
            stop: one past the last.

        Raises:
            IndexError: the file has fewer samples.
            UserError: the cache was deleted meanwhile.
        """
        if not isinstance(file, AudioFile):
            file = self.files[file]
        if not 0 <= start <= stop <= file.num_samples:
            raise IndexError(f"samples {start} to {stop} of {file.path}, which has {file.num_samples}")
        samples = shards.open_samples(self.shard_dir / file.shard)
        samples = samples[file.offset + start : file.offset + stop]
        if self.normalise == "corpus":
            return samples
        louder = np.rint(samples * (self.gain_of(file) / self.gain))
        return louder.clip(-32768, 32767).astype(np.int16)


def prepare(
    folder: str | Path,
    data: DataConfig,
    gain: float | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> Corpus:
    """Decodes a folder of audio into the cache, or finds it there.

    Args:
        folder: the audio folder; never written to.
        data: sample rate, cache, time for decoding, and whether files have gains of their own.
        gain: of the corpus; None: the one that brings its peak to -1 dBFS. A model that exists has one.
        progress: show a progress bar if standard error is a terminal.
        workers: processes that decode; default: one per core; 0: this process decodes.

    Raises:
        UserError: no such folder, no usable audio in it, or the cache cannot be written.
    """
    root = Path(folder).absolute()
    found = find(root)
    if not found.paths and not found.problems:
        raise UserError(f"{folder}: no audio files found ({', '.join(sorted(SUFFIXES))})")
    sources, unreadable = states(root, found.paths)
    corpus_dir = _corpus_dir(root, data)
    shard_dir = corpus_dir / "shards"
    try:
        shard_dir.mkdir(parents=True, exist_ok=True)
        built = _shards(root, sources, data, shard_dir, progress, workers, store=True)
        corpus = _assemble(root, data, shard_dir, built.values(), found, unreadable)
        _require_audio(corpus)
        with contextlib.suppress(OSError):  # neither file is needed: a complete cache may be read-only
            _write_manifest(corpus_dir / "manifest.json", corpus, list(built))
            _keep_overlaps(corpus)
        shards.remove_stale(shard_dir, built)
    except OSError as error:
        raise _unwritable(error, corpus_dir) from None
    return corpus if gain is None else replace(corpus, gain=gain)


def _unwritable(error: OSError, corpus_dir: Path) -> UserError:
    """Why the cache cannot be written, and what to do."""
    where = error.filename2 or error.filename or corpus_dir  # of a rename that failed, the lasting name
    remedy = "free some space or set data.cache_dir to another folder"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = remedy_for(error)
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "set data.cache_dir to a folder that you may write to"
    elif error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY):
        remedy = "something else is in its place: remove that, or set data.cache_dir to another folder"
    return UserError(f"{where}: the cache cannot be written ({error.strerror or error}); {remedy}")


def inspect(
    folder: str | Path, data: DataConfig, progress: bool = True, workers: int | None = None
) -> Corpus:
    """What `prepare` would return, found out without writing anything anywhere.

    What is in the cache is taken from there, the rest is decoded and forgotten: its samples can only be
    read once `prepare` has stored them. With nothing usable the corpus has no files.

    Args:
        folder: the audio folder.
        data: as for `prepare`.
        progress: show a progress bar if standard error is a terminal.
        workers: processes that decode; default: one per core; 0: this process decodes.

    Raises:
        UserError: no such folder, or the cache would lie in it.
    """
    root = Path(folder).absolute()
    found = find(root)
    sources, unreadable = states(root, found.paths)
    shard_dir = _corpus_dir(root, data) / "shards"
    measured = _shards(root, sources, data, shard_dir, progress, workers, store=False)
    return _assemble(root, data, shard_dir, measured.values(), found, unreadable)


def _corpus_dir(folder: Path, data: DataConfig) -> Path:
    """The cache of one folder at one rate. Raises UserError if it would lie in the audio folder."""
    if data.cache_dir is None:
        root = platformdirs.user_cache_path("samplernn") / "corpora"
    else:
        root = Path(data.cache_dir).expanduser().absolute()
    if root.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{root}: this cache lies inside the audio folder; set data.cache_dir to another")
    settings = f"{folder.resolve()}\n{data.sample_rate}\n{shards.FORMAT_VERSION}"
    digest = hashlib.sha256(os.fsencode(settings)).hexdigest()[:16]
    return root / f"{folder.name[:40] or 'root'}-{digest}"  # a name of full length would become too long


def _shards(
    folder: Path,
    sources: Sequence[Source],
    data: DataConfig,
    shard_dir: Path,
    progress: bool,
    workers: int | None,
    store: bool,
) -> dict[str, Shard]:
    """All shards by key, in the order of their files; those that are missing are built, or only measured."""
    rate, timeout = data.sample_rate, data.decode_timeout
    groups = {shards.shard_key(group, rate): group for group in shards.group(sources)}
    found = _load(shard_dir, list(groups), store, timeout)
    missing = [key for key, shard in found.items() if shard is None]
    total = sum(source.size for key in missing for source in groups[key])
    with _progress_bar(total, progress and bool(missing)) as advance:
        tasks = [Task(folder, groups[key], rate, shard_dir, key, store) for key in missing]
        built = make_shards(tasks, default_workers() if workers is None else workers, timeout, advance)
    if missing:
        shards.open_samples.cache_clear()  # this process may have read what was damaged
    return {key: shard or built[key] for key, shard in found.items()}


def _load(shard_dir: Path, keys: Sequence[str], store: bool, timeout: float) -> dict[str, Shard | None]:
    """The shards that are in the cache, by key; says on standard error if some will be built again."""
    damaged: list[str] = []

    def load(key: str) -> Shard | None:
        try:
            return shards.load_shard(shard_dir, key, store, timeout)
        except shards.Damaged:
            damaged.append(key)
            return None

    with ThreadPoolExecutor(_cores()) as pool:  # in parallel, should all have to be checked
        found = dict(zip(keys, pool.map(load, keys), strict=True))
    if damaged and store:
        problem = f"{len(damaged)} of {len(keys)} parts of the cache are damaged and built again"
        say(one_line(f"{shard_dir.parent}: {problem}"))
    return found


def default_workers() -> int:
    """Processes that decode where nobody says how many."""
    return _cores()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _progress_bar(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with the bytes that are done; the bar is only there on a terminal."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield lambda size: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("decoding", total=total)
        yield lambda size: bar.advance(task, size)


def _assemble(
    folder: Path,
    data: DataConfig,
    shard_dir: Path,
    built: Iterable[Shard],
    found: Found,
    unreadable: Sequence[Problem],
) -> Corpus:
    """Puts the shards together: drops duplicates, finds the gain (1 if there is no audio)."""
    first: dict[str, AudioFile] = {}
    problems = [*found.problems, *unreadable]
    for shard in built:
        problems += shard.problems
        for file in shard.files:
            original = first.setdefault(file.sha256, file)
            if original is not file:
                problem = f"is an exact duplicate of {original.path}"
                problems.append(Problem(file.path, problem, "it counts once; remove one of them"))
    problems.sort(key=lambda problem: problem.path)
    files = tuple(first.values())
    gain = PEAK_AFTER_GAIN / max(file.peak for file in files) if files else 1.0
    return Corpus(
        folder, data.sample_rate, gain, files, tuple(problems), shard_dir, found.num_files, data.normalise
    )


def _require_audio(corpus: Corpus) -> None:
    """Raises UserError if nothing is usable."""
    if not corpus.files:
        shown = " | ".join(str(problem) for problem in corpus.problems[:3])
        raise UserError(f"{corpus.folder}: none of its {corpus.found} audio files can be used: {shown}")


def _write_manifest(path: Path, corpus: Corpus, keys: Sequence[str]) -> None:
    """Records what the cache holds, for people and other programs. Left alone if nothing changed."""
    manifest = {
        "version": shards.FORMAT_VERSION,
        "folder": os.fsdecode(corpus.folder),
        "sample_rate": corpus.sample_rate,
        "gain": corpus.gain,
        "num_samples": corpus.num_samples,
        "num_files": len(corpus.files),
        "problems": [asdict(problem) for problem in corpus.problems],
        "shards": list(keys),
    }
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if json.loads(path.read_text("utf-8")) == manifest:
            return
    shards.write_json(path, manifest, is_patient=False)


def _overlaps_file(corpus: Corpus) -> Path:
    return corpus.shard_dir.parent / "overlaps.json"


def _keep_overlaps(corpus: Corpus) -> None:
    """Writes what `Corpus.overlaps` is, unless it is there. Raises OSError."""
    if _kept_overlaps(corpus) is None:
        kept = {"key": takes.key(corpus.files, corpus.sample_rate), "overlaps": corpus.overlaps}
        shards.write_json(_overlaps_file(corpus), kept, is_patient=False)


def _kept_overlaps(corpus: Corpus) -> tuple[Overlap, ...] | None:
    """What was written of these files; None if nothing was, or it is damaged."""
    try:
        kept = json.loads(_overlaps_file(corpus).read_text("utf-8"))
        if kept["key"] != takes.key(corpus.files, corpus.sample_rate):
            return None
        found = [Overlap(int(a), int(b), float(c), float(d), float(e)) for a, b, c, d, e in kept["overlaps"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    count = len(corpus.files)
    return tuple(found) if all(0 <= one.first < one.second < count for one in found) else None
