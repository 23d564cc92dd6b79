"""States and messages are NamedTuples whose fields are tensors or Params; here they become flat name -> tensor maps and are counted."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor

from hyperfed.core.bank import Bank
from hyperfed.core.types import Params, Role

T = TypeVar("T")


class Traffic(NamedTuple):
    """What one message weighs: trained elements (the papers' unit), buffer elements, other elements (ids, counts), payload bytes."""

    trainable: int = 0
    buffers: int = 0
    extra: int = 0
    bytes: int = 0

    def __add__(self, other: object) -> "Traffic":
        """Sum of two messages."""
        if not isinstance(other, Traffic):
            return NotImplemented
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


_FIELDS: dict[type, dict[str, type]] = {}


def fields(kind: type) -> dict[str, type]:
    """Field -> ``dict`` (Params), ``Bank`` or ``Tensor`` of a state or message type."""
    if kind not in _FIELDS:
        hints = get_type_hints(kind)
        _FIELDS[kind] = {name: dict if hints[name] == Params else hints[name] for name in kind._fields}  # type: ignore[attr-defined]
    return _FIELDS[kind]


def flatten(tree: Any) -> Params:
    """{"field": tensor, "field/name": tensor, ...}: the inverse of :func:`unflatten`. Of a Bank the default row only."""
    flat: Params = {}
    for field, kind in fields(type(tree)).items():
        value = getattr(tree, field)
        if kind is dict:
            flat.update((f"{field}/{name}", tensor) for name, tensor in value.items())
        elif kind is Bank:
            flat.update((f"{field}/{name}", tensor) for name, tensor in value.default.items())
        else:
            flat[field] = value
    return flat


def unflatten(kind: type[T], flat: Mapping[str, Tensor]) -> T:
    """Rebuild a state or message of type ``kind``. A missing field raises KeyError naming it."""
    kinds = fields(kind)
    values: dict[str, Any] = {name: {} for name, k in kinds.items() if k is not Tensor}
    for name, tensor in flat.items():
        field, _, rest = name.partition("/")
        if rest:
            values[field][rest] = tensor
        else:
            values[field] = tensor
    return kind(**{name: Bank(value) if kinds[name] is Bank else value for name, value in values.items()})


def stack(trees: Sequence[T]) -> T:
    """K messages of one type -> one message whose every leaf has a leading K."""
    first = trees[0]
    leaves: dict[str, Any] = {}
    for field, kind in fields(type(first)).items():
        values = [getattr(tree, field) for tree in trees]
        leaves[field] = {n: torch.stack([v[n] for v in values]) for n in values[0]} if kind is dict else torch.stack(values)
    return type(first)(**leaves)


def count(message: Any, roles: Mapping[str, Role]) -> Traffic:
    """Weigh a message by its tensors. Params are trained elements unless their role is STATS; bare tensors are extra."""
    trainable = buffers = extra = size = 0
    for field, kind in fields(type(message)).items():
        value = getattr(message, field)
        if kind is dict:
            for name, tensor in value.items():
                numel = tensor.numel()
                size += numel * tensor.element_size()
                if roles.get(name) is Role.STATS:
                    buffers += numel
                else:
                    trainable += numel
        else:
            extra += value.numel()
            size += value.numel() * value.element_size()
    return Traffic(trainable, buffers, extra, size)


def count_by_role(message: Any, roles: Mapping[str, Role]) -> dict[str, int]:
    """Elements of a message per role; "other" is what belongs to no tensor of the model: ids, counts, a method's own networks."""
    out: dict[str, int] = {}
    for field, kind in fields(type(message)).items():
        value = getattr(message, field)
        for name, tensor in value.items() if kind is dict else [("", value)]:
            role = str(roles.get(name, "other"))
            out[role] = out.get(role, 0) + tensor.numel()
    return out
