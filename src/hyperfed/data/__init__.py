"""Data sets and their division among clients."""

from hyperfed.data.decode import Source
from hyperfed.data.folder import load_folder
from hyperfed.data.partition import (
    PARTITIONS,
    ClientIndices,
    Dirichlet,
    Groups,
    Iid,
    Partition,
    Pathological,
    hold_out,
    label_counts,
    partition,
)
from hyperfed.data.sources import DATASETS, Dataset, load_dataset, verify_cache

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "ClientIndices",
    "Dataset",
    "Dirichlet",
    "Groups",
    "Iid",
    "Partition",
    "Pathological",
    "Source",
    "hold_out",
    "label_counts",
    "load_dataset",
    "load_folder",
    "partition",
    "verify_cache",
]
