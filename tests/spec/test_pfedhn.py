"""pFedHN: the server's step is a vector-Jacobian product, what travels is the generated model and its change, nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from hyperfed.core import ALL, Role, UserError, count, flatten, stack
from hyperfed.core.tree import add, dot, sqdist
from hyperfed.engine.optim import Optim
from hyperfed.engine.workspace import DeviceClient, Images, Local, Workspace
from hyperfed.methods.pfedhn import Delta, PFedHN, PFedHNPC, Server, Theta
from hyperfed.models import HyperModel, Hypernet, Shape, build_model
from hyperfed.models.generator import TABLE
from problems import Quadratic, one_round, play_rounds, quadratic_client, tiny_engine, tiny_network

CNN = build_model("cnn", Shape(3, 32, 10))
RESNET = build_model("resnet", Shape(3, 32, 10), width=16, blocks=6)


def small(kind: type[PFedHN] = PFedHN, clients: int = 4, **settings: Any) -> PFedHN:
    """A method small enough for finite differences: an MLP 16-8-8-3, a hypernetwork of width 6."""
    return kind(build_model("mlp", Shape(1, 4, 3), width=8), clients, hidden=6, depth=2, **settings)


def drawn(method: PFedHN, seed: int, k: int = 1) -> Delta:
    """K uploads of normal noise."""
    rng = torch.Generator().manual_seed(seed)
    return Delta({n: torch.randn(k, *s, generator=rng) for n, s in method.generator.shapes.items()})


def elements(tree: dict[str, Tensor]) -> int:
    return sum(t.numel() for t in tree.values())


@pytest.mark.parametrize(
    ("kind", "target", "hypernetwork"),
    [(PFedHN, 121_182, 12_271_732), (PFedHNPC, 120_332, 12_185_882)],
)
def test_sizes_and_traffic_of_the_paper(kind: type[PFedHN], target: int, hypernetwork: int) -> None:
    """The CNN has 121,182 parameters, 120,332 without its last layer of 84 * 10 + 10; for 50 clients e = int(1 + 50 / 4) = 13, so
    phi has 50 * 13 + 14 * 100 + 3 * 101 * 100 + 101 * target. Down theta, up its change: no element more."""
    method = kind(CNN, 50)
    params = CNN.init(0)
    server = method.init_server(params)
    down = method.download(server, one_round([3], [1]), 3)
    w = method.personalize(method.init_client(params), down)
    images = Images(torch.zeros(2, 32, 32, 3, dtype=torch.uint8).numpy(), torch.tensor([0, 1]).numpy(), (0.0,), (1.0,), torch.device("cpu"))
    client = DeviceClient(Workspace(CNN, images), 0, torch.arange(2), torch.arange(0), 1, 1, 0.01, Optim(lr=0.01), Local(1, 2))
    _, up = method.client_update(client, method.init_client(params), down)
    assert elements(server.phi) == hypernetwork == 50 * 13 + 14 * 100 + 3 * 101 * 100 + 101 * target
    for message in (down, up):
        traffic = count(message, CNN.roles)
        assert (traffic.trainable, traffic.buffers, traffic.extra) == (target, 0, 0)
    assert elements(w) == 121_182


@pytest.mark.parametrize(("kind", "each_way"), [(PFedHN, 563_930), (PFedHNPC, 563_280)])
def test_traffic_of_the_resnet(kind: type[PFedHN], each_way: int) -> None:
    """Every parameter of Table 1's CIFAR-10 ResNet is generated (but its head of 650); running statistics stay on the device."""
    method = kind(RESNET, 4)
    server = method.init_server(RESNET.init(0))
    traffic = count(method.download(server, one_round([0], [1]), 0), RESNET.roles)
    assert (traffic.trainable, traffic.buffers, traffic.extra) == (each_way, 0, 0)
    assert {RESNET.roles[n] for n in method.init_client(RESNET.init(0)).personal} == ALL & {Role.STATS} | (
        {Role.HEAD} if kind is PFedHNPC else set()
    )


@pytest.mark.parametrize("clients", [(10, 3), (50, 13), (100, 26)])
def test_dimensions_of_the_embedding(clients: tuple[int, int]) -> None:
    """int(1 + N / 4): 3, 13 and 26 for 10, 50 and 100 clients."""
    assert small(clients=clients[0]).generator.embedding == clients[1]
    assert small(clients=clients[0], embedding=7).generator.embedding == 7


