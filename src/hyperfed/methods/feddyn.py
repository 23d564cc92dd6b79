"""FedDyn (Acar et al., ICLR 2021): a linear term per client makes the clients' optima agree with the global one.

    w_k = argmin_w L_k(w) - <g_k, w> + alpha / 2 ||w - w_t||^2          g_k <- g_k - alpha (w_k - w_t)
    h  <- h - alpha / m  sum_{k in S} (w_k - w_t)                       w_{t+1} = 1 / |S|  sum_{k in S} w_k - h / alpha

m counts all clients, S the round's. Since all start at 0, h = 1/m sum_k g_k over all m clients, at any time.
Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization, Algorithm 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from hyperfed.core import Client, Method, Over, Params, Role, Round, Step, invalid, select
from hyperfed.core.tree import add, dot, mean, sqdist, sub, zeros_like
from hyperfed.methods.fedavg import Shared


class Server(NamedTuple):
    """The model w and the dual variable h, of the trained tensors only."""

    shared: Params
    h: Params


class State(NamedTuple):
    """What stays on the device: the personal tensors and g_k."""

    personal: Params
    g: Params


class Download(NamedTuple):
    """w_t; and the plain average w_t + h / alpha where that is what clients deploy, else nothing."""

    shared: Params
    average: Params


@dataclass(frozen=True)
class FedDyn(Method[Server, State, Download, Shared]):
    """Dynamic regularisation; a uniform mean over the participants. ``deploy_average`` evaluates the average without h."""

    alpha: float = 0.01
    deploy_average: bool = False

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise invalid("method.alpha", self.alpha, "a number > 0")

    def trained(self, params: Params) -> Params:
        """The shared tensors that g and h correct: not the running statistics."""
        return select(params, self.model.roles, self.shared_scope - {Role.STATS})

    def objective(self, step: Step, g: Params, w_t: Params) -> torch.Tensor:
        """The local objective."""
        return step.loss - dot(step.params, g) + self.alpha / 2 * sqdist(step.params, w_t)

    def init_server(self, params: Params) -> Server:
        return Server(self.shared(params), zeros_like(self.trained(params)))

    def init_client(self, params: Params) -> State:
        return State(self.personal(params), zeros_like(self.trained(params)))

    def download(self, server: Server, rnd: Round, k: int) -> Download:
        if not self.deploy_average:
            return Download(server.shared, {})
        return Download(server.shared, {**server.shared, **add(self.trained(server.shared), server.h, 1 / self.alpha)})

    def client_update(self, client: Client, state: State, down: Download) -> tuple[State, Shared]:
        w_t = self.trained(down.shared)
        w = client.fit({**state.personal, **down.shared}, Over(self.objective, (state.g, w_t)))
        g = add(state.g, sub(self.trained(w), w_t), -self.alpha)
        return State(self.personal(w), g), Shared(self.shared(w))

    def server_update(self, server: Server, rnd: Round, up: Shared) -> Server:
        drift = {n: t.sum(0) for n, t in sub(self.trained(up.shared), server.shared).items()}
        h = add(server.h, drift, -self.alpha / self.num_clients)
        average = mean(up.shared, torch.ones(len(rnd.ids)))
        return Server({**average, **add(self.trained(average), h, -1 / self.alpha)}, h)

    def personalize(self, state: State, down: Download) -> Params:
        return {**state.personal, **down.shared, **down.average}
