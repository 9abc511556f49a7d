"""What typer reads of a command's function: groups of options one by one, and `--lang`, which every command takes.

A group is a frozen dataclass whose fields are options. A function that asks for `sampling: SamplingOptions` gets one
object; its signature, and so its help, has `--temperature`, `--top-k` and so on.
"""

import inspect
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

from weblab_local.cli.language import Lang
from weblab_local.i18n import n_, use

METAVARS = {str: n_("TEXT"), int: n_("INTEGER"), float: n_("NUMBER"), Path: n_("PATH")}
"""What stands for an option's value in the help, by the value's type."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with a signature for typer: options instead of groups, each with a metavar, and `--lang`.

    What is called with that signature's arguments calls `function` with its groups. TypeError for an option that has
    a type without a metavar.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type[Any]] = {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)
    }
    signature = inspect.Signature([*_parameters(function, hints), _option("lang", Lang, None)])

    @wraps(function)
    def expanded(*args: Any, **kwargs: Any) -> None:
        values = signature.bind(*args, **kwargs).arguments
        if (lang := values.pop("lang", None)) is not None:
            use(lang)
        for name, group in groups.items():
            given = {field.name for field in fields(group)} & values.keys()
            values[name] = group(**{option: values.pop(option) for option in given})
        function(**values)

    expanded.__signature__ = signature  # type: ignore[attr-defined]
    return expanded


def _parameters(function: Callable[..., None], hints: dict[str, Any]) -> Iterator[inspect.Parameter]:
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(hints[name]):
            of_group = get_type_hints(hints[name], include_extras=True)
            for field in fields(hints[name]):
                yield _option(field.name, of_group[field.name], field.default)
        else:
            yield parameter.replace(annotation=_with_metavar(hints[name]))


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_with_metavar(annotation)
    )


def _with_metavar(annotation: Any) -> Any:
    """The annotation, its option with a metavar where it takes a value and has none."""
    if get_origin(annotation) is not Annotated:
        return annotation
    hint, option = get_args(annotation)
    if not isinstance(option, OptionInfo) or option.metavar or hint in (bool, bool | None):
        return annotation
    option = copy(option)
    option.metavar = _metavar(hint)
    return Annotated[hint, option]


def _metavar(hint: Any) -> str:
    """TEXT, INTEGER and so on; the values themselves where they can be listed; a list's is that of what it holds."""
    given = [one for one in get_args(hint) if one is not NoneType]
    if get_origin(hint) is Literal:
        return "|".join(given)
    if given:
        (hint,) = given
        return _metavar(hint)
    if hint not in METAVARS:
        raise TypeError(f"an option of type {hint} has no metavar")
    return METAVARS[hint]
