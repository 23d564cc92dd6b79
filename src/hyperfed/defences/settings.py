"""The settings of each defence, and what of them makes no sense."""

from dataclasses import dataclass
from math import inf

from hyperfed.core import invalid
from hyperfed.defences.accountant import accountable

COARSEST = 2**16
"""Of secure aggregation's bound: there the mean of 100 clients is off by up to 0.0015, no longer little beside a weight."""


def finite(field: str, value: float | None, why: str = "") -> None:
    """Refuse what is no finite number > 0."""
    if value is None or not 0 < value < inf:
        raise invalid(field, value, f"a finite number > 0{why}")


@dataclass(frozen=True)
class Budget:
    """Clipping and Gaussian noise: ``noise_multiplier`` is the noise's deviation over ``clip``; or it follows from a wanted ``epsilon``.

    ``secret``: the noise comes from keys of the operating system, not from the run's seed; then a run cannot be repeated to the bit.
    """

    clip: float | None = 1.0
    noise_multiplier: float | None = 1.0
    epsilon: float | None = None
    delta: float = 1e-5
    secret: bool = False

    def __post_init__(self) -> None:
        finite("privacy.clip", self.clip, ": without clipping no noise multiplier gives any guarantee")
        if self.epsilon is not None:
            finite("privacy.epsilon", self.epsilon)
        if self.noise_multiplier is not None:
            accountable("privacy.noise_multiplier", self.noise_multiplier)
        if not 0 < self.delta < 1:
            raise invalid("privacy.delta", self.delta, "in (0, 1)")
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise invalid("privacy.epsilon", self.epsilon, "set where privacy.noise_multiplier is null, and null where it is set")

    @property
    def bound(self) -> float:
        """The clipping norm."""
        assert self.clip is not None
        return self.clip


@dataclass(frozen=True)
class ClientDP(Budget):
    """Clients clip their uploads and add noise themselves: whoever reads one, the server included, learns little of the client."""


@dataclass(frozen=True)
class CentralDP(Budget):
    """Clients clip, a trusted server adds noise once to the mean: whoever reads the model after it learns little of any client."""


@dataclass(frozen=True)
class DpSgd(Budget):
    """Clients clip and noise the gradient of every example in every step: an upload says little of any example."""


@dataclass(frozen=True)
class SecAgg:
    """Pairwise masks that cancel in the sum: the server learns the clients' sum and nothing else.

    ``threshold``: the share of the cohort that must stay to the end, never fewer than 3 clients. ``bound``: the largest absolute value that
    can be sent.
    """

    threshold: float = 0.67
    bound: float = 64.0
    secret: bool = False

    def __post_init__(self) -> None:
        if not 0.5 < self.threshold <= 1:
            raise invalid("privacy.threshold", self.threshold, "in (0.5, 1]: with half of the cohort or less the masks could be taken off")
        finite("privacy.bound", self.bound)
        if self.bound > COARSEST:
            raise invalid("privacy.bound", self.bound, f"at most {COARSEST}: uploads are rounded to steps of bound / 2^31, or larger ones")


DEFENCES: dict[str, type] = {"client_dp": ClientDP, "central_dp": CentralDP, "dp_sgd": DpSgd, "secagg": SecAgg}
