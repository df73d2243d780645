"""Tables and pictures of results, against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samplernn import plots
from samplernn.config import UserError
from samplernn.insight.ablation import results
from samplernn.insight.ablation.results import Measured, Result
from samplernn.insight.ablation.tables import Table, define
from samplernn.model.baselines import BaselineBits

MEASURED = Measured(
    parameters=1_500_000,
    steps=1000,
    train_seconds=240.0,
    bits=2.0,
    num_samples=64_000,
    baselines=BaselineBits(8.0, 5.0, 3.75),
    gain=0.9,
    sample_rate=16_000,
    train_samples_per_s=200_000.0,
    generate_samples_per_s=32_000.0,
    engine="cpu int8",
)


@pytest.fixture
def table() -> Table:
    rows = {"gru": {}, "lstm": {"model.rnn": "lstm"}, "a|b": {"model.dim": 8}}
    return define({"title": "Cells", "budget": "4m", "seeds": 2, "rows": rows})


@pytest.fixture
def found() -> list[Result]:
    """Of `gru` both seeds, of `lstm` both, better by 0.1 and 0.3, of the third one failure."""
    bits = {("gru", 0): 2.0, ("gru", 1): 3.0, ("lstm", 0): 1.9, ("lstm", 1): 2.7}
    done = [
        Result(
            label, seed, f"{label}-seed{seed}", 250.0, None, replace(MEASURED, bits=value, steps=1000 + seed)
        )
        for (label, seed), value in bits.items()
    ]
    return [*done, Result("a|b", 0, "a-b-seed0", 9.0, "too little | memory")]


def test_means_deviations_and_differences_by_seed(table: Table, found: list[Result]) -> None:
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(results.as_csv(table, found)))}
    assert set(rows["gru"]) == set(results.COLUMNS)
    assert float(rows["gru"]["test_bits"]) == 2.5
    assert float(rows["gru"]["test_bits_std"]) == pytest.approx(math.sqrt(0.5), abs=1e-4)
    assert float(rows["lstm"]["test_bits"]) == 2.3
    assert float(rows["lstm"]["difference_to_first"]) == pytest.approx(-0.2)
    assert float(rows["lstm"]["difference_std"]) == pytest.approx(math.sqrt(0.02), abs=1e-4)
    assert rows["lstm"]["n"] == "2"
    assert rows["lstm"]["options"] == 'model.rnn="lstm"'
    assert rows["gru"]["parameters"] == "1500000"
    assert rows["gru"]["generate_times_real_time"] == "2.0"
    assert rows["a|b"]["test_bits"] == ""
    assert rows["a|b"]["failures"] == "seed 0: too little | memory"


def test_markdown_names_units_baselines_and_failures(table: Table, found: list[Result]) -> None:
    text = results.as_markdown(table, found, "About it.")
    lines = text.splitlines()
    assert lines[0] == "# Cells"
    (gru,) = (line for line in lines if line.startswith("| gru |"))
    (lstm,) = (line for line in lines if line.startswith("| lstm |"))
    expected = "| gru | 4 min | 1.50 M | 1,000 | 2.500 ± 0.707 |  | 2 | 200,000 | 32,000 (2.00x, cpu int8) |"
    assert gru == expected
    assert "| -0.200 ± 0.141 | 2 |" in lstm
    assert "previous sample 3.750" in text
    assert "- a\\|b, seed 0: too little \\| memory" in text
    assert "Not finished: 5 of 6 runs" in text
    assert len({line.replace("\\|", "").count("|") for line in lines if line.startswith("| ")}) == 1


def test_one_seed_has_no_deviation(table: Table, found: list[Result]) -> None:
    single = replace(table, seeds=(0,))
    text = results.as_markdown(single, found[:1], "")
    assert "| 2.000 |" in text
    assert "±" not in text
    assert results.as_csv(single, found[:1]).splitlines()[1].split(",")[6] == ""


def test_rows_that_do_not_compare_are_said_to(table: Table, found: list[Result]) -> None:
    careless = replace(table, incomparable=("model.q_levels",))
    assert "do not compare: they differ in model.q_levels" in results.as_markdown(careless, found, "")


@pytest.mark.parametrize("index", [0, 4])
def test_a_result_is_read_as_it_was_written(found: list[Result], tmp_path: Path, index: int) -> None:
    results.write(found[index], tmp_path / "x.json")
    assert results.read(tmp_path / "x.json") == found[index]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert results.read(tmp_path / "y.json") is None
    (tmp_path / "x.json").write_text('{"label": "gr')
    with pytest.raises(UserError, match=r"x\.json: is damaged"):
        results.read(tmp_path / "x.json")


def _texts(figure: Any) -> str:
    axes = figure.axes
    return " ".join(text.get_text() for axis in axes for text in axis.texts)


@pytest.mark.parametrize(("baseline", "is_line"), [(3.75, True), (7.5, False)])
def test_the_picture_has_error_bars_curves_and_the_baseline(
    table: Table, found: list[Result], tmp_path: Path, baseline: float, is_line: bool
) -> None:
    for name, seconds in (("gru-seed0", 60), ("lstm-seed1", 90)):
        (tmp_path / name).mkdir()
        rows = f"10,{seconds},\n20,{2 * seconds},3.5\n40,{4 * seconds},2.5\n"
        (tmp_path / name / "metrics.csv").write_text("step,train/seconds,validation/bits_per_sample\n" + rows)
    known = [
        replace(one, measured=replace(one.measured, baselines=BaselineBits(8.0, 5.0, baseline)))
        for one in found
        if one.measured
    ]
    figure = results.draw(table, known, tmp_path)
    assert figure is not None
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["gru", "lstm"]
    (points, _, (bar,)) = left.containers[0]
    assert points.get_xdata() == [2.5]
    low, high = bar.get_segments()[0][:, 0]
    assert (high - low) / 2 == pytest.approx(math.sqrt(0.5))
    assert any(line.get_linestyle() == "--" for line in left.lines) == is_line
    assert "previous sample" in _texts(figure)
    curves = {line.get_label(): line.get_xydata().tolist() for line in right.lines}
    assert curves["gru"] == [[2.0, 3.5], [4.0, 2.5]]  # minutes, bits
    assert curves["lstm"] == [[3.0, 3.5], [6.0, 2.5]]
    assert curves["previous sample"] == [[0, baseline], [1, baseline]]
    assert "4 min per run, 2 seeds" in figure.get_suptitle()
    assert plots.pixels(figure).std() > 10


def test_there_is_no_picture_of_nothing(table: Table, found: list[Result], tmp_path: Path) -> None:
    assert results.draw(table, found[4:], tmp_path) is None
