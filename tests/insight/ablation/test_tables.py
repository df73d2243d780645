"""Definitions of ablations, as files and as typed, and what is refused before anything is trained."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from samplernn.config import Config, ModelConfig, UserError, from_dict, presets
from samplernn.insight.ablation.tables import Budget, define, differences, parse_budget, parse_row, read_file

SHIPPED = presets()["small"].parent / "ablations.yaml"


def _define(**changes: Any) -> Any:
    return define({"budget": "10 steps", "rows": {"gru": {}}, **changes})


def test_the_shipped_tables_are_no_preset_and_hold_what_they_promise() -> None:
    assert "ablations" not in presets()
    tables = {name: define(definition) for name, definition in read_file(SHIPPED).items()}
    cells = typing.get_args(typing.get_type_hints(ModelConfig)["rnn"])
    assert [row.config.model.rnn for row in tables["cells"].rows] == list(cells)
    models = [row.config.model for row in tables["small"].rows]
    assert {model.frame_sizes for model in models} == {(16,), (64, 16), (256, 64, 16)}
    assert [model.embedding_dim for model in models].count(0) == 1
    assert [model.weight_norm for model in models].count(False) == 1
    assert [model.learn_h0 for model in models].count(False) == 1
    assert len({row.config for row in tables["original"].rows}) == 7
    small: Config = from_dict(Config, yaml.safe_load(presets()["small"].read_text("utf-8")))
    for table in tables.values():
        assert table.rows[0].config.model == small.model  # differences are counted against what is usual
        for row in table.rows:
            assert row.config.trainer.max_seconds == 120
            assert row.config.samples.num == 0
            assert row.config.optim.patience == 0


def test_runs_go_seed_by_seed_over_all_rows() -> None:
    table = _define(seeds=2, rows={"gru": {}, "2 tiers / big": {"model": {"frame_sizes": [16]}}})
    assert [row.run(seed) for row, seed in table.runs()] == [
        "gru-seed0",
        "2-tiers-big-seed0",
        "gru-seed1",
        "2-tiers-big-seed1",
    ]
    assert table.rows[1].with_seed(1).seed_everything == 1
    assert table.rows[1].changes == {"model.frame_sizes": [16]}
    assert _define(seeds=[3, 5]).seeds == (3, 5)


def test_a_grid_is_every_combination() -> None:
    table = _define(rows=None, grid={"model.dim": [8, 16], "model.learn_h0": "all"})
    assert [row.label for row in table.rows] == [
        "dim 8, learn_h0 on",
        "dim 8, learn_h0 off",
        "dim 16, learn_h0 on",
        "dim 16, learn_h0 off",
    ]
    assert [(row.config.model.dim, row.config.model.learn_h0) for row in table.rows] == [
        (8, True),
        (8, False),
        (16, True),
        (16, False),
    ]


def test_options_of_all_rows_give_way_to_those_of_a_row() -> None:
    rows = {"one": {}, "other": {"optim.lr": 0.002}}
    table = _define(options={"optim.lr": 0.001, "optim": {"patience": 3}}, rows=rows)
    assert [row.config.optim.lr for row in table.rows] == [0.001, 0.002]
    assert all(row.config.optim.patience == 3 for row in table.rows)


def test_what_is_common_to_a_file_gives_way_to_a_table(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "common: {seeds: 3, budget: 2m}\ntables: {a: {rows: {x: }, budget: 90s}, b: {rows: {y: }}}"
    )
    a, b = (define(definition) for definition in read_file(file).values())
    assert (a.title, a.budget, a.seeds) == ("a", Budget(seconds=90), (0, 1, 2))
    assert (b.title, b.budget) == ("b", Budget(seconds=120))


@pytest.mark.parametrize(
    ("text", "seconds", "steps", "shown"),
    [
        ("4m", 240, None, "4 min"),
        ("90s", 90, None, "1.5 min"),
        ("1h30m", 5400, None, "90 min"),
        ("0.5m", 30, None, "30 s"),
        ("2000 steps", None, 2000, "2,000 steps"),
    ],
)
def test_budgets(text: str, seconds: float | None, steps: int | None, shown: str) -> None:
    budget = parse_budget(text)
    assert (budget.seconds, budget.steps, str(budget)) == (seconds, steps, shown)
    trainer = _define(budget=text, config="demo").rows[0].config.trainer  # demo has a limit of its own
    assert trainer.max_seconds == (seconds or float("inf"))
    assert trainer.max_steps == (steps or -1)


@pytest.mark.parametrize(
    ("text", "label", "changes"),
    [
        ("gru", "gru", {}),
        ("no h0: model.learn_h0=false", "no h0", {"model.learn_h0": False}),
        (
            "deep: model.n_rnn=2  model.frame_sizes=[16, 4] optim.lr=1e-3",
            "deep",
            {"model.n_rnn": 2, "model.frame_sizes": [16, 4], "optim.lr": "1e-3"},
        ),
        ("model.rnn=lstm", "model.rnn=lstm", {"model.rnn": "lstm"}),
    ],
)
def test_rows_as_they_are_typed(text: str, label: str, changes: dict[str, Any]) -> None:
    assert parse_row(text) == (label, changes)
    assert _define(rows={label: changes}).rows[0].label == label


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rows": {"x": {"model.foo": 1}}}, "row x: unknown option model.foo; known here: density, dim,"),
        ({"rows": {"x": {"model.dim": "many"}}}, "row x: model.dim must be of type int"),
        ({"rows": {"x": {"model.frame_sizes": [256, 16], "data.tbptt_len": 64}}}, "row x: data.tbptt_len 64"),
        ({"rows": {"x": {"trainer.max_steps": 3}}}, "row x: trainer.max_steps is the same for all rows"),
        ({"options": {"seed_everything": 3}}, "set the table's seeds instead"),
        ({"rows": {"a b": {}, "a-b": {"model.dim": 8}}}, "two rows are called a-b"),
        ({"rows": None}, "no rows; give rows, or a grid"),
        ({"grid": {"model.dim": "all"}}, "grid model.dim: all is for options that are a choice"),
        ({"grid": {"model.cell": "all"}}, "grid model.cell: unknown option; known here: density, dim"),
        ({"grid": {"model.dim": 8}}, "grid model.dim must be a list"),
        ({"budget": "soon"}, "budget soon: write the time of training per run"),
        ({"budget": 240}, "budget 240: write the time"),
        ({"budget": "0s"}, "budget 0s: it must be above zero"),
        ({"seeds": 0}, "seeds must be how many"),
        ({"config": "tiny"}, "config tiny: no such file or preset; presets: demo"),
        ({"colour": "red"}, "unknown entry colour; known here: title, config"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as raised:
        _define(**changes)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.q_levels", 128),
        ("model.quantization", "mu-law"),
        ("data.sample_rate", 8000),
        ("data.split_seed", 1),
        ("data.validation_duration", 5.0),
    ],
)
def test_rows_whose_bits_do_not_compare_are_refused_unless_insisted_on(key: str, value: Any) -> None:
    definition = {"budget": "10 steps", "rows": {"gru": {}, "other": {key: value}}}
    with pytest.raises(UserError, match=f"row other has {key} {value}.*--insist"):
        define(definition)
    assert define(definition, insist=True).incomparable == (key,)


def test_rows_may_read_the_same_audio_in_other_ways() -> None:
    rows = {"gru": {}, "other": {"data.tbptt_len": 1024, "data.batch_size": 8, "data.segment_duration": 2.0}}
    assert _define(rows=rows).incomparable == ()


def test_differences_name_the_options(toy_config: Config) -> None:
    other = _define(rows={"x": {"model.rnn": "lstm"}}).rows[0].config
    assert differences(other, other) == []
    assert "model.rnn: gru -> lstm" in differences(toy_config, other)


@pytest.mark.parametrize("text", ["tables: 3", "rows: {}", "- a", "a: [", "tables: {a: {}}\nother: 1"])
def test_files_that_hold_no_tables(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml: "):
        read_file(tmp_path / "x.yaml")
