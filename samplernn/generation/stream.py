"""Generation for programs: blocks of samples from one function call."""

from __future__ import annotations

from typing import Any

from samplernn.generation.arguments import takes_options
from samplernn.generation.playback import BLOCK_SECONDS, Generator, Playback
from samplernn.generation.request import Options
from samplernn.generation.settings import settle
from samplernn.model.checkpoint import Checkpoint


@takes_options(Options, without=("include_prompt", "stream"))
def stream(checkpoint: Checkpoint, block_seconds: float = BLOCK_SECONDS, **said: Any) -> Playback:
    """Generate audio block by block, in memory that does not grow.

    What is not given is as in `like`, else as in `from_state`, else the default.

    Args:
        checkpoint: from `samplernn.load`.
        block_seconds: length of the blocks, about; it changes nothing in the samples.
        **said: see Options.

    Returns:
        An iterator over int16 ``[num, n]`` at the model's sample rate. Its `events` are the traps so far, its
        `snapshot()` is where it stands: save it, or give it as `from_state`.

    Raises:
        UserError: an argument out of range, or a file that cannot be read.

    Example:
        >>> playback = samplernn.stream(samplernn.load("runs/piano"), duration=60, temperature="0:1.0,60:0.8")
        >>> with soundfile.SoundFile("piano.wav", "w", 16000, 1) as file:
        ...     for block in playback:
        ...         file.write(block[0])
        >>> playback.snapshot().save("piano.state")
    """
    request = settle(checkpoint, said)
    generator = Generator(checkpoint, request.engine, request.dtype)
    return generator.stream(request, block_seconds)
