"""FedFomo: equation (3) by hand, the choice of models, what travels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from hyperfed.core import Role, UserError, count, stack
from hyperfed.core.codec import flatten
from hyperfed.engine.workspace import DeviceClient
from hyperfed.methods.fedfomo import Candidates, FedFomo, Own, Server, Upload
from hyperfed.models import Network
from hyperfed.models.resnet import ResNet
from problems import Quadratic, one_round, quadratic_client, tiny_engine, tiny_network


def candidates(*values: float) -> Candidates:
    return Candidates({"w": torch.tensor(values)}, torch.arange(1, len(values) + 1))


def everyone(method: FedFomo, uploads: int) -> Server:
    """A server that has one upload of each of the first ``uploads`` clients."""
    start = method.shared(method.model.init(0))
    up = Upload(start, torch.full((method.num_models,), -1), torch.zeros(method.num_models))
    ids = list(range(uploads))
    return method.server_update(method.init_server(method.model.init(0)), one_round(ids, [1] * uploads), stack([up] * uploads))


def owner(params: float, before: float) -> Own:
    """A client trained from ``before`` to ``params``."""
    return Own({"w": torch.tensor(params)}, {"w": torch.tensor(before)})


def test_weights_are_equation_3_and_the_step_goes_to_their_positive_part() -> None:
    """L(w) = 1/2 (w - 0.6)^2; the client was trained from 0, where L is 0.18, to 0.5.

    w_own = (0.18 - 1/2 0.1^2) / 0.5 = 0.35;  w_1 = (0.18 - 1/2 0.2^2) / 0.4 = 0.4;  w_2 = (0.18 - 1/2 0.4^2) / 1 = 0.1;
    w_3 = (0.18 - 1/2 0.8^2) / 0.2 = -0.7, cut to 0.  From 0: theta = (0.35 * 0.5 + 0.4 * 0.4 + 0.1 * 1) / 0.85 = 0.511765;
    then one gradient step 0.1: theta + 0.1 (0.6 - theta) = 0.520588.
    """
    method = FedFomo(Quadratic(), 4)
    client = quadratic_client([0.6, 0.6], method.model, lr=0.1)
    state, up = method.client_update(client, owner(0.5, 0.0), candidates(0.4, 1.0, -0.2))
    assert up.weights.tolist() == pytest.approx([0.4, 0.1, -0.7, 0.0, 0.0], abs=1e-6)
    assert up.ids.tolist() == [1, 2, 3, -1, -1]
    assert state.before["w"].item() == pytest.approx(0.435 / 0.85, abs=1e-6)
    assert state.params["w"].item() == pytest.approx(0.9 * 0.435 / 0.85 + 0.06, abs=1e-6)
    assert up.model["w"].item() == state.params["w"].item()


@pytest.mark.parametrize(
    ("own", "before", "other", "weight", "result"),
    [
        (0.4, 0.6, 0.7, -0.45, 0.4),  # L: 0.02, 0.08, 0.125. The other is worse, the own training, 0.06 / 0.2 = 0.3, stands
        (0.4, 0.6, 0.2, 0.2, 0.32),  # the other 0.08 / 0.4 = 0.2 beside the own 0.3: (0.3 * 0.4 + 0.2 * 0.2) / 0.5
        (0.6, 0.4, 0.7, -0.35, 0.4),  # nothing is better than before, the own training neither: it is undone
        (0.4, 0.4, 0.2, 0.1, 0.2),  # never trained: its own model is the base, and the only weight is the other's
    ],
)
def test_others_stand_beside_the_own_training(own: float, before: float, other: float, weight: float, result: float) -> None:
    """Validation data at 0.2, no further training."""
    method = FedFomo(Quadratic(), 2)
    client = quadratic_client([0.2], method.model, lr=0.1, epochs=0)
    state, up = method.client_update(client, owner(own, before), candidates(other))
    assert up.weights[0].item() == pytest.approx(weight, abs=1e-6)
    assert state.params["w"].item() == pytest.approx(result, abs=1e-6)


@pytest.mark.parametrize("broken", [1e25, float("nan"), float("inf")])
def test_a_model_without_a_finite_loss_neither_moves_the_client_nor_ranks_first(broken: float) -> None:
    """From 0, validation at 0.6: the model 0.2 has (0.18 - 1/2 0.4^2) / 0.2 = 0.5, the own 0.4 (0.18 - 1/2 0.2^2) / 0.4 = 0.4."""
    method = FedFomo(Quadratic(), 3)
    client = quadratic_client([0.6], method.model, lr=0.1, epochs=0)
    state, up = method.client_update(client, owner(0.4, 0.0), candidates(broken, 0.2))
    assert up.weights[:2].tolist() == pytest.approx([-1.0, 0.5], abs=1e-6)
    assert state.params["w"].item() == pytest.approx((0.5 * 0.2 + 0.4 * 0.4) / 0.9, abs=1e-6)


def test_the_loss_of_the_weights_is_the_held_out_parts() -> None:
    """Trains at 0.0, validates at 0.6: w = (1/2 0.6^2 - 0) / 0.6 = 0.3 for the model 0.6, whatever the training data say."""
    method = FedFomo(Quadratic(), 2)
    whole: DeviceClient = quadratic_client([0.0, 0.6], method.model)
    client = replace(whole, train=torch.tensor([0]), held_out=torch.tensor([1]))
    w = method.weights(client, {"w": torch.tensor(0.0)}, candidates(0.6).models)
    assert w.tolist() == pytest.approx([0.3], abs=1e-6)


def test_the_validation_part_is_fixed_and_never_trained_on(tmp_path: Path) -> None:
    method = FedFomo(tiny_network(), 3)
    engine = tiny_engine(method, tmp_path)
    first, later = (engine.client(1, number, "train", engine.optim, 0.1) for number in (1, 7))
    assert torch.equal(first.held_out, later.held_out) and len(first.held_out) == 4
    assert not set(first.held_out.tolist()) & set(first.train.tolist())


def test_running_statistics_do_not_count_in_the_distance(tmp_path: Path) -> None:
    """The head's bias is 3 and 4 away, every running mean 100: the distance is 5."""
    method = FedFomo(tiny_network(), 2)
    engine = tiny_engine(method, tmp_path, (20, 20))
    client = engine.client(0, 1, "train", engine.optim, 0.1)
    own = engine.initial()
    bias = torch.tensor([3.0, 4.0, 0.0])
    other = {n: t + 100 if method.model.roles[n] is Role.STATS else t + bias if n == "head.bias" else t for n, t in own.items()}
    w = method.weights(client, own, {n: t[None] for n, t in other.items()})
    assert w.item() == pytest.approx((client.mean_loss(own) - client.mean_loss(other)).item() / 5, rel=1e-5)


