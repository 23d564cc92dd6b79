"""Where a defence's randomness comes from: the run's seed, or with ``secret`` the operating system.

However it is seeded, a generator of torch's on the CPU has one of 2^32 sequences, which a server can try one by one: never for a secret.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor


class Draws(Protocol):
    """A source of random numbers."""

    def uniform(self, n: int) -> Tensor:
        """``n`` numbers of [0, 1)."""

    def normal(self, shape: torch.Size) -> Tensor:
        """Independent N(0, 1), float32."""


@dataclass(frozen=True)
class Seeded:
    """Follows from the run's seed: repeats to the bit."""

    rng: Generator

    def uniform(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.rng)

    def normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.rng)


class Secret:
    """AES-256's stream under a fresh key of the operating system for every draw; the key is kept nowhere."""

    def uniform(self, n: int) -> Tensor:
        """Float64: the middles of 2^52 equal parts, all exact."""
        from hyperfed.defences.secagg import stream

        bits = stream(os.urandom(32), 2 * n).view(np.uint64) >> np.uint64(12)
        return torch.from_numpy((bits + 0.5) * 2.0**-52)

    def normal(self, shape: torch.Size) -> Tensor:
        """The normal quantiles of :meth:`uniform`, which end at 8.2 deviations, rounded to float32."""
        return torch.special.ndtri(self.uniform(shape.numel())).float().reshape(shape)


def draws(secret: bool, seeded: Callable[[], Generator]) -> Draws:
    """The run's seeded numbers, or with ``secret`` some that nobody can repeat."""
    return Secret() if secret else Seeded(seeded())
