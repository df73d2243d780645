from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

import samplernn
from samplernn.audio import sinks
from samplernn.audio.io import AudioError, Decoder, load, to_int16
from samplernn.audio.sinks import FORMATS, TAGS, FileSink, PipeClosed, PipeSink, read_tags

RATE = 16000


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20000, 20000, num_samples).astype(np.int16)


def test_sink_writes_what_wave_reads(tmp_path: Path) -> None:
    samples = noise(10000)
    with FileSink(tmp_path / "x.wav", 22050) as sink:
        for start in range(0, 10000, 3000):
            sink.write(samples[start : start + 3000])
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (22050, 1, 2)
        assert np.array_equal(np.frombuffer(file.readframes(20000), "<i2"), samples)


KILLED = """
import sys, time
import numpy as np
from samplernn.audio.sinks import FileSink
sink = FileSink(sys.argv[1], 16000, tags={"comment": "seed 0", "title": "x"})
samples = np.load(sys.argv[2])
for start in range(0, len(samples), 1000):
    sink.write(samples[start : start + 1000])
print("written", flush=True)
time.sleep(60)
"""


def tone(num_samples: int) -> np.ndarray:
    """A tone with some noise, so that lossy formats keep it and encoders have work."""
    wave = 8000 * np.sin(0.17 * np.arange(num_samples))
    return (wave + np.random.default_rng(0).normal(0, 50, num_samples)).astype(np.int16)


def run(code: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    root = Path(next(iter(samplernn.__path__))).parent
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, **options)


@pytest.mark.parametrize(("suffix", "lost"), [("wav", 0), ("flac", 4096), ("ogg", 2 * RATE)])
def test_a_killed_process_leaves_a_valid_file(tmp_path: Path, suffix: str, lost: int) -> None:
    path = tmp_path / f"x.{suffix}"
    samples = tone(10 * RATE)
    np.save(tmp_path / "samples.npy", samples)
    root = Path(next(iter(samplernn.__path__))).parent
    command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "samples.npy")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    plays(path, samples, at_least=len(samples) - lost)
    assert read_tags(path) == {"comment": "seed 0", "title": "x"}
    if suffix == "wav":
        with wave.open(str(path)) as file:
            assert np.array_equal(np.frombuffer(file.readframes(len(samples)), "<i2"), samples)


def plays(path: Path, samples: np.ndarray, at_least: int) -> None:
    """The file holds the beginning of these samples, promises no more than that, and is read by `Decoder`."""
    got = sf.read(path, dtype="int16")[0]
    assert at_least <= len(got) <= len(samples)
    assert sf.info(path).frames == len(got)
    decoder = Decoder(path, RATE)
    decoded = to_int16(np.concatenate(list(decoder)))
    assert np.allclose(decoded, got, rtol=0, atol=1 if path.suffix == ".ogg" else 0)  # libsndfile truncates
    if path.suffix == ".ogg":
        assert np.corrcoef(got, samples[: len(got)])[0, 1] > 0.9
        assert ["truncated" in str(problem) for problem in decoder.problems] == [True]
    else:
        assert np.array_equal(got, samples[: len(got)])
        assert decoder.problems == []


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "oga", "FLAC"])
def test_every_format_keeps_all_samples_and_tags(tmp_path: Path, suffix: str) -> None:
    path, samples = tmp_path / f"x.{suffix}", tone(70_000)
    tags = {tag: f"{tag}: größer, 音" for tag in TAGS} | {"date": "2026", "comment": "c" * 2000}
    with FileSink(path, RATE, tags=tags) as sink:
        for start in range(0, 70_000, 9999):
            sink.write(samples[start : start + 9999])
        assert sink.num_samples == 70_000
    assert (sf.info(path).format, sf.info(path).subtype) == FORMATS[path.suffix.lower()]
    decoder = Decoder(path, RATE)
    got = to_int16(np.concatenate(list(decoder)))
    assert decoder.problems == []
    assert len(got) == 70_000
    assert np.array_equal(got, samples) or suffix in ("ogg", "oga")
    found = read_tags(path)
    assert found.pop("software").startswith(tags.pop("software"))
    assert found == tags
    if suffix == "wav":
        with wave.open(str(path)) as file:
            assert np.array_equal(np.frombuffer(file.readframes(70_000), "<i2"), samples)


