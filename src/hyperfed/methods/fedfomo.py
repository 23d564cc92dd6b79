"""FedFomo (Zhang et al., ICLR 2021): a client moves towards those trained models that lower its own validation loss.

    w_n = (L_i(theta_i(t-1)) - L_i(theta_n(t))) / ||theta_n(t) - theta_i(t-1)||                             (3)
    theta_i <- theta_i(t-1) + sum_n w+_n (theta_n(t) - theta_i(t-1)),    w+_n = max(w_n, 0) / sum_m max(w_m, 0)

then local training. theta_i(t-1) is the client's model before it was last trained; the models n are those received and theta_i(t), the
client's own after that training. The server sends at most M models, chosen by p_i (p_in <- p_in + w_n), with probability eps_t by chance.
Zhang, Sapra, Fidler, Yeung, Alvarez: Personalized Federated Learning with First Order Model Optimization, sections 3.2 and 3.3.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from hyperfed.core import Bank, Client, Method, Params, Role, Round, invalid
from hyperfed.core.seeds import generator
from hyperfed.core.tree import sqdist


class Server(NamedTuple):
    """Every client's last upload and its row of P; who has uploaded."""

    models: Bank
    affinity: Bank  # p [N]
    met: Tensor  # bool [N]


class Own(NamedTuple):
    """The client's model: its own, from first to last; and its shared part as it was before the last training."""

    params: Params
    before: Params


class Candidates(NamedTuple):
    """Models of other clients, and last the client's own where it is sent back."""

    models: Params  # [M', ...], 0 <= M' <= M + 1
    ids: Tensor  # int64 [M'], -1 for the client's own


class Upload(NamedTuple):
    """The trained model, and the weight (3) of every other client's model that was received."""

    model: Params
    ids: Tensor  # int64 [M], -1 where fewer were received
    weights: Tensor  # [M]


USELESS = -1.0
"""The weight of a model that makes no finite prediction: less than that of one which is no better than the base."""


@dataclass(frozen=True)
class FedFomo(Method[Server, Own, Candidates, Upload]):
    """First-order weights on a fixed validation part. ``resend_own`` adds the client's own last model to the download."""

    revision: ClassVar[int] = 2
    num_models: int = 5
    epsilon: float = 0.3
    epsilon_decay: float = 0.05
    validation_fraction: float = 0.2
    resend_own: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_models < 1:
            raise invalid("method.num_models", self.num_models, "an integer >= 1")
        if not 0 <= self.epsilon <= 1:
            raise invalid("method.epsilon", self.epsilon, "in [0, 1]")
        if self.epsilon_decay < 0:
            raise invalid("method.epsilon_decay", self.epsilon_decay, "a number >= 0")
        if not 0 <= self.validation_fraction < 1:
            raise invalid("method.validation_fraction", self.validation_fraction, "in [0, 1)")

    @property
    def validation(self) -> float:
        return self.validation_fraction

    def init_server(self, params: Params) -> Server:
        nobody = torch.zeros(self.num_clients, dtype=torch.bool)
        return Server(Bank(self.shared(params)), Bank({"p": torch.zeros(self.num_clients)}), nobody)

    def init_client(self, params: Params) -> Own:
        return Own(params, self.shared(params))

    def choose(self, server: Server, rnd: Round, k: int) -> list[int]:
        """At most M others: the highest in p_k, ties by chance; each place goes to anybody else with probability eps_t."""
        rng = generator(self.seed, "fedfomo", rnd.number, k)
        others = torch.tensor([n for n in server.met.nonzero().flatten().tolist() if n != k], dtype=torch.int64)
        others = others[torch.randperm(len(others), generator=rng)]
        ranked = others[server.affinity.row(k)["p"].cpu()[others].argsort(descending=True, stable=True)]
        size = min(self.num_models, len(ranked))
        epsilon = max(self.epsilon - self.epsilon_decay * (rnd.number - 1), 0.0)
        best = size - int((torch.rand(size, generator=rng) < epsilon).sum())
        rest = ranked[best:]
        return [*ranked[:best].tolist(), *rest[torch.randperm(len(rest), generator=rng)[: size - best]].tolist()]

    def download(self, server: Server, rnd: Round, k: int) -> Candidates:
        ids = self.choose(server, rnd, k) + ([k] if self.resend_own and server.met[k] else [])
        chosen = torch.tensor(ids, dtype=torch.int64)
        named = torch.where(chosen == k, -1, chosen)
        if not ids:
            return Candidates({n: t.new_empty((0, *t.shape)) for n, t in server.models.default.items()}, named)
        return Candidates(server.models.rows(chosen), named)

    def weights(self, client: Client, base: Params, models: Params) -> Tensor:
        """Equation (3) for each of ``models`` [M', ...], in [M']; 0 for one that is the base. Running statistics are no distance.

        A model whose loss or distance is no finite number is worth ``USELESS``: NaN would rank it first ever after.
        """
        trained = {n: t for n, t in self.shared(base).items() if self.model.roles[n] is not Role.STATS}
        loss = client.mean_loss(base)
        gains, distances = [], []
        for i in range(len(next(iter(models.values())))):
            other = {n: t[i] for n, t in models.items()}
            gains.append(loss - client.mean_loss({**base, **other}))
            distances.append(sqdist(other, trained).sqrt().cpu())
        gain, distance = torch.stack(gains), torch.stack(distances)
        w = torch.where(distance == 0, 0.0, gain / distance)
        return torch.where(w.isfinite(), w, USELESS)

    def client_update(self, client: Client, state: Own, down: Candidates) -> tuple[Own, Upload]:
        own = self.shared(state.params)
        received = int((down.ids >= 0).sum())  # its own, sent back, is what it has
        models = {n: torch.cat([down.models[n][:received], t[None]]) for n, t in own.items()}
        w = self.weights(client, {**state.params, **state.before}, models)
        positive = w.clamp(min=0)
        start = state.before
        if positive.sum() > 0:
            useful = w != USELESS  # 0 times a model that is not finite is not 0
            if not useful.all():
                positive, models = positive[useful], {n: t[useful.to(t.device)] for n, t in models.items()}
            w_plus = positive / positive.sum()
            start = {n: start[n] + torch.tensordot(w_plus.to(t), t - start[n], 1) for n, t in models.items()}
        theta = client.fit({**state.params, **start})
        missing = self.num_models - received
        ids = torch.cat([down.ids.cpu()[:received], torch.full((missing,), -1)])
        return Own(theta, start), Upload(self.shared(theta), ids, torch.cat([w[:-1], torch.zeros(missing)]))

    def server_update(self, server: Server, rnd: Round, up: Upload) -> Server:
        p = torch.stack([server.affinity.row(k)["p"].cpu() for k in rnd.ids.tolist()])  # [K, N]
        spare = torch.zeros(len(p), 1)  # where the padding goes
        places = torch.where(up.ids < 0, self.num_clients, up.ids)
        p = torch.cat([p, spare], 1).scatter_add(1, places, up.weights)[:, :-1]
        met = server.met.index_fill(0, rnd.ids.to(server.met.device), True)
        return Server(server.models.put(rnd, up.model), server.affinity.put(rnd, {"p": p}), met)

    def personalize(self, state: Own, down: Candidates) -> Params:
        return state.params
