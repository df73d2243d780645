"""Audio and pictures of each validation: the files of samples/, which reports and people read."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from numpy.typing import NDArray

from samplernn.audio.corpus import Corpus, prepare
from samplernn.audio.spectrum import level_db, long_term_spectrum, spectral_distance
from samplernn.audio.split import Span, Split, locate
from samplernn.config import Config, DataConfig, from_dict, merged
from samplernn.generation.files import generate
from samplernn.model.checkpoint import load
from samplernn.training import run
from samplernn.training import samples as module
from samplernn.training.data import CorpusModule
from samplernn.training.folder import RunFolder
from tests.conftest import TOY

OPTIONS = {
    "samples": {
        "num": 2,
        "duration": 3.0,
        "temperatures": [0.7, 1.0],
        "prompts": 2,
        "prompt_duration": 0.5,
        "seed": 7,
    }
}
STREAMS = ("t0.70-0", "t0.70-1", "t1.00-0", "t1.00-1", "prompt0", "prompt1")


def _config(**changes: Any) -> Config:
    config: Config = from_dict(Config, merged(merged(TOY, OPTIONS), changes))
    return config


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """A toy run of six steps with three seconds of samples at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sampled"))
        return Path(run.start(clips, _config(), "toy").folder).resolve()


def _audio(run_folder: Path, name: str) -> NDArray[np.int16]:
    audio, rate = soundfile.read(run_folder / "samples" / f"{name}.wav", dtype="int16")
    assert rate == 4000
    return audio


def _json(run_folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_folder / "samples" / f"{name}.json").read_text("utf-8"))
    return found


def _parts(run_folder: Path, clips: Path) -> tuple[Corpus, Split]:
    return prepare(clips, DataConfig(sample_rate=4000)), Split.from_dict(RunFolder(run_folder).facts["split"])


def test_the_folder_holds_what_reports_read(sampled: Path) -> None:
    """At the end; whether there was time for more at step 4 depends on the machine."""
    found = {path.name for path in (sampled / "samples").iterdir() if "step-0000004" not in path.name}
    once = {"recording.wav"}
    for number in (0, 1):
        once |= {f"prompt{number}.wav", f"prompt{number}-truth.wav", f"prompt{number}.json"}
    step = {f"step-0000006-{name}.{kind}" for name in STREAMS for kind in ("wav", "json")}
    pictures = {f"step-0000006{suffix}.png" for suffix in ("", "-codes", "-spectrum")}
    assert found == once | step | pictures


@pytest.mark.parametrize("name", STREAMS)
def test_each_stream_says_what_it_is_and_how_it_measures(sampled: Path, name: str) -> None:
    about = _json(sampled, f"step-0000006-{name}")
    audio, recording = _audio(sampled, f"step-0000006-{name}"), _audio(sampled, "recording")
    is_free = name.startswith("t")
    number = int(name[-1])
    expected = {
        "step": 6,
        "kind": "free" if is_free else "continuation",
        "temperature": float(name[1:5]) if is_free else 0.7,
        "seed": 7,
        "stream": number,
        "prompt": None if is_free else number,
        "seconds": 3.0,
    }
    assert {key: about[key] for key in expected} == expected
    assert len(audio) == 12000
    assert about["validation_bits_per_sample"] == pytest.approx(
        load(sampled / "checkpoints" / "last.ckpt").results["validation_bits_per_sample"]
    )
    assert about["level_db"] == pytest.approx(level_db(audio), abs=0.01)
    distance = spectral_distance(long_term_spectrum(audio, 4000), long_term_spectrum(recording, 4000))
    assert about["spectral_distance_db"] == pytest.approx(distance, abs=0.01)
    # After six steps it makes noise, and a guard knows it.
    assert {trap["kind"] for trap in about["traps"]} == {"noise"}
    assert about["traps"][0].keys() == {"kind", "detail", "seconds", "until"}


