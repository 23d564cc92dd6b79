"""Deep Leakage from Gradients and its improved form, against any method's message.

Zhu, Liu, Han: Deep Leakage from Gradients, NeurIPS 2019, Algorithm 1:

    x*, y* = argmin || dL(f(x; w), softmax(y)) / dw - g ||^2

Zhao, Mopuri, Bilen: iDLG: Improved Deep Leakage from Gradients, arXiv 2001.02610: the same with y known, since of one image's gradient with
respect to the last layer's bias, p_c - [c = y], only the label's entry is negative.

What the message does not hold of the model is known by the threat model's grant, or guessed as a fresh initial model: the naive attacker
keeps the guess, the adaptive one searches on from there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hyperfed.core import Params, Role
from hyperfed.core.seeds import derive_seed
from hyperfed.privacy.observer import NotApplicable, Observation
from hyperfed.privacy.search import Budget, Found, search


@dataclass(frozen=True)
class Recovered:
    """What an attack brings back: images [B, channels, size, size], labels [B], its objective and cost.

    Where it finds them: ``embeddings`` [J, N_v]; ``features`` [B, 12, H / 2, W / 2], what a private first convolution makes of the images.
    """

    images: Tensor | None
    labels: Tensor | None
    objective: float
    evals: int
    failed: int
    cpu_seconds: float
    embeddings: Tensor | None = None
    features: Tensor | None = None


def infer_labels(seen: Observation) -> Tensor:
    """The label of one image [1]: where the gradient of the head's bias (of its weights' row sums without one) is negative."""
    gradient = seen.gradient()
    head = [n for n in gradient if seen.model.roles[n] is Role.HEAD]
    if not head:
        raise NotApplicable(
            f"iDLG reads the label off the classifier's gradient, which {seen.method}'s message does not hold: grant 'labels'."
        )
    if seen.shape[0] != 1:
        raise NotApplicable(f"iDLG reads the label of one image; this message is of a batch of {seen.shape[0]}: grant 'labels'.")
    narrow = min(head, key=lambda n: gradient[n].ndim)
    rows = gradient[narrow].flatten(1).sum(1) if gradient[narrow].ndim > 1 else gradient[narrow]
    return rows.argmin()[None]


def stand_in(seen: Observation, seed: int) -> Params:
    """The whole model: what is known, and a guess at the rest drawn as a client would start."""
    guess = {n: t.double() for n, t in seen.model.init(derive_seed(seed, "guess")).items()}
    return {**guess, **seen.known}


def unknowns(seen: Observation, guess: Params) -> Params:
    """The guessed weights that are unknowns of the search: of an adaptive attacker all trained ones that are neither sent nor granted."""
    if seen.level != "adaptive":
        return {}
    return {n: t for n, t in guess.items() if n not in seen.known and seen.model.roles[n] is not Role.STATS}


def model_gradient(seen: Observation, weights: Params, x: Tensor, target: Tensor) -> Params:
    """The gradient, by the tensors of the message, of the mean cross entropy of ``x`` [B, ...] with classes [B] or probabilities [B, C]."""
    names = list(seen.change)
    live = {**weights, **{n: weights[n].detach().requires_grad_() for n in names}}
    output, _ = seen.model.apply(live, x, train=True)
    slopes = torch.autograd.grad(cross_entropy(output, target), [live[n] for n in names], create_graph=True)
    return dict(zip(names, slopes, strict=True))


def distance(a: Params, b: Params) -> Tensor:
    """sum of ||a - b||^2."""
    return torch.stack([(a[n] - t).square().sum() for n, t in b.items()]).sum()


def target_of(point: Params, labels: Tensor | None) -> Tensor:
    """The labels, or the softmax of the logits in search [B, C]."""
    return labels if labels is not None else point["y"].softmax(1)


def dlg(seen: Observation, budget: Budget, seed: int = 0) -> Recovered:
    """DLG. Labels granted by the threat model are used, else they are part of the search."""
    return match(seen, seen.labels, budget, seed)


def idlg(seen: Observation, budget: Budget, seed: int = 0) -> Recovered:
    """iDLG. Raises where the message has no classifier's gradient and labels are not granted."""
    return match(seen, infer_labels(seen) if seen.labels is None else seen.labels, budget, seed)


def match(seen: Observation, labels: Tensor | None, budget: Budget, seed: int) -> Recovered:
    """Images whose gradient is nearest to the message's."""
    wanted, weights = seen.gradient(), stand_in(seen, seed)
    unknown = unknowns(seen, weights)
    scale = 1 / torch.stack([g.square().sum() for g in wanted.values()]).sum()  # the minimiser's line search likes numbers near 1

    def draw(rng: torch.Generator) -> Params:
        point = {"x": budget.images(seen.shape, rng), **unknown}
        if labels is None:
            point["y"] = torch.randn(seen.shape[0], seen.model.num_classes, generator=rng, dtype=torch.float64)
        return point

    def objective(point: Params) -> Tensor:
        live = {**weights, **{n: point[n] for n in unknown}}
        return scale * distance(model_gradient(seen, live, point["x"], target_of(point, labels)), wanted)

    return recovered(search(objective, draw, budget, seed), labels)


def recovered(found: Found, labels: Tensor | None) -> Recovered:
    """Images in [0, 1] and labels of the best attempt; none where every attempt ended in NaN."""
    x, y = found.point.get("x"), found.point.get("y")
    chosen = labels if labels is not None or y is None else y.argmax(1)
    cost = (found.objective, found.evals, found.failed, found.cpu_seconds)
    return Recovered(None if x is None else x.clamp(0, 1), chosen, *cost, embeddings=found.point.get("embed.v"))
