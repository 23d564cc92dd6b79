"""Which runs each table and figure of the HyperFedNet paper needs, and how the learning rate is chosen."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from hyperfed.core import UserError, unknown
from hyperfed.main import compose_checked, composed_dict
from hyperfed.run.config import identity_hash, run_name

DATASETS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
SPLITS = {"non-IID": "dirichlet", "IID": "iid"}
SCALES = ("paper", "mini", "smoke")
CANDIDATES: dict[str, tuple[float, str]] = {
    "0.1, multistep": (0.1, "multistep"),
    "0.1": (0.1, "constant"),
    "0.01": (0.01, "constant"),
    "0.001": (0.001, "constant"),
}
"""The learning rates of section 5.1. The small scales try fewer: in four rounds the others cannot be told apart or do not move."""
TRIED = {"paper": tuple(CANDIDATES), "mini": ("0.1, multistep", "0.01"), "smoke": ("0.1, multistep",)}
VALIDATION, SHARE_OF_ROUNDS = 0.2, 0.1

TABLE2 = {  # the papers' names, in their order
    "Centre": "centre",
    "FedAvg": "fedavg",
    "Local": "local",
    "FedBABU": "fedbabu",
    "FedProx": "fedprox",
    "FedGen": "fedgen",
    "FedDyn": "feddyn",
    "pFedSim": "pfedsim",
    "FedPer": "fedper",
    "FedBN": "fedbn",
    "FedRep": "fedrep",
    "pFedLA": "pfedla",
    "FedFomo": "fedfomo",
    "HFN": "hfn",
}
TABLE3 = tuple(name for name in TABLE2 if name not in ("Centre", "Local"))
TABLE4 = ("FedAvg", "FedProx", "FedDyn", "FedBN", "pFedLA", "FedFomo")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
HEAD = "hyper=hfn_head"
"""HFN whose clients keep head and embeddings alone: with it, what Table 2's HFN keeps at home besides travels, too."""


@dataclass(frozen=True)
class Cell:
    """One run of a plan. ``row`` is its method as the paper calls it; ``extra`` are further settings."""

    row: str
    dataset: str
    split: str
    scale: str
    seed: int = 1
    experiment: str = "table2"
    extra: tuple[str, ...] = ()
    rate: str | None = None
    trial: bool = False

    @property
    def overrides(self) -> list[str]:
        """The run as settings of ``hyperfed run``; learning rate and seed come on top."""
        hyper = self.experiment == "table4"
        method = TABLE2[self.row.removeprefix("HFN+") if hyper else self.row]
        partition = [f"partition={SPLITS[self.split]}"] if self.split in SPLITS else []
        always = ["eval.finetune=always"] if (self.dataset, self.split) == ("cifar10", "IID") else []  # Table 3 is read off these runs
        base = [f"experiment={self.experiment}", f"scale={self.scale}", f"dataset={self.dataset}", *partition, f"method={method}"]
        return [*base, *always, *self.extra]

    def composed(self) -> dict[str, Any]:
        """The resolved configuration. A trial is a tenth of the rounds, judged on a validation part."""
        composed = deepcopy(resolve(tuple(self.overrides)))
        composed["optim"]["lr"], composed["optim"]["schedule"] = CANDIDATES[self.rate or "0.1, multistep"]
        composed["seed"] = self.seed
        if self.trial:
            composed["rounds"] = rounds = max(1, round(SHARE_OF_ROUNDS * composed["rounds"]))
            composed["eval"] = {"every": rounds, "finetune": "last"}
            composed["data"]["validation"] = VALIDATION
        if composed["method"]["name"] == "pfedsim":
            composed["method"]["warmup_rounds"] = composed["rounds"] // 2  # half of the rounds, as its authors set it
        return composed

    @cached_property
    def name(self) -> str:
        """The name of its file in the store."""
        return run_name(self.composed())

    @cached_property
    def identity(self) -> str:
        """The hash of its resolved configuration, the seed included."""
        return identity_hash(self.composed())

    @cached_property
    def rounds(self) -> int:
        """How many its run has."""
        return int(self.composed()["rounds"])

    @cached_property
    def trials(self) -> tuple["Cell", ...]:
        """The runs by which its learning rate is chosen: one seed decides for all, and Table 2's HFN for all sizes of embeddings."""
        if self.rate or len(TRIED[self.scale]) == 1:
            return ()
        base = replace(self, experiment="table2", extra=()) if self.experiment == "fig5" else self
        return tuple(replace(base, seed=1, rate=rate, trial=True) for rate in TRIED[self.scale])


