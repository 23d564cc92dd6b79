"""Arithmetic on Params, written once: every method's formulas stand on these."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from hyperfed.core.types import Params


def zeros_like(a: Params) -> Params:
    """0 in the shape of ``a``."""
    return {n: torch.zeros_like(t) for n, t in a.items()}


def add(a: Params, b: Params, scale: float | Tensor = 1.0) -> Params:
    """a + scale * b."""
    return {n: t + scale * b[n] for n, t in a.items()}


def sub(a: Params, b: Params) -> Params:
    """a - b, over the names of ``a``."""
    return {n: t - b[n] for n, t in a.items()}


def dot(a: Params, b: Params) -> Tensor:
    """<a, b>, over the names of ``b``: ``a`` may hold more. Summed in the order of the names, which a round trip over disk may change."""
    return torch.stack([torch.sum(a[n] * b[n]) for n in sorted(b)]).sum() if b else torch.zeros(())


def sqdist(a: Params, b: Params) -> Tensor:
    """||a - b||^2, over the names of ``b``: ``a`` may hold more. Differentiable in both; summed in the order of the names."""
    if not b:
        return torch.zeros(())
    names = sorted(b)
    differences = torch._foreach_sub([a[n] for n in names], [b[n] for n in names])
    return torch.stack([d.square().sum() for d in differences]).sum()


def mean(stacked: Params, weights: Tensor) -> Params:
    """The mean over the leading axis: weights [K] (any positive numbers), leaves [K, ...] -> [...]."""
    w = weights.to(torch.float64)
    w = w / w.sum()
    return {n: torch.tensordot(w.to(device=t.device, dtype=t.dtype), t, dims=1) for n, t in stacked.items()}


def weighted_sum(terms: Iterable[tuple[Sequence[float], Params]]) -> Params:
    """sum_m w_m a_m; a term is one weight per tensor and the tensors. Terms are read one by one: at most two are held at a time."""
    total: Params = {}
    for weights, row in terms:
        if not total:
            total = dict(zip(row, torch._foreach_mul(list(row.values()), list(weights)), strict=True))
            continue
        scaled = torch._foreach_mul([row[n] for n in total], list(weights))
        torch._foreach_add_(list(total.values()), scaled)
    return total


def clip(a: Params, largest: float) -> Params:
    """a, scaled down to the norm ``largest`` where it is longer; where one element is NaN all are, so that nothing passes unscaled."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(a.values()))))
    return a if norm <= largest else {n: t * (largest / norm) for n, t in a.items()}


def cut(a: Params, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """The leading part of each tensor named in ``shapes``; the inverse of :func:`pad` where that is not zero."""
    return {n: a[n][tuple(slice(side) for side in shape)].contiguous() for n, shape in shapes.items()}


def pad(a: Params, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Each tensor as the leading part of zeros of its shape in ``shapes``."""
    full = {n: t if t.shape == shapes[n] else t.new_zeros(shapes[n]) for n, t in a.items()}
    for n, t in a.items():
        if full[n] is not t:
            full[n][tuple(slice(side) for side in t.shape)] = t
    return full
