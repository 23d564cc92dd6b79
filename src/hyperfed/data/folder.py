"""A client's own labelled images, from a folder on its device."""

from pathlib import Path

import numpy as np
from numpy.lib.format import read_array

from hyperfed.core.errors import UserError
from hyperfed.data.sources import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_folder(folder: Path, like: Dataset) -> Dataset:
    """Images in the form of ``like`` (side, channels, classes, normalisation): one sub-folder of image files per class, named by the
    class or its number, or images.npy (uint8 [n, H, W, C]) with labels.npy (integers [n]). The order is that of the names, always.

    Grey images of more than 8 bits are refused: nothing says which of their values is white. Colours of 16 bits keep the upper 8.
    """
    if not folder.is_dir():
        raise UserError(f"data {str(folder)!r} is not a folder.")
    images, labels = _arrays(folder) if (folder / "images.npy").exists() else _files(folder, like)
    if images.dtype != np.uint8 or images.shape[1:] != like.images.shape[1:] or len(images) != labels.size:
        raise UserError(
            f"data {str(folder)!r} has {images.dtype} images of shape {list(images.shape)} and {labels.size} labels; "
            f"data set {like.name!r} has uint8 images [n, {', '.join(map(str, like.images.shape[1:]))}]."
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"data {str(folder)!r} has {labels.dtype} labels of shape {list(labels.shape)}: they must be integers, [n].")
    if not len(labels) or labels.min() < 0 or labels.max() >= like.num_classes:
        raise UserError(f"data {str(folder)!r}: labels must be from 0 to {like.num_classes - 1}, and there must be one at least.")
    return Dataset(like.name, images, labels.astype(np.int64), like.num_classes, like.mean, like.std, like.class_names)


def _arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return _array(folder, "images.npy"), _array(folder, "labels.npy")


def _array(folder: Path, name: str) -> np.ndarray:
    try:
        with (folder / name).open("rb") as file:
            return np.asarray(read_array(file, allow_pickle=False))
    except Exception:  # an empty, cut off or foreign file: the reader raises what it meets
        raise UserError(f"data {str(folder)!r}: {name} is missing, broken or not one array of numbers in NumPy's format.") from None


def _image(path: Path, mode: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            found, pixels = image.mode, np.asarray(image.convert(mode)).reshape(image.height, image.width, -1)
    except Exception:  # as many kinds as Pillow has decoders
        raise UserError(f"image {str(path)!r} cannot be read: it is broken or no image.") from None
    if found.startswith(("I", "F")):
        raise UserError(f"image {str(path)!r} has grey values of more than 8 bits (mode {found!r}): save it with 8.")
    return pixels


def _files(folder: Path, like: Dataset) -> tuple[np.ndarray, np.ndarray]:
    numbers = {name: i for i, name in enumerate(like.class_names)} | {str(i): i for i in range(like.num_classes)}
    mode = "L" if like.images.shape[3] == 1 else "RGB"
    images, labels = [], []
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        if part.name not in numbers:
            raise UserError(f"data {str(folder)!r}: {part.name!r} is not a class of data set {like.name!r}.")
        for path in sorted(p for p in part.iterdir() if p.suffix.lower() in SUFFIXES):
            images.append(_image(path, mode))
            if images[-1].shape != like.images.shape[1:]:
                raise UserError(f"image {str(path)!r} has shape {list(images[-1].shape)}, expected {list(like.images.shape[1:])}.")
            labels.append(numbers[part.name])
    if not labels:
        raise UserError(f"data {str(folder)!r} holds neither images.npy nor a folder of images per class.")
    return np.stack(images), np.array(labels)
