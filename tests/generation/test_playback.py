"""A stream is the same whatever its blocks, its neighbours and its interruptions; traps are seen and left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import safetensors.torch
import torch

import samplernn
from samplernn.config import UserError
from samplernn.generation.engines.base import EngineState
from samplernn.generation.guards import Guard, Trap
from samplernn.generation.playback import FACTORS, Generator, Playback, latest
from samplernn.generation.prompts import Prompt
from samplernn.generation.request import OnTrap, Request
from samplernn.generation.sampling import DrawArrays
from samplernn.generation.snapshots import Snapshot
from samplernn.model.checkpoint import Checkpoint

RATE, FRAME, HOP = 4000, 8, 1000
NUM = 9 * RATE + 3
"""Samples of the streams here: not a whole number of frames."""
CURVES = ("0:1.0,4:0.7,9:1.1", "0.9", "1.0")


def _slow(*values: Any) -> Any:
    """One more row of parameters, for `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def checkpoint(trained_run: Path) -> Checkpoint:
    return samplernn.load(trained_run)


@pytest.fixture(scope="module")
def generator(checkpoint: Checkpoint) -> Generator:
    """Its training audio is pretended to be such that some of what it plays sounds like noise."""
    generator = Generator(checkpoint)
    request = Request(60 * RATE, streams=(7, 8), seed=3, temperature=(1.0,), on_trap="off")
    hops = np.concatenate(list(generator.stream(request)), axis=1).reshape(-1, HOP) / 32768
    energy = 10 * np.log10(np.quantile(np.diff(hops).var(axis=1), 0.3))
    generator.expected = replace(generator.expected, level=energy - 6 + 20, brightness=0.01)
    return generator


def _play(generator: Generator, blocks: float = 0.1, **request: Any) -> tuple[np.ndarray, Playback]:
    options = {"num_samples": NUM, "streams": (0, 1, 2), "seed": 1, "temperature": CURVES, **request}
    playback = generator.stream(Request(**options), blocks)
    return np.concatenate(list(playback), axis=1), playback


@pytest.fixture(scope="module")
def whole(generator: Generator) -> dict[str, np.ndarray]:
    """The uninterrupted streams, by what is done about traps."""
    played = {}
    for on_trap in get_args(OnTrap):
        played[on_trap], playback = _play(generator, on_trap=on_trap)
        assert played[on_trap].shape == (3, NUM)
        assert bool(playback.events) == (on_trap != "off"), "there are no traps to be seen here"
    return played


@pytest.fixture(params=get_args(OnTrap))
def on_trap(request: pytest.FixtureRequest) -> str:
    """Each of them."""
    return str(request.param)


@pytest.mark.parametrize("blocks", [_slow(0.002), 0.0371, _slow(0.25), _slow(3.0)])
def test_a_stream_does_not_depend_on_the_length_of_blocks(
    generator: Generator, whole: dict[str, np.ndarray], on_trap: str, blocks: float
) -> None:
    assert np.array_equal(_play(generator, blocks, on_trap=on_trap)[0], whole[on_trap])


def test_a_stream_does_not_depend_on_its_neighbours(
    generator: Generator, whole: dict[str, np.ndarray], on_trap: str
) -> None:
    for stream in range(3):
        alone, _ = _play(
            generator, streams=(stream,), temperature=CURVES[stream : stream + 1], on_trap=on_trap
        )
        assert np.array_equal(alone[0], whole[on_trap][stream])


@pytest.mark.parametrize(
    "cuts",
    [
        *map(_slow, ([1], [FRAME], [HOP], [17_003], [30_000])),
        [4000, 4003],
        [9000, 2, 3, 9000],
    ],
)
def test_an_interrupted_stream_goes_on_as_if_nothing_had_happened(
    generator: Generator, whole: dict[str, np.ndarray], on_trap: str, cuts: list[int], tmp_path: Path
) -> None:
    parts, state = [], None
    for number, length in enumerate([*cuts, NUM - sum(cuts)]):
        part, playback = _play(generator, num_samples=length, on_trap=on_trap, origin=state)
        parts.append(part)
        playback.snapshot().save(tmp_path / f"{number}.state")
        state = Snapshot.load(tmp_path / f"{number}.state")
    assert np.array_equal(np.concatenate(parts, axis=1), whole[on_trap])


@pytest.mark.slow
def test_a_snapshot_between_blocks_is_as_good_as_one_at_the_end(
    generator: Generator, whole: dict[str, np.ndarray], on_trap: str
) -> None:
    request = Request(NUM, streams=(0, 1, 2), seed=1, temperature=CURVES, on_trap=on_trap)  # type: ignore[arg-type]
    playback, given = generator.stream(request), 0
    for number, block in enumerate(playback):
        given += block.shape[1]
        if number % 17 == 3:
            rest, _ = _play(generator, num_samples=2000, on_trap=on_trap, origin=playback.snapshot())
            end = min(given + 2000, NUM)
            assert np.array_equal(rest[:, : end - given], whole[on_trap][:, given:end])


def test_after_a_prompt_too(generator: Generator) -> None:
    prompts = tuple(
        Prompt.of_samples(np.random.default_rng(i).normal(0, 4000, 900 + i).astype(np.int16))
        for i in range(3)
    )
    both, _ = _play(generator, prompts=prompts, num_samples=3000)
    first, playback = _play(generator, prompts=prompts, num_samples=1234)
    second, _ = _play(generator, origin=playback.snapshot(), num_samples=3000 - 1234)
    assert np.array_equal(np.concatenate([first, second], axis=1), both)


def test_one_state_forks_into_many_streams(generator: Generator, whole: dict[str, np.ndarray]) -> None:
    """The first goes on; the others differ, but only from the next frame on: what was heard is their past."""
    _, playback = _play(generator, num_samples=4003, streams=(0,), temperature=CURVES[:1], on_trap="off")
    state = playback.snapshot()
    many, _ = _play(
        generator,
        origin=state,
        num_samples=2000,
        streams=tuple(range(5)),
        temperature=CURVES[:1],
        on_trap="off",
    )
    assert np.array_equal(many[0], whole["off"][0, 4003:6003])
    assert (many[:, :5] == many[0, :5]).all()  # up to the frame's end at 4008
    for other in range(1, 5):
        assert (many[other] != many[0]).mean() > 0.5
    reseeded, _ = _play(
        generator, origin=state, num_samples=2000, streams=(0,), seed=2, temperature=CURVES[:1], on_trap="off"
    )
    assert (reseeded[0] != many[0]).mean() > 0.5


def test_streams_of_a_state_are_dealt_out_in_turn_or_as_asked(
    generator: Generator, whole: dict[str, np.ndarray]
) -> None:
    _, playback = _play(generator, num_samples=4000, on_trap="off")
    state = playback.snapshot()
    request = {"origin": state, "num_samples": 800, "on_trap": "off", "temperature": CURVES[1:2]}
    again, _ = _play(generator, **request, streams=(1,), rows=(1,))
    assert np.array_equal(again[0], whole["off"][1, 4000:4800])
    turns, _ = _play(generator, **request, streams=(9, 1, 9, 9, 1))
    assert np.array_equal(turns[1], again[0])
    assert np.array_equal(turns[4], _play(generator, **request, streams=(1,), rows=(1,))[0][0])
    with pytest.raises(UserError, match="holds 3 streams"):
        _play(generator, **request, streams=(0,), rows=(3,))


def test_the_state_of_another_model_is_refused(generator: Generator) -> None:
    _, playback = _play(generator, num_samples=100)
    other = replace(playback.snapshot(), weights="0" * 64)
    with pytest.raises(UserError, match="belongs to another model"):
        _play(generator, origin=other)
    with pytest.raises(UserError, match="exclude each other"):
        _play(generator, origin=other, prompts=(Prompt.of_samples(np.zeros(10, np.int16)),))


def test_two_playbacks_of_one_generator_do_not_disturb_each_other(generator: Generator) -> None:
    def request(stream: int) -> Request:
        return Request(3000, streams=(stream,), on_trap="off")

    apart = [np.concatenate(list(generator.stream(request(i))), axis=1) for i in range(2)]
    pairs = zip(generator.stream(request(0)), generator.stream(request(1)), strict=True)
    for one, together in zip(apart, zip(*pairs, strict=True), strict=True):
        assert np.array_equal(np.concatenate(together, axis=1), one)


# -- traps ----------------------------------------------------------------------------------------------


def _traps(generator: Generator, audio: np.ndarray) -> int:
    """How often a guard that hears the finished audio reports a trap."""
    guard = Guard(generator.expected, RATE, HOP)
    hops = audio[: len(audio) // HOP * HOP].reshape(-1, HOP)
    return sum(guard.hear(hop) is not None for hop in hops)


def test_a_warning_changes_nothing(generator: Generator, whole: dict[str, np.ndarray]) -> None:
    assert np.array_equal(whole["warn"], whole["off"])
    _, playback = _play(generator, on_trap="warn")
    for stream in range(3):
        mine = [event for event in playback.events if event.stream == stream]
        assert len(mine) == _traps(generator, whole["warn"][stream])
    event = playback.events[0]
    assert (event.kind, event.action) == ("noise", "warned")
    assert 0 <= event.seconds < event.until <= 9
    assert event.describe().startswith(f"stream {event.stream} at {event.seconds:.1f} s: noise for ")
    json.dumps(event.to_dict())


def test_a_cooled_stream_has_a_lower_temperature_for_a_while(
    generator: Generator, whole: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[np.ndarray] = []
    advance = generator.engine.advance

    def spy(draws: DrawArrays) -> torch.Tensor:
        used.append(draws.temperature)
        return advance(draws)

    monkeypatch.setattr(generator.engine, "advance", spy)
    cooled, playback = _play(generator, on_trap="cool", temperature=(1.0,))
    temperature = np.concatenate(used, axis=1)[:, :NUM]
    expected = np.ones_like(temperature)
    for event in playback.events:
        assert event.kind == "noise"
        start = round(event.until * RATE)
        expected[event.stream, start : start + 2 * RATE] = FACTORS["noise"]
    assert np.array_equal(temperature, expected)
    first = min(round(event.until * RATE) for event in playback.events)
    plain, _ = _play(generator, on_trap="off", temperature=(1.0,))
    assert np.array_equal(cooled[:, :first], plain[:, :first])
    assert not np.array_equal(cooled, plain)


def test_a_rewound_stream_is_out_of_its_traps(generator: Generator, whole: dict[str, np.ndarray]) -> None:
    rewound, playback = _play(generator, on_trap="rewind")
    actions = [event.action for event in playback.events]
    in_vain = sum(action.startswith("let go on") for action in actions)
    assert sum(action.startswith("rewound") for action in actions) > in_vain
    before, after = (sum(_traps(generator, row) for row in rows) for rows in (whole["warn"], rewound))
    assert after <= in_vain
    assert after < before
    first = min(event.seconds for event in playback.events)
    same = round(first * RATE) - 4 * RATE
    assert np.array_equal(rewound[:, : max(same, 0)], whole["off"][:, : max(same, 0)])
    assert not np.array_equal(rewound, whole["off"])


def test_where_all_is_a_trap_it_still_comes_to_an_end(checkpoint: Checkpoint) -> None:
    generator = Generator(checkpoint)
    generator.expected = replace(generator.expected, level=60.0)  # all is silence against that
    audio, playback = _play(generator, on_trap="rewind")
    assert audio.shape == (3, NUM)
    actions = [event.action for event in playback.events if event.stream == 0]
    assert "let go on after 6 attempts to rewind" in actions
    assert sum(action.startswith("rewound") for action in actions) <= 12


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [_slow(0.02), 0.25, _slow(2.0)])
def test_where_all_is_a_trap_blocks_and_cuts_change_nothing_either(
    checkpoint: Checkpoint, blocks: float
) -> None:
    generator = Generator(checkpoint)
    generator.expected = replace(generator.expected, level=60.0)
    whole, _ = _play(generator, on_trap="rewind")
    assert np.array_equal(_play(generator, blocks, on_trap="rewind")[0], whole)
    first, playback = _play(generator, blocks, on_trap="rewind", num_samples=17_333)
    second, _ = _play(generator, on_trap="rewind", num_samples=NUM - 17_333, origin=playback.snapshot())
    assert np.array_equal(np.concatenate([first, second], axis=1), whole)


class _Script:
    """A guard that reports traps by the time alone."""

    def __init__(self, traps: dict[int, Trap]) -> None:
        self.traps, self.position = traps, 0

    def copy(self) -> _Script:
        other = _Script(self.traps)
        other.position = self.position
        return other

    def hear(self, samples: np.ndarray) -> Trap | None:
        self.position += len(samples)
        return self.traps.get(self.position // HOP)

    def export_state(self) -> dict[str, np.ndarray]:
        return {"position": np.array([self.position])}


@pytest.mark.slow
def test_traps_that_come_again_whatever_is_done_do_not_keep_a_stream_for_ever(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise, and soon after it silence: going back from the second leads into the first again."""
    traps = {
        **{hop: Trap("noise", (hop - 6) * HOP, hop * HOP, "") for hop in range(16, 21)},
        **{hop: Trap("silence", (hop - 9) * HOP, hop * HOP, "") for hop in range(29, 40)},
    }
    monkeypatch.setattr(Playback, "_new_guard", lambda self, start: _Script(traps))
    audio, playback = _play(generator, on_trap="rewind", num_samples=15 * RATE)
    assert audio.shape == (3, 15 * RATE)
    assert len(playback.events) <= 3 * 7 * len(traps)  # six attempts each, and let go


@pytest.mark.parametrize(
    ("before", "cut"),
    [
        (before, cut) if row == column else _slow(before, cut)
        for row, before in enumerate(get_args(OnTrap))
        for column, cut in enumerate((HOP - 1, HOP, HOP + 1, 8 * HOP - 4))
    ],
)
def test_a_state_may_be_taken_up_with_rewinding(generator: Generator, before: str, cut: int) -> None:
    _, playback = _play(generator, on_trap=before, num_samples=cut)
    audio, after = _play(generator, on_trap="rewind", origin=playback.snapshot())
    assert audio.shape == (3, NUM)
    assert after.events


@pytest.mark.parametrize("on_trap", ["cool", "rewind"])
def test_what_was_only_warned_of_before_is_acted_on(checkpoint: Checkpoint, on_trap: str) -> None:
    """A stream that got stuck overnight, taken up by somebody who wants it out of there."""
    generator = Generator(checkpoint)
    generator.expected = replace(generator.expected, level=60.0)
    _, playback = _play(generator, on_trap="warn", num_samples=4 * RATE)
    assert len(playback.events) == 3
    _, after = _play(generator, on_trap=on_trap, num_samples=4 * RATE, origin=playback.snapshot())
    assert {event.stream for event in after.events} == {0, 1, 2}


def test_a_step_back_is_to_before_the_trap_but_not_too_far() -> None:
    times = [100, 200, 300, 400]
    assert latest(times, 250, 0) == 1
    assert latest(times, 200, 0) == 1
    assert latest(times, 50, 0) == 0
    assert latest(times, 50, 150) == 1
    assert latest(times, 999, 350) == 3
    assert latest(times, 50, 401) is None


def test_a_block_that_was_lost_comes_again(generator: Generator, on_trap: str) -> None:
    playback = generator.stream(Request(None, streams=(0, 1, 2), seed=1, temperature=CURVES, on_trap=on_trap))  # type: ignore[arg-type]
    for _ in range(13):
        lost = next(playback)
    again, _ = _play(generator, num_samples=lost.shape[1], origin=playback.snapshot(False), on_trap=on_trap)
    assert np.array_equal(again, lost)
    expected = next(playback)
    after, _ = _play(generator, num_samples=400, origin=generator_state(generator, on_trap), on_trap=on_trap)
    assert np.array_equal(after, expected[:, :400])


def generator_state(generator: Generator, on_trap: str) -> Snapshot:
    """After thirteen blocks."""
    playback = generator.stream(Request(None, streams=(0, 1, 2), seed=1, temperature=CURVES, on_trap=on_trap))  # type: ignore[arg-type]
    for _ in range(13):
        next(playback)
    return playback.snapshot()


def test_forks_of_forks_within_a_frame_keep_all_that_was_heard(generator: Generator) -> None:
    """Each takes over at the next beginning of a frame; what was given out before stays their past."""
    first, playback = _play(generator, num_samples=4003, on_trap="off")
    second, fork = _play(generator, num_samples=2, seed=2, origin=playback.snapshot(), on_trap="off")
    third, _ = _play(generator, num_samples=1000, seed=3, origin=fork.snapshot(), on_trap="off")
    whole, _ = _play(generator, num_samples=4008, on_trap="off")
    assert np.array_equal(np.concatenate([first, second, third[:, :3]], axis=1), whole)
    direct, _ = _play(generator, num_samples=1002, seed=3, origin=playback.snapshot(), on_trap="off")
    assert np.array_equal(third, direct[:, 2:])


def test_blocks_are_of_one_length(generator: Generator, on_trap: str) -> None:
    playback = generator.stream(Request(NUM, on_trap=on_trap), 0.7)  # type: ignore[arg-type]
    lengths = [block.shape[1] for block in playback]
    assert lengths == [2800] * (NUM // 2800) + [NUM % 2800]


def test_a_prompt_for_all_is_heard_once(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Prompt.of_samples(np.zeros(500, np.int16))
    heard: list[Prompt] = []
    hear = Generator.hear
    monkeypatch.setattr(
        Generator, "hear", lambda self, prompt, *rest: (heard.append(prompt), hear(self, prompt, *rest))[1]
    )
    _play(generator, prompts=(prompt, prompt, prompt), num_samples=100)
    assert heard == [prompt]


def test_threads_may_share_a_generator(generator: Generator) -> None:
    def play(stream: int) -> np.ndarray:
        return _play(
            generator, 0.01, num_samples=6000, streams=(stream,), temperature=CURVES[1:2], on_trap="off"
        )[0]

    apart = [play(stream) for stream in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(play, range(3)))
    assert all(map(np.array_equal, apart, together))


@pytest.mark.slow
def test_what_is_kept_does_not_grow(generator: Generator) -> None:
    playback = generator.stream(Request(None, streams=(0, 1), temperature=(1.0,), on_trap="rewind"))
    sizes = []
    for number, _ in enumerate(playback):
        sizes.append(len(playback._timeline.moments) + playback._timeline.codes.shape[1] // HOP)
        if number == 200:
            break
    assert max(sizes) <= 2 * 20


# -- snapshots ------------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(generator: Generator) -> Snapshot:
    return _play(generator, num_samples=5003, on_trap="rewind")[1].snapshot()


def test_a_saved_snapshot_is_all_there(snapshot: Snapshot, tmp_path: Path) -> None:
    snapshot.save(tmp_path / "new" / "x.state")
    loaded = Snapshot.load(tmp_path / "new" / "x.state")
    for field in (
        "weights",
        "engine",
        "dtype",
        "on_trap",
        "sample_rate",
        "time",
        "skip",
        "draws",
        "earlier",
        "reactions",
    ):
        assert getattr(loaded, field) == getattr(snapshot, field)
    for one, other in zip(loaded.streams, snapshot.streams, strict=True):
        assert _equal(one.engine, other.engine)
        assert all(np.array_equal(one.guard[name], other.guard[name]) for name in other.guard)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.state"]
    with safetensors.safe_open(tmp_path / "new" / "x.state", "pt") as file:
        assert "0.history" in file.keys()  # noqa: SIM118


def test_a_snapshot_is_read_where_files_cannot_be_mapped(
    snapshot: Snapshot, tmp_path: Path, no_mmap: None
) -> None:
    snapshot.save(tmp_path / "x.state")
    loaded = Snapshot.load(tmp_path / "x.state")
    assert loaded.draws == snapshot.draws
    assert _equal(loaded.streams[0].engine, snapshot.streams[0].engine)


def _equal(one: EngineState, other: EngineState) -> bool:
    return bool(
        (one.network.history == other.network.history).all()
        and all(torch.equal(a, b) for a, b in zip(one.network.rnn, other.network.rnn, strict=True))
        and torch.equal(one.position, other.position)
    )


def _damages(content: bytes, folder: Path) -> Iterator[bytes]:
    yield b""
    yield content[: len(content) // 2]
    yield content[:-1]
    yield b"\xff" * 100 + content[100:]
    safetensors.torch.save_file({"x": torch.zeros(3)}, folder / "other")
    yield (folder / "other").read_bytes()


def test_a_damaged_snapshot_is_one_line(snapshot: Snapshot, tmp_path: Path) -> None:
    file = tmp_path / "x.state"
    snapshot.save(file)
    for content in list(_damages(file.read_bytes(), tmp_path)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"x.state: damaged, or not a state"):
            Snapshot.load(file)
    with pytest.raises(UserError, match="no such file"):
        Snapshot.load(tmp_path / "missing")
    with pytest.raises(UserError, match="cannot write the state"):
        snapshot.save(file / "below-a-file")


@pytest.mark.parametrize(
    "bad",
    [
        {"num_samples": 0},
        {"streams": ()},
        {"seed": -1},
        {"top_k": -1},
        {"top_p": 0.0},
        {"temperature": (1, 2)},
        {"on_trap": "panic"},
    ],
)
def test_impossible_requests_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Request(**{"num_samples": 100, "streams": (0, 1, 2), **bad})


def test_what_several_streams_hear_is_heard_once(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(5).integers(-9000, 9000, 2000).astype(np.int16)
    one, other = Prompt.of_samples(x), Prompt.of_samples(x[:500])
    alone = [
        _play(generator, num_samples=400, streams=(7,), temperature=CURVES[1:2], prompts=(prompt,))[0][0]
        for prompt in (one, other)
    ]
    heard = []
    hear = Generator.hear

    def counted(self: Generator, prompt: Prompt, *others: Any) -> EngineState:
        heard.append(prompt)
        return hear(self, prompt, *others)

    monkeypatch.setattr(Generator, "hear", counted)
    prompts = (one, other, one, other)
    both, _ = _play(
        generator, num_samples=400, streams=(7, 7, 7, 7), temperature=CURVES[1:2] * 4, prompts=prompts
    )
    assert heard == [one, other]
    for stream, expected in zip(both, [*alone, *alone], strict=True):
        np.testing.assert_array_equal(stream, expected)
