"""The parts that pages for people are made of: one HTML file that holds everything and asks no network.

Whatever comes from files (names, options, messages) goes through `html`, which escapes it. Should something
get past that, the page's policy lets no script run but our own, and nothing be loaded from elsewhere.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
import re
import shlex
import sys
import wave
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samplernn import plots, storage
from samplernn.config import UserError, one_line

LIMIT = 19_000_000
"""Bytes of the audio and pictures in a page: what can be sent to somebody. The rest of it needs far less
than a megabyte."""
CLIP_SECONDS = 30.0
"""Of a longer recording only the beginning is put into the page."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(value: object) -> Html:
    """Anything as HTML: `Html` as it is, everything else as escaped text on one line."""
    return value if isinstance(value, Html) else Html(escape(one_line(str(value)), quote=True))


def _plain(value: object) -> str:
    """`html` without its tags, for an attribute."""
    return re.sub("<[^>]*>", "", html(value))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts in a row, each through `html`; `between` is HTML."""
    return Html(between.join(html(part) for part in parts))


def page(title: str, *parts: Html) -> str:
    """A whole document.

    Args:
        title: of the window.
        parts: the content of ``<main>``.
    """
    style, script = _resource("page.css"), _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{html(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def save(document: str, file: Path) -> Path:
    """Write a page, whole or not at all.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(file, document)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}; choose another --out") from error
    return file


def _resource(name: str) -> str:
    return (resources.files("samplernn.insight") / name).read_text("utf-8")


# -- words ------------------------------------------------------------------------------------------


def section(title: object, *parts: Html, note: object = "") -> Html:
    """A part of the page with its heading and a line that explains it."""
    said = f'<p class="note">{html(note)}</p>' if note else ""
    return Html(f"<section><h2>{html(title)}</h2>{said}{join(parts)}</section>")


def heading(title: object, aside: object = "") -> Html:
    """A smaller heading with something beside it."""
    return Html(f"<h3>{html(title)} <small>{html(aside)}</small></h3>")


def note(words: object) -> Html:
    """A line that explains."""
    return Html(f'<p class="note">{html(words)}</p>')


def nothing(words: object) -> Html:
    """A line where there is nothing to show."""
    return Html(f'<p class="nothing">{html(words)}</p>')


def badge(words: object, kind: str = "") -> Html:
    """A word or two in a frame; kind: ``good``, ``bad`` or nothing."""
    return Html(f'<span class="badge {kind}">{html(words)}</span>')


def command(words: Iterable[str]) -> Html:
    """Something to type; lines break between its words."""
    typed = (f"<span>{html(shlex.quote(word))}</span>" for word in words)
    return Html(f'<code class="command">{" ".join(typed)}</code>')


def grid(parts: Iterable[object], kind: str = "cards") -> Html:
    """Parts beside each other as far as there is room; kind: ``cards``, ``diagrams`` or ``pair``."""
    return Html(f'<div class="{kind}">{join(parts)}</div>')


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """A row of small figures, each with its name."""
    return Html(
        '<dl class="facts">'
        + "".join(f"<div><dt>{html(name)}</dt><dd>{html(value)}</dd></div>" for name, value in pairs)
        + "</dl>"
    )


