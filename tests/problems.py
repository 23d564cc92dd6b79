"""Problems whose answers are known: a quadratic on the real engine, and a three-layer net on 8x8 images."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperfed.core import Method, Role, Round, count
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.optim import Optim
from hyperfed.engine.round import play
from hyperfed.engine.store import Store
from hyperfed.engine.workspace import DeviceClient, Images, Local, Workspace
from hyperfed.models import Network
from hyperfed.run.build import client_type


class Point(nn.Module):
    """w, and nothing else: the 'image' is one number x, the output w - x."""

    def __init__(self, parts: Sequence[str]) -> None:
        super().__init__()
        for part in parts:
            self.register_parameter(part, nn.Parameter(torch.zeros(())))

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.parameters()) - x.flatten()


class Quadratic(Network):
    """f_k(w) = mean_i 1/2 (w - x_i)^2, w the sum of its scalars; gradient w - mean(x), argmin mean(x).

    ``parts`` gives each scalar its role, e.g. {"body": BODY, "head": HEAD}.
    """

    def __init__(self, parts: Mapping[str, Role] | None = None) -> None:
        self.__dict__["parts"] = dict(parts or {"w": Role.BODY})
        super().__init__(lambda: Point(list(self.parts)), 1)

    @property
    def roles(self) -> dict[str, Role]:  # type: ignore[override]
        return self.parts

    def init(self, seed: int) -> dict[str, Tensor]:
        return {name: torch.zeros(()) for name in self.parts}

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return 0.5 * output.square().mean()


def points(values: Sequence[float]) -> Images:
    """A data set of 1x1 grey images whose normalised pixels are ``values`` (multiples of 1/255)."""
    raw = np.round(np.array(values) * 255).astype(np.uint8).reshape(-1, 1, 1, 1)
    return Images(raw, np.zeros(len(values), np.int64), (0.0,), (1.0,), torch.device("cpu"))


def quadratic_client(values: Sequence[float], model: Quadratic, *, lr: float = 0.1, epochs: int = 1, **optim: Any) -> DeviceClient:
    """A real client of the in-process engine whose loss is the quadratic around ``values``; plain gradient descent by default."""
    settings = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **optim}
    index = torch.arange(len(values))
    space = Workspace(model, points(values))
    return DeviceClient(space, 0, index, index[:0], 1, 1, lr, Optim(lr=lr, **settings), Local(epochs, 10_000))


def one_round(ids: Sequence[int], examples: Sequence[int], number: int = 1) -> Round:
    """A round by hand."""
    return Round(number, torch.tensor(ids), torch.tensor(examples))


class TinyNet(nn.Module):
    """Conv (stem), conv 16 -> 16 that a tile divides, linear head, batch norm after each convolution: 8x8 grey, 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, 2, 1, bias=False)
        self.scale = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        x = torch.relu(self.scale(self.conv(x)))
        return self.head(x.mean((2, 3)))


def tiny_network() -> Network:
    """The three-layer net of the contract table."""
    return Network(TinyNet, 3)


def tiny_images(n: int = 60, seed: int = 0) -> Images:
    """Three classes of 8x8 images that a small net can tell apart: a bright row whose place is the class, plus noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.integers(0, 80, (n, 8, 8, 1))
    for i, c in enumerate(y):
        x[i, 2 * c + 1] += 150
    return Images(x.astype(np.uint8), y, (0.3,), (0.2,), torch.device("cpu"))


def tiny_engine(method: Method[Any, Any, Any, Any], folder: Path, sizes: Sequence[int] = (20, 20, 20), **settings: Any) -> LocalEngine:
    """A real in-process engine on :func:`tiny_images`, one client per size."""
    bounds = np.cumsum([0, *sizes])
    order = torch.randperm(int(bounds[-1]), generator=torch.Generator().manual_seed(5))
    index = [order[a:b] for a, b in pairwise(bounds)]
    space = Workspace(method.model, tiny_images(int(bounds[-1])))
    local = settings.pop("local", Local(epochs=1, batch_size=10))
    store = Store(folder, client_type(method))
    return LocalEngine(method, space, index, index, store, settings.pop("optim", Optim(lr=0.05)), local, 7, 10, **settings)


def play_rounds(method: Method[Any, Any, Any, Any], engine: LocalEngine, rounds: int, record: Any = lambda *a: None) -> Any:
    """Play rounds with every client; ``record`` hears the weight of every message. Returns the server state."""
    server = method.init_server(engine.initial())
    ids = torch.arange(len(engine.train_index))
    examples = torch.tensor([len(i) for i in engine.train_index])

    def weigh(number: int, k: int, way: str, message: Any) -> None:
        record(number, k, way, count(message, method.model.roles))

    for number in range(1, rounds + 1):
        server, _ = play(method, server, Round(number, ids, examples), engine, weigh)
    return server
