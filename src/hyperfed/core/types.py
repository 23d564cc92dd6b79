"""The words everything is written in. Shape letters: K clients in the round, N all clients, B batch, C classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple, Protocol

from torch import Generator, Tensor, nn

Params = dict[str, Tensor]
"""Name -> tensor. Never changed in place by a method."""


class Role(StrEnum):
    """What a tensor is for; decides who may see it. STATS are buffers (batch norm's running statistics), all others are trained."""

    STEM = "stem"
    BODY = "body"
    NORM = "norm"
    STATS = "stats"
    HEAD = "head"
    HYPER = "hyper"
    EMBED = "embed"


Scope = frozenset[Role]
ALL: Scope = frozenset(Role)
STATISTICS: Scope = frozenset({Role.STATS})
"""What moves where nothing is trained: running statistics follow the images that pass through the model."""


class Model(Protocol):
    """A network as pure functions, plus the role of each tensor."""

    @property
    def roles(self) -> Mapping[str, Role]:
        """The role of every tensor, in the order of the module's state."""

    @property
    def communicable(self) -> Scope:
        """The roles that may ever travel: all for a plain network, {HYPER} for a HyperModel unless widened."""

    @property
    def num_classes(self) -> int:
        """Outputs of the head, C."""

    def module(self) -> nn.Module:
        """A fresh module with these tensors: what an engine trains in place."""

    def init(self, seed: int) -> Params:
        """Initial tensors. The same seed gives the same bits."""

    def apply(self, params: Params, x: Tensor, *, train: bool) -> tuple[Tensor, Params]:
        """Output [B, C] and, in training mode, the new STATS (else the old ones). Does not change ``params``."""

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean loss over the batch, a scalar."""


class Step:
    """What a local objective may look at: one mini-batch and the weights in training. ``output`` and ``loss`` are computed on first use."""

    def __init__(self, model: Model, params: Params, x: Tensor, y: Tensor, forward: Callable[[Tensor], Tensor], rng: Generator) -> None:
        self.model, self.params, self.x, self.y, self.rng = model, params, x, y, rng
        self._forward = forward

    @cached_property
    def output(self) -> Tensor:
        """The network's output for the batch, [B, C]."""
        return self._forward(self.x)

    @cached_property
    def loss(self) -> Tensor:
        """The model's mean loss over the batch."""
        return self.model.loss(self.output, self.y)


Objective = Callable[[Step], Tensor]
"""The local objective for one mini-batch, written as the paper writes it; the plain loss is ``lambda step: step.loss``."""


@dataclass(frozen=True)
class Over:
    """A local objective over tensors of its own, ``of(step, *own)``; told apart, so that a GPU can replay its steps over others.

    ``of`` is a function or a method of the algorithm, and what it returns depends on the step, ``own`` and constants alone. ``draw`` makes
    tensors that are new for every mini-batch, of shapes that depend on its size B alone; ``of`` gets them last.
    """

    of: Callable[..., Tensor]
    own: tuple[Params, ...]
    draw: Callable[[Generator, int], Params] | None = None

    def __call__(self, step: Step) -> Tensor:
        drawn = () if self.draw is None else (self.draw(step.rng, len(step.y)),)
        return self.of(step, *self.own, *drawn)


class Client(Protocol):
    """What a method may do on one device; engines implement it."""

    @property
    def num_examples(self) -> int:
        """Training examples of this client."""

    def fit(
        self,
        params: Params,
        objective: Objective | None = None,
        *,
        train: Scope = ALL,
        epochs: int | None = None,
        steps: int | None = None,
    ) -> Params:
        """Train from ``params`` and return the result. Tensors whose role is not in ``train`` stay out of the optimiser;
        with ``STATISTICS`` there is none.

        ``epochs`` (or ``steps`` mini-batches) default to the run's setting. The optimiser's state is fresh in every call.
        """

    def mean_loss(self, params: Params) -> Tensor:
        """The model's mean loss on the client's fixed validation part (all its training data where it has none), a scalar."""

    def label_counts(self) -> Tensor:
        """Training examples per class, int64 [C]."""


class Round(NamedTuple):
    """Who takes part: the number counts from 1; ids are sorted."""

    number: int
    ids: Tensor  # int64 [K]
    examples: Tensor  # int64 [K]


def select(params: Params, roles: Mapping[str, Role], scope: Scope) -> Params:
    """The tensors whose role is in ``scope``; names without a role are never selected."""
    return {name: tensor for name, tensor in params.items() if roles.get(name) in scope}
