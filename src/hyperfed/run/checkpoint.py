"""Checkpoints: the server's state and which version of every client's state belongs to it. Whole or not there; never a pickle."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from hyperfed.core import UserError, flatten, unflatten
from hyperfed.core.files import load_tensors, read_json, save_tensors, sync
from hyperfed.engine.round import Keeper
from hyperfed.engine.store import DamagedState, Versions

S = TypeVar("S")
FORMAT = 1
BROKEN = (KeyError, TypeError, ValueError, AttributeError)
"""What reading something else than was written may raise."""
LATER = ("loss", "messages")


class Saved(NamedTuple):
    """The round it ends, versions of every client's state (and of the server's banks), seconds so far, that round's training loss.

    ``messages``: how many the ledger has, None where older versions wrote the checkpoint.
    """

    number: int
    versions: dict[str, Versions]
    seconds: float
    cpu_seconds: float
    loss: float | None = None
    messages: int | None = None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(folder: Path, saved: Saved, server: Any) -> None:
    """Write ``folder/round-NNNNNN``: server.safetensors and checkpoint.json, first beside it, then renamed into place."""
    final = folder / f"round-{saved.number:06d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tensors = temporary / "server.safetensors"
        save_tensors(tensors, flatten(server))
        facts = {"format": FORMAT, "sha256": _sha256(tensors), **saved._asdict()}
        text = temporary / "checkpoint.json"
        text.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        for path in (tensors, text, temporary):
            sync(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(folder)
    except OSError as problem:
        raise UserError(
            f"the checkpoint of round {saved.number} could not be written to {folder}: {problem.strerror}; the one before it is intact."
        ) from problem
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def available(folder: Path) -> list[Path]:
    """The checkpoints there are, oldest first."""
    return sorted(p for p in folder.glob("round-*") if (p / "checkpoint.json").exists())


def read_facts(path: Path) -> Saved:
    """The JSON half of a checkpoint."""
    return _saved(path, _facts(path))


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = read_json(path / "checkpoint.json", "format", "sha256", *Saved._fields[:-1])
    except UserError as problem:
        raise _damaged(path, problem) from problem
    if facts["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {facts['format']}; this version reads format {FORMAT}.")
    return facts


def _saved(path: Path, facts: Mapping[str, Any]) -> Saved:
    try:
        versions = {name: {int(k): int(v) for k, v in each.items()} for name, each in facts["versions"].items()}
        made = Saved(int(facts["number"]), versions, float(facts["seconds"]), float(facts["cpu_seconds"]), *map(facts.get, LATER))
    except BROKEN as problem:
        raise _damaged(path, f"checkpoint.json holds something else than numbers ({problem})") from problem
    return made


def _damaged(path: Path, why: object) -> UserError:
    older = [p for p in available(path.parent) if p < path]
    way_out = f"; delete that folder to go on from the checkpoint before it, {older[-1].name}" if older else ""
    return UserError(f"checkpoint {path} is damaged: {str(why).rstrip('.')}{way_out}.")


def load(path: Path, kind: type[S], device: str = "cpu", stores: Mapping[str, Keeper] = MappingProxyType({})) -> tuple[Saved, S]:
    """Read a checkpoint back, and let ``stores`` go back to the versions it names. A damaged one is refused with what is wrong."""
    facts, tensors = _facts(path), path / "server.safetensors"
    saved = _saved(path, facts)
    try:
        if (found := _sha256(tensors)) != facts["sha256"]:
            raise DamagedState(f"server.safetensors has sha256 {found[:12]}..., expected {str(facts['sha256'])[:12]}...")
        server = unflatten(kind, load_tensors(tensors, device))
        for name, store in stores.items():
            store.restore(saved.versions[name])
    except (OSError, *BROKEN) as problem:
        why = f"{problem} is missing" if isinstance(problem, KeyError) else problem
        raise _damaged(path, why) from problem
    return saved, server


def prune(folder: Path, keep: int) -> list[dict[str, Versions]]:
    """Delete all but the last ``keep`` checkpoints and leftovers of interrupted writes; returns the versions the kept ones refer to."""
    for stale in folder.glob(".round-*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    found = available(folder)
    for old in folder.glob("round-*"):
        if old < found[-keep:][0]:  # whole, or half deleted
            shutil.rmtree(old)
    return [read_facts(p).versions for p in found[-keep:]]
