"""Plain values and dataclasses: configurations, entries of checkpoints, states and sidecars.

A file that anybody may have written is compared with the dataclass that it becomes: types, missing and
unknown keys here, bounds in the dataclass's own ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from samplernn.messages import UserError, brief, require

_SHOWN_CHARACTERS = 80  # of a name


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain dicts, lists and scalars, ready for YAML, JSON or a checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return {key: plain(value) for key, value in dataclasses.asdict(config).items()}


RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "samples.temperature": ("temperatures", lambda value: [value]),
}
"""What options were called in earlier configurations and checkpoints: the present name, and how the value is
written now. Where both are given, the present one counts."""


def _with_present_names(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The same options under the names that they have now (see `RENAMED`)."""
    present: dict[str, Any] = {}
    for key, value in values.items():
        if f"{where}{key}" not in RENAMED:
            present[key] = value
            continue
        name, converted = RENAMED[f"{where}{key}"]
        if name not in values:
            present[name] = converted(value)
    return present


def from_dict(cls: type[Any], values: dict[str, Any], where: str = "") -> Any:
    """Inverse of `to_dict`. Reads what earlier versions wrote, too.

    Args:
        cls: one of the dataclasses of this module.
        values: nested plain values; missing keys take their defaults.
        where: dotted prefix for error messages.

    Raises:
        UserError: a key that `cls` does not know, or a value of the wrong type.
    """
    require(isinstance(values, dict), f"{where.rstrip('.') or 'it'} must be a table, got {brief(values)}")
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in _with_present_names(values, where).items():
        if key not in hints:
            name = " ".join(f"{where}{key}".split())[:_SHOWN_CHARACTERS]
            raise UserError(f"unknown option {name}; known here: {', '.join(sorted(hints))}")
        arguments[key] = checked(value, hints[key], f"{where}{key}")
    for entry in dataclasses.fields(cls):
        is_needed = entry.default is entry.default_factory is dataclasses.MISSING
        require(entry.name in arguments or not is_needed, f"{where}{entry.name} is missing")
    return cls(**arguments)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested options `base` with those in `changes` put in their place; neither is changed."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = merged(inner, value)
        result[key] = value
    return result


def checked(value: Any, hint: Any, name: str) -> Any:
    """`value` as an instance of `hint`.

    Args:
        value: anything that YAML, JSON or a checkpoint can hold.
        hint: one of the kinds of type that dataclasses of plain values use: `bool`, `int`, `float`, `str`,
            `dict`, a dataclass, a `Literal`, ``tuple[X, ...]``, ``list[X]``, ``dict[str, X]``, a union.
        name: of the value, for error messages.

    Raises:
        UserError: it is none.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        require(isinstance(value, dict), f"{name} must hold options of its own, got {brief(value)}")
        return from_dict(typing.cast(type, hint), value, f"{name}.")
    if origin is Literal:
        fits = any(value == known and type(value) is type(known) for known in arguments)
        require(fits, f"{name} must be one of {', '.join(map(str, arguments))}, got {brief(value)}")
        return value
    if origin in (tuple, list):
        require(isinstance(value, list | tuple), f"{name} must be a list, got {brief(value)}")
        return origin(checked(item, arguments[0], name) for item in value)
    if origin is dict:
        require(
            isinstance(value, dict) and all(isinstance(key, str) for key in value),
            f"{name} must be a table, got {brief(value)}",
        )
        return {
            key: checked(item, arguments[1], f"{name}.{key}"[:_SHOWN_CHARACTERS])
            for key, item in value.items()
        }
    return _one_of(value, arguments if origin in (types.UnionType, typing.Union) else (hint,), name)


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    """`value` as an instance of one of the types of a union, dataclasses and literals among them."""
    if value is None and type(None) in kinds:
        return None
    tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if tables and isinstance(value, dict):
        return checked(value, tables[0], name)
    literals = [kind for kind in kinds if typing.get_origin(kind) is Literal]
    words = tuple(word for literal in literals for word in typing.get_args(literal))
    if isinstance(value, str) and value in words:
        return value
    wanted = tuple(kind for kind in kinds if kind not in (type(None), *literals, *tables))
    if float in wanted and isinstance(value, int | str) and not isinstance(value, bool):
        if isinstance(value, str) and str in wanted:
            return value
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except (ValueError, OverflowError):
            pass
    fits = isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))
    allowed = " or ".join([*(kind.__name__ for kind in wanted), *(["table"] if tables else []), *words])
    require(fits, f"{name} must be of type {allowed}, got {brief(value)}")
    is_number = not isinstance(value, int) or -(2**64) < value < 2**64  # larger ones cannot even be printed
    require(is_number, f"{name} must have at most 64 bits, got {brief(value)}")
    return value
