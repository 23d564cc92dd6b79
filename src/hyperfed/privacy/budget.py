"""What a noise multiplier costs, before anything is run: ``python -m hyperfed.privacy.budget --noise-multiplier 1 ...``, or the inverse."""

import argparse
import sys
from collections.abc import Callable, Sequence
from math import isfinite

from hyperfed.core import UserError, invalid, unknown
from hyperfed.defences import accountant
from hyperfed.defences.settings import finite

KINDS = ("client_dp", "central_dp", "dp_sgd")


def spending(kind: str, rate: float | None, clients: int | None, times: int, delta: float) -> Callable[[float], float]:
    """Noise multiplier -> epsilon. ``times``: a client's turns (client_dp), rounds (central_dp), steps on one client (dp_sgd).

    ``rate``: the share of the clients in a round (central_dp), of a client's examples in a batch (dp_sgd).
    """
    accountant.required()
    if kind not in KINDS:
        raise unknown("defence", kind, KINDS)
    if times < 1:
        raise invalid("--times", times, "an integer >= 1")
    if not 0 < delta < 1:
        raise invalid("--delta", delta, "in (0, 1)")
    if kind == "client_dp":
        return lambda z: accountant.gaussian(z, times, delta)
    if rate is None:
        raise UserError(f"the epsilon of {kind} depends on the sampling rate: give --rate, or --rate 1 where nothing is sampled.")
    if not 0 < rate <= 1:
        raise invalid("--rate", rate, "in (0, 1]")
    if kind == "dp_sgd":
        return lambda z: accountant.sampled_examples(z, rate, times, delta)
    if clients is None or clients < 1:
        raise invalid("--clients", clients, "an integer >= 1 for central_dp")
    cohort = max(1, round(rate * clients))
    return lambda z: accountant.sampled_cohorts(z, cohort, clients, times, delta)


def main(arguments: Sequence[str]) -> int:
    """Print epsilon for --noise-multiplier, or the noise multiplier for --epsilon."""
    parser = argparse.ArgumentParser("python -m hyperfed.privacy.budget", description=__doc__)
    parser.add_argument("--defence", default="central_dp", help=", ".join(KINDS))
    parser.add_argument("--noise-multiplier", type=float)
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--rate", type=float, help="share of the clients in a round, or of a client's examples in a batch")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--times", type=int, default=1, help="rounds (central_dp), a client's turns (client_dp), steps (dp_sgd)")
    known = parser.parse_args(list(arguments))
    if (known.noise_multiplier is None) == (known.epsilon is None):
        raise UserError("give either --noise-multiplier or --epsilon: one follows from the other.")
    spent = spending(known.defence, known.rate, known.clients, known.times, known.delta)
    if known.epsilon is not None:
        finite("--epsilon", known.epsilon)
    z = known.noise_multiplier if known.epsilon is None else accountant.multiplier(known.epsilon, spent)
    accountant.accountable("--noise-multiplier", z)
    epsilon = spent(z)
    print(f"noise multiplier {z:g}: epsilon {f'{epsilon:.4g}' if isfinite(epsilon) else 'infinite'} at delta {known.delta:g}")
    return 0


if __name__ == "__main__":
    from hyperfed.main import guarded

    sys.exit(guarded(lambda: main(sys.argv[1:])))
