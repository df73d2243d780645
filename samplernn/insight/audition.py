"""`samplernn audition`: checkpoints, temperatures, prompts and streams to choose from by ear, best first.

What is best is no more than a suggestion: streams without traps first, then those that sound least unlike
the corpus. Each says the command that makes it again, at any length.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samplernn.audio.spectrum import level_db, long_term_spectrum, spectral_distance
from samplernn.config import UserError
from samplernn.generation.envelopes import Envelope, envelopes
from samplernn.generation.guards import HOP_SECONDS, Expected, Trap, expected_of, traps_in
from samplernn.generation.playback import Generator
from samplernn.generation.prompts import Given, Prompt, open_prompts
from samplernn.generation.request import Request
from samplernn.insight import page
from samplernn.insight.page import Html, html
from samplernn.insight.runs import sound
from samplernn.model.checkpoint import Checkpoint, load

TEMPERATURES = (0.85, 0.95, 1.05)
_TAIL_SECONDS = 2.0
"""Of a prompt, before what continues it."""
_REFERENCE_SECONDS = 120.0
"""Of the prompts, as what the corpus sounds like."""
_MOST_CELLS = 500
_HEARD_SECONDS, _MOST_PROMPTS = 15.0, 8
"""Of the prompts that can be listened to for themselves."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What a checkpoint's streams are compared with."""

    spectrum: NDArray[np.float64] | None
    """dB per band; None: only level and brightness are known."""
    expected: Expected
    words: str
    """What it is."""

    def distance(self, audio: NDArray[np.int16], sample_rate: int) -> float:
        """dB; 0 is the same."""
        if self.spectrum is not None:
            return spectral_distance(long_term_spectrum(audio, sample_rate), self.spectrum)
        # The stream's own level and brightness, as `expected_of` has those of the training audio.
        x = audio.astype(np.float64)
        energy, difference = float(np.var(x)), float(np.mean(np.diff(x) ** 2)) if len(x) > 1 else 0.0
        brightness = max(difference, 1e-3) / max(energy, 1e-3)
        level = abs(level_db(audio) - self.expected.level)
        return (level + abs(10 * math.log10(brightness / max(self.expected.brightness, 1e-9)))) / 2


@dataclass(frozen=True, eq=False)
class AuditionStream:
    """One stream."""

    checkpoint: str
    """As it was named."""
    temperature: Envelope
    prompt: Prompt | None
    stream: int
    audio: NDArray[np.int16]
    """Generated, ``[T]``."""
    sample_rate: int
    level_db: float
    distance_db: float
    """To the reference of its checkpoint."""
    traps: tuple[Trap, ...]
    command: tuple[str, ...]
    """That makes it."""

    @property
    def merit(self) -> tuple[bool, float]:
        """Sorts the best first."""
        return bool(self.traps), self.distance_db


def audition(
    checkpoints: str | Path | Sequence[str | Path],
    temperature: str | float | Sequence[str | float] = TEMPERATURES,
    prompt: Given | Sequence[Given] | None = None,
    seeds: int = 2,
    duration: float = 5.0,
    out: str | Path = "audition.html",
) -> Path:
    """Write one self-contained HTML file with every combination to listen to, best first.

    Args:
        checkpoints: ``.ckpt`` files, run directories or exported directories.
        temperature: numbers or envelopes, each for all.
        prompt: recordings, or folders of them; every stream is also generated without.
        seeds: streams of each combination: numbers 0, 1, … of seed 0.
        duration: seconds of each.
        out: the file.

    Returns:
        The file.

    Raises:
        UserError: a value out of range, a file that cannot be read, or written.

    Example:
        >>> samplernn.audition("runs/first", temperature=[0.9, 1.0], prompt="riff.wav")
        PosixPath('audition.html')
    """
    names = [str(one) for one in ([checkpoints] if isinstance(checkpoints, str | Path) else checkpoints)]
    temperatures, out = envelopes(temperature), Path(out)
    if not names:
        raise UserError("name at least one checkpoint")
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {seeds}")
    if not 0 < duration < math.inf:
        raise UserError(f"--duration must be above 0 seconds and finite, got {duration}")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file, such as {out / 'audition.html'}")
    loaded = [load(name) for name in names]
    prompts = [open_prompts(prompt, checkpoint.config.data.sample_rate) for checkpoint in loaded]
    count = sum((len(some) + 1) * len(temperatures) * seeds for some in prompts)
    if count > _MOST_CELLS:
        raise UserError(f"{count} streams are more than anybody listens to; ask for at most {_MOST_CELLS}")
    cells: list[AuditionStream] = []
    references = []
    for name, checkpoint, some in zip(names, loaded, prompts, strict=True):
        reference = _reference(checkpoint, some)
        references.append(reference)
        cells += _generate(name, checkpoint, reference, temperatures, some, seeds, duration)
    cells.sort(key=lambda cell: cell.merit)
    return page.save(_document(cells, names, references, duration), out)


