"""The papers' tables from the store: ours, the paper's, the difference, and how complete each cell is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hyperfed.evidence import paper
from hyperfed.evidence.plans import HEAD, TABLE2, Cell
from hyperfed.evidence.store import Store, same_version
from hyperfed.evidence.sweep import rounds_done
from hyperfed.report.html import Table
from hyperfed.report.runs import RunFiles
from hyperfed.report.seeds import deviation

ACCURACY = "Accuracy in % of all clients' personalised models after fine-tuning, weighted by test samples, at the last round."
SPREAD = "Mean ± sample standard deviation over seeds; the difference is in points."
THE_PAPER = "the paper's figures are of 100 clients, all data and 90 or 150 rounds, CIFAR's on networks of six blocks a group"
SCALES = {
    "paper": "Scale paper: the paper's clients, data, rounds and networks.",
    "mini": f"Scale mini: 20 clients, a fifth of the data, 40 rounds, one block a group; {THE_PAPER}.",
    "smoke": f"Scale smoke: 5 clients, a fifth of the data, 2 rounds of one epoch, one block a group; {THE_PAPER}.",
}
"""What stands beside the paper's figures."""


@dataclass(frozen=True)
class Entry:
    """The runs of one cell over its seeds. ``state`` is empty where all of them are finished."""

    cell: Cell
    runs: tuple[RunFiles, ...]
    wanted: int
    state: str
    rate: str

    @property
    def values(self) -> list[float]:
        """Final accuracy per seed, %."""
        return [100 * final(run) for run in self.runs]

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return fmean(self.values) if self.runs else None

    @property
    def text(self) -> str:
        """``62.1 ± 0.4``, with what is missing in words."""
        if not self.runs:
            return self.state
        return spread(self.values) + self.mark

    @property
    def mark(self) -> str:
        """What is missing, in brackets: it goes behind every figure made of some of the runs only."""
        return f" ({self.state})" if self.state else ""


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and sample standard deviation, ``62.1 ± 0.4``; of one value itself. ``form``: of the numbers, ``+.1f`` with a sign."""
    off = deviation(values)
    return f"{fmean(values):{form}}" + ("" if off is None else f" ± {off:{form.removeprefix('+')}}")


def final(run: RunFiles) -> float:
    """After fine-tuning, in [0, 1]."""
    return float(run.last["after"]["weighted"])


def entries(cells: Sequence[Cell], store: Store, work: Path) -> dict[Cell, Entry]:
    """The cells of a plan, seeds together: the key has seed 0. Runs of several versions are refused."""
    by_cell: dict[Cell, list[Cell]] = {}
    for cell in cells:
        by_cell.setdefault(replace(cell, seed=0), []).append(cell)
    found = {key: _entry(key, seeds, store, work) for key, seeds in by_cell.items()}
    same_version([run for entry in found.values() for run in entry.runs])
    return found


def _entry(key: Cell, seeds: Sequence[Cell], store: Store, work: Path) -> Entry:
    chosen = [store.choose(cell) for cell in seeds]
    runs = tuple(run for c in chosen if c is not None and (run := store.get(c)) is not None)
    notes = [f"{len(runs)} of {len(seeds)} seeds"] if len(runs) < len(seeds) else []
    for cell in chosen:
        if cell is None or store.get(cell) is not None:
            continue
        if store.failure(cell) is not None:
            notes.append(f"seed {cell.seed} diverged")
        elif done := rounds_done(work / cell.scale / cell.name):
            notes.append(f"seed {cell.seed}: {done} of {cell.composed()['rounds']} rounds")
    rate = next((c.rate for c in chosen if c is not None and c.rate), "0.1, multistep")
    return Entry(key, runs, len(seeds), ", ".join(notes), rate if chosen[0] is not None else "not chosen yet")


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A cell of a table; "-" for nothing."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def published(cell: Cell) -> float | None:
    """The paper's accuracy, %; None for a size of embeddings that is not its Table 2's."""
    composed = cell.composed()
    theirs = composed["dataset"].get("paper", {}).get("embedding")
    if composed["hypernet"] and composed["hypernet"]["embedding"] != theirs:
        return None
    return paper.accuracy(cell.row, cell.dataset, cell.split)


def difference(entry: Entry, theirs: float | None) -> str:
    """Ours minus the paper's, in points, with what is missing."""
    return "-" if entry.mean is None or theirs is None else f"{entry.mean - theirs:+.1f}{entry.mark}"


def caption(name: str, cell: Cell) -> str:
    """Of a table with the cell in it."""
    return f"{name} (scale {cell.scale})"


def accuracy_rows(found: dict[Cell, Entry]) -> list[dict[str, Any]]:
    """One dictionary per cell: what the CSV file holds."""
    rows = []
    for cell, entry in found.items():
        theirs, mean = published(cell), entry.mean
        rows.append(
            {
                "method": cell.row,
                "dataset": cell.dataset,
                "partition": cell.split,
                "scale": cell.scale,
                "settings": " ".join(cell.extra),
                "accuracy": None if mean is None else round(mean, 2),
                "std": None if (std := deviation(entry.values)) is None else round(std, 2),
                "seeds": len(entry.runs),
                "seeds_wanted": entry.wanted,
                "paper": theirs,
                "difference": None if mean is None or theirs is None else round(mean - theirs, 2),
                "learning_rate": entry.rate,
                "elements_per_client_and_round": entry.runs[0].per_round.trainable if entry.runs else None,
                "state": entry.state or "complete",
            }
        )
    return rows


def table2(found: dict[Cell, Entry]) -> list[Table]:
    """One table per data set: methods down, non-IID and IID across."""
    tables = []
    for data in dict.fromkeys(c.dataset for c in found):
        splits = list(dict.fromkeys(c.split for c in found if c.dataset == data))
        rows = []
        for name in [m for m in TABLE2 if any(c.row == m and c.dataset == data for c in found)]:
            row = [name]
            for split in splits:
                entry = next(e for c, e in found.items() if (c.row, c.dataset, c.split) == (name, data, split))
                theirs = published(entry.cell)
                row += [entry.text, number(theirs), difference(entry, theirs), entry.rate]
            rows.append(row)
        columns = ["method", *(f"{split}: {what}" for split in splits for what in ("ours", "paper", "difference", "learning rate"))]
        any_cell = next(iter(found))
        tables.append(Table(caption(f"Table 2, {data}", any_cell), columns, rows, f"{ACCURACY} {SPREAD} {SCALES[any_cell.scale]}"))
    return tables


def readings(found: dict[Cell, Entry]) -> Table:
    """HFN by both readings of its paper, cell by cell."""
    rows = []
    for cell, entry in found.items():
        name = cell.row if cell.row != "HFN" else "HFN, head and embeddings at home" if HEAD in cell.extra else "HFN, all but phi at home"
        theirs = published(cell)
        before = spread([100 * run.last["before"]["weighted"] for run in entry.runs]) + entry.mark if entry.runs else "-"
        elements = f"{entry.runs[0].per_round.trainable:,}" if entry.runs else "-"
        rows.append([f"{cell.dataset} {cell.split}: {name}", before, entry.text, number(theirs), difference(entry, theirs), elements])
    any_cell = next(iter(found))
    note = f"{ACCURACY.replace(' after fine-tuning', '')} {SPREAD} Elements: trained parameters up and down of one client in one round. "
    note += SCALES[any_cell.scale]
    columns = ["cell and method", "before fine-tuning", "after", "paper", "difference", "elements / client, round"]
    return Table(caption("HFN: what is private?", any_cell), columns, rows, note)
