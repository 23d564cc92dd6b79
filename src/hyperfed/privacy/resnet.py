"""The embeddings' hull in the paper's own network and a whole round of local training: how exactly phi's change shows it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hyperfed.core import Params
from hyperfed.data import Dataset
from hyperfed.engine.optim import Optim
from hyperfed.engine.workspace import Local
from hyperfed.methods import METHODS
from hyperfed.models import HyperModel, HyperModule, Hypernet, build_model
from hyperfed.privacy.hull import embedding_hull
from hyperfed.privacy.lab import choose, shape_of
from hyperfed.privacy.observer import threat
from hyperfed.privacy.record import record

ROUNDS = ((8, 1), (256, 1), (256, 4))
"""Images of the client, local epochs; batches of 128 or less."""


@dataclass(frozen=True)
class ExactHyperModel(HyperModel):
    """HFN in float64."""

    def module(self) -> nn.Module:
        """A fresh module."""
        return super().module().double()


def factors(model: HyperModel, gradient: Params) -> Params:
    """The gradient with respect to W and B themselves: they are stored divided by public gains."""
    module = model.module()
    assert isinstance(module, HyperModule)
    g = module.gains
    return {"hyper.w_in": gradient["hyper.w_in"] / (g.w_in * g.embed), "hyper.b_in": gradient["hyper.b_in"] / g.b_in}


def hull_of_a_round(dataset: Dataset, embedding: int, blocks: int, images: int, epochs: int, seed: int = 0) -> dict[str, Any]:
    """How far a client's true embeddings are from the hull that its upload shows, and how far random ones are, relative to their norm."""
    model = ExactHyperModel(build_model("resnet", shape_of(dataset), blocks=blocks), Hypernet(embedding))
    ids = choose(dataset, images)
    pixels, labels = np.stack([dataset.images[i] for i in ids]), np.asarray(dataset.labels)[ids]
    local = Local(epochs=epochs, batch_size=min(128, images))
    played = record(METHODS["fedavg"](model, 1), pixels, labels, optim=Optim(), local=local, seed=seed)
    v = played.private["embed.v"]
    hull = embedding_hull(factors(model, played.seen_by(threat("adaptive")).gradient()), len(v))
    random = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(seed))
    return {
        "dataset": dataset.name,
        "embeddings": len(v),
        "dimensions": embedding,
        "images": images,
        "steps": played.training.steps,
        "distance_max": float(hull.distance(v).max()),
        "distance_random": float(hull.distance(random).min()),
    }


def hull_table(rows: list[dict[str, Any]]) -> str:
    """One line for each round."""
    head = "| data | J | N_v | images | steps | true embeddings, farthest | random ones, nearest |\n|---|---:|---:|---:|---:|---:|---:|\n"
    return head + "".join(
        f"| {r['dataset']} | {r['embeddings']} | {r['dimensions']} | {r['images']} | {r['steps']} "
        f"| {r['distance_max']:.0e} | {r['distance_random']:.2f} |\n"
        for r in rows
    )
