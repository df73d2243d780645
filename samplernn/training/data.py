"""Lightning's view of the corpus: a resumable loader over lanes, and the DataModule around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from samplernn.audio.corpus import Corpus, Split, locate
from samplernn.audio.lanes import Lanes, training_lanes
from samplernn.config import Config
from samplernn.training.scoring import Batch, evaluation_lanes, quick_check, to_batch


class LaneLoader:
    """Iterates over the chunks of one epoch after the other, and can be saved in between.

    The position is kept here, not in the iterator: iterating goes on where the last iterator
    stood, and starts the next epoch after the last chunk. `TrainingModule` saves and restores it:
    Lightning does so only for an epoch that it takes for unfinished, which one that ended by
    `should_stop` is not. Without `__len__` Lightning would prefetch, and the position be one too far.

    Args:
        lanes: what this process reads.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        return len(self.lanes)

    def __iter__(self) -> Iterator[Batch]:
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        for chunk in self.lanes.chunks(self.epoch, self.position):
            self.position += 1
            yield to_batch(chunk)

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

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes

    def __len__(self) -> int:
        return len(self.lanes)

    def __iter__(self) -> Iterator[Batch]:
        return map(to_batch, self.lanes.chunks(epoch=0))


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

    def _ranks(self) -> dict[str, Any]:
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}

    def train_dataloader(self) -> LaneLoader:
        """Shuffled segments."""
        spans = locate(self.corpus, self.split.train)
        lanes = training_lanes(
            self.corpus, spans, self.config.data, self.config.seed_everything, **self._ranks()
        )
        return LaneLoader(lanes)

    def val_dataloader(self) -> EvaluationLoader:
        """Whole files, as many as `data.validation_duration` holds."""
        data = self.config.data
        spans = quick_check(locate(self.corpus, self.split.validation), data)
        return EvaluationLoader(
            evaluation_lanes(self.corpus, spans, self.config.model.lookback, data.lanes, **self._ranks())
        )

    def recording(self) -> NDArray[np.int16]:
        """The beginning of the longest held-out stretch, as long as a generated sample."""
        spans = locate(self.corpus, self.split.validation)
        file, start, stop = max(spans, key=lambda span: span[2] - span[1])
        length = round(self.config.samples.duration * self.corpus.sample_rate)
        return self.corpus.read(file, start, min(stop, start + length))
