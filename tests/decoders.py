"""Decoding processes that do something before they open a certain file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LOOP = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
"""As when libsndfile hangs: C code that computes and comes back to Python only after many minutes."""


def code_acting(name: str, action: str) -> str:
    """Python for a decoding process: an action takes place before the file of that name is opened."""
    return f"""
import hashlib, os, signal, sys, time
sys.path[:] = {sys.path!r}
from samplernn.audio import files, io
class Acting(io.Decoder):
    def __init__(self, path, sample_rate):
        if path.name == {name!r}:
            {action}
        super().__init__(path, sample_rate)
files.Decoder = io.Decoder = Acting
"""


def environment_acting(site: Path, name: str, action: str) -> dict[str, str]:
    """The environment of a command in whose decoding processes an action takes place.

    Args:
        site: a folder that is made for it.
        name: the file before whose opening it takes place.
        action: a statement.
    """
    site.mkdir()
    code = (
        f"import sys\nif 'decoding_process' in str(sys.orig_argv):\n    exec({code_acting(name, action)!r})\n"
    )
    (site / "sitecustomize.py").write_text(code)  # Python executes this at the start of every process
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[1])])}