def test_tags_are_made_fit_or_refused(tmp_path: Path) -> None:
    for suffix in ("wav", "flac", "ogg"):
        path = tmp_path / f"x.{suffix}"
        with FileSink(path, RATE, tags={"comment": "a\0b\udce9\n", "title": "", "date": "\0"}) as sink:
            sink.write(tone(5000))
        assert read_tags(path) == {"comment": "ab\\udce9\n"}
    with pytest.raises(ValueError, match=r"no such tag: colour; there are title, .*comment"):
        FileSink(tmp_path / "y.wav", RATE, tags={"colour": "red"})
    assert not (tmp_path / "y.wav").exists()
    (tmp_path / "x.txt").write_text("no audio")
    with pytest.raises(AudioError, match="not readable as audio"):
        read_tags(tmp_path / "x.txt")


@pytest.mark.parametrize("suffix", ["flac", "ogg"])
def test_minutes_in_one_block_are_split(tmp_path: Path, suffix: str) -> None:
    """In one call libsndfile can crash, so this runs in a process of its own."""
    code = """
import sys
import numpy as np
from samplernn.audio.sinks import FileSink
with FileSink(sys.argv[1], 16000) as sink:
    sink.write(np.random.default_rng(0).integers(-20000, 20000, 16000 * 120).astype(np.int16))
"""
    result = run(code, tmp_path / f"x.{suffix}")
    assert (result.returncode, result.stderr) == (0, "")
    assert sf.info(tmp_path / f"x.{suffix}").frames == 120 * RATE


def test_sink_takes_rf64_only_past_four_gib(tmp_path: Path) -> None:
    for expected, container in [(None, "WAV"), (2**31 - 2**16, "WAV"), (2**31, "RF64")]:
        with FileSink(tmp_path / "x.wav", RATE, expected) as sink:
            sink.write(noise(100))
        assert sf.info(tmp_path / "x.wav").format == container
        assert np.array_equal(to_int16(load(tmp_path / "x.wav", RATE)), noise(100))


@pytest.mark.parametrize("tags", [{}, {"comment": "odd"}])
def test_a_wav_of_unknown_length_becomes_rf64_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tags: dict[str, str]
) -> None:
    monkeypatch.setattr(sinks, "WAV_LIMIT", 4000)
    path = tmp_path / "x.wav"
    with FileSink(path, RATE, tags=tags) as sink:
        for count, container in [(1000, "WAV"), (2000, "WAV"), (3000, "RF64"), (4000, "RF64")]:
            sink.write(noise(4000)[count - 1000 : count])
            assert sf.info(path).format == container
            assert np.array_equal(sf.read(path, dtype="int16")[0], noise(4000)[:count])
            if container == "WAV":
                with wave.open(str(path)) as file:
                    assert file.getnframes() == count
    assert sf.info(path).frames == 4000
    assert read_tags(path) == tags


@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files")
@pytest.mark.parametrize("expected", [None, 5 * 2**29 + 100])
def test_five_gib_are_right_to_the_last_sample(tmp_path: Path, expected: int | None) -> None:
    """A file of more than 2**32 bytes of which little is written: the middle is a hole."""
    path, middle = tmp_path / "x.wav", 5 * 2**29
    with FileSink(path, RATE, expected, tags={"title": "long"}) as sink:
        sink.write(noise(1000, 1))
        start = path.stat().st_size - 2000
        sink._file.num_samples = middle
        sink.write(noise(100, 2))
        size = path.stat().st_size
        assert size == start + 2 * (middle + 100)
        assert size > 2**32
        assert path.stat().st_blocks * 512 < 2**20, "the test fills the disk"
        with path.open("rb") as file:
            header = file.read(64)
        assert struct.unpack_from("<4sI4s4sIQQQ", header) == (
            *(b"RF64", 2**32 - 1, b"WAVE", b"ds64", 28),
            *(size - 8, 2 * (middle + 100), middle + 100),
        )
    with sf.SoundFile(path) as file:
        assert (file.format, file.frames) == ("RF64", middle + 100)
        assert np.array_equal(file.read(1001, dtype="int16"), np.append(noise(1000, 1), 0))
        file.seek(middle - 10)
        end = np.concatenate([np.zeros(10, np.int16), noise(100, 2)])
        assert np.array_equal(file.read(200, dtype="int16"), end)
    path.unlink()


