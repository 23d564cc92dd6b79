"""How samples are divided among clients: nothing lost, nothing twice, exact test shares, the same for the same seed."""

import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hyperfed.core.errors import UserError
from hyperfed.data.partition import PARTITIONS, ClientIndices, Dirichlet, Groups, Iid, Pathological, label_counts, partition
from hyperfed.report.labels import label_table, plot_label_distribution

fast = settings(max_examples=60, deadline=None)
specs = st.one_of(
    st.just(Iid()),
    st.builds(Dirichlet, st.sampled_from([0.01, 0.3, 100.0]), st.integers(1, 5)),
    st.builds(Pathological, st.integers(1, 4)),
    st.builds(Groups, st.integers(1, 4), st.integers(1, 4)),
)


@st.composite
def label_arrays(draw: st.DrawFn) -> np.ndarray:
    sizes = draw(st.lists(st.integers(1, 60), min_size=2, max_size=6))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)


def split_or_skip(labels: np.ndarray, spec: object, clients: int, seed: int, **options: float) -> list[ClientIndices]:
    try:
        return partition(labels, spec, clients, seed, **options)
    except UserError:
        assume(False)
        raise


@fast
@given(label_arrays(), specs, st.integers(1, 12), st.integers(0, 2**40), st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.95]))
def test_no_sample_is_in_two_places_and_test_shares_are_exact(labels, spec, clients, seed, test_fraction):
    split = split_or_skip(labels, spec, clients, seed, test_fraction=test_fraction)
    assert len(split) == clients
    everything = np.concatenate([np.concatenate(client) for client in split])
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() >= 0 and everything.max() < len(labels)
    for train, test in split:
        assert train.dtype == test.dtype == np.int64
        assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
        size = len(train) + len(test)
        assert len(train) >= 1
        assert len(test) == min(int(np.floor(round(size * test_fraction, 9) + 0.5)), size - 1)
        held, used = (np.bincount(labels[part], minlength=6) for part in (test, np.concatenate([train, test])))
        assert (np.abs(held - used * test_fraction) < 1).all()


@fast
@given(label_arrays(), st.sampled_from([Iid(), Dirichlet(0.1, 1), Dirichlet(5.0, 3)]), st.integers(1, 12), st.integers(0, 9))
def test_iid_and_dirichlet_use_every_sample(labels, spec, clients, seed):
    split = split_or_skip(labels, spec, clients, seed)
    assert label_counts(labels, split, 6).sum(axis=0).tolist() == np.bincount(labels, minlength=6).tolist()


@fast
@given(label_arrays(), specs, st.integers(1, 8), st.integers(0, 9), st.sampled_from([1.0, 0.5]))
def test_the_seed_decides(labels, spec, clients, seed, fraction):
    once, again = (split_or_skip(labels, spec, clients, seed, fraction=fraction) for _ in range(2))
    assert all(np.array_equal(a, b) for pair in zip(once, again, strict=True) for a, b in zip(*pair, strict=True))


def test_another_seed_or_another_test_fraction():
    labels = np.arange(400) % 4
    first, other, held = (
        [np.concatenate(c) for c in partition(labels, Dirichlet(), 5, seed, test_fraction=f)] for seed, f in ((1, 0.2), (2, 0.2), (1, 0.5))
    )
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(first, held, strict=True)), "who holds what must not change"


@fast
@given(st.integers(1, 10), st.integers(1, 30), st.integers(0, 9))
def test_pathological_gives_each_client_its_number_of_classes_in_even_parts(per_client, clients, seed):
    labels = np.arange(1200) % 10
    counts = label_counts(labels, partition(labels, Pathological(per_client), clients, seed), 10)
    assert ((counts > 0).sum(axis=1) == per_client).all()
    holders = (counts > 0).sum(axis=0)
    assert np.ptp(holders) <= 1
    assert (counts.sum(axis=0)[holders > 0] == 120).all(), "every sample of a class in use is used"
    assert all(np.ptp(counts[counts[:, c] > 0, c]) <= 1 for c in np.flatnonzero(holders))


