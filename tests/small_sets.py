"""Small copies of the data sets in their real file formats."""

import gzip
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hyperfed.core.errors import UserError
from hyperfed.data import DATASETS, load_dataset

TRAIN, TEST = 30, 10
LABELS = np.arange(TRAIN + TEST) % 10


def pixels(name: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (TRAIN + TEST, *DATASETS[name].shape), dtype=np.uint8)


def write_idx(path: Path, array: np.ndarray, magic: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim if magic is None else magic, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def encode(image: np.ndarray, form: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, form, lossless=True)
    return buffer.getvalue()


def write_parquet(path: Path, images: np.ndarray, labels: np.ndarray, columns: tuple[str, str], form: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": encode(image, form), "path": None} for image in images]
    pq.write_table(pa.table({columns[0]: cells, columns[1]: labels}), path)


def refuses(*parts: object, root: Path, cache: Path, name: str = "mnist") -> None:
    """The data set is refused in one sentence with these parts in it, and nothing of it stays in the cache."""
    with pytest.raises(UserError) as caught:
        load_dataset(name, root, cache)
    for part in parts:
        assert str(part) in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())
