"""Lightning's view of the corpus: a resumable loader over lanes, and the DataModule around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl

from samplernn.audio.corpus import Corpus, Split, locate
from samplernn.audio.lanes import Lanes, cut
from samplernn.config import Config
from samplernn.model.network import SampleRNN
from samplernn.training.scoring import Batch, evaluation_lanes, quick_check, to_batch


class LaneLoader:
    """Iterates over the chunks of one epoch after the other, and can be saved in between.

    The position is kept here, not in the iterator: iterating goes on where the last iterator
    stood, and starts the next epoch after the last chunk. Lightning saves and restores it through
    `state_dict`; it needs `__len__` for the position to be exact (without, it prefetches one chunk).

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
        model: decides the length of evaluation chunks.

    Raises:
        UserError: the lanes do not divide evenly among the devices.
    """

    def __init__(self, config: Config, corpus: Corpus, split: Split, model: SampleRNN) -> None:
        super().__init__()
        self.config, self.corpus, self.split = config, corpus, split
        self._model = model

    def _ranks(self) -> dict[str, Any]:
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}

    def train_dataloader(self) -> LaneLoader:
        """Shuffled segments."""
        data = self.config.data
        segment_len = round(data.segment_duration * data.sample_rate)
        spans = locate(self.corpus, self.split.train)
        segments = cut(spans, segment_len, data.tbptt_len, data.batch_size)
        lanes = Lanes(
            self.corpus,
            segments,
            data.batch_size,
            data.tbptt_len,
            seed=self.config.seed_everything,
            **self._ranks(),
        )
        return LaneLoader(lanes)

    def val_dataloader(self) -> EvaluationLoader:
        """Whole files, as many as `data.validation_duration` holds."""
        data = self.config.data
        spans = quick_check(locate(self.corpus, self.split.validation), data)
        return EvaluationLoader(
            evaluation_lanes(self.corpus, spans, self._model, data.batch_size, **self._ranks())
        )