def test_pathological_mixes_the_classes_that_meet_on_a_client():
    labels = np.arange(1000) % 10
    counts = label_counts(labels, partition(labels, Pathological(2), 20, 0), 10)
    assert len({tuple(np.flatnonzero(row)) for row in counts}) > 5


@pytest.mark.parametrize(("num_classes", "per_client"), [(10, 2), (100, 10)])
def test_groups_of_the_paper(num_classes, per_client):
    labels = np.arange(6000) % num_classes
    counts = label_counts(labels, partition(labels, Groups(5, per_client), 20, 3), num_classes)
    groups = [{tuple(np.flatnonzero(row)) for row in counts[start : start + 4]} for start in range(0, 20, 4)]
    assert all(len(group) == 1 for group in groups)
    classes = [c for group in groups for held in group for c in held]
    assert len(classes) == len(set(classes)) == 5 * per_client, "no class is in two groups"
    assert np.ptp(counts.sum(axis=1)) == 0


def test_groups_share_classes_evenly_when_there_are_too_few():
    labels = np.arange(1000) % 10
    counts = label_counts(labels, partition(labels, Groups(7, 3), 16, 0), 10)
    assert ((counts > 0).sum(axis=1) == 3).all()
    sizes = [len(part) for part in np.array_split(np.arange(16), 7)]
    starts = np.cumsum([0, *sizes])[:-1]
    used = sum((counts[start] > 0).astype(int) for start in starts)
    assert np.ptp(used) <= 1 and counts.sum() == 1000


def test_dirichlet_alpha_sets_how_unlike_the_clients_are():
    labels = np.arange(20_000) % 10
    spread = [label_counts(labels, partition(labels, Dirichlet(alpha), 20, 0), 10).std() for alpha in (0.1, 1.0, 100.0)]
    assert spread[0] > 2 * spread[1] > 4 * spread[2]


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 1e6])
def test_dirichlet_keeps_min_examples_down_to_the_last_sample(alpha):
    labels = np.arange(1000) % 7
    sizes = [len(train) + len(test) for train, test in partition(labels, Dirichlet(alpha, 10), 100, 0)]
    assert sizes == [10] * 100
    assert min(len(a) + len(b) for a, b in partition(labels, Dirichlet(alpha, 9), 100, 0)) >= 9


def test_dirichlet_of_ten_thousand_clients_is_fast():
    labels = np.arange(70_000) % 10
    started = time.perf_counter()
    split = partition(labels, Dirichlet(0.5, 5), 10_000, 0)
    assert time.perf_counter() - started < 5
    assert min(len(train) + len(test) for train, test in split) >= 5


def test_a_class_of_one_sample_is_trained_on_unless_the_test_set_needs_it():
    single_first = np.array([0, 1, 1, 1, 1])
    assert all(0 not in partition(single_first, Iid(), 1, seed)[0].test for seed in range(20))
    assert len(partition(np.arange(5), Iid(), 1, 0)[0].test) == 1


@fast
@given(label_arrays(), st.sampled_from([0.05, 0.2, 0.5, 1.0]), st.integers(0, 9))
def test_a_fraction_is_stratified(labels, fraction, seed):
    split = partition(labels, Iid(), 1, seed, fraction=fraction)
    counts, whole = label_counts(labels, split, 6)[0], np.bincount(labels, minlength=6)
    assert counts.sum() == max(int(np.floor(round(len(labels) * fraction, 9) + 0.5)), 1)
    assert (np.abs(counts - whole * fraction) < 1).all()


