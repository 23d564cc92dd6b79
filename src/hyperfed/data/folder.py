"""A client's own labelled images, from a folder on its device."""

from pathlib import Path

import numpy as np

from hyperfed.core.errors import UserError
from hyperfed.data.sources import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_folder(folder: Path, like: Dataset) -> Dataset:
    """Images in the form of ``like`` (side, channels, classes, normalisation): one sub-folder of image files per class, named by the
    class or its number, or images.npy (uint8 [n, H, W, C]) with labels.npy (integers [n]). The order is that of the names, always."""
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
    try:
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        return np.load(folder / "images.npy", allow_pickle=False), labels
    except (OSError, ValueError) as problem:
        raise UserError(f"data {str(folder)!r} cannot be read: {problem}.") from None


def _files(folder: Path, like: Dataset) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    numbers = {name: i for i, name in enumerate(like.class_names)} | {str(i): i for i in range(like.num_classes)}
    mode = "L" if like.images.shape[3] == 1 else "RGB"
    images, labels = [], []
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        if part.name not in numbers:
            raise UserError(f"data {str(folder)!r}: {part.name!r} is not a class of data set {like.name!r}.")
        for path in sorted(p for p in part.iterdir() if p.suffix.lower() in SUFFIXES):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert(mode)).reshape(image.height, image.width, -1))
            if images[-1].shape != like.images.shape[1:]:
                raise UserError(f"image {str(path)!r} has shape {list(images[-1].shape)}, expected {list(like.images.shape[1:])}.")
            labels.append(numbers[part.name])
    if not labels:
        raise UserError(f"data {str(folder)!r} holds neither images.npy nor a folder of images per class.")
    return np.stack(images), np.array(labels)
