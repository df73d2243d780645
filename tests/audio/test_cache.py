"""The cache on disk: damaged, copied, read-only, full, and written by several processes at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import samplernn
from samplernn.audio import files, shards
from samplernn.audio.corpus import Corpus, prepare
from samplernn.config import DataConfig, UserError

ROOT = Path(next(iter(samplernn.__path__))).parent
RATE = 16000
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


def noise(num_samples: int, seed: int) -> np.ndarray:
    half = np.random.default_rng(seed).integers(-9000, 9001, num_samples // 2)
    return np.stack([half, -half], axis=1).ravel().astype(np.int16)


def fill(audio: Path, count: int = 4) -> Path:
    audio.mkdir()
    for index in range(count):
        sf.write(audio / f"{index}.wav", noise(RATE // 2, index), RATE)
    return audio


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four files of half a second, each in a shard of its own."""
    monkeypatch.setattr(shards, "SHARD_FILES", 1)
    return fill(tmp_path / "audio")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def contents(corpus: Corpus) -> list[list[int]]:
    return [corpus.read(file, 0, file.num_samples).tolist() for file in corpus.files]


def digests(cache: Path) -> dict[str, str]:
    """Every file of a cache but for the times that the JSONs note, by relative path."""
    found = {}
    for path in sorted(path for path in cache.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".json":
            entry = json.loads(content)
            entry.get("samples", {}).pop("mtime_ns", None)
            content = json.dumps(entry, sort_keys=True).encode()
        found[path.relative_to(cache).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def flip(path: Path, position: int) -> None:
    """Changes one bit."""
    with path.open("r+b") as stream:
        stream.seek(position)
        (byte,) = stream.read(1)
        stream.seek(position)
        stream.write(bytes([byte ^ 16]))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damages a JSON so that it can still be read as one."""

    def damage(path: Path) -> None:
        entry = json.loads(path.read_text())
        change(entry)
        path.write_text(json.dumps(entry))

    return damage


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "one bit": (".i16", lambda path: flip(path, 4321)),
    "zeroed": (".i16", lambda path: path.write_bytes(bytes(path.stat().st_size))),
    "cut": (".i16", lambda path: os.truncate(path, 100)),
    "emptied": (".i16", lambda path: os.truncate(path, 0)),
    "longer": (".i16", lambda path: os.truncate(path, path.stat().st_size + 2)),
    "deleted": (".i16", Path.unlink),
    "a folder": (".i16", replace_by_folder),
    "peak": (".json", edit(lambda entry: entry["files"][0].update(peak=1e-3))),
    "path": (".json", edit(lambda entry: entry["files"][0].update(path="other.wav"))),
    "offset": (".json", edit(lambda entry: entry["files"][0].update(offset=7))),
    "no files": (".json", edit(lambda entry: entry.update(files=[]))),
    "no checksum": (".json", edit(lambda entry: entry.pop("checksum"))),
    "a list": (".json", lambda path: path.write_text("[1, 2]")),
    "a number": (".json", lambda path: path.write_text("7")),
    "null": (".json", lambda path: path.write_text("null")),
    "deep": (".json", lambda path: path.write_text("[" * 200_000)),
    "bytes": (".json", lambda path: path.write_bytes(bytes(range(256)))),
    "empty": (".json", lambda path: path.write_text("")),
    "a folder for the JSON": (".json", replace_by_folder),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_repaired_and_said(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    before, good = contents(first), digests(cache)
    suffix, damage = DAMAGE[kind]
    damage((first.shard_dir / first.files[2].shard).with_suffix(suffix))
    capsys.readouterr()
    second = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert second == first
    assert contents(second) == before
    assert digests(cache) == good
    said = capsys.readouterr().err
    assert said.endswith("1 of 4 parts of the cache are damaged and built again\n")
    assert said.count("\n") == 1
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert capsys.readouterr().err == ""


def test_the_json_of_another_shard_is_not_believed(folder: Path, cache: Path) -> None:
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    one, other = (first.shard_dir / first.files[i].shard for i in (1, 2))
    shutil.copy(one.with_suffix(".json"), other.with_suffix(".json"))
    assert prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache)) == first


@pytest.mark.parametrize("where", [".i16", ".json"])
def test_a_full_folder_in_the_place_of_a_file_is_named(folder: Path, cache: Path, where: str) -> None:
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    path = (first.shard_dir / first.files[0].shard).with_suffix(where)
    path.unlink()
    (path / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{path.name}: the cache cannot be written.*remove that"):
        prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert (path / "mine").exists()
    assert not list(cache.rglob("*.tmp"))


def test_samples_are_only_read_again_when_their_file_is_another(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    original = shards._is_intact

    def is_intact(samples: Path, files: tuple[files.AudioFile, ...]) -> bool:
        checked.append(samples.name)
        return original(samples, files)

    monkeypatch.setattr(shards, "_is_intact", is_intact)
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    contents(corpus)  # marks the shards as in use
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert checked == []
    for path in corpus.shard_dir.glob("*.i16"):  # as a copy without times would
        os.utime(path, (1, 1))
    assert prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache)) == corpus
    assert len(checked) == 4
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))  # noted as right
    assert len(checked) == 4


def test_samples_are_read_where_files_cannot_be_mapped(
    folder: Path, cache: Path, no_mmap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Piece by piece, so that a corpus need not fit into memory."""
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    shards.open_samples.cache_clear()
    assert contents(corpus) == [noise(RATE // 2, index).tolist() for index in range(4)]
    part = corpus.read(1, 100, 107)
    assert part.tolist() == noise(RATE // 2, 1)[100:107].tolist()
    assert not part.flags.writeable
    assert corpus.read(1, 5, 5).tolist() == []
    samples = corpus.shard_dir / corpus.files[2].shard
    os.truncate(samples, samples.stat().st_size - 2)
    with pytest.raises(UserError, match=f"{samples.name}: cannot be read .*cut short.*start again"):
        corpus.read(2, 0, corpus.files[2].num_samples)
    samples.unlink()
    shards.open_samples.cache_clear()
    with pytest.raises(UserError, match=f"{samples.name}: cannot be read .*No such file"):
        corpus.read(2, 0, 1)


def test_a_shard_in_use_is_kept_and_one_that_is_not_goes_as_a_whole(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    day_ago = time.time() - shards.STALE_SECONDS - 1
    for path in first.shard_dir.iterdir():
        os.utime(path, (day_ago, day_ago))
    shards.open_samples.cache_clear()
    first.read(0, 0, 10)
    for name in ("0.wav", "1.wav"):
        (folder / name).unlink()
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    kept = {path.stem for path in first.shard_dir.iterdir()}
    assert kept == {Path(first.files[index].shard).stem for index in (0, 2, 3)}
    assert first.read(0, 0, 10).tolist() == noise(RATE // 2, 0)[:10].tolist()


IMPORTS = """
import os, pathlib, resource, signal, sys, time
from samplernn.audio import shards
from samplernn.audio.corpus import prepare
from samplernn.config import DataConfig, UserError
"""
NOBODY = """
if os.geteuid() == 0:  # to whom nothing is forbidden
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""
CHILD = """
shards.SHARD_FILES = 1
try:
    corpus = prepare(sys.argv[1], DataConfig(sample_rate=16000, cache_dir=sys.argv[2]))
    print(len(corpus.files), sum(int(abs(corpus.read(i, 0, 100)).max()) > 0 for i in range(len(corpus.files))))
except UserError as error:
    print("error:", error)
"""


def child(folder: Path, cache: Path, before: str = "") -> subprocess.Popen[str]:
    """Another process that prepares a corpus and reads from it, after some preparations."""
    command = [sys.executable, "-c", IMPORTS + before + CHILD, str(folder), str(cache)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@posix
def test_a_complete_cache_that_cannot_be_written_to_is_used(open_folder: Path) -> None:
    folder, cache = fill(open_folder / "audio"), open_folder / "cache"
    stdout, stderr = child(folder, cache).communicate()
    assert stdout == "4 4\n", stderr
    next(cache.rglob("manifest.json")).unlink()  # nobody needs it
    for path in [*cache.rglob("*.i16")]:
        os.utime(path, (1, 1))  # checked, and that cannot be noted
    good = digests(cache)
    everything = [cache, *cache.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for _ in range(2):
            stdout, stderr = child(folder, cache, NOBODY).communicate()
            assert (stdout, stderr) == ("4 4\n", "")
        assert digests(cache) == good
        sf.write(folder / "new.wav", noise(1000, 9), RATE)
        (folder / "new.wav").chmod(0o644)
        stdout, stderr = child(folder, cache, NOBODY).communicate()
        assert "the cache cannot be written (Permission denied)" in stdout
        assert "set data.cache_dir to a folder that you may write to" in stdout
        assert stdout.count("\n") == 1
    finally:
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)


@posix
def test_a_disk_that_fills_up_is_one_line_and_leaves_what_is_complete(folder: Path, cache: Path) -> None:
    sf.write(folder / "3.wav", noise(5 * RATE, 3), RATE)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    stdout, stderr = child(folder, cache, limit).communicate()
    assert stderr == ""
    assert stdout.startswith("error: ")
    assert "the cache cannot be written (File too large); free some space or set data.cache_dir" in stdout
    assert stdout.count("\n") == 1
    left = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.suffix for path in left} == {".i16", ".json"}
    stdout, _ = child(folder, cache).communicate()
    assert stdout == "4 4\n"


@posix
def test_four_processes_and_one_that_is_killed_build_one_cache(folder: Path, cache: Path) -> None:
    for index in range(4, 40):
        sf.write(folder / f"{index}.wav", noise(2 * RATE, index), RATE)
    alone = cache.with_name("alone")
    assert child(folder, alone).communicate()[0] == "40 40\n"
    wait = "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.001)\n"
    killed = child(
        folder,
        cache,
        "import samplernn.audio.corpus as corpus\n"
        "corpus.default_workers = lambda: 0\n"
        "original = shards._write_entry\n"
        "def write_entry(shard_dir, *rest):\n"
        "    if len(list(shard_dir.glob('*.json'))) > 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    original(shard_dir, *rest)\n"
        "shards._write_entry = write_entry\n",
    )
    others = [child(folder, cache, wait) for _ in range(4)]
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    for process in others:
        stdout, stderr = process.communicate()
        assert (stdout, stderr) == ("40 40\n", "")
    ours = {name: digest for name, digest in digests(cache).items() if not name.endswith(".tmp")}
    assert ours == digests(alone)  # the folder's name is the same, so all names are
    day_ago = time.time() - shards.STALE_SECONDS - 1
    for path in cache.rglob("*.tmp"):
        os.utime(path, (day_ago, day_ago))
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert not list(cache.rglob("*.tmp"))
