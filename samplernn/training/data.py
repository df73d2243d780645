"""Lightning's view of the corpus: a resumable loader over lanes, and the DataModule around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from samplernn.audio.corpus import AudioFile, Corpus
from samplernn.audio.lanes import Lanes, evaluation_lanes, quick_check, training_lanes
from samplernn.audio.split import Split, locate
from samplernn.config import Config
from samplernn.model.codec import Codec
from samplernn.training.loss import Batch

_RECORDING_SECONDS = 10.0
_SEARCHED_SECONDS = 60.0
"""Of a recording, for a prompt."""


class HeldOut(NamedTuple):
    """A piece of held-out audio that the model is to continue."""

    path: str
    """Of its file, relative to the audio folder."""
    start_seconds: float
    """Where it is in that."""
    audio: NDArray[np.int16]
    """What is heard, ``[T]``."""
    truth: NDArray[np.int16]
    """How the recording goes on, ``[T]``."""


class LaneLoader:
    """Iterates over the chunks of one epoch after the other, and can be saved in between.

    The position is kept here, not in the iterator: iterating goes on where the last iterator
    stood, and starts the next epoch after the last chunk. `TrainingModule` saves and restores it:
    Lightning does so only for an epoch that it takes for unfinished, which one that ended by
    `should_stop` is not. Without `__len__` Lightning would prefetch, and the position be one too far.

    Args:
        lanes: what this process reads.
        codec: of the model.
    """

    def __init__(self, lanes: Lanes, codec: Codec) -> None:
        self.lanes, self.codec = lanes, codec
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        return len(self.lanes)

    def __iter__(self) -> Iterator[Batch]:
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        for chunk in self.lanes.chunks(self.epoch, self.position):
            self.position += 1
            yield Batch.of(chunk, self.codec)

    def state_dict(self) -> dict[str, int]:
        """Epoch, and chunks handed out in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position."""
        self.epoch, self.position = state["epoch"], state["position"]


def lane_loader(trainer: pl.Trainer) -> LaneLoader:
    """The loader that the Trainer trains from."""
    loader = trainer.train_dataloader
    assert isinstance(loader, LaneLoader)
    return loader


class EvaluationLoader:
    """The chunks of evaluation lanes, from the start at every iteration."""

    def __init__(self, lanes: Lanes, codec: Codec) -> None:
        self.lanes, self.codec = lanes, codec

    def __len__(self) -> int:
        return len(self.lanes)

    def __iter__(self) -> Iterator[Batch]:
        return (Batch.of(chunk, self.codec) for chunk in self.lanes.chunks(epoch=0))


class CorpusModule(pl.LightningDataModule):
    """Train and validation lanes of a prepared corpus.

    Args:
        config: of the run.
        corpus: decoded audio.
        split: what is train, validation and test.

    Raises:
        UserError: the lanes do not divide evenly among the devices.
    """

    def __init__(self, config: Config, corpus: Corpus, split: Split) -> None:
        super().__init__()
        self.config, self.corpus, self.split = config, corpus, split
        self.codec = Codec.of(config.model, corpus.gain)

    def _ranks(self) -> dict[str, Any]:
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}

    def train_dataloader(self) -> LaneLoader:
        """Shuffled segments."""
        spans = locate(self.corpus, self.split.train)
        lanes = training_lanes(
            self.corpus, spans, self.config.data, self.config.seed_everything, **self._ranks()
        )
        return LaneLoader(lanes, self.codec)

    def val_dataloader(self) -> EvaluationLoader:
        """Whole files, as many as `data.validation_duration` holds."""
        data = self.config.data
        spans = quick_check(locate(self.corpus, self.split.validation), data)
        lookback = self.config.model.lookback
        lanes = evaluation_lanes(self.corpus, spans, lookback, data.lanes, **self._ranks())
        return EvaluationLoader(lanes, self.codec)

    def recording(self) -> NDArray[np.int16]:
        """The beginning of the longest held-out stretch, at least as long as a generated sample.

        And ten seconds if there are as many: of less a long-term spectrum says little.
        """
        file, start, stop = self._longest_first()[0]
        length = round(max(self.config.samples.duration, _RECORDING_SECONDS) * self.corpus.sample_rate)
        return self.corpus.read(file, start, min(stop, start + length))

    def prompts(self) -> list[HeldOut]:
        """`samples.prompts` held-out recordings to be continued, the longest first.

        Of more prompts than recordings, several are from one: each from a part of its own.
        """
        options, spans = self.config.samples, self._longest_first()
        found = []
        for number in range(options.prompts):
            file, start, stop = spans[number % len(spans)]
            parts = len(range(number % len(spans), options.prompts, len(spans)))
            part, length = number // len(spans), (stop - start) // parts
            begin = start + part * length
            found.append(self._prompt(file, begin, begin + length))
        return found

    def _longest_first(self) -> list[tuple[AudioFile, int, int]]:
        spans = locate(self.corpus, self.split.validation)
        return sorted(spans, key=lambda span: span[1] - span[2])

    def _prompt(self, file: AudioFile, start: int, stop: int) -> HeldOut:
        """From the first place with sound before and after the cut; shorter where there is too little."""
        rate, options = self.corpus.sample_rate, self.config.samples
        audio = self.corpus.read(file, start, min(stop, start + round(_SEARCHED_SECONDS * rate)))
        before = min(max(1, round(options.prompt_duration * rate)), (len(audio) + 1) // 2)
        after = min(max(1, round(options.duration * rate)), len(audio) - before)
        energy = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
        cuts = np.arange(before, len(audio) - after + 1, max(1, rate // 4))
        heard, later = energy[cuts] - energy[cuts - before], energy[cuts + after] - energy[cuts]
        sound = np.minimum(heard / before, later / max(1, after))
        cut = int(cuts[np.flatnonzero(sound >= sound.max() / 2)[0]])
        return HeldOut(
            file.path, (start + cut - before) / rate, audio[cut - before : cut], audio[cut : cut + after]
        )
