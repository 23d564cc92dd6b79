"""pFedHN (Shamsian et al., ICML 2021): a hypernetwork on the server generates every client's model, theta_i = h(v_i; phi).

    client:  theta~_i = local SGD from theta_i,  Delta theta_i = theta~_i - theta_i
    server:  (phi, v_i) <- (phi, v_i) + alpha (d theta_i / d(phi, v_i))^T Delta theta_i

Shamsian, Navon, Fetaya, Chechik: Personalized Federated Learning using Hypernetworks, Algorithm 1.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from hyperfed.core import ALL, Client, Method, Params, Role, Round, UserError, invalid
from hyperfed.core.descent import adam, sgd
from hyperfed.core.seeds import generator
from hyperfed.core.tree import clip, cut, pad, sub, zeros_like
from hyperfed.core.types import select
from hyperfed.methods.fedavg import Personal
from hyperfed.models.generator import TABLE, ModelGenerator, Shapes, narrowed


class Server(NamedTuple):
    """phi with the embeddings, its optimiser's first and (Adam) second moments, and (spectral norm) leading singular vectors."""

    phi: Params
    first: Params
    second: Params
    directions: Params


class Theta(NamedTuple):
    """The model generated for one client."""

    theta: Params


class Delta(NamedTuple):
    """What local training changed in it."""

    delta: Params


@dataclass(frozen=True)
class PFedHN(Method[Server, Personal, Theta, Delta]):
    """The server's hypernetwork generates every client's whole model and learns from what training changes in it."""

    revision: ClassVar[int] = 2
    scope = ALL - {Role.STATS}  # running statistics belong to the model a client has trained

    lr: float = 1e-2
    optimiser: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-3
    clip: float = 50.0
    cohort: str = "mean"
    embedding: int | None = None
    hidden: int = 100
    depth: int = 3
    spectral_norm: bool = False
    widths: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        roles = set(self.model.roles.values())
        if Role.HYPER in roles:
            raise UserError("pFedHN generates the whole of a plain network on its server: over HFN it has no meaning; use hyper=none.")
        for name, low in (("embedding", 1), ("hidden", 1), ("depth", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise invalid(f"method.{name}", value, f"an integer >= {low}" + (" or null" if name == "embedding" else ""))
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise invalid(f"method.{name}", getattr(self, name), "a number > 0")
        if not 0 <= self.momentum < 1:
            raise invalid("method.momentum", self.momentum, "in [0, 1)")
        if self.weight_decay < 0:
            raise invalid("method.weight_decay", self.weight_decay, "a number >= 0")
        for name, choices in (("optimiser", ("sgd", "adam")), ("cohort", ("mean", "sum"))):
            if getattr(self, name) not in choices:
                raise invalid(f"method.{name}", getattr(self, name), " or ".join(choices))
        if self.widths and roles & {Role.NORM, Role.STATS}:
            raise UserError("method.widths: a padded network with normalisation layers is not the small network; use cnn, lenet or mlp.")
        for width in self.widths:
            if not 0 < width <= 1:
                raise invalid("method.widths", width, "fractions in (0, 1]")
            narrowed(self.shapes, self.model.roles, width)

    @cached_property
    def shapes(self) -> Shapes:
        """Every tensor of the full model."""
        return {name: tuple(t.shape) for name, t in self.model.init(0).items()}

    @cached_property
    def generator(self) -> ModelGenerator:
        """h; by default the embeddings have 1 + N / 4 dimensions, rounded down."""
        target = {n: s for n, s in self.shapes.items() if self.model.roles[n] in self.shared_scope}
        e = self.embedding or int(1 + self.num_clients / 4)
        return ModelGenerator(target, self.num_clients, e, self.hidden, self.depth, self.spectral_norm)

    def generate(self, phi: Params, ids: Tensor, directions: Params) -> Params:
        """theta_i of the clients ``ids``, leaves [K, ...]."""
        return self.generator.apply(phi, phi[TABLE][ids], directions)

    def init_server(self, params: Params) -> Server:
        norms = select(params, self.model.roles, frozenset({Role.NORM}))  # scales start at 1, shifts at 0
        phi = self.generator.init(generator(self.seed, "pfedhn"), {n: t.cpu() for n, t in norms.items()})
        device = next(iter(params.values())).device
        phi = {n: t.to(device) for n, t in phi.items()}
        return Server(phi, zeros_like(phi), zeros_like(phi) if self.optimiser == "adam" else {}, self.generator.directions(phi))

    def init_client(self, params: Params) -> Personal:
        return Personal(self.personal(params))

    def download(self, server: Server, rnd: Round, k: int) -> Theta:
        theta = self.generate(server.phi, torch.tensor([k]), server.directions)
        return Theta(cut({n: t[0] for n, t in theta.items()}, {n: self.width_of(k)[n] for n in theta}))

    def client_update(self, client: Client, state: Personal, down: Theta) -> tuple[Personal, Delta]:
        w = client.fit(self.personalize(state, down))
        return Personal(self.personal(w)), Delta(sub(cut(w, {n: t.shape for n, t in down.theta.items()}), down.theta))

    def unpack(self, k: int, up: Delta) -> Delta:
        return Delta(pad(up.delta, self.shapes))

    def server_update(self, server: Server, rnd: Round, up: Delta) -> Server:
        transpose = vjp(lambda phi: self.generate(phi, rnd.ids, server.directions), server.phi)[1]
        share = len(rnd.ids) if self.cohort == "mean" else 1
        (gradient,) = transpose({n: -delta / share for n, delta in up.delta.items()})
        gradient, second = clip(gradient, self.clip), server.second
        if self.optimiser == "adam":
            phi, first, second = adam(server.phi, gradient, server.first, second, self.lr, rnd.number)
        else:
            phi, first = sgd(server.phi, gradient, server.first, self.lr, self.momentum, self.weight_decay)
        visited = torch.zeros(self.num_clients, 1, dtype=torch.bool, device=phi[TABLE].device)
        visited[rnd.ids] = True
        for new, old in ((phi, server.phi), (first, server.first), (second, server.second)):
            if new:  # the embeddings of clients that were away do not move
                new[TABLE] = torch.where(visited, new[TABLE], old[TABLE])
        return Server(phi, first, second, self.generator.advance(phi, server.directions))

    def personalize(self, state: Personal, down: Theta) -> Params:
        personal = state.personal
        if self.widths:  # the client's width is that of its message
            width = min(t.shape[0] / self.shapes[n][0] for n, t in down.theta.items())
            narrow = narrowed(self.shapes, self.model.roles, width)
            personal = pad(cut(personal, {n: narrow[n] for n in personal}), self.shapes)
        return {**personal, **pad(down.theta, self.shapes)}

    def width_of(self, k: int) -> Shapes:
        """The shapes of client ``k``'s network: widths are dealt to the clients in turn."""
        return narrowed(self.shapes, self.model.roles, self.widths[k % len(self.widths)]) if self.widths else self.shapes


@dataclass(frozen=True)
class PFedHNPC(PFedHN):
    """pFedHN-PC: the server generates all but the classifier, which is personal to the client and never leaves it."""

    scope = ALL - {Role.STATS, Role.HEAD}

    lr: float = 5e-2
