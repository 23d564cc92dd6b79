"""The data sets: small copies in the real file formats, and one sentence for everything that can be wrong with a file."""

import gzip
import json
import os
import re
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyperfed.core.errors import UserError
from hyperfed.data import DATASETS, load_dataset, verify_cache
from small_sets import LABELS, TEST, TRAIN, pixels, refuses, write_idx, write_parquet


def test_digits_need_no_files(tmp_path):
    digits = load_dataset("digits", cache=tmp_path)
    assert digits.images.shape == (1797, 8, 8, 1) and digits.images.dtype == np.uint8
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.labels.dtype == np.int64 and np.bincount(digits.labels).sum() == 1797
    assert digits.mean == pytest.approx([digits.images.mean() / 255], abs=1e-12)
    assert digits.std == pytest.approx([digits.images.std() / 255], abs=1e-12)
    assert digits.num_classes == len(digits.class_names) == 10
    assert load_dataset("digits", tmp_path / "nowhere", tmp_path).images.filename == digits.images.filename


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_files_are_decoded_train_first(name, root, tmp_path):
    dataset, expected = load_dataset(name, root, tmp_path / "cache"), pixels(name)
    assert np.array_equal(dataset.images, expected) and np.array_equal(dataset.labels, LABELS)
    assert dataset.labels.dtype == np.int64 and dataset.class_names == DATASETS[name].class_names
    train = expected[:TRAIN].reshape(-1, expected.shape[-1]) / 255
    assert dataset.mean == pytest.approx(train.mean(axis=0)) and dataset.std == pytest.approx(train.std(axis=0))


def test_jpeg_is_decoded_too(root, tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (TEST, 32, 32, 3))
    write_parquet(root / "cifar10" / "test-00000-of-00001.parquet", smooth, LABELS[TRAIN:], ("img", "label"), "JPEG")
    found = load_dataset("cifar10", root, tmp_path / "cache").images[TRAIN:].astype(int)
    assert np.abs(found - smooth).max() < 12


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_dataset("cifar_10")


@pytest.mark.parametrize(("name", "file"), [("mnist", "t10k-labels-idx1-ubyte.gz"), ("cifar10", "test-00000-of-00001.parquet")])
def test_a_missing_file(name, file, root, tmp_path):
    (root / name / file).unlink()
    pattern = file if name == "mnist" else "test-*.parquet"
    refuses("data.root", root / name / pattern, "does not exist", root=root, cache=tmp_path / "cache", name=name)
    refuses("does not exist", "data.root must be the folder that holds mnist/", root=tmp_path / "no", cache=tmp_path / "cache")


