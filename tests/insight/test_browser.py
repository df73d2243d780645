"""Reports and auditions as a browser shows them: `make test-browser`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from samplernn.insight.audition import audition
from samplernn.insight.report import report
from tests.insight.browser import Browser, find

pytestmark = pytest.mark.browser

DURATIONS = """Promise.all([...document.querySelectorAll("audio")].map((audio) => new Promise((tell) => {
  if (audio.readyState >= 1) tell(audio.duration);
  audio.onloadedmetadata = () => tell(audio.duration);
  audio.onerror = () => tell(-1);
})))"""
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SEEKS = """(async () => {
  const failures = [];
  for (const audio of document.querySelectorAll("audio"))
    for (const part of [0.02, 0.3, 0.6, 0.97])
      await new Promise((go) => {
        audio.onseeked = go;
        audio.onerror = () => { failures.push(audio.error.message); go(); };
        audio.currentTime = part * audio.duration;
      });
  return failures;
})()"""
UNSEEN = """[...document.images].filter((image) => !image.complete || !image.naturalWidth).length"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests."""
    program = find()
    if program is None:
        pytest.skip("no Chromium or Chrome on this machine; apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(params=["new", "old", "both", "audition", "nothing"])
def document(request: pytest.FixtureRequest, new_run: Path, tmp_path: Path) -> tuple[Path, int]:
    """A page and the number of its players."""
    if request.param == "audition":
        prompt = new_run / "samples" / "prompt0.wav"
        return audition(new_run, [0.8, 1.0], prompt, seeds=2, duration=0.5), 9
    if request.param == "nothing":
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "config.yaml").touch()
        return report(tmp_path / "empty"), 0
    if request.param == "new":
        return report(new_run), 17
    if request.param == "old":
        return report(request.getfixturevalue("old_run")), 6
    long_name = new_run.rename(new_run.parent / ("a-run-with-a-name-" * 8))
    return report([long_name, long_name]), 26


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_a_page_is_whole_at_every_width(
    browser: Browser, document: tuple[Path, int], width: int, scheme: str
) -> None:
    file, players = document
    browser.open(file, width, scheme=scheme)
    durations = browser.evaluate(DURATIONS)
    assert len(durations) == players
    assert all(duration is not None and 0 < duration < 60 for duration in durations)  # None: infinite
    assert browser.evaluate(SEEKS) == []
    assert browser.evaluate(UNSEEN) == 0
    assert browser.evaluate(TOO_WIDE) <= 0
    assert browser.requests == [file.resolve().as_uri()]
    assert browser.complaints == []
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = browser.evaluate("getComputedStyle(document.body).color")
    brightness = [sum(map(int, colour[4:-1].split(", "))) for colour in (paper, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")


def test_one_plays_at_a_time_and_a_click_on_a_spectrogram_goes_there(browser: Browser, old_run: Path) -> None:
    browser.open(report(old_run), 1600)
    browser.evaluate(DURATIONS)
    playing = "[...document.querySelectorAll('audio')].flatMap((audio, i) => audio.paused ? [] : [i])"
    for number in (0, 1):
        browser.evaluate(f"document.querySelectorAll('.view')[{number}].scrollIntoView({{block: 'center'}})")
        browser.evaluate(
            "new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(() => go())))"
        )
        place = browser.evaluate(
            f"(() => {{ const r = document.querySelectorAll('.view')[{number}].getBoundingClientRect();"
            "return [r.left, r.top, r.width]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            browser.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=place[0] + place[2] * 0.1,
                y=place[1] + 20,
                button="none" if kind == "mouseMoved" else "left",
                clickCount=int(kind != "mouseMoved"),
            )
        deadline = time.monotonic() + 1.0
        while browser.evaluate(playing) != [number] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert browser.evaluate(playing) == [number]
    begun = browser.evaluate("document.querySelectorAll('audio')[1].currentTime")
    length = browser.evaluate("document.querySelectorAll('audio')[1].duration")
    assert 0.09 * length <= begun <= 0.6 * length
    assert browser.complaints == []


def test_the_page_runs_no_script_but_its_own(browser: Browser, new_run: Path) -> None:
    """Should something get past the escaping."""
    file = report(new_run)
    planted = "<script>window.planted = 1</script><img src=x onerror='window.planted = 1'>"
    file.write_text(file.read_text("utf-8").replace("<h1>", planted + "<h1>"), "utf-8")
    browser.open(file, 1600)
    assert browser.evaluate("window.planted") is None
    assert browser.complaints != []
