"""A few rounds of a small problem, and whether two ways of playing them have the same bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hyperfed.core import Round, flatten
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.optim import Optim
from hyperfed.engine.round import Finetune, play
from hyperfed.engine.workspace import Local
from hyperfed.methods import METHODS
from hyperfed.models import HyperModel, Hypernet
from problems import tiny_engine, tiny_network

SIZES = (20, 23, 30, 17, 20)


def played(name: str, hyper: bool, folder: Path, change: Callable[[LocalEngine], LocalEngine], rounds: int = 3) -> dict[str, Any]:
    """The server's and the clients' tensors, losses and scores after some rounds, of which the last has another learning rate."""
    network = tiny_network()
    method = METHODS[name](HyperModel(network, Hypernet(embedding=4)) if hyper else network, len(SIZES))
    optim = Optim(lr=0.05, schedule="multistep", milestones=(0.2,))
    engine = change(tiny_engine(method, folder, SIZES, optim=optim, local=Local(2, 8)))
    server, out = method.init_server(engine.initial()), dict[str, Any]()
    everyone = torch.arange(len(SIZES))
    for number in range(1, rounds + 1):
        rnd = Round(number, everyone, torch.tensor(SIZES))
        server, out[f"losses {number}"] = play(method, server, rnd, engine, lambda *a: None)
        scores = engine.evaluate(rnd, lambda k, rnd=rnd, server=server: method.download(server, rnd, k), Finetune(1, 0.03125))
        out[f"scores {number}"] = list(scores)
    out |= {f"server {n}": t.cpu() for n, t in flatten(server).items()}
    return out | {f"{k} {n}": t.cpu() for k in range(len(SIZES)) for n, t in flatten(engine.state(k)).items()}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name], name
