"""Clients that come after training: pFedHN's hypernetwork stays as it is, only a new embedding is fitted (Shamsian et al., 2021).

``python -m hyperfed.personalize experiment=pfedhn_novel_digits`` trains on all clients but a few and then lets those few join.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp

from hyperfed.core import Client, at_least, invalid
from hyperfed.core.descent import sgd
from hyperfed.core.tree import clip
from hyperfed.methods.fedavg import Personal
from hyperfed.methods.pfedhn import PFedHN, Server, Theta
from hyperfed.models.generator import TABLE


class Joined(NamedTuple):
    """A client that joined: its embedding [e], what it keeps on its device, and the model generated for it."""

    embedding: Tensor
    state: Personal
    down: Theta


def join(method: PFedHN, server: Server, state: Personal, start: Tensor | None = None) -> Joined:
    """A new client before its first visit; its embedding is the mean of the trained ones, or ``start`` [e]."""
    v = server.phi[TABLE].mean(0) if start is None else start
    return Joined(v, state, Theta(_generated(method, server, v)))


def fit_embedding(
    method: PFedHN, server: Server, client: Client, new: Joined, *, visits: int = 20, lr: float = 0.03, momentum: float = 0.9
) -> Joined:
    """v <- v + lr (d theta / d v)^T Delta theta, ``visits`` times, with the method's clipping; phi is not touched.

    A visit is one round of the method for this client: theta goes down, what local training changed in it comes up.
    """
    first = {"v": torch.zeros_like(new.embedding)}
    for _ in range(visits):
        state, up = method.client_update(client, new.state, new.down)
        transpose = vjp(lambda v: _generated(method, server, v), new.embedding)[1]
        (gradient,) = transpose({n: -d for n, d in up.delta.items()})
        moved, first = sgd({"v": new.embedding}, clip({"v": gradient}, method.clip), first, lr, momentum)
        new = Joined(moved["v"], state, Theta(_generated(method, server, moved["v"])))
    return new


def _generated(method: PFedHN, server: Server, v: Tensor) -> dict[str, Tensor]:
    """theta = h(v; phi) for one embedding [e]."""
    return {n: t[0] for n, t in method.generator.apply(server.phi, v[None], server.directions).items()}


def novel_clients(composed: dict[str, Any], novel: int, visits: int, lr: float) -> tuple[dict[str, Any], Path]:
    """Train without the last ``novel`` clients, then let each join; accuracies in [0, 1], weighted by test samples, and their file.

    An untrained embedding is the mean of the trained ones, with what is personal (head, running statistics) trained in as many visits.
    """
    from hyperfed.core.files import write_json
    from hyperfed.engine.round import federate
    from hyperfed.run.build import local_engine, make_clients, prepare
    from hyperfed.run.config import make_config, run_folder

    config, folder = make_config(composed), run_folder(composed)
    at_least("--visits", visits, 1)
    if not 0 < lr < inf:
        raise invalid("--lr", lr, "a finite number > 0")
    if config.engine["name"] != "local":
        raise invalid("engine", config.engine["name"], "local: new clients join in this process only")
    if config.privacy is not None:
        raise invalid("privacy", config.privacy["name"], "none: what new clients send while they join would not be protected")
    device, dataset, _, whole = prepare(config)
    if not isinstance(whole, PFedHN) or whole.widths:
        raise invalid("method", config.method["name"], "pfedhn or pfedhn_pc, without widths: only there the server has an embedding to fit")
    known = config.num_clients - novel
    if not 0 < known < config.num_clients:
        raise invalid("--novel", novel, f"between 1 and {config.num_clients - 1}")
    clients = make_clients(config, dataset)
    for these, who in ((clients[:known], "that train"), (clients[known:], "that join")):
        if not any(len(client.test) for client in these):
            raise invalid("--novel", novel, f"such that some clients {who} have test data: raise data.fraction, or take another")
    method = dataclasses.replace(whole, num_clients=known)
    engine = local_engine(config, device, dataset, clients, method, folder / "states")
    server, rnd = federate(method, engine, config.rounds, config.participation, config.seed, engine.guard)

    def accuracy(hits: list[int], clients: range) -> float:
        return float(np.sum(hits) / sum(len(engine.test_index[k]) for k in clients))

    old, fresh = range(known), range(known, config.num_clients)
    trained = accuracy([engine.correct(k, method.download(server, rnd, k), config.rounds, None)[0] for k in old], old)
    before: list[int] = []
    after: list[int] = []
    for k in fresh:
        client = engine.client(k, config.rounds + 1, "novel", engine.optim, engine.optim.lr)
        new = join(method, server, method.init_client(engine.initial(k)))
        for hits, rate in ((before, 0.0), (after, lr)):  # rate 0: head and running statistics are trained, the embedding is not
            there = fit_embedding(method, server, client, new, visits=visits, lr=rate) if rate or new.state.personal else new
            hits.append(client.correct(method.personalize(there.state, there.down), engine.test_index[k]))
    result = {
        "known_clients": known,
        "novel_clients": novel,
        "visits": visits,
        "lr": lr,
        "known": trained,
        "novel_untrained_embedding": accuracy(before, fresh),
        "novel_fitted_embedding": accuracy(after, fresh),
    }
    write_json(path := folder / f"novel-{novel}-visits-{visits}-lr-{lr:g}.json", result)
    return result, path


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from hyperfed.engine.workspace import NonFiniteLoss
    from hyperfed.main import check_overrides, compose_checked, composed_dict, guarded
    from hyperfed.run.experiment import Diverged

    parser = argparse.ArgumentParser("python -m hyperfed.personalize", description="New clients for a trained pFedHN hypernetwork.")
    parser.add_argument("--novel", type=int, default=5, help="clients that take no part in training (default 5)")
    parser.add_argument("--visits", type=int, default=20, help="rounds in which a new client's embedding is fitted (default 20)")
    parser.add_argument("--lr", type=float, default=0.03, help="learning rate of the new embedding (default 0.03)")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="settings as for 'hyperfed run'")
    given = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)

    def action() -> None:
        check_overrides(given.overrides)
        composed = compose_checked(given.overrides)
        if composed.resume is not None:
            raise invalid("resume", composed.resume, "left out: the clients that are known are trained anew")
        try:
            result, path = novel_clients(composed_dict(composed), given.novel, given.visits, given.lr)
        except NonFiniteLoss as problem:
            raise Diverged(f"{problem} {problem.advice}") from problem
        for name, value in result.items():
            sys.stdout.write(f"{name:<28}{value:.3g}\n")
        sys.stdout.write(f"file: {path}\n")

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
