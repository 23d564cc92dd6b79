"""Vocabulary: types, the method interface, pure tensor arithmetic, message codec. Imports nothing else of the package."""

from hyperfed.core.bank import Bank
from hyperfed.core.codec import Traffic, count, flatten, stack, unflatten
from hyperfed.core.errors import UserError, at_least, invalid, unknown
from hyperfed.core.method import Method
from hyperfed.core.types import ALL, STATISTICS, Client, Model, Objective, Over, Params, Role, Round, Scope, Step, select

__all__ = [
    "ALL",
    "STATISTICS",
    "Bank",
    "Client",
    "Method",
    "Model",
    "Objective",
    "Over",
    "Params",
    "Role",
    "Round",
    "Scope",
    "Step",
    "Traffic",
    "UserError",
    "at_least",
    "count",
    "flatten",
    "invalid",
    "select",
    "stack",
    "unflatten",
    "unknown",
]
