"""samplernn: SampleRNN (Mehri et al., 2017) for folders of audio. Read `samplernn/model/network.py` first.

The same things that the command line does, as functions::

    import samplernn

    outcome = samplernn.train("my-audio", name="first")
    checkpoint = samplernn.load(outcome.folder)
    print(samplernn.evaluate(checkpoint, "my-audio").bits_per_sample)
    for block in samplernn.stream(checkpoint, duration=10, num=2, seed=1):
        ...  # int16 [2, about 1600]

They are imported when first used, so `import samplernn` is instant.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("samplernn")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_PUBLIC = {
    "Config": "samplernn.config:Config",
    "UserError": "samplernn.config:UserError",
    "examine": "samplernn.insight.doctor:examine",
    "train": "samplernn.training.run:start",
    "resume": "samplernn.training.run:resume_folder",
    "load": "samplernn.model.checkpoint:load",
    "export": "samplernn.model.checkpoint:export",
    "stream": "samplernn.generation.stream:stream",
    "generate": "samplernn.generation.files:generate",
    "evaluate": "samplernn.insight.evaluate:evaluate",
    "activations": "samplernn.insight.activations:activations",
    "gradients": "samplernn.insight.gradients:gradients",
    "report": "samplernn.insight.report:report",
    "audition": "samplernn.insight.audition:audition",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'samplernn' has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)
