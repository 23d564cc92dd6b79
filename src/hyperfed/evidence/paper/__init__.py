"""The figures HyperFedNet reports (Tables 2 to 4), as CSV files, and how to look one up."""

import csv
from functools import cache
from importlib.resources import files

ROWS = {"FedBabu": "FedBABU", "pFedla": "pFedLA", "HFN_128": "HFN", "HFN+pFedla": "HFN+pFedLA"}
DATASETS = {"mnist": "mnist", "fashion_mnist": "fmnist", "cifar10": "cifar10", "cifar100": "cifar100"}
SPLITS = {"non-IID": "noniid", "IID": "iid"}


@cache
def _table(name: str) -> dict[str, dict[str, str]]:
    lines = (files("hyperfed.evidence.paper") / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {ROWS.get(row["method"], row["method"]): row for row in rows}


def figure(name: str, row: str, column: str) -> float | None:
    """The number in table ``name``; None where the paper has none."""
    text = _table(name).get(row, {}).get(column, "")
    return float(text) if text else None


def cell_name(dataset: str, split: str) -> str:
    """A cell as the CSV files name it."""
    return f"{DATASETS.get(dataset, dataset)}_{SPLITS.get(split, split)}"


def accuracy(row: str, dataset: str, split: str) -> float | None:
    """Table 2, in %."""
    return figure("table2_accuracy", row, cell_name(dataset, split))


def gain(row: str, dataset: str, split: str) -> tuple[float | None, float | None]:
    """Table 4: points gained, traffic in % of the method alone."""
    column = cell_name(dataset, split)
    return figure("table4_combinations", row, f"{column}_acc_gain"), figure("table4_combinations", row, f"{column}_comm_percent")


def cost(row: str, level: int) -> tuple[float | None, float | None]:
    """Table 3: millions of elements of one user and rounds until ``level`` %."""
    return figure("table3_cost_to_accuracy", row, f"cost_million_at_{level}"), figure("table3_cost_to_accuracy", row, f"rounds_to_{level}")
