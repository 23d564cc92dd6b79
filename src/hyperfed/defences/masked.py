"""Secure aggregation as a guard of the round: uploads leave a device as masked integers, the method sees their mean."""

import os
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperfed.core import Params, Round, UserError, flatten, unflatten
from hyperfed.core.seeds import generator
from hyperfed.defences.secagg import Cohort, Entropy
from hyperfed.defences.settings import SecAgg
from hyperfed.engine.guard import Guard, Record
from hyperfed.engine.probe import Weighting


class Handshake(NamedTuple):
    """The bytes of the protocol's own messages."""

    payload: Tensor  # uint8 [n]


def to_vector(flat: Params) -> np.ndarray:
    """All elements, float64 [n]."""
    return torch.cat([t.detach().reshape(-1).double().cpu() for t in flat.values()]).numpy()


def from_vector(vector: Tensor, like: Params) -> Params:
    """The inverse, in the vector's type."""
    parts = vector.split([t.numel() for t in like.values()])
    return {n: p.reshape(t.shape).to(t.device) for (n, t), p in zip(like.items(), parts, strict=True)}


class Masked(Guard):
    """Fixed-point numbers modulo 2^32: client k's is round(n_k w s), |w| <= bound, n_k its examples (1 where the server's mean is uniform).

    s = 2^31 / (bound sum_k n_k) is the largest that cannot overflow; the mean over K clients is then off by at most K bound / 2^32.
    Handshakes run in this process, and with the run's seed every device's keys can be had by whoever knows it: see docs/defences.md.
    """

    sends_loss = False
    sum_only = True

    def __init__(self, settings: SecAgg, cohort: Callable[[int], list[int]], examples: list[int], weighting: Weighting, seed: int) -> None:
        self.settings, self.cohort, self.seed = settings, cohort, seed
        self.weights = examples if weighting == "examples" else [1] * len(examples)
        self._now: tuple[int, Cohort] | None = None

    def entropy(self, number: int, k: int) -> Entropy:
        """Where device ``k`` has its secrets of the round from."""

        def draw(purpose: str, n: int) -> bytes:
            if self.settings.secret:
                return os.urandom(n)
            rng = generator(self.seed, f"secagg {purpose}", number, k)
            return bytes(torch.randint(256, (n,), generator=rng, dtype=torch.uint8).numpy())

        return draw

    def protocol(self, number: int) -> Cohort:
        """The round's protocol, up to where masked uploads are expected."""
        if self._now is None or self._now[0] != number:
            cohort = self.cohort(number)
            self._now = number, Cohort(cohort, self.settings.threshold, lambda k: self.entropy(number, k))
        return self._now[1]

    def scale(self, number: int) -> float:
        """s."""
        ids = self.cohort(number)
        return (2**31 - 1 - len(ids)) / (self.settings.bound * sum(self.weights[k] for k in ids))

    def protect(self, number: int, k: int, down: Any, up: Any) -> Any:
        flat, bound = flatten(up), self.settings.bound
        vector = to_vector(flat)
        if not (largest := float(np.abs(vector).max(initial=0.0))) <= bound:
            if not isfinite(largest):
                raise UserError(f"privacy=secagg cannot mask client {k}'s upload of round {number}: it has values that are not finite.")
            raise UserError(
                f"privacy.bound = {bound:g} is not valid: must be at least {largest:g}, the largest value of client {k}'s upload."
            )
        x = np.rint(vector * self.weights[k] * self.scale(number)).astype(np.int64).astype(np.uint32)
        y = self.protocol(number).devices[k].mask(x)
        return unflatten(type(up), from_vector(torch.from_numpy(y.view(np.int32)), flat))

    def form(self, up: Any) -> Any:
        return unflatten(type(up), {n: t.to(torch.int32) for n, t in flatten(up).items()})

    def open(self, rnd: Round, came: Round, ups: list[Any], record: Record) -> tuple[Round, Any]:
        protocol, number, ids = self.protocol(rnd.number), rnd.number, came.ids.tolist()
        flats = [flatten(up) for up in ups]
        masked = {
            k: np.concatenate([t.cpu().numpy().reshape(-1) for t in f.values()]).view(np.uint32) for k, f in zip(ids, flats, strict=True)
        }
        total = protocol.unmask(masked).view(np.int32)
        for (k, way), size in protocol.traffic.items():
            record(number, k, way, Handshake(torch.empty(size, dtype=torch.uint8)))
        self._now = None
        mean = torch.from_numpy(total / (self.scale(number) * sum(self.weights[k] for k in ids)))
        flat = {n: t.float() for n, t in from_vector(mean, flats[0]).items()}
        return came, unflatten(type(ups[0]), {n: t.expand(len(ids), *t.shape) for n, t in flat.items()})