@cache
def resolve(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Compose once per process; Hydra takes a tenth of a second."""
    return composed_dict(compose_checked(list(overrides)))


@dataclass(frozen=True)
class Ask:
    """What part of a table or figure is wanted; empty: all of it."""

    scale: str = "mini"
    datasets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)
        for name in self.datasets:
            if name not in (*DATASETS, "digits"):
                raise unknown("dataset", name, (*DATASETS, "digits"))
        for name in self.splits:
            if name not in SPLITS:
                raise unknown("partition", name, SPLITS)
        rows = (*TABLE2, *(f"HFN+{m}" for m in TABLE4))
        for name in self.methods:
            if name not in rows:
                raise unknown("method", name, rows)

    def cells(self, rows: Sequence[str], datasets: Sequence[str], splits: Sequence[str]) -> Iterator[Cell]:
        """Cells seed by seed, so that a plan cut short has whole columns of the first seed."""
        chosen = [r for r in rows if not self.methods or r in self.methods]
        for seed, data, split in itertools.product(self.seeds, self.datasets or datasets, self.splits or splits):
            for row in chosen:
                yield Cell(row, data, split, self.scale, seed)


def table2(ask: Ask) -> list[Cell]:
    """14 methods in 8 cells."""
    return list(ask.cells(tuple(TABLE2), DATASETS, tuple(SPLITS)))


def table3(ask: Ask) -> list[Cell]:
    """Cost until each level of accuracy, on CIFAR-10 IID: the only runs that are fine-tuned at every evaluation."""
    if ask.datasets not in ((), ("cifar10",)) or ask.splits not in ((), ("IID",)):
        raise UserError("table3 is CIFAR-10 IID only, as in the paper: leave dataset= and partition= out.")
    return list(ask.cells(TABLE3, ("cifar10",), ("IID",)))


def table4(ask: Ask) -> list[Cell]:
    """Six methods alone (the runs of Table 2) and over the hypernetwork."""
    ask = replace(ask, methods=tuple(dict.fromkeys(m.removeprefix("HFN+") for m in ask.methods)))
    alone = list(ask.cells(TABLE4, DATASETS, tuple(SPLITS)))
    return [cell for one in alone for cell in (one, over_hypernetwork(one))]


def over_hypernetwork(cell: Cell) -> Cell:
    """The same method over HFN. FedBN keeps batch norm at home there, too."""
    return replace(cell, row=f"HFN+{cell.row}", experiment="table4")


def fig3(ask: Ask) -> list[Cell]:
    """Similarity of generated kernels, with embeddings at the default pace and free to move."""
    if ask.methods not in ((), ("HFN",)) or ask.splits:
        raise UserError("fig3 is HFN on clients in groups: leave method= and partition= out.")
    cells: list[Cell] = []
    for seed, data in itertools.product(ask.seeds, ask.datasets or DATASETS):
        classes = ("partition.classes_per_client=10",) if data == "cifar100" else ()
        both = ((), ("hypernet.pace.embed=1",))
        cells += [Cell("HFN", data, "groups", ask.scale, seed, "fig3", (*classes, *pace), "0.1, multistep") for pace in both]
    return cells


def fig5(ask: Ask) -> list[Cell]:
    """HFN over embedding sizes; the learning rate is that of Table 2's HFN."""
    cells = ask.cells(("HFN",), DATASETS, tuple(SPLITS))
    return [replace(c, experiment="fig5", extra=(f"hypernet.embedding={size}",)) for c in cells for size in SIZES]


def readings(ask: Ask) -> list[Cell]:
    """HFN by both readings of what its clients keep, beside FedAvg and FedPer: all but the second HFN are Table 2's runs."""
    cells = ask.cells(ROWS["readings"], DATASETS, tuple(SPLITS))
    return [one for cell in cells for one in ((cell, replace(cell, extra=(HEAD,))) if cell.row == "HFN" else (cell,))]


ROWS = {
    "table2": tuple(TABLE2),
    "table3": TABLE3,
    "table4": TABLE4,
    "fig3": ("HFN",),
    "fig5": ("HFN",),
    "readings": ("FedAvg", "FedPer", "HFN"),
}
PLANS: dict[str, Callable[[Ask], list[Cell]]] = {
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "fig3": fig3,
    "fig5": fig5,
    "readings": readings,
}


def plan(name: str, ask: Ask) -> list[Cell]:
    """The cells of a table or figure, learning rates still open."""
    if name not in PLANS:
        raise unknown("experiment", name, PLANS)
    cells = PLANS[name](ask)
    for method in ask.methods:
        if method not in (*ROWS[name], *(f"HFN+{row}" for row in ROWS[name] if name == "table4")):
            raise UserError(f"{name} has no run with method {method}: its rows are {', '.join(ROWS[name])}.")
    return cells
