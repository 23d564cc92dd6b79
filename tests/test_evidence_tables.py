"""What the papers' tables say of made-up runs: costs, spreads, seeds that are missing."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperfed.core import Traffic
from hyperfed.evidence import figures, paper
from hyperfed.evidence.costs import costs, table3, table4
from hyperfed.evidence.page import completeness
from hyperfed.evidence.plans import HEAD, Ask, Cell, over_hypernetwork, plan
from hyperfed.evidence.store import Store
from hyperfed.evidence.tables import Entry, accuracy_rows, entries, readings
from hyperfed.report.runs import Detail, RunFiles


def run_with(config: dict[str, Any], lines: list[tuple[int, float, int]], totals: list[list[int]]) -> RunFiles:
    """A run made up of (round, accuracy after fine-tuning, elements so far)."""
    evaluations = [
        {"round": n, "before": {"weighted": a, "mean": a}, "after": {"weighted": a, "mean": a}, "trainable": e, "bytes": 4 * e}
        for n, a, e in lines
    ]
    return RunFiles(Path("x"), config, evaluations, Traffic(100), {"versions": {"hyperfed": "1"}}, Detail(totals=totals))


def test_table_3_counts_one_users_elements_until_a_level() -> None:
    """Ten clients a round of 100,000 elements each: after four rounds one user has sent 0.4 million."""
    totals = [[n, n * 1_000_000, 0] for n in range(1, 9)]
    lines = [(0, 0.15, 0), (4, 0.31, 4_000_000), (8, 0.52, 8_000_000)]
    reached = costs(run_with({"participation": 0.5, "num_clients": 20, "rounds": 8}, lines, totals))
    assert reached == {10: (0.0, 0), 20: (0.4, 4), 30: (0.4, 4), 40: (0.8, 8), 50: (0.8, 8)}


def entry_of(cell: Cell, wanted: int, *runs: RunFiles) -> tuple[Cell, Entry]:
    state = f"{len(runs)} of {wanted} seeds" if len(runs) < wanted else ""
    return cell, Entry(cell, runs, wanted, state, "0.1")


def test_table_3_is_a_mean_over_seeds_and_says_which_are_missing() -> None:
    """One seed reaches 50 % after four rounds, the other after eight and it alone reaches 60."""
    totals = [[n, n * 1_000_000, 0] for n in range(1, 9)]
    config = {"participation": 0.5, "num_clients": 20, "rounds": 8}
    fast = run_with({**config, "seed": 1}, [(0, 0.45, 0), (4, 0.55, 4_000_000), (8, 0.55, 8_000_000)], totals)
    slow = run_with({**config, "seed": 2}, [(0, 0.45, 0), (4, 0.45, 4_000_000), (8, 0.65, 8_000_000)], totals)
    ours, theirs, apart = table3(dict([entry_of(Cell("FedAvg", "cifar10", "IID", "mini"), 3, fast, slow)])).rows
    assert ours[0] == "FedAvg, ours (2 of 3 seeds)" and ours[2:] == [
        *["0.00 ± 0.00 (0)"] * 4,
        "0.60 ± 0.28 (6)",
        "0.80 (8, 1 of 2 seeds)",
        "-",
    ]
    assert theirs[5:] == ["46.24 (41)", "46.24 (41)", "91.36 (81)", "-"] and apart[0] == "FedAvg, difference (2 of 3 seeds)"
    assert apart[2:] == ["-1.13 (-1)", "-5.64 (-5)", "-15.79 (-14)", "-46.24 (-41)", "-45.64 (-35)", "-90.56 (-73)", "-"]


def test_table_4_pairs_seeds_and_counts_traffic_to_the_accuracy_of_the_last_round() -> None:
    """Alone: 60.0 % reached (within half a point) at round 4 of 8; over HFN 50 % at the end, for half the elements. Seed 2 has no pair."""
    alone_cell = Cell("FedAvg", "cifar10", "IID", "mini")
    config = {"participation": 0.5, "num_clients": 20, "rounds": 8}
    alone = [
        run_with({**config, "seed": seed}, [(0, 0.1, 0), (4, 0.596, 4_000_000), (8, end, 8_000_000)], [])
        for seed, end in ((1, 0.6), (2, 0.9))
    ]
    over = run_with({**config, "seed": 1}, [(0, 0.1, 0), (4, 0.49, 2_000_000), (8, 0.5, 4_000_000)], [])
    found = dict([entry_of(alone_cell, 2, *alone), entry_of(over_hypernetwork(alone_cell), 2, over)])
    table = table4(found)
    (row,) = table.rows
    assert table.caption == "Table 4 (scale mini)" and "a fifth of the data" in table.note
    mark = " (HFN+FedAvg: 1 of 2 seeds)"
    assert row == ["HFN+FedAvg, cifar10 IID", f"-10.0{mark}", "+15.3", "-25.3", f"50 %{mark}", f"100 % (4, 8){mark}", "75 %", "+25"]
    assert completeness(found) == "0 of 1 cells complete (scale mini)"


def test_table_4_says_where_a_run_ended_below_its_best() -> None:
    """Over HFN 50 % at round 4 and 40 at the end of 8: reached at round 2 already, on the way up."""
    alone_cell = Cell("FedDyn", "cifar10", "IID", "mini")
    config = {"participation": 0.5, "num_clients": 20, "rounds": 8, "seed": 1}
    alone = run_with(config, [(0, 0.1, 0), (4, 0.5, 4_000_000), (8, 0.6, 8_000_000)], [])
    over = run_with(config, [(0, 0.1, 0), (2, 0.4, 1_000_000), (4, 0.5, 2_000_000), (8, 0.4, 4_000_000)], [])
    (row,) = table4(dict([entry_of(alone_cell, 1, alone), entry_of(over_hypernetwork(alone_cell), 1, over)])).rows
    assert row[5] == "12 % (8, 2; over HFN fell by 10)"


def test_table_4_has_the_spread_of_each_seeds_own_gain() -> None:
    """Gains of +25 and -25 points: no gain, and a spread that says so; half of the elements and twice as many."""
    alone_cell = Cell("FedAvg", "cifar10", "IID", "mini")
    runs = [
        [run_with({"seed": seed}, [(0, 0.1, 0), (8, accuracy, elements)], []) for seed, accuracy, elements in both]
        for both in (((1, 0.5, 1000), (2, 0.5, 1000)), ((1, 0.75, 500), (2, 0.25, 2000)))
    ]
    found = dict([entry_of(alone_cell, 2, *runs[0]), entry_of(over_hypernetwork(alone_cell), 2, *runs[1])])
    (row,) = table4(found).rows
    assert row[1:6] == ["+0.0 ± 35.4", "+15.3", "-15.3", "125 ± 106 %", "125 ± 106 % (8, 8)"]


def test_two_readings_of_hfn_are_told_apart() -> None:
    """All but phi at home, or head and embeddings alone: the second is another run, with trials of its own, beside the paper's one HFN."""
    cells = plan("readings", Ask("mini", ("cifar10",), ("non-IID",)))
    assert [c.row for c in cells] == ["FedAvg", "FedPer", "HFN", "HFN"] and len({c.identity for c in cells}) == 4
    assert cells[:3] == plan("table2", Ask("mini", ("cifar10",), ("non-IID",), ("FedAvg", "FedPer", "HFN")))
    phi, head = (c.composed() for c in cells[2:])
    assert (phi["hypernet"]["share"], phi["finetune"]["scope"]) == ([], [])
    assert (head["hypernet"]["share"], head["finetune"]["scope"]) == (["norm", "stem", "body"], ["head"])
    assert all(trial.composed()["hypernet"]["share"] == ["norm", "stem", "body"] for trial in cells[3].trials)
    run = run_with({"seed": 1}, [(8, 0.7, 8)], [])
    _, _, first, second = readings(dict([entry_of(c, 1, *([run] if HEAD in c.extra else [])) for c in cells])).rows
    assert first == ["cifar10 non-IID: HFN, all but phi at home", "-", "0 of 1 seeds", "76.8", "-", "-"]
    assert second == ["cifar10 non-IID: HFN, head and embeddings at home", "70.0", "70.0", "76.8", "-6.8", "100"]


