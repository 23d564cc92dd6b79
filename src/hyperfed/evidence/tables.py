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
from hyperfed.report.seeds import deviation, mean_and_spread

LEVELS = (10, 20, 30, 40, 50, 60, 70)
ACCURACY = "Accuracy in % of all clients' personalised models after fine-tuning, weighted by test samples, at the last round."
SPREAD = "Mean ± sample standard deviation over seeds; the difference is in points."


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


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, ``62.1 ± 0.4``; of one value itself."""
    return mean_and_spread(fmean(values), deviation(values))


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


def accuracy_rows(found: dict[Cell, Entry]) -> list[dict[str, Any]]:
    """One dictionary per cell: what the CSV file holds."""
    rows = []
    for cell, entry in found.items():
        theirs = paper.accuracy(cell.row, cell.dataset, cell.split)
        mean = entry.mean
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
                theirs = paper.accuracy(name, data, split)
                gap = None if entry.mean is None or theirs is None else entry.mean - theirs
                row += [entry.text, number(theirs), number(gap, sign=True), entry.rate]
            rows.append(row)
        columns = ["method", *(f"{split}: {what}" for split in splits for what in ("ours", "paper", "difference", "learning rate"))]
        tables.append(Table(f"Table 2, {data}", columns, rows, f"{ACCURACY} {SPREAD}"))
    return tables


def readings(found: dict[Cell, Entry]) -> Table:
    """HFN by both readings of its paper, cell by cell."""
    rows = []
    for cell, entry in found.items():
        name = cell.row if cell.row != "HFN" else "HFN, head and embeddings at home" if HEAD in cell.extra else "HFN, all but phi at home"
        theirs = paper.accuracy(cell.row, cell.dataset, cell.split)
        gap = None if entry.mean is None or theirs is None else entry.mean - theirs
        before = spread([100 * run.last["before"]["weighted"] for run in entry.runs]) + entry.mark if entry.runs else "-"
        elements = f"{entry.runs[0].per_round.trainable:,}" if entry.runs else "-"
        rows.append([f"{cell.dataset} {cell.split}: {name}", before, entry.text, number(theirs), number(gap, sign=True), elements])
    note = f"{ACCURACY.replace(' after fine-tuning', '')} {SPREAD} Elements: trained parameters up and down of one client in one round."
    columns = ["cell and method", "before fine-tuning", "after", "paper", "difference", "elements / client, round"]
    return Table("HFN: what is private?", columns, rows, note)


def costs(run: RunFiles) -> dict[int, tuple[float, int]]:
    """Level -> millions of elements of one user and rounds, at the first evaluation whose accuracy after fine-tuning reaches it.

    A user's cost is what the ledger has for all, over the size of the cohort: as in the paper, a user that takes part in every round.
    """
    cohort = max(1, round(run.config["participation"] * run.config["num_clients"]))
    sent = {0: 0} | {number: elements for number, elements, _ in run.detail.totals}
    reached: dict[int, tuple[float, int]] = {}
    for e in run.evaluations:
        for level in LEVELS:
            if e["after"] and level not in reached and 100 * e["after"]["weighted"] >= level:
                reached[level] = (sent[e["round"]] / cohort / 1e6, e["round"])
    return reached


def mean_cost(level: int, reached: Sequence[dict[int, tuple[float, int]]]) -> str:
    """``6.23 (40)``: means over the seeds that reach the level, and how many those are where it is not all."""
    there = [one[level] for one in reached if level in one]
    if not there:
        return "-"
    some = "" if len(there) == len(reached) else f", {len(there)} of {len(reached)} seeds"
    return f"{fmean(cost for cost, _ in there):.2f} ({fmean(number for _, number in there):.0f}{some})"


def table3(found: dict[Cell, Entry]) -> Table:
    """Two lines a method: ours and the paper's."""
    rows = []
    for cell, entry in found.items():
        if entry.runs:
            reached = [costs(run) for run in entry.runs]
            mine = [mean_cost(level, reached) for level in LEVELS]
            rows.append([f"{cell.row}, ours{entry.mark}", f"{entry.runs[0].per_round.trainable / 1e6:.2f}", *mine])
        else:
            rows.append([f"{cell.row}, ours", entry.state, *["-"] * len(LEVELS)])
        theirs = [paper.cost(cell.row, level) for level in LEVELS]
        rows.append(
            [f"{cell.row}, paper", number(paper.figure("table3_cost_to_accuracy", cell.row, "cpr_million"), 2)]
            + ["-" if cost is None else f"{cost:.2f} ({rounds:.0f})" for cost, rounds in theirs]
        )
    note = (
        "Millions of elements of one user, up and down, and in brackets rounds, until the accuracy after fine-tuning (all clients, "
        "weighted) first reaches each level; looked at every fourth round; means over seeds. 'Per round': the mean over clients and rounds."
    )
    return Table("Table 3, CIFAR-10 IID", ["method", "per round", *(f"{level} %" for level in LEVELS)], rows, note)


