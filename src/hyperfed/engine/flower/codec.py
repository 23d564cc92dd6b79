"""Messages as Flower's records: one ArrayRecord per field, a ConfigRecord as header. What arrives is checked before it is used."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hyperfed.core import Method, Params, Role, flatten
from hyperfed.core.codec import fields
from hyperfed.core.files import whole

T = TypeVar("T")
HEADER = "hyperfed"
BLOB = "safetensors"
"""The name of the one array of a field's record."""
BARE = ""
"""The name of a bare tensor inside its field's blob."""
STYPE = "safetensors"


class Refused(ValueError):
    """A message that is not what it should be: names the field, what arrived and what was expected."""


class Leaf(NamedTuple):
    """Shape and dtype of one tensor of a message."""

    shape: tuple[int, ...]
    dtype: str


Spec = Mapping[str, Leaf]
"""Flat name -> what the tensor must be; the order is that of the message."""


def message_types(method: Method[Any, Any, Any, Any]) -> tuple[type, type]:
    """The NamedTuples of the method's download and upload, from its own annotations."""
    down: type = get_type_hints(type(method).download)["return"]
    up: type = get_args(get_type_hints(type(method).client_update)["return"])[1]
    return down, up


def spec_of(message: Any) -> Spec:
    """What a message of this very structure must look like."""
    return {name: Leaf(tuple(t.shape), _dtype(t)) for name, t in flatten(message).items()}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def encode(message: Any) -> dict[str, ArrayRecord]:
    """Field -> record. Bits, names and order of the tensors are kept."""
    records = {}
    for field, kind in fields(type(message)).items():
        value = getattr(message, field)
        records[field] = ArrayRecord({BLOB: pack_tensors(value if kind is dict else {BARE: value})})
    return records


def pack_tensors(tensors: Params) -> Array:
    """All tensors of a field as one safetensors blob: Flower sends every Array in several requests of its own, which for a network of a
    hundred tensors takes minutes on a slow line. The names carry their place, since safetensors sorts."""
    data = save({f"{i}:{name}": whole(t) for i, (name, t) in enumerate(tensors.items())})
    return Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)


def unpack_tensors(field: str, array: Array) -> Params:
    """The inverse; safetensors checks every length against the blob before memory is taken."""
    if array.stype != STYPE:
        raise Refused(f"field {field!r} has encoding {array.stype!r}, expected {STYPE!r}.")
    try:
        found = {(int(name.partition(":")[0]), name.partition(":")[2]): tensor for name, tensor in load(array.data).items()}
    except (SafetensorError, ValueError, KeyError) as problem:
        raise Refused(f"field {field!r} cannot be read: {problem}.") from None
    return {name: found[place, name] for place, name in sorted(found)}


def decode(kind: type[T], content: RecordDict, spec: Spec | None = None, *, finite: bool = False, device: str = "cpu") -> T:
    """The message of type ``kind``. Raises :class:`Refused` naming what is missing, unknown, of another shape or dtype, or not finite."""
    kinds = fields(kind)
    records = content.array_records
    _same_names("field", list(records), list(kinds))
    values: dict[str, Any] = {}
    for field, what in kinds.items():
        _same_names(f"array of field {field!r}", list(records[field]), [BLOB])
        found = unpack_tensors(field, records[field][BLOB])
        expected = list(found) if spec is None else [n.partition("/")[2] for n in spec if n.partition("/")[0] == field]
        if what is not dict:
            expected = [BARE]
        _same_names(f"tensor of field {field!r}", list(found), expected)
        for name in expected:
            flat = f"{field}/{name}" if what is dict else field
            _check(flat, found[name], None if spec is None else spec[flat], finite)
        read = {name: found[name].to(device) for name in expected}
        values[field] = read if what is dict else read[BARE]
    return kind(**values)


def _same_names(what: str, found: list[str], expected: list[str]) -> None:
    for name in expected:
        if name not in found:
            raise Refused(f"{what} {name!r} is missing.")
    known = set(expected)
    for name in found:
        if name not in known:
            raise Refused(f"{what} {name!r} is unknown.")


def _check(name: str, tensor: Tensor, leaf: Leaf | None, finite: bool) -> None:
    """What one tensor must be."""
    if leaf is not None and _dtype(tensor) != leaf.dtype:
        raise Refused(f"tensor {name!r} has dtype {_dtype(tensor)}, expected {leaf.dtype}.")
    if leaf is not None and tuple(tensor.shape) != leaf.shape:
        raise Refused(f"tensor {name!r} has shape {list(tensor.shape)}, expected {list(leaf.shape)}.")
    if finite and tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise Refused(f"tensor {name!r} holds NaN or infinite values.")


def check_download(message: Any, roles: Mapping[str, Role], reference: Params) -> None:
    """A tensor named as one of the model's has its dtype and shape, or a stack of several of it."""
    for flat, tensor in flatten(message).items():
        name = flat.partition("/")[2]
        if name not in roles:
            continue
        own = reference[name]
        if tensor.dtype != own.dtype:
            raise Refused(f"tensor {flat!r} has dtype {_dtype(tensor)}, expected {_dtype(own)}.")
        if tensor.shape[tensor.dim() - own.dim() :] != own.shape or not 0 <= tensor.dim() - own.dim() <= 1:
            raise Refused(f"tensor {flat!r} has shape {list(tensor.shape)}, expected {list(own.shape)}.")


def pack(header: Mapping[str, Any], message: Any = None) -> RecordDict:
    """Header and tensors as one content."""
    records = {} if message is None else encode(message)
    return RecordDict({**records, HEADER: ConfigRecord(dict(header))})


def header_of(content: RecordDict, expected: Mapping[str, type]) -> dict[str, Any]:
    """The header; every expected entry is there and of its type."""
    record = content.config_records.get(HEADER)
    if record is None:
        raise Refused(f"the header {HEADER!r} is missing.")
    return checked(dict(record), expected)


def checked(head: dict[str, Any], expected: Mapping[str, type]) -> dict[str, Any]:
    """The header, if every expected entry is there and of its type. Raises Refused."""
    for name, kind in expected.items():
        value = head.get(name)
        if type(value) is not kind:
            raise Refused(f"header entry {name!r} is {value!r}, expected {kind.__name__}.")
    return head


def size_of(content: RecordDict) -> int:
    """Serialised bytes: the records' own count (tensors with their names and shapes, header entries)."""
    return sum(len(name) + record.count_bytes() for name, record in content.items())
