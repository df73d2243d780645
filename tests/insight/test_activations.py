"""Units that were built to follow something are found, others are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from samplernn import plots
from samplernn.audio.io import load as load_audio
from samplernn.audio.io import to_int16
from samplernn.cli import main
from samplernn.config import CELLS, Config, DataConfig, ModelConfig, UserError
from samplernn.insight.activations import (
    FEATURES,
    Activations,
    _compare,
    activations,
    hidden_units,
    phase_strength,
)
from samplernn.model.checkpoint import Checkpoint, load
from samplernn.model.network import SampleRNN

RATE = 8000
LOUD, HOT, CLOCK = 3, 5, 2  # units that are given something to follow
DIM = 8


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _checkpoint(weights: dict[str, torch.Tensor], gain: float = 1.0) -> Checkpoint:
    model = ModelConfig(frame_sizes=(16, 4), dim=DIM, embedding_dim=4, weight_norm=False)
    config = Config(model=model, data=DataConfig(sample_rate=RATE, tbptt_len=64))
    return Checkpoint(config, weights, gain, np.zeros((256, 256), np.int64), {"validation": [], "test": []})


@pytest.fixture
def built() -> Checkpoint:
    """A network whose weights are zero but for those of three units.

    Unit LOUD of the slow tier is a peak holder: a sample above zero opens its update gate and sets it, others
    let it fade slowly. Unit CLOCK of the fast tier hears from the slow tier only which step of the frame it is.
    Unit HOT of the slow tier stands still at a value.
    """
    with torch.random.fork_rng():
        model = SampleRNN(_checkpoint({}).config.model)
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    slow, fast = "frame_level_tiers.0.", "frame_level_tiers.1."
    weights[slow + "input_projection.weight"][LOUD, -1] = 1.0  # the frame's last sample
    gates = weights[slow + "rnn.layers.weight_ih_l0"]
    gates[2 * DIM + LOUD, LOUD] = 1.0  # new
    gates[DIM + LOUD, LOUD] = -40.0  # update: 1 keeps
    weights[slow + "rnn.layers.bias_ih_l0"][DIM + LOUD] = 4.0
    weights[slow + "rnn.layers.bias_ih_l0"][2 * DIM + HOT] = 1.0
    weights[slow + "rnn.h0"][0, 0, HOT] = float(np.tanh(1.0))
    upsampling = weights[slow + "upsampling.bias"].view(4, DIM)
    upsampling[:, CLOCK] = torch.tensor([-0.5, 2.0, 0.3, -1.0])
    weights[fast + "rnn.layers.weight_ih_l0"][2 * DIM + CLOCK, CLOCK] = 1.0
    weights[fast + "rnn.layers.bias_ih_l0"][DIM + CLOCK] = -20.0  # no memory
    return _checkpoint(weights)


def test_a_unit_that_follows_loudness_is_found(built: Checkpoint, clips: Path) -> None:
    found = activations(built, clips / "tabla" / "loop_tabla.flac", duration=4)
    slow = found.tiers[0]
    assert slow.number == 3
    assert slow.follows["loudness"].unit == LOUD
    assert slow.follows["loudness"].best > max(0.6, slow.follows["loudness"].chance)
    assert [(unit.number, unit.feature) for unit in slow.units] == [(LOUD, "loudness")]
    assert slow.units[0].highest_step is None
    assert slow.num_constant == DIM - 1
    assert slow.remarks["phase"] == "there is no slower tier"


def test_the_sign_is_that_of_the_connection(built: Checkpoint, clips: Path) -> None:
    built.weights["frame_level_tiers.0.rnn.layers.weight_ih_l0"][2 * DIM + LOUD, LOUD] = -1.0
    found = activations(built, clips / "tabla" / "loop_tabla.flac", duration=4)
    assert found.tiers[0].follows["loudness"].best < -0.6


def test_a_unit_that_follows_the_position_in_the_frame_is_found(built: Checkpoint, clips: Path) -> None:
    fast = activations(built, clips / "speech" / "austen_0870.flac", duration=2).tiers[1]
    (unit,) = fast.units
    assert (unit.number, unit.feature, unit.highest_step) == (CLOCK, "phase", 2)
    assert unit.correlation == pytest.approx(1.0, abs=1e-3)
    assert fast.follows["phase"].num_above == 1
    assert fast.follows["phase"].chance < 0.2
    assert fast.follows["loudness"].num_above == 0


def test_units_of_chance_are_told_from_others() -> None:
    """256 slow units that know nothing of a slow feature: the best looks good, and is called chance."""
    false_alarms, looks_good = 0, 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        smooth = np.ones(100) / 100
        walks = random.normal(size=(257, 1600))
        series = np.stack([np.convolve(walk, smooth, mode="valid") for walk in walks])
        hidden, feature = series[:256].T.astype(np.float32), series[256]
        strength, chance = _compare("loudness", hidden, feature, 1)
        false_alarms += bool((np.abs(strength) > chance).any())
        looks_good += bool(np.abs(strength).max() > 0.5)
    assert looks_good >= 15
    assert false_alarms <= 4  # one in twenty is expected


def test_phase_by_chance_does_not_count_what_is_only_slow() -> None:
    random = np.random.default_rng(0)
    hidden = np.cumsum(random.normal(size=(800, 64)), axis=0).astype(np.float32)
    positions = np.arange(800) % 4
    strength, chance = _compare("phase", hidden, positions.astype(float), 4)
    assert (strength > chance).sum() <= 1
    hidden[:, 7] += 10 * (positions == 1)
    strength, chance = _compare("phase", hidden, positions.astype(float), 4)
    assert strength.argmax() == 7
    assert strength[7] > chance


def test_phase_strength_is_the_correlation_ratio() -> None:
    random = np.random.default_rng(1)
    positions = np.arange(400) % 4
    unit = random.normal(size=400) + np.array([0.0, 1.0, 0.5, -1.0])[positions]
    means = np.array([unit[positions == position].mean() for position in range(4)])
    expected = means[positions].std() / unit.std()
    assert phase_strength(unit[:, None].astype(np.float32), positions, 4)[0] == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(("rnn", "n_rnn"), [("gru", 1), *((rnn, 2) for rnn in CELLS)])
def test_hidden_units_are_those_of_the_network(rnn: str, n_rnn: int) -> None:
    torch.manual_seed(0)
    model = SampleRNN(ModelConfig(frame_sizes=(8, 2), dim=6, rnn=rnn, n_rnn=n_rnn, q_levels=16)).eval()
    codes = torch.randint(16, (64,))
    slow, fast = hidden_units(model, codes)
    with torch.inference_mode():
        hidden, state = model.listen(codes[None], model.initial_state(1))
    assert slow.shape == (8, 6)
    torch.testing.assert_close(fast, hidden[0])
    torch.testing.assert_close(slow[-1], state.rnn[0][0, 0, -1])
    assert not any(tier._forward_hooks for tier in model.tiers())


def test_the_part_that_was_asked_for_is_what_is_looked_at(built: Checkpoint, clips: Path) -> None:
    file = clips / "piano" / "satie_gymnopedie1_1.flac"
    whole = to_int16(load_audio(file, RATE))
    found = activations(built, file, start=3.0, duration=1.5)
    np.testing.assert_array_equal(found.audio, whole[24000 : 24000 + len(found.audio)])
    assert len(found.audio) == 12000
    for tier in found.tiers:
        assert len(tier.hidden) == 12000 // tier.frame_size
    # Peaks that are heard before the part begins are remembered in it.
    assert found.tiers[0].hidden[0, LOUD] > 0.01


def test_the_gain_is_that_of_the_corpus(built: Checkpoint, clips: Path, tmp_path: Path) -> None:
    """Twice as loud with half the gain is the same to the model."""
    quiet = load_audio(clips / "tabla" / "loop_tabla.flac", RATE)[:16000] / 4
    sf.write(tmp_path / "quiet.wav", quiet, RATE, subtype="FLOAT")
    sf.write(tmp_path / "loud.wav", quiet * 2, RATE, subtype="FLOAT")
    soft = activations(_checkpoint(built.weights, gain=2.0), tmp_path / "quiet.wav").tiers[0].hidden
    loud = activations(built, tmp_path / "loud.wav").tiers[0].hidden
    plain = activations(built, tmp_path / "quiet.wav").tiers[0].hidden
    # int16 of the quiet file is coarser by a bit, and then a code may differ.
    assert np.abs(soft - loud).mean() < 0.1 * np.abs(plain - loud).mean()


def test_silence_and_dead_networks_are_said_and_drawn(built: Checkpoint, tmp_path: Path) -> None:
    sf.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    found = activations(built, tmp_path / "silence.wav")
    slow, fast = found.tiers
    assert set(slow.remarks) == set(FEATURES)
    assert slow.units == ()
    assert fast.remarks["loudness"] == "does not vary in this recording"
    assert fast.remarks["pitch"] == "only 0% of the recording has one"
    assert fast.follows["phase"].unit == CLOCK
    assert any("does not vary" in line for line in found.lines())
    assert plots.pixels(found.draw()).std() > 10


def test_turns_let_no_feature_crowd_out_the_others(trained_run: Path, clips: Path) -> None:
    checkpoint = load(trained_run)
    found = activations(checkpoint, clips / "speech" / "austen_0880.flac", duration=3, top=16)
    few = activations(checkpoint, clips / "speech" / "austen_0880.flac", duration=3, top=3)
    for tier, less in zip(found.tiers, few.tiers, strict=True):
        kinds = {unit.feature for unit in tier.units}
        assert len({unit.number for unit in tier.units}) == len(tier.units)
        assert len({unit.feature for unit in less.units}) == min(3, len(kinds))
        order = [(FEATURES.index(unit.feature), -abs(unit.correlation)) for unit in tier.units]
        assert order == sorted(order)
        for unit in tier.units:
            assert abs(unit.correlation) > tier.follows[unit.feature].chance


def _titles(found: Activations) -> list[str]:
    return [text.get_text() for axis in found.draw().axes for text in axis.texts]


def test_the_picture_names_every_unit_and_number(built: Checkpoint, clips: Path) -> None:
    found = activations(built, clips / "tabla" / "loop_tabla.flac", duration=2)
    titles = _titles(found)
    assert any(title.startswith(f"unit {LOUD}: loudness +0.") for title in titles)
    assert f"unit {CLOCK}: phase 1.00, highest at step 2 of 4" in titles


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"start": -1.0}, "start"),
        ({"start": float("nan")}, "start"),
        ({"duration": 0.1}, "duration"),
        ({"duration": float("inf")}, "duration"),
        ({"top": 0}, "top"),
        ({"start": 100.0}, "too little is left after 100 s"),
    ],
)
def test_mistakes_are_named(built: Checkpoint, clips: Path, options: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        activations(built, clips / "tabla" / "loop_tabla.flac", **options)  # type: ignore[arg-type]


def test_the_verb_prints_a_table_and_writes_a_picture(
    trained_run: Path,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["activations", str(trained_run), str(clips / "guitar" / "guit_em9.flac")]
    assert main([*command, "--json", "--top", "2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    assert [tier["tier"] for tier in printed["tiers"]] == [3, 2]
    assert all(len(tier["strongest"]) <= 2 for tier in printed["tiers"])
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "by chance" in said
    assert "picture: activations.png" in said
    assert Path("activations.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--out", "x.jpg"]) == 2
    assert main([*command, "--out", "nowhere/x.png"]) == 2
    assert "cannot be written" in capsys.readouterr().err
