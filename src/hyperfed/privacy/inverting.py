"""Inverting Gradients (Geiping, Bauermeister, Dröge, Moeller, NeurIPS 2020, section 4): direction instead of length, and smooth images.

    x* = argmin  1 - <g(x), g> / (|g(x)| |g|) + alpha TV(x),    x in [0, 1]

by Adam on the sign of the slope, with a rate of 0.1 divided by 10 after 3/8, 5/8 and 7/8 of the steps. Needs no learning rate.
"""

import time

import torch
from torch import Tensor

from hyperfed.core import Params
from hyperfed.core.seeds import generator
from hyperfed.core.tree import dot
from hyperfed.privacy.dlg import Recovered, infer_labels, model_gradient, stand_in, target_of
from hyperfed.privacy.observer import NotApplicable, Observation
from hyperfed.privacy.search import Budget


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, across plus down."""
    return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()


def cosine(a: Params, b: Params) -> Tensor:
    """1 - cosine similarity, all tensors as one vector."""
    return 1 - dot(a, b) / (dot({n: a[n] for n in b}, {n: a[n] for n in b}) * dot(b, b)).sqrt()


def invert_gradients(seen: Observation, budget: Budget, seed: int = 0, tv: float = 1e-3) -> Recovered:
    """``budget.evals`` steps per restart. The label as iDLG reads it; where it cannot be read or granted, it is part of the search."""
    began = time.process_time()
    wanted = {n: -c for n, c in seen.change.items()} if seen.training is None else seen.gradient()
    weights, labels = stand_in(seen, seed), label(seen)
    best: tuple[Params, float] | None = None
    failed = 0
    for attempt in range(budget.restarts):
        rng = generator(seed, "attack", attempt)
        point = {"x": budget.images(seen.shape, rng).clamp(0, 1).requires_grad_()}
        if labels is None:
            point["y"] = torch.randn(seen.shape[0], seen.model.num_classes, generator=rng, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam(list(point.values()), lr=0.1)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [budget.evals * k // 8 for k in (3, 5, 7)], 0.1)
        for _ in range(budget.evals):
            value = cosine(model_gradient(seen, weights, point["x"], target_of(point, labels)), wanted)
            slopes = torch.autograd.grad(value + tv * total_variation(point["x"]), list(point.values()))
            for t, slope in zip(point.values(), slopes, strict=True):
                t.grad = slope.sign()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                point["x"].clamp_(0, 1)
        if not torch.isfinite(value):
            failed += 1
        elif best is None or value.item() < best[1]:
            best = {n: t.detach() for n, t in point.items()}, value.item()
    spent = time.process_time() - began
    if best is None:
        return Recovered(None, labels, float("nan"), budget.evals * budget.restarts, failed, spent)
    chosen = labels if labels is not None else best[0]["y"].argmax(1)
    return Recovered(best[0]["x"], chosen, best[1], budget.evals * budget.restarts, failed, spent)


def label(seen: Observation) -> Tensor | None:
    """Granted, or read off the classifier's gradient; else None."""
    if seen.labels is not None:
        return seen.labels
    try:
        return infer_labels(seen)
    except NotApplicable:
        return None
