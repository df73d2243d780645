"""Generation for programs: blocks of samples from one function call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samplernn.generation.playback import BLOCK_SECONDS, Generator, Playback
from samplernn.generation.prompts import Given
from samplernn.generation.request import OnTrap
from samplernn.generation.settings import Settings, request_of, settled
from samplernn.generation.snapshots import Snapshot
from samplernn.model.checkpoint import Checkpoint


def stream(
    checkpoint: Checkpoint,
    duration: float | None = None,
    num: int | None = None,
    seed: int | None = None,
    temperature: str | float | Sequence[str | float] | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    prompt: Given | Sequence[Given] | None = None,
    from_state: str | Path | Snapshot | None = None,
    on_trap: OnTrap | None = None,
    engine: str | None = None,
    dtype: str | None = None,
    like: str | Path | None = None,
    block_seconds: float = BLOCK_SECONDS,
) -> Playback:
    """Generate audio block by block, in memory that does not grow.

    What is not given is as in `like`, else as in `from_state`, else the default.

    Args:
        checkpoint: from `samplernn.load`.
        duration: seconds per stream (10); infinite: without end.
        num: streams; by default as many as there are prompts, temperatures, or streams in the state, else 1.
        seed: stream i of a seed is always the same, whatever `num` (0).
        temperature: divides the logits; 0 is greedy (0.95). A number, an envelope such as
            ``"0:1.0,20:0.85"`` (seconds and values, straight lines between them), or one of these per stream.
        top_k: keep only the k most probable codes (0: all).
        top_p: keep the most probable codes up to this mass (1: all).
        prompt: what the streams go on from: a recording, a folder of them, int16 samples ``[T]`` at the
            model's rate, or several of these, one per stream.
        from_state: a `Playback.snapshot`, or the file that one was saved to. With the same seed the streams
            go on as if they had never been interrupted; with another seed or more streams they branch off.
        on_trap: what to do about silence, noise and loops: off, warn, cool or rewind (warn); see
            `request.Request`.
        engine: name of an engine (auto).
        dtype: of its arithmetic (auto).
        like: the JSON file beside an audio file that was generated, or that audio file: the same again.
        block_seconds: length of the blocks, about; it changes nothing in the samples.

    Returns:
        An iterator over int16 ``[num, n]`` at the model's sample rate. Its `events` are the traps so far, its
        `snapshot()` is where it stands.

    Raises:
        UserError: an argument out of range, or a file that cannot be read.

    Example:
        >>> playback = samplernn.stream(samplernn.load("runs/piano"), duration=60, temperature="0:1.0,60:0.8")
        >>> with soundfile.SoundFile("piano.wav", "w", 16000, 1) as file:
        ...     for block in playback:
        ...         file.write(block[0])
        >>> playback.snapshot().save("piano.state")
    """
    settings = settled(
        checkpoint,
        Settings(
            duration=duration,
            num=num,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prompt=prompt,
            from_state=from_state,
            on_trap=on_trap,
            engine=engine,
            dtype=dtype,
        ),
        like,
    )
    generator = Generator(checkpoint, settings.engine or "auto", settings.dtype or "auto")
    return generator.stream(request_of(settings, generator.sample_rate), block_seconds)
