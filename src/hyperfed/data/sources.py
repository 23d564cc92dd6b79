"""The data sets: where each comes from, and a cache that decodes each one once and memory-maps it afterwards."""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperfed.core.errors import UserError, unknown
from hyperfed.data.decode import Source, fill_all, statistics

log = logging.getLogger(__name__)
FORMAT_VERSION = 1
STALE_SECONDS = 24 * 3600.0


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DIGITS = _names("0 1 2 3 4 5 6 7 8 9")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = _names("airplane automobile bird cat deer dog frog horse ship truck")
_CIFAR100 = _names(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
    kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm"""
)


@dataclass(frozen=True)
class Dataset:
    """A decoded data set, the official train and test splits pooled (train first).

    ``images`` is uint8 [n, H, W, C] (a read-only memory map), ``labels`` int64 [n]; ``mean`` and ``std`` are per channel, of the
    official training split scaled to [0, 1].
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


_GREY, _RGB = (60_000, 10_000, (28, 28, 1)), (50_000, 10_000, (32, 32, 3))
DATASETS: dict[str, Source] = {
    "digits": Source("Handwritten digits, 8x8 grey; part of scikit-learn.", "embedded", 1797, 0, (8, 8, 1), _DIGITS),
    "mnist": Source("Handwritten digits, 28x28 grey.", "idx", *_GREY, _DIGITS, "ylecun/mnist", "image", "label"),
    "fashion_mnist": Source("Clothing, 28x28 grey.", "idx", *_GREY, _FASHION, "zalando-datasets/fashion_mnist", "image", "label"),
    "cifar10": Source("Photographs of 10 kinds, 32x32 RGB.", "parquet", *_RGB, _CIFAR10, "uoft-cs/cifar10", "img", "label"),
    "cifar100": Source("Photographs of 100 kinds, 32x32 RGB.", "parquet", *_RGB, _CIFAR100, "uoft-cs/cifar100", "img", "fine_label"),
}


def load_dataset(name: str, root: str | Path | None = None, cache: str | Path | None = None) -> Dataset:
    """Load a data set of ``DATASETS``: from its cache, which the first call fills.

    ``root`` holds ``<name>/`` with the source files; without it they come from the Hugging Face hub (``hyperfed[hub]``).
    ``cache`` is the folder of the caches, by default ``$HYPERFED_CACHE``, ``$XDG_CACHE_HOME/hyperfed`` or ``~/.cache/hyperfed``.
    Raises ``UserError`` for an unknown name, for a source file that is missing or damaged and for a cache that cannot be written.
    """
    entry = _entry(name, root, cache)
    dataset = entry.open()
    if dataset is None:
        entry.prepare()
        dataset = entry.open()
    if dataset is None:
        raise UserError(f"data.cache: {entry.folder} cannot be read back right after it was written; choose another data.cache.")
    return dataset


def verify_cache(name: str, root: str | Path | None = None, cache: str | Path | None = None) -> Path:
    """Compare the cached arrays of a data set with their recorded SHA-256 and return the folder they are in.

    Raises ``UserError`` if the data set is not cached, or names the array that changed.
    """
    folder = (entry := _entry(name, root, cache)).folder
    if entry.open() is None:
        raise UserError(f"data.cache: {folder} holds no complete copy of {name!r}; load the data set to prepare it.")
    for file, expected in json.loads((folder / "meta.json").read_text(encoding="utf-8"))["sha256"].items():
        if (found := _sha256(folder / file)) != expected:
            raise UserError(
                f"data.cache: {folder / file} is damaged (its SHA-256 is {found[:16]}..., not {expected[:16]}...): delete that folder "
                "and load the data set again."
            )
    return folder


@dataclass(frozen=True)
class _Entry:
    """One cached data set: ``folder`` is named after a hash of ``origin``, so copies of different sources never meet."""

    name: str
    source: Source
    folder: Path
    origin: dict[str, Any]
    files: dict[str, list[Path]]

    def open(self) -> Dataset | None:
        """The cached data set, or None (with a warning in the log if the cache is damaged rather than absent)."""
        if not self.folder.exists():
            return None
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            # Labels are small, and torch warns about arrays that are read-only: they are read, the images mapped.
            images, labels = np.load(self.folder / "images.npy", mmap_mode="r"), np.load(self.folder / "labels.npy")
            if meta["origin"] != self.origin or meta["arrays"] != self._describe(self.folder, images, labels):
                raise ValueError("the arrays are not those that meta.json describes")
            mean, std, names = tuple(meta["mean"]), tuple(meta["std"]), tuple(meta["class_names"])
        except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
            log.warning("The cache %s is damaged (%s) and will be prepared again.", self.folder, error)
            return None
        return Dataset(self.name, images, labels, self.source.num_classes, mean, std, names)

    def prepare(self) -> None:
        """Decode the source into a scratch folder and rename that into place, so that no one ever sees half a cache."""
        source, scratch = self.source, self._beside()
        log.info("Preparing %s in %s (once; this may take a minute).", self.name, self.folder)
        try:
            scratch.mkdir(parents=True)
            self._sweep()
            total = source.num_train + source.num_test
            images, labels = np.empty((total, *source.shape), np.uint8), np.empty(total, np.int64)
            fill_all(source, self.files, images, labels)
            np.save(scratch / "images.npy", images)
            np.save(scratch / "labels.npy", labels)
            meta = {
                "origin": self.origin,
                "arrays": self._describe(scratch, images, labels),
                "sha256": {file: _sha256(scratch / file) for file in ("images.npy", "labels.npy")},
                "class_names": source.class_names,
            } | statistics(images[: source.num_train])
            (scratch / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            self._publish(scratch)
        except OSError as error:
            raise UserError(f"data.cache: {self.folder.parent} cannot be written ({error.strerror or error}).") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _publish(self, scratch: Path) -> None:
        for _ in range(10):
            try:
                scratch.replace(self.folder)
                return
            except OSError:
                if self.open() is not None:  # another process was first
                    return
                with suppress(OSError):  # a damaged copy is in the way, unless another process has just removed it
                    self.folder.replace(aside := self._beside())
                    shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"{self.folder} is in the way and cannot be replaced")

    def _beside(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}")

    def _sweep(self) -> None:
        """Remove what killed processes left; a day is far longer than any preparation takes."""
        for left in self.folder.parent.glob(f".{self.folder.name}.*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)

    @staticmethod
    def _describe(folder: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        arrays = {"images.npy": images, "labels.npy": labels}
        return {
            file: {"shape": list(array.shape), "dtype": str(array.dtype), "bytes": (folder / file).stat().st_size}
            for file, array in arrays.items()
        }


def _entry(name: str, root: str | Path | None, cache: str | Path | None) -> _Entry:
    if name not in DATASETS:
        raise unknown("data.name", name, DATASETS)
    source, files = DATASETS[name], {}
    if source.form == "embedded" and root is not None:
        log.warning("data.root = '%s' is not read: %s comes with the installation.", root, name)
    origin: dict[str, Any] = {"version": FORMAT_VERSION, "source": asdict(source) | {"description": ""}}
    if source.form != "embedded" and root is not None:
        folder = Path(root).expanduser().resolve() / name
        files = _source_files(source, folder)
        stats = [(path, path.stat()) for paths in files.values() for path in paths]
        origin |= {"folder": str(folder), "files": [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in stats]}
    text = json.dumps(origin, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    base = _default_cache() if cache is None else Path(cache).expanduser().absolute()
    return _Entry(name, source, base / f"{name}-{key}", json.loads(text), files)


def _default_cache() -> Path:
    if given := os.environ.get("HYPERFED_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hyperfed"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _source_files(source: Source, folder: Path) -> dict[str, list[Path]]:
    """The files of each split: [images, labels] for IDX, the shards in the order of their names for parquet."""
    files: dict[str, list[Path]] = {}
    for split in source.splits:
        prefix = "t10k" if split == "test" else split
        wanted = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"] if source.form == "idx" else [f"{split}-*.parquet"]
        for pattern in wanted:
            found = sorted(folder.glob(pattern))
            if not found:
                raise UserError(
                    f"data.root: {folder / pattern} does not exist; data.root must be the folder that holds {folder.name}/ with the "
                    f"published files ({', '.join(wanted)}, ...); folders of pictures are read by `hyperfed deploy client --data` alone."
                )
            files.setdefault(split, []).extend(found)
    return files
