"""What a run sounds and looks like at each validation: WAV files, a JSON beside each, pictures, dashboards.

In the folder ``samples`` of a run::

    step-0001000-t0.90-0.wav  .json     free generation: temperature, stream
    step-0001000-prompt0.wav  .json     how the model continues prompt 0, without the prompt in front
    step-0001000.png                    mel spectrograms of these
    step-0001000-codes.png              how often each code occurs, against the training audio
    step-0001000-spectrum.png           long-term average spectrum, against held-out audio
    recording.wav                       held-out audio, once
    prompt0.wav  prompt0-truth.wav      what is continued, and how the recording goes on, once
    prompt0.json                        where that is from, once
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from samplernn import plots, storage
from samplernn.audio.sinks import FileSink
from samplernn.audio.spectrum import level_db, long_term_spectrum, mel_edges, spectral_distance
from samplernn.config import Config, UserError
from samplernn.generation.guards import HOP_SECONDS, traps_in
from samplernn.generation.playback import BLOCK_SECONDS, Generator
from samplernn.generation.prompts import Prompt
from samplernn.generation.request import Request
from samplernn.messages import say
from samplernn.model.checkpoint import Checkpoint
from samplernn.training.callbacks import StepCallback
from samplernn.training.dashboards import Dashboard, GridStream
from samplernn.training.data import HeldOut
from samplernn.training.module import TrainingModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLING_SHARE = 0.1
"""Largest share of a run's time that samples may take."""


class Stream(NamedTuple):
    """One of the streams of every validation."""

    temperature: float
    number: int
    """That keys its random numbers: `samplernn generate` with it and the seed draws the same."""
    prompt: int | None = None
    """Which it continues; None: free generation."""

    @property
    def name(self) -> str:
        """In the names of files."""
        return f"t{self.temperature:.2f}-{self.number}" if self.prompt is None else f"prompt{self.prompt}"

    @property
    def shown_as(self) -> str:
        """On the dashboards, where a point would begin a part of a name."""
        return f"samples/{self.name.replace('.', '_')}{'' if self.prompt is None else '-continued'}"

    @property
    def title(self) -> str:
        """For people."""
        if self.prompt is None:
            return f"temperature {self.temperature:g}, stream {self.number}"
        return f"continuation of prompt {self.prompt}, temperature {self.temperature:g}"


