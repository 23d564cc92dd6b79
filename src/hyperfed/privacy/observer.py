"""What an attacker holds: one client's download and upload, the model's structure, and what a threat model grants. Nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hyperfed.core import Model, Params, Role, UserError, unknown
from hyperfed.core.seeds import generator

SECRETS: dict[str, Callable[[str, Role], bool]] = {
    "embeddings": lambda name, role: role is Role.EMBED,
    "head": lambda name, role: role is Role.HEAD,
    "stem": lambda name, role: role is Role.STEM,
    "biases": lambda name, role: role in (Role.STEM, Role.BODY) and name.endswith("bias"),
    "body": lambda name, role: role is Role.BODY,
    "norm": lambda name, role: role is Role.NORM,
    "statistics": lambda name, role: role is Role.STATS,
}
"""What of a client's private tensors a threat model may grant. phi and all else that is downloaded need no grant."""

PUBLIC = ("training", "steps")
KNOWLEDGE = (*SECRETS, "labels", *PUBLIC)
LEVELS: dict[str, tuple[tuple[str, ...], str]] = {
    "blind": ((), "the two messages alone"),
    "naive": (PUBLIC, "private tensors are guessed, as DLG and iDLG run as they are would have to"),
    "adaptive": (PUBLIC, "private tensors are unknowns of the problem, or eliminated from it"),
    "oracle": ((*SECRETS, *PUBLIC), "every private tensor is known; in round 1 it is, wherever clients start from one public seed"),
}


class NotApplicable(UserError):
    """An attack has no meaning against this message."""


@dataclass(frozen=True)
class Threat:
    """What is known besides the messages and the model's structure: names of ``KNOWLEDGE``."""

    level: str
    known: frozenset[str]


def threat(text: str) -> Threat:
    """``adaptive+stem+labels``: a level of ``LEVELS`` and what it is granted besides."""
    level, *granted = text.split("+")
    if level not in LEVELS:
        raise unknown("threat", level, LEVELS)
    for name in granted:
        if name not in KNOWLEDGE:
            raise unknown("threat grants", name, KNOWLEDGE)
    return Threat(level, frozenset((*LEVELS[level][0], *granted)))


@dataclass(frozen=True)
class Training:
    """How the client trained: SGD's settings and the number of local steps."""

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    steps: int = 1

    @property
    def gain(self) -> float:
        """By how many times lr a constant gradient would have moved the weights: (1 + mu) for one step of Nesterov momentum."""
        moved = buffer = 0.0
        for _ in range(self.steps):
            buffer = self.momentum * buffer + 1
            moved += 1 + self.momentum * buffer if self.nesterov else buffer
        return moved


@dataclass(frozen=True)
class Observation:
    """One client's round as an attacker sees it. Tensors by the model's names; no client, no engine, no state can be reached from here."""

    method: str
    model: Model
    before: Params
    change: Params
    secrets: Params
    labels: Tensor | None
    training: Training | None
    shape: tuple[int, ...]  # of the images [B, channels, size, size]; values in [0, 1]
    level: str

    @property
    def known(self) -> Params:
        """The weights that the attacker need not guess."""
        return {**self.secrets, **self.before}

    def gradient(self) -> Params:
        """The batch's gradient by tensor: exact for one step of SGD (momentum, Nesterov, weight decay), else the mean along the path.

        Delta w = -lr gain (g + wd w)  =>  g = -Delta w / (lr gain) - wd w
        """
        t = self.training
        if t is None:
            raise NotApplicable(
                f"threat {self.level!r} knows neither learning rate nor steps: only the direction of the change can be matched."
            )
        return {n: -c / (t.lr * t.gain) - t.weight_decay * self.before[n] for n, c in self.change.items()}


def observe(
    method: Any, download: Any, upload: Any, threat: Threat, shape: tuple[int, ...], private: Params, labels: Tensor, training: Training
) -> Observation:
    """The messages, and of ``private``, ``labels`` and ``training`` what the threat model grants. Tensors are copied."""
    roles = method.model.roles
    _, before = _weights(method, download)
    field, after = _weights(method, upload)
    if any(n not in before or before[n].shape != t.shape for n, t in after.items()):
        raise NotApplicable(f"method {type(method).__name__} downloads other weights than it uploads: their change cannot be read.")
    trained = [n for n in after if roles[n] is not Role.STATS]
    change = {n: (after[n] if field == "delta" else after[n] - before[n]).double().clone() for n in trained}
    rules = [rule for name, rule in SECRETS.items() if name in threat.known]
    secrets = {n: t.double().clone() for n, t in private.items() if n not in before and any(r(n, roles[n]) for r in rules)}
    granted = labels.clone() if "labels" in threat.known else None
    settings = training if set(PUBLIC) <= threat.known else None
    received = {n: t.double().clone() for n, t in before.items()}
    return Observation(type(method).__name__, method.model, received, change, secrets, granted, settings, shape, threat.level)


def _weights(method: Any, message: Any) -> tuple[str, Params]:
    """The part of a message that is weights of the model, with the name of its field."""
    for field, value in message._asdict().items():
        if isinstance(value, dict) and value and set(value) <= set(method.model.roles):
            return field, value
    raise NotApplicable(
        f"method {type(method).__name__} sends no weights of one client in its {type(message).__name__}: nothing to attack."
    )


def single(seen: Observation) -> Observation:
    """The same in float32, for attacks on large networks that need no more."""
    before, change, secrets = ({n: t.float() for n, t in part.items()} for part in (seen.before, seen.change, seen.secrets))
    return replace(seen, before=before, change=change, secrets=secrets)


def noisy(seen: Observation, share: float, seed: int) -> Observation:
    """The same message with Gaussian noise, ``share`` times its norm on every coordinate: what a clip at that norm calls the multiplier."""
    if not share:
        return seen
    rng = generator(seed, "noise")
    norm = torch.stack([c.square().sum() for c in seen.change.values()]).sum().sqrt()
    draw = {n: torch.randn(c.shape, generator=rng, dtype=c.dtype) for n, c in seen.change.items()}
    return replace(seen, change={n: c + share * norm * draw[n] for n, c in seen.change.items()})