def details(title: object, *parts: Html) -> Html:
    """What is shown when somebody asks."""
    return Html(f"<details><summary>{html(title)}</summary>{join(parts)}</details>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table that scrolls inside its own frame where it is too wide; figures are set to the right."""

    def cell(value: object) -> str:
        plain = str(value).replace(",", "").replace(" ", "").lstrip("+-−")
        return f'<td class="n">{html(value)}</td>' if _is_number(plain) else f"<td>{html(value)}</td>"

    head = "".join(f"<th>{html(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return Html(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def options(values: Mapping[str, object]) -> Html:
    """Names and values below each other."""
    rows = "".join(
        f"<div><dt>{html(name)}</dt><dd>{html(value)}</dd></div>" for name, value in values.items()
    )
    return Html(f'<dl class="options">{rows}</dl>')


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# -- sound and pictures -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sound:
    """Something to listen to."""

    audio: NDArray[np.int16]
    """``[T]``."""
    sample_rate: int
    """Hz."""
    mark: float | None = None
    """Seconds after which something else begins: where the prompt ends and the model goes on."""


def clip(
    sound: Sound, title: object, aside: object = "", badges: Iterable[Html] = (), below: str = ""
) -> Html:
    """A recording as a card: what it is, its mel spectrogram, a player.

    Args:
        sound: one sample at least.
        title: what it is.
        aside: more about it.
        badges: what is to be noticed.
        below: HTML under the player.
    """
    whole = len(sound.audio) / sound.sample_rate
    audio = sound.audio[: round(CLIP_SECONDS * sound.sample_rate)]
    seconds = len(audio) / sound.sample_rate
    length = f"first {seconds:.0f} of {whole:.0f} s" if seconds < whole else f"{seconds:.1f} s"
    more = join([part for part in (aside, length) if part], " · ")
    mark = ""
    if sound.mark is not None and 0 < sound.mark < seconds:
        mark = f'<i class="mark" style="left:{100 * sound.mark / seconds:.2f}%"></i>'
    try:
        picture = base64.b64encode(plots.spectrogram_png(audio, sound.sample_rate)).decode()
        image = f'<img alt="mel spectrogram: {_plain(title)}" src="data:image/png;base64,{picture}">'
    except UserError as error:  # the audio can be heard without it
        _say_once(str(error))
        image = ""
    hertz = "".join(
        f'<i class="hertz" style="bottom:{100 * height:.1f}%">{label}</i>'
        for height, label in plots.frequency_marks(sound.sample_rate)
    )
    encoded = base64.b64encode(_wav(audio, sound.sample_rate)).decode()
    return Html(
        f'<figure class="clip"><figcaption><b>{html(title)}</b> <span>{more}</span> {join(badges, " ")}'
        f'</figcaption><div class="view">{image}{hertz}{mark}<i class="head"></i></div>'
        f'<audio controls preload="metadata" src="data:audio/wav;base64,{encoded}"></audio>{below}</figure>'
    )


@functools.cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Room:
    """What a part of a page may still take.

    Args:
        size: bytes.

    Attributes:
        refused: cards that did not fit.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.refused = 0

    def add(self, *cards: Html) -> list[Html]:
        """Those of the cards that fit."""
        added = []
        for card in cards:
            if len(card) <= self.size:
                self.size -= len(card)
                added.append(card)
            else:
                self.refused += 1
        return added


def picture(png: bytes, title: object) -> Html:
    """A PNG picture that somebody else drew, on white."""
    encoded = base64.b64encode(png).decode()
    return Html(
        f'<figure class="picture"><img alt="{_plain(title)}" src="data:image/png;base64,{encoded}"></figure>'
    )


def diagram(
    title: str,
    series: Mapping[str, Mapping[int, float]],
    baselines: Mapping[str, float] | None = None,
    is_log: bool = False,
    with_dots: Collection[str] = (),
) -> Html:
    """Curves over the training step as a picture, see `plots.curves`; nothing if there is nothing to draw."""
    fits = {
        name: {step: y for step, y in points.items() if math.isfinite(y) and (y > 0 or not is_log)}
        for name, points in series.items()
    }
    drawn = {name: points for name, points in fits.items() if points}
    if not drawn:
        return Html("")
    lines = {name: y for name, y in (baselines or {}).items() if math.isfinite(y) and (y > 0 or not is_log)}
    try:
        return picture(plots.png(plots.curves(drawn, title, lines, is_log, with_dots)), title)
    except UserError as error:  # the page can be read without it
        _say_once(str(error))
        return Html("")


def _wav(audio: NDArray[np.int16], sample_rate: int) -> bytes:
    """Every browser plays WAV and can go to any place in it: Chromium's player breaks when it is sent to a
    place in a short FLAC that has no table of places, as those of libsndfile."""
    stored = io.BytesIO()
    with wave.open(stored, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(audio.astype("<i2").tobytes())
    return stored.getvalue()