def test_a_wav_that_breaks_its_word_stops_before_the_header_overflows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "WAV_LIMIT", 4000)
    with FileSink(tmp_path / "x.wav", RATE, expected_samples=2000) as sink:
        sink.write(noise(2000))
        with pytest.raises(ValueError, match="4 GiB"):
            sink.write(noise(1))
    assert sf.info(tmp_path / "x.wav").frames == 2000


@pytest.mark.parametrize("place", ["missing/x.wav", "folder.wav", "file/x.wav"])
def test_sink_names_the_place_it_cannot_write_to(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match="cannot be written"):
        FileSink(tmp_path / place, RATE)


def test_sink_refuses_other_types(tmp_path: Path) -> None:
    with FileSink(tmp_path / "x.wav", RATE) as sink, pytest.raises(TypeError, match="int16"):
        sink.write(np.zeros(10, np.float32))


def test_names_that_tell_no_format_get_the_list(tmp_path: Path) -> None:
    for name in ("x.mp3", "x", "x.wav.bak"):
        with pytest.raises(AudioError, match=r"name it \.wav, \.flac, \.ogg, \.oga") as caught:
            FileSink(tmp_path / name, RATE)
        assert len(str(caught.value).splitlines()) == 1
        assert list(tmp_path.iterdir()) == []


def test_a_rate_that_a_format_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="cannot be written as OGG at 200001 Hz") as caught:
        FileSink(tmp_path / "x.ogg", 200_001)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.wav")
    with pytest.raises(AudioError, match="is a pipe"):
        FileSink(tmp_path / "x.wav", RATE)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Permissions mean nothing to root."""
    me = os.geteuid()
    if me:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_permissions_are_one_clear_line(suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / f"old.{suffix}").write_text("precious")
        (place / f"old.{suffix}").chmod(0o444)
        place.chmod(0o555)
        try:
            for name in ("old", "new"):
                with as_nobody(), pytest.raises(AudioError) as caught:
                    FileSink(place / f"{name}.{suffix}", RATE)
                assert str(caught.value).endswith(
                    "cannot be written (Permission denied); check its permissions"
                )
            assert (place / f"old.{suffix}").read_text() == "precious"
        finally:
            place.chmod(0o755)


def write_until_full(path: Path, samples: np.ndarray) -> str:
    """The message of the error that must come."""

    def write() -> None:
        with FileSink(path, RATE, tags={"title": "x"}) as sink:
            for start in range(0, len(samples), 3000):
                sink.write(samples[start : start + 3000])

    with pytest.raises(AudioError) as caught:
        write()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("used", [0, 150_001])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_full_disk_is_one_clear_line_and_the_file_plays(small_disk: Path, suffix: str, used: int) -> None:
    (small_disk / "other").write_bytes(bytes(used))
    path = small_disk / f"x.{suffix}"
    samples = tone(60 * RATE)
    message = write_until_full(path, samples)
    assert re.search(r"after \d+ samples \(No space left on device\); free some disk space$", message)
    claimed = int(message.partition("after ")[2].split()[0])
    plays(path, samples, at_least=claimed - {"wav": 0, "flac": 4096, "ogg": 2 * RATE}[suffix])
    assert claimed >= (204_800 - used - 8192) // 2  # no format takes more than 2 bytes a sample


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_disk_without_any_space(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x.{suffix}").symlink_to("/dev/full")
    assert "(No space left on device); free some disk space" in write_until_full(
        tmp_path / f"x.{suffix}", noise(9000)
    )


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from samplernn.audio.sinks import AudioError, FileSink
path, samples, limit, block = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with FileSink(path, 16000) as sink:
        for start in range(0, len(samples), block):
            sink.write(samples[start : start + block])
        print("closing")
except AudioError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_limit_on_file_sizes_is_one_clear_line(tmp_path: Path, suffix: str) -> None:
    samples, path = tone(RATE * 30), tmp_path / f"x.{suffix}"
    np.save(tmp_path / "samples.npy", samples)
    result = run(LIMITED, path, tmp_path / "samples.npy", "50000", "10000")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r".*after \d+0000 samples \(File too large\); allow larger files .*\n", result.stdout)
    plays(path, samples, at_least=20_000)
    if suffix == "wav":
        assert "after 20000 samples" in result.stdout
        assert path.stat().st_size == 44 + 36 + 40_000  # cut back to the last whole block


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize(("suffix", "limit"), [("flac", 10_000), ("ogg", 4000)])
def test_a_file_that_cannot_be_finished_is_not_passed_over(tmp_path: Path, suffix: str, limit: int) -> None:
    """The encoder's rest is written on closing, and libsndfile does not tell when that fails."""
    samples, path = noise(6000), tmp_path / f"x.{suffix}"
    np.save(tmp_path / "samples.npy", samples)
    result = run(LIMITED, path, tmp_path / "samples.npy", str(limit), "6000")
    assert "closing\n" in result.stdout
    assert "writing failed after 6000 samples (File too large)" in result.stdout
    if suffix == "flac":
        plays(path, samples, at_least=4096)