def test_samples_are_what_generate_makes_of_the_checkpoint(sampled: Path, tmp_path: Path) -> None:
    """Streams, temperatures and prompts together in one batch change nothing."""
    checkpoint = load(sampled / "checkpoints" / "last.ckpt")
    common: dict[str, Any] = {"duration": 3.0, "seed": 7, "quiet": True}
    free = generate(checkpoint, tmp_path / "free", num=2, temperature=1.0, **common)
    prompt = sampled / "samples" / "prompt0.wav"
    (continued,) = generate(checkpoint, tmp_path / "c.wav", temperature=0.7, prompt=prompt, **common)
    for file, name in ((free[0], "t1.00-0"), (free[1], "t1.00-1"), (continued, "prompt0")):
        np.testing.assert_array_equal(
            soundfile.read(file, dtype="int16")[0], _audio(sampled, f"step-0000006-{name}")
        )


def test_prompts_are_held_out_audio_with_sound_and_the_truth_follows_them(sampled: Path, clips: Path) -> None:
    corpus, parts = _parts(sampled, clips)
    held_out = {file.path: (file, start, stop) for file, start, stop in locate(corpus, parts.validation)}
    seen = set()
    for number in (0, 1):
        where = _json(sampled, f"prompt{number}")
        file, _, stop = held_out[where["file"]]
        begin = round(where["start_seconds"] * 4000)
        prompt, truth = _audio(sampled, f"prompt{number}"), _audio(sampled, f"prompt{number}-truth")
        assert (len(prompt), len(truth)) == (2000, 12000)
        there = corpus.read(file, begin, begin + 14000)
        np.testing.assert_array_equal(there, np.concatenate([prompt, truth]))
        assert begin + 14000 <= stop
        loudest = max(level_db(corpus.read(file, at, at + 2000)) for at in range(0, stop - 2000, 500))
        assert min(level_db(prompt), level_db(truth)) > loudest - 20
        seen.add(where["file"])
    assert len(seen) == 2


def test_the_recording_is_held_out_and_long_enough_for_a_spectrum(sampled: Path, clips: Path) -> None:
    corpus, parts = _parts(sampled, clips)
    file, start, stop = max(locate(corpus, parts.validation), key=lambda span: span[2] - span[1])
    recording = _audio(sampled, "recording")
    assert len(recording) == min(40000, stop - start)
    np.testing.assert_array_equal(recording, corpus.read(file, start, start + len(recording)))


def test_of_more_prompts_than_recordings_each_has_a_place_of_its_own(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips / "guitar", tmp_path / "few")
    config = _config(samples={"prompts": 3, "duration": 0.3, "prompt_duration": 0.2})
    corpus = prepare(tmp_path / "few", DataConfig(sample_rate=4000))
    (file, *_) = corpus.files
    one = Split((), (Span(file.path, file.sha256, 0, file.num_samples),), ())
    prompts = CorpusModule(config, corpus, one).prompts()
    starts = [prompt.start_seconds for prompt in prompts]
    assert len(prompts) == 3
    assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(starts))


def test_of_little_audio_prompt_and_truth_are_shorter(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips / "guitar", tmp_path / "few")
    corpus = prepare(tmp_path / "few", DataConfig(sample_rate=4000))
    (file, *_) = corpus.files
    for length in (1, 2, 3, 400, 3000):
        short = Split((), (Span(file.path, file.sha256, 100, 100 + length),), ())
        (prompt,) = CorpusModule(_config(samples={"prompts": 1}), corpus, short).prompts()
        assert len(prompt.audio) + len(prompt.truth) <= length
        assert 0 <= len(prompt.audio) - min(2000, length / 2) < 1
        begin = round(prompt.start_seconds * 4000)
        together = np.concatenate([prompt.audio, prompt.truth])
        np.testing.assert_array_equal(corpus.read(file, begin, begin + len(together)), together)