def test_the_generator_is_the_mlp_it_says_it_is() -> None:
    """The pure function equals a torch module of the same layers: Linear, (ReLU, Linear) x depth, a linear head per tensor."""
    method = small()
    phi = method.init_server(method.model.init(0)).phi
    layers: list[torch.nn.Module] = [torch.nn.Linear(2, 6)]
    for _ in range(2):
        layers += [torch.nn.ReLU(), torch.nn.Linear(6, 6)]
    mlp = torch.nn.Sequential(*layers)
    weights = {f"{2 * i}.{kind}": phi[f"mlp.{i}.{kind}"] for i in range(3) for kind in ("weight", "bias")}
    z = functional_call(mlp, weights, (phi[TABLE][[1, 3]],))
    theta = method.generate(phi, torch.tensor([1, 3]), {})
    for name, tensor in theta.items():
        expected = z @ phi[f"head.{name}.weight"].T + phi[f"head.{name}.bias"]
        torch.testing.assert_close(tensor.flatten(1), expected)


def test_the_step_is_an_independent_autograd_gradient() -> None:
    """One plain SGD step with lr 1 moves phi by -d/dphi sum_i <theta_i(phi), -Delta_i>, which autograd finds going backward."""
    method = small(lr=1.0, momentum=0.0, weight_decay=0.0, clip=1e9, cohort="sum")
    server = method.init_server(method.model.init(0))
    up = drawn(method, 1, 2)
    after = method.server_update(server, one_round([0, 2], [1, 1]), up)
    live = {n: t.clone().requires_grad_() for n, t in server.phi.items()}
    for i, k in enumerate((0, 2)):
        theta = method.generate(live, torch.tensor([k]), {})
        torch.stack([(theta[n][0] * -up.delta[n][i]).sum() for n in theta]).sum().backward()
    for name, t in live.items():
        assert t.grad is not None
        torch.testing.assert_close(after.phi[name], server.phi[name] - t.grad, atol=1e-6, rtol=1e-5)


def test_the_step_is_the_slope_of_finite_differences() -> None:
    """Along a random direction u: <gradient, u> = d/ds sum_i <theta_i(phi + s u), -Delta_i> by central differences in float64."""
    method = small(lr=1.0, momentum=0.0, weight_decay=0.0, clip=1e9, cohort="sum")
    server = method.init_server(method.model.init(0))
    server = server._replace(phi={n: t.double() for n, t in server.phi.items()}, first={n: t.double() for n, t in server.first.items()})
    up = Delta({n: t.double() for n, t in drawn(method, 2, 2).delta.items()})
    rnd = one_round([1, 3], [1, 1])
    after = method.server_update(server, rnd, up)
    rng = torch.Generator().manual_seed(3)
    u = {n: torch.randn(t.shape, generator=rng, dtype=torch.float64) for n, t in server.phi.items()}
    moved = dot({n: after.phi[n] - t for n, t in server.phi.items()}, u)

    def value(s: float) -> Tensor:
        return dot(up.delta, method.generate(add(server.phi, u, s), rnd.ids, {}))

    h = 1e-6
    assert float(moved) == pytest.approx(float((value(h) - value(-h)) / (2 * h)), rel=1e-5)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_steps_move_the_generated_model_to_what_the_client_trained(optimiser: str) -> None:
    """Uploads Delta = target - theta, again and again: the distance to the target falls in the first step and is small at the end."""
    method = small(lr=1e-2 if optimiser == "sgd" else 3e-3, weight_decay=0.0, optimiser=optimiser)
    server = method.init_server(method.model.init(0))
    target = {n: t[0] for n, t in drawn(method, 4).delta.items()}
    distances = []
    for number in range(1, 201):
        rnd = one_round([2], [1], number)
        theta = method.download(server, rnd, 2).theta
        distances.append(float(sqdist(target, theta)))
        server = method.server_update(server, rnd, stack([Delta({n: target[n] - t for n, t in theta.items()})]))
    assert distances[1] < distances[0]
    assert distances[-1] < 0.05 * distances[0]


