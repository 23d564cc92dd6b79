"""Minimisation in float64: L-BFGS with a Wolfe line search, restarts chosen by the attacker's own objective, a budget in evaluations."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Generator, Tensor

from hyperfed.core import Params, invalid, unknown
from hyperfed.core.seeds import generator

STARTS = ("normal", "grey")


@dataclass(frozen=True)
class Budget:
    """What an attack may spend: evaluations, L-BFGS history, restarts, retries after NaN; it ends below ``enough``.

    ``smooth``: the weight of total variation, where an attack has it.
    """

    evals: int = 400
    history: int = 100
    restarts: int = 1
    retries: int = 2
    start: str = "normal"
    enough: float = 0.0
    smooth: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("evals", "history", "restarts"):
            if getattr(self, name) < 1:
                raise invalid(f"budget.{name}", getattr(self, name), "an integer >= 1")
        if self.start not in STARTS:
            raise unknown("budget.start", self.start, STARTS)

    def images(self, shape: tuple[int, ...], rng: Generator) -> Tensor:
        """Where the search for images begins: N(0, 1) as in DLG, or grey with a little noise."""
        noise = torch.randn(shape, generator=rng, dtype=torch.float64)
        return noise if self.start == "normal" else 0.5 + 0.05 * noise


class Found(NamedTuple):
    """The best point by objective, what it cost, and how many attempts ended in NaN."""

    point: Params
    objective: float
    evals: int
    failed: int
    cpu_seconds: float


class _Diverged(ArithmeticError):
    """The objective is not finite."""

    def __init__(self, used: int) -> None:
        super().__init__(f"not finite at evaluation {used}")
        self.used = used


Box = Mapping[str, tuple[float, float]]
NO_BOX: Box = MappingProxyType({})


def minimise(objective: Callable[[Params], Tensor], start: Params, budget: Budget, within: Box) -> tuple[Params, float, int]:
    """The point reached from ``start``, its objective and the evaluations it took. Raises when the objective is not finite."""
    names, shapes = list(start), [t.shape for t in start.values()]
    bounds = [within.get(n, (None, None)) for n, s in zip(names, shapes, strict=True) for _ in range(s.numel())] if within else None
    used = 0

    def split(flat: Tensor) -> Params:
        return {n: part.reshape(s) for n, part, s in zip(names, flat.split([s.numel() for s in shapes]), shapes, strict=True)}

    def both(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal used
        used += 1
        flat = torch.tensor(z, requires_grad=True)  # a copy: the last bits of products depend on where their operands lie
        value = objective(split(flat))
        (slope,) = torch.autograd.grad(value, flat)
        if not torch.isfinite(value) or not torch.isfinite(slope).all():
            raise _Diverged(used)
        return value.item(), slope.numpy()

    def stop(intermediate_result: OptimizeResult) -> None:
        if intermediate_result.fun < budget.enough:
            raise StopIteration

    z, best = torch.cat([t.reshape(-1) for t in start.values()]).numpy(), float("inf")
    while (
        used < budget.evals and best >= budget.enough
    ):  # a line search that gives up starts again with an empty history, as long as that helps
        options = {"maxcor": budget.history, "maxfun": budget.evals - used, "maxiter": budget.evals, "ftol": 0, "gtol": 0, "maxls": 40}
        result = minimize(both, z, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=stop)
        if not result.fun < best:
            break
        z, best = result.x, float(result.fun)
    return split(torch.from_numpy(z)), best, used


def search(
    objective: Callable[[Params], Tensor], draw: Callable[[Generator], Params], budget: Budget, seed: int, within: Box = NO_BOX
) -> Found:
    """The best of ``budget.restarts`` attempts by objective: each gets a quarter of the evaluations, the best so far the rest.

    ``within`` bounds unknowns by name.
    """
    began, spent, failed = time.process_time(), 0, 0
    trial = replace(budget, evals=budget.evals if budget.restarts == 1 else max(1, budget.evals // 4))
    best: tuple[Params, float] | None = None

    def attempt(point: Params, share: Budget) -> bool:
        nonlocal best, spent, failed
        try:
            point, value, used = minimise(objective, point, share, within)
        except _Diverged as problem:
            failed += 1
            spent += problem.used
            return False
        spent += used
        if best is None or value < best[1]:
            best = point, value
        return True

    tried = done = 0
    while done < budget.restarts and failed <= budget.retries and not (best and best[1] < budget.enough):
        done += attempt(draw(generator(seed, "attack", tried)), trial)
        tried += 1
    if best and budget.evals > trial.evals and best[1] >= budget.enough:
        attempt(best[0], replace(budget, evals=budget.evals - trial.evals))
    point, value = best or ({}, float("nan"))
    return Found(point, value, spent, failed, time.process_time() - began)
