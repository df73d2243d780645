"""Several runs beside each other: who is best, what differs, and what each sounds like."""

from __future__ import annotations

import math
from collections.abc import Sequence

from samplernn import plots
from samplernn.insight import page, run_parts
from samplernn.insight.page import Html, html, join
from samplernn.insight.runs import Curve, Run

_MOST_STAGES = 3
"""Validations of each that one can listen to."""
_MUST_AGREE = (("model", "head"), ("model", "q_levels"), ("model", "quantization"), ("data", "sample_rate"))


def compare(runs: Sequence[Run]) -> tuple[str, list[Html]]:
    """Title and parts of a page.

    Args:
        runs: two at least.
    """
    bits = [run.best[1] if run.best else math.inf for run in runs]
    ranked = sorted(range(len(runs)), key=lambda index: bits[index])
    names = _names(runs)
    title = f"{len(runs)} runs"
    first, lead, caution = runs[ranked[0]], "None of them has been validated yet.", _caution(runs)
    if first.best and caution:
        lead = "Each is to be judged beside its own baselines."
    elif first.best:
        lead = f"{names[ranked[0]]} has the fewest bits per sample, {first.best[1]:.3f}. "
        lead += run_parts.verdict_on(first)
    rooms = [page.Room(page.LIMIT // len(runs)) for _ in runs]
    parts = [
        Html(
            f'<header><p class="over">samplernn report</p><h1>{html(title)}</h1>'
            f'<p class="lead">{html(lead)}</p>'
            f"{_ranking(runs, names, ranked)}{page.note(run_parts.what_bits_are(first))}{caution}</header>"
        ),
        page.section("The best of each", _best_of_each(runs, names, ranked, rooms)),
        page.section("Curves", _curves_of_several(runs, names)),
        page.section("Options that differ", _differences(runs, names)),
    ]
    for index in ranked:
        run = runs[index]
        head = join(
            [
                page.badge(*run_parts.state_of(run)),
                page.note(run_parts.verdict_on(run)),
                page.facts(run_parts.facts_of(run)),
            ]
        )
        stages = run_parts.stages_to_hear(run, rooms[index], _MOST_STAGES)
        parts.append(
            page.section(
                _chip(index, names[index]), head, *stages, page.details("settings", run_parts.settings(run))
            )
        )
    return title, parts


def _names(runs: Sequence[Run]) -> list[str]:
    """Short, and different from each other."""
    short = [run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def _chip(index: int, name: str) -> Html:
    colour = f"var(--c{index % len(plots.CURVE_COLOURS)})"
    return Html(f'<span class="run"><i class="chip" style="background:{colour}"></i>{html(name)}</span>')


def _ranking(runs: Sequence[Run], names: Sequence[str], ranked: Sequence[int]) -> Html:
    rows = []
    for index in ranked:
        run, baselines = runs[index], runs[index].baselines
        bits = f"{run.best[1]:.3f}" if run.best else "–"
        yardstick = f"{baselines.previous_sample:.3f}" if baselines else "–"
        speed = f"{run.samples_per_s:,.0f}" if run.samples_per_s else "–"
        state = page.badge(*run_parts.state_of(run))
        rows.append((_chip(index, names[index]), bits, yardstick, f"{run.last_step:,}", speed, state))
    return page.table(("run", "best bits", "previous sample", "steps", "samples/s", "state"), rows)


def _caution(runs: Sequence[Run]) -> Html:
    """Whether bits of these runs may be compared at all."""
    differ = [
        f"{part}.{key}" for part, key in _MUST_AGREE if len({str(run.option(part, key)) for run in runs}) > 1
    ]
    if len({str(run.facts.get("gain")) for run in runs}) > 1:
        differ.append("gain")
    if len({str(run.facts.get("folder")) for run in runs}) > 1 or (
        len({str(run.facts.get("split", {})) for run in runs}) > 1
    ):
        differ.append("the audio or its split")
    if not differ:
        return Html("")
    return page.nothing(
        f"Their bits do not compare: they differ in {', '.join(differ)}. "
        "Compare each with its own 'previous sample'."
    )


def _best_of_each(
    runs: Sequence[Run], names: Sequence[str], ranked: Sequence[int], rooms: Sequence[page.Room]
) -> Html:
    cards = []
    for index in ranked:
        run, stage = runs[index], runs[index].best_stage
        for sample in run_parts.by_merit(stage.samples) if stage else ():
            if heard := run_parts.sound_of(run, sample):
                step = f"step {sample.step:,}"
                aside = f"{step}, {run_parts.settings_of(sample)}"
                cards += rooms[index].add(
                    page.clip(heard, _chip(index, names[index]), aside, run_parts.badges_of(sample))
                )
                break
    return (
        page.grid(cards)
        if cards
        else page.nothing("Nothing to hear yet: samples come with the first validation.")
    )


def _curves_of_several(runs: Sequence[Run], names: Sequence[str]) -> Html:
    validated = {name: run.validation for name, run in zip(names, runs, strict=True)}

    def logged(metric: str) -> dict[str, Curve]:
        return {name: run.metrics.get(metric, {}) for name, run in zip(names, runs, strict=True)}

    known = [run.baselines for run in runs if run.baselines]
    lines: dict[str, float] = {}
    if known and len({one.previous_sample for one in known}) == 1:
        lines = {
            "previous sample": known[0].previous_sample,
            "unigram": known[0].unigram,
            "uniform": known[0].uniform,
        }
    drawn = [
        page.diagram("bits per sample, validation", validated, with_dots=names),
        page.diagram("bits per sample, validation", validated, lines, True, names) if lines else Html(""),
        page.diagram("bits per sample, training", logged("train/bits_per_sample"), is_log=True),
        page.diagram("learning rate", logged("train/lr")),
        page.diagram("norm of the gradients, before clipping", logged("grad_norm"), is_log=True),
    ]
    drawn = [one for one in drawn if one]
    return page.grid(drawn, "diagrams") if drawn else page.nothing("No curves yet: nothing has been logged.")


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Html:
    """Only the options in which they differ."""
    every = [
        {
            f"{part}.{key}".strip("."): str(value)
            for part, keys in run.config.items()
            for key, value in keys.items()
        }
        for run in runs
    ]
    keys = sorted({key for options in every for key in options})
    rows = [
        (key, *(options.get(key, "–") for options in every))
        for key in keys
        if len({options.get(key) for options in every}) > 1
    ]
    if not rows:
        return page.nothing("None: the same options, all of them.")
    return page.table(("option", *(_chip(index, name) for index, name in enumerate(names))), rows)
