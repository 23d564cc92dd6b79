"""The LeNet that gradient leakage is measured on, plain and over a hypernetwork, in float64.

Zhu, Liu, Han: Deep Leakage from Gradients, NeurIPS 2019, section 4: three 5x5 convolutions of 12 channels (stride 2, 2, 1) with sigmoids,
one linear layer, every tensor drawn from U(-0.5, 0.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from hyperfed.core import Params, UserError, invalid, unknown
from hyperfed.models import HyperModel, Hypernet, Network, Shape
from hyperfed.models.hyper import assemble
from hyperfed.models.network import tensors

WIDTH, KERNEL, STRIDES = 12, 5, (2, 2, 1)
LAYERS = len(STRIDES)
INITS = {
    "dlg": "U(-0.5, 0.5) everywhere, as in DLG; generated kernels have the same variance",
    "default": "U(+-1/sqrt(fan in)), as PyTorch starts; generated kernels have the same variance",
}
VARIANTS = {
    "all": "every convolution is generated; the first takes the slices of its image's channels",
    "stem": "the first convolution is private and never travels, as in the paper's residual network",
}


class LeNet(nn.Module):
    """[B, channels, size, size] -> [B, num_classes]; no pooling, no normalisation."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = (shape.channels, WIDTH, WIDTH, WIDTH)
        self.convs = nn.ModuleList(nn.Conv2d(widths[i], WIDTH, KERNEL, s, KERNEL // 2) for i, s in enumerate(STRIDES))
        self.fc = nn.Linear(WIDTH * ((shape.size + 3) // 4) ** 2, shape.num_classes)

    def layers(self) -> list[nn.Conv2d]:
        """The convolutions."""
        return list(self.convs)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, size, size] -> [B, num_classes]."""
        return self.fc(features(x, [c.weight for c in self.layers()], [c.bias for c in self.layers()]))


def features(x: Tensor, kernels: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """What the last layer reads: [B, channels, H, W] -> [B, F]."""
    for kernel, bias, stride in zip(kernels, biases, STRIDES, strict=True):
        x = torch.sigmoid(conv2d(x, kernel, bias, stride, KERNEL // 2))
    return x.flatten(1)


def stem_maps(x: Tensor, weights: Params) -> Tensor:
    """What the first convolution makes of images: [B, channels, H, W] -> [B, 12, H / 2, W / 2]."""
    return torch.sigmoid(conv2d(x, weights["convs.0.weight"], weights["convs.0.bias"], STRIDES[0], KERNEL // 2))


@dataclass(frozen=True)
class LeakyLeNet(Network):
    """The LeNet as a model."""

    shape: Shape = Shape(1, 28, 10)
    start: str = "dlg"

    def init(self, seed: int) -> Params:
        """Every tensor from U(-r, r): r = 0.5, or 1/sqrt(fan in)."""
        rng = torch.Generator().manual_seed(seed)
        out, fan_in = {}, 1
        for name, tensor in tensors(self.module()):
            fan_in = tensor[0].numel() if tensor.ndim > 1 else fan_in  # a bias follows its weight
            out[name] = torch.empty_like(tensor).uniform_(-reach(self.start, fan_in), reach(self.start, fan_in), generator=rng)
        return out


def reach(start: str, fan_in: int) -> float:
    """Half the width of the uniform distribution that tensors are drawn from."""
    return 0.5 if start == "dlg" else fan_in**-0.5


def lenet(shape: Shape, start: str = "dlg") -> LeakyLeNet:
    """The plain network for images of ``shape``."""
    if start not in INITS:
        raise unknown("init", start, INITS)
    return LeakyLeNet(lambda: LeNet(shape).double(), shape.num_classes, shape=shape, start=start)


class HyperLeNetModule(nn.Module):
    """h(v_j; phi) generates one 12x12 filter of 5x5 kernels for each convolution; names as in :class:`~hyperfed.models.HyperModule`."""

    def __init__(self, network: LeNet, embedding: int, first: int) -> None:
        super().__init__()
        self.net, self.first = network, first
        shapes = {"w_in": (WIDTH, embedding, embedding), "b_in": (WIDTH, embedding)}
        shapes |= {"w_out": (KERNEL, WIDTH * KERNEL, embedding), "b_out": (KERNEL, WIDTH * KERNEL)}
        self.hyper = nn.ParameterDict({n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()})
        self.embed = nn.ParameterDict({"v": torch.zeros(LAYERS - self.first, embedding, dtype=torch.float64)})
        for conv in self.generated():
            del conv.weight

    def generated(self) -> list[nn.Conv2d]:
        """The convolutions whose kernels are made."""
        return self.net.layers()[self.first :]

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, num_classes]."""
        made = filters({n: self.hyper[n] for n in self.hyper}, self.embed["v"])
        for conv, kernel in zip(self.generated(), made, strict=True):
            conv.weight = kernel[:, : conv.in_channels]
        return self.net(x)


def filters(phi: Params, v: Tensor) -> Tensor:
    """Embeddings [J, N_v] -> filters [J, out, in, f, f]: F_j^i = W_out (W_i v_j + B_i) + B_out, affine in v."""
    a = torch.einsum("ide,je->jid", phi["w_in"], v) + phi["b_in"]
    tiles = torch.einsum("xyd,jid->jixy", phi["w_out"], a) + phi["b_out"]
    return torch.stack([assemble(t[None], WIDTH, WIDTH) for t in tiles])


@dataclass(frozen=True)
class HyperLeNet(HyperModel):
    """The LeNet over HFN."""

    variant: str = "all"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise unknown("variant", self.variant, VARIANTS)

    @property
    def first(self) -> int:
        """The first convolution that is generated."""
        return 0 if self.variant == "all" else 1

    def module(self) -> nn.Module:
        """A fresh module."""
        network = self.network.module()
        assert isinstance(network, LeNet)
        return HyperLeNetModule(network, self.config.embedding, self.first)

    @torch.no_grad()
    def init(self, seed: int) -> Params:
        """v ~ N(0, 1); Gaussian phi whose kernels have the variance of the plain network's; the rest as in the plain network."""
        assert isinstance(self.network, LeakyLeNet)
        rng, n_v = torch.Generator().manual_seed(seed), self.config.embedding
        std = reach(self.network.start, WIDTH * KERNEL**2) / 3**0.5
        stds = {"hyper.w_in": n_v**-0.5, "hyper.b_in": 0.1, "hyper.w_out": std * n_v**-0.5, "hyper.b_out": 0.1 * std, "embed.v": 1.0}
        plain = self.network.init(seed)
        out = {}
        for name, tensor in tensors(self.module()):
            out[name] = torch.randn(tensor.shape, dtype=tensor.dtype, generator=rng) * stds[name] if name in stds else plain[name[4:]]
        return out


def hyper_lenet(shape: Shape, embedding: int = 64, variant: str = "all", start: str = "dlg") -> HyperLeNet:
    """The network over HFN. ``variant``: whether the first convolution is generated ("all") or private ("stem")."""
    if shape.channels > WIDTH:
        raise invalid("channels", shape.channels, f"at most {WIDTH}")
    return HyperLeNet(lenet(shape, start), Hypernet(embedding, WIDTH), variant)


def plain_lenet_of(model: object) -> LeakyLeNet:
    """The LeNet of a model of this file: what the structured attack is written for."""
    network = model.network if isinstance(model, HyperLeNet) else model
    if not isinstance(network, LeakyLeNet):
        raise UserError(f"attack 'structured' is written for the LeNet of DLG, plain or over HFN; this model is {type(model).__name__}.")
    return network