NEAR = 0.005
"""Accuracy counts as final within half a point of the last round's."""
FALLEN = 0.03
"""A run has collapsed that ends so far below its best."""


def final_cost(run: RunFiles) -> tuple[float, int]:
    """Elements of all clients, and rounds, until the accuracy before fine-tuning is first within half a point of the last round's."""
    enough = run.last["before"]["weighted"] - NEAR
    first = next(e for e in run.evaluations if e["round"] and e["before"]["weighted"] >= enough)
    return float(first["trainable"]), int(first["round"])


def fallen(pairs: Sequence[tuple[RunFiles, RunFiles]]) -> str:
    """Which of the two, method alone and over HFN, ends well below its best: the end is no goal then, and soon reached."""

    def fall(run: RunFiles) -> float:
        return float(max(e["before"]["weighted"] for e in run.evaluations) - run.last["before"]["weighted"])

    falls = {name: fmean(fall(pair[i]) for pair in pairs) for i, name in enumerate(("alone", "over HFN"))}
    return "".join(f"; {name} fell by {100 * by:.0f}" for name, by in falls.items() if by > FALLEN)


def paired(alone: Entry, over: Entry) -> list[tuple[RunFiles, RunFiles]]:
    """The runs of the seeds that both have."""
    by_seed = {run.config["seed"]: run for run in alone.runs}
    return [(by_seed[run.config["seed"]], run) for run in over.runs if run.config["seed"] in by_seed]


def table4(found: dict[Cell, Entry]) -> Table:
    """Method over HFN against the method alone, cell by cell, on the seeds that both have."""
    rows = []
    for cell, entry in found.items():
        if not cell.row.startswith("HFN+"):
            continue
        alone = found[replace(cell, row=cell.row.removeprefix("HFN+"), experiment="table2")]
        theirs = paper.gain(cell.row, cell.dataset, cell.split)
        pairs = paired(alone, entry)
        state = "; ".join(f"{e.cell.row}: {e.state}" for e in (alone, entry) if e.state)
        ours = [state, "-", "-"]
        if pairs:
            gain = fmean(100 * (final(over) - final(one)) for one, over in pairs)
            before, after = ([final_cost(pair[which]) for pair in pairs] for which in (0, 1))
            whole = sum(o.last["trainable"] for _, o in pairs) / max(sum(a.last["trainable"] for a, _ in pairs), 1)
            until = sum(c for c, _ in after) / max(sum(c for c, _ in before), 1.0)
            rounds = f"{fmean(n for _, n in before):.0f}, {fmean(n for _, n in after):.0f}{fallen(pairs)}"
            mark = f" ({state})" if state else ""
            ours = [f"{gain:+.1f}{mark}", f"{100 * whole:.0f} %{mark}", f"{100 * until:.0f} % ({rounds}){mark}"]
        paper_cost = "-" if theirs[1] is None else f"{theirs[1]:.0f} %"
        rows.append([f"{cell.row}, {cell.dataset} {cell.split}", ours[0], number(theirs[0], sign=True), *ours[1:], paper_cost])
    note = (
        "Gain in points of accuracy after fine-tuning, in the last round, over the method alone. Traffic in % of the elements of the "
        "method alone: of the whole runs; and until the accuracy before fine-tuning first comes within half a point of the last round's "
        "(in brackets the rounds that takes, alone and over HFN; and the points by which a run ended below its best: such an end is soon "
        "reached). The paper counts 'to the final accuracy' and does not say how it tells."
    )
    columns = ["method and cell", "gain: ours", "gain: paper", "traffic, whole run: ours", "traffic, to the end: ours", "traffic: paper"]
    return Table("Table 4", columns, rows, note)