def test_a_spread_is_the_sample_deviation() -> None:
    runs = [run_with({"seed": seed}, [(8, accuracy, 8)], []) for seed, accuracy in ((1, 0.6), (2, 0.62), (3, 0.64))]
    assert entry_of(Cell("FedAvg", "cifar10", "IID", "mini"), 3, *runs)[1].text == "62.0 ± 2.0"


def test_tables_2_and_4_stand_beside_the_papers(tmp_path: Path) -> None:
    assert paper.accuracy("HFN", "cifar10", "non-IID") == 76.78 and paper.accuracy("FedBABU", "fashion_mnist", "IID") == 91.04
    assert (
        paper.accuracy("HFN", "digits", "IID") is None
        and paper.cost("FedFomo", 50) == (307.91, 78)
        and paper.cost("FedAvg", 70) == (None, None)
    )
    assert paper.gain("HFN+pFedLA", "mnist", "non-IID") == (-0.38, 12.0)
    cells = plan("table4", Ask("smoke", ("digits",), ("IID",), ("FedAvg",)))
    found = entries(cells, Store(tmp_path), tmp_path)
    assert table4(found).rows == [["HFN+FedAvg, digits IID", "FedAvg: 0 of 1 seeds; HFN+FedAvg: 0 of 1 seeds", *["-"] * 6]]
    assert "0 of 1 seeds" in table3(entries(plan("table3", Ask("mini", methods=("HFN",))), Store(tmp_path), tmp_path)).rows[0][1]


