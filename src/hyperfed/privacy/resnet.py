"""The paper's own network: what Inverting Gradients recovers from its messages, and how exactly phi's change shows the embeddings' hull."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hyperfed.core import Model, Params
from hyperfed.data import Dataset
from hyperfed.engine.optim import Optim
from hyperfed.engine.workspace import Local
from hyperfed.main import compose_checked, composed_dict
from hyperfed.methods import METHODS
from hyperfed.models import HyperModel, HyperModule, Hypernet, Network, Shape, build_model
from hyperfed.privacy.hull import embedding_hull
from hyperfed.privacy.lab import Case, Networks, Setting, choose, shape_of
from hyperfed.privacy.observer import threat
from hyperfed.privacy.record import record

ROUNDS = ((8, 1), (256, 1), (256, 4))
"""Images of the client, local epochs; batches of 128 or less."""


CASES = (
    Case("FedAvg", "fedavg", "plain", "inverting", "naive+labels"),
    Case("FedPer, head guessed", "fedper", "plain", "inverting", "naive+labels"),
    Case("HFN, rest guessed", "hfn", "body", "inverting", "naive+labels"),
    Case("HFN, rest searched along", "hfn", "body", "inverting", "adaptive+labels"),
    Case("HFN, oracle", "hfn", "body", "inverting", "oracle+labels"),
)
"""All by Inverting Gradients; labels are granted to everyone."""


@dataclass(frozen=True)
class ExactHyperModel(HyperModel):
    """HFN in float64."""

    def module(self) -> nn.Module:
        """A fresh module."""
        return super().module().double()


@dataclass(frozen=True)
class ExactNetwork(Network):
    """A plain network in float64."""

    def module(self) -> nn.Module:
        """A fresh module."""
        return super().module().double()


def settings_of(name: str) -> dict[str, int]:
    """What the configuration says of Table 1's network for a data set: ``width``, ``blocks``, and ``embedding``, the size of embeddings."""
    found = composed_dict(compose_checked([f"dataset={name}"]))["dataset"]
    return {**found["resnet"], "embedding": found["paper"]["embedding"]}


def hyper_resnet(shape: Shape, width: int, blocks: int, embedding: int) -> ExactHyperModel:
    """Table 1's network over HFN."""
    return ExactHyperModel(build_model("resnet", shape, width=width, blocks=blocks), Hypernet(embedding))


def resnets(name: str) -> Networks:
    """Table 1's network for the data set ``name``, plain or over HFN."""
    asked = settings_of(name)

    def make(case: Case, shape: Shape, setting: Setting) -> Model:
        model = hyper_resnet(shape, **asked)
        return model if case.variant == "body" else ExactNetwork(model.network.build, shape.num_classes)

    return make


def factors(model: HyperModel, gradient: Params) -> Params:
    """The gradient with respect to W and B themselves: they are stored divided by public gains."""
    module = model.module()
    assert isinstance(module, HyperModule)
    g = module.gains
    return {"hyper.w_in": gradient["hyper.w_in"] / (g.w_in * g.embed), "hyper.b_in": gradient["hyper.b_in"] / g.b_in}


def hull_of_a_round(dataset: Dataset, images: int, epochs: int, seed: int = 0, **changed: int) -> dict[str, Any]:
    """How far a client's true embeddings are from the hull that its upload shows, and how far random ones are, relative to their norm.

    ``changed``: width, blocks or embedding where they are not Table 1's.
    """
    asked = settings_of(dataset.name) | changed
    model = hyper_resnet(shape_of(dataset), **asked)
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
        "dimensions": asked["embedding"],
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
