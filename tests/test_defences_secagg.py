"""Secure aggregation: exact sums whoever leaves, masks that hide, every method that needs a sum, both engines, honest bytes."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.exceptions import InvalidTag

from hyperfed.core import UserError, flatten
from hyperfed.defences import ClientDP, SecAgg, make_guard
from hyperfed.defences.secagg import Cohort, Entropy
from hyperfed.defences.shares import join, split
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.workspace import NonFiniteLoss
from hyperfed.methods import METHODS
from hyperfed.models import Shape, build_model
from hyperfed.report.runs import read_run
from hyperfed.run.ledger import read_ledger
from runs import small_run
from test_defences import setting


def entropy(k: int) -> Entropy:
    return lambda purpose, n: np.random.default_rng([k, sum(purpose.encode())]).bytes(n)


def vectors(ids: list[int], n: int = 1000) -> dict[int, np.ndarray]:
    return {k: np.random.default_rng(100 + k).integers(0, 2**32, n, dtype=np.uint32) for k in ids}


def test_any_threshold_of_shares_gives_the_secret_and_one_less_does_not() -> None:
    secret = bytes(range(200, 232))
    shares = split(secret, [0, 3, 4, 9], [2**255 + 12345, 77])
    for some in combinations(shares, 3):
        assert join({h: shares[h] for h in some}) == secret
    assert join({h: shares[h] for h in (0, 3)}) != secret


@pytest.mark.parametrize("gone", [[], [4], [0, 7]])
def test_the_sum_is_exact_whoever_leaves(gone: list[int]) -> None:
    ids = [0, 2, 4, 7, 8, 11]
    cohort, x = Cohort(ids, 0.6, entropy), vectors(ids)
    masked = {k: cohort.devices[k].mask(x[k]) for k in ids}
    stayed = [k for k in ids if k not in gone]
    expected = sum((x[k] for k in stayed), np.zeros(1000, np.uint32))
    assert np.array_equal(cohort.unmask({k: masked[k] for k in stayed}), expected)


def test_a_masked_upload_says_nothing_of_its_values() -> None:
    """Uniform over 2^32 whatever is masked: the mean of 100,000 within 5 standard errors, no value agreed with another device's."""
    ids = [0, 1, 2]
    cohort = Cohort(ids, 0.67, entropy)
    zeros = np.zeros(100_000, np.uint32)
    y = [cohort.devices[k].mask(zeros).astype(np.float64) / 2**32 for k in ids]
    for a in y:
        assert abs(a.mean() - 0.5) < 5 / (12 * 100_000) ** 0.5
    assert abs(np.corrcoef(y)[0, 1]) < 0.02
    assert not cohort.unmask({k: cohort.devices[k].mask(zeros) for k in ids}).any()


def test_too_few_who_stay_and_forged_shares_are_refused() -> None:
    ids = [0, 1, 2, 3]
    cohort, x = Cohort(ids, 0.75, entropy), vectors(ids)
    with pytest.raises(UserError, match="2 of 4 clients stayed to the end of the round, but 3 are needed"):
        cohort.unmask({k: cohort.devices[k].mask(x[k]) for k in (0, 1)})
    with pytest.raises(InvalidTag):
        cohort.devices[0].receive({1: bytes(82)})


def test_the_sum_of_two_stays_masked() -> None:
    """Each of the two knows the other's part: whatever the threshold's share, three have to stay."""
    for ids in ([0, 1, 2], [0, 1, 2, 3]):
        cohort, x = Cohort(ids, 0.51, entropy), vectors(ids)
        masked = {k: cohort.devices[k].mask(x[k]) for k in ids}
        with pytest.raises(UserError, match=f"2 of {len(ids)} clients stayed to the end of the round, but 3 are needed .* back.$"):
            cohort.unmask({k: masked[k] for k in (0, 1)})
        assert np.array_equal(cohort.unmask({k: masked[k] for k in (0, 1, 2)}), x[0] + x[1] + x[2])


def test_a_device_answers_once() -> None:
    """Both halves of a device's secrets would lay its upload open."""
    device = Cohort([0, 1, 2], 0.67, entropy).devices[0]
    first = device.reveal({0, 1})
    assert set(first.stayed) == {0, 1} and set(first.left) == {2}
    with pytest.raises(AssertionError):
        device.reveal({0})


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("local", "centre")])
def test_every_method_that_needs_a_sum_ends_as_without(name: str, tmp_path: Path) -> None:
    """A run on digits with masks differs from one without by rounding only; methods that need single uploads say so."""
    if name in ("fedgen", "pfedsim", "pfedla", "fedfomo", "pfedhn", "pfedhn_pc"):
        with pytest.raises(UserError, match="needs every client's own"):
            make_guard(SecAgg(), setting(METHODS[name](build_model("mlp", Shape(1, 8, 3)), 4), rounds=30))
        return
    model = "model=resnet" if name == "fedbn" else "model=mlp"
    plain, masked = (
        small_run(tmp_path / p, f"method={name}", model, "participation=1", "rounds=2", "data.fraction=0.3", "eval.every=2", f"privacy={p}")
        for p in ("none", "secagg")
    )
    a, b = plain.server, masked.server
    for n, t in a.shared.items():
        torch.testing.assert_close(b.shared[n], t, atol=2e-4, rtol=1e-3)
    assert read_run(tmp_path / "secagg").per_round.trainable == read_run(tmp_path / "none").per_round.trainable