def test_table_2_as_a_picture(tmp_path: Path) -> None:
    """A dot for every method that has a run, hollow where seeds are missing, and the paper's figure; nothing without runs."""
    run = run_with({}, [(8, 0.6, 0)], [])
    whole, part, nothing = (Cell(row, "cifar10", "IID", "mini", 0) for row in ("FedAvg", "FedPer", "HFN"))
    found = dict([entry_of(whole, 1, run), entry_of(part, 2, run), entry_of(nothing, 1)])
    path = figures.table2(found, tmp_path / "table2.svg")
    assert path is not None
    text = path.read_text()
    assert "cifar10 IID" in text and "<!-- HFN -->" not in text

    def marks(face: str, edge: str) -> int:
        return len(re.findall(f'<use [^>]*style="fill: {face}; stroke: {edge}', text))

    assert marks("#0072b2", "#0072b2") == 2 and marks("#ffffff", "#0072b2") == 1, "the legend's and FedAvg's; FedPer's"
    assert len(re.findall("fill-opacity: 0; stroke: #d55e00", text)) == 3, "the paper's two and the legend's"
    assert figures.table2(dict([entry_of(nothing, 1)]), tmp_path / "none.png") is None and not (tmp_path / "none.png").exists()


def test_the_papers_figure_stands_beside_its_own_size_of_embeddings_alone() -> None:
    run = run_with({}, [(8, 0.6, 0)], [])
    cells = plan("fig5", Ask("mini", ("mnist",), ("IID",)))
    rows = accuracy_rows(dict(entry_of(replace(c, seed=0), 1, run) for c in cells))
    assert [row["settings"] for row in rows if row["paper"] is not None] == ["hypernet.embedding=64"]
    assert [row["difference"] for row in rows if row["paper"] is None] == [None] * 7
    (hfn,) = plan("table2", Ask("mini", ("mnist",), ("IID",), ("HFN",)))
    assert [(r["paper"], r["difference"]) for r in accuracy_rows(dict([entry_of(hfn, 1, run)]))] == [(98.59, -38.59)]


def grouped(seed: int, within: float) -> RunFiles:
    """Four clients in two groups, whose kernels are alike by ``within`` and between groups not at all."""
    config = {"seed": seed, "num_clients": 4, "rounds": 8, "partition": {"name": "groups", "num_groups": 2, "classes_per_client": 2}}
    cosine = [[1.0 if i == j else within if i // 2 == j // 2 else 0.0 for j in range(4)] for i in range(4)]
    run = run_with(config, [(8, 0.5, 0)], [])
    return replace(run, detail=Detail(similarity=cosine))


def test_figure_3_has_the_mean_and_the_spread_over_seeds_of_what_sets_groups_apart(tmp_path: Path) -> None:
    cell = plan("fig3", Ask("mini", ("mnist",)))[0]
    found = dict([entry_of(cell, 3, grouped(1, 0.4), grouped(2, 0.2)), entry_of(plan("fig3", Ask("mini", ("cifar10",)))[0], 1)])
    first, second = figures.fig3_table(found).rows
    name = "mnist, pace of the embeddings 0.01 (default) (2 of 3 seeds)"
    assert first == [name, "0.300000", "0.000000", "3.0e-01 ± 1.4e-01", "50.0 ± 0.0 (2 of 3 seeds)"]
    assert second[1:] == ["0 of 1 seeds", "-", "-", "-"]
    path = figures.fig3(found, tmp_path / "fig3.svg")
    assert path is not None and "within - between 4.0e-01" in path.read_text(), "the first seed's"
    assert figures.fig3(dict([entry_of(cell, 1)]), tmp_path / "none.svg") is None


def test_figure_5_shows_spreads_and_what_is_missing(tmp_path: Path) -> None:
    runs = [run_with({"seed": seed}, [(8, accuracy, 8)], []) for seed, accuracy in ((1, 0.6), (2, 0.64))]
    small, large, none = plan("fig5", Ask("mini", ("mnist",), ("IID",)))[:3]
    found = dict([entry_of(small, 2, *runs), entry_of(large, 2, runs[0]), entry_of(none, 2)])
    table = figures.fig5_table(found)
    assert [row[:2] for row in table.rows] == [
        ["mnist IID, 1", "62.0 ± 2.8"],
        ["mnist IID, 2", "60.0 (1 of 2 seeds)"],
        ["mnist IID, 4", "0 of 2 seeds"],
    ]
    path = figures.fig5(found, tmp_path / "fig5.svg")
    assert path is not None and "<!-- mnist IID, some seeds only -->" in path.read_text()
    assert figures.fig5(dict([entry_of(small, 1, runs[0])]), tmp_path / "none.svg") is None, "one size makes no line"


def test_table_3_as_a_picture_has_a_line_for_each_method_with_a_run(tmp_path: Path) -> None:
    run = run_with({"participation": 0.5, "num_clients": 4}, [(0, 0.1, 0), (8, 0.6, 2_000_000)], [])
    cells = [Cell(row, "cifar10", "IID", "mini") for row in ("FedAvg", "FedPer", "HFN")]
    found = dict([entry_of(cells[0], 1, run), entry_of(cells[1], 2, run), entry_of(cells[2], 1)])
    path = figures.accuracy_over_cost(found, tmp_path / "table3.svg")
    assert path is not None
    text = path.read_text()
    assert "<!-- FedAvg -->" in text and "<!-- FedPer (1 of 2 seeds) -->" in text and "<!-- HFN" not in text
    assert figures.accuracy_over_cost(dict([entry_of(cells[2], 1)]), tmp_path / "none.svg") is None
