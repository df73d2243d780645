"""Do the fast paths of training learn as much as plain PyTorch? Both take equal steps from equal seeds.

    python scripts/compare_training.py FOLDER --steps 300 --seeds 3

One line per seed: validation bits per sample of a training as `samplernn train` does it (table, own GRU,
fused AdamW, the precision that the machine has) and of `samplernn.insight.benchmark.plain` (convolution,
`nn.GRU`, float32), both scored in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from samplernn.audio.corpus import Corpus, locate, prepare, split
from samplernn.audio.lanes import Spans, evaluation_lanes, quick_check, training_lanes
from samplernn.config import Config
from samplernn.insight.benchmark.plain import PlainTraining
from samplernn.insight.benchmark.results import preset_config
from samplernn.model.checkpoint import Checkpoint
from samplernn.model.codec import Codec
from samplernn.model.network import SampleRNN
from samplernn.training.data import EvaluationLoader, LaneLoader
from samplernn.training.module import TrainingModule
from samplernn.training.scoring import score
from samplernn.training.trainer import make_trainer, silence_lightning


class _StopAfter(pl.Callback):
    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self._steps


def train_plainly(config: Config, corpus: Corpus, loader: LaneLoader, steps: int) -> SampleRNN:
    """Steps of plain PyTorch, on the CPU."""
    training = PlainTraining(config, torch.device("cpu"))
    taken = iter(range(1, steps))
    training.run(loader, lambda: next(taken, None) is None)
    return training.model


def train(config: Config, corpus: Corpus, loader: LaneLoader, steps: int) -> SampleRNN:
    """Steps of our own."""
    pl.seed_everything(config.seed_everything, verbose=False)
    pairs = np.zeros((config.model.q_levels, config.model.q_levels), np.int64)
    facts = Checkpoint(config, {}, corpus.gain, pair_counts=pairs, split={})
    module = TrainingModule(facts, planned_steps_per_epoch=len(loader))
    make_trainer(config, [_StopAfter(steps)]).fit(module, train_dataloaders=loader)
    return module.model


def bits(config: Config, corpus: Corpus, held_out: Spans, model: SampleRNN) -> float:
    """Of the held-out audio, by a network of the usual form with the weights of a model."""
    judge = SampleRNN(config.model)
    judge.load_state_dict(model.state_dict())
    lanes = evaluation_lanes(corpus, held_out, judge.lookback, config.data.lanes)
    return score(judge, EvaluationLoader(lanes, Codec.of(config.model, corpus.gain))).bits_per_sample


def main() -> None:
    """Print a line per seed, then the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of audio")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    options = parser.parse_args()
    silence_lightning()
    config = preset_config(options.preset)
    config = replace(
        config,  # what both have: a constant rate, no warm-up, one process
        optim=replace(config.optim, schedule="constant", warmup_steps=0),
        trainer=replace(config.trainer, accelerator="cpu", devices=1),
    )
    corpus = prepare(options.folder, config.data)
    parts = split(corpus, config.data.split_seed)
    spans = locate(corpus, parts.train)
    held_out = quick_check(locate(corpus, parts.validation), config.data)
    variants: dict[str, Callable[[Config, Corpus, LaneLoader, int], SampleRNN]]
    variants = {"samplernn": train, "plain": train_plainly}
    found: dict[str, list[float]] = {name: [] for name in variants}
    for seed in range(options.seeds):
        seeded = replace(config, seed_everything=seed)
        line = [f"seed {seed}"]
        for name, variant in variants.items():
            codec = Codec.of(config.model, corpus.gain)
            loader = LaneLoader(training_lanes(corpus, spans, config.data, seed), codec)
            started = time.monotonic()
            model = variant(seeded, corpus, loader, options.steps)
            seconds = time.monotonic() - started
            found[name].append(bits(seeded, corpus, held_out, model))
            line.append(f"{name} {found[name][-1]:.4f} bits ({seconds:.0f} s)")
        print("   ".join(line), flush=True)
    for name, values in found.items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{name}: {statistics.mean(values):.4f}{spread}")


if __name__ == "__main__":
    main()
