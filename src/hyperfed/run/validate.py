"""From plain settings to typed dataclasses; the first mistake becomes one sentence naming the field, the value and what is valid."""

import dataclasses
from collections.abc import Iterator, Mapping
from math import isfinite
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from hyperfed.core import UserError, at_least, invalid, unknown

T = TypeVar("T")
MOST, MOST_THREADS = 2**31 - 1, 4096
"""Of a count, and of threads: torch takes no more."""


def countable(name: str, value: int, lowest: int, most: int = MOST) -> None:
    """Refuse what is no integer in this range."""
    at_least(name, value, lowest)
    if value > most:
        raise invalid(name, value, f"an integer from {lowest} to {most}")


def known_fields(cls: type, given: Mapping[str, Any], group: str) -> None:
    """Refuse settings of a group that are no fields of its dataclass."""
    names = [f.name for f in dataclasses.fields(cls)]
    for key in given:
        if key != "name" and key not in names:
            raise unknown(f"{group} field", f"{group}.{key}", [f"{group}.{n}" for n in names if n not in ("model", "num_clients")])


def settings_of(cls: type[T], given: Mapping[str, Any], group: str) -> T:
    """A group's settings (``name`` aside) as its dataclass."""
    known_fields(cls, given, group)
    return validated(cls, {k: v for k, v in given.items() if k != "name"}, group)


def typed(kind: Any, value: Any, where: str) -> Any:
    """``value`` as a ``kind``; ``where`` is the field's name."""
    _refuse_truth_values(kind, value, where)
    try:
        made = TypeAdapter(kind).validate_python(value)
    except ValidationError as problem:
        raise _sentence(where, problem) from None
    _refuse_endless(kind, made, where)
    return made


def _numbers(kind: Any, value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The name and value of every field in ``value`` whose declared type is a number, whether ``value`` is a ``kind`` yet or not."""
    origin, parts = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        given = value if isinstance(value, Mapping) else vars(value) if isinstance(value, kind) else {}  # type: ignore[arg-type]
        for name, hint in get_type_hints(kind).items():
            if name in given:
                yield from _numbers(hint, given[name], f"{where}.{name}" if where else name)
    elif kind in (int, float):
        yield where, value
    elif origin in (Union, UnionType):
        for part in parts:
            yield from _numbers(part, value, where)
    elif origin is tuple and isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(parts[0], each, where)
    elif origin is dict and isinstance(value, Mapping):
        for key, each in value.items():
            yield from _numbers(parts[1], each, f"{where}.{key}")


def _refuse_truth_values(kind: Any, given: Any, where: str) -> None:
    """True would be taken for 1. Before anything is built: a field's own check would name the 1."""
    for name, value in _numbers(kind, given, where):
        if isinstance(value, bool):
            raise invalid(name, value, "a number, not true or false")


def _refuse_endless(kind: Any, made: Any, where: str) -> None:
    """NaN passes most comparisons a field is checked by, infinity some. After those, whose sentences say more."""
    for name, value in _numbers(kind, made, where):
        if isinstance(value, float) and not isfinite(value):
            raise invalid(name, value, "a finite number")


def _sentence(where: str, problem: ValidationError) -> UserError:
    first = problem.errors()[0]
    value = first["input"]
    if first["type"] in ("tuple_type", "list_type"):
        return invalid(where, value, f"a list such as [{value}]" if isinstance(value, str | float | int) else "a list")
    return UserError(f"{where} = {value!r} is not valid: {first['msg'][0].lower()}{first['msg'][1:]}.")


def validated(cls: type[T], given: Mapping[str, Any], prefix: str = "") -> T:
    """Build a typed dataclass; the first mistake becomes one sentence naming the field, the value and what is valid."""
    _refuse_truth_values(cls, given, prefix)
    try:
        made = TypeAdapter(cls).validate_python(dict(given))
    except ValidationError as problem:
        first = problem.errors()[0]
        original = first.get("ctx", {}).get("error")
        if isinstance(original, UserError):
            raise original from None
        where = ".".join(map(str, (*([prefix] if prefix else []), *first["loc"])))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise unknown("field", where, _field_names(cls, first["loc"][:-1], prefix)) from None
        raise _sentence(where, problem) from None
    _refuse_endless(cls, made, prefix)
    return made


def _field_names(cls: Any, path: tuple[Any, ...], prefix: str) -> list[str]:
    at = prefix
    for part in path:
        cls = next(f.type for f in dataclasses.fields(cls) if f.name == part)
        at = f"{at}.{part}" if at else part
    return [f"{at}.{f.name}" if at else f.name for f in dataclasses.fields(cls)]
