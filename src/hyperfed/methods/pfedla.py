"""pFedLA (Ma et al., CVPR 2022): for each client a hypernetwork on the server gives the weights to mix all clients' models, per layer.

    alpha_i = HN_i(v_i; psi_i),   sum_j alpha_i^{l,j} = 1
    theta-bar_i^l = sum_j alpha_i^{l,j} theta_j^l;   theta_i = local training from theta-bar_i
    (v_i, psi_i) <- (v_i, psi_i) - eta (d theta-bar_i / d(v_i, psi_i))^T (theta-bar_i - theta_i)

so that the mixture moves towards what the client made of it. HeurpFedLA: the ``keep_layers`` layers with the highest alpha_i^{l,i}
stay at the client.
Ma, Zhang, Guo, Xu: Layer-wised Model Aggregation for Personalized Federated Learning, section 3, Algorithm 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot

from hyperfed.core import Bank, Client, Method, Params, Role, Round, invalid
from hyperfed.core.seeds import generator
from hyperfed.core.tree import sub, weighted_sum
from hyperfed.methods.fedavg import Personal, Shared


class Server(NamedTuple):
    """Every client's last model and hypernetwork; who has either."""

    models: Bank
    hypernets: Bank  # drawn for a client when it is first needed
    met: Tensor  # bool [N]


def layer_of(name: str) -> str:
    """The module of a weight, bias or running statistic; any other tensor (of a hypernetwork) is a layer of its own."""
    module, _, leaf = name.rpartition(".")
    return module if leaf in ("weight", "bias", "running_mean", "running_var") else name


