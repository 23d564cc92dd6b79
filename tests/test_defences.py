"""Differential privacy: sensitivity, noise and accounting are what they say, on every method; one sentence where a pair makes no sense."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperfed.core import Method, Round, Step, UserError, flatten
from hyperfed.core.tree import sub
from hyperfed.defences import CentralDP, ClientDP, DpSgd, Setting, accountant, make_guard
from hyperfed.defences.dp import reference
from hyperfed.defences.dp_sgd import clipped_sum, per_example, planned
from hyperfed.engine.optim import Optim
from hyperfed.engine.probe import summable
from hyperfed.engine.workspace import DeviceClient, Local, Workspace
from hyperfed.main import check_overrides
from hyperfed.methods import METHODS
from hyperfed.methods.fedavg import Shared
from hyperfed.models import HyperModel, Hypernet, Shape, build_model
from problems import play_rounds, tiny_engine, tiny_images, tiny_network
from runs import assert_bit_identical, small_run
from test_defences_accounting import ACCOUNTABLE


def setting(method: Method[Any, Any, Any, Any], rounds: int = 3, **changed: Any) -> Setting:
    values: dict[str, Any] = {"participation": 1.0, "seed": 7, "local": Local(1, 10), "examples": [20] * method.num_clients}
    return Setting(method, "m", rounds, **{**values, **changed})


def norm(params: dict[str, Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in params.values()]).sum().sqrt())


@pytest.mark.parametrize("name", ["fedavg", "fedper", "pfedhn", "pfedla", "feddyn"])
@pytest.mark.parametrize("kind", [ClientDP, CentralDP])
def test_what_leaves_a_device_is_within_the_clipping_norm(name: str, kind: type, tmp_path: Path) -> None:
    """Uploads of weights are clipped around what was downloaded, differences around 0: no message moves the server by more than C."""
    method = METHODS[name](build_model("mlp", Shape(1, 8, 3), width=8), 3)
    try:
        guard = make_guard(kind(clip=1e-3, noise_multiplier=0.0), setting(method))
    except UserError:
        assert kind is CentralDP and summable(method) is None
        return
    engine = tiny_engine(method, tmp_path)
    down = method.download(method.init_server(engine.initial()), Round(1, torch.arange(3), torch.tensor([20] * 3)), 0)
    _, reply = engine.turn(0, 1, down)
    start = reference(down, reply.upload)
    assert norm(sub(flatten(reply.upload), start)) > 0.01
    sent = guard.protect(1, 0, down, reply.upload)
    assert norm(sub(flatten(sent), start)) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("kind", [ClientDP, CentralDP])
def test_nothing_finite_leaves_beside_a_nan(kind: type) -> None:
    """Such an upload has no norm to scale it by: what of it is finite must not pass at full length."""
    guard = make_guard(kind(clip=1.0, noise_multiplier=0.0), setting(METHODS["fedavg"](tiny_network(), 4)))
    up = Shared({"head.weight": torch.full((10, 10), 50.0), "head.bias": torch.tensor([1.0, float("nan")])})
    sent = guard.protect(1, 0, Shared({n: torch.zeros_like(t) for n, t in up.shared.items()}), up).shared
    assert all(t.isnan().all() for t in sent.values())


def test_the_noise_has_the_deviation_and_is_fresh() -> None:
    """10,000 elements: on the client deviation z C; on the server z C / K on the mean, and the same for every row."""
    method = METHODS["fedavg"](tiny_network(), 4)
    up, zero = Shared({"head.weight": torch.full((100, 100), 1e-6)}), Shared({"head.weight": torch.zeros(100, 100)})
    local = make_guard(ClientDP(clip=2.0, noise_multiplier=3.0), setting(method, examples=[5, 10, 20, 40]))
    one, again, later = (local.protect(n, 0, zero, up).shared["head.weight"] for n in (1, 1, 2))
    assert float(one.std()) == pytest.approx(6.0, rel=0.03)
    assert torch.equal(one, again) and float((one * later).mean()) == pytest.approx(0.0, abs=1.0)
    central = make_guard(CentralDP(clip=2.0, noise_multiplier=3.0), setting(method, examples=[5, 10, 20, 40]))
    rnd = Round(1, torch.arange(4), torch.tensor([5, 10, 20, 40]))
    ups = [Shared({"head.weight": torch.full((100, 100), float(k))}) for k in range(4)]
    same, opened = central.open(rnd, rnd, ups, lambda *message: None)
    rows = opened.shared["head.weight"]
    assert same.examples.tolist() == [1] * 4 and torch.equal(rows[0], rows[3])
    assert float(rows[0].mean()) == pytest.approx(1.5, abs=0.06)
    assert float(rows[0].std()) == pytest.approx(3.0 * 2.0 / 4, rel=0.03)


@pytest.mark.parametrize("name", ["fedavg", "feddyn", "fedrep", "fedbabu", "perfedavg"])
def test_noise_on_the_server_reaches_every_method_that_needs_a_sum(name: str, tmp_path: Path) -> None:
    """Without noise and with a wide clip, the uniform mean: clients of equal size end as without defence."""
    method = METHODS[name](tiny_network(), 3)
    plain = play_rounds(method, tiny_engine(method, tmp_path / "a"), 1)
    guard = make_guard(CentralDP(clip=1e6, noise_multiplier=0.0), setting(method))
    from hyperfed.engine.round import play

    engine = tiny_engine(method, tmp_path / "b", guard=guard)
    server = method.init_server(engine.initial())
    server, losses = play(method, server, Round(1, torch.arange(3), torch.tensor([20] * 3)), engine, lambda *m: None, guard)
    for n, t in flatten(plain).items():
        torch.testing.assert_close(flatten(server)[n], t, atol=1e-5, rtol=1e-4)
    assert all(loss != loss for loss in losses)  # a loss is a number about the data: it stays on the device


def test_a_running_variance_is_never_negative() -> None:
    method = METHODS["fedavg"](tiny_network(), 3)
    guard = make_guard(ClientDP(clip=1.0, noise_multiplier=100.0), setting(method))
    start = Shared(method.model.init(0))
    sent = guard.protect(1, 0, start, start).shared
    assert float(sent["norm1.running_var"].min()) == 0.0 and float(sent["norm1.running_mean"].min()) < 0.0


# --- DP-SGD


@pytest.mark.parametrize(
    ("objective", "hyper"), [("plain", False), ("fedprox", False), ("perfedavg", False), ("plain", True), ("fedprox", True)]
)
def test_a_gradient_per_example_is_the_loops(objective: str, hyper: bool) -> None:
    """vmap(grad) against one backward pass per example, over all tensors that are trained; the leading dimension is B."""
    network = build_model("resnet_gn", Shape(1, 8, 3))
    model = HyperModel(network, Hypernet(embedding=4)) if hyper else network
    space = Workspace(model, tiny_images(5))
    start = model.init(1)
    space.load(start)
    for t in space.live.values():
        t.requires_grad_(True)
    loss: Any = {
        "plain": lambda step: step.loss,
        "fedprox": METHODS["fedprox"](model, 3, mu=0.3).objective(None, Shared(model.init(2))),  # type: ignore[attr-defined]
        "perfedavg": METHODS["perfedavg"](model, 3).meta_loss,  # type: ignore[attr-defined]
    }[objective]
    x, y = space.images.batch(torch.arange(5))
    rng = torch.Generator()
    gradients, losses = per_example(space, dict(space.live), x, y, loss, rng)
    assert {g.shape[0] for g in gradients.values()} == {5}
    for i in range(5):
        value = loss(Step(model, space.live, x[i : i + 1], y[i : i + 1], space.forward, rng))
        single = torch.autograd.grad(value, list(space.live.values()))
        torch.testing.assert_close(losses[i], value.detach(), atol=1e-5, rtol=1e-5)
        for n, g in zip(space.live, single, strict=True):
            torch.testing.assert_close(gradients[n][i], g, atol=1e-5, rtol=1e-4)


def test_an_objective_that_cannot_be_taken_example_by_example_is_refused(tmp_path: Path) -> None:
    """Per-FedAvg over HFN: a kernel per example has no memory layout that its convolution asks for."""
    with pytest.raises(UserError, match="cannot be differentiated example by example"):
        small_run(tmp_path, "model=resnet_gn", "hyper=hfn", "method=perfedavg", "privacy=dp_sgd", "data.fraction=0.2", "local.batch_size=4")


def test_an_example_moves_the_sum_by_at_most_the_clipping_norm() -> None:
    """Gradients of norms 5 and 0.5 clipped to 1: the first counts a fifth, the second whole; a gradient of 0 stays 0."""
    g = {"a": torch.tensor([[3.0], [0.3], [0.0]]), "b": torch.tensor([[4.0], [0.4], [0.0]])}
    total = clipped_sum(g, 1.0)
    assert float(total["a"]) == pytest.approx(0.6 + 0.3) and float(total["b"]) == pytest.approx(0.8 + 0.4)


def test_dp_sgd_without_noise_is_sgd_on_the_batches_it_draws(tmp_path: Path) -> None:
    """With every example in every batch (B >= n), a wide clip and no noise, one epoch is one plain full-batch step."""
    method = METHODS["fedavg"](build_model("mlp", Shape(1, 8, 3), width=8), 3)
    guard = make_guard(DpSgd(clip=1e6, noise_multiplier=0.0), setting(method, local=Local(1, 20)))
    ends = []
    for each in (None, guard.per_example):
        space = Workspace(method.model, tiny_images(20))
        index = torch.arange(20)
        client = DeviceClient(space, 0, index, index[:0], 7, 1, 0.05, Optim(lr=0.05), Local(3, 20), "train", each)
        ends.append(client.fit(method.model.init(0)))
    for n, t in ends[0].items():
        torch.testing.assert_close(ends[1][n], t, atol=1e-5, rtol=1e-4)


def test_batches_are_drawn_by_poisson_and_steps_are_counted(tmp_path: Path) -> None:
    """100 examples, B = 10: batches of 10 on average, of changing size; FedRep's two fits count as 1 + 2 epochs of 10 steps."""
    method = METHODS["fedrep"](build_model("mlp", Shape(1, 8, 3), width=8), 2, head_epochs=1, body_epochs=2)  # type: ignore[call-arg]
    guard: Any = make_guard(DpSgd(noise_multiplier=2.0), setting(method, rounds=4, local=Local(1, 10), examples=[100, 20]))
    sizes = [len(b) for b in guard.per_example.batches(torch.arange(100), 10, 40, None, torch.Generator().manual_seed(0))]
    assert len(sizes) == 400 and sum(sizes) / 400 == pytest.approx(10, abs=0.5) and len(set(sizes)) > 5
    assert planned(101, 10, 3, None) == 33 and planned(5, 10, 0, 7) == 7
    assert guard.steps(0) == 30 and guard.steps(1) == 6
    assert guard.epsilon(2.0, 4) == max(accountant.sampled_examples(2.0, 0.1, 120, 1e-5), accountant.sampled_examples(2.0, 0.5, 24, 1e-5))


