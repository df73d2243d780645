"""The parts of pages: nothing gets in unescaped, audio comes out as it went in, and there is an end to it."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from samplernn.config import UserError
from samplernn.insight import page
from samplernn.insight.page import Html, html
from tests.insight.conftest import RATE, sounds

NASTY = "<script>alert('x')</script>\"&\n\u202e"


def test_everything_is_escaped_once() -> None:
    said = html(NASTY)
    assert not set("<>\"'\n\u202e") & set(said)
    assert html(said) == said
    assert html(None) == "None"


def test_every_part_escapes_what_it_is_given(speech: NDArray[np.int16]) -> None:
    sound = page.Sound(speech, RATE)
    parts = [
        page.section(NASTY, note=NASTY),
        page.heading(NASTY, NASTY),
        page.nothing(NASTY),
        page.badge(NASTY),
        page.command([NASTY]),
        page.facts([(NASTY, NASTY)]),
        page.details(NASTY),
        page.options({NASTY: NASTY}),
        page.table([NASTY], [[NASTY, NASTY]]),
        page.clip(sound, NASTY, NASTY),
        page.picture(b"", NASTY),
    ]
    for part in parts:
        assert "alert" in part
        assert "<script" not in part
    document = page.page(NASTY, *parts)
    assert document.count("<script") == 1  # our own
    assert "&lt;script&gt;" in re.findall("<title>(.*)</title>", document)[0]


def test_a_title_with_tags_is_an_attribute_without(speech: NDArray[np.int16]) -> None:
    clip = page.clip(page.Sound(speech, RATE), Html('<i class="chip"></i>a &amp; b'))
    assert 'alt="mel spectrogram: a &amp; b"' in clip
    assert '<b><i class="chip"></i>a &amp; b</b>' in clip


def test_the_policy_knows_our_script_alone_and_no_address() -> None:
    document = page.page("x")
    script = re.findall("<script>(.*)</script>", document, flags=re.S)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in document
    assert "default-src 'none'" in document
    assert "http:" not in document
    assert "https:" not in document


def test_a_player_plays_exactly_the_samples(speech: NDArray[np.int16]) -> None:
    (heard,) = sounds(page.clip(page.Sound(speech, RATE), "x"))
    np.testing.assert_array_equal(heard, speech)


def test_a_spectrogram_is_a_small_picture(speech: NDArray[np.int16]) -> None:
    clip = page.clip(page.Sound(speech, RATE), "x")
    stored = base64.b64decode(re.findall(r"data:image/png;base64,([^\"]+)", clip)[0])
    picture = Image.open(io.BytesIO(stored))
    assert picture.size[1] == 96
    assert picture.size[0] == pytest.approx(200, abs=2)  # one column per 10 ms
    assert len(stored) < 25_000


def test_of_a_long_recording_the_beginning_is_embedded_and_that_is_said() -> None:
    noise = np.random.default_rng(0).integers(-9000, 9000, 40 * RATE).astype(np.int16)
    clip = page.clip(page.Sound(noise, RATE), "x")
    (heard,) = sounds(clip)
    np.testing.assert_array_equal(heard, noise[: 30 * RATE])
    assert "first 30 of 40 s" in clip


def test_the_mark_stands_where_the_prompt_ends(speech: NDArray[np.int16]) -> None:
    assert 'class="mark" style="left:25.00%"' in page.clip(page.Sound(speech, RATE, mark=0.5), "x")
    assert 'class="mark"' not in page.clip(page.Sound(speech, RATE), "x")


def test_room_takes_what_fits_and_counts_the_rest() -> None:
    room = page.Room(10)
    assert room.add(Html("123456"), Html("123456"), Html("1234")) == ["123456", "1234"]
    assert (room.refused, room.size) == (1, 0)


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        page.save("x", tmp_path / "file" / "page.html")
    assert page.save("x", tmp_path / "new" / "page.html").read_text() == "x"


def test_without_a_library_that_draws_the_audio_can_be_heard(
    speech: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> bytes:
        raise UserError("no pictures: matplotlib cannot be loaded (here)")

    monkeypatch.setattr(page.plots, "spectrogram_png", fail)
    clips = [page.clip(page.Sound(speech, RATE), "x") for _ in range(2)]
    assert [len(sounds(clip)) for clip in clips] == [1, 1]
    assert not any("<img" in clip for clip in clips)
    assert capsys.readouterr().err == "no pictures: matplotlib cannot be loaded (here)\n"
