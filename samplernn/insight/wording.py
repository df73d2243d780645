"""Numbers for people to read."""

from __future__ import annotations

import math


def count(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %"


def decibels(amplitude: float) -> str:
    """An amplitude relative to full scale."""
    if amplitude <= 0:
        return "-inf dBFS"
    return f"{round(20 * math.log10(amplitude), 1) + 0.0:.1f} dBFS"  # never -0.0


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def size(num_bytes: float) -> str:
    """MB or GB, of a thousand and a million kilobytes."""
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"


def printable(text: str) -> str:
    """Text with whatever no terminal can show (line breaks, escapes, undecodable bytes) written out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
