"""What kind of method one is, found out by running its functions without training: what it sends, reads and needs to be told."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hyperfed.core import Bank, Method, Params, Round, flatten, unflatten
from hyperfed.core.codec import fields, stack
from hyperfed.core.types import ALL, Objective, Scope

Weighting = Literal["uniform", "examples"]
"""Which mean of the uploads a server needs: of the clients, or of their examples."""


class Fit(NamedTuple):
    """One call of ``fit``: how long it was asked to train; both None is the run's setting."""

    epochs: int | None
    steps: int | None


class Pretender:
    """A client whose training adds noise of its own: enough to see what a method does with messages, without training."""

    def __init__(self, model: Any, k: int, examples: int = 8) -> None:
        self.model, self.num_examples, self.rng = model, examples, torch.Generator().manual_seed(k)
        self.fits: list[Fit] = []
        self.reads: list[str] = []

    def fit(
        self, params: Params, objective: Objective | None = None, *, train: Scope = ALL, epochs: int | None = None, steps: int | None = None
    ) -> Params:
        """Every tensor of a trained role moves a little."""
        self.fits.append(Fit(epochs, steps))
        roles = self.model.roles
        return {n: t + 0.01 * torch.randn(t.shape, generator=self.rng) if roles[n] in train else t for n, t in params.items()}

    def mean_loss(self, params: Params) -> Tensor:
        """Some number that depends on the parameters."""
        self.reads.append("mean_loss")
        return torch.stack([t.square().mean() for t in params.values()]).sum()

    def label_counts(self) -> Tensor:
        """Two labels, different from client to client."""
        self.reads.append("label_counts")
        counts = torch.zeros(self.model.num_classes, dtype=torch.int64)
        counts[torch.randperm(len(counts), generator=self.rng)[:2]] = 4
        return counts


class Played(NamedTuple):
    """The server's state before the last round, that round, its clients, downloads and uploads."""

    server: Any
    rnd: Round
    clients: list[Pretender]
    downs: list[Any]
    ups: list[Any]


def pretend(method: Method[Any, Any, Any, Any], rounds: int, examples: tuple[int, ...], first: int = 1) -> Played:
    """Play ``rounds`` rounds from number ``first`` with one pretender per entry of ``examples``."""
    initial = method.model.init(0)
    server, states = method.init_server(initial), [method.init_client(initial) for _ in examples]
    rnd = Round(first, torch.arange(len(examples)), torch.tensor(examples))
    clients: list[Pretender] = []
    downs: list[Any] = []
    ups: list[Any] = []
    for number in range(first, first + rounds):
        rnd = rnd._replace(number=number)
        if ups:
            server = method.server_update(server, rnd._replace(number=number - 1), stack(ups))
        downs = [method.download(server, rnd, k) for k in range(len(examples))]
        clients = [Pretender(method.model, 100 * number + k, n) for k, n in enumerate(examples)]
        moves = [method.client_update(c, s, d) for c, s, d in zip(clients, states, downs, strict=True)]
        states, ups = [s for s, _ in moves], [method.unpack(k, u) for k, (_, u) in enumerate(moves)]
    return Played(server, rnd, clients, downs, ups)


def repeated(up: Any, weights: Tensor) -> Any:
    """Stacked uploads, each replaced by their mean: weights [K], leaves [K, ...]."""
    share = (weights / weights.sum()).double()
    flat = {n: torch.tensordot(share, t.double(), 1).expand(t.shape).to(t.dtype) for n, t in flatten(up).items()}
    return unflatten(type(up), flat)


def server_tensors(state: Any, clients: int) -> Params:
    """A server's state with the rows of its banks."""
    banks = [field for field, kind in fields(type(state)).items() if kind is Bank]
    rows = {f"{field}[{k}]/{n}": t for field in banks for k in range(clients) for n, t in getattr(state, field).row(k).items()}
    return {**flatten(state), **rows}


def summable(method: Method[Any, Any, Any, Any], number: int = 1) -> Weighting | None:
    """Whether the server's step in round ``number`` is the same when every upload is replaced by their mean, and by which one.

    None: it needs the uploads one by one. Then neither secure aggregation nor noise on the mean has a meaning.
    """
    examples = (8, 24, 4)[: method.num_clients]
    played = pretend(method, 1, examples, number)
    stacked = stack(played.ups)

    def after(up: Any) -> Params:
        return server_tensors(method.server_update(played.server, played.rnd, up), len(examples))

    wanted = after(stacked)
    ways: dict[Weighting, Tensor] = {"uniform": torch.ones(len(examples)), "examples": played.rnd.examples.double()}
    for way, weights in ways.items():
        found = after(repeated(stacked, weights))
        if found.keys() == wanted.keys() and all(torch.allclose(found[n].float(), wanted[n].float(), atol=1e-5) for n in wanted):
            return way
    return None