@dataclass(frozen=True)
class PFedLA(Method[Server, Personal, Shared, Shared]):
    """Layer-wise mixtures of all N clients' models. N models are never held at once."""

    revision: ClassVar[int] = 2
    embedding: int = 100
    hidden: int = 100
    hidden_layers: int = 3
    lr: float = 5e-3
    keep_layers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "hidden_layers"):
            if getattr(self, name) < 1:
                raise invalid(f"method.{name}", getattr(self, name), "an integer >= 1")
        if not self.lr > 0:
            raise invalid("method.lr", self.lr, "a number > 0")
        if not 0 <= self.keep_layers < len(self.layers):
            raise invalid("method.keep_layers", self.keep_layers, f"in [0, {len(self.layers)}), the number of layers that travel")

    @cached_property
    def names(self) -> list[str]:
        """The tensors that travel."""
        return [n for n, role in self.model.roles.items() if role in self.shared_scope]

    @cached_property
    def layers(self) -> list[str]:
        """Their layers, L."""
        return list(dict.fromkeys(map(layer_of, self.names)))

    @cached_property
    def place(self) -> Tensor:
        """The layer of each tensor, int64 [tensors]."""
        return torch.tensor([self.layers.index(layer_of(n)) for n in self.names])

    def hypernet(self, server: Server, k: int) -> Params:
        """v_k and psi_k, on the CPU."""
        if server.met[k]:
            return {n: t.cpu() for n, t in server.hypernets.row(k).items()}
        rng = generator(self.seed, "pfedla", k)
        psi = {"v": torch.randn(self.embedding, generator=rng)}
        widths = [self.embedding, *[self.hidden] * self.hidden_layers]
        outputs = [(f"hidden{i}", (width,)) for i, width in enumerate(widths[1:])] + [("heads", (len(self.layers), self.num_clients))]
        for (name, shape), fan_in in zip(outputs, widths, strict=True):
            psi[f"{name}.weight"] = (2 * torch.rand(*shape, fan_in, generator=rng) - 1) * fan_in**-0.5
            psi[f"{name}.bias"] = (2 * torch.rand(*shape, generator=rng) - 1) * fan_in**-0.5
        return psi

    def alpha(self, psi: Params, k: int) -> Tensor:
        """HN_k: weights [L, N] >= 0 with rows of sum 1. A layer whose outputs are all cut to 0 is the client's own."""
        h = psi["v"]
        for i in range(self.hidden_layers):
            h = torch.relu(linear(h, psi[f"hidden{i}.weight"], psi[f"hidden{i}.bias"]))
        out = torch.relu(psi["heads.weight"] @ h + psi["heads.bias"])
        total = out.sum(1, keepdim=True)
        own = one_hot(torch.tensor(k), self.num_clients).to(out)
        return torch.where(total > 0, out / torch.where(total > 0, total, 1.0), own)

    def kept(self, alpha: Tensor, k: int) -> Tensor:
        """The layers that stay at client ``k``, bool [L]."""
        top = alpha[:, k].topk(self.keep_layers).indices
        return torch.zeros(len(self.layers), dtype=torch.bool).index_fill(0, top, True)

    def groups(self, server: Server) -> Iterator[tuple[Tensor, Params]]:
        """Clients [n] that have the same model, and the model: those never met together, then each of the others."""
        met = server.met.cpu()
        if not met.all():
            yield (~met).nonzero().flatten(), server.models.default
        for j in met.nonzero().flatten():
            yield j[None], server.models.row(int(j))

    def mixture(self, server: Server, alpha: Tensor) -> Params:
        """theta-bar."""
        terms = ((alpha[:, j].sum(1)[self.place].tolist(), {n: row[n] for n in self.names}) for j, row in self.groups(server))
        return weighted_sum(terms)

    def pull(self, server: Server, delta: Params) -> Tensor:
        """d theta-bar^T delta with respect to alpha: <delta^l, theta_j^l>, [L, N]. Running statistics are not trained."""
        trained = [i for i, n in enumerate(self.names) if self.model.roles[n] is not Role.STATS]
        out = torch.zeros(len(self.layers), self.num_clients)
        for j, row in self.groups(server):
            dots = torch.stack([(delta[n] * row[n]).sum() for n in (self.names[i] for i in trained)]).cpu()
            out[:, j] = torch.zeros(len(self.layers)).index_add(0, self.place[trained], dots)[:, None].expand(-1, len(j))
        return out

    def step(self, server: Server, k: int, theta: Params) -> Params:
        """(v_k, psi_k) after one step towards the upload ``theta``."""
        psi = {n: t.detach().requires_grad_() for n, t in self.hypernet(server, k).items()}
        alpha = self.alpha(psi, k)
        delta = sub(self.mixture(server, alpha.detach()), theta)
        pull = self.pull(server, delta).masked_fill(self.kept(alpha, k)[:, None], 0.0)
        gradient = torch.autograd.grad(alpha, list(psi.values()), pull)
        return {n: t.detach() - self.lr * d for (n, t), d in zip(psi.items(), gradient, strict=True)}

    def init_server(self, params: Params) -> Server:
        return Server(Bank(self.shared(params)), Bank({}), torch.zeros(self.num_clients, dtype=torch.bool))

    def init_client(self, params: Params) -> Personal:
        return Personal(params if self.keep_layers else self.personal(params))

    def download(self, server: Server, rnd: Round, k: int) -> Shared:
        alpha = self.alpha(self.hypernet(server, k), k)
        stays = self.kept(alpha, k)[self.place].tolist()
        return Shared({n: t for (n, t), stay in zip(self.mixture(server, alpha).items(), stays, strict=True) if not stay})

    def client_update(self, client: Client, state: Personal, down: Shared) -> tuple[Personal, Shared]:
        w = client.fit(self.personalize(state, down))
        return self.init_client(w), Shared(self.shared(w))

    def server_update(self, server: Server, rnd: Round, up: Shared) -> Server:
        hypernets = server.hypernets
        for i, k in enumerate(rnd.ids.tolist()):
            psi = self.step(server, k, {n: t[i] for n, t in up.shared.items()})
            alone = Round(rnd.number, rnd.ids[i : i + 1], rnd.examples[i : i + 1])
            hypernets = hypernets.put(alone, {n: t[None] for n, t in psi.items()})
        met = server.met.index_fill(0, rnd.ids.to(server.met.device), True)
        return Server(server.models.put(rnd, up.shared), hypernets, met)

    def personalize(self, state: Personal, down: Shared) -> Params:
        return {**state.personal, **down.shared}