def test_a_quadratic_client_ends_at_its_own_optimum() -> None:
    """f_k = 1/2 (w - c_k)^2 with c = 0.2 and 1: each client's generated scalar goes to its own c_k; a common model could only do 0.6."""
    method = PFedHN(Quadratic(), 2, hidden=10, depth=1, lr=0.05, weight_decay=0.0)
    clients = [quadratic_client([c], method.model, lr=0.5) for c in (0.2, 1.0)]
    server, state = method.init_server({"w": torch.tensor(0.0)}), method.init_client({"w": torch.tensor(0.0)})
    for number in range(1, 301):
        rnd = one_round([0, 1], [1, 1], number)
        ups = [method.client_update(client, state, method.download(server, rnd, k))[1] for k, client in enumerate(clients)]
        server = method.server_update(server, rnd, stack(ups))
    found = [float(method.download(server, rnd, k).theta["w"]) for k in (0, 1)]
    assert found == pytest.approx([0.2, 1.0], abs=0.02)


def test_sum_is_as_many_times_the_mean_as_there_are_clients() -> None:
    """Without momentum, decay and clipping, a step of sum is K steps' worth of mean: here K = 3."""
    steps = []
    for cohort in ("sum", "mean"):
        method = small(lr=0.1, momentum=0.0, weight_decay=0.0, clip=1e9, cohort=cohort)
        server = method.init_server(method.model.init(0))
        after = method.server_update(server, one_round([0, 1, 3], [1, 9, 9]), drawn(method, 5, 3))
        steps.append({n: after.phi[n] - t for n, t in server.phi.items()})
    for name, step in steps[0].items():
        torch.testing.assert_close(step, 3 * steps[1][name], atol=1e-6, rtol=1e-4)


