"""Runs on a small federation, whatever the engine: 8 clients, digits, three rounds; and a grid whose clients misbehave."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Error, Message
from safetensors.torch import load_file

from hyperfed.core import Bank, flatten
from hyperfed.core.codec import fields
from hyperfed.engine.flower.client_app import make_client_app
from hyperfed.engine.flower.grid import InProcessGrid, Sent
from hyperfed.engine.flower.nodes import WHOAMI
from hyperfed.main import compose_checked, composed_dict
from hyperfed.methods import METHODS
from hyperfed.run.experiment import Experiment
from hyperfed.run.flower import side_of

WANTED = ("fedavg", "fedper", "feddyn", "fedfomo", "pfedhn", "pfedhn_pc", "fedgen", "pfedsim", "pfedla", "local")
CASES = {name: [f"method={name}"] for name in WANTED if name in METHODS} | {
    "hfn": ["method=hfn"],
    "hfn+fedper": ["method=fedper", "hyper=hfn"],
}
SMALL = ["num_clients=8", "rounds=3", "participation=0.6", "eval.every=3", "local.steps=2", "local.batch_size=16", "data.fraction=0.4"]
SMALL += ["finetune.epochs=1", "threads=1", "device=cpu"]
ALL_IN = ("model=mlp", "participation=1", "rounds=2", "num_clients=3", "eval.every=2", "engine.timeout=0.4")


def composed(folder: Path, engine: str, *overrides: str) -> dict[str, Any]:
    if engine == "local":
        overrides = tuple(o for o in overrides if not o.startswith("engine."))
    return composed_dict(compose_checked([*SMALL, f"engine={engine}", f"run.dir={folder}", *overrides]))


def experiment(folder: Path, engine: str, *overrides: str, grid: Any = None) -> Experiment:
    extra = ["engine.backend=grid"] if engine == "flower" and not any(o.startswith("engine.backend") for o in overrides) else []
    return Experiment(composed(folder, engine, *extra, *overrides), grid=grid)


def results(run: Experiment) -> dict[str, Any]:
    """Everything that must agree: server state with banks, client states, ledger, accuracies."""
    out: dict[str, Any] = {"ledger": (run.folder / "ledger.csv").read_text(), "clients": (run.folder / "clients.csv").read_text()}
    out["versions"] = dict(run.fed.engine.store.flush())
    return out | state_files(run.folder) | {f"server/{n}": t for n, t in server_tensors(run).items()}


def server_tensors(run: Experiment) -> dict[str, torch.Tensor]:
    out = dict(flatten(run.server))
    for name, kind in fields(type(run.server)).items():
        if kind is Bank:
            bank = getattr(run.server, name)
            for k in range(run.config.num_clients):
                out |= {f"{name}[{k}]/{n}": t for n, t in bank.row(k).items()}
    return out


def state_files(folder: Path, states: str = "states") -> dict[str, torch.Tensor]:
    """The states that the last checkpoint refers to."""
    last = sorted((folder / "checkpoints").glob("round-*"))[-1]
    versions = json.loads((last / "checkpoint.json").read_text())["versions"]["states"]
    files = {k: folder / states / f"{int(k):06d}-{v:06d}.safetensors" for k, v in versions.items()}
    return {f"state {k}/{n}": t for k, path in files.items() for n, t in load_file(path).items()}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name], name


def notes(folder: Path) -> list[dict[str, Any]]:
    """The lines about clients that were left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == "skipped"]


Trick = Callable[["BadGrid", Sent, list[Message]], list[Message]]


class BadGrid(InProcessGrid):
    """``tricks`` maps (purpose, round, client) to what becomes of that reply: none, another, two."""

    def __init__(self, folder: Path, tricks: dict[tuple[str, int, int], Trick], *overrides: str, nodes: int | None = None) -> None:
        made = composed(folder, "flower", "engine.backend=grid", *overrides)
        super().__init__(make_client_app(partial(side_of, made, str(folder / "states"))), nodes or made["num_clients"])
        self.tricks = tricks
        self.held: list[Message] = []
        self.gone: set[int] = set()
        self.asked: list[int] = []

    def get_node_ids(self) -> list[int]:
        return [n for n in self.contexts if n not in self.gone]

    def answer(self, sent: Sent) -> list[Message]:
        replies = super().answer(sent)
        head = sent.message.content.config_records["hyperfed"]
        key = (sent.message.metadata.message_type, head.get("round"), head.get("client"))
        return self.tricks[key](self, sent, replies) if key in self.tricks else replies

    def pull_messages(self, message_ids: Any) -> list[Message]:
        wanted = set(message_ids)
        number = max([int(s.message.metadata.group_id or 0) for s in self.queue], default=0)
        ready = [m for m in self.held if int(m.metadata.group_id) < number and m.metadata.reply_to_message_id in wanted]
        self.held = [m for m in self.held if m not in ready]
        return [*ready, *super().pull_messages(wanted)]


def failed(grid: BadGrid, sent: Sent, replies: list[Message]) -> list[Message]:
    """The client's node died while it trained: what Flower answers in its place."""
    return [Message(Error(code=5, reason="Node is unavailable."), reply_to=sent.message)]


def silent(grid: BadGrid, sent: Sent, replies: list[Message]) -> list[Message]:
    """No answer, ever."""
    return []


def late(grid: BadGrid, sent: Sent, replies: list[Message]) -> list[Message]:
    """The answer comes when the next round is under way."""
    grid.held += replies
    return []


def twice(grid: BadGrid, sent: Sent, replies: list[Message]) -> list[Message]:
    """The same answer, two times."""
    return [*replies, Message(replies[0].content, reply_to=sent.message)]


def changed(change: Callable[[Any], None]) -> Trick:
    """The answer with something changed in its content."""

    def trick(grid: BadGrid, sent: Sent, replies: list[Message]) -> list[Message]:
        change(replies[0].content)
        return replies

    return trick


def introduction(trick: Trick) -> dict[Any, Trick]:
    """Node 1001's whoami meets ``trick``; ``grid.asked`` counts how often it was sent."""

    def on_whoami(grid: BadGrid, sent: Sent, replies: list[Message]) -> list[Message]:
        grid.asked.append(sent.node)
        return trick(grid, sent, replies) if sent.node == 1001 else replies

    return {(WHOAMI, None, None): on_whoami}
