"""One round: the only loop body, whatever carries the messages."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from hyperfed.core import Method, Params, Role, Round
from hyperfed.core.seeds import derive_seed
from hyperfed.engine.guard import Guard, Record
from hyperfed.engine.store import Versions


class StopAsked(KeyboardInterrupt):
    """The engine was asked to stop, and did so between two clients: nothing of the round has been kept."""


class Reply(NamedTuple):
    """A participant's answer: its upload and its mean training loss."""

    client: int
    upload: Any
    loss: float


class Score(NamedTuple):
    """One client's evaluation: test samples, right answers before and (where asked for) after fine-tuning."""

    tests: int
    before: int
    after: int | None


@dataclass(frozen=True)
class Finetune:
    """Local epochs after the federation, on every client, before the second accuracy.

    ``scope``: the roles that are trained, () for all. Batch norm's running statistics follow the client's images in any case; (STATS,)
    is that alone: forward passes that need no label.
    """

    epochs: int = 4
    lr: float = 0.01
    scope: tuple[Role, ...] = ()


Sent = Callable[[int, Any], None]
"""Hears of a client and the message that is on its way to it."""


def unheard(k: int, message: Any) -> None:
    """Who has no ledger."""


class Keeper(Protocol):
    """What checkpoints need of whatever holds the clients' states."""

    def flush(self) -> Versions:
        """Make the present states durable; returns client -> version."""

    def restore(self, versions: Versions) -> None:
        """Go back to these versions."""

    def collect(self, kept: Iterable[Versions]) -> None:
        """Versions that neither the present nor a kept checkpoint refers to may go."""


class Engine(Protocol):
    """Where clients run."""

    @property
    def store(self) -> Keeper:
        """The clients' states."""

    @property
    def device(self) -> str:
        """Where the server's tensors live."""

    @property
    def examples(self) -> list[int]:
        """Training examples of every client."""

    def watch(self, stop: Callable[[], bool], warn: Callable[[int, int, str], None]) -> None:
        """``stop`` is asked between clients; ``warn`` is told (round, client, why) of every client that was left out."""

    def close(self) -> None:
        """Let go of whatever carries the messages."""

    def initial(self) -> Params:
        """The common initial model."""

    def train(self, rnd: Round, download: Callable[[int], Any], sent: Sent = unheard) -> Iterator[Reply]:
        """Let every client of the round train; replies come in the order of ``rnd.ids``, those that failed are missing.

        ``sent`` hears of every download that has left.
        """

    def commit(self, number: int) -> None:
        """Make the clients' new states of this round theirs; before that the round can still be dropped."""

    def evaluate(self, rnd: Round, download: Callable[[int], Any], finetune: Finetune | None) -> Iterator[Score]:
        """Every client's personal model on its own test data, in the order of ``rnd.ids``; no tests where a client did not answer."""


def sample(number: int, num_clients: int, participation: float, seed: int) -> list[int]:
    """The cohort of a round: round(participation * N), a half to the even number, at least one, without replacement, sorted."""
    size = max(1, round(participation * num_clients))
    rng = np.random.default_rng(derive_seed(seed, "cohort", number))
    return sorted(rng.choice(num_clients, size, replace=False).tolist())


def play(
    method: Method[Any, Any, Any, Any], server: Any, rnd: Round, engine: Engine, record: Record, guard: Guard | None = None
) -> tuple[Any, list[float]]:
    """Play one round; every message that passes is recorded. Returns the new server state and the participants' losses."""
    heard, losses = gather(method, server, rnd, engine, record, guard)
    return settle(method, server, rnd, engine, heard), losses


def gather(
    method: Method[Any, Any, Any, Any], server: Any, rnd: Round, engine: Engine, record: Record, guard: Guard | None = None
) -> tuple[tuple[Round, Any] | None, list[float]]:
    """A round's messages: those who answered with their stacked uploads (None: nobody), and their losses. Changes no state."""

    def sent(k: int, message: Any) -> None:
        record(rnd.number, k, "down", message)

    replies = []
    for reply in engine.train(rnd, lambda k: method.download(server, rnd, k), sent):
        record(rnd.number, reply.client, "up", reply.upload)
        replies.append(reply._replace(upload=method.unpack(reply.client, reply.upload)))
    if not replies:
        return None, []
    came = present(rnd, [r.client for r in replies])
    return (guard or Guard()).open(rnd, came, [r.upload for r in replies], record), [r.loss for r in replies]


def settle(method: Method[Any, Any, Any, Any], server: Any, rnd: Round, engine: Engine, heard: tuple[Round, Any] | None) -> Any:
    """The server's new state. Banks and client states are replaced on the way: broken off here, a run goes on from its checkpoint."""
    if heard is not None:
        server = method.server_update(server, *heard)
    engine.commit(rnd.number)
    return server


def federate(
    method: Method[Any, Any, Any, Any], engine: Engine, rounds: int, participation: float, seed: int, guard: Guard
) -> tuple[Any, Round]:
    """All rounds without a folder, ledger or evaluation: the server's state, and the last round."""
    server, sizes, rnd = method.init_server(engine.initial()), engine.examples, None
    for number in range(1, rounds + 1):
        ids = sample(number, method.num_clients, participation, seed)
        rnd = Round(number, torch.tensor(ids), torch.tensor([sizes[k] for k in ids]))
        server, _ = play(method, server, rnd, engine, lambda *message: None, guard)
    assert rnd is not None
    return server, rnd


def present(rnd: Round, clients: list[int]) -> Round:
    """The round as it was for those who answered."""
    where: Tensor = torch.isin(rnd.ids, torch.tensor(clients))
    return Round(rnd.number, rnd.ids[where], rnd.examples[where])
