"""The configuration as typed dataclasses. Hydra composes it and is left at the door; below here there are no dictionaries of settings."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from pydantic import ConfigDict

from hyperfed.core import Method, Role, flatten, invalid, unknown
from hyperfed.core.files import LONGEST_NAME, short, takes_folders
from hyperfed.data import DATASETS, PARTITIONS, Partition
from hyperfed.defences import DEFENCES, Budget, SecAgg
from hyperfed.engine.flower.settings import Flower
from hyperfed.engine.gpu import Gpu
from hyperfed.engine.optim import Optim
from hyperfed.engine.round import Finetune
from hyperfed.engine.workspace import Local
from hyperfed.methods import METHODS
from hyperfed.models import MODELS, Hypernet, check_settings
from hyperfed.run.validate import MOST, MOST_THREADS, countable, known_fields, settings_of, typed, validated


@dataclass(frozen=True)
class InProcess:
    """Every client in this process, one after another on one model; on a GPU some at a time."""


ENGINES: dict[str, type] = {"local": InProcess, "flower": Flower}


@dataclass(frozen=True)
class Data:
    """Where the data is and how much of it is used.

    ``validation`` (null: none) is for choosing hyper-parameters: that share of every client's training part takes the place of its test
    part, which is not looked at.
    """

    root: str | None = None
    cache: str | None = None
    fraction: float = 1.0
    test_fraction: float = 0.2
    validation: float | None = None


@dataclass(frozen=True)
class Eval:
    """Every how many rounds all clients are evaluated, and when fine-tuning is part of it."""

    every: int = 5
    finetune: Literal["last", "always", "never"] = "last"


@dataclass(frozen=True)
class Checkpoint:
    """Every how many rounds a checkpoint is written (the last round always), and how many are kept."""

    every: int = 1
    keep: int = 2


@dataclass(frozen=True)
class Run:
    """The run's folder: ``dir``, or a folder named after the run below ``root``."""

    dir: str | None = None
    root: str = "runs"
    name: str | None = None


@dataclass(frozen=True)
class Config:
    """One run, resolved."""

    method: dict[str, Any]
    model: dict[str, Any]
    dataset: dict[str, Any]
    partition: dict[str, Any]
    hypernet: Hypernet | None = None
    privacy: dict[str, Any] | None = None
    engine: dict[str, Any] = field(default_factory=lambda: {"name": "local"})
    seed: int = 1
    rounds: int = 30
    num_clients: int = 20
    participation: float = 0.5
    private_init: tuple[Role, ...] = ()
    local: Local = Local()
    optim: Optim = Optim()
    finetune: Finetune = Finetune()
    eval: Eval = Eval()
    data: Data = Data()
    checkpoint: Checkpoint = Checkpoint()
    run: Run = Run()
    device: str = "auto"
    gpu: Gpu = Gpu()
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int | None = None
    cache_mib: int = 256
    on_nan: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        for name in (
            "rounds",
            "num_clients",
            "local.epochs",
            "local.batch_size",
            "eval.every",
            "checkpoint.every",
            "checkpoint.keep",
            "cache_mib",
        ):
            countable(name, _at(self, name), 1)
        for name, most in (("local.steps", MOST), ("threads", MOST_THREADS)):
            if _at(self, name) is not None:
                countable(name, _at(self, name), 1, most)
        countable("finetune.epochs", self.finetune.epochs, 0)
        if not self.finetune.lr > 0:
            raise invalid("finetune.lr", self.finetune.lr, "a number > 0")
        for name in ("participation", "data.fraction"):
            if not 0 < _at(self, name) <= 1:
                raise invalid(name, _at(self, name), "in (0, 1]")
        if not 0 < self.data.test_fraction < 1:
            raise invalid("data.test_fraction", self.data.test_fraction, "in (0, 1)")
        if self.data.validation is not None and not 0 < self.data.validation < 1:
            raise invalid("data.validation", self.data.validation, "in (0, 1), or null")
        for group, registry in (
            ("method", METHODS),
            ("model", MODELS),
            ("dataset", DATASETS),
            ("partition", PARTITIONS),
            ("engine", ENGINES),
            ("privacy", DEFENCES),
        ):
            settings = getattr(self, group)
            if settings is not None and settings.get("name") not in registry:
                raise unknown(group, settings.get("name"), registry)

    def build_partition(self) -> Partition:
        """The typed partition."""
        return settings_of(PARTITIONS[self.partition["name"]], self.partition, "partition")

    def build_engine(self) -> InProcess | Flower:
        """The engine's typed settings."""
        settings: InProcess | Flower = settings_of(ENGINES[self.engine["name"]], self.engine, "engine")
        return settings

    def build_privacy(self) -> Budget | SecAgg | None:
        """The defence's typed settings."""
        if self.privacy is None:
            return None
        settings: Budget | SecAgg = settings_of(DEFENCES[self.privacy["name"]], self.privacy, "privacy")
        return settings

    def build_method(self, model: Any) -> Method[Any, Any, Any, Any]:
        """The method over ``model``. ``private_init`` is refused for what a client keeps nothing of: there it would have no effect."""
        method = METHODS[self.method["name"]](model, self.num_clients, **self.method_settings())
        for role in self.private_init:
            if not keeps(method, role):
                kept = ", ".join(r for r in Role if r in set(model.roles.values()) and keeps(method, r)) or "none"
                raise invalid("private_init", [role.value], f"among the roles a client keeps with method {self.method['name']!r}: {kept}")
        return method

    def method_settings(self) -> dict[str, Any]:
        """The method's own hyper-parameters, of the types its dataclass declares; what it draws by itself differs with the run's seed."""
        cls = METHODS[self.method["name"]]
        known_fields(cls, self.method, "method")
        hints = get_type_hints(cls)
        settings = {name: typed(hints[name], value, f"method.{name}") for name, value in self.method.items() if name != "name"}
        if "seed" in settings:
            settings["seed"] += self.seed - 1  # 1 is the default seed: there method.seed is what it says
        return settings


