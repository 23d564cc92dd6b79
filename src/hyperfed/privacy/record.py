"""A client's round on the real engine, in float64, with both messages kept."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperfed.core import ALL, Method, Params, Round, Scope
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.optim import Optim
from hyperfed.engine.store import Store
from hyperfed.engine.workspace import Images, Local, Workspace
from hyperfed.privacy.observer import Observation, Threat, Training, observe
from hyperfed.run.build import client_type


class UnitImages(Images):
    """Images in [0, 1], as in the attacks' papers, in float64."""

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W], labels [B]."""
        return self.x[index].permute(0, 3, 1, 2).to(torch.float64) / 255, self.y[index]


class ExactWorkspace(Workspace):
    """The engine's workspace without its float32 output."""

    def forward(self, x: Tensor) -> Tensor:
        """The live model's output, [B, C]."""
        return self.module(x)


@dataclass(frozen=True)
class Recording:
    """One client's round: its messages, and what only the client knows (its model, images [n, C, H, W] in [0, 1], labels)."""

    method: Method[Any, Any, Any, Any]
    download: Any
    upload: Any
    private: Params
    images: Tensor
    labels: Tensor
    training: Training

    def seen_by(self, threat: Threat) -> Observation:
        """What an attacker under this threat model holds."""
        shape, labels = tuple(self.images.shape), self.labels
        return observe(self.method, self.download, self.upload, threat, shape, self.private, labels, self.training)


def record(
    method: Method[Any, Any, Any, Any],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    optim: Optim,
    local: Local,
    seed: int,
    private_init: Scope | None = None,
) -> Recording:
    """One round of client 0, who holds ``images`` uint8 [n, H, W, C]. What does not travel starts from the client's own seed by default."""
    data = UnitImages(images, labels, (0.0,) * images.shape[3], (1.0,) * images.shape[3], torch.device("cpu"))
    own = ALL - method.shared_scope if private_init is None else private_init
    everyone = torch.arange(len(images))
    with TemporaryDirectory() as folder:
        store: Store[Any] = Store(Path(folder), client_type(method))
        space = ExactWorkspace(method.model, data)
        engine = LocalEngine(method, space, [everyone], [everyone], store, optim, local, seed, 1, own)
        rnd = Round(1, torch.tensor([0]), torch.tensor([len(images)]))
        down = method.download(method.init_server(engine.initial()), rnd, 0)
        private = {n: t.double() for n, t in engine.model_of(0, down).items()}
        _, reply = engine.turn(0, 1, down)
    epochs = getattr(method, "body_epochs", None)  # of FedRep's training only the body's shows in the message
    steps = local.steps if local.steps is not None and epochs is None else (epochs or local.epochs) * -(-len(images) // local.batch_size)
    training = Training(optim.lr, optim.momentum, optim.nesterov, optim.weight_decay, steps)
    x, y = data.batch(everyone)
    return Recording(method, down, reply.upload, private, x, y, training)
