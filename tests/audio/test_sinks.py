from __future__ import annotations

import signal
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import samplernn
from samplernn.audio import sinks
from samplernn.audio.io import AudioError, load, to_int16
from samplernn.audio.sinks import FileSink

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
sink = FileSink(sys.argv[1], 16000)
for i in range(5):
    sink.write(np.full(1000, i, np.int16))
print("written", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_a_valid_wav(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    root = Path(next(iter(samplernn.__path__))).parent
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    expected = np.repeat(np.arange(5), 1000)
    with wave.open(str(path)) as file:
        assert np.array_equal(np.frombuffer(file.readframes(9999), "<i2"), expected)
    assert np.array_equal(sf.read(path, dtype="int16")[0], expected)


def test_sink_takes_rf64_only_past_four_gib(tmp_path: Path) -> None:
    for expected, container in [(None, "WAV"), (2**31 - 2**16, "WAV"), (2**31, "RF64")]:
        with FileSink(tmp_path / "x.wav", RATE, expected) as sink:
            sink.write(noise(100))
        assert sf.info(tmp_path / "x.wav").format == container
        assert np.array_equal(to_int16(load(tmp_path / "x.wav", RATE)), noise(100))


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


FULL = """
import resource, sys
import numpy as np
from samplernn.audio.sinks import AudioError, FileSink
resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))
try:
    with FileSink(sys.argv[1], 16000) as sink:
        for _ in range(10):
            sink.write(np.ones(10000, np.int16))
except AudioError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    root = Path(next(iter(samplernn.__path__))).parent
    command = [sys.executable, "-c", FULL, str(tmp_path / "x.wav")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert result.returncode == 0, result.stderr
    assert "writing failed after 20000 samples (File too large); allow larger files" in result.stdout