def test_the_optimiser_is_torch_sgd_with_clipping_on_what_took_part() -> None:
    """Three steps of all clients equal torch.optim.SGD(momentum 0.9, weight decay 1e-3) after clip_grad_norm_ to 0.5."""
    method = small(clip=0.5, cohort="sum")
    server = method.init_server(method.model.init(0))
    live = {n: torch.nn.Parameter(t.clone()) for n, t in server.phi.items()}
    reference = torch.optim.SGD(live.values(), lr=1e-2, momentum=0.9, weight_decay=1e-3)
    for number in range(1, 4):
        up, rnd = drawn(method, number, 4), one_round([0, 1, 2, 3], [1] * 4, number)
        reference.zero_grad()
        theta = method.generate(dict(live), rnd.ids, {})
        torch.stack([(theta[n] * -up.delta[n]).sum() for n in theta]).sum().backward()
        assert torch.nn.utils.clip_grad_norm_(live.values(), 0.5) > 0.5
        reference.step()
        server = method.server_update(server, rnd, up)
    for name, t in live.items():
        torch.testing.assert_close(server.phi[name], t.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_embeddings_of_clients_that_are_away_do_not_move(optimiser: str) -> None:
    """Momentum and weight decay leave their rows alone, and the rows' moments wait for them; the rows of those present move."""
    method = small(optimiser=optimiser)
    server = method.init_server(method.model.init(0))
    start = server.phi[TABLE].clone()
    for number, ids in enumerate(([0, 1], [1], [1]), 1):
        server = method.server_update(server, one_round(ids, [1] * len(ids), number), drawn(method, number, len(ids)))
        if number == 1:
            once, moments = server.phi[TABLE].clone(), [m[TABLE][0].clone() for m in (server.first, server.second) if m]
    for waiting, later in zip(moments, [m[TABLE][0] for m in (server.first, server.second) if m], strict=True):
        assert torch.equal(waiting, later) and bool(waiting.any())
    assert torch.equal(server.phi[TABLE][2:], start[2:])
    assert torch.equal(server.phi[TABLE][0], once[0]) and not torch.equal(once[0], start[0])
    assert not torch.equal(server.phi[TABLE][1], once[1])


def test_spectral_norm_makes_every_matrix_one_long() -> None:
    """The largest singular value of each matrix as used, d output / d input of its layer, is 1, at the start and after 20 steps."""
    method = small(spectral_norm=True)
    server = method.init_server(method.model.init(0))

    def lengths(server: Server) -> list[float]:
        found = []
        for layer, r in server.directions.items():
            a = server.phi[f"{layer}.weight"]
            used = a / (a @ r).norm()
            found.append(float(torch.linalg.svdvals(used)[0]))
        return found

    assert lengths(server) == pytest.approx([1.0] * len(server.directions), abs=1e-4)
    for number in range(1, 21):
        server = method.server_update(server, one_round([number % 4], [1], number), drawn(method, number))
    assert lengths(server) == pytest.approx([1.0] * len(server.directions), abs=0.02)
    plain, bound = small(), method
    v = server.phi[TABLE][:1]
    theirs = bound.generator.apply(server.phi, v, server.directions)
    ours = plain.generator.apply(server.phi, v, {})
    assert all(not torch.allclose(theirs[n], ours[n]) for n in ours), "the option must change what is generated"
    tallest = max(abs(float(x)) for x in lengths(server))
    z = [bound.generator.apply(server.phi, x, server.directions) for x in (v, v + 1e-2)]
    for n in z[0]:  # the whole map is 1-Lipschitz in v
        assert float((z[1][n] - z[0][n]).norm()) <= tallest ** (method.depth + 2) * float(torch.full_like(v, 1e-2).norm()) * 1.001


def test_the_head_of_pc_stays_on_its_device(tmp_path: Path) -> None:
    """It is in no message and not in the server's state, differs between the clients, and is what they deploy."""
    method = PFedHNPC(tiny_network(), 3, hidden=8, depth=1)
    engine = tiny_engine(method, tmp_path)
    messages: list[Any] = []

    class Watched(PFedHNPC):
        def download(self, *args: Any) -> Theta:
            messages.append(super().download(*args))
            return messages[-1]

        def client_update(self, *args: Any) -> Any:
            state, up = super().client_update(*args)
            messages.append(up)
            return state, up

    watched = Watched(method.model, 3, hidden=8, depth=1)
    engine.method = watched
    server = play_rounds(watched, engine, 2)
    heads = {n for n, role in method.model.roles.items() if role is Role.HEAD}
    assert heads and len(messages) == 12
    for tree in (*messages, server):
        assert not any(head in name for head in heads for name in flatten(tree))
    kept = [engine.state(k).personal["head.weight"] for k in range(3)]
    assert not torch.equal(kept[0], kept[1])
    down = watched.download(server, one_round([0, 1, 2], [20] * 3), 1)
    assert torch.equal(engine.model_of(1, down)["head.weight"], kept[1])


def test_norm_layers_start_as_they_do_in_the_network() -> None:
    """Scales 1, shifts 0, up to what the head's random matrix adds: at most |z|_1 / sqrt(hidden) per element, here z = 0 by zeroed MLPs."""
    method = PFedHN(tiny_network(), 2, hidden=5)
    server = method.init_server(method.model.init(0))
    phi = {n: torch.zeros_like(t) if n.startswith("mlp") else t for n, t in server.phi.items()}
    theta = method.generate(phi, torch.tensor([0]), {})
    assert torch.equal(theta["norm1.weight"][0], torch.ones(16))
    assert torch.equal(theta["scale.bias"][0], torch.zeros(16))
    assert theta["conv.weight"].std() > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PFedHN(HyperModel(tiny_network(), Hypernet(4)), 3), "over HFN it has no meaning"),
        (lambda: PFedHNPC(HyperModel(tiny_network(), Hypernet(4)), 3), "over HFN it has no meaning"),
        (lambda: PFedHN(tiny_network(), 3, widths=[0.5]), "a padded network with normalisation layers is not the small network"),
        (lambda: small(widths=[0.3]), "method.widths: 0.3 of the 8 units of fc1.weight"),
        (lambda: small(widths=[1.5]), "method.widths = 1.5 is not valid"),
        (lambda: small(optimiser="sdg"), "method.optimiser = 'sdg' is not valid: must be sgd or adam."),
        (lambda: small(cohort="all"), "method.cohort = 'all'"),
        (lambda: small(embedding=0), "method.embedding = 0 is not valid: must be an integer >= 1 or null."),
        (lambda: small(lr=0.0), "method.lr = 0.0"),
        (lambda: small(momentum=1.0), "method.momentum = 1.0"),
        (lambda: small(weight_decay=-1.0), "method.weight_decay = -1.0"),
    ],
)
def test_mistakes_are_named(build: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert message in str(caught.value) and str(caught.value).endswith(".")
