"""FedGen: the generator's size and lessons, both terms of the client's loss, what travels."""

from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softmax

from hyperfed.core import Params, Role, UserError, count, stack
from hyperfed.engine.optim import Optim
from hyperfed.engine.workspace import Local
from hyperfed.methods.fedavg import FedAvg
from hyperfed.methods.fedgen import Download, FedGen, Server, Upload, diversity, generate
from hyperfed.models import HyperModel, Hypernet, Network
from hyperfed.models.resnet import ResNet
from problems import one_round, play_rounds, tiny_engine, tiny_network

PLAIN = Optim(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)


def uploads(method: FedGen, *labels: list[int]) -> Upload:
    """One client per row of label counts, each with a head that answers one class: 10 z_c for its class c, 0 for the others."""
    ups: list[Upload] = []
    for k, counts in enumerate(labels):
        params = method.shared(method.model.init(k))
        weight = torch.zeros_like(params["head.weight"])
        weight[k % 3, k % 3] = 10.0
        ups.append(Upload({**params, "head.weight": weight, "head.bias": torch.zeros(3)}, torch.tensor(counts)))
    stacked: Upload = stack(ups)
    return stacked


def reference(server: Server) -> nn.Module:
    """The generator as layers of the library."""
    g = server.generator
    layers = nn.Sequential(nn.Linear(35, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    named = {"0": "in", "1": "norm", "3": "out"}
    state = {f"{i}.{leaf}": g[f"G.{name}.{leaf}"] for i, name in named.items() for leaf in ("weight", "bias")}
    state |= {"1.running_mean": server.statistics[0], "1.running_var": server.statistics[1], "1.num_batches_tracked": torch.tensor(0)}
    layers.load_state_dict(state)
    return layers


def test_the_generator_has_3552_elements_and_is_what_the_downloads_add() -> None:
    """42 * 32 + 32 + 2 * 32 + 32 * 64 + 64 = 3,552; with P each way and ten label counts up: 2 P + 3,562 = 1,131,422."""
    method = FedGen(Network(lambda: ResNet(3, 10, 16, 6), 10), 2)
    roles, start = method.model.roles, method.model.init(0)
    server = method.init_server(start)
    down = method.download(server, one_round([0], [1]), 0)
    assert sum(t.numel() for t in down.generator.values()) == 3552
    up = Upload(method.shared(start), torch.zeros(10, dtype=torch.int64))
    assert count(down, roles).trainable == 563_930 + 3552
    assert count(down, roles).trainable + count(up, roles).trainable + count(up, roles).extra == 1_131_422


def test_training_and_download_are_the_librarys_layers() -> None:
    """Batch norm in training mode on the server; folded to scale and shift in the download, so that one sample is enough."""
    method = FedGen(tiny_network(), 2)
    server = method.server_update(
        method.init_server(method.model.init(0)), one_round([0, 1], [4, 4]), uploads(method, [4, 0, 0], [0, 4, 0])
    )
    layers, y, noise = reference(server), torch.tensor([0, 2, 1]), torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    x = torch.cat([noise, one_hot(y, 3).float()], 1)
    folded = method.download(server, one_round([0], [4], 2), 0).generator
    torch.testing.assert_close(generate(folded, y, noise), layers.eval()(x))
    torch.testing.assert_close(generate(folded, y[:1], noise[:1]), layers(x[:1]))
    statistics = server.statistics.clone()
    torch.testing.assert_close(generate(server.generator, y, noise, statistics), layers.train()(x))
    torch.testing.assert_close(statistics[0], layers[1].running_mean)
    torch.testing.assert_close(statistics[1], layers[1].running_var)


def test_each_head_speaks_for_a_class_by_its_share_of_it() -> None:
    """Heads with logits (10, 0, 0) and (0, 10, 0) at z = (1, 1, 0...). Class 0: shares 3/4 and 1/4, logits (7.5, 2.5, 0).

    Class 1 is the second client's alone: (0, 10, 0). Mean of log(1 + e^-5 + e^-7.5) and log(1 + 2 e^-10).
    """
    method = FedGen(tiny_network(), 2)
    z = torch.zeros(2, 16)
    z[:, :2] = 1
    loss = method.ensemble_loss(z, torch.tensor([0, 1]), uploads(method, [3, 0, 0], [1, 5, 0]))
    assert loss.item() == pytest.approx((log(1 + exp(-5) + exp(-7.5)) + log(1 + 2 * exp(-10))) / 2, rel=1e-3)


def test_diversity_by_hand() -> None:
    """z = 0 and 1, noise = 0 and 2: of four pairs two are 1 * 4 apart, mean 2: exp(-2)."""
    assert diversity(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])).item() == pytest.approx(exp(-2))


