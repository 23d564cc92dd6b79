"""How the pooled samples are divided among the clients, and each client's share into train and test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from hyperfed.core.errors import UserError, at_least, invalid

MOST_ALPHA = 1e300
"""Beyond, the sums of a Dirichlet draw overflow; the shares are equal long before."""

MOST_TESTED = 0.999
"""Nearer to 1 the rounding of a client's test samples of each class may leave it nothing to train on."""


class ClientIndices(NamedTuple):
    """One client's samples: int64 indices into the pooled data set, each sorted ascending."""

    train: np.ndarray
    test: np.ndarray


class Partition(Protocol):
    """What divides the samples among the clients."""

    def split(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return for each client the int64 indices of its samples in ``labels`` [n]; each sample goes to one client at most."""
        ...


@dataclass(frozen=True)
class Iid:
    """Every client draws at random from all classes; client sizes differ by one sample at most."""

    def split(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Deal all samples out at random. Raises ``UserError`` if there are more clients than samples."""
        if num_clients > len(labels):
            raise _too_many(num_clients, len(labels), "one sample each")
        return np.array_split(rng.permutation(len(labels)), num_clients)


@dataclass(frozen=True)
class Dirichlet:
    """Each class is shared out in proportions drawn from a Dirichlet distribution; a smaller alpha makes clients less alike.

    Clients left with fewer than ``min_examples`` are filled up to it with random samples of the largest clients, which are
    levelled down to one common size; a single pass, whatever the draw.
    """

    alpha: float = 0.5
    min_examples: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha <= MOST_ALPHA:
            raise invalid("partition.alpha", self.alpha, f"a finite number > 0 (at most {MOST_ALPHA:g})")
        at_least("partition.min_examples", self.min_examples, 1)

    def split(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Share all samples out. Raises ``UserError`` if ``min_examples`` for every client needs more samples than there are."""
        if num_clients * self.min_examples > len(labels):
            raise _too_many(num_clients, len(labels) // self.min_examples, f"partition.min_examples = {self.min_examples} each")
        owner = np.empty(len(labels), np.int64)
        for members in _members(labels, rng):
            shares = np.cumsum(rng.dirichlet(np.full(num_clients, self.alpha)))
            ends = np.minimum(np.rint(shares / shares[-1] * len(members)), len(members)).astype(np.int64)
            owner[members] = np.repeat(np.arange(num_clients), np.diff(ends, prepend=0))
        self._fill_up(owner, num_clients, rng)
        return _by_owner(owner, num_clients)

    def _fill_up(self, owner: np.ndarray, num_clients: int, rng: np.random.Generator) -> None:
        """Move samples in place, by their ``owner`` [n], until every client has ``min_examples``."""
        sizes = np.bincount(owner, minlength=num_clients)
        missing = np.maximum(self.min_examples - sizes, 0)
        if not (needed := int(missing.sum())):
            return
        # The highest level to which the largest must come down to free what is needed, by bisection over whole numbers.
        low, high = self.min_examples, int(sizes.max())
        while low < high:
            level = (low + high + 1) // 2
            low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= needed else (low, level - 1)
        spare = np.maximum(sizes - low, 0)
        order = rng.permutation(len(owner))
        order = order[np.argsort(owner[order], kind="stable")]
        offered = order[_rank(owner[order]) < spare[owner[order]]]
        moved = rng.permutation(offered)[:needed]
        owner[moved] = np.repeat(np.arange(num_clients), missing)


@dataclass(frozen=True)
class Pathological:
    """Each client holds ``classes_per_client`` random classes; each class is cut into equal parts for its clients."""

    classes_per_client: int = 2

    def __post_init__(self) -> None:
        at_least("partition.classes_per_client", self.classes_per_client, 1)

    def split(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Deal classes, then samples. Raises ``UserError`` if a class has fewer samples than clients or there are too few classes."""
        classes, sizes = np.unique(labels, return_counts=True)
        dealt = _deal_classes(num_clients, self.classes_per_client, len(classes), rng)
        return _share_out(labels, dealt, int(sizes.min()) * len(classes) // self.classes_per_client, rng)


@dataclass(frozen=True)
class Groups:
    """Consecutive clients form ``num_groups`` groups; all clients of a group hold the same ``classes_per_client`` classes.

    Groups have no class in common as long as there are classes left. Their numbers of clients differ by one at most.
    """

    num_groups: int = 5
    classes_per_client: int = 2

    def __post_init__(self) -> None:
        at_least("partition.num_groups", self.num_groups, 1)
        at_least("partition.classes_per_client", self.classes_per_client, 1)

    def groups(self, num_clients: int) -> np.ndarray:
        """The group of each client, int [num_clients]."""
        return np.repeat(np.arange(self.num_groups), [len(part) for part in np.array_split(np.arange(num_clients), self.num_groups)])

    def split(self, labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Deal classes to groups, then samples to clients. Raises ``UserError`` for fewer clients than groups, or as Pathological."""
        if num_clients < self.num_groups:
            raise invalid("num_clients", num_clients, f"at least {self.num_groups}, one per group (partition.num_groups)")
        classes, sizes = np.unique(labels, return_counts=True)
        dealt = _deal_classes(self.num_groups, self.classes_per_client, len(classes), rng)
        groups_per_class = int(np.bincount(dealt.ravel()).max())
        return _share_out(labels, dealt[self.groups(num_clients)], int(sizes.min()) // groups_per_class * self.num_groups, rng)


PARTITIONS: dict[str, type] = {"iid": Iid, "dirichlet": Dirichlet, "pathological": Pathological, "groups": Groups}


def partition(
    labels: np.ndarray, spec: Partition, num_clients: int, seed: int, *, test_fraction: float = 0.2, fraction: float = 1.0
) -> list[ClientIndices]:
    """Divide the samples with ``labels`` int64 [n] among ``num_clients``, and each client's into train and test.

    ``fraction`` keeps a random part of the samples, the same of every class. ``test_fraction`` of each client's samples, rounded,
    are its test set, drawn per class: each class's share is rounded up or down, down first where the client has one sample of it.
    A client keeps at least one training sample, so one with very few samples may have an empty test set.
    Subsample, division and train/test draw from independent streams of ``seed``. No sample is in two places.
    Raises ``UserError`` for an argument out of range and for more clients than the samples can serve.
    """
    at_least("num_clients", num_clients, 1)
    at_least("seed", seed, 0)
    if not 0 < fraction <= 1:
        raise invalid("data.fraction", fraction, "a number > 0 and <= 1")
    if not 0 <= test_fraction <= MOST_TESTED:
        raise invalid("data.test_fraction", test_fraction, f"a number >= 0 and <= {MOST_TESTED}")
    thin, divide, tests = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    kept = _subsample(labels, fraction, thin)
    shares = spec.split(labels[kept], num_clients, divide)
    return _divide(labels, [kept[share] for share in shares], test_fraction, tests)


def hold_out(labels: np.ndarray, shares: Sequence[np.ndarray], fraction: float, seed: int) -> list[ClientIndices]:
    """Divide each client's samples [n_k] into train and ``fraction`` of them as test, per class as :func:`partition` does."""
    return _divide(labels, shares, fraction, np.random.default_rng(seed))


def _divide(labels: np.ndarray, shares: Sequence[np.ndarray], fraction: float, rng: np.random.Generator) -> list[ClientIndices]:
    samples = np.concatenate(shares)
    owner = np.repeat(np.arange(len(shares)), [len(share) for share in shares])
    in_test = _test_mask(labels[samples], owner, len(shares), fraction, rng)
    train, test = (_by_owner(owner[side], len(shares), samples[side]) for side in (~in_test, in_test))
    return [ClientIndices(*pair) for pair in zip(train, test, strict=True)]


def label_counts(labels: np.ndarray, clients: Sequence[ClientIndices], num_classes: int) -> np.ndarray:
    """How many samples of each class each client has, train and test together: int64 [num_clients, num_classes]."""
    counts = np.zeros((len(clients), num_classes), np.int64)
    for row, client in zip(counts, clients, strict=True):
        row += np.bincount(labels[np.concatenate(client)], minlength=num_classes)
    return counts


def _too_many(num_clients: int, possible: int, reason: str) -> UserError:
    return invalid("num_clients", num_clients, f"at most {possible}, so that the samples suffice for {reason}")


def _rank(sorted_keys: np.ndarray) -> np.ndarray:
    """The position of each element within its run of equal keys, from 0."""
    starts = np.flatnonzero(np.diff(sorted_keys, prepend=sorted_keys[:1] - 1))
    return np.arange(len(sorted_keys)) - np.repeat(starts, np.diff(starts, append=len(sorted_keys)))


def _by_owner(owner: np.ndarray, num_clients: int, samples: np.ndarray | None = None) -> list[np.ndarray]:
    """The samples (by default their positions) of each owner, sorted."""
    samples = np.arange(len(owner)) if samples is None else samples
    ordered = samples[np.lexsort((samples, owner))]
    return np.split(ordered, np.cumsum(np.bincount(owner, minlength=num_clients))[:-1])


def _members(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The positions of each class's samples in random order, classes ascending."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.split(order, np.unique(labels[order], return_index=True)[1][1:])


def _apportion(quotas: np.ndarray, totals: np.ndarray, late: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers for ``quotas`` [m, k] whose rows sum to ``totals`` [m]: largest remainders first, those marked ``late`` last."""
    quotas = np.round(quotas, 9)  # 0.1 * 30 must have no remainder
    whole = np.floor(quotas)
    order = np.lexsort((rng.random(quotas.shape), whole - quotas, late, whole == quotas), axis=-1)
    takes: np.ndarray = whole + (np.argsort(order, axis=-1) < (totals - whole.sum(axis=1))[:, None])
    return takes.astype(np.int64)


def _subsample(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """The sorted positions of a stratified random part of the samples, at least one in all."""
    if fraction == 1:
        return np.arange(len(labels))
    members = _members(labels, rng)
    sizes = np.array([[len(positions) for positions in members]])
    total = np.maximum(np.floor(np.round(fraction * sizes.sum(axis=1), 9) + 0.5), 1)
    takes = _apportion(fraction * sizes, total, np.zeros(sizes.shape), rng)[0]
    return np.sort(np.concatenate([positions[:take] for positions, take in zip(members, takes, strict=True)]))


def _test_mask(labels: np.ndarray, owner: np.ndarray, num_clients: int, test_fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Which samples are held out for testing: bool [n]."""
    classes, codes = np.unique(labels, return_inverse=True)
    cells = owner * len(classes) + codes
    counts = np.bincount(cells, minlength=num_clients * len(classes)).reshape(num_clients, len(classes))
    sizes = counts.sum(axis=1)
    totals = np.minimum(np.floor(np.round(test_fraction * sizes, 9) + 0.5), np.maximum(sizes - 1, 0))
    takes = _apportion(test_fraction * counts, totals, counts == 1, rng)
    order = rng.permutation(len(labels))
    order = order[np.argsort(cells[order], kind="stable")]
    mask = np.zeros(len(labels), bool)
    mask[order] = _rank(cells[order]) < takes.ravel()[cells[order]]
    return mask


def _deal_classes(takers: int, per_taker: int, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct classes for each taker, int64 [takers, per_taker]: always the least used so far, ties at random."""
    if per_taker > num_classes:
        raise invalid("partition.classes_per_client", per_taker, f"at most {num_classes}, the number of classes")
    used, dealt = np.zeros(num_classes, np.int64), np.empty((takers, per_taker), np.int64)
    for row in dealt:
        row[:] = np.argsort(used + rng.random(num_classes))[:per_taker]
        used[row] += 1
    return dealt


def _share_out(labels: np.ndarray, dealt: np.ndarray, possible: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut each class into equal parts for the clients that hold it by ``dealt`` [num_clients, k], as positions into the classes."""
    num_clients = len(dealt)
    owner = np.full(len(labels), num_clients)  # one past the last client: nobody
    for code, members in enumerate(_members(labels, rng)):
        holders = np.flatnonzero((dealt == code).any(axis=1))
        if len(holders) > len(members):
            raise _too_many(num_clients, possible, "one of each class that a client holds")
        if len(holders):
            owner[members] = np.repeat(holders, [len(part) for part in np.array_split(members, len(holders))])
    return _by_owner(owner, num_clients + 1)[:num_clients]
