"""The registry of networks. Each builder takes the data's channels, classes and image side, and its own settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature

from torch import nn

from hyperfed.core import UserError, at_least, unknown
from hyperfed.models.convnets import CNN, MLP, LeNet
from hyperfed.models.hyper import HyperModel, HyperModule, Hypernet
from hyperfed.models.network import Network
from hyperfed.models.resnet import ResNet, group_norm


@dataclass(frozen=True)
class Shape:
    """What a network must fit: images [channels, size, size] and the number of classes."""

    channels: int
    size: int
    num_classes: int


def resnet(shape: Shape, width: int = 16, blocks: int = 1) -> nn.Module:
    """The ResNet of HyperFedNet's Table 1 (width, blocks per group)."""
    return ResNet(shape.channels, shape.num_classes, width, blocks)


def resnet_gn(shape: Shape, width: int = 16, blocks: int = 1) -> nn.Module:
    """The same ResNet with group norm in place of batch norm: for privacy=dp_sgd."""
    return ResNet(shape.channels, shape.num_classes, width, blocks, group_norm)


def lenet(shape: Shape) -> nn.Module:
    """LeNet-5: 44,426 parameters on MNIST."""
    return LeNet(shape.channels, shape.num_classes, shape.size)


def cnn(shape: Shape) -> nn.Module:
    """pFedHN's target network: 121,182 parameters on CIFAR-10."""
    return CNN(shape.channels, shape.num_classes, shape.size)


def mlp(shape: Shape, width: int = 64) -> nn.Module:
    """Two hidden layers of ``width`` units."""
    return MLP(shape.channels, shape.num_classes, shape.size, width)


MODELS: dict[str, Callable[..., nn.Module]] = {"resnet": resnet, "resnet_gn": resnet_gn, "lenet": lenet, "cnn": cnn, "mlp": mlp}


def check_settings(name: str, settings: Mapping[str, object]) -> None:
    """Refuse a model that is not registered, settings its builder does not take, and sizes that are no integers >= 1."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    names = [parameter for parameter in signature(MODELS[name]).parameters if parameter != "shape"]
    for key, value in settings.items():
        if key not in names:
            raise unknown(f"model {name!r}: field", f"model.{key}", [f"model.{n}" for n in names])
        at_least(f"model.{key}", value, 1)


def build_model(name: str, shape: Shape, **settings: int) -> Network:
    """The plain network ``name`` for data of ``shape``."""
    check_settings(name, settings)
    if name in ("lenet", "cnn") and shape.size < LeNet.smallest:
        raise UserError(f"model {name!r} needs images of at least {LeNet.smallest}x{LeNet.smallest}; these have {shape.size}x{shape.size}.")
    return Network(lambda: MODELS[name](shape, **settings), shape.num_classes)


__all__ = ["MODELS", "HyperModel", "HyperModule", "Hypernet", "Network", "Shape", "build_model", "check_settings"]
