"""Tables 3 and 4 of the paper: what accuracy costs in traffic, and what the hypernetwork adds to other methods."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from hyperfed.evidence import paper
from hyperfed.evidence.plans import Cell
from hyperfed.evidence.tables import SCALES, SPREAD, Entry, caption, final, number, spread
from hyperfed.report.html import Table
from hyperfed.report.runs import RunFiles

PAPER_COSTS = "table3_cost_to_accuracy"
LEVELS = (10, 20, 30, 40, 50, 60, 70)


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
    """``6.23 ± 0.41 (40)``: over the seeds that reach the level, and how many those are where it is not all."""
    there = [one[level] for one in reached if level in one]
    if not there:
        return "-"
    some = "" if len(there) == len(reached) else f", {len(there)} of {len(reached)} seeds"
    return f"{spread([cost for cost, _ in there], '.2f')} ({fmean(number for _, number in there):.0f}{some})"


def further(level: int, reached: Sequence[dict[int, tuple[float, int]]], theirs: tuple[float | None, float | None]) -> str:
    """``-0.97 (-12)``: ours minus the paper's."""
    there = [one[level] for one in reached if level in one]
    if not there or theirs[0] is None or theirs[1] is None:
        return "-"
    return f"{fmean(cost for cost, _ in there) - theirs[0]:+.2f} ({fmean(number for _, number in there) - theirs[1]:+.0f})"


def table3(found: dict[Cell, Entry]) -> Table:
    """Three lines a method: ours, the paper's and the difference."""
    rows = []
    for cell, entry in found.items():
        reached, each = [costs(run) for run in entry.runs], [run.per_round.trainable / 1e6 for run in entry.runs]
        theirs, their_each = {level: paper.cost(cell.row, level) for level in LEVELS}, paper.figure(PAPER_COSTS, cell.row, "cpr_million")
        ours = [spread(each, ".2f"), *(mean_cost(level, reached) for level in LEVELS)] if each else [entry.state, *["-"] * len(LEVELS)]
        rows.append([f"{cell.row}, ours{entry.mark if each else ''}", *ours])
        published_costs = ["-" if cost is None else f"{cost:.2f} ({rounds:.0f})" for cost, rounds in theirs.values()]
        rows.append([f"{cell.row}, paper", number(their_each, 2), *published_costs])
        if each:
            apart = None if their_each is None else fmean(each) - their_each
            gaps = [number(apart, 2, sign=True), *(further(level, reached, theirs[level]) for level in LEVELS)]
            rows.append([f"{cell.row}, difference{entry.mark}", *gaps])
    any_cell = next(iter(found))
    note = (
        "Millions of elements of one user, up and down, and in brackets rounds, until the accuracy after fine-tuning (all clients, "
        "weighted) first reaches each level; looked at every fourth round. Means ± sample standard deviation over seeds (rounds: means). "
        f"'Per round': the mean over clients and rounds. {SCALES[any_cell.scale]}"
    )
    return Table(caption("Table 3, CIFAR-10 IID", any_cell), ["method", "per round", *(f"{level} %" for level in LEVELS)], rows, note)


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
        gain_there, traffic_there = paper.gain(cell.row, cell.dataset, cell.split)
        state = "; ".join(f"{e.cell.row}: {e.state}" for e in (alone, entry) if e.state)
        gain, whole, until, more = state, "-", "-", ("-", "-")
        if pairs := paired(alone, entry):
            mark = f" ({state})" if state else ""
            gains = [100 * (final(over) - final(one)) for one, over in pairs]
            wholes = [100 * over.last["trainable"] / max(one.last["trainable"], 1) for one, over in pairs]
            before, after = ([final_cost(pair[which]) for pair in pairs] for which in (0, 1))
            untils = [100 * over / max(one, 1.0) for (one, _), (over, _) in zip(before, after, strict=True)]
            rounds = f"{fmean(n for _, n in before):.0f}, {fmean(n for _, n in after):.0f}{fallen(pairs)}"
            gain, whole = f"{spread(gains, '+.1f')}{mark}", f"{spread(wholes, '.0f')} %{mark}"
            until = f"{spread(untils, '.0f')} % ({rounds}){mark}"
            apart = [None if theirs is None else fmean(ours) - theirs for ours, theirs in ((gains, gain_there), (untils, traffic_there))]
            more = (number(apart[0], sign=True), number(apart[1], 0, sign=True))
        there = number(gain_there, sign=True), "-" if traffic_there is None else f"{traffic_there:.0f} %"
        rows.append([f"{cell.row}, {cell.dataset} {cell.split}", gain, there[0], more[0], whole, until, there[1], more[1]])
    any_cell = next(iter(found))
    note = (
        "Gain in points of accuracy after fine-tuning, in the last round, over the method alone. Traffic in % of the elements of the "
        "method alone: of the whole runs; and until the accuracy before fine-tuning first comes within half a point of the last round's "
        "(in brackets the rounds that takes, alone and over HFN; and the points by which a run ended below its best: such an end is soon "
        "reached). The paper counts 'to the final accuracy' and does not say how it tells: the difference is to that. "
        f"{SPREAD.replace('the difference is', 'differences are')} {SCALES[any_cell.scale]}"
    )
    traffic = [f"traffic, {what}" for what in ("whole run: ours", "to the end: ours", "to the end: paper", "to the end: difference")]
    columns = ["method and cell", "gain: ours", "gain: paper", "gain: difference", *traffic]
    return Table(caption("Table 4", any_cell), columns, rows, note)
