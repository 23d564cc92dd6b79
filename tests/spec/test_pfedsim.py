"""pFedSim: three clients by hand, the two phases, what travels."""

from math import log
from pathlib import Path

import pytest
import torch
from torch import nn

from hyperfed.core import Params, Role, UserError, count, stack
from hyperfed.methods.fedavg import FedAvg, Shared
from hyperfed.methods.pfedsim import PFedSim
from hyperfed.models import HyperModel, Hypernet, Network
from hyperfed.models.resnet import ResNet
from problems import one_round, play_rounds, tiny_engine, tiny_network

TWO = Network(lambda: nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2)), 2)
HEADS = ([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [3.0, 0.0]], [[-1.0, 0.0], [0.0, -1.0]])


def model(body: float, head: list[list[float]], bias: float) -> Params:
    return {
        "0.weight": torch.full((2, 1), body),
        "0.bias": torch.full((2,), -body),
        "1.weight": torch.tensor(head),
        "1.bias": torch.full((2,), bias),
    }


def test_three_clients_by_hand() -> None:
    """Cosines of the rows, clients 1 and 2: 1 and 0, mean 1/2; 1 and 3: -1 and -1, cut to 0; 2 and 3: -1 and 0, cut to 0.

    w_11 = -log(1e-4) = 9.2103, w_12 = log 2 = 0.6931. Bodies 1, 2, 4: omega_1 = (9.2103 + 2 * 0.6931) / 9.9035 = 1.06999,
    omega_2 = (0.6931 + 2 * 9.2103) / 9.9035 = 1.93001, omega_3 = 4. Heads stay, whatever their length and bias.
    """
    method = PFedSim(TWO, 4, warmup_rounds=0)
    models = [model(body, head, bias=k) for k, (body, head) in enumerate(zip((1.0, 2.0, 4.0), HEADS, strict=True))]
    server = method.server_update(method.init_server(TWO.init(0)), one_round([0, 1, 2], [1, 5, 9]), stack([Shared(m) for m in models]))
    a, b = -log(1e-4), log(2)
    for k, body in enumerate(((a + 2 * b) / (a + b), (b + 2 * a) / (a + b), 4.0)):
        down = method.download(server, one_round([k], [1], 2), k)
        assert down.shared["0.weight"].flatten().tolist() == pytest.approx([body] * 2, rel=1e-5)
        assert down.shared["0.bias"].tolist() == pytest.approx([-body] * 2, rel=1e-5)
        assert torch.equal(down.shared["1.weight"], models[k]["1.weight"]) and torch.equal(down.shared["1.bias"], models[k]["1.bias"])


def test_identical_heads_weigh_like_the_own_and_not_infinitely() -> None:
    """cos = 1 would weigh -log 0: it counts as 0.9999, so two clients with one head share the mean body."""
    method = PFedSim(TWO, 2, warmup_rounds=0)
    ups = stack([Shared(model(1.0, HEADS[0], 0)), Shared(model(2.0, HEADS[0], 0))])
    server = method.server_update(method.init_server(TWO.init(0)), one_round([0, 1], [1, 1]), ups)
    assert method.download(server, one_round([0], [1], 2), 0).shared["0.weight"].flatten().tolist() == pytest.approx([1.5] * 2)


def test_the_warm_up_is_fedavg_to_the_bit_and_a_newcomer_gets_its_result(tmp_path: Path) -> None:
    method, fedavg = PFedSim(tiny_network(), 3, warmup_rounds=2), FedAvg(tiny_network(), 3)
    mine = play_rounds(method, tiny_engine(method, tmp_path / "a", (10, 20, 30)), 2)
    theirs = play_rounds(fedavg, tiny_engine(fedavg, tmp_path / "b", (10, 20, 30)), 2)
    for name, tensor in theirs.shared.items():
        assert torch.equal(mine.shared[name], tensor)
    up = stack([Shared({n: t + 1 for n, t in mine.shared.items()})])
    after = method.server_update(mine, one_round([0], [20], 3), up)
    newcomer = method.download(after, one_round([1], [20], 4), 1)
    assert all(torch.equal(newcomer.shared[n], t) for n, t in theirs.shared.items())


def test_clients_part_after_the_warm_up(tmp_path: Path) -> None:
    """Played on the real engine beyond the switch: every client is sent its own last head, and a body of its own."""
    method = PFedSim(tiny_network(), 3, warmup_rounds=1)
    engine = tiny_engine(method, tmp_path)
    server = play_rounds(method, engine, 3)
    downs = [method.download(server, one_round([0, 1, 2], [20] * 3, 4), k).shared for k in range(3)]
    for k in range(3):
        last = server.models.row(k)
        for name, role in method.model.roles.items():
            assert torch.equal(downs[k][name], last[name]) == (role is Role.HEAD), name
            assert not torch.equal(downs[k][name], downs[k - 1][name]), name


@pytest.mark.parametrize("warmup_rounds", [0, 5])
def test_cost_on_the_cifar10_resnet(warmup_rounds: int) -> None:
    """2 P = 1,127,860 in both phases."""
    method = PFedSim(Network(lambda: ResNet(3, 10, 16, 6), 10), 2, warmup_rounds=warmup_rounds)
    up = Shared(method.shared(method.model.init(0)))
    server = method.server_update(method.init_server(method.model.init(0)), one_round([0, 1], [1, 1]), stack([up, up]))
    down = method.download(server, one_round([0], [1], 2), 0)
    assert count(down, method.model.roles).trainable + count(up, method.model.roles).trainable == 1_127_860


def test_refused_where_the_head_never_travels() -> None:
    with pytest.raises(UserError, match="pfedsim compares the clients' heads"):
        PFedSim(HyperModel(tiny_network(), Hypernet(embedding=4)), 2)
    PFedSim(HyperModel(tiny_network(), Hypernet(embedding=4, share=("head",))), 2)
