"""Files that are either whole or not there."""

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EIO, ENOLCK, ENOSYS, ENOTSUP
from math import prod
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperfed.core.errors import UserError
from hyperfed.core.types import Params

try:
    import fcntl
except ImportError:  # no such locks there
    fcntl = None  # type: ignore[assignment]

LONGEST_NAME = 255
"""Bytes of a file's name."""


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def short(path: Path) -> bool:
    """Whether file systems take the names in ``path``."""
    return all(len(os.fsencode(part)) <= LONGEST_NAME for part in path.parts)


def takes_folders(there: Path) -> bool:
    """Whether a folder can be made in ``there``: tried, since permissions do not tell (/proc is writable)."""
    try:
        Path(mkdtemp(prefix=".hyperfed-", dir=there)).rmdir()
    except OSError:
        return False
    return True


def lock(path: Path) -> int | None:
    """A descriptor that holds the lock on ``path`` until it is closed or the process ends, however it ends; None: another has it.

    Where the system or the file system knows no such locks, as Lustre may not, everybody gets one.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as problem:
        if problem.errno not in (ENOSYS, ENOTSUP, ENOLCK):
            os.close(descriptor)
            raise
    return descriptor


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it takes the place of ``path`` only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what an :func:`atomic` left in ``folder`` whose process was killed. Nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, *names: str) -> dict[str, Any]:
    """The JSON object in a file, with entries of these names. Raises UserError naming the file and what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as problem:
        raise UserError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path} is damaged: it holds no JSON ({str(problem).rstrip('.')}).") from problem
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.")
    if missing := [name for name in names if name not in value]:
        raise UserError(f"{path} is damaged: it has no {missing[0]!r}.")
    return value


def whole(tensor: Tensor) -> Tensor:
    """A contiguous tensor in memory of its own: safetensors refuses views into one another, such as the pieces of a generated vector."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _crc32(layout: str, tensors: Mapping[str, Tensor]) -> str:
    total = zlib.crc32(layout.encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def save_tensors(path: Path, flat: Params, *, packed: bool = False, checksum: bool = False, note: str | None = None) -> None:
    """Write tensors as safetensors, their order with them: sums over names must come out the same after reading. With them a ``note``.

    ``packed`` lays all tensors of a type end to end in one: many small ones cost a twentieth of the time. With a
    ``checksum`` :func:`load_tensors` notices every bit that is another, which takes its time. Raises OSError.
    """
    layout = [(name, str(t.dtype), list(t.shape)) for name, t in flat.items()]
    if packed:
        types = dict.fromkeys(d for _, d, _ in layout)
        tensors = {d: torch.cat([flat[n].detach().reshape(-1) for n, e, _ in layout if e == d]).cpu() for d in types}
    else:
        tensors = {n: whole(t) for n, t in flat.items()}
    text = json.dumps(layout)
    facts = {"layout": text, "names": _crc32(text, {}), "packed": str(packed), **({"crc32": _crc32(text, tensors)} if checksum else {})}
    facts |= {} if note is None else {"note": note}
    try:
        save_file(tensors, path, metadata=facts)
    except SafetensorError as problem:
        if not (found := re.search(r"\(os error (\d+)\)", str(problem))):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from problem


def load_tensors(path: Path, device: str = "cpu") -> Params:
    """Read tensors back in the order in which they were written, each into memory of its own.

    In the file they lie at any address, and a product's last bits depend on its operands' alignment. Raises OSError where the file is
    missing or damaged: in what it says of its tensors every bit is noticed, in theirs those with a checksum.
    """
    try:
        with safe_open(path, "pt") as file:
            facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        if any(facts[name] != _crc32(facts["layout"], of) for name, of in (("names", {}), ("crc32", tensors)) if name in facts):
            raise OSError(EIO, "damaged (its checksum is another)", str(path))
        return _laid_out(facts, {name: t.to(device) for name, t in tensors.items()})
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, StopIteration) as problem:
        raise OSError(EIO, f"damaged ({problem})", str(path)) from problem


def _laid_out(facts: Mapping[str, str], tensors: Mapping[str, Any]) -> Params:
    layout = json.loads(facts["layout"])
    if facts["packed"] != "True":
        return {name: tensors[name].clone() for name, _, _ in layout}
    sizes: dict[str, list[int]] = {}
    for _, dtype, shape in layout:
        sizes.setdefault(dtype, []).append(prod(shape))
    rest = {dtype: iter(tensors[dtype].split(each)) for dtype, each in sizes.items()}
    return {name: next(rest[dtype]).clone().reshape(shape) for name, dtype, shape in layout}
