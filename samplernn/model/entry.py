"""What a checkpoint says, checked before anything is made of it: the file may be a stranger's, or damaged.

A checkpoint is an entry of plain values (`Entry`) and tensors. The entry is compared with the types and
bounds of its dataclasses. From the configuration follow names and shapes of all weights, which are computed
without memory for a single one; only tensors that have them are read. What passes can be built and played.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplernn.config import Config, ModelConfig, UserError, brief, checked, from_dict
from samplernn.model.baselines import PairCounts
from samplernn.model.network import SampleRNN

FORMAT = 1
"""Of what is written; a higher one is a newer samplernn's."""

Shape = tuple[int, ...]
_GAINS = (0.1, 1e5)
"""The loudest sample of a corpus becomes 0.89; 16 bits leave a gain of 29 204 at most."""
_MOST_PAIRS = 2**40
"""Of one kind, in months of audio; sums of a million kinds still fit into 64 bits."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MOST_PICKLED = 256 * 2**20
"""Bytes of plain values in a Lightning checkpoint; a list of a million files takes 170 MB."""


@dataclass(frozen=True)
class Entry:
    """The plain values of a checkpoint."""

    config: Config
    gain: float
    split: dict[str, list[list[Any]]]
    """Part -> spans, each a path, the SHA-256 of the file's samples, first and last sample."""
    results: dict[str, Any]
    """Facts about the training."""


def read_entry(values: Any, source: Path) -> Entry:
    """Plain values as an entry.

    Args:
        values: whatever was read; further keys than those of `Entry` do not matter.
        source: the file, for messages.

    Raises:
        UserError: a value is missing, of another type or out of range; or a newer samplernn wrote it.
    """
    try:
        table = checked(values, dict[str, Any], "what it says")
        _require_format(table)
        for name in ("config", "gain", "split", "results"):
            if name not in table:
                raise UserError(f"{name} is missing")
        config = _config(table["config"])
        return Entry(config, read_gain(table["gain"]), read_split(table["split"]), _results(table["results"]))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _require_format(table: dict[str, Any]) -> None:
    if "format" not in table:
        raise UserError("format is missing, so it is damaged or no model of samplernn")
    if checked(table["format"], int, "format") > FORMAT:
        raise UserError(
            f"written by samplernn {brief(table.get('version'))}, which is newer; update samplernn"
        )
    if table["format"] < 1:
        raise UserError(f"format must be at least 1, got {table['format']}")


def _config(values: Any) -> Config:
    config: Config = from_dict(Config, checked(values, dict[str, Any], "config"))
    return config


def read_gain(value: Any) -> float:
    """The gain of a corpus. Raises UserError if it cannot be one."""
    gain: float = checked(value, float, "gain")
    if not _GAINS[0] <= gain <= _GAINS[1]:
        raise UserError(f"gain must be from {_GAINS[0]:g} to {_GAINS[1]:g}, got {gain:g}")
    return gain


def read_split(values: Any) -> dict[str, list[list[Any]]]:
    """Which audio was for what: see `Entry`. Raises UserError if it does not say."""
    found = checked(values, dict[str, list[list[Any]]], "split")
    for part, spans in found.items():
        if part not in ("train", "validation", "test"):
            raise UserError(f"split has a part {brief(part)}; there are: train, validation, test")
        for span in spans:
            are_typed = len(span) == 4 and all(
                type(value) is kind for value, kind in zip(span, (str, str, int, int), strict=True)
            )
            if not are_typed or not 0 <= span[2] < span[3] < 2**62:
                raise UserError(
                    f"split.{part} must hold [path, SHA-256, first sample, last sample], got {brief(span)}"
                )
    for part in ("validation", "test"):
        if part not in found:
            raise UserError(f"split.{part} is missing")
    return dict(found)


def _results(values: Any) -> dict[str, Any]:
    found = checked(values, dict[str, Any], "results")
    for name, value in found.items():
        if value is not None and not isinstance(value, bool | int | float | str):
            raise UserError(f"results.{name[:40]} must be a number or text, got {brief(value)}")
    if "step" in found and not 0 <= checked(found["step"], int, "results.step") < 2**62:
        raise UserError(f"results.step must not be negative, got {found['step']}")
    if found.get("validation_bits_per_sample") is not None:
        checked(found["validation_bits_per_sample"], float, "results.validation_bits_per_sample")
    seconds = found.get("train_seconds")
    if seconds is not None and not 0 <= checked(seconds, float, "results.train_seconds") < math.inf:
        raise UserError(f"results.train_seconds must be finite and not negative, got {seconds}")
    return dict(found)


