"""The parts of a page that show one run: how good it is, its curves, what it sounds like, its options."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from samplernn.insight import page
from samplernn.insight.page import Html, html, join
from samplernn.insight.runs import Curve, Prompt, Run, Sample, Stage, sound
from samplernn.model.baselines import verdict

_MOST_SAMPLES = 24
"""Of one validation."""
_STALE_SECONDS = 900.0


def hero(run: Run, room: page.Room) -> Html:
    """What the run is, how good it is, and something to press play on."""
    best, says = run.best, verdict_on(run)
    if best is None:
        when = "None of its validations is finite" if run.validation else "No validation yet"
        figure = page.nothing(f"{when}: how good it is will be known after the first one.")
    else:
        figure = Html(
            f'<p class="big">{best[1]:.3f}<small>bits per sample, step {best[0]:,}</small></p>{_bars(run)}'
            + page.note(what_bits_are(run))
        )
    return Html(
        f'<header><p class="over">samplernn report {page.badge(*state_of(run))}</p><h1>{html(run.name)}</h1>'
        f'<p class="lead">{html(says)}</p><div class="hero"><div>{figure}</div>'
        f"{_listen(run, room)}</div>{page.facts(facts_of(run))}</header>"
    )


def what_bits_are(run: Run) -> str:
    """For people who have never heard of it."""
    levels = run.option("model", "q_levels")
    guess = f"{math.log2(levels):g} for a blind guess among {levels} values, " if is_count(levels) else ""
    return (
        "How much the next sample of audio that it has not heard surprises the model, in bits: "
        f"{guess}less for whoever knows more. Lower is better."
    )


def is_count(value: object) -> TypeGuard[int]:
    """Whether it is a whole number above 0."""
    return isinstance(value, int) and value > 0


def verdict_on(run: Run) -> str:
    """A sentence, or several, in words."""
    curve, baselines = run.validation, run.baselines
    if not curve or baselines is None:
        return "It has not been validated yet."
    latest = curve[max(curve)]
    best = run.best[1] if run.best else latest
    words = verdict(best, baselines)
    words = words[0].upper() + words[1:] + "."
    if not math.isfinite(latest):
        return words + (" Later its validation was not a number: training has diverged." if run.best else "")
    test = run.facts.get("test")
    bits = test.get("bits_per_sample") if isinstance(test, dict) else None
    if isinstance(bits, float) and math.isfinite(bits):
        words += f" On the test files, which were kept until the end: {bits:.3f} bits."
    return words


def _bars(run: Run) -> Html:
    """The model beside the baselines."""
    assert run.best
    rows = [("this model", run.best[1])]
    if baselines := run.baselines:
        rows += [("previous sample", baselines.previous_sample), ("unigram", baselines.unigram)]
        rows += [("uniform", baselines.uniform)]
    longest = max(bits for _, bits in rows)
    cells = []
    for number, (name, bits) in enumerate(rows):
        own = ' class="own"' if number == 0 else ""
        width = f"{100 * bits / longest:.1f}%" if math.isfinite(bits) and longest > 0 else "100%"
        cells.append(
            f'<span{own}>{html(name)}</span><i{own} style="width:{width}"></i><b{own}>{bits:.3f}</b>'
        )
    return Html(f'<div class="bars">{"".join(cells)}</div>')


def state_of(run: Run) -> tuple[str, str]:
    """In a word or two, and the kind of badge."""
    state = run.facts.get("state")
    if state == "finished":
        return "finished", "good"
    if state == "trained":
        return "trained, not yet tested", "good"
    if state == "interrupted":
        return "interrupted", ""
    if state == "running":
        quiet = time.time() - run.last_written
        return ("training", "") if quiet < _STALE_SECONDS else (f"silent for {_duration(quiet)}", "bad")
    return "state unknown", ""


def facts_of(run: Run) -> list[tuple[str, object]]:
    """Small figures."""
    found: list[tuple[str, object]] = [("steps", f"{run.last_step:,}")]
    epochs = run.metrics.get("epoch")
    if epochs:
        found.append(("epochs", f"{epochs[max(epochs)] + 1:.0f}"))
    rate = run.option("data", "sample_rate")
    if speed := run.samples_per_s:
        times = f", {speed / rate:.1f}x real time" if is_count(rate) else ""
        found.append(("training", f"{speed:,.0f} samples/s{times}"))
    if is_count(rate):
        found.append(("sample rate", f"{rate:,} Hz"))
    cell, layers, dim = (run.option("model", key) for key in ("rnn", "n_rnn", "dim"))
    if cell:
        found.append(("recurrent layers", f"{layers} x {str(cell).upper()} {dim} per tier"))
    if folder := run.facts.get("folder"):
        found.append(("audio", Path(str(folder)).name))
    if (reason := run.facts.get("reason")) and run.facts.get("state") != "running":
        found.append(("ended because", reason))
    return found


def _listen(run: Run, room: page.Room) -> Html:
    """The best audio so far, beside a recording."""
    if run.best_stage is None:
        return page.nothing("Nothing to hear yet: samples come with the first validation.")
    stage = run.best_stage
    playable = [(sample, heard) for sample in by_merit(stage.samples) if (heard := sound_of(run, sample))]
    cards = []
    for sample, heard in playable[: 1 if run.recording else 2]:
        where = (
            "after the best validation"
            if run.best and stage.step == run.best[0]
            else f"at step {stage.step:,}"
        )
        cards += room.add(page.clip(heard, f"Generated {where}", settings_of(sample), badges_of(sample)))
    if run.recording and (recording := sound(run.recording)):
        cards += room.add(page.clip(recording, "A recording that it has not heard"))
    return page.grid(cards, "pair") if cards else page.nothing("Its samples cannot be read (yet).")


def by_merit(samples: Sequence[Sample]) -> list[Sample]:
    """No traps first, free ones before continuations, then by spectral distance."""

    def key(sample: Sample) -> tuple[bool, bool, float]:
        distance = sample.spectral_distance_db
        return bool(sample.traps), sample.prompt is not None, math.inf if distance is None else distance

    return sorted(samples, key=key)


def curves(run: Run) -> Html:
    """Bits beside the baselines, the rate, the gradients."""
    trained, validated = run.metrics.get("train/bits_per_sample", {}), run.validation
    bits = {"validation": validated, "training": trained}
    baselines = run.baselines
    lines = (
        {
            "previous sample": baselines.previous_sample,
            "unigram": baselines.unigram,
            "uniform": baselines.uniform,
        }
        if baselines
        else {}
    )
    norms = {name: curve for name, curve in run.metrics.items() if name.startswith("grad_norm")}
    drawn = [
        page.diagram("bits per sample", bits, lines, is_log=True, with_dots=["validation"]),
        _closer(validated),
        page.diagram("learning rate", {"learning rate": run.metrics.get("train/lr", {})}),
        page.diagram(
            "norm of the gradients, before clipping",
            {_norm_name(name): curve for name, curve in sorted(norms.items())},
            is_log=True,
        ),
    ]
    drawn = [one for one in drawn if one]
    if not drawn:
        return page.nothing("No curves yet: metrics.csv holds no figures.")
    missing = (
        "" if validated else page.nothing("No validation yet; its curve and the baselines come with it.")
    )
    skipped = run.metrics.get("skipped_steps", {})
    count = max(skipped.values(), default=0)
    remark = page.note(f"{count:.0f} steps were skipped: they were not finite.") if count else ""
    return join([missing, page.grid(drawn, "diagrams"), remark])


def _norm_name(name: str) -> str:
    tier = name.removeprefix("grad_norm").removeprefix("/")
    return tier.replace("tier", "tier ") if tier else "all"


def _closer(validated: Curve) -> Html:
    """The validation alone, magnified."""
    if sum(math.isfinite(bits) for bits in validated.values()) < 2:
        return Html("")
    series = {"validation": validated}
    return page.diagram("bits per sample, validation alone", series, with_dots=series)


def stages_to_hear(run: Run, room: page.Room, most: int) -> list[Html]:
    """Validations to listen to, in order: the best, the last, the first, some between, as far as they fit.

    Args:
        run: whose.
        room: what they may take.
        most: validations.
    """
    if not run.stages:
        return [
            page.nothing("No samples yet: they come with the first validation (unless samples.num is 0).")
        ]
    shown: dict[int, Html] = {}
    cut = 0
    for stage in _in_order_of_interest(run)[:most]:
        cards: list[Html] = []
        samples = _free(stage)
        for sample in samples[:_MOST_SAMPLES]:
            if heard := sound_of(run, sample):
                cards += room.add(page.clip(heard, *_title(run, sample), badges_of(sample)))
        cut += len(samples) - len(cards)
        if cards:
            best = page.badge("best", "good") if run.best and stage.step == run.best[0] else ""
            bits = "" if stage.bits is None else f"{stage.bits:.3f} bits"
            aside = join([part for part in (bits, best) if part], " ")
            shown[stage.step] = join([page.heading(f"Step {stage.step:,}", aside), page.grid(cards)])
    if not shown:
        return [page.nothing("Its samples cannot be read (yet), or are too large for a page.")]
    remarks = []
    if len(shown) < len(run.stages):
        remarks.append(
            f"{len(shown)} of {len(run.stages)} validations, the first, the best and the last among them"
        )
    if cut:
        remarks.append(f"{cut} files that are unreadable or too many or too large for one page left out")
    if remarks:
        remarks.append(f"everything is in the run's folder, {run.name}/samples")
    same = "The same seeds at every step: only the model changes. A click on a spectrogram plays from there."
    return [page.note(same + (f" Shown: {'; '.join(remarks)}." if remarks else ""))] + [
        shown[step] for step in sorted(shown)
    ]


def _free(stage: Stage) -> Sequence[Sample]:
    """Those that continue nothing; continuations have a part of the page for themselves."""
    return [sample for sample in stage.samples if sample.prompt is None] or stage.samples


def _in_order_of_interest(run: Run) -> list[Stage]:
    """The best, the last, the first, then always the one in the middle of the widest gap in steps."""
    assert run.best_stage
    chosen = list(dict.fromkeys([run.best_stage, run.stages[-1], run.stages[0]]))
    left = [stage for stage in run.stages if stage not in chosen]
    while left:
        # Early stages differ more from each other than late ones: gaps are those of the logarithm.
        widest = max(left, key=lambda one: min(abs(_log(one) - _log(other)) for other in chosen))
        chosen.append(widest)
        left.remove(widest)
    return chosen


def _log(stage: Stage) -> float:
    return math.log(max(1, stage.step))


def sound_of(run: Run, sample: Sample) -> page.Sound | None:
    """To listen to, after the end of what it continues; None if it cannot be read."""
    prompt = next((one for one in run.prompts if one.number == sample.prompt), None)
    return sound(sample.file, prompt.heard if prompt else None)


def _title(run: Run, sample: Sample) -> tuple[str, str]:
    """What a sample is, and more about it."""
    if sample.prompt is None:
        return settings_of(sample) or sample.file.stem, ""
    several = f" {sample.prompt}" if len(run.prompts) > 1 else ""
    return f"goes on from recording{several}", settings_of(sample)


def settings_of(sample: Sample) -> str:
    """How it was drawn."""
    parts = []
    if sample.temperature is not None:
        parts.append(f"temperature {sample.temperature:g}")
    if sample.seed is not None:
        parts.append(f"stream {sample.seed}")
    return ", ".join(parts)


def badges_of(sample: Sample) -> list[Html]:
    """Its traps and measures, as far as they are known."""
    found = [page.badge(trap, "bad") for trap in sample.traps or ()]
    if sample.spectral_distance_db is not None:
        found.append(page.badge(f"{sample.spectral_distance_db:.1f} dB from the corpus"))
    if sample.level_db is not None:
        found.append(page.badge(f"{sample.level_db:.0f} dBFS"))
    return found


def continuations(run: Run, room: page.Room) -> list[Html]:
    """Each prompt: what was heard, how it really goes on, and how the model does."""
    stage = run.best_stage
    if not run.prompts or stage is None:
        return []
    parts = []
    for prompt in run.prompts:
        truth = sound(prompt.truth, prompt.heard) if prompt.truth else None
        cards = room.add(page.clip(truth, "How the recording goes on")) if truth else []
        for one in _ends_of(run, prompt):
            sample = next(sample for sample in one.samples if sample.prompt == prompt.number)
            if heard := sound_of(run, sample):
                bits = "" if one.bits is None else f"{one.bits:.3f} bits"
                title = f"How the model goes on, step {one.step:,}"
                cards += room.add(page.clip(heard, title, bits, badges_of(sample)))
        heard = sound(prompt.heard)
        if heard and not cards:
            cards += room.add(page.clip(heard, "The recording"))
        parts += [page.heading(prompt.source or f"Recording {prompt.number}"), page.grid(cards)]
    note = (
        "The model hears a recording that it was not trained on, and goes on at the dashed line; "
        "the two seconds before the line are the recording."
    )
    return [page.section("Continuations beside the truth", *parts, note=note)]


def _ends_of(run: Run, prompt: Prompt) -> list[Stage]:
    """The first and the best validation that continue a prompt."""
    those = [stage for stage in run.stages if any(sample.prompt == prompt.number for sample in stage.samples)]
    if not those:
        return []
    best = run.best_stage if run.best_stage in those else those[-1]
    assert best
    return list(dict.fromkeys([best, those[0]]))


def beside_corpus(run: Run, room: page.Room) -> list[Html]:
    """The pictures of codes and spectrum that training drew."""
    stage = run.best_stage
    pictures = []
    for what in ("spectrum", "codes") if stage else ():
        assert stage
        file = run.path / "samples" / f"step-{stage.step:07d}-{what}.png"
        drawn = file.read_bytes() if file.is_file() else b""
        if drawn.startswith(b"\x89PNG") and b"IEND" in drawn[-16:] and len(drawn) < 1_000_000:
            title = "Long-term spectrum" if what == "spectrum" else "How often each code occurs"
            pictures += room.add(page.picture(drawn, title))
    if not pictures or not stage:
        return []
    return [page.section(f"Beside the corpus, step {stage.step:,}", page.grid(pictures, "diagrams"))]


def settings(run: Run) -> Html:
    """Every option."""
    if not run.config:
        return page.nothing("config.yaml cannot be read (yet).")
    tables = [
        Html(f"<div>{page.heading(part or 'run')}{page.options(options)}</div>")
        for part, options in sorted(run.config.items(), key=lambda item: (item[0] == "", item[0]))
    ]
    return page.grid(tables, "settings")


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
