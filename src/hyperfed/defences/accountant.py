"""Privacy accounting with Google's dp-accounting: epsilon of a schedule, and the noise multiplier for a wanted epsilon.

Every epsilon is an upper bound for the stated neighbouring relation. A noise multiplier z is always deviation / clipping norm C.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from math import inf, sqrt
from typing import Any

import numpy as np

from hyperfed.core import UserError, invalid

ORDERS = (*np.arange(1.2, 4.0, 0.2), *range(4, 33), *range(36, 65, 4), 128, 256)
"""Orders of the Renyi divergence to take the best of."""
LEAST, CEILING = 1e-3, 1e4
"""Noise multipliers with an epsilon to be relied on. Below, it is over a million for one message, and soon its computation breaks down."""


def required() -> None:
    """One sentence where the extra is missing."""
    if find_spec("dp_accounting") is None:
        raise UserError("differential privacy is accounted for with the extra: pip install 'hyperfed[privacy]'.")


def accountable(field: str, z: float) -> None:
    """Refuse a noise multiplier that no epsilon can be given for, NaN among them; 0 has none, and says so."""
    if not (z == 0 or LEAST <= z <= CEILING):
        raise invalid(field, z, f"0 (no noise, no guarantee) or from {LEAST:g} to {CEILING:g}")


@contextmanager
def _quiet() -> Iterator[None]:
    """dp-accounting warns of every order whose series does not converge; it leaves that order out, which costs nothing but tightness."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@lru_cache(maxsize=4096)
def gaussian(z: float, times: int, delta: float) -> float:
    """``times`` messages of sensitivity 2C (one client's data replaced by any other) with noise z C, all seen: exact.

    The composition of T Gaussian mechanisms is one with noise / sqrt(T) (Balle and Wang, ICML 2018).
    """
    if times == 0:
        return 0.0
    if z == 0:
        return inf
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(z / 2 / sqrt(times), delta))


@lru_cache(maxsize=4096)
def sampled_cohorts(z: float, cohort: int, clients: int, rounds: int, delta: float) -> float:
    """Sums of ``cohort`` of ``clients`` vectors, drawn without replacement, with noise z C: one client's data replaced, sensitivity 2C.

    The smaller of two bounds: Wang, Balle and Kasiviswanathan (AISTATS 2019, theorem 27), and the one that grants the cohort's
    names to the attacker. The first holds against those who do not learn who took part, and for clients without memory: neither is so
    in a run, whose cohorts follow from the seed. For planning a federation whose cohorts are secret.
    """
    known = gaussian(z, rounds, delta)
    if cohort == clients or known in (0.0, inf):
        return known
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent, SelfComposedDpEvent

    event = SelfComposedDpEvent(SampledWithoutReplacementDpEvent(clients, cohort, GaussianDpEvent(z / 2)), rounds)
    return min(known, _renyi(event, NeighboringRelation.REPLACE_ONE, delta))


@lru_cache(maxsize=65536)
def sampled_examples(z: float, rate: float, steps: int, delta: float) -> float:
    """DP-SGD with Poisson batches of ``rate``, one example added or removed, sensitivity C: Renyi bound (Mironov et al., 2019)."""
    if steps == 0:
        return 0.0
    if z == 0:
        return inf
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent

    event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(z)), steps)
    return _renyi(event, NeighboringRelation.ADD_OR_REMOVE_ONE, delta)


def _renyi(event: Any, relation: Any, delta: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    with _quiet():
        accountant = RdpAccountant(ORDERS, relation)
        accountant.compose(event)
        return float(accountant.get_epsilon(delta))


def multiplier(epsilon: float, spent: Callable[[float], float]) -> float:
    """The least noise multiplier, to a thousandth, whose ``spent`` is at most ``epsilon``; ``spent`` falls with noise."""
    low, high = 1e-2, 1.0
    while spent(high) > epsilon:
        low, high = high, 2 * high
        if high > CEILING:
            raise invalid("privacy.epsilon", epsilon, f"larger: even a noise multiplier of {CEILING:g} spends more")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > epsilon else (low, middle)
    return round(high + 5e-5, 4)