@lru_cache(maxsize=8)
def shapes(config: ModelConfig) -> dict[str, Shape]:
    """Names and shapes of all tensors of a network, computed without making one."""
    with torch.device("meta"):
        network = SampleRNN(config)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def shapes_of(tensors: Any, source: Path | None) -> dict[str, Shape]:
    """Names and shapes of what a file holds as its weights.

    Raises:
        UserError: something there is no plain tensor in memory.
    """
    found = {}
    for name, value in checked(tensors, dict[str, Any], f"{source}: state_dict").items():
        is_plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not is_plain or value.is_nested:
            raise UserError(f"{source}: {brief(name)} must be a plain tensor, got {type(value).__name__}")
        found[name] = tuple(value.shape)
    return found


def require_shapes(found: Mapping[str, Shape], config: ModelConfig, source: Path | None) -> None:
    """Compare the tensors of a file with those of the network that its configuration describes.

    Args:
        found: shapes by name.
        config: of the network.
        source: the file, for messages.

    Raises:
        UserError: one is missing, too many or of another shape.
    """
    problem = _misfit(found, shapes(config))
    if problem:
        raise UserError(f"{source}: weights do not fit the model that config describes: {problem}")


def _misfit(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str | None:
    for name, shape in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != shape:
            return f"{name} has shape {brief(list(found[name]))}, not {list(shape)}"
    for name in found:
        if name not in expected:
            return f"there is no place for {brief(name)}"
    return None


def require_values(weights: Mapping[str, Tensor], source: Path | None) -> None:
    """Weights must be numbers to calculate with.

    Args:
        weights: tensors by name; their shapes are those of the network.
        source: the file, for messages.

    Raises:
        UserError: another dtype, several of them, or values that are not finite.
    """
    kinds = {value.dtype for value in weights.values()}
    if len(kinds) != 1 or not kinds <= set(_DTYPES):
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise UserError(f"{source}: weights must all be float32, or all of another float type, got {named}")
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise UserError(f"{source}: its weights are not finite, training had diverged; use an earlier one")


def read_counts(counts: Any, q_levels: int, source: Path) -> PairCounts:
    """Code pairs of the training split, ``[Q, Q]``.

    Args:
        counts: whatever was read in their place.
        q_levels: Q.
        source: the file, for messages.

    Raises:
        UserError: another type, shape or size, or negative.
    """
    wanted = f"{source}: pair_counts must be whole numbers [{q_levels}, {q_levels}]"
    shape = shapes_of({"pair_counts": counts}, source)["pair_counts"]
    if counts.dtype not in (torch.int64, torch.int32) or shape != (q_levels, q_levels):
        raise UserError(f"{wanted}, got {str(counts.dtype).removeprefix('torch.')} {list(shape)}")
    found: PairCounts = counts.numpy().astype(np.int64)
    if found.min() < 0 or found.max() > _MOST_PAIRS:
        raise UserError(f"{wanted} from 0 to 2**40, got {found.min()} to {found.max()}")
    return found


def require_archive(file: Path) -> None:
    """A Lightning checkpoint must be a plain ZIP archive that takes no more memory than the file is long.

    Raises:
        UserError: it is none, or holds what ours never do.
    """
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unusual = [
                entry.filename
                for entry in entries
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size
            ]
            pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if unusual or len(pickles) != 1 or pickles[0].file_size > _MOST_PICKLED:
                raise UserError(f"{file}: not a checkpoint of samplernn: an archive of another kind")
            pickled = archive.read(pickles[0])
    except UserError:
        raise
    except Exception as error:  # zipfile meets damage with whatever happens to fail
        raise UserError(f"{file}: damaged, or not a checkpoint of samplernn") from error
    if b"\nbytearray\n" in pickled:  # the one class that PyTorch allows and that makes much of a number
        raise UserError(f"{file}: not a checkpoint of samplernn: it asks for memory")
