"""An attack made for HFN: it needs no secret of the client, only phi, the architecture and one message of few local steps.

What :mod:`hyperfed.privacy.hull` finds exactly leaves J (J - 1) numbers of the embeddings unknown. Whatever the head and the label are,
they reach the convolutions only as the gradient of their output: a free vector of the search, as are private biases and kernels.

Without embeddings the same search serves methods that keep only the head (FedPer, FedRep, FedBABU).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, linear

from hyperfed.core import Params
from hyperfed.privacy.dlg import Recovered, distance, recovered, target_of
from hyperfed.privacy.hull import Hull, Mixture, as_rows, barycentric, embedding_hull, first_guess, mixture, phi_of, unmask
from hyperfed.privacy.networks import LAYERS, WIDTH, HyperLeNet, LeakyLeNet, features, filters, plain_lenet_of, stem_maps
from hyperfed.privacy.observer import Observation
from hyperfed.privacy.search import Budget, search

SMALL = 0.1
"""The size of everything but pixels, by which the search measures it: L-BFGS begins as if all unknowns were equally large."""


@dataclass(frozen=True)
class Problem:
    """One message: what is known, what is searched for, and the gradients that a point would have shown."""

    seen: Observation

    @cached_property
    def network(self) -> LeakyLeNet:
        """The network below the hypernetwork."""
        return plain_lenet_of(self.seen.model)

    @cached_property
    def known(self) -> Params:
        """Weights by the plain network's names."""
        return {n.removeprefix("net."): t for n, t in self.seen.known.items()}

    @cached_property
    def made(self) -> list[str]:
        """Kernels that the hypernetwork generates."""
        model = self.seen.model
        return [f"convs.{i}.weight" for i in range(model.first, LAYERS)] if isinstance(model, HyperLeNet) else []

    @cached_property
    def hidden(self) -> dict[str, torch.Size]:
        """Private tensors of the convolutions."""
        tensors = self.network.init(0)
        return {n: t.shape for n, t in tensors.items() if n.startswith("convs") and n not in self.known and n not in self.made}

    @cached_property
    def gradient(self) -> Params:
        """The message's gradient."""
        return self.seen.gradient()

    @cached_property
    def hull(self) -> Hull:
        """The hull of the embeddings."""
        return embedding_hull(self.gradient, len(self.made))

    @cached_property
    def mixed(self) -> Mixture:
        """The filters' gradients at the corners of a simplex in the hull."""
        return mixture(self.seen, self.hull.simplex())

    @cached_property
    def base(self) -> Tensor:
        """Filters at these corners, [J, out, in, f, f]."""
        return filters(phi_of(self.seen), self.mixed.points)

    @cached_property
    def wanted(self) -> Params:
        """What a point must show."""
        if self.made:
            return {"mixed": self.mixed.target}
        return {n: g for n, g in self.gradient.items() if n.startswith("convs")}

    def start(self, budget: Budget, rng: Generator, turn: int) -> Params:
        """The unknowns; all but the images are stored divided by ``SMALL``."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        shape = self.seen.shape
        point = {"x": budget.images(shape, rng)}
        if "fc.weight" not in self.known:
            point["delta"] = normal(shape[0], self.network.module().fc.in_features)  # type: ignore[union-attr, arg-type]
        elif self.seen.labels is None:
            point["y"] = normal(shape[0], self.network.num_classes) / SMALL
        point |= {n: torch.zeros(s, dtype=torch.float64) if len(s) == 1 else normal(*s) for n, s in self.hidden.items()}
        if self.made:
            point["tau"] = first_guess(self.mixed, shape[1], len(self.made), rng, turn) / SMALL
        return point

    def shown(self, stored: Params) -> Params:
        """The gradients that the point's images would have sent."""
        point = {n: t if n == "x" else SMALL * t for n, t in stored.items()}
        x, weights = point["x"], {**self.known, **point}
        if self.made:
            turn = barycentric(point["tau"])
            for name, kernel in zip(self.made, torch.einsum("jk,koixy->joixy", turn, self.base), strict=True):
                weights[name] = kernel[:, : x.shape[1] if name == "convs.0.weight" else WIDTH]
        names = self.made or list(self.wanted)
        for n in names:
            weights[n] = weights[n] if weights[n].requires_grad else weights[n].detach().requires_grad_()
        h = features(x, [weights[f"convs.{i}.weight"] for i in range(LAYERS)], [weights[f"convs.{i}.bias"] for i in range(LAYERS)])
        if "delta" in point:
            loss = (h * point["delta"]).sum() / len(x)
        else:
            loss = cross_entropy(linear(h, weights["fc.weight"], weights["fc.bias"]), target_of(point, self.seen.labels))
        slopes = torch.autograd.grad(loss, [weights[n] for n in names], create_graph=True)
        if not self.made:
            return dict(zip(names, slopes, strict=True))
        rows = torch.einsum("jk,jir->kir", turn, torch.stack([as_rows(s) for s in slopes]))
        return {"mixed": self.mixed.seen(rows.flatten(0, 1))}


def structured(seen: Observation, budget: Budget, seed: int = 0) -> Recovered:
    """Images, and for HFN the embeddings, from one message."""
    problem = Problem(unmask(seen))
    scale = 1 / torch.stack([g.square().sum() for g in problem.wanted.values()]).sum()
    turns = count()

    def objective(point: Params) -> Tensor:
        return scale * distance(problem.shown(point), problem.wanted)

    found = search(objective, lambda rng: problem.start(budget, rng, next(turns)), budget, seed, within={"x": (0.0, 1.0)})
    out = recovered(found, seen.labels)
    if problem.made and found.point:
        out = replace(out, embeddings=problem.hull.points(SMALL * found.point["tau"]))
    if "convs.0.weight" in problem.hidden and found.point:
        point = {n: t if n == "x" else SMALL * t for n, t in found.point.items()}
        out = replace(out, features=stem_maps(point["x"], {**problem.known, **point}))
    return out
