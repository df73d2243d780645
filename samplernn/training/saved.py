"""What a checkpoint must hold for a run to be continued from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samplernn.config import Config, UserError, brief, checked
from samplernn.model.checkpoint import ENTRY
from samplernn.model.entry import Shape, read_entry, require_shapes, shapes_of
from samplernn.model.network import SampleRNN
from samplernn.training.module import STATE

_OF_LIGHTNING: dict[str, Any] = {
    "global_step": int,
    "epoch": int,
    "pytorch-lightning_version": str,
    "loops": dict[str, Any],
    "optimizer_states": list[dict[str, Any]],
    "lr_schedulers": list[dict[str, Any]],
}
_OF_LANES: dict[str, Any] = {
    "processes": int,
    "loader": dict[str, int],
    "seconds": float,
    "validation_bits": float,
    "best_bits": float,
    "validations_since_best": int,
    "gradients": dict[str, Any],
}


def require_resumable(saved: dict[str, Any], config: Config, source: Path) -> None:
    """Check that a run can go on from a checkpoint: that it is one of the run's, and whole.

    Args:
        saved: all that the file holds.
        config: of the run.
        source: the file, for messages.

    Raises:
        UserError: something is missing, of another type, or belongs to another model.
    """
    for part, table, kinds in (("", saved, _OF_LIGHTNING), (f"{STATE}.", saved.get(STATE), _OF_LANES)):
        if not isinstance(table, dict):
            raise UserError(f"{source}: {part.rstrip('.')} must be a table, got {brief(table)}")
        for name, kind in kinds.items():
            if name not in table:
                raise UserError(f"{source}: {part}{name} is missing")
            checked(table[name], kind, f"{source}: {part}{name}")
    if ENTRY not in saved or read_entry(saved[ENTRY], source).config.model != config.model:
        raise UserError(f"{source}: belongs to another model than the run's config.yaml describes")
    state, expected = saved[STATE], config.model
    for tensors in (saved.get("state_dict"), state.get("weights", saved.get("state_dict"))):
        known = {
            name.removeprefix("model."): shape
            for name, shape in shapes_of(tensors, source).items()
            if name.startswith("model.")
        }
        require_shapes(known, expected, source)
    if not isinstance(state.get("unread"), Tensor):
        raise UserError(f"{source}: {STATE}.unread must be a tensor, got {brief(state.get('unread'))}")
    with torch.device("meta"):
        network = SampleRNN(expected)
        fresh = network.initial_state(config.data.lanes)
    if (lanes := state.get("lanes")) is not None:
        listed = checked(lanes, list[Any], f"{source}: {STATE}.lanes")
        found = shapes_of({f"lanes.{index}": tensor for index, tensor in enumerate(listed)}, source)
        if list(found.values()) != [tuple(tensor.shape) for tensor in (fresh.history, *fresh.rnn)]:
            raise UserError(f"{source}: {STATE}.lanes are those of another model or data.batch_size")
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    _require_moments(saved["optimizer_states"], shapes, source)


def _require_moments(states: list[dict[str, Any]], shapes: list[Shape], source: Path) -> None:
    """Adam's averages must have the shapes of the parameters."""
    averages = states[0].get("state") if len(states) == 1 else None
    if not isinstance(averages, dict):
        raise UserError(f"{source}: optimizer_states must hold those of one optimizer")
    for index, values in averages.items():
        fits = type(index) is int and 0 <= index < len(shapes) and isinstance(values, dict)
        for name in ("exp_avg", "exp_avg_sq"):
            value = values.get(name) if fits else None
            if not isinstance(value, Tensor) or tuple(value.shape) != shapes[index]:
                raise UserError(
                    f"{source}: optimizer_states are those of another model ({name} {index!r:.40})"
                )
