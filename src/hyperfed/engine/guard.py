"""What stands between a device's upload and the server: hooks of the round that any defence fills in, whatever the method."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Generator, Tensor

from hyperfed.core import Objective, Params, Round, stack

Record = Callable[[int, int, str, Any], None]
"""Hears of every message: round, client, "down" or "up", the message itself."""


class PerExample(Protocol):
    """A local optimiser's gradient made of one gradient per example."""

    def batches(self, index: Tensor, size: int, epochs: int, steps: int | None, rng: Generator) -> Iterator[Tensor]:
        """The examples of each step."""

    def backward(
        self, space: Any, trained: Params, batch: tuple[Tensor, Tensor], objective: Objective | None, size: int, rng: Generator
    ) -> Tensor:
        """Set the gradient of every tensor in ``trained``; returns the mean loss."""


class Guard:
    """Lets every upload pass: no defence. ``sends_loss``: whether a device tells the server its training loss beside its upload.

    ``sum_only``: whether single uploads cannot be read.
    """

    sends_loss = True
    sum_only = False
    per_example: PerExample | None = None

    def protect(self, number: int, k: int, down: Any, up: Any) -> Any:
        """On the device: what leaves client ``k`` in round ``number`` in place of its upload; of the same type."""
        return up

    def form(self, up: Any) -> Any:
        """A message of the shapes and types that leave a device in place of ``up``."""
        return up

    def open(self, rnd: Round, came: Round, ups: list[Any], record: Record) -> tuple[Round, Any]:
        """On the server: the round and the stacked uploads its method works with. ``came`` is the part of ``rnd`` that answered."""
        return came, stack(ups)

    def spent(self, number: int) -> dict[str, Any] | None:
        """What the defence guarantees after round ``number``, for metrics.jsonl."""
        return None
