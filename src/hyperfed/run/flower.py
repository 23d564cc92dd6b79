"""Flower from a configuration: the engine on the server, the ClientApp on the devices."""

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context

from hyperfed.core import Method, UserError, invalid
from hyperfed.core.files import read_json, write_json
from hyperfed.data import ClientIndices, Dataset, Iid, load_folder, partition
from hyperfed.defences import Budget, SecAgg
from hyperfed.engine.flower.client_app import ClientSide, make_client_app
from hyperfed.engine.flower.engine import FlowerEngine
from hyperfed.engine.flower.grid import InProcessGrid
from hyperfed.engine.flower.nodes import Carrier, Nodes
from hyperfed.engine.flower.settings import Flower
from hyperfed.engine.flower.wire import Wire
from hyperfed.engine.gpu import Gpu
from hyperfed.engine.guard import Guard
from hyperfed.engine.store import Store
from hyperfed.engine.workspace import DeviceClient, Images, Local, Workspace
from hyperfed.run.build import build_guard, client_type, initial_params, local_engine, make_clients, prepare
from hyperfed.run.config import Config, identity_hash, make_config

REHEARSED = 12
"""Synthetic images of a rehearsal."""


def flower_engine(
    composed: Mapping[str, Any],
    config: Config,
    device: torch.device,
    dataset: Dataset,
    clients: list[ClientIndices],
    method: Method[Any, Any, Any, Any],
    folder: Path,
    guard: Guard,
    grid: Carrier | None,
) -> FlowerEngine:
    """The server's engine. Without a ``grid`` it makes its own: in this process, or Flower's simulator."""
    settings = config.build_engine()
    assert isinstance(settings, Flower)
    close: Callable[[], None] = lambda: None  # noqa: E731
    if grid is None and settings.backend == "deployment":
        raise UserError("engine.backend = 'deployment' is started with `hyperfed deploy server`.")
    check_carrier(config, method, settings)
    if grid is None and settings.backend == "grid":
        side = ClientSide(
            local_engine(config, device, dataset, clients, method, folder / "states"),
            identity_hash(composed),
            [],
            partial(_shared_store, config, method, device, folder / "states"),
            config.finetune,
        )
        grid = InProcessGrid(make_client_app(partial(_hosted, side)), config.num_clients)
    elif grid is None:
        from hyperfed.run.simulation import Simulation

        simulation = Simulation(
            make_client_app(partial(side_of, composed, str(folder.absolute() / "states"))), settings, config.num_clients
        )
        grid, close = simulation, simulation.close
    return FlowerEngine(
        method,
        Nodes(grid, experiment_id(composed, folder), config.num_clients, settings, Wire(folder / "wire.csv")),
        initial_params(config, method.model, device),
        partial(rehearse, config, device, dataset, method, guard),
        str(device),
        config.on_nan,
        close_grid=close,
    )


def check_deployable(composed: Mapping[str, Any]) -> None:
    """Everything about the settings, the data and the method that would end a deployed run before its first round. Raises UserError."""
    config = make_config(composed)
    _, dataset, _, method = prepare(config)
    settings = config.build_engine()
    assert isinstance(settings, Flower)
    check_carrier(config, method, settings)
    build_guard(config, method, make_clients(config, dataset))


def check_carrier(config: Config, method: Method[Any, Any, Any, Any], settings: Flower) -> None:
    """Whether these clients can be where ``settings`` says. Raises UserError."""
    if settings.backend == "deployment" and method.pooled:
        raise UserError(f"method {config.method['name']!r} pools the data of all clients: it cannot be deployed.")
    check_defence(config.build_privacy(), settings)


def check_defence(privacy: Budget | SecAgg | None, settings: Flower) -> None:
    """Secrets from the run's seed are for simulations; and masks need all devices in processes that share it."""
    if privacy is None:
        return
    deployed = settings.backend == "deployment"
    if isinstance(privacy, SecAgg) and (deployed or privacy.secret):
        raise UserError(
            "privacy=secagg has its handshake simulated from the run's seed where engine=flower: it needs privacy.secret=false and "
            "engine.backend grid or simulation."
        )
    if deployed and not privacy.secret:
        raise invalid("privacy.secret", False, "true in a deployment: noise from the run's seed can be taken off by whoever knows the seed")


def experiment_id(composed: Mapping[str, Any], folder: Path) -> str:
    """The configuration's identity and a number drawn when the run's folder was made: client states are bound to it."""
    path = folder / "experiment.json"
    identity = identity_hash(composed)
    if path.exists() and str(found := read_json(path, "experiment")["experiment"]).startswith(identity):
        return str(found)
    if not (folder / "run.json").exists():
        write_json(path, {"experiment": f"{identity}-{secrets.token_hex(4)}"})
        return experiment_id(composed, folder)
    return identity  # another run's folder: Experiment refuses it