for _cls in (
    Config,
    Data,
    Eval,
    Checkpoint,
    Run,
    Local,
    Optim,
    Finetune,
    Gpu,
    Hypernet,
    *PARTITIONS.values(),
    *ENGINES.values(),
    *DEFENCES.values(),
):
    _cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]

FREE = (
    "run",
    "checkpoint",
    "data.root",
    "data.cache",
    "threads",
    "cache_mib",
    "device",
    "gpu",
    *(f"engine.{n}" for n in ("timeout", "wait", "supernodes", "cpus", "gpus")),
)
"""Settings that do not change what a run computes: they are not part of its identity and may differ when it is resumed.

``threads`` and ``device`` change the order of sums, and so the last bits.
"""


def _at(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


def keeps(method: Method[Any, Any, Any, Any], role: Role) -> bool:
    """Whether a client's state before its first round has anything of the role's tensors in its initial model."""
    model = method.model
    marked = {n: torch.full_like(t, nan) if model.roles[n] is role else t for n, t in model.init(0).items()}
    return any(bool(t.isnan().any()) for t in flatten(method.init_client(marked)).values())


def make_config(composed: Mapping[str, Any]) -> Config:
    """From the dictionary Hydra composed to the typed configuration; every sub-configuration is checked, too."""
    config = validated(Config, composed)
    config.build_partition()
    config.build_engine()
    config.build_privacy()
    config.method_settings()
    check_settings(config.model["name"], {k: v for k, v in config.model.items() if k != "name"})
    return config


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 0.1, ...}."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out.update(flat(value, name + "."))
        else:
            out[name] = value
    return out


def identity(composed: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run this run: all settings but the free ones. A setting that is null is as good as absent."""
    return {k: v for k, v in flat(composed).items() if v is not None and not any(k == f or k.startswith(f + ".") for f in FREE)}


def identity_hash(composed: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of the identity's SHA-256."""
    text = json.dumps(identity(composed), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_name(composed: Mapping[str, Any]) -> str:
    """``hfn-mnist-dirichlet-s1-1a2b3c``: readable, and different for different configurations."""
    method, hyper = composed["method"]["name"], composed.get("hypernet")
    label = composed["run"].get("name") or (method if not hyper else "hfn" if method == "fedavg" else f"hfn+{method}")
    return f"{label}-{composed['dataset']['name']}-{composed['partition']['name']}-s{composed['seed']}-{identity_hash(composed)[:6]}"


def run_folder(composed: Mapping[str, Any]) -> Path:
    """Where the run's files go; refused where no folder can be made."""
    run, name = composed["run"], run_name(composed)
    if run.get("dir"):
        return writable("run.dir", Path(run["dir"]))
    if not short(Path(name)):
        raise invalid("run.name", run["name"], f"shorter: the folder's name would have more than {LONGEST_NAME} bytes")
    return writable("run.root", Path(run["root"])) / name


def resume_setting(folder: Path) -> str:
    """``resume=FOLDER``, to be typed again: plain, or quoted so that Hydra reads any path back as it is. A shell's quotes go around it."""
    text = str(folder)
    if re.fullmatch(r"(?ai)(?!(null|true|false|nan|inf)$)[/a-z_][a-z0-9_./-]*", text):
        return f"resume={text}"
    escaped = re.sub(r"(\\*)(\$\{|'|\Z)", lambda found: 2 * found[1] + ("\\" if found[2] else "") + found[2], text)
    return f"resume='{escaped}'"


def writable(field: str, path: Path) -> Path:
    """``path``, if it is a folder one may write to, or a place where one can be made; leaves none."""
    there = next(p for p in (path, *path.parents) if os.access(p, os.F_OK))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK) and short(path) and (there == path or takes_folders(there))):
        raise invalid(field, str(path), f"a folder that can be written or made; {str(there)!r} is none")
    return path