class Samples(StepCallback):
    """Generates audio at each validation, all streams in one batch.

    Streams have fixed seeds and prompts, so that from one validation to the next only the model changes.
    They are shortened, or skipped, where they would take more than a tenth of the run's time; only
    the last ones, when the run ends by itself, are always whole.

    Args:
        folder: of the samples.
        config: of the run.
        facts: everything about the model but its weights.
        recording: held-out audio, int16 ``[T]``: the samples' spectra are measured against it.
        prompts: held-out audio to be continued.
        dashboards: where it is shown.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        facts: Checkpoint,
        recording: NDArray[np.int16],
        prompts: Sequence[HeldOut],
        dashboards: Sequence[Dashboard],
    ) -> None:
        self.folder, self.config, self.facts, self.dashboards = folder, config.samples, facts, dashboards
        self.recording, self.prompts = recording, prompts
        self.sample_rate = config.data.sample_rate
        first = self.config.temperatures[0]
        self.streams = [
            *(Stream(each, number) for each in self.config.temperatures for number in range(self.config.num)),
            *(Stream(first, number, number) for number in range(len(prompts))),
        ]
        self._target = long_term_spectrum(recording, self.sample_rate)
        self._spent = self._fixed_seconds = self._streaming_seconds = 0.0
        self._seconds_per_sample: float | None = None
        self._cannot_draw = False

    def before_training(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """What does not change is written and shown once."""
        if self.config.num == 0 or not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        sounds = {"recording": self.recording}
        for number, prompt in enumerate(self.prompts):
            sounds[f"prompt{number}"], sounds[f"prompt{number}-truth"] = prompt.audio, prompt.truth
            self._write_json(f"prompt{number}", {"file": prompt.path, "start_seconds": prompt.start_seconds})
        files = {f"samples/{name}": self._write_audio(name, audio) for name, audio in sounds.items()}
        for dashboard in self.dashboards:
            if dashboard.is_new:
                dashboard.show(files, [], 0)

    def after_validation(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Generate, as much as there is time for."""
        if self.config.num == 0 or not trainer.is_global_zero or not math.isfinite(module.validation_bits):
            return
        num_samples = round(self.config.duration * self.sample_rate)
        block = min(num_samples, round(BLOCK_SECONDS * self.sample_rate))
        if not trainer.should_stop:
            if self._seconds_per_sample is None:  # the first time, try how long a block takes;
                self._generate(module, block)  # compiles the engine, once on a machine: not our time
                self._timed(lambda: self._generate(module, block), block)
            num_samples = min(num_samples, self._affordable(module.clock.seconds))
        if num_samples >= block:
            self._timed(lambda: self._store(trainer.global_step, module, num_samples), num_samples)

    def _affordable(self, train_seconds: float) -> int:
        """Samples per stream that fit into the share of the time so far that is not used up."""
        assert self._seconds_per_sample is not None
        left = SAMPLING_SHARE * train_seconds - self._spent - self._fixed_seconds
        return int(left / self._seconds_per_sample)

    def _timed(self, work: Callable[[], object], num_samples: int) -> None:
        """Do the work, which makes `num_samples` per stream, and learn how long that and the rest take."""
        started = time.monotonic()
        work()
        seconds = time.monotonic() - started
        self._spent += seconds
        self._fixed_seconds = seconds - self._streaming_seconds
        self._seconds_per_sample = max(self._streaming_seconds, 1e-6) / num_samples

    def _generate(self, module: TrainingModule, num_samples: int) -> tuple[Generator, NDArray[np.int16]]:
        """The model, ready to play, and all streams, int16 ``[streams, num_samples]``."""
        weights = {name: value.detach() for name, value in module.evaluated.state_dict().items()}
        silence = Prompt.of_samples(np.zeros(0, np.int16))
        heard = [Prompt.of_samples(prompt.audio) for prompt in self.prompts]
        request = Request(
            num_samples,
            streams=tuple(stream.number for stream in self.streams),
            seed=self.config.seed,
            temperature=tuple(stream.temperature for stream in self.streams),
            prompts=tuple(silence if each.prompt is None else heard[each.prompt] for each in self.streams),
            on_trap="off",
        )
        generator = Generator(replace(self.facts, weights=weights))
        playback = generator.stream(request)
        started = time.monotonic()
        audio = np.concatenate(list(playback), axis=1)
        self._streaming_seconds = time.monotonic() - started
        return generator, audio

    def _store(self, step: int, module: TrainingModule, num_samples: int) -> None:
        """Generate, write and show."""
        generator, audio = self._generate(module, num_samples)
        bits = module.validation_bits
        files: dict[str, Path] = {}
        grid = []
        for stream, samples in zip(self.streams, audio, strict=True):
            name = f"step-{step:07d}-{stream.name}"
            files[stream.shown_as] = file = self._write_audio(name, samples)
            about = {
                "step": step,
                "validation_bits_per_sample": bits,
                "kind": "free" if stream.prompt is None else "continuation",
                "temperature": stream.temperature,
                "seed": self.config.seed,
                "stream": stream.number,
                "prompt": stream.prompt,
            }
            self._write_json(name, {**about, **self._measured(generator, samples)})
            settings = stream.temperature, self.config.seed, stream.number, stream.prompt
            grid.append(GridStream(step, stream.title, *settings, file))
        try:
            figures = self._draw(generator, audio, f"after {step} steps, {bits:.3f} bits: ")
            for name, (suffix, figure) in figures.items():
                files[f"samples/{name}"] = file = self.folder / f"step-{step:07d}{suffix}.png"
                storage.write_bytes(file, plots.png(figure))
        except UserError as error:  # a library that draws does not load; audio is there all the same
            if not self._cannot_draw:
                say(str(error))
            self._cannot_draw = True
        for dashboard in self.dashboards:
            dashboard.show(files, grid, step)

    def _measured(self, generator: Generator, audio: NDArray[np.int16]) -> dict[str, Any]:
        """What a stream, int16 ``[T]``, is like."""
        rate, hop = self.sample_rate, generator.in_frames(HOP_SECONDS)
        # A frame may be longer than what a guard hears at a time.
        traps = traps_in(audio, generator.expected, rate, hop) if 0.1 <= hop / rate <= 0.5 else []
        distance = spectral_distance(long_term_spectrum(audio, rate), self._target)
        return {
            "seconds": len(audio) / rate,
            "level_db": round(level_db(audio), 2),
            "spectral_distance_db": round(distance, 2),
            "traps": [
                {
                    "kind": trap.kind,
                    "detail": trap.detail,
                    "seconds": trap.begin / rate,
                    "until": trap.seen / rate,
                }
                for trap in traps
            ],
        }

    def _draw(
        self, generator: Generator, audio: NDArray[np.int16], when: str
    ) -> dict[str, tuple[str, Figure]]:
        """Pictures of all streams, ``[streams, T]``, each with the suffix of its file. Raises UserError."""
        length, clips = audio.shape[1], {}
        free: dict[str, list[NDArray[np.int16]]] = {}
        for stream, samples in zip(self.streams, audio, strict=True):
            clips[when + stream.title] = samples
            if stream.prompt is None:
                free.setdefault(f"temperature {stream.temperature:g}", []).append(samples)
            else:
                truth = self.prompts[stream.prompt].truth
                clips[f"how the recording of prompt {stream.prompt} goes on"] = truth[:length]
        clips["held-out recording"] = self.recording[:length]
        known = self.facts.pair_counts.sum(axis=0)
        codes, spectra = {}, {}
        for title, streams in free.items():
            together = np.concatenate(streams)
            codes[title] = np.bincount(generator.codec.encode(together), minlength=len(known))
            spectra[title] = long_term_spectrum(together, self.sample_rate)
        edges = mel_edges(self.sample_rate)
        return {
            "spectrograms": ("", plots.spectrograms(clips, self.sample_rate)),
            "codes": ("-codes", plots.code_histograms(known, codes)),
            "spectrum": ("-spectrum", plots.long_term_spectra(edges, self._target, spectra)),
        }

    def _write_audio(self, name: str, audio: NDArray[np.int16]) -> Path:
        """Write a WAV file; returns where it is."""

        def write(draft: Path) -> None:
            with FileSink(draft, self.sample_rate, len(audio)) as sink:
                sink.write(audio)

        storage.write_whole(self.folder / f"{name}.wav", write)
        return self.folder / f"{name}.wav"

    def _write_json(self, name: str, facts: dict[str, Any]) -> None:
        """Write what the file of a sound says."""
        storage.write_text(self.folder / f"{name}.json", json.dumps(facts, indent=2) + "\n")
