"""The one error a user's mistake raises, and how it is worded."""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral

MANY = 24


class UserError(ValueError):
    """A mistake of the user's: one sentence naming the field, the value and what is valid. The command line exits with 2."""


def unknown(field: str, value: object, choices: Iterable[str]) -> UserError:
    """The error for a name that is not registered, with the nearest one that is; long lists are not recited."""
    names = sorted(choices)
    near = get_close_matches(str(value), names, n=1)
    text = f"{field} {str(value)!r} unknown"
    if not names:
        return UserError(f"{text}; there are none.")
    if near:
        text += f"; did you mean {near[0]!r}?"
    if len(names) <= MANY:
        text += f"{'' if near else ';'} Valid: {', '.join(names)}."
    elif not near:
        text += "; 'hyperfed run --help' lists what there is."
    return UserError(text)


def invalid(field: str, value: object, valid: str) -> UserError:
    """The error for a value outside its range: ``optim.lr = -1.0 is not valid: must be a number > 0.``"""
    return UserError(f"{field} = {value!r} is not valid: must be {valid}.")


def at_least(field: str, value: object, lowest: int) -> None:
    """Refuse what is no integer, or a smaller one."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < lowest:
        raise invalid(field, value, f"an integer >= {lowest}")