def _reference(checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> Reference:
    """A held-out recording of the run, else the prompts, else what the checkpoint's counts say."""
    rate = checkpoint.config.data.sample_rate
    expected = expected_of(checkpoint.pair_counts, checkpoint.codec, checkpoint.head)
    source = checkpoint.source
    if source is not None and source.parent.name == "checkpoints":
        recording = sound(source.parent.parent / "samples" / "recording.wav")
        if recording is not None and recording.sample_rate == rate:
            spectrum = long_term_spectrum(recording.audio, rate)
            return Reference(spectrum, expected, "the run's held-out recording (long-term spectrum)")
    if prompts:
        longest = round(_REFERENCE_SECONDS * rate / len(prompts))
        heard = np.concatenate([_beginning(prompt, longest) for prompt in prompts])
        return Reference(long_term_spectrum(heard, rate), expected, "the prompts (long-term spectrum)")
    words = "the training audio, of which only level and brightness are known (their mean difference)"
    return Reference(None, expected, words)


def _beginning(prompt: Prompt, most: int) -> NDArray[np.int16]:
    found, length = [], 0
    for block in prompt.blocks():
        found.append(block)
        length += len(block)
        if length >= most:
            break
    return np.concatenate(found)[:most]


def _generate(
    name: str,
    checkpoint: Checkpoint,
    reference: Reference,
    temperatures: Sequence[Envelope],
    prompts: Sequence[Prompt],
    seeds: int,
    duration: float,
) -> list[AuditionStream]:
    """All cells of one checkpoint: one batch without prompts, one with."""
    generator = Generator(checkpoint)
    rate = generator.sample_rate
    hop = generator.in_frames(HOP_SECONDS)
    is_guarded = 0.1 <= hop / rate <= 0.5  # a frame may be longer than that
    cells = []
    for some in ((None,), prompts):
        plan = [(one, each, stream) for one in some for each in temperatures for stream in range(seeds)]
        if not plan:
            continue
        request = Request(
            round(duration * rate),
            streams=tuple(stream for _, _, stream in plan),
            temperature=tuple(str(each) for _, each, _ in plan),
            prompts=tuple(one for one, _, _ in plan if one),
            on_trap="off",  # each is listened to as a whole
        )
        started = time.perf_counter()
        audio = np.concatenate(list(generator.stream(request)), axis=1)
        what = f", {len(prompts)} prompts" if some is prompts else ""
        _say(f"{name}: {len(plan)} streams of {duration:g} s{what}, {time.perf_counter() - started:.1f} s")
        for (prompt, each, stream), samples in zip(plan, audio, strict=True):
            traps = traps_in(samples, generator.expected, rate, hop) if is_guarded else []
            cells.append(
                AuditionStream(
                    name,
                    each,
                    prompt,
                    stream,
                    samples,
                    rate,
                    level_db(samples),
                    reference.distance(samples, rate),
                    tuple(traps),
                    _command(name, each, prompt, stream, duration),
                )
            )
    return cells


def _command(
    name: str, temperature: Envelope, prompt: Prompt | None, stream: int, duration: float
) -> tuple[str, ...]:
    words = ["samplernn", "generate", name, "--temperature", str(temperature), "--stream", str(stream)]
    words += ["--duration", f"{duration:g}"]
    if prompt and prompt.file:
        words += ["--prompt", str(prompt.file), "--include-prompt"]
    return tuple(words)


# -- the page ---------------------------------------------------------------------------------------


def _document(
    cells: Sequence[AuditionStream], names: Sequence[str], references: Sequence[Reference], duration: float
) -> str:
    trapped = sum(bool(cell.traps) for cell in cells)
    of = _short(names[0], names) if len(names) == 1 else f"{len(names)} checkpoints"
    lead = (
        f"{len(cells)} streams of {duration:g} s, best first: those without traps (silence, noise, a loop), "
        f"then by their distance to the corpus. {trapped or 'None'} fell into a trap."
    )
    compared = {reference.words: name for name, reference in zip(names, references, strict=True)}
    with_what = "; ".join(
        words if len(compared) == 1 else f"{_short(name, names)}: {words}" for words, name in compared.items()
    )
    remark = page.note(f"The corpus here is {with_what}. Distances are in dB; lower is nearer.")
    room = page.Room(page.LIMIT)
    prompts = _prompts(cells, room)
    cards, left_out = _cards(cells, names, room)
    hint = "A click on a spectrogram plays from there."
    if prompts:
        hint += " At the dashed line the prompt ends and the model goes on."
    parts = [
        Html(
            f'<header><p class="over">samplernn audition</p><h1>{html(of)}</h1>'
            f'<p class="lead">{html(lead)}</p>{remark}{_summary(cells, names)}</header>'
        ),
        page.section("Listen", page.grid(cards), note=hint),
    ]
    if left_out:
        rows = [
            (_words(cell, names), f"{cell.distance_db:.1f}", page.command(cell.command)) for cell in left_out
        ]
        listed = page.table(("stream", "distance (dB)", "command"), rows)
        why = f"{len(left_out)} streams did not fit into one file of {page.LIMIT / 1e6:.0f} MB."
        parts.append(page.section("Too much to listen to here", listed, note=why))
    if prompts:
        parts.append(page.section("Prompts", page.grid(prompts)))
    return page.page(f"{of} – samplernn audition", *parts)


def _prompts(cells: Sequence[AuditionStream], room: page.Room) -> list[Html]:
    """What was heard, the beginning of each."""
    heard = {str(cell.prompt.file or cell.prompt.sha256): cell for cell in cells if cell.prompt}
    cards = []
    for cell in heard.values():
        assert cell.prompt
        beginning = _beginning(cell.prompt, round(_HEARD_SECONDS * cell.sample_rate))
        cards += room.add(page.clip(page.Sound(beginning, cell.sample_rate), _title(cell.prompt)))
        if len(cards) == _MOST_PROMPTS:
            break
    return cards


def _summary(cells: Sequence[AuditionStream], names: Sequence[str]) -> Html:
    """Per checkpoint and temperature: how near, how many traps."""
    groups: dict[tuple[str, str], list[AuditionStream]] = {}
    for cell in cells:
        groups.setdefault((cell.checkpoint, str(cell.temperature)), []).append(cell)
    rows = []
    for (name, temperature), those in sorted(groups.items(), key=lambda item: _mean_merit(item[1])):
        trapped = sum(bool(cell.traps) for cell in those)
        distance = float(np.mean([cell.distance_db for cell in those]))
        level = float(np.mean([cell.level_db for cell in those]))
        row = [temperature, f"{distance:.1f}", f"{level:.1f}", f"{trapped} of {len(those)}"]
        rows.append([_short(name, names), *row] if len(names) > 1 else row)
    header = ["temperature", "mean distance (dB)", "mean level (dBFS)", "in a trap"]
    return page.table(["checkpoint", *header] if len(names) > 1 else header, rows)


def _mean_merit(cells: Sequence[AuditionStream]) -> tuple[float, float]:
    return (
        float(np.mean([bool(cell.traps) for cell in cells])),
        float(np.mean([cell.distance_db for cell in cells])),
    )


def _cards(
    cells: Sequence[AuditionStream], names: Sequence[str], room: page.Room
) -> tuple[list[Html], list[AuditionStream]]:
    """Players as far as they fit, the best first, and the cells that did not."""
    cards: list[Html] = []
    left_out = []
    for rank, cell in enumerate(cells, 1):
        title = f"{rank}. {_words(cell, names)}"
        card = page.clip(_with_prompt(cell), title, badges=_badges(cell), below=page.command(cell.command))
        if added := room.add(card):
            cards += added
        else:
            left_out.append(cell)
    return cards, left_out


def _with_prompt(cell: AuditionStream) -> page.Sound:
    """What was generated, after the end of what it continues."""
    if not cell.prompt:
        return page.Sound(cell.audio, cell.sample_rate)
    tail, wanted = np.zeros(0, np.int16), round(_TAIL_SECONDS * cell.sample_rate)
    for block in cell.prompt.blocks():
        tail = np.concatenate([tail, block])[-wanted:]
    mark = len(tail) / cell.sample_rate
    return page.Sound(np.concatenate([tail, cell.audio]), cell.sample_rate, mark)


def _words(cell: AuditionStream, names: Sequence[str]) -> str:
    parts = [_short(cell.checkpoint, names)] if len(names) > 1 else []
    parts += [f"temperature {cell.temperature}", f"stream {cell.stream}"]
    if cell.prompt:
        parts.append(f"after {_title(cell.prompt)}")
    return ", ".join(parts)


def _short(name: str, names: Sequence[str]) -> str:
    """The last part of a checkpoint's name, if that tells it from the others."""
    last = [Path(one).resolve().name for one in names]
    return Path(name).resolve().name if len(set(last)) == len(last) else name


def _title(prompt: Prompt) -> str:
    return prompt.file.name if prompt.file else "samples"


def _badges(cell: AuditionStream) -> list[Html]:
    found = [
        page.badge(f"{trap.kind} since {trap.begin / cell.sample_rate:.1f} s", "bad")
        for trap in {trap.kind: trap for trap in reversed(cell.traps)}.values()
    ] or [page.badge("no traps", "good")]
    return [
        *found,
        page.badge(f"distance {cell.distance_db:.1f} dB"),
        page.badge(f"level {cell.level_db:.1f} dBFS"),
    ]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