def test_without_streams_there_is_nothing(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run.start(clips, _config(samples={"num": 0}), "silent")
    assert not (outcome.folder / "samples").exists()


def test_without_prompts_there_are_only_free_streams(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"prompts": 0, "num": 1, "temperatures": [0.95], "duration": 0.2}
    outcome = run.start(clips, _config(samples=changes), "free")
    names = {path.name for path in (outcome.folder / "samples").glob("*.wav")}
    assert {"recording.wav", "step-0000006-t0.95-0.wav"} <= names
    assert not any("prompt" in name for name in names)


@pytest.mark.slow
def test_a_resumed_run_leaves_the_same_samples(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "SAMPLING_SHARE", 1000.0)  # there is time for all of them
    options: dict[str, Any] = {"samples": {"duration": 0.2}, "optim": {"schedule": "constant"}}
    whole = run.start(clips, _config(**options, trainer={"max_steps": 9}), "whole")
    run.start(clips, _config(**options, trainer={"max_steps": 4}), "torn")
    resumed = run.resume("torn", {"trainer": {"max_steps": 9}})
    assert resumed is not None
    files = {path.name: path.read_bytes() for path in (whole.folder / "samples").iterdir()}
    assert {"step-0000004-prompt1.wav", "step-0000008-t0.70-1.json", "step-0000009.png"} < files.keys()
    for name, content in files.items():
        assert (resumed.folder / "samples" / name).read_bytes() == content, name


def test_a_run_of_an_earlier_version_resumes(run_copy: Path) -> None:
    """Its config.yaml has one temperature."""
    file = run_copy / "config.yaml"
    options = yaml.safe_load(file.read_text())
    options["samples"] = {"num": 1, "duration": 0.1, "temperature": 0.85, "seed": 0}
    file.write_text(yaml.safe_dump(options))
    outcome = run.resume("toy", {"trainer": {"max_steps": 7}})
    assert outcome is not None
    assert (outcome.folder / "samples" / "step-0000007-t0.85-0.wav").exists()
    assert RunFolder(run_copy).config.samples.temperatures == (0.85,)


def test_samples_are_shortened_and_skipped_to_keep_to_their_share(
    sampled: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock of its own: 2 s whatever is generated, and 1 s for each second of audio."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    config = _config(samples={"duration": 100.0})
    corpus, parts = _parts(sampled, clips)
    data = CorpusModule(config, corpus, parts)
    samples = module.Samples(sampled / "unused", config, load(sampled), data.recording(), data.prompts(), [])
    made: list[int] = []

    def work(num_samples: int) -> None:
        samples._streaming_seconds = num_samples / 4000
        now[0] += 2.0 + samples._streaming_seconds
        made.append(num_samples)

    samples._timed(lambda: work(400), 400)
    for trained in (20.0, 40.0, 100.0, 1000.0):
        affordable = min(400_000, samples._affordable(trained))
        if affordable >= 400:
            samples._timed(lambda length=affordable: work(length), affordable)
        assert samples._spent <= max(2.1, 0.1 * trained + 0.01)
    assert made[1:] == [
        pytest.approx((10 - 2.1 - 2) * 4000, abs=2),
        pytest.approx((100 - 10 - 2) * 4000, abs=9),
    ]


def test_libraries_that_only_draw_or_log_may_be_broken(tmp_path: Path, clips: Path) -> None:
    """A run in a process in which they do not load: one line for each, audio and bits all the same."""
    program = f"""
import sys
for name in ("matplotlib.backends.backend_agg", "torchaudio", "torch.utils.tensorboard"):
    sys.modules[name] = None  # an import then raises ImportError
from samplernn.config import Config, from_dict
from samplernn.training import run
outcome = run.start({str(clips)!r}, from_dict(Config, {merged(TOY, {"trainer": {"max_steps": 4}})!r}), "toy")
print(outcome.validation.bits_per_sample)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 8
    assert done.stderr.count("no pictures: matplotlib cannot be loaded") == 1
    assert done.stderr.count("tensorboard cannot be loaded, training goes on without it") == 1
    assert list((tmp_path / "runs/toy/samples").glob("step-*.wav"))
    assert not list((tmp_path / "runs/toy/samples").glob("step-*.png"))
    assert not list((tmp_path / "runs/toy").glob("events*"))
