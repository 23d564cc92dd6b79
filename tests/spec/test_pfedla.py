"""pFedLA: the mixture, the server's step, what stays at home, what travels, and that N models are never held at once."""

import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hyperfed.core import Bank, Params, Role, UserError, count, stack
from hyperfed.methods.fedavg import Shared
from hyperfed.methods.pfedla import PFedLA, Server, layer_of
from hyperfed.models import HyperModel, Hypernet, Network
from hyperfed.models.resnet import ResNet
from problems import Quadratic, one_round, play_rounds, tiny_engine, tiny_network


def model_of(method: PFedLA, seed: int) -> Params:
    """A model with running statistics of its own; ``seed`` 0 is the initial one."""
    return {n: t + seed if method.model.roles[n] is Role.STATS else t for n, t in method.model.init(seed).items()}


def three_clients(**settings: int) -> tuple[PFedLA, Server]:
    """Three clients that have uploaded three different models, and a fourth that has not."""
    method = PFedLA(tiny_network(), 4, **settings)  # type: ignore[arg-type]
    ups = stack([Shared(method.shared(model_of(method, seed))) for seed in (1, 2, 3)])
    return method, method.server_update(method.init_server(method.model.init(0)), one_round([0, 1, 2], [1] * 3), ups)


def trained(method: PFedLA, params: Params) -> dict[str, torch.Tensor]:
    return {n: t for n, t in params.items() if method.model.roles[n] is not Role.STATS}


def distance(method: PFedLA, a: Params, b: Params) -> float:
    return sum(float((t - b[n]).square().sum()) for n, t in trained(method, a).items())


def test_a_layer_is_a_module_and_has_one_weight_per_client() -> None:
    """Weight 1/4 and 3/4 on the first layer (a convolution), 1 and 0 on all others: 1/4 a + 3/4 b there, a elsewhere."""
    method, server = three_clients()
    assert method.layers == ["stem", "norm1", "conv", "scale", "head"]
    assert layer_of("hyper.w_in") == "hyper.w_in"
    alpha = torch.tensor([[0.25, 0.75, 0, 0]] + [[1.0, 0, 0, 0]] * 4)
    mixed, a, b = method.mixture(server, alpha), model_of(method, 1), model_of(method, 2)
    for name, tensor in mixed.items():
        expected = 0.25 * a[name] + 0.75 * b[name] if name.startswith("stem") else a[name]
        torch.testing.assert_close(tensor, expected)


def test_weights_are_a_distribution_over_clients_per_layer() -> None:
    method, server = three_clients()
    for k in range(4):
        alpha = method.alpha(method.hypernet(server, k), k)
        assert alpha.shape == (5, 4) and bool((alpha >= 0).all())
        assert alpha.sum(1).tolist() == pytest.approx([1.0] * 5)
    psi = method.hypernet(server, 2)
    silent = {**psi, "heads.weight": torch.zeros_like(psi["heads.weight"]), "heads.bias": -torch.ones_like(psi["heads.bias"])}
    assert method.alpha(silent, 2).tolist() == [[0.0, 0.0, 1.0, 0.0]] * 5


def test_clients_never_met_count_with_the_initial_model() -> None:
    """theta-bar over the explicit stack of all four models, the fourth being the initial one."""
    method, server = three_clients()
    alpha = method.alpha(method.hypernet(server, 1), 1)
    models = [model_of(method, seed) for seed in (1, 2, 3, 0)]
    for name, tensor in method.mixture(server, alpha).items():
        row = alpha[method.layers.index(layer_of(name))]
        torch.testing.assert_close(tensor, sum(w * m[name] for w, m in zip(row, models, strict=True)))


def test_the_servers_step_is_the_gradient_of_half_the_squared_distance() -> None:
    """An independent path: autograd through the stacked mixture of 1/2 ||theta-bar(psi) - theta||^2, one step of eta = 0.005."""
    method, server = three_clients()
    theta = method.shared(model_of(method, 7))
    psi = {n: t.clone().requires_grad_() for n, t in method.hypernet(server, 1).items()}
    alpha = method.alpha(psi, 1)
    models = [model_of(method, seed) for seed in (1, 2, 3, 0)]
    loss = torch.zeros(())
    for name in trained(method, theta):
        stacked = torch.stack([m[name] for m in models])
        bar = torch.einsum("n,n...->...", alpha[method.layers.index(layer_of(name))], stacked)
        loss = loss + 0.5 * (bar - theta[name]).square().sum()
    loss.backward()
    after = method.step(server, 1, theta)
    for name, tensor in psi.items():
        torch.testing.assert_close(after[name], tensor.detach() - 0.005 * tensor.grad, rtol=1e-4, atol=1e-7)
    assert not torch.equal(after["v"], psi["v"].detach())


def test_the_servers_step_moves_the_download_towards_the_upload() -> None:
    """Client 1 goes on uploading client 2's model; the others' models stand still. Each step of 0.005 is nearer, after ten it is there."""
    method, server = three_clients()
    theta = method.shared(method.model.init(3))
    distances = []
    for number in range(2, 12):
        distances.append(distance(method, method.download(server, one_round([1], [1], number), 1).shared, theta))
        stepped = method.server_update(server, one_round([1], [1], number), stack([Shared(theta)]))
        still = server.models.put(one_round([1], [1]), stack([Shared(method.shared(method.model.init(2)))]).shared)
        server = stepped._replace(models=still)
    assert all(b < a for a, b in pairwise(distances))
    assert distances[-1] < 1e-3 * distances[0]


