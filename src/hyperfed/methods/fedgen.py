"""FedGen (Zhu et al., ICML 2021): a generator of latent features, taught by the clients' heads, regularises local training.

    server:   min_G  E_{y, eps} [ CE( sum_k a_ky h_k(G(y, eps)), y ) ] + eta exp( -mean_ij |z_i - z_j| |eps_i - eps_j|^2 )
    client:   min_w  CE(f(x), y) + alpha_t CE(h(G(y~, eps)), y~) + beta_t KL( h(G(y, eps)) || f(x) ),     y~ ~ p(y)

h: head, z = G(y, eps), a_ky: client k's share of the examples of class y, p(y): the classes' shares; no regularisation in round 1.
Zhu, Hong, Zhou: Data-Free Knowledge Distillation for Heterogeneous Federated Learning, section 4, Algorithm 1.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import batch_norm, cross_entropy, kl_div, linear, log_softmax, one_hot

from hyperfed.core import Client, Method, Over, Params, Role, Round, Step, UserError, invalid
from hyperfed.core.seeds import generator
from hyperfed.core.tree import mean
from hyperfed.methods.fedavg import Personal


class Server(NamedTuple):
    """The average model, the generator with its batch norm's running mean and variance, and p(y)."""

    shared: Params
    generator: Params
    statistics: Tensor  # [2, hidden]
    prior: Tensor  # [C]


class Download(NamedTuple):
    """The average model, the generator (its statistics folded in), p(y), and the decay alpha_t / alpha = beta_t / beta."""

    shared: Params
    generator: Params
    prior: Tensor  # [C]
    decay: Tensor  # []


class Upload(NamedTuple):
    """The trained model and the examples per class."""

    shared: Params
    labels: Tensor  # int64 [C]


def generate(g: Params, y: Tensor, noise: Tensor, statistics: Tensor | None = None) -> Tensor:
    """z = G(y, eps), [B, d]. With ``statistics`` the generator trains: batch norm takes the batch's own and updates the running ones."""
    classes = g["G.in.weight"].shape[1] - noise.shape[1]
    h = linear(torch.cat([noise, one_hot(y, classes).to(noise)], 1), g["G.in.weight"], g["G.in.bias"])
    if statistics is None:
        h = h * g["G.norm.weight"] + g["G.norm.bias"]
    else:
        h = batch_norm(h, statistics[0], statistics[1], g["G.norm.weight"], g["G.norm.bias"], training=True)
    return linear(torch.relu(h), g["G.out.weight"], g["G.out.bias"])


def diversity(z: Tensor, noise: Tensor) -> Tensor:
    """exp(-mean_ij |z_i - z_j| |eps_i - eps_j|^2): small where different noise gives different features."""
    far = (z[:, None] - z[None]).abs().mean(2)
    return torch.exp(-(far * (noise[:, None] - noise[None]).square().mean(2)).mean())