def test_group_norm_has_its_role_and_the_resnet_its_bits() -> None:
    plain, grouped = build_model("resnet", Shape(1, 8, 10)), build_model("resnet_gn", Shape(1, 8, 10))
    assert {n: r for n, r in plain.roles.items() if r != "stats"} == grouped.roles
    a, b = plain.init(3), grouped.init(3)
    assert all(torch.equal(a[n], t) for n, t in b.items())


# --- runs and mistakes


@pytest.mark.parametrize("overrides", [["privacy=client_dp", "method=pfedhn"], ["privacy=central_dp"], ["privacy=dp_sgd", "method=fedper"]])
def test_a_defended_run_repeats_to_the_bit_and_says_what_it_guarantees(overrides: list[str], tmp_path: Path) -> None:
    small_run(tmp_path / "a", "local.batch_size=32", *overrides)
    small_run(tmp_path / "b", "local.batch_size=32", *overrides)
    assert_bit_identical(tmp_path / "a", tmp_path / "b")
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    spent = [line["privacy"]["epsilon"] for line in lines]
    assert spent[0] == 0.0 and spent == sorted(spent) and spent[-1] > 0
    assert lines[-1]["privacy"]["delta"] == 1e-5 and lines[-1]["train_loss"] is None
    from hyperfed.report.runs import read_run
    from hyperfed.report.tables import markdown_table

    assert "privacy" in markdown_table([read_run(tmp_path / "a")])


