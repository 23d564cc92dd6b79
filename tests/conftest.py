"""What tests share: one thread, and small copies of the data sets."""

import os
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from hyperfed.data import DATASETS
from small_sets import LABELS, TEST, TRAIN, pixels, write_idx, write_parquet

torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch):
    """The registered sources, with the number of images of the small copies."""
    for name, source in list(DATASETS.items()):
        if name != "digits":
            monkeypatch.setitem(DATASETS, name, replace(source, num_train=TRAIN, num_test=TEST))


@pytest.fixture
def root(tmp_path, small):
    """A folder in the documented layout: mnist as IDX, cifar10 as WebP and PNG in three shards, cifar100 with its fine labels."""
    root, mnist, cifar = tmp_path / "root", pixels("mnist"), pixels("cifar10")
    for prefix, rows in (("train", slice(0, TRAIN)), ("t10k", slice(TRAIN, None))):
        write_idx(root / "mnist" / f"{prefix}-images-idx3-ubyte.gz", mnist[rows].squeeze(-1))
        write_idx(root / "mnist" / f"{prefix}-labels-idx1-ubyte.gz", LABELS[rows])
    for name, columns in (("cifar10", ("img", "label")), ("cifar100", ("img", "fine_label"))):
        write_parquet(root / name / "train-00000-of-00002.parquet", cifar[:13], LABELS[:13], columns, "WEBP")
        write_parquet(root / name / "train-00001-of-00002.parquet", cifar[13:TRAIN], LABELS[13:TRAIN], columns, "PNG")
        write_parquet(root / name / "test-00000-of-00001.parquet", cifar[TRAIN:], LABELS[TRAIN:], columns, "WEBP")
    return root
