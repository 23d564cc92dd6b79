"""The data sets: small copies in the real file formats, and one sentence for everything that can be wrong with a file."""

import gzip
import io
import json
import os
import re
import struct
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyperfed.core.errors import UserError
from hyperfed.data import DATASETS, load_dataset, load_folder, verify_cache
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


def written(save, array):
    buffer = io.BytesIO()
    save(buffer, array)
    return buffer.getvalue()


def png_of_16_bits(colour, value):
    """8x8 pixels of ``value`` in every channel; ``colour`` 0 is grey, 2 is RGB."""
    row = b"\0" + struct.pack(">H", value) * (8 * (3 if colour == 2 else 1))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0)), (b"IDAT", zlib.compress(8 * row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)


@pytest.mark.parametrize("content", [b"", b"hello", png_of_16_bits(2, 300)[:50], png_of_16_bits(2, 300)[:30]], ids=range(4))
def test_an_own_image_that_is_broken_is_named(content, tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"image '.*a\.png' cannot be read: it is broken or no image\."):
        load_folder(tmp_path, load_dataset("digits"))


def test_grey_images_of_16_bits_are_refused_and_colours_keep_their_upper_8(tmp_path):
    """Clipped at 255, all but the darkest grey was white. Of a colour 0x2a3b the upper byte is left."""
    (tmp_path / "3").mkdir()
    image = tmp_path / "3" / "a.png"
    image.write_bytes(png_of_16_bits(2, 0x2A3B))
    assert (load_folder(tmp_path, load_dataset("digits")).images == 0x2A).all()
    image.write_bytes(png_of_16_bits(0, 300))
    with pytest.raises(UserError, match=r"image '.*a\.png' has grey values of more than 8 bits"):
        load_folder(tmp_path, load_dataset("digits"))


@pytest.mark.parametrize("broken", ["images.npy", "labels.npy"])
@pytest.mark.parametrize(
    "content",
    [None, b"", b"hello", b"PK\3\4hello", written(np.savez, np.arange(2)), written(np.save, np.arange(2))[:-3]],
    ids=["missing", "empty", "text", "zip", "archive", "cut off"],
)
def test_own_arrays_that_are_broken_are_named(broken, content, tmp_path):
    digits = load_dataset("digits")
    np.save(tmp_path / "images.npy", digits.images[:2])
    np.save(tmp_path / "labels.npy", digits.labels[:2])
    (tmp_path / broken).unlink()
    if content is not None:
        (tmp_path / broken).write_bytes(content)
    words = f"{broken} is missing, broken or not one array" if content is not None or broken == "labels.npy" else "holds neither"
    with pytest.raises(UserError, match=f"data '.*'.*{words}"):
        load_folder(tmp_path, digits)


@pytest.mark.skipif("HYPERFED_DATA_ROOT" not in os.environ, reason="HYPERFED_DATA_ROOT is not set")
def test_the_real_mnist(tmp_path):
    mnist = load_dataset("mnist", os.environ["HYPERFED_DATA_ROOT"], tmp_path)
    assert np.bincount(mnist.labels[:60_000]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.labels[60_000:]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (round(mnist.mean[0], 5), round(mnist.std[0], 5)) == (0.13066, 0.30811)
    assert json.loads((verify_cache("mnist", os.environ["HYPERFED_DATA_ROOT"], tmp_path) / "meta.json").read_text())["origin"]["files"]
