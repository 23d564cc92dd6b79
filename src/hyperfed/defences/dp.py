"""Client-level differential privacy: uploads are clipped and noised, by the client (local) or once by the server (central).

McMahan, Ramage, Talwar, Zhang: Learning Differentially Private Recurrent Language Models, ICLR 2018. What is clipped is the upload minus
what the client was sent (for uploads that are differences already: themselves), as one vector over all its tensors. Two clipped vectors
are at most 2C apart, so replacing all data of one client moves one message, and the sum of a round's, by at most 2C.
"""

from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import torch

from hyperfed.core import Params, Role, Round, flatten, stack, unflatten
from hyperfed.core.seeds import generator
from hyperfed.core.tree import add, clip, sub
from hyperfed.defences import accountant
from hyperfed.defences.draws import Draws, draws
from hyperfed.defences.settings import Budget
from hyperfed.engine.guard import Guard, Record
from hyperfed.engine.probe import repeated


def reference(down: Any, up: Any) -> Params:
    """Field by field and name by name, what the upload started from: the download's tensor of that name and shape, else 0."""
    sent = flatten(down)
    flat = flatten(up)
    return {n: sent[n] if n in sent and sent[n].shape == t.shape else torch.zeros_like(t) for n, t in flat.items()}


def noise(like: Params, deviation: float, source: Draws) -> Params:
    """Independent N(0, deviation^2) for every element, drawn on the CPU: the same on every device."""
    return {n: deviation * source.normal(t.shape).to(t) for n, t in like.items()}


@dataclass
class Schedule:
    """What of a run an epsilon depends on: clients, cohort size, rounds, and each client's participations up to a round."""

    num_clients: int
    cohorts: list[list[int]]

    @property
    def cohort(self) -> int:
        """Clients in a round."""
        return len(self.cohorts[0])

    def turns(self, k: int, number: int) -> int:
        """Rounds up to ``number`` in which client ``k`` takes part; known beforehand, whatever the data."""
        return sum(k in ids for ids in self.cohorts[:number])

    def most_turns(self, number: int) -> int:
        """The largest number of turns of any client."""
        return max(self.turns(k, number) for k in range(self.num_clients))


@dataclass
class Noisy(Guard):
    """What both kinds share: budget, schedule, seed."""

    budget: Budget
    schedule: Schedule
    seed: int
    roles: dict[str, Role]
    sends_loss = False

    unit = "client"

    def epsilon(self, z: float, number: int) -> float:
        """What noise multiplier ``z`` has spent after round ``number``."""
        raise NotImplementedError

    @cached_property
    def noise_multiplier(self) -> float:
        """Given, or found for the wanted epsilon after the last round."""
        given, wanted = self.budget.noise_multiplier, self.budget.epsilon
        if given is not None:
            return given
        assert wanted is not None
        return accountant.multiplier(wanted, lambda z: self.epsilon(z, len(self.schedule.cohorts)))

    def spent(self, number: int) -> dict[str, Any]:
        epsilon = self.epsilon(self.noise_multiplier, number)
        return {
            "unit": self.unit,
            "epsilon": round(epsilon, 4) if isfinite(epsilon) else None,
            "delta": self.budget.delta,
            "noise_multiplier": self.noise_multiplier,
        }

    def draw(self, purpose: str, number: int, *parts: int) -> Draws:
        """The source of one message's noise."""
        return draws(self.budget.secret, lambda: generator(self.seed, purpose, number, *parts))

    def settle(self, up: Any, flat: Params) -> Any:
        """A noised message; running variances that the noise made negative are 0. Both are functions of what is private already."""
        variances = {n for n in flat if self.roles.get(n.partition("/")[2]) is Role.STATS and n.endswith("running_var")}
        return unflatten(type(up), {n: t.clamp(min=0) if n in variances else t for n, t in flat.items()})


class LocalNoise(Noisy):
    """The client clips and adds N(0, (z C)^2) before anything leaves it."""

    def epsilon(self, z: float, number: int) -> float:
        return accountant.gaussian(z, self.schedule.most_turns(number), self.budget.delta)

    def protect(self, number: int, k: int, down: Any, up: Any) -> Any:
        start, flat, bound = reference(down, up), flatten(up), self.budget.bound
        drift = clip(sub(flat, start), bound)
        drift = add(drift, noise(drift, self.noise_multiplier * bound, self.draw("client noise", number, k)))
        return self.settle(up, add(start, drift))


class CentralNoise(Noisy):
    """The client clips; the server adds N(0, (z C)^2) to the sum, in which every client counts the same, and divides by their number."""

    def epsilon(self, z: float, number: int) -> float:
        """Cohorts follow from the seed, which every client has, and clients keep states: no credit is taken for sampling."""
        return accountant.gaussian(z, self.schedule.most_turns(number), self.budget.delta)

    def protect(self, number: int, k: int, down: Any, up: Any) -> Any:
        start = reference(down, up)
        return unflatten(type(up), add(start, clip(sub(flatten(up), start), self.budget.bound)))

    def open(self, rnd: Round, came: Round, ups: list[Any], record: Record) -> tuple[Round, Any]:
        same = came._replace(examples=torch.ones_like(came.examples))
        mean = repeated(stack(ups), same.examples)
        one = {n: t[0] for n, t in flatten(mean).items()}
        deviation = self.noise_multiplier * self.budget.bound / len(ups)
        noised = add(one, noise(one, deviation, self.draw("server noise", rnd.number)))
        settled = flatten(self.settle(mean, noised))
        return same, unflatten(type(mean), {n: t.expand(len(ups), *t.shape) for n, t in settled.items()})