def test_the_registry_builds_every_partition():
    assert list(PARTITIONS) == ["iid", "dirichlet", "pathological", "groups"]
    for kind in PARTITIONS.values():
        assert kind.__doc__ and len(partition(np.arange(1000) % 10, kind(), 10, 0)) == 10


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dirichlet(alpha=-1), "partition.alpha = -1 is not valid: must be a finite number > 0 (at most 1e+300)."),
        (lambda: Dirichlet(alpha=float("nan")), "partition.alpha = nan"),
        (lambda: Dirichlet(alpha="much"), "partition.alpha = 'much'"),
        (lambda: Dirichlet(min_examples=0), "partition.min_examples = 0"),
        (lambda: Pathological(0), "partition.classes_per_client = 0"),
        (lambda: Pathological(1.5), "partition.classes_per_client = 1.5"),
        (lambda: Groups(num_groups=0), "partition.num_groups = 0"),
        (lambda: Groups(classes_per_client=True), "partition.classes_per_client = True"),
        (lambda: partition(np.arange(100) % 10, Iid(), 101, 0), "num_clients = 101 is not valid: must be at most 100"),
        (lambda: partition(np.arange(100) % 10, Iid(), 0, 0), "num_clients = 0"),
        (lambda: partition(np.arange(100) % 10, Dirichlet(), 11, 0), "at most 10, so that the samples suffice for partition.min_examples"),
        (
            lambda: partition(np.arange(100) % 10, Pathological(11), 3, 0),
            "partition.classes_per_client = 11 is not valid: must be at most 10",
        ),
        (lambda: partition(np.arange(100) % 10, Pathological(2), 51, 0), "num_clients = 51 is not valid: must be at most 50"),
        (lambda: partition(np.arange(100) % 10, Groups(), 3, 0), "num_clients = 3 is not valid: must be at least 5"),
        (lambda: partition(np.arange(100) % 10, Groups(), 51, 0), "num_clients = 51 is not valid: must be at most 50"),
        (lambda: partition(np.arange(100) % 10, Iid(), 3, -1), "seed = -1"),
        (lambda: partition(np.arange(100) % 10, Iid(), 3, 0, fraction=0), "data.fraction = 0"),
        (lambda: partition(np.arange(100) % 10, Iid(), 3, 0, test_fraction=1.0), "data.test_fraction = 1.0"),
        (lambda: partition(np.arange(100) % 10, Iid(), 3, 0, test_fraction=1 - 1e-10), "data.test_fraction = 0.9999999999"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(UserError) as caught:
        build()
    assert message in str(caught.value) and str(caught.value).endswith(".")


def test_the_most_clients_that_an_error_names_do_work():
    labels = np.arange(100) % 10
    for spec in (Iid(), Dirichlet(), Pathological(2), Groups()):
        with pytest.raises(UserError) as caught:
            partition(labels, spec, 1000, 0)
        possible = int(str(caught.value).split("at most ")[1].split(",")[0])
        assert len(partition(labels, spec, possible, 0)) == possible


@pytest.mark.parametrize(("clients", "classes"), [(20, 10), (100, 10), (20, 100), (1, 10), (3000, 10)])
def test_the_picture_is_a_png_of_a_sensible_size(tmp_path, clients, classes):
    from PIL import Image

    counts = np.random.default_rng(0).poisson(2.0, (clients, classes))
    path = plot_label_distribution(counts, [f"name {i}" for i in range(classes)], tmp_path / "new" / "labels.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and max(image.size) <= 2500
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_the_picture_of_nothing_but_empty_clients(tmp_path):
    assert plot_label_distribution(np.zeros((3, 2), int), ["a", "b"], tmp_path / "none.png").exists()
    assert plot_label_distribution(np.zeros((60, 2), int), ["a", "b"], tmp_path / "many.png").exists()


def test_tables():
    table = label_table(np.array([[1000, 2], [0, 30]]), ["cat", "dog"]).splitlines()
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in table if "---" not in row] == [
        ["Client", "Samples", "cat", "dog"], ["0", "1,002", "1,000", "2"], ["1", "30", "0", "30"], ["all", "1,032", "1,000", "32"],
    ]  # fmt: skip
    assert len({len(row) for row in table}) == 1
    many = label_table(np.eye(20, dtype=int) * 7, [f"c{i}" for i in range(20)], max_clients=3)
    assert "(17 more)" in many and "c0 7" in many and len(many.splitlines()) == 7