def lesson(method: FedGen, server: Server, up: Upload) -> float:
    """The ensemble's loss on 300 features of the generator as clients get it."""
    rng, y = torch.Generator().manual_seed(3), torch.arange(300) % 3
    folded = method.download(server, one_round([0], [1], 2), 0).generator
    return float(method.ensemble_loss(generate(folded, y, torch.randn(300, 32, generator=rng)), y, up))


def test_the_generator_lowers_the_ensembles_loss() -> None:
    """Three teachers of one class each. An untrained generator is near log 3; taught, the ensemble knows its features for sure."""
    method = FedGen(tiny_network(), 3, generator_steps=300, generator_lr=1e-2)
    up = uploads(method, [9, 0, 0], [0, 9, 0], [0, 0, 9])
    server = method.init_server(method.model.init(0))
    after = method.server_update(server, one_round([0, 1, 2], [9, 9, 9]), up)
    assert lesson(method, server, up) > 0.5
    assert lesson(method, after, up) < 0.05


def test_the_uploaded_heads_are_the_teachers() -> None:
    """Two cohorts that differ in their heads alone teach different generators; each serves its own teachers better."""
    method = FedGen(tiny_network(), 3, generator_steps=100, generator_lr=1e-2)
    server = method.init_server(method.model.init(0))
    up = uploads(method, [9, 0, 0], [0, 9, 0], [0, 0, 9])
    other = up._replace(shared={**up.shared, "head.weight": up.shared["head.weight"].flip(2)})
    mine, theirs = (method.server_update(server, one_round([0, 1, 2], [9] * 3), u) for u in (up, other))
    assert lesson(method, mine, up) < 0.5 * lesson(method, theirs, up)
    assert lesson(method, theirs, other) < 0.5 * lesson(method, mine, other)


def test_eta_spreads_the_features() -> None:
    """The same 100 steps with and without the diversity term: with it, different noise gives features further apart."""
    y, noise = torch.zeros(64, dtype=torch.int64), torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    crowded = []
    for eta in (0.0, 100.0):
        method = FedGen(tiny_network(), 3, generator_steps=100, generator_lr=1e-2, eta=eta)
        up = uploads(method, [9, 0, 0], [0, 9, 0], [0, 0, 9])
        server = method.server_update(method.init_server(method.model.init(0)), one_round([0, 1, 2], [9] * 3), up)
        folded = method.download(server, one_round([0], [1], 2), 0).generator
        crowded.append(diversity(generate(folded, y, noise), noise).item())
    assert crowded[1] < 0.1 * crowded[0]


def test_the_prior_is_the_cohorts() -> None:
    """Label counts (3, 0, 1) and (1, 5, 0): p(y) = (4, 5, 1) / 10, from the second round on in the download."""
    method = FedGen(tiny_network(), 2)
    server = method.init_server(method.model.init(0))
    assert server.prior.tolist() == pytest.approx([1 / 3] * 3)
    server = method.server_update(server, one_round([0, 1], [4, 6]), uploads(method, [3, 0, 1], [1, 5, 0]))
    assert method.download(server, one_round([0], [4], 2), 0).prior.tolist() == pytest.approx([0.4, 0.5, 0.1])


Z0 = torch.linspace(-1, 1, 16)
ZS = torch.stack([Z0, -2 * Z0, Z0.square()])


def saying(z: Tensor) -> Params:
    """A generator that says z_y for class y, [C, d], whatever the noise: hidden unit y is 1 and the others 0."""
    into = torch.zeros(32, 35)
    into[range(3), range(32, 35)] = 1.0
    out = torch.zeros(16, 32)
    out[:, :3] = z.T
    unit = {"G.norm.weight": torch.ones(32), "G.norm.bias": torch.zeros(32)}
    return {"G.in.weight": into, "G.in.bias": torch.zeros(32), "G.out.weight": out, "G.out.bias": torch.zeros(16), **unit}


