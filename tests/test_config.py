from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from samplernn.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SamplesConfig,
    TrainerConfig,
    UserError,
    from_dict,
    merged,
    presets,
    to_dict,
)

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": {"frame_sizes": [16, 64]}}, "frame_sizes [16, 64] is not slowest tier first: write [64, 16]"),
    ({"model": {"frame_sizes": [2, 4, 8]}}, "write [8, 4, 2]"),
    ({"model": {"frame_sizes": [16, 64, 4]}}, "write [64, 16, 4]"),
    ({"model": {"frame_sizes": [16, 5]}}, "of 5, and larger. Sizes are samples per frame, not ratios"),
    ({"model": {"frame_sizes": [4, 4]}}, "of 4, and larger. Sizes are samples per frame, not ratios"),
    ({"model": {"frame_sizes": []}}, "model.frame_sizes is empty"),
    ({"model": {"frame_sizes": [16, 0]}}, "at least 1"),
    ({"model": {"frame_sizes": [16, -4]}}, "at least 1"),
    ({"model": {"frame_sizes": 16}}, "model.frame_sizes must be a list, got 16"),
    ({"model": {"frame_sizes": [16, "4"]}}, "model.frame_sizes must be of type int, got '4'"),
    ({"model": {"frame_sizes": [16, True]}}, "model.frame_sizes must be of type int, got True"),
    ({"model": {"rnn": "GRU"}}, "model.rnn must be one of gru, lstm, rnn-tanh, rnn-relu, "),
    ({"model": {"dim": 0}}, "model.dim must be from 1 to 65536, got 0"),
    ({"model": {"dim": 2.5}}, "model.dim must be of type int, got 2.5"),
    ({"model": {"dim": True}}, "model.dim must be of type int, got True"),
    ({"model": {"n_rnn": 0}}, "model.n_rnn"),
    ({"model": {"embedding_dim": -1}}, "model.embedding_dim must be at least 1, or 0 for one-hot codes, got -1"),
    ({"model": {"learn_h0": 1}}, "model.learn_h0 must be of type bool, got 1"),
    ({"model": {"q_levels": 1}}, "model.q_levels must be from 2 to 1024, got 1"),
    ({"model": {"q_levels": 65536}}, "model.q_levels must be from 2 to 1024, got 65536"),
    ({"model": {"quantization": "mulaw"}}, "quantization must be one of linear, mu-law, a-law, got 'mulaw'"),
    ({"model": {"size": 3}}, "unknown option model.size; known here: density, dim, embedding_dim,"),
    ({"mdl": {"dim": 3}}, "unknown option mdl; known here: checkpoint, data,"),
    ({"model": 3}, "model must hold options of its own, got 3"),
    ({"model": None}, "model must hold options of its own, got None"),
    ({"data": {"sample_rate": 16}}, "data.sample_rate must be from 1000 to 384000 Hz, got 16"),
    ({"data": {"batch_size": 0}}, "data.batch_size must be at least 1, or auto, got 0"),
    ({"data": {"batch_size": "many"}}, "data.batch_size must be of type int or auto, got 'many'"),
    ({"data": {"batch_size": 2.5}}, "data.batch_size must be of type int or auto, got 2.5"),
    ({"data": {"batch_size": True}}, "data.batch_size must be of type int or auto, got True"),
    ({"data": {"batch_size": None}}, "data.batch_size must be of type int or auto, got None"),
    ({"data": {"batch_size": [4]}}, "data.batch_size must be of type int or auto, got [4]"),
    ({"data": {"tbptt_len": 0}}, "data.tbptt_len must be at least 1"),
    ({"data": {"tbptt_len": 1000}}, "largest frame (model.frame_sizes[0] = 64): take 1024"),
    ({"data": {"segment_duration": 0}}, "data.segment_duration"),
    ({"data": {"segment_duration": math.nan}}, "data.segment_duration"),
    ({"data": {"validation_duration": -1}}, "data.validation_duration"),
    ({"data": {"cache_dir": 7}}, "data.cache_dir must be of type str, got 7"),
    ({"optim": {"lr": 0}}, "optim.lr must be above 0, got 0"),
    ({"optim": {"lr": math.nan}}, "optim.lr"),
    ({"optim": {"lr": "fast"}}, "optim.lr must be of type float, got 'fast'"),
    ({"optim": {"lr": None}}, "optim.lr must be of type float, got None"),
    ({"optim": {"betas": [0.9]}}, "optim.betas must be two numbers"),
    ({"optim": {"betas": [0.9, 1.0]}}, "optim.betas must be two numbers"),
    ({"optim": {"schedule": "linear"}}, "optim.schedule"),
    ({"optim": {"final_lr": 1.5}}, "optim.final_lr must be from 0 to 1, got 1.5"),
    ({"optim": {"warmup_steps": -1}}, "optim.warmup_steps"),
    ({"optim": {"patience": -1}}, "optim.patience"),
    ({"optim": {"weight_decay": -0.1}}, "optim.weight_decay"),
    ({"optim": {"ema_decay": 1.0}}, "optim.ema_decay must be from 0 to below 1, got 1.0"),
    ({"optim": {"ema_decay": -0.1}}, "optim.ema_decay"),
    ({"optim": {"ema_decay": 0.9}, "trainer": {"precision": "bf16-true"}}, "take trainer.precision bf16-mixed"),
    ({"checkpoint": {"every_steps": -1}}, "checkpoint.every_steps"),
    ({"checkpoint": {"every_minutes": -1}}, "checkpoint.every_minutes"),
    ({"samples": {"num": -1}}, "samples.num"),
    ({"samples": {"duration": 0}}, "samples.duration"),
    ({"samples": {"temperatures": [0.9, -0.5]}}, "samples.temperatures must not be negative, got [0.9, -0.5]"),
    ({"samples": {"temperatures": []}}, "samples.temperatures is empty: give at least one"),
    ({"samples": {"temperatures": [0.9, 0.901]}}, "[0.9, 0.901]: two are the same to two decimals"),
    ({"samples": {"temperatures": 0.9}}, "samples.temperatures must be a list, got 0.9"),
    ({"samples": {"temperature": "hot"}}, "samples.temperatures must be of type float, got 'hot'"),
    ({"samples": {"prompts": -1}}, "samples.prompts must not be negative, got -1"),
    ({"samples": {"prompt_duration": 0}}, "samples.prompt_duration must be above 0 s, got 0"),
    ({"trainer": {"max_steps": 0}}, "trainer.max_steps must be -1 or at least 1, got 0"),
    ({"trainer": {"max_epochs": -2}}, "trainer.max_epochs must be -1 or at least 1, got -2"),
    ({"trainer": {"accumulate_grad_batches": 0}}, "trainer.accumulate_grad_batches"),
    ({"trainer": {"gradient_clip_val": 0}}, "trainer.gradient_clip_val must be above 0 or null, got 0"),
    ({"trainer": {"gradient_clip_parameters": "gru"}}, "must be one of all, recurrent, got 'gru'"),
    ({"trainer": {"max_time": "10 minutes"}}, "trainer.max_time must look like DD:HH:MM:SS"),
    ({"trainer": {"max_time": "00:10:00"}}, "trainer.max_time must look like DD:HH:MM:SS"),
    ({"trainer": {"max_time": "00:00:-1:00"}}, "trainer.max_time must look like DD:HH:MM:SS"),
    ({"trainer": {"max_time": "00:00:00:00"}}, "trainer.max_time must be above zero"),
    ({"trainer": {"devices": 1.5}}, "trainer.devices must be of type int or str, got 1.5"),
    ({"logger": "neptune"}, "logger must be one of"),
    ({"seed_everything": "lucky"}, "seed_everything must be of type int, got 'lucky'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "said"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_option_is_named_in_one_line_with_what_was_got(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(Config, options)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert len(message) < 400


@given(tbptt_len=st.integers(1, 5000), frame=st.integers(1, 300))
def test_the_suggested_tbptt_len_is_valid_and_nearest(tbptt_len: int, frame: int) -> None:
    model = ModelConfig(frame_sizes=(frame,))
    if tbptt_len % frame == 0:
        Config(model=model, data=DataConfig(tbptt_len=tbptt_len))
        return
    with pytest.raises(UserError) as caught:
        Config(model=model, data=DataConfig(tbptt_len=tbptt_len))
    found = re.search(r"take (\d+)$", str(caught.value))
    assert found is not None
    suggested = int(found.group(1))
    Config(model=model, data=DataConfig(tbptt_len=suggested))
    assert abs(suggested - tbptt_len) <= frame / 2 or suggested == frame


DEFAULT_FREE = Config(
    model=ModelConfig(
        *((8, 4, 2), "lstm", 3, 32, False, False, 12, 300, "a-law", "softmax", 3.0),
        skip_connections=True,
        recurrent_input=False,
        time_constants="fixed",
        leak=0.5,
        spectral_radius=1.1,
        density=0.3,
        rnn_weight_norm=True,
        top_projection=False,
        linear_mlp_layer=True,
    ),
    data=DataConfig(8000, 3, 1024, 2.5, 60.0, 7, "/tmp/cache folder", 30.0, "clip", False),
    optim=OptimConfig(3e-4, (0.8, 0.95), 0.01, "constant", 0.5, 0, 0, 0.99),
    checkpoint=CheckpointConfig(100, 0.5),
    samples=SamplesConfig(0, 1.5, (1.0,), 3, 0.5, 5),
    trainer=TrainerConfig(
        accelerator="cpu",
        devices=2,
        num_nodes=2,
        strategy="ddp",
        precision="bf16-mixed",
        max_steps=10,
        max_epochs=3,
        max_time="10:00:30:00",  # bare in YAML 1.1 this would be a number to base 60
        gradient_clip_val=None,
        gradient_clip_algorithm="value",
        gradient_clip_parameters="recurrent",
        accumulate_grad_batches=2,
        val_check_interval=7,
        log_every_n_steps=3,
        enable_progress_bar=False,
        process_timeout_minutes=5.0,
    ),
    seed_everything=99,
)


@pytest.mark.parametrize("config", [Config(), DEFAULT_FREE], ids=["defaults", "nothing_default"])
def test_a_configuration_survives_yaml(config: Config) -> None:
    text = yaml.safe_dump(to_dict(config))
    restored = from_dict(Config, yaml.safe_load(text))
    assert restored == config
    assert isinstance(restored.model.frame_sizes, tuple)
    assert isinstance(restored.optim.betas, tuple)
    assert hash(restored.model) == hash(config.model)


def test_to_dict_holds_plain_values_only() -> None:
    """No tuple: `torch.load(weights_only=True)`, JSON and YAML of other programs read it back the same."""
    values = to_dict(DEFAULT_FREE)
    assert json.loads(json.dumps(values)) == values


def test_the_round_trip_covers_every_option() -> None:
    """An option that is added later must be added to DEFAULT_FREE, or it could be lost unnoticed."""
    default = Config()
    for part in dataclasses.fields(Config):
        ours, theirs = getattr(DEFAULT_FREE, part.name), getattr(default, part.name)
        if not dataclasses.is_dataclass(ours):
            continue
        same = [
            field.name
            for field in dataclasses.fields(ours)
            if field.name != "head" and getattr(ours, field.name) == getattr(theirs, field.name)
        ]
        assert same == [], part.name


def test_missing_options_take_their_defaults_and_whole_numbers_pass_as_floats() -> None:
    config = from_dict(Config, {"optim": {"lr": 1}, "model": {"frame_sizes": [16]}})
    assert config == Config(model=ModelConfig(frame_sizes=(16,)), optim=OptimConfig(lr=1.0))
    assert isinstance(config.optim.lr, float)


def test_options_of_earlier_versions_are_read_under_their_present_names() -> None:
    assert from_dict(Config, {"samples": {"temperature": 0.8, "num": 3}}).samples == SamplesConfig(
        num=3, temperatures=(0.8,)
    )
    # A resumed run's own options with those that were typed.
    both = merged({"samples": {"temperature": 0.8}}, {"samples": {"temperatures": [0.5, 0.7]}})
    assert from_dict(Config, both).samples.temperatures == (0.5, 0.7)
    assert "temperature" not in to_dict(from_dict(Config, both))["samples"]


def test_a_sweep_is_no_preset_and_tries_options_that_exist() -> None:
    """As wandb's agent calls us: with its own code, the outermost values of each parameter."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    from samplernn.options import parse

    assert "sweep" not in presets()
    sweep = yaml.safe_load((presets()["small"].parent / "sweep.yaml").read_text("utf-8"))
    for pick in (0, -1):
        chosen = {
            name: {"value": options.get("value", [*options.get("values", []), options.get("max")][pick])}
            if "values" not in options
            else {"value": options["values"][pick]}
            for name, options in sweep["parameters"].items()
        }
        typed = create_sweep_command_args({"args": chosen})["args"]
        command = [
            part
            for word in create_sweep_command(sweep["command"])
            for part in (typed if word == "${args}" else [word])
        ]
        assert command[:2] == ["samplernn", "train"]
        options = parse(command[2:])
        assert options.config.logger == "wandb"
        assert options.quiet
        values = to_dict(options.config)
        for name, option in chosen.items():
            part, key = name.split(".")
            assert values[part][key] == option["value"], name
    assert sweep["metric"] == {"name": "validation/best_bits_per_sample", "goal": "minimize"}


def test_yaml_numbers_in_scientific_notation_are_numbers() -> None:
    """PyYAML reads 1e-3 as a string."""
    assert from_dict(Config, yaml.safe_load("optim: {lr: 1e-3}")).optim.lr == 0.001


def test_a_part_alone_can_be_read() -> None:
    """As a checkpoint stores it."""
    model = ModelConfig(frame_sizes=(8, 2), dim=9)
    assert from_dict(ModelConfig, to_dict(model), "model.") == model
    with pytest.raises(UserError, match=r"unknown option model\.dimension"):
        from_dict(ModelConfig, {"dimension": 9}, "model.")


@pytest.mark.parametrize(
    ("max_time", "seconds"),
    [
        (None, math.inf),
        ("00:00:10:00", 600),
        ("00:00:00:01", 1),
        ("01:02:03:04", 93784),  # 86400 + 2 · 3600 + 3 · 60 + 4
        ("10:00:00:00", 864000),
    ],
)
def test_max_time_in_seconds(max_time: str | None, seconds: float) -> None:
    assert TrainerConfig(max_time=max_time).max_seconds == seconds


def test_options_cannot_be_changed_behind_their_validation() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.dim = -1  # type: ignore[misc]


def test_derived_sizes() -> None:
    model = ModelConfig(frame_sizes=(64, 16))
    assert model.lookback == 64
    assert model.n_tiers == 3  # Mehri's count


def test_merging_replaces_leaves_and_changes_neither_side() -> None:
    base = {"model": {"dim": 1, "rnn": "gru"}, "logger": "tensorboard"}
    changes = {"model": {"dim": 2, "frame_sizes": [4]}, "optim": {"lr": 1.0}}
    expected = {
        "model": {"dim": 2, "rnn": "gru", "frame_sizes": [4]},
        "logger": "tensorboard",
        "optim": {"lr": 1.0},
    }
    assert merged(base, changes) == expected
    assert base == {"model": {"dim": 1, "rnn": "gru"}, "logger": "tensorboard"}
    assert changes == {"model": {"dim": 2, "frame_sizes": [4]}, "optim": {"lr": 1.0}}


PRESETS = {  # docs: the table of presets in DESIGN.md
    "reference": ((64, 16), 2, 1024, 256, "linear", 256, 1024, 128),
    "paper-2tier": ((16,), 3, 1024, 256, "linear", 256, 1024, 128),
    "paper-3tier": ((8, 2), 1, 1024, 256, "linear", 256, 512, 128),
    "mehri-2tier": ((16,), 3, 1024, 256, "linear", 256, 1024, 128),
    "mehri-3tier": ((8, 2), 1, 1024, 256, "linear", 256, 512, 128),
    "small": ((64, 16), 1, 256, 256, "linear", 256, 512, 16),
}


def read(preset: Path) -> Config:
    return from_dict(Config, yaml.safe_load(preset.read_text("utf-8")))


@pytest.mark.parametrize(("name", "sizes"), PRESETS.items(), ids=PRESETS)
def test_presets_have_their_published_sizes(name: str, sizes: tuple[Any, ...]) -> None:
    config = read(presets()[name])
    model, data = config.model, config.data
    assert model.rnn == "gru" or name.startswith("mehri-")
    assert (model.frame_sizes, model.n_rnn, model.dim, model.q_levels, model.quantization) == sizes[:5]
    assert (model.embedding_dim, data.tbptt_len, data.batch_size) == sizes[5:]


def test_presets_of_the_original_use_every_key_that_the_others_leave_off() -> None:
    for number in (2, 3):
        ours, theirs = (read(presets()[f"{name}-{number}tier"]) for name in ("paper", "mehri"))
        fields = [field.name for field in dataclasses.fields(ModelConfig)]
        changed = {name for name in fields if getattr(ours.model, name) != getattr(theirs.model, name)}
        assert changed - {"rnn"} == {"top_projection", "linear_mlp_layer", "rnn_weight_norm", "forget_bias"}
        assert theirs.data == dataclasses.replace(ours.data, normalise="clip")
        assert (theirs.optim.lr, theirs.optim.betas, theirs.optim.schedule) == (
            1e-3,
            (0.9, 0.999),
            "constant",
        )
        # 1, where the loss is in bits.
        assert theirs.trainer.gradient_clip_val == pytest.approx(math.log(2), abs=1e-3)
        assert theirs.trainer.gradient_clip_algorithm == "value"


def test_every_shipped_preset_is_valid() -> None:
    assert presets().keys() >= PRESETS.keys()
    for preset in presets().values():
        read(preset)
