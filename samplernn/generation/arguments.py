"""Options of the command line and arguments of functions, made of the fields of `Options` and `Output`."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any, TypeVar

Returned = TypeVar("Returned")

_FIRST = ["out", "duration", "num"]
"""Arguments that come before the others in calls."""


def option_fields(*kinds: type, without: Sequence[str] = ()) -> list[tuple[Field[Any], str]]:
    """Fields of `Options` and `Output`, each with its help text, in the order of arguments."""
    found = [
        (option, docs[option.name])
        for kind in kinds
        for docs in [_field_docs(kind)]
        for option in fields(kind)
        if option.name not in without
    ]
    return sorted(found, key=lambda entry: [entry[0].name != name for name in _FIRST])


def flag_of(option: Field[Any]) -> str:
    """What the option is called on the command line."""
    flag: str = option.metadata.get("flag", f"--{option.name.replace('_', '-')}")
    return flag


def shown_default(option: Field[Any]) -> str:
    """The default as a person writes it; empty: none, or the help text says it."""
    default = option.default[0] if isinstance(option.default, tuple) else option.default
    if default is None or default is False:
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def add_options(
    parser: ArgumentParser, *kinds: type, without: Sequence[str] = (), duration: str | None = None
) -> None:
    """Give a parser an option for each field; what is not given is absent from the result.

    Args:
        parser: with ``argument_default=argparse.SUPPRESS``.
        kinds: `Options`, `Output`.
        without: names of fields that are no option of this command.
        duration: its default in words, where it is another one.
    """
    groups = {name: parser.add_argument_group(name) for name in ("what", "states", "how", "output")}
    for option, text in option_fields(*kinds, without=without):
        argument = {key: value for key, value in option.metadata.items() if key not in ("group", "flag")}
        shown = duration if duration and option.name == "duration" else shown_default(option)
        if option.default is False:
            argument["action"] = "store_true"
        elif isinstance(option.default, int | float):
            argument["type"] = type(option.default)
        group = groups[option.metadata.get("group", "what")]
        help_text = f"{text.removesuffix('.')} (default: {shown})" if shown else text.removesuffix(".")
        group.add_argument(flag_of(option), dest=option.name, help=help_text, **argument)


def takes_options(
    *kinds: type, without: Sequence[str] = ()
) -> Callable[[Callable[..., Returned]], Callable[..., Returned]]:
    """Decorate a function that ends in ``**options``: its signature and docstring then list the fields.

    The function gets what was given alone; None counts as not given.
    """
    options = option_fields(*kinds, without=without)

    def decorated(function: Callable[..., Returned]) -> Callable[..., Returned]:
        *own, _ = inspect.signature(function).parameters.values()
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        arguments = [
            inspect.Parameter(option.name, kind, default=option.default, annotation=option.type)
            for option, _ in options
        ]
        needed = [parameter for parameter in own if parameter.default is parameter.empty]
        others = [parameter for parameter in own if parameter.default is not parameter.empty]
        signature = inspect.signature(function).replace(parameters=[*needed, *arguments, *others])

        @functools.wraps(function)
        def call(*values: Any, **named: Any) -> Returned:
            given = signature.bind(*values, **named).arguments
            return function(**{name: value for name, value in given.items() if value is not None})

        texts = "".join(f"\n    {option.name}: {text}" for option, text in options)
        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:{texts}\n"
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorated


def _field_docs(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass and of those that it extends, on one line."""
    found = {}
    for each in reversed(kind.__mro__[:-1]):
        (definition,) = ast.parse(inspect.getsource(each)).body
        assert isinstance(definition, ast.ClassDef)
        for entry, below in itertools.pairwise(definition.body):
            if isinstance(entry, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[ast.unparse(entry.target)] = " ".join(ast.literal_eval(below.value).split())
    return found
