"""Record-level differential privacy: DP-SGD on the client (Abadi et al., CCS 2016), whatever the method, the model and the objective.

    g = 1/B ( sum_{i in batch} g_i min(1, C / |g_i|) + N(0, (z C)^2) ),      each of the client's n examples in the batch with chance B / n

g_i is the gradient of one example's objective over all tensors that are trained, as one vector: noise on the shared part alone would not
do, since the personal tensors, trained without it, would carry the examples into the next gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Generator, Tensor
from torch.func import functional_call, grad_and_value, vmap

from hyperfed.core import Objective, Params, Step, UserError
from hyperfed.defences import accountant
from hyperfed.defences.dp import Noisy, Schedule, noise
from hyperfed.defences.draws import draws
from hyperfed.defences.settings import Budget
from hyperfed.engine.probe import Fit
from hyperfed.engine.workspace import Local, Workspace

AT_ONCE = 64
"""Examples whose gradients are held at once."""


def planned(examples: int, size: int, epochs: int, steps: int | None) -> int:
    """Steps of one call of ``fit``: as many as full passes over the data would have."""
    return 0 if not examples else epochs * ceil(examples / size) if steps is None else steps


def per_example(
    space: Workspace, trained: Params, x: Tensor, y: Tensor, objective: Objective | None, rng: Generator
) -> tuple[Params, Tensor]:
    """The gradients of each example's objective, leaves [B, ...], and the objectives [B]."""
    fixed = {n: t for n, t in space.live.items() if n not in trained}

    def one(params: Params, image: Tensor, label: Tensor) -> Tensor:
        live = {**fixed, **params}

        def forward(batch: Tensor) -> Tensor:
            with space.autocast():
                output: Tensor = functional_call(space.module, live, (batch,)).float()
            return output

        step = Step(space.model, live, image[None], label[None], forward, rng)
        return step.loss if objective is None else objective(step)

    detached = {n: t.detach() for n, t in trained.items()}
    try:
        return vmap(grad_and_value(one), in_dims=(None, 0, 0), randomness="different")(detached, x, y)
    except (RuntimeError, NotImplementedError) as problem:
        what = str(problem).strip().splitlines()[0]
        raise UserError(f"privacy=dp_sgd: this method's objective cannot be differentiated example by example ({what}).") from None


def clipped_sum(gradients: Params, bound: float) -> Params:
    """sum_i g_i min(1, bound / |g_i|); leaves [B, ...] -> [...]."""
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    share = (bound / norms).clamp(max=1.0)  # [B]
    return {n: torch.tensordot(share, g, 1) for n, g in gradients.items()}


@dataclass
class Descent:
    """The gradient of DP-SGD, for :class:`~hyperfed.engine.workspace.DeviceClient`."""

    bound: float
    noise_multiplier: Callable[[], float]
    secret: bool

    def batches(self, index: Tensor, size: int, epochs: int, steps: int | None, rng: Generator) -> Iterator[Tensor]:
        """Poisson batches: every example is in with chance size / n, a batch may be empty."""
        source = draws(self.secret, lambda: rng)
        chance = min(1.0, size / max(1, len(index)))
        for _ in range(planned(len(index), size, epochs, steps)):
            drawn = source.uniform(len(index)) < chance
            yield index[drawn.to(index.device)]

    def backward(
        self, space: Any, trained: Params, batch: tuple[Tensor, Tensor], objective: Objective | None, size: int, rng: Generator
    ) -> Tensor:
        """The noised mean gradient; ``size`` is the expected batch, so that the sum's sensitivity is all that counts."""
        total, losses = {n: torch.zeros_like(t) for n, t in trained.items()}, []
        for x, y in zip(*(part.split(AT_ONCE) for part in batch), strict=True):
            if len(x):
                gradients, values = per_example(space, trained, x, y, objective, rng)
                losses.append(values)
                for n, g in clipped_sum(gradients, self.bound).items():
                    total[n] += g
        drawn = noise(total, self.noise_multiplier() * self.bound, draws(self.secret, lambda: rng))
        for n, t in trained.items():
            t.grad = (total[n] + drawn[n]) / size
        return torch.cat(losses).mean() if losses else torch.zeros((), device=batch[0].device)


class RecordNoise(Noisy):
    """Uploads of clients that train with DP-SGD. ``fits`` are the calls of ``fit`` in one turn of the method."""

    unit = "record"

    def __init__(self, budget: Budget, schedule: Schedule, examples: list[int], local: Local, fits: list[Fit]) -> None:
        super().__init__(budget, schedule, 0, {})
        self.examples, self.local, self.fits = examples, local, fits
        self.per_example = Descent(budget.bound, lambda: self.noise_multiplier, budget.secret)

    def steps(self, k: int) -> int:
        """Noised steps of client ``k`` in one turn."""
        local, total = self.local, 0
        for fit in self.fits:
            default = fit.epochs is None and fit.steps is None
            epochs, steps = (local.epochs, local.steps) if default else (fit.epochs or 0, fit.steps)
            total += planned(self.examples[k], local.batch_size, epochs, steps)
        return total

    def epsilon(self, z: float, number: int) -> float:
        """The largest of all clients: an example is as well protected as in the client whose batches show it most."""
        kinds = {
            (min(1.0, self.local.batch_size / n), self.schedule.turns(k, number) * self.steps(k)) for k, n in enumerate(self.examples) if n
        }
        return max(accountant.sampled_examples(z, rate, steps, self.budget.delta) for rate, steps in kinds)