def test_an_error_in_between_is_not_hidden_by_closing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with FileSink(tmp_path / "x.flac", RATE) as sink:
            sink.write(noise(9000))
            sink._file._file.close()  # type: ignore[union-attr]
            (tmp_path / "x.flac").write_bytes(b"so that closing fails")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


SENDS = """
import sys
import numpy as np
from samplernn.audio.sinks import AudioError, PipeSink
form, comment, samples = sys.argv[1], sys.argv[2], np.load(sys.argv[3])
try:
    with PipeSink(sys.stdout.buffer, 16000, form, comment) as sink:
        for start in range(0, len(samples), 1600):
            sink.write(samples[start : start + 1600])
except AudioError as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.exit(2)
"""


def send(tmp_path: Path, form: str, comment: str, samples: np.ndarray, stdout: Any) -> subprocess.Popen[str]:
    np.save(tmp_path / "samples.npy", samples)
    command = [sys.executable, "-c", SENDS, form, comment, str(tmp_path / "samples.npy")]
    root = Path(next(iter(samplernn.__path__))).parent
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=root)


@pytest.mark.parametrize("comment", ["", "seed 0", "größer", "exactly eight by eight bytes ok!"])
def test_an_au_stream_is_read_whole_though_it_tells_no_length(tmp_path: Path, comment: str) -> None:
    path, samples = tmp_path / "x.au", noise(5 * RATE)
    with path.open("wb") as file:
        sender = send(tmp_path, "au", comment, samples, file)
        assert sender.communicate(timeout=60)[1] == ""
    header = path.read_bytes()[:24]
    magic, offset, *rest = struct.unpack(">4s5I", header)
    assert (magic, offset % 8, rest) == (b".snd", 0, [2**32 - 1, 3, RATE, 1])
    assert path.stat().st_size == offset + 2 * len(samples)
    assert sf.info(path).frames == len(samples)
    assert np.array_equal(sf.read(path, dtype="int16")[0], samples)
    decoder = Decoder(path, RATE)
    assert np.array_equal(to_int16(np.concatenate(list(decoder))), samples)
    assert decoder.problems == []