@dataclass(frozen=True)
class FedGen(Method[Server, Personal, Download, Upload]):
    """FedAvg with a generator. ``noise`` and ``hidden`` are the generator's widths; its output is as wide as the head's input."""

    revision: ClassVar[int] = 2
    alpha: float = 10.0
    beta: float = 10.0
    decay: float = 0.98
    eta: float = 1.0
    noise: int = 32
    hidden: int = 32
    generator_steps: int = 40
    generator_batch: int = 32
    generator_lr: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "eta"):
            if getattr(self, name) < 0:
                raise invalid(f"method.{name}", getattr(self, name), "a number >= 0")
        for name, least in (("noise", 1), ("hidden", 1), ("generator_steps", 0), ("generator_batch", 2)):
            if getattr(self, name) < least:
                raise invalid(f"method.{name}", getattr(self, name), f"an integer >= {least}")
        if not 0 < self.decay <= 1:
            raise invalid("method.decay", self.decay, "in (0, 1]")
        if not self.generator_lr > 0:
            raise invalid("method.generator_lr", self.generator_lr, "a number > 0")
        if Role.HEAD not in self.model.communicable or len(self.head) != 2:
            raise UserError("method fedgen teaches its generator with the clients' heads, so a linear head with a bias must travel.")

    @property
    def head(self) -> list[str]:
        """The head's weight [C, d] and bias [C]."""
        return [n for n, role in self.model.roles.items() if role is Role.HEAD]

    def init_server(self, params: Params) -> Server:
        classes, latent = params[self.head[0]].shape
        rng = generator(self.seed, "fedgen", 0)
        g = {"G.norm.weight": torch.ones(self.hidden), "G.norm.bias": torch.zeros(self.hidden)}
        for name, fan_in, width in (("in", self.noise + classes, self.hidden), ("out", self.hidden, latent)):
            g[f"G.{name}.weight"] = (2 * torch.rand(width, fan_in, generator=rng) - 1) * fan_in**-0.5
            g[f"G.{name}.bias"] = (2 * torch.rand(width, generator=rng) - 1) * fan_in**-0.5
        device = params[self.head[0]].device
        statistics = torch.stack([torch.zeros(self.hidden), torch.ones(self.hidden)]).to(device)
        return Server(self.shared(params), {n: t.to(device) for n, t in g.items()}, statistics, torch.full((classes,), 1 / classes))

    def init_client(self, params: Params) -> Personal:
        return Personal(self.personal(params))

    def draw(self, prior: Tensor, rng: Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Labels ~ p(y) and noise ~ N(0, 1), one generator batch."""
        y = torch.multinomial(prior.cpu(), self.generator_batch, replacement=True, generator=rng)
        return y.to(device), torch.randn(len(y), self.noise, generator=rng).to(device)

    def download(self, server: Server, rnd: Round, k: int) -> Download:
        g, (mu, var) = server.generator, server.statistics
        scale = g["G.norm.weight"] * torch.rsqrt(var + 1e-5)
        folded = {**g, "G.norm.weight": scale, "G.norm.bias": g["G.norm.bias"] - mu * scale}
        return Download(server.shared, folded, server.prior, torch.tensor(self.decay ** (rnd.number - 1) if rnd.number > 1 else 0.0))

    def objective(self, down: Download) -> Over:
        """The client's objective. For every mini-batch it draws a generator batch of labels and noise, and noise for its labels."""
        weights = {name: torch.tensor(weight * float(down.decay)) for name, weight in (("alpha", self.alpha), ("beta", self.beta))}

        def draw(rng: torch.Generator, size: int) -> Params:
            y, noise = self.draw(down.prior, rng, torch.device("cpu"))
            return {"y": y, "noise": noise, "noise of x": torch.randn(size, self.noise, generator=rng)}

        return Over(self.loss, (down.generator, weights), draw)

    def loss(self, step: Step, g: Params, weights: Params, drawn: Params) -> Tensor:
        """The loss, and what the generator teaches: its own labels, and the labels of the mini-batch."""
        w, b = (step.params[n] for n in self.head)
        y, noise, noise_of_x = (drawn[n].to(w.device) for n in ("y", "noise", "noise of x"))
        target = log_softmax(linear(generate(g, step.y, noise_of_x), w, b), 1).detach()
        taught = cross_entropy(linear(generate(g, y, noise), w, b), y)
        like_x = kl_div(log_softmax(step.output, 1), target, reduction="batchmean", log_target=True)
        return step.loss + weights["alpha"] * taught + weights["beta"] * like_x

    def client_update(self, client: Client, state: Personal, down: Download) -> tuple[Personal, Upload]:
        w = client.fit(self.personalize(state, down), self.objective(down) if down.decay > 0 else None)
        return Personal(self.personal(w)), Upload(self.shared(w), client.label_counts())

    def ensemble_loss(self, z: Tensor, y: Tensor, up: Upload) -> Tensor:
        """The server's first term: cross entropy of the heads' logits, each weighted by its share of the class."""
        weight, bias = (up.shared[n] for n in self.head)  # [K, C, d], [K, C]
        counts = up.labels.to(z)
        share = counts / counts.sum(0).clamp(min=1)  # [K, C]
        logits = torch.einsum("kcd,bd->bkc", weight, z) + bias
        return cross_entropy(torch.einsum("kb,bkc->bc", share[:, y], logits), y)

    def server_update(self, server: Server, rnd: Round, up: Upload) -> Server:
        prior = up.labels.sum(0).cpu() / up.labels.sum().cpu()
        g = {n: t.clone().requires_grad_() for n, t in server.generator.items()}
        statistics, rng = server.statistics.clone(), generator(self.seed, "fedgen", rnd.number)
        optimiser = torch.optim.Adam(g.values(), lr=self.generator_lr)
        for _ in range(self.generator_steps):
            y, noise = self.draw(prior, rng, statistics.device)
            z = generate(g, y, noise, statistics)
            optimiser.zero_grad()
            torch.autograd.backward(self.ensemble_loss(z, y, up) + self.eta * diversity(z, noise))
            optimiser.step()
        return Server(mean(up.shared, rnd.examples), {n: t.detach() for n, t in g.items()}, statistics, prior)

    def personalize(self, state: Personal, down: Download) -> Params:
        return {**state.personal, **down.shared}
