"""What to change before training on a folder: each piece of advice names the option or command to type.

Advice is given only where it applies; a healthy folder gets none.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from samplernn.audio.corpus import Corpus, Problem
from samplernn.audio.io import UNSUPPORTED
from samplernn.audio.measures import silent_samples
from samplernn.audio.split import can_split_by_file
from samplernn.config import Config, DataConfig, UserError
from samplernn.insight.forecast import Cost, Plan, plan
from samplernn.insight.wording import count, decibels, duration, percent

LITTLE_SECONDS = 300.0
"""Less audio than this is learned by heart before it is learned from."""
_WELL_FILLED = 0.8
"""Share of a step's samples that should be audio."""
_SHORT_SEGMENT = 2.0
_MOSTLY_SILENCE = 0.3
_LOW_PEAK = 10 ** (-30 / 20)
_LOW_LEVEL = 10 ** (-36 / 20)
"""RMS after the gain: within two steps of 256 linear levels."""
_LARGE_DIM = 256
_LONG_EPOCH = 2 * 3600.0


def advise(
    corpus: Corpus, problems: Sequence[Problem], config: Config, plan: Plan | None, cost: Cost | None
) -> list[str]:
    """Advice, the most important first.

    Args:
        corpus: from `inspect`.
        problems: of its files.
        config: for the run.
        plan: of the run, None if it cannot be.
        cost: of the run.
    """
    used = {file.path for file in corpus.files}
    found = list(_about_formats([problem for problem in problems if problem.path not in used]))
    if corpus.files:
        found += _about_rates(corpus)
        found += _about_sound(corpus, config)
    if plan:
        found += _about_amount(corpus, config, plan)
        found += _about_split(corpus, plan)
    if plan and cost:
        found += _about_cost(config, plan, cost)
    return found


def silence_share(corpus: Corpus) -> float:
    """Share of the audio that is silence once the gain has been applied."""
    silent = sum(silent_samples(file.levels, corpus.gain_of(file)) for file in corpus.files)
    return silent / corpus.num_samples if corpus.files else 0.0


def _about_formats(problems: Sequence[Problem]) -> Iterator[str]:
    """From the problems of files that are left out."""
    paths = [PurePosixPath(problem.path) for problem in problems]
    foreign = [path for path in paths if path.suffix.lower() in UNSUPPORTED]
    if not foreign:
        return
    suffix, number = Counter(path.suffix for path in foreign).most_common(1)[0]
    if number == 1:
        path = foreign[0]
        command = shlex.join(["ffmpeg", "-i", str(path), str(path.with_suffix(".flac"))])
    else:
        command = f'for f in *{suffix}; do ffmpeg -i "$f" "${{f%.*}}.flac"; done'
    yield f"convert the {count(len(foreign), 'file')} in a format that cannot be read: {command}"


def _about_rates(corpus: Corpus) -> Iterator[str]:
    lower: Counter[int] = Counter()
    for file in corpus.files:
        if file.source_rate < corpus.sample_rate:
            lower[file.source_rate] += file.num_samples
    if not lower:
        return
    rate = lower.most_common(1)[0][0]
    share = sum(lower.values()) / corpus.num_samples
    yield (
        f"{percent(share)} of the audio was sampled at less than {corpus.sample_rate} Hz and holds nothing "
        f"above {rate / 2000:g} kHz: use --data.sample_rate {rate}, or leave it out"
    )


def _about_sound(corpus: Corpus, config: Config) -> Iterator[str]:
    share = silence_share(corpus)
    if share > _MOSTLY_SILENCE:
        worst = max(corpus.files, key=lambda file: silent_samples(file.levels, corpus.gain_of(file)))
        cut = "silenceremove=start_periods=1:stop_periods=-1:stop_duration=1:stop_threshold=-60dB"
        command = shlex.join(["ffmpeg", "-i", worst.path, "-af", cut, "shorter.flac"])
        yield f"{percent(share)} of the audio is silence, most of it in {worst.path}: {command}"
    loudest = max(corpus.files, key=lambda file: file.peak)
    if loudest.peak < _LOW_PEAK:
        yield (
            f"the loudest sample is at {decibels(loudest.peak)}: the noise will be raised with the rest; "
            "record or export the audio louder"
        )
    heard = corpus.num_samples * max(1 - share, 1e-9)
    energy = sum((corpus.gain_of(file) * file.rms) ** 2 * file.num_samples for file in corpus.files)
    level = math.sqrt(energy / heard)
    if level < _LOW_LEVEL and config.model.quantization == "linear" and config.model.q_levels <= 256:
        yield (
            f"beside the peak in {loudest.path} the rest is quiet ({decibels(level)}) and uses few of the "
            f"{config.model.q_levels} levels: use --model.quantization mu-law, or leave that file out"
        )


