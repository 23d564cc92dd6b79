"""One client's round on digits (or on MNIST and CIFAR-10 where they are at hand), recorded on the real engine, for the attacks' tests."""

import os
from typing import Any

import numpy as np
import pytest

from hyperfed.core import Method
from hyperfed.data import Dataset, load_dataset
from hyperfed.engine.optim import Optim
from hyperfed.engine.workspace import Local
from hyperfed.methods import METHODS
from hyperfed.privacy.dlg import Recovered
from hyperfed.privacy.lab import choose, shape_of
from hyperfed.privacy.metrics import psnr
from hyperfed.privacy.networks import hyper_lenet, lenet
from hyperfed.privacy.record import Recording, record

needs_data = pytest.mark.skipif("HYPERFED_DATA_ROOT" not in os.environ, reason="HYPERFED_DATA_ROOT is not set")


def dataset(name: str = "digits") -> Dataset:
    """The data set, from the folder that the environment names."""
    return load_dataset(name, os.environ.get("HYPERFED_DATA_ROOT"))


def method_of(kind: str, data: Dataset, start: str = "dlg", embedding: int = 64, **settings: Any) -> Method[Any, Any, Any, Any]:
    """A method by name over the plain LeNet, or HFN: "all", "stem"."""
    shape = shape_of(data)
    if kind in ("all", "stem"):
        return METHODS["fedavg"](hyper_lenet(shape, embedding, kind, start), 1)
    return METHODS[kind](lenet(shape, start), 1, **settings)


def played(
    kind: str,
    image: int = 0,
    name: str = "digits",
    start: str = "dlg",
    embedding: int = 64,
    steps: int = 1,
    count: int = 1,
    **settings: Any,
) -> Recording:
    """The round of a client with ``count`` of the figure's images from number ``image`` on."""
    data = dataset(name)
    method = method_of(kind, data, start, embedding, **settings)
    ids = choose(data, image + count)[image:]
    images, labels = np.stack([data.images[i] for i in ids]), np.asarray(data.labels)[ids]
    return record(method, images, labels, optim=Optim(), local=Local(batch_size=count, steps=steps), seed=7 + image)


def decibels(got: Recovered, of: Recording) -> float:
    """PSNR of the first image."""
    return 0.0 if got.images is None else psnr(got.images[0], of.images[0])
