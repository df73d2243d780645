"""`data.batch_size: auto`: as many lanes as the memory has room for and the audio keeps busy."""

from __future__ import annotations

from dataclasses import replace

import torch

from samplernn.audio.corpus import Corpus
from samplernn.audio.lanes import Lanes, training_lanes
from samplernn.audio.split import Split, locate
from samplernn.config import Config
from samplernn.training.memory import RandomStep, available_bytes, footprint

MAX_LANES = 256
_SHARE_OF_GPU, _SHARE_OF_MACHINE = 0.8, 0.5
"""Of the free memory that may be used; other programs live beside us in that of the machine."""
_ASSUMED_BYTES = 4e9
"""Free memory, where the system does not say."""
_BUSY_SHARE = 0.8
"""Share of an epoch that the lanes have something to read, at least."""


def resolve(
    config: Config, corpus: Corpus, parts: Split, device: torch.device, devices: int = 1, num_nodes: int = 1
) -> tuple[Config, str]:
    """Make a number of `data.batch_size: auto`.

    It is the number of processes, doubled as often as all of this holds:

    - there are at most 256 lanes;
    - training takes at most half of the machine's free memory, or 80 % of a GPU's (see `memory.footprint`);
    - there are as many segments of full length as lanes, and dealt out they last equally long, by and large.

    Args:
        config: of the run.
        corpus: the audio.
        parts: what of it trains.
        device: where the first process trains; the others are taken to be alike.
        devices: processes on this machine.
        num_nodes: machines.

    Returns:
        The configuration with a number, and one line that says which and why. If there was a number
        already: the same configuration and an empty line.
    """
    data = config.data
    if data.batch_size != "auto":
        return config, ""
    world_size = devices * num_nodes
    spans = locate(corpus, parts.train)

    def deal(lanes: int) -> Lanes:
        return training_lanes(corpus, spans, replace(data, batch_size=lanes), config.seed_everything)

    whole = deal(1)
    segments, chunks = len(whole.segments), len(whole)
    memory = footprint(RandomStep(config, device))
    share = _SHARE_OF_GPU if device.type == "cuda" else _SHARE_OF_MACHINE / devices
    usable = share * (available_bytes(device) or _ASSUMED_BYTES)

    sizes = [world_size]
    while 2 * sizes[-1] <= MAX_LANES:
        sizes.append(2 * sizes[-1])
    affordable = [n for n in sizes if memory.peak(n // world_size) <= usable] or sizes[:1]
    busy = [n for n in affordable if n <= segments and chunks >= _BUSY_SHARE * n * len(deal(n))] or sizes[:1]
    lanes = busy[-1]
    if lanes == sizes[-1]:
        why = "the most that auto takes"
    elif lanes == affordable[-1]:
        needed = memory.peak(2 * lanes // world_size)
        why = f"{2 * lanes} would take about {_gigabytes(needed)}, and {_gigabytes(usable)} may be used"
        why += " by each process" if world_size > 1 else ""
    else:
        number = f"{segments} segment{'s' if segments > 1 else ''}"
        why = f"{number} of up to {data.segment_duration:g} s do not keep {2 * lanes} busy"
    line = f"data.batch_size auto: {lanes} lane{'s' if lanes > 1 else ''} ({why})"
    return replace(config, data=replace(data, batch_size=lanes)), line


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
