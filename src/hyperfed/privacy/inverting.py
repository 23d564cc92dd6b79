"""Inverting Gradients (Geiping, Bauermeister, Dröge, Moeller, NeurIPS 2020, section 4): direction instead of length, and smooth images.

    x* = argmin  1 - <g(x), g> / (|g(x)| |g|) + alpha TV(x),    x in [0, 1]

by Adam on the sign of the slope, with a rate of 0.1 divided by 10 after 3/8, 5/8 and 7/8 of the steps. Needs no learning rate.
"""

import time
from math import isfinite

import torch
from torch import Tensor

from hyperfed.core import Params
from hyperfed.core.seeds import generator
from hyperfed.core.tree import dot
from hyperfed.privacy.dlg import Recovered, infer_labels, model_gradient, stand_in, target_of, unknowns
from hyperfed.privacy.observer import NotApplicable, Observation
from hyperfed.privacy.search import Budget


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, across plus down."""
    return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()


def cosine(a: Params, b: Params) -> Tensor:
    """1 - cosine similarity, all tensors as one vector."""
    return 1 - dot(a, b) / (dot({n: a[n] for n in b}, {n: a[n] for n in b}) * dot(b, b)).sqrt()


def invert_gradients(seen: Observation, budget: Budget, seed: int = 0) -> Recovered:
    """``budget.evals`` steps per restart. The label as iDLG reads it; where it cannot be read or granted, it is part of the search."""
    began = time.process_time()
    wanted = {n: -c for n, c in seen.change.items()} if seen.training is None else seen.gradient()
    labels = label(seen)
    best: tuple[Params, float] | None = None
    failed = 0
    for attempt in range(budget.restarts):
        point, value = descend(seen, wanted, labels, budget, seed, attempt)
        if not isfinite(value):
            failed += 1
        elif best is None or value < best[1]:
            best = point, value
    cost = (budget.evals * budget.restarts, failed, time.process_time() - began)
    if best is None:
        return Recovered(None, labels, float("nan"), *cost)
    point, value = best
    chosen = labels if labels is not None else point["y"].argmax(1)
    return Recovered(point["x"].double(), chosen, value, *cost, embeddings=point.get("embed.v"))


def descend(seen: Observation, wanted: Params, labels: Tensor | None, budget: Budget, seed: int, attempt: int) -> tuple[Params, float]:
    """One restart, in the precision of the message: its last point and cosine distance. Weights in search move a tenth as far as pixels."""
    rng, dtype = generator(seed, "attack", attempt), next(iter(wanted.values())).dtype
    weights = {n: t.to(dtype) for n, t in stand_in(seen, seed).items()}
    image = {"x": budget.images(seen.shape, rng).clamp(0, 1).to(dtype).requires_grad_()}
    if labels is None:
        image["y"] = torch.randn(seen.shape[0], seen.model.num_classes, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    hidden = {n: t.clone().requires_grad_() for n, t in unknowns(seen, weights).items()}
    point = {**image, **hidden}
    optimiser = torch.optim.Adam(list(image.values()), lr=0.1)
    if hidden:
        optimiser.add_param_group({"params": list(hidden.values()), "lr": 0.01})
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [budget.evals * k // 8 for k in (3, 5, 7)], 0.1)
    value = torch.zeros(())
    for _ in range(budget.evals):
        value = cosine(model_gradient(seen, {**weights, **hidden}, image["x"], target_of(image, labels)), wanted)
        slopes = torch.autograd.grad(value + budget.smooth * total_variation(image["x"]), list(point.values()), materialize_grads=True)
        for t, slope in zip(point.values(), slopes, strict=True):
            t.grad = slope.sign()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            image["x"].clamp_(0, 1)
    return {n: t.detach() for n, t in point.items()}, value.item()


def label(seen: Observation) -> Tensor | None:
    """Granted, or read off the classifier's gradient; else None."""
    if seen.labels is not None:
        return seen.labels
    try:
        return infer_labels(seen)
    except NotApplicable:
        return None