def _about_amount(corpus: Corpus, config: Config, now: Plan) -> Iterator[str]:
    """Too few or too uneven segments; too little audio for the network."""
    data = config.data
    little = corpus.duration < LITTLE_SECONDS
    amount = f"{duration(corpus.duration)} in all" if little else f"{count(now.segments, 'segment')}"
    longest = max(file.num_samples for file in corpus.files) / corpus.sample_rate
    is_shrunk = now.segments < 2 * data.lanes and now.segment_seconds < longest
    if is_shrunk and now.segment_seconds < min(data.segment_duration / 2, _SHORT_SEGMENT):
        lanes = max(1, min(data.lanes // 2, int(now.train_seconds / _SHORT_SEGMENT)))
        if lanes < data.lanes:
            yield (
                f"{amount}: to keep {data.lanes} lanes busy, segments are cut down to "
                f"{now.segment_seconds:.2g} s: use --data.batch_size {lanes}"
            )
    elif now.filled < _WELL_FILLED or (little and now.segment_seconds > _SHORT_SEGMENT):
        shorter = [2.0, 1.0, 0.5] if little else [4.0, 2.0, 1.0, 0.5]
        choices = [
            (f"--data.segment_duration {seconds:g}", replace(data, segment_duration=seconds))
            for seconds in shorter
            if seconds < data.segment_duration
        ]
        lanes = data.lanes // 2
        while lanes >= 1:
            choices.append((f"--data.batch_size {lanes}", replace(data, batch_size=lanes)))
            lanes //= 2
        option = _first_well_filled(corpus, config, now, choices)
        why = f"{percent(1 - now.filled)} of each step is padding" if now.filled < _WELL_FILLED else ""
        if option:
            reason = why or f"{count(now.segments, 'segment')} for {data.lanes} lanes"
            yield f"{amount} ({reason}): use {option}"
    if little and config.model.dim > _LARGE_DIM:
        yield f"{duration(corpus.duration)} will be learned by heart by a network this large: --config small"


def _first_well_filled(
    corpus: Corpus, config: Config, now: Plan, choices: Sequence[tuple[str, DataConfig]]
) -> str | None:
    """The first option that leaves little padding, else the best; None if none is better."""
    best, best_filled = None, min(now.filled, _WELL_FILLED)
    for option, data in choices:
        try:
            filled = min(plan(corpus, replace(config, data=data)).filled, _WELL_FILLED)
        except UserError:
            continue
        if filled >= _WELL_FILLED:
            return option
        if filled > best_filled:
            best, best_filled = option, filled
    return best


def _about_split(corpus: Corpus, plan: Plan) -> Iterator[str]:
    if plan.leak:
        yield plan.leak
    longest = max(corpus.files, key=lambda file: file.num_samples)
    if not can_split_by_file(corpus.takes) and can_split_by_file([(file,) for file in corpus.files]):
        return  # cutting up what is there more than once makes nothing better
    if plan.split_by == "time" and corpus.duration >= 60:
        share = longest.num_samples / corpus.num_samples
        if len(corpus.files) < 3:
            what = f"{count(len(corpus.files), 'file')} only"
        else:
            what = f"{longest.path} is {percent(share)} of the audio"
        piece = max(5, round(corpus.duration / 20))
        stem = PurePosixPath(longest.path).stem
        command = shlex.join(
            ["ffmpeg", "-i", longest.path, "-f", "segment", "-segment_time", str(piece), f"{stem}-%03d.wav"]
        )
        yield (
            f"{what}: validation and test are the end of each file. To hold out pieces from all over, cut "
            f"it up, and move the original away: {command}"
        )


def _about_cost(config: Config, plan: Plan, cost: Cost) -> Iterator[str]:
    lanes = max(1, config.data.lanes // 4)
    if 0 < cost.available_bytes < 1.1 * cost.memory_bytes:
        yield (
            f"about {cost.memory_bytes / 1e9:.1f} GB are needed and {cost.available_bytes / 1e9:.1f} GB are "
            f"there: use --data.batch_size {lanes}, or --config small"
        )
    epoch = plan.steps_per_epoch * cost.step_seconds
    if epoch > _LONG_EPOCH and config.model.dim > _LARGE_DIM and cost.device == "cpu":
        yield (
            f"an epoch takes about {duration(epoch)} on this CPU: use --config small, or a machine with a GPU"
        )