def test_only_the_participants_hypernetwork_and_model_change() -> None:
    method, server = three_clients()
    before = {k: method.hypernet(server, k) for k in range(4)}
    after = method.server_update(server, one_round([1], [1], 2), stack([Shared(method.shared(method.model.init(9)))]))
    for k in range(4):
        same = all(torch.equal(t, method.hypernet(after, k)[n]) for n, t in before[k].items())
        assert same == (k != 1)
    assert torch.equal(after.models.row(1)["head.weight"], method.model.init(9)["head.weight"])


def test_kept_layers_stay_at_the_client_and_teach_nothing() -> None:
    """HeurpFedLA: the two layers of highest own weight are not sent; the client goes on with its own; their heads get no gradient."""
    method, server = three_clients(keep_layers=2)
    drawn = method.hypernet(server, 0)
    psi = {**drawn, "heads.bias": drawn["heads.bias"] + 1}  # every weight is positive, so every layer can learn
    server = server._replace(hypernets=server.hypernets.put(one_round([0], [1]), {n: t[None] for n, t in psi.items()}))
    alpha = method.alpha(psi, 0)
    top = {method.layers[i] for i in alpha[:, 0].topk(2).indices.tolist()}
    down = method.download(server, one_round([0], [1], 2), 0)
    assert {layer_of(n) for n in down.shared} == set(method.layers) - top
    own = method.model.init(5)
    deployed = method.personalize(method.init_client(own), down)
    assert all(torch.equal(deployed[n], own[n]) == (layer_of(n) in top) for n in own if own[n].ndim > 1)
    after = method.step(server, 0, method.shared(method.model.init(9)))
    for i, layer in enumerate(method.layers):
        if layer not in ("norm1", "scale"):  # batch norm starts alike at every client: nothing to learn there
            assert torch.equal(after["heads.weight"][i], psi["heads.weight"][i]) == (layer in top)


def test_kept_layers_survive_rounds_on_the_real_engine(tmp_path: Path) -> None:
    method = PFedLA(tiny_network(), 3, keep_layers=4)
    engine = tiny_engine(method, tmp_path)
    server = play_rounds(method, engine, 2)
    for k in range(3):
        down = method.download(server, one_round([k], [20], 3), k)
        deployed = engine.model_of(k, down)
        assert all(torch.equal(t, server.models.row(k)[n]) for n, t in deployed.items() if n not in down.shared)


def test_cost_on_the_cifar10_resnet() -> None:
    """2 P = 1,127,860; with one layer kept, the down half is smaller by exactly that layer."""
    network = Network(lambda: ResNet(3, 10, 16, 6), 10)
    for keep in (0, 1):
        method = PFedLA(network, 2, keep_layers=keep)
        start = method.model.init(0)
        down = method.download(method.init_server(start), one_round([0], [1]), 0)
        missing = sum(t.numel() for n, t in start.items() if n not in down.shared and network.roles[n] is not Role.STATS)
        assert (missing > 0) == bool(keep)
        up = Shared(method.shared(start))
        assert count(down, network.roles).trainable + count(up, network.roles).trainable == 1_127_860 - missing


def test_over_a_hypernetwork_the_layers_are_phis_tensors() -> None:
    method = PFedLA(HyperModel(tiny_network(), Hypernet(embedding=4)), 2)
    assert method.layers == ["hyper.b_in", "hyper.b_out", "hyper.w_in", "hyper.w_out"]


def test_models_are_read_one_by_one() -> None:
    """Thirty clients' models on a backing that counts how many of its rows are alive: never more than two."""

    class Disk:
        def __init__(self) -> None:
            self.rows: dict[int, Params] = {}
            self.alive, self.most = 0, 0

        def get(self, k: int) -> Params | None:
            row = {n: t.clone() for n, t in self.rows[k].items()}
            self.alive += 1
            weakref.finalize(next(iter(row.values())), self.gone)
            self.most = max(self.most, self.alive)
            return row

        def gone(self) -> None:
            self.alive -= 1

        def put(self, k: int, row: Params, version: int) -> None:
            self.rows[k] = row

    method = PFedLA(Quadratic(), 30)
    disk, ids = Disk(), list(range(30))
    empty = method.init_server(method.model.init(0))
    ups = stack([Shared({"w": torch.tensor(float(k))}) for k in ids])
    server = method.server_update(empty._replace(models=Bank(empty.models.default, disk)), one_round(ids, [1] * 30), ups)
    method.download(server, one_round(ids, [1] * 30, 2), 3)
    method.server_update(server, one_round(ids, [1] * 30, 2), ups)
    assert 1 <= disk.most <= 2


def test_keeping_every_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.keep_layers = 5 is not valid: must be in \[0, 5\), the number of layers that travel\."):
        PFedLA(tiny_network(), 2, keep_layers=5)
