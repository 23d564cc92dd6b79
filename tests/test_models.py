"""Networks to the parameter, roles, HFN's tiles and start."""

from pathlib import Path

import pytest
import torch

from costs import cost, paper_network
from hyperfed.core import Role, UserError
from hyperfed.methods import METHODS
from hyperfed.models import MODELS, HyperModel, HyperModule, Hypernet, Shape, build_model
from hyperfed.models.hyper import assemble
from hyperfed.models.network import Network, kaiming_std
from hyperfed.models.start import Pace

DATASETS = ("mnist", "fmnist", "cifar10", "cifar100")


def trained(network: Network) -> int:
    return sum(t.numel() for n, t in network.init(0).items() if network.roles[n] is not Role.STATS)


def live(model: HyperModel, seed: int = 1) -> HyperModule:
    module = model.module()
    assert isinstance(module, HyperModule)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, tensor in model.init(seed).items():
            own[name].copy_(tensor)
    return module


@pytest.mark.parametrize(("dataset", "parameters"), list(zip(DATASETS, (77_562, 563_642, 563_930, 2_259_716), strict=True)))
def test_resnet_has_the_papers_parameters(dataset: str, parameters: int) -> None:
    assert trained(paper_network(dataset)) == parameters


@pytest.mark.parametrize(("name", "shape", "parameters"), [("cnn", Shape(3, 32, 10), 121_182), ("lenet", Shape(1, 28, 10), 44_426)])
def test_small_networks_have_their_parameters(name: str, shape: Shape, parameters: int) -> None:
    assert trained(build_model(name, shape)) == parameters


@pytest.mark.parametrize(("dataset", "tiles"), list(zip(DATASETS, (32, 242, 242, 968), strict=True)))
def test_one_embedding_per_tile(dataset: str, tiles: int) -> None:
    assert HyperModel(paper_network(dataset)).init(0)["embed.v"].shape == (tiles, 64)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize(("embedding", "elements"), [(1, 640), (64, 151_840), (128, 565_536)])
def test_hfn_costs_what_the_paper_says_on_every_data_set(dataset: str, embedding: int, elements: int, tmp_path: Path) -> None:
    method = METHODS["fedavg"](HyperModel(paper_network(dataset), Hypernet(embedding=embedding)), 1)
    assert cost(method, dataset, tmp_path)[:3] == (elements, 0, 0)


@pytest.mark.parametrize("dataset", DATASETS)
def test_fedavg_and_fedper_cost_what_the_paper_says(dataset: str, tmp_path: Path) -> None:
    fedavg = {"mnist": 155_124, "fmnist": 1_127_284, "cifar10": 1_127_860, "cifar100": 4_519_432}[dataset]
    fedper = {"mnist": 153_824, "fmnist": 1_125_984, "cifar10": 1_126_560, "cifar100": 4_493_632}[dataset]
    network = paper_network(dataset)
    assert cost(METHODS["fedavg"](network, 1), dataset, tmp_path / "a").trainable == fedavg
    assert cost(METHODS["fedper"](network, 1), dataset, tmp_path / "b").trainable == fedper


def test_tiles_are_put_together_as_in_the_papers_f_32x64() -> None:
    """F_{32x64} = (F_1 F_2 F_3 F_4; F_5 F_6 F_7 F_8): rows are input channels, columns output channels."""
    tiles = torch.arange(1.0, 9.0).view(8, 1, 1, 1).expand(8, 16, 3, 48)
    kernel = assemble(tiles, 32, 64)
    assert kernel.shape == (64, 32, 3, 3)
    for j in range(8):
        row, column = divmod(j, 4)
        block = kernel[16 * column : 16 * column + 16, 16 * row : 16 * row + 16]
        assert (block == j + 1).all()


def test_inside_a_tile_rows_are_input_slices_and_columns_output_times_kernel_width() -> None:
    """F_j is [N_in f, N_out f]: entry (i f + y, o f + x) is the weight from input i to output o at (y, x)."""
    tile = torch.arange(2 * 3 * 2 * 3.0).view(1, 2, 3, 6)
    kernel = assemble(tile, 2, 2)
    flat = tile[0].reshape(6, 6)
    for i in range(2):
        for o in range(2):
            for y in range(3):
                for x in range(3):
                    assert kernel[o, i, y, x] == flat[3 * i + y, 3 * o + x]


def test_kernels_follow_the_papers_formula() -> None:
    """F_j^i = W_out (W_i v_j + B_i) + B_out, with every stored tensor times its gain, against a plain double loop."""
    model = HyperModel(paper_network("mnist"), Hypernet(embedding=5, init="normal"))
    module = live(model)
    w_in, b_in, w_out, b_out = (module.hyper[n] for n in ("w_in", "b_in", "w_out", "b_out"))
    tiles = []
    for v in module.embed["v"]:
        slices = [torch.einsum("xyd,d->xy", w_out, w_in[i] @ v + b_in[i]) + b_out for i in range(16)]
        tiles.append(torch.stack(slices))
    start = 0
    for conv, kernel, n in zip(module.convs, module.kernels(), module.counts, strict=True):
        expected = assemble(torch.stack(tiles[start : start + n]), conv.in_channels, conv.out_channels)
        torch.testing.assert_close(kernel, expected, rtol=1e-4, atol=1e-4)
        start += n


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
@pytest.mark.parametrize("embedding", [8, 64, 128, 160])
def test_every_layer_starts_at_its_kaiming_variance(dataset: str, embedding: int) -> None:
    module = live(HyperModel(paper_network(dataset), Hypernet(embedding=embedding)))
    for conv, kernel in zip(module.convs, module.kernels(), strict=True):
        assert float(kernel.detach().std()) == pytest.approx(kaiming_std(conv), rel=0.15)