def rehearse(config: Config, device: torch.device, dataset: Dataset, method: Method[Any, Any, Any, Any], guard: Guard, down: Any) -> Any:
    """An upload with the structure that every client's must have: one tiny client_update on noise, with a learning rate of nothing."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (REHEARSED, *dataset.images.shape[1:]), dtype=np.uint8)
    images = Images(pixels, np.arange(REHEARSED) % dataset.num_classes, dataset.mean, dataset.std, device)
    index = torch.arange(REHEARSED, device=device)
    held = round(method.validation * REHEARSED)
    local = Local(epochs=1, batch_size=REHEARSED)
    space = Workspace(method.model, images, gpu=Gpu(graphs=False))
    client = DeviceClient(space, 0, index[held:], index[:held], 0, 0, 1e-9, config.optim, local, "rehearsal")
    state = method.init_client(initial_params(config, method.model, device))
    return guard.form(method.client_update(client, state, down)[1])


def _shared_store(config: Config, method: Method[Any, Any, Any, Any], device: torch.device, folder: Path, experiment: str) -> Store[Any]:
    return Store(folder, client_type(method), config.cache_mib * 2**20, str(device))


def _hosted(side: ClientSide, context: Context) -> ClientSide:
    side.hosted = hosted_clients(context.node_config, len(side.engine.train_index))
    return side


def hosted_clients(node_config: Mapping[str, Any], num_clients: int) -> list[int]:
    """``clients = "0,3"`` names them; else partition p of P has the clients k with k mod P = p."""
    if "clients" in node_config:
        clients = client_numbers(str(node_config["clients"]))
    else:
        return list(range(int(node_config["partition-id"]), num_clients, int(node_config["num-partitions"])))
    if not clients or clients[-1] >= num_clients:
        raise UserError(f"clients = {clients} is not valid: must be numbers from 0 to {num_clients - 1}.")
    return clients


def client_numbers(text: str) -> list[int]:
    """The clients that ``text`` names, in order."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() for word in words):
        raise UserError(f"clients = {text!r} is not valid: must be client numbers such as '0,3'.")
    return sorted({int(word) for word in words})


_SIDES: dict[tuple[str, str], ClientSide] = {}


def side_of(composed: Mapping[str, Any], states: str, context: Context) -> ClientSide:
    """A simulated node's side; built once per process and configuration, whichever of the clients it serves."""
    key = (identity_hash(composed), states)
    if key not in _SIDES:
        _SIDES.clear()
        config = make_config(composed)
        device, dataset, _, method = prepare(config)
        engine = local_engine(config, device, dataset, make_clients(config, dataset), method, Path(states))
        _SIDES[key] = ClientSide(engine, key[0], [], partial(_shared_store, config, method, device, Path(states)), config.finetune)
    return _hosted(_SIDES[key], context)


def deployed_side(composed: Mapping[str, Any], context: Context) -> ClientSide:
    """A real node's side. Its node config: ``state-dir``; ``clients``; and ``data``, a folder of its own images, or its share of the
    run's data set, found with ``data-root`` and ``data-cache``; ``device``."""
    node = {name: str(value) for name, value in context.node_config.items()}
    here = {"root": node.get("data-root"), "cache": node.get("data-cache")}
    own = {**composed, "data": {**composed["data"], **{k: v for k, v in here.items() if v}}}
    config = make_config({**own, "device": node.get("device", composed["device"])})
    device, dataset, _, method = prepare(config)
    hosted = hosted_clients(context.node_config, config.num_clients)
    if "data" in node:
        dataset, clients = own_data(config, dataset, Path(node["data"]), hosted)
    else:
        clients = make_clients(config, dataset)
    folder = Path(node["state-dir"]).expanduser()

    def open_store(experiment: str) -> Store[Any]:
        kind = client_type(method)
        return Store(folder / experiment, kind, config.cache_mib * 2**20, str(device), durable=True)

    engine = local_engine(config, device, dataset, clients, method, folder)
    return ClientSide(engine, identity_hash(composed), hosted, open_store, config.finetune)


def own_data(config: Config, like: Dataset, folder: Path, hosted: list[int]) -> tuple[Dataset, list[ClientIndices]]:
    """A folder's images as the data of the one client that is hosted; the others have none here."""
    check_own(folder, hosted)
    dataset = load_folder(folder, like)
    mine = partition(dataset.labels, Iid(), 1, config.seed, test_fraction=config.data.test_fraction)[0]
    none = np.empty(0, np.int64)
    return dataset, [mine if k == hosted[0] else ClientIndices(none, none) for k in range(config.num_clients)]


def check_own(folder: Path, hosted: list[int]) -> None:
    """A folder of images is that of one client."""
    if len(hosted) != 1:
        raise UserError(f"data {str(folder)!r} is one client's, but clients {hosted} are hosted here: name one.")
    if not folder.is_dir():
        raise UserError(f"data {str(folder)!r} is not a folder.")