def test_raw_is_little_endian_samples_and_nothing_else() -> None:
    stream = io.BytesIO()
    with PipeSink(stream, RATE, "raw") as sink:
        sink.write(np.array([1, -2, 258], np.int16))
        sink.write(np.zeros(0, np.int16))
        sink.write(np.arange(10).astype(np.int16)[::3])
        assert sink.num_samples == 7
    sink.close()
    assert stream.getvalue() == struct.pack("<7h", 1, -2, 258, 0, 3, 6, 9)  # and it is still open


READS = """
import sys
sys.stdout.buffer.write(sys.stdin.buffer.read(int(sys.argv[1])))
"""


@pytest.mark.parametrize("form", ["au", "raw"])
def test_a_reader_that_closes_early_ends_it(tmp_path: Path, form: str) -> None:
    samples = noise(60 * RATE)
    sender = send(tmp_path, form, "", samples, subprocess.PIPE)
    assert sender.stdout is not None
    command = [sys.executable, "-c", READS, str(32_000 * 3)]
    got = subprocess.run(command, stdin=sender.stdout, capture_output=True, timeout=60).stdout
    sender.stdout.close()
    assert sender.stderr is not None
    message = sender.stderr.read()
    assert sender.wait(timeout=60) == 2
    found = re.fullmatch(
        r"PipeClosed <stdout>: the reader closed the pipe after (\d+\.\d) s; nothing more is sent\n", message
    )
    assert found, message  # and no more lines: Python does not try to send the rest when it ends
    assert 2.9 < float(found[1]) < 12  # pipe and buffers hold some seconds
    if form == "au":
        (tmp_path / "x.au").write_bytes(got)
        assert np.array_equal(sf.read(tmp_path / "x.au", dtype="int16")[0], samples[: (len(got) - 32) // 2])
    else:
        assert np.array_equal(np.frombuffer(got, "<i2"), samples[: 3 * RATE])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_is_sent_to_a_full_disk(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        sender = send(tmp_path, "raw", "", noise(RATE), full)
        message = sender.communicate(timeout=60)[1]
    assert sender.returncode == 2
    assert message == (
        "AudioError <stdout>: writing failed after 0.0 s (No space left on device); free some disk space\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs non-blocking pipes")
def test_a_pipe_that_does_not_block_gets_everything() -> None:
    """Another program at the same pipe can set that, and then the system takes parts or nothing."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    samples, got = noise(500_000), bytearray()

    def read() -> None:
        with os.fdopen(reading, "rb") as stream:
            while part := stream.read(10_000):
                got.extend(part)
                time.sleep(0.0005)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(writing, "wb") as stream, PipeSink(stream, RATE, "raw") as sink:
        sink.write(samples)
    reader.join(timeout=60)
    assert np.array_equal(np.frombuffer(got, "<i2"), samples)


def test_each_block_is_sent_at_once() -> None:
    """Behind a buffer the listener would hear nothing for a while."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "wb") as stream:
        stream.write(b"before")
        sink = PipeSink(stream, RATE, "raw")
        assert reader.read(100) == b"before"
        sink.write(np.array([1, 2], np.int16))
        assert reader.read(100) == b"\1\0\2\0"


def test_pipe_sink_refuses_other_forms_and_types() -> None:
    with pytest.raises(ValueError, match="au or raw"):
        PipeSink(io.BytesIO(), RATE, "wav")
    with pytest.raises(TypeError, match=r"PipeSink.write takes int16 \[n\], got int32 \[3\]"):
        PipeSink(io.BytesIO(), RATE).write(np.zeros(3, np.int32))


def test_a_closed_pipe_is_an_audio_error_that_crosses_processes() -> None:
    error = pickle.loads(
        pickle.dumps(PipeClosed("<stdout>", "the reader closed the pipe", "nothing more is sent"))
    )
    assert isinstance(error, PipeClosed)
    assert isinstance(error, AudioError)
    assert str(error) == "<stdout>: the reader closed the pipe; nothing more is sent"