def test_a_wanted_epsilon_is_what_the_run_spends(tmp_path: Path) -> None:
    run = small_run(tmp_path, "privacy=central_dp", "privacy.epsilon=5", "privacy.noise_multiplier=null")
    spent = run.fed.guard.spent(3)
    assert spent is not None and 4.9 < spent["epsilon"] <= 5.0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["privacy=client_dp", "privacy.clip=null"], "privacy.clip = None is not valid: must be a finite number > 0: without clipping"),
        (["privacy=client_dp", "privacy.clip=-1"], "privacy.clip = -1.0 is not valid"),
        (
            ["privacy=client_dp", "privacy.epsilon=8"],
            "privacy.epsilon = 8.0 is not valid: must be set where",
        ),
        (["privacy=client_dp", "privacy.delta=2"], "privacy.delta = 2.0 is not valid"),
        *((["privacy=dp_sgd", f"privacy.noise_multiplier={z}"], ACCOUNTABLE) for z in ("-1", "nan", "inf", "1e-320", "1e5")),
        (["privacy=client_dp", "privacy.clip=inf"], "privacy.clip = inf is not valid: must be a finite number > 0"),
        (["privacy=client_dp", "privacy.epsilon=nan", "privacy.noise_multiplier=null"], "privacy.epsilon = nan is not valid"),
        (["privacy=client_dp", "privacy.epsilon=inf", "privacy.noise_multiplier=null"], "privacy.epsilon = inf is not valid"),
        (["privacy=secagg", "privacy.bound=inf"], "privacy.bound = inf is not valid: must be a finite number > 0"),
        (["privacy=secagg", "privacy.threshold=0.3"], "privacy.threshold = 0.3 is not valid"),
        (["privacy=client_pd"], "privacy 'client_pd' unknown; did you mean 'client_dp'?"),
        (["privacy=client_dp", "privacy.clipp=1"], "field 'privacy.clipp' unknown; did you mean 'privacy.clip'?"),
    ],
)
def test_bad_settings_are_one_sentence(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as problem:
        check_overrides(overrides)
    assert words in str(problem.value) and str(problem.value).count("\n") == 0


@pytest.mark.parametrize(
    ("name", "model", "kind", "words"),
    [
        ("fedavg", "resnet", DpSgd, "batch norm mixes the examples of a batch: use model=resnet_gn"),
        ("fedgen", "mlp", DpSgd, "also uses label_counts of the data, without noise"),
        ("fedfomo", "mlp", DpSgd, "also uses mean_loss of the data, without noise"),
        ("fedgen", "mlp", ClientDP, "also uploads 'labels', which is no weight"),
        ("pfedhn", "mlp", CentralDP, "needs every client's own"),
        ("local", "mlp", ClientDP, "has none"),
        ("centre", "mlp", DpSgd, "pools the data of all of them"),
    ],
)
def test_pairs_without_meaning_are_refused(name: str, model: str, kind: type, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_guard(kind(), setting(METHODS[name](build_model(model, Shape(1, 8, 3)), 4)))