def one_step(folder: Path, prior: list[float], decay: float, **settings: Any) -> tuple[Params, Params, Tensor, Tensor]:
    """One step of 0.1 on all 20 samples, with a generator that says ``ZS``. Returns start, result, the samples' output and labels."""
    method = FedGen(tiny_network(), 3, **settings)
    engine = tiny_engine(method, folder, optim=PLAIN, local=Local(epochs=1, batch_size=20))
    start = engine.initial()
    fresh = method.download(method.init_server(start), one_round([0], [20]), 0)
    client = engine.client(0, 1, "train", engine.optim, 0.1)
    _, up = method.client_update(
        client, method.init_client(start), Download(fresh.shared, saying(ZS), torch.tensor(prior), torch.tensor(decay))
    )
    x, y = engine.space.images.batch(client.train)
    return start, up.shared, method.model.apply(start, x, train=True)[0], y


def test_the_first_term_pulls_the_head_towards_the_drawn_class(tmp_path: Path) -> None:
    """p(y) = e_2, beta = 0: the head's gradient gains alpha (sigma(W z_2 + b) - e_2) z_2^T, its bias the same without z_2.

    A step of 0.1 with alpha = 10 x 0.5 moves the bias by -0.5 (sigma - e_2) more than without; the body moves as without.
    """
    start, plain, *_ = one_step(tmp_path / "a", [0.0, 0, 1], 0.0)
    _, pulled, *_ = one_step(tmp_path / "b", [0.0, 0, 1], 0.5, beta=0.0)
    sigma = softmax(start["head.weight"] @ ZS[2] + start["head.bias"], 0)
    expected = -0.5 * (sigma - torch.tensor([0.0, 0, 1]))
    torch.testing.assert_close(pulled["head.bias"] - plain["head.bias"], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pulled["head.weight"] - plain["head.weight"], torch.outer(expected, ZS[2]), atol=1e-6, rtol=1e-5)
    assert torch.equal(pulled["stem.weight"], plain["stem.weight"])


def test_the_second_term_pulls_the_models_answers_towards_the_generators(tmp_path: Path) -> None:
    """alpha = 0: KL(p_y || sigma(f(x))) has the gradient sigma(f(x)) - p_y at the logits, p_y = sigma(W z_y + b) held fixed.

    A step of 0.1 with beta = 10 x 0.5 moves the bias by -0.5 mean_i (sigma(f(x_i)) - p_(y_i)) more than without; the body moves, too.
    """
    start, plain, output, y = one_step(tmp_path / "a", [1.0, 1, 1], 0.0)
    _, pulled, *_ = one_step(tmp_path / "b", [1.0, 1, 1], 0.5, alpha=0.0)
    teacher = softmax(ZS @ start["head.weight"].T + start["head.bias"], 1)
    expected = -0.5 * (softmax(output, 1) - teacher[y]).mean(0)
    torch.testing.assert_close(pulled["head.bias"] - plain["head.bias"], expected, atol=1e-6, rtol=1e-4)
    assert not torch.equal(pulled["stem.weight"], plain["stem.weight"])


def test_round_1_is_fedavg_to_the_bit_and_later_rounds_decay(tmp_path: Path) -> None:
    """alpha_t = alpha 0.98^(t - 1) from round 2 on."""
    method, fedavg = FedGen(tiny_network(), 3), FedAvg(tiny_network(), 3)
    mine = play_rounds(method, tiny_engine(method, tmp_path / "a", (10, 20, 30)), 1)
    theirs = play_rounds(fedavg, tiny_engine(fedavg, tmp_path / "b", (10, 20, 30)), 1)
    assert all(torch.equal(mine.shared[n], t) for n, t in theirs.shared.items())
    for number, decay in ((1, 0.0), (2, 0.98), (11, 0.98**10)):
        assert method.download(mine, one_round([0], [1], number), 0).decay.item() == pytest.approx(decay)


def test_refused_where_the_head_never_travels() -> None:
    with pytest.raises(UserError, match="a linear head with a bias must travel"):
        FedGen(HyperModel(tiny_network(), Hypernet(embedding=4)), 2)
    method = FedGen(HyperModel(tiny_network(), Hypernet(embedding=4, share=("head",))), 2)
    assert {method.model.roles[n] for n in method.init_server(method.model.init(0)).shared} == {Role.HYPER, Role.HEAD}