def test_the_handshake_is_in_the_ledger(tmp_path: Path) -> None:
    """Cohort of 6: 64 bytes of keys up, 5 x 64 down; 5 sealed shares of 82 bytes each way; list of 6 down; 6 shares of 33 up."""
    small_run(tmp_path / "a", "participation=1", "rounds=1", "privacy=secagg")
    rows = [t for n, k, way, t in read_ledger(tmp_path / "a/ledger.csv") if k == 0 and not t.trainable]
    assert sorted(t.bytes for t in rows) == sorted([64 + 5 * 82 + 6 * 33, 5 * 64 + 5 * 82 + 4 * 6])


def test_a_client_whose_training_breaks_is_a_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its masks are taken off by the others, and the mean is that of the others."""
    turn = LocalEngine.turn

    def breaking(self: LocalEngine, k: int, *rest: object) -> object:
        if k == 2:
            raise NonFiniteLoss(k, 1, 1, 0.1)
        return turn(self, k, *rest)

    monkeypatch.setattr(LocalEngine, "turn", breaking)
    plain, masked = (small_run(tmp_path / p, "participation=1", "rounds=1", "on_nan=skip", f"privacy={p}") for p in ("none", "secagg"))
    for n, t in plain.server.shared.items():
        torch.testing.assert_close(masked.server.shared[n], t, atol=1e-5, rtol=1e-4)


def test_values_that_do_not_fit_are_refused() -> None:
    method = METHODS["fedavg"](build_model("mlp", Shape(1, 8, 3), width=4), 4)
    guard = make_guard(SecAgg(bound=0.5), setting(method))
    up = method.init_server({n: t + 1 for n, t in method.model.init(0).items()})
    with pytest.raises(UserError, match=r"privacy.bound = 0.5 is not valid: must be at least"):
        guard.protect(1, 0, up, up)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_upload_that_is_not_finite_is_refused(value: float) -> None:
    """As an integer it would be some number, and the mean silently wrong."""
    method = METHODS["fedavg"](build_model("mlp", Shape(1, 8, 3), width=4), 4)
    up = method.init_server(method.model.init(0))
    flatten(up)["shared/fc3.weight"][0, 0] = value
    with pytest.raises(UserError, match=r"cannot mask client 3's upload of round 1: it has values that are not finite\.$"):
        make_guard(SecAgg(), setting(method)).protect(1, 3, up, up)


def test_a_cohort_of_two_is_too_small() -> None:
    method = METHODS["fedavg"](build_model("mlp", Shape(1, 8, 3), width=4), 4)
    with pytest.raises(UserError, match=r"needs a cohort of at least 3 clients, but participation = 0\.5 gives 2"):
        make_guard(SecAgg(), setting(method, participation=0.5))


def test_a_deployment_takes_secret_noise_only_and_no_simulated_masks() -> None:
    pytest.importorskip("flwr")
    from hyperfed.engine.flower.settings import Flower
    from hyperfed.run.flower import check_defence

    deployed, grid = Flower(backend="deployment"), Flower(backend="grid")
    with pytest.raises(UserError, match=r"privacy\.secret = False is not valid: must be true in a deployment"):
        check_defence(ClientDP(), deployed)
    for settings, flower in ((SecAgg(), deployed), (SecAgg(secret=True), grid)):
        with pytest.raises(UserError, match="handshake simulated from the run's seed"):
            check_defence(settings, flower)
    for settings, flower in ((None, deployed), (ClientDP(secret=True), deployed), (ClientDP(), grid), (SecAgg(), grid)):
        check_defence(settings, flower)


def test_secret_keys_still_cancel(tmp_path: Path) -> None:
    a, b = (small_run(tmp_path / s, "rounds=1", "participation=1", "privacy=secagg", f"privacy.secret={s}") for s in ("true", "false"))
    for n, t in a.server.shared.items():
        assert torch.equal(t, b.server.shared[n])  # the sum is exact, whatever the masks


@pytest.mark.parametrize("overrides", [["privacy=secagg"], ["privacy=client_dp"], ["privacy=dp_sgd", "model=mlp"]], ids=lambda o: o[0])
def test_the_grid_of_flower_ends_in_the_same_bits(overrides: list[str], tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    from flowers import assert_same, experiment, results

    runs = []
    for engine in ("local", "flower"):
        run = experiment(tmp_path / engine, engine, "model=mlp", *overrides)
        run.run()
        runs.append(results(run))
    assert_same(*runs)


def test_the_pages_prose_has_its_tables_deviations() -> None:
    text = (Path(__file__).parent.parent / "docs/defences.md").read_text(encoding="utf-8")
    named = re.search(r"seeds have a deviation of ([\d.]+) points with it and ([\d.]+) without", text)
    assert named is not None
    assert named.groups() == tuple(re.search(rf"\| {row} \| HFN \| .* ± ([\d.]+) %", text)[1] for row in ("secure aggregation", "none"))  # type: ignore[index]
