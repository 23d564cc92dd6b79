"""The local optimiser: SGD with per-role learning rates, and the schedules over rounds."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from math import cos, pi

import torch

from hyperfed.core import Params, Role, Scope, invalid

SCHEDULES = ("constant", "multistep", "cosine")


@dataclass(frozen=True)
class Optim:
    """SGD. ``lr_scale`` and ``decay_scale`` multiply the learning rate and the weight decay per role; a scale of 0 freezes the role.

    Batch norm's running statistics are not trained and follow the data all the same.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "constant"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    clip: float | None = None
    lr_scale: dict[Role, float] = field(default_factory=dict)
    decay_scale: dict[Role, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise invalid("optim.lr", self.lr, "a number > 0")
        if not 0 <= self.momentum < 1:
            raise invalid("optim.momentum", self.momentum, "in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise invalid("optim.nesterov", self.nesterov, "false where optim.momentum is 0")
        if self.weight_decay < 0:
            raise invalid("optim.weight_decay", self.weight_decay, "a number >= 0")
        if self.schedule not in SCHEDULES:
            raise invalid("optim.schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        for milestone in self.milestones:
            if not 0 < milestone < 1:
                raise invalid("optim.milestones", milestone, "in (0, 1): a share of the rounds")
        if not self.gamma > 0:
            raise invalid("optim.gamma", self.gamma, "a number > 0")
        if self.clip is not None and not self.clip > 0:
            raise invalid("optim.clip", self.clip, "a number > 0 or null")
        for name in ("lr_scale", "decay_scale"):
            for role, scale in getattr(self, name).items():
                if scale < 0:
                    raise invalid(f"optim.{name}.{role}", scale, "a number >= 0")

    def rate(self, number: int, rounds: int) -> float:
        """The learning rate of round ``number`` (from 1) of ``rounds``. Milestones are fractions of the rounds."""
        done = (number - 1) / rounds
        if self.schedule == "multistep":
            return self.lr * self.gamma ** sum(done >= m for m in self.milestones)
        if self.schedule == "cosine":
            return self.lr * (1 + cos(pi * done)) / 2
        return self.lr

    def trains(self, role: Role) -> bool:
        """Whether tensors of this role change in training; STATS are no parameters."""
        return role is not Role.STATS and self.lr_scale.get(role, 1.0) != 0

    def groups(self, live: Params, roles: Mapping[str, Role], train: Scope, lr: float) -> list[dict[str, object]]:
        """One parameter group per role that is trained."""
        out: list[dict[str, object]] = []
        for role in Role:
            scale = self.lr_scale.get(role, 1.0)
            params = [t for n, t in live.items() if roles[n] is role]
            if role not in train or not self.trains(role) or not params:
                continue
            out.append({"params": params, "lr": lr * scale, "weight_decay": self.weight_decay * self.decay_scale.get(role, 1.0)})
        return out

    def build(self, groups: list[dict[str, object]], lr: float) -> torch.optim.SGD:
        """SGD with empty momentum; fused, since a foreach step costs more than it saves on the CPU."""
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=self.nesterov, fused=True)

    def kind(self, groups: list[dict[str, object]], names: Mapping[int, str]) -> Hashable:
        """All that tells what a step does, except the learning rates; ``names`` by the tensors' ids."""
        each = ((tuple(names[id(t)] for t in g["params"]), g["weight_decay"]) for g in groups)  # type: ignore[attr-defined]
        return (self.momentum, self.nesterov, self.clip, *each)


class Standing:
    """An optimiser on a GPU that stays where it is in memory, learning rates and momentum included, as recorded steps need it."""

    def __init__(self, optim: Optim, groups: list[dict[str, object]], device: torch.device) -> None:
        self.rates = [torch.zeros((), device=device) for _ in groups]
        self.sgd = optim.build([{**g, "lr": rate} for g, rate in zip(groups, self.rates, strict=True)], 0.0)
        self.trained: list[torch.Tensor] = [t for g in groups for t in g["params"]]  # type: ignore[attr-defined]
        self.momenta = [torch.zeros_like(t) for t in self.trained] if optim.momentum else []
        for t, m in zip(self.trained, self.momenta, strict=False):
            self.sgd.state[t]["momentum_buffer"] = m
        self.sgd.register_step_pre_hook(self._align)

    def begin(self, groups: list[dict[str, object]]) -> torch.optim.SGD:
        """The optimiser as if new, with the learning rates of ``groups``."""
        for rate, g in zip(self.rates, groups, strict=True):
            rate.fill_(g["lr"])  # type: ignore[call-overload]
        if self.momenta:
            torch._foreach_zero_(self.momenta)
        return self.sgd

    def _align(self, *_: object) -> None:
        """Gradients with their tensor's strides to the letter; of a dimension of one they may differ, and fused SGD refuses that."""
        for t in self.trained:
            if t.grad is not None and t.grad.stride() != t.stride():
                t.grad = t.grad.as_strided(t.shape, t.stride())
