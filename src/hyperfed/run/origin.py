"""``run.json``: which run a folder holds, and the software and the machine it was played with."""

import logging
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hyperfed import __version__
from hyperfed.core import Method, UserError
from hyperfed.core.files import read_json, write_json
from hyperfed.engine.bf16 import native

log = logging.getLogger(__name__)
THEN = ", then "


def versions(method: Method[Any, Any, Any, Any]) -> dict[str, Any]:
    """What decides the numbers of a run besides its settings; ``method``: the method's revision."""
    return {
        "hyperfed": __version__,
        "method": method.revision,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
    }


def holds(folder: Path, identity: str, name: str = "run.dir") -> bool:
    """Whether the folder, given as ``name``, holds this run; False where it holds none. Raises UserError where it holds another."""
    facts = folder / "run.json"
    if not facts.exists():
        return False
    if (found := read_json(facts, "identity")["identity"]) != identity:
        raise UserError(f"{name} {str(folder)!r} holds another run (identity {found}, this one is {identity}): choose another {name}.")
    return True


def begin(folder: Path, identity: str, method: Method[Any, Any, Any, Any], device: str) -> None:
    """Write ``run.json``."""
    hardware = {"machine": platform.machine(), "threads": torch.get_num_threads(), "device": device}
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name(device)
    else:
        hardware |= {"instructions": torch.backends.cpu.get_cpu_capability(), "bf16": "native" if native() else "rounded"}
    write_json(folder / "run.json", {"identity": identity, "versions": versions(method), "hardware": hardware, "name": folder.name})


def go_on(folder: Path, method: Method[Any, Any, Any, Any], complete: bool = False) -> None:
    """Say, and write down, that other versions than those it was begun with go on with the run; of a ``complete`` one that they do not."""
    facts = read_json(folder / "run.json")
    begun = {"method": 1, **dict(facts.get("versions", {}))}
    changed = {k: (begun[k], now) for k, now in versions(method).items() if k in begun and f"{begun[k]}".split(THEN)[-1] != f"{now}"}
    if not changed:
        return
    told = "; ".join(f"{k} {before}, now {now}" for k, (before, now) in changed.items())
    if complete:
        log.warning("%s is complete and was played with other versions (%s): delete it to play it with these.", folder, told)
        return
    log.warning("%s was played with other versions so far (%s): its numbers may be neither's, and run.json says so.", folder, told)
    write_json(folder / "run.json", facts | {"versions": begun | {k: f"{before}{THEN}{now}" for k, (before, now) in changed.items()}})
