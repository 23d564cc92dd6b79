"""From plain settings to typed dataclasses; the first mistake becomes one sentence naming the field, the value and what is valid."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hyperfed.core import UserError, invalid, unknown

T = TypeVar("T")


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
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as problem:
        raise _sentence(where, problem) from None


def _sentence(where: str, problem: ValidationError) -> UserError:
    first = problem.errors()[0]
    value = first["input"]
    if first["type"] in ("tuple_type", "list_type"):
        return invalid(where, value, f"a list such as [{value}]" if isinstance(value, str | float | int) else "a list")
    return UserError(f"{where} = {value!r} is not valid: {first['msg'][0].lower()}{first['msg'][1:]}.")


def validated(cls: type[T], given: Mapping[str, Any], prefix: str = "") -> T:
    """Build a typed dataclass; the first mistake becomes one sentence naming the field, the value and what is valid."""
    try:
        return TypeAdapter(cls).validate_python(dict(given))
    except ValidationError as problem:
        first = problem.errors()[0]
        original = first.get("ctx", {}).get("error")
        if isinstance(original, UserError):
            raise original from None
        where = ".".join(map(str, (*([prefix] if prefix else []), *first["loc"])))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise unknown("field", where, _field_names(cls, first["loc"][:-1], prefix)) from None
        raise _sentence(where, problem) from None


def _field_names(cls: Any, path: tuple[Any, ...], prefix: str) -> list[str]:
    at = prefix
    for part in path:
        cls = next(f.type for f in dataclasses.fields(cls) if f.name == part)
        at = f"{at}.{part}" if at else part
    return [f"{at}.{f.name}" if at else f.name for f in dataclasses.fields(cls)]