def test_affinity_adds_up_and_ranks() -> None:
    """p_0 = 0.4 for client 1 and -0.7 for 3, twice: with eps = 0 and M = 2 client 0 is sent 1, then one of the unknown, never 3."""
    method = FedFomo(Quadratic(), 5, num_models=2, epsilon=0.0)
    server = everyone(method, 5)
    up = Upload({"w": torch.zeros(1)}, torch.tensor([[1, 3]]), torch.tensor([[0.4, -0.7]]))
    for number in (2, 3):
        server = method.server_update(server, one_round([0], [1], number), up)
    assert server.affinity.row(0)["p"].tolist() == pytest.approx([0, 0.8, 0, -1.4, 0])
    assert server.affinity.row(1)["p"].tolist() == [0.0] * 5
    seen = [method.download(server, one_round([0], [1], number), 0).ids.tolist() for number in range(1, 30)]
    assert {ids[0] for ids in seen} == {1} and {ids[1] for ids in seen} == {2, 4}


def test_epsilon_falls_to_zero_by_its_decay() -> None:
    """eps_t = 1 - 0.5 (t - 1): in round 1 every place goes to chance, in round 2 half of them, from round 3 on none.

    100 clients, M = 1, 400 seeds: chance misses the favourite in 98 of 99 cases, so in 396 (standard deviation 2), 198 (10) and none.
    """
    settings = {"num_models": 1, "epsilon": 1.0, "epsilon_decay": 0.5}
    server = everyone(FedFomo(Quadratic(), 100, **settings), 100)
    up = Upload({"w": torch.zeros(1)}, torch.tensor([[9]]), torch.tensor([[1.0]]))
    server = FedFomo(Quadratic(), 100, **settings).server_update(server, one_round([0], [1]), up)

    def misses(number: int) -> int:
        methods = [FedFomo(Quadratic(), 100, seed=s, **settings) for s in range(400)]
        return sum(m.choose(server, one_round([0], [1], number), 0) != [9] for m in methods)

    assert misses(1) >= 386 and 150 <= misses(2) <= 246 and misses(3) == 0


def test_few_candidates_are_fine_and_nobody_is_sent_its_own_model() -> None:
    method = FedFomo(Quadratic(), 20)
    assert method.download(everyone(method, 1), one_round([0], [1]), 0).models["w"].shape == (0,)
    for number in range(1, 20):
        ids = method.download(everyone(method, 3), one_round([0], [1], number), 0).ids.tolist()
        assert sorted(ids) == [1, 2]
        ids = method.download(everyone(method, 12), one_round([0], [1], number), 0).ids.tolist()
        assert len(set(ids)) == 5 and 0 not in ids


@pytest.mark.parametrize(("resend_own", "per_round"), [(False, 3_383_580), (True, 3_947_510)])
def test_cost_on_the_cifar10_resnet(resend_own: bool, per_round: int) -> None:
    """P = 563,930: 5 P down (6 with the own model, as HyperFedNet's Table 3 counts), P up; in round 1 nothing comes down."""
    method = FedFomo(Network(lambda: ResNet(3, 10, 16, 6), 10), 7, resend_own=resend_own)
    roles = method.model.roles
    up = method.shared(method.model.init(0))
    before = method.download(method.init_server(method.model.init(0)), one_round([0], [1]), 0)
    down = method.download(everyone(method, 7), one_round([0], [1], 2), 0)
    assert count(before, roles).trainable == 0
    assert count(down, roles).trainable + count(Own(up, {}), roles).trainable == per_round


def test_the_own_model_sent_back_changes_nothing() -> None:
    """The server marks it with -1; the client has it already, so that it would count twice."""
    quad = Quadratic()
    back = FedFomo(quad, 4, resend_own=True, epsilon=0.0)
    up = Upload({"w": torch.tensor([0.5, 0.4])}, torch.full((2, 5), -1), torch.zeros(2, 5))
    server = back.server_update(back.init_server(quad.init(0)), one_round([0, 1], [1, 1]), up)
    down = back.download(server, one_round([0], [1], 2), 0)
    assert down.ids.tolist() == [1, -1] and down.models["w"].tolist() == pytest.approx([0.4, 0.5])
    client = quadratic_client([0.6], quad, epochs=0)
    plain = FedFomo(quad, 4).client_update(client, owner(0.5, 0.0), candidates(0.4))
    again = back.client_update(client, owner(0.5, 0.0), down)
    for one, other in zip(plain, again, strict=True):
        assert_close(flatten(one), flatten(other), rtol=0, atol=0)


def test_a_share_outside_its_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.validation_fraction = 1.0 is not valid: must be in \[0, 1\)\."):
        FedFomo(Quadratic(), 2, validation_fraction=1.0)
