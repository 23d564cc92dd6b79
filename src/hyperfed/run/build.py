"""From a configuration to live objects."""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import torch

from hyperfed.core import STATISTICS, Method, Model, Params, Role, UserError, invalid
from hyperfed.core.seeds import derive_seed
from hyperfed.data import ClientIndices, Dataset, hold_out, load_dataset, partition
from hyperfed.defences import Setting, make_guard
from hyperfed.engine.allocator import keep_memory
from hyperfed.engine.gpu import prepare_gpu
from hyperfed.engine.guard import Guard
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.round import Engine
from hyperfed.engine.store import Store
from hyperfed.engine.workspace import Images, Workspace
from hyperfed.models import HyperModel, Shape, build_model
from hyperfed.run.config import Config


@dataclass(frozen=True)
class Federation:
    """Everything a run needs, built from its configuration."""

    config: Config
    dataset: Dataset
    clients: list[ClientIndices]
    model: Model
    method: Method[Any, Any, Any, Any]
    engine: Engine
    guard: Guard


def choose_device(name: str) -> torch.device:
    """``auto``: the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d\d?)?", name):
        raise invalid("device", name, "auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} is not available here: use auto or cpu.")
    return device


def make_model(config: Config, dataset: Dataset) -> Model:
    """The network for the data, over HFN where ``hypernet`` is set."""
    _, size, width, channels = dataset.images.shape
    if size != width:
        raise UserError(f"dataset {dataset.name!r} has images of {size}x{width}; the models take square images.")
    settings = {k: v for k, v in config.model.items() if k != "name"}
    network = build_model(config.model["name"], Shape(channels, size, dataset.num_classes), **settings)
    model = network if config.hypernet is None else HyperModel(network, config.hypernet)
    check_roles(config, set(model.roles.values()))
    return model


def check_roles(config: Config, there: Set[Role]) -> None:
    """Refuse what has no effect, or makes no sense, on a model whose tensors have the roles ``there``."""
    for name, roles in (("private_init", config.private_init), ("finetune.scope", config.finetune.scope)):
        for role in roles:
            if role not in there:
                raise invalid(name, [role.value], f"among the model's own roles: {', '.join(r for r in Role if r in there)}")
    scope = config.finetune.scope
    if scope and frozenset(scope) != STATISTICS and not any(map(config.optim.trains, scope)):
        raise invalid("finetune.scope", [role.value for role in scope], "[stats], or roles of which one at least is trained")
    if Role.STATS in there and config.local.batch_size < 2:
        raise invalid("local.batch_size", config.local.batch_size, ">= 2 with batch norm, which leaves batches of one example out")


def client_type(method: Method[Any, Any, Any, Any]) -> type:
    """The NamedTuple of the method's client state, from the method's own annotation."""
    kind: type = get_type_hints(type(method).init_client)["return"]
    return kind


def server_type(method: Method[Any, Any, Any, Any]) -> type:
    """The NamedTuple of the method's server state."""
    kind: type = get_type_hints(type(method).init_server)["return"]
    return kind


def make_clients(config: Config, dataset: Dataset) -> list[ClientIndices]:
    """The seeded division of the data among clients."""
    data = config.data
    spec = config.build_partition()
    clients = partition(dataset.labels, spec, config.num_clients, config.seed, test_fraction=data.test_fraction, fraction=data.fraction)
    share = "data.test_fraction"
    if data.validation is not None:
        clients = hold_out(dataset.labels, [c.train for c in clients], data.validation, derive_seed(config.seed, "validation"))
        share = "data.validation"
    if not any(len(client.test) for client in clients):
        valid = f"small enough for some test data: raise data.fraction = {data.fraction:g} or {share}, or have fewer clients"
        raise invalid("num_clients", config.num_clients, valid)
    return clients


def prepare(config: Config) -> tuple[torch.device, Dataset, Model, Method[Any, Any, Any, Any]]:
    """What every process of a run needs: the device, the data, the model and the method."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    keep_memory()
    device = choose_device(config.device)
    dataset = load_dataset(config.dataset["name"], config.data.root, config.data.cache)
    model = make_model(config, dataset)
    return device, dataset, model, config.build_method(model)


def local_engine(
    config: Config, device: torch.device, dataset: Dataset, clients: list[ClientIndices], method: Method[Any, Any, Any, Any], folder: Path
) -> LocalEngine:
    """The in-process engine; ``folder`` is for the clients' states."""
    guard = build_guard(config, method, clients)  # first: a run that is refused leaves no folder
    if device.type == "cuda":
        prepare_gpu(device)
    images = Images(dataset.images, dataset.labels, dataset.mean, dataset.std, device)
    return LocalEngine(
        method,
        Workspace(method.model, images, config.precision, config.gpu),
        [torch.from_numpy(c.train).to(device) for c in clients],
        [torch.from_numpy(c.test).to(device) for c in clients],
        Store(folder, client_type(method), config.cache_mib * 2**20, str(device)),
        config.optim,
        config.local,
        config.seed,
        config.rounds,
        frozenset(config.private_init),
        config.on_nan,
        guard,
        lanes=config.gpu.lanes if device.type == "cuda" else 1,
    )


def build_guard(config: Config, method: Method[Any, Any, Any, Any], clients: list[ClientIndices]) -> Guard:
    """The defence of the run's messages."""
    sizes = [len(c.train) for c in clients]
    name = config.method["name"]
    return make_guard(config.build_privacy(), Setting(method, name, config.rounds, config.participation, config.seed, config.local, sizes))


def initial_params(config: Config, model: Model, device: torch.device) -> Params:
    """The common initial model."""
    return {n: t.to(device) for n, t in model.init(derive_seed(config.seed, "init")).items()}


def build(composed: Mapping[str, Any], config: Config, folder: Path, grid: Any = None) -> Federation:
    """Load the data, divide it, build model, method and engine. ``grid`` is Flower's, where Flower started this process."""
    device, dataset, model, method = prepare(config)
    clients = make_clients(config, dataset)
    engine: Engine
    if config.engine["name"] == "flower":
        flower = import_flower()
        guard = build_guard(config, method, clients)
        engine = flower.flower_engine(composed, config, device, dataset, clients, method, folder, guard, grid)
    else:
        engine = local_engine(config, device, dataset, clients, method, folder / "states")
        guard = engine.guard
    return Federation(config, dataset, clients, model, method, engine, guard)


def import_flower() -> ModuleType:
    """The part that needs the extra, or one sentence that says so."""
    if find_spec("flwr") is None:
        raise UserError("engine=flower needs the extra: pip install 'hyperfed[flower]'.")
    return import_module("hyperfed.run.flower")