def idx_damages() -> dict[str, tuple]:
    images, labels = np.zeros((TRAIN, 28, 28)), LABELS[:TRAIN]
    return {
        "truncated": ("images-idx3", lambda path: os.truncate(path, path.stat().st_size // 2), "gzip data that break off after"),
        "no gzip": ("images-idx3", lambda path: path.write_bytes(b"<html>not found</html>"), "expected a gzip file"),
        "bad block": ("images-idx3", lambda path: path.write_bytes(path.read_bytes()[:10] + b"\xff" * 40), "expected a gzip file"),
        "checksum": ("images-idx3", lambda path: path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8), "CRC check failed"),
        "empty": ("labels-idx1", lambda path: path.write_bytes(gzip.compress(b"")), "IDX magic number 0, expected 2049 (labels)"),
        "magic": ("images-idx3", lambda path: write_idx(path, images, 2049), "IDX magic number 2049, expected 2051 (images)"),
        "header only": ("images-idx3", lambda path: path.write_bytes(gzip.compress(struct.pack(">2I", 2051, 30))), "(30, 0, 0)"),
        "count": ("images-idx3", lambda path: write_idx(path, images[1:]), "(29, 28, 28), expected (30, 28, 28)"),
        "size": ("images-idx3", lambda path: write_idx(path, images[:, 1:]), "(30, 27, 28), expected (30, 28, 28)"),
        "too short": (
            "labels-idx1",
            lambda path: path.write_bytes(gzip.compress(struct.pack(">2I", 2049, TRAIN) + b"123")),
            "found 3 bytes",
        ),
        "label": ("labels-idx1", lambda path: write_idx(path, np.where(labels == 7, 10, labels)), "label 10 in row 7"),
    }


@pytest.mark.parametrize("damage", idx_damages())
def test_a_damaged_idx_file_is_named(damage, root, tmp_path):
    kind, spoil, message = idx_damages()[damage]
    path = root / "mnist" / f"train-{kind}-ubyte.gz"
    spoil(path)
    refuses("data.root", path, message, root=root, cache=tmp_path / "cache")


def parquet_damages() -> dict[str, tuple]:
    images, labels = pixels("cifar10")[TRAIN:], LABELS[TRAIN:]

    def table(images=images, labels=labels, columns=("img", "label")):
        return lambda path: write_parquet(path, images, labels, columns, "PNG")

    def cells(*values):
        return lambda path: pq.write_table(pa.table({"img": [*values] * TEST, "label": labels}), path)

    return {
        "truncated": (lambda path: os.truncate(path, 3000), "expected a parquet file"),
        "pages": (
            lambda path: path.write_bytes(path.read_bytes()[:4] + b"\x00" * 2000 + path.read_bytes()[2004:]),
            "complete parquet file",
        ),
        "count": (table(images[1:], labels[1:]), "found 9 images in test-00000-of-00001.parquet, expected 10"),
        "columns": (table(columns=("image", "label")), "found columns image, label, expected a column 'img'"),
        "size": (table(images[:, :28]), "an image of 32x28 pixels in row 0, expected 32x32"),
        "label": (table(labels=np.where(labels == 3, 10, labels)), "label 10 in row 3, expected labels from 0 to 9"),
        "no label": (table(labels=[None] * TEST), "label None in row 0"),
        "no image": (cells({"bytes": b"nothing", "path": None}), "an image that cannot be decoded in row 0"),
        "empty cell": (cells(None), "an image that cannot be decoded in row 0"),
    }


@pytest.mark.parametrize("damage", parquet_damages())
def test_a_damaged_parquet_file_is_named(damage, root, tmp_path):
    spoil, message = parquet_damages()[damage]
    path = root / "cifar10" / "test-00000-of-00001.parquet"
    spoil(path)
    refuses("data.root", root / "cifar10", message, root=root, cache=tmp_path / "cache", name="cifar10")


def test_without_root_and_without_the_hub_library(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=re.escape("set data.root to a folder that holds the files, or install hyperfed[hub].")):
        load_dataset("cifar10", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


class Offline:
    """Stands in for the library where there is no network."""

    @staticmethod
    def load_dataset(name: str) -> None:
        raise ConnectionError(f"Couldn't reach {name!r} on the hub.\nTry again.")


def test_without_root_and_without_a_network(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", Offline)
    with pytest.raises(UserError) as caught:
        load_dataset("cifar10", cache=tmp_path)
    assert "uoft-cs/cifar10 cannot be loaded from the hub (ConnectionError: Couldn't reach" in str(caught.value)
    assert "set data.root" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "form"), [("mnist", "PNG"), ("cifar100", "PNG")])
def test_what_the_hub_library_returns_is_decoded(name, form, small, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    source, expected = DATASETS[name], pixels(name)
    for split, rows in source.splits.items():
        columns = (source.image_column, source.label_column)
        write_parquet(tmp_path / f"{split}.parquet", expected[rows], LABELS[rows], columns, form)
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(names=list(source.class_names))})
    files = {split: str(tmp_path / f"{split}.parquet") for split in source.splits}
    local = datasets.load_dataset("parquet", data_files=files, features=features, cache_dir=str(tmp_path / "hub"))
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id: local if hub_id == source.hub_id else None)
    found = load_dataset(name, cache=tmp_path / "cache")
    assert np.array_equal(found.images, expected) and np.array_equal(found.labels, LABELS)
    monkeypatch.setattr(datasets, "load_dataset", Offline.load_dataset)
    assert np.array_equal(load_dataset(name, cache=tmp_path / "cache").images, expected), "the second start needs no network"


@pytest.mark.skipif("HYPERFED_DATA_ROOT" not in os.environ, reason="HYPERFED_DATA_ROOT is not set")
def test_the_real_mnist(tmp_path):
    mnist = load_dataset("mnist", os.environ["HYPERFED_DATA_ROOT"], tmp_path)
    assert np.bincount(mnist.labels[:60_000]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.labels[60_000:]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (round(mnist.mean[0], 5), round(mnist.std[0], 5)) == (0.13066, 0.30811)
    assert json.loads((verify_cache("mnist", os.environ["HYPERFED_DATA_ROOT"], tmp_path) / "meta.json").read_text())["origin"]["files"]