@pytest.mark.parametrize(("tile", "embedding"), [(1, 8), (1, 64), (4, 128), (16, 512)])
def test_the_start_is_kaimings_however_many_dimensions_there_are(tile: int, embedding: int) -> None:
    """More than nine times the tile: W_out's columns cannot be orthogonal."""
    module = live(HyperModel(paper_network("mnist"), Hypernet(embedding=embedding, tile=tile)))
    ratios = [float(kernel.detach().std()) / kaiming_std(conv) for conv, kernel in zip(module.convs, module.kernels(), strict=True)]
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, rel=0.1)


def test_a_step_on_each_tensor_moves_the_kernels_at_its_pace() -> None:
    """With one tensor free and G the kernels' gradient, the kernels move by pace x what plain kernels would, on average over random G.

    E|dK|^2 is not the measure (few directions move a lot); <dK, -G> / |G|^2, the descent per unit step, is: the mean eigenvalue of the
    step's map, which for W (orthonormal W_out, unit v, d of 9 N_out directions) is d / (9 N_out) x pace.
    """
    config = Hypernet(embedding=64)
    module = live(HyperModel(paper_network("mnist"), config))
    rng = torch.Generator().manual_seed(0)
    kernels = module.kernels()
    gradient = [torch.randn(k.shape, generator=rng) for k in kernels]
    norm2 = sum(g.square().sum() for g in gradient)
    tensors = {"w_in": module.hyper["w_in"], "w_out": module.hyper["w_out"], "embed": module.embed["v"]}
    descent = torch.autograd.grad(kernels, list(tensors.values()), gradient)
    measured = {name: float(g.square().sum() / norm2) for name, g in zip(tensors, descent, strict=True)}
    assert measured["w_in"] == pytest.approx(config.pace.w_in * 64 / 144 * 0.9, rel=0.25)
    for name in ("w_out", "embed"):
        assert measured[name] < 0.5 * measured["w_in"]


def test_same_seed_same_bits_and_the_plain_part_is_the_plain_networks() -> None:
    network = paper_network("mnist")
    a, b = (HyperModel(network).init(3) for _ in range(2))
    plain = network.init(3)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert all(torch.equal(t, plain[n[4:]]) for n, t in a.items() if n.startswith("net."))
    assert not torch.equal(a["embed.v"], HyperModel(network).init(4)["embed.v"])


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_has_a_role_the_head_is_the_last_linear_and_stats_are_the_buffers(name: str) -> None:
    network = build_model(name, Shape(3, 32, 7))
    module = network.module()
    params = network.init(0)
    assert list(params) == list(network.roles)
    assert {n for n, r in network.roles.items() if r is Role.STATS} == {n for n, _ in module.named_buffers()}
    heads = [params[n].shape[0] for n, r in network.roles.items() if r is Role.HEAD]
    assert heads == [7, 7]
    hyper = HyperModel(network).roles if name == "resnet" else {}
    assert {r for n, r in hyper.items() if n.startswith("hyper.")} <= {Role.HYPER}


def test_apply_leaves_its_input_alone_and_returns_new_statistics() -> None:
    network = paper_network("mnist")
    params = network.init(0)
    before = {n: t.clone() for n, t in params.items()}
    _, stats = network.apply(params, torch.randn(4, 1, 8, 8), train=True)
    assert all(torch.equal(params[n], before[n]) for n in params)
    assert not torch.equal(stats["bn1.running_mean"], params["bn1.running_mean"])


def test_widening_share_widens_what_may_travel() -> None:
    model = HyperModel(paper_network("mnist"), Hypernet(share=("norm", "head")))
    assert model.communicable == {Role.HYPER, Role.NORM, Role.STATS, Role.HEAD}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HyperModel(build_model("lenet", Shape(1, 28, 10))), "tile"),
        (lambda: HyperModel(paper_network("mnist"), Hypernet(tile=48)), "hypernet.tile = 48"),
        (lambda: Hypernet(embedding=0), "hypernet.embedding = 0"),
        (lambda: Hypernet(share=("nrom",)), "hypernet.share = 'nrom'"),
        (lambda: Hypernet(init="kaimng"), "did you mean 'kaiming'"),
        (lambda: Hypernet(init="kaiming", pace=Pace(bias=1.0)), "hypernet.pace.bias = 1.0 is not valid: must be left out"),
        (lambda: build_model("resnte", Shape(1, 28, 10)), "did you mean 'resnet'"),
        (lambda: build_model("lenet", Shape(1, 8, 10)), "model 'lenet'"),
    ],
)
def test_mistakes_are_one_sentence(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("[", r"\[")) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
