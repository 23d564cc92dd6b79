"""Comparisons still under way, names with signs in them, and what is not the paper's method though it has its name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from hyperfed.cli import main
from hyperfed.report.comparison import measures, published
from hyperfed.report.html_charts import labels_chart
from hyperfed.report.html_report import report
from hyperfed.report.plots import plot_accuracy
from hyperfed.report.runs import Detail, RunFiles, keep
from hyperfed.report.seeds import group_by_seed
from hyperfed.report.tables import row, terminal_table
from made_runs import made


def test_a_seed_that_is_not_finished_stops_no_report(tmp_path: Path) -> None:
    """Seed 1 of Local was only evaluated before fine-tuning: all clients are compared there, and only those there are."""
    done = made(tmp_path, 1, [7, 9])
    local = [made(tmp_path, seed, [5, 6], "method=local") for seed in (1, 2)]
    early = {name: values for name, values in local[0].detail.clients.items() if name != "after"}
    cut = replace(
        local[0], detail=replace(local[0].detail, clients=early), evaluations=[{**e, "after": None} for e in local[0].evaluations[:2]]
    )
    runs = [done, replace(cut, folder=tmp_path / "cut"), replace(local[1], folder=tmp_path / "whole")]
    report([keep(run, tmp_path / "kept") for run in runs], tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "At the last evaluation, before fine-tuning" in text and "Accuracy of every client, seed 1, before fine-tuning" in text


def test_in_80_columns_names_give_way_and_numbers_do_not(tmp_path: Path) -> None:
    """A long name, and an unfinished run whose rounds stand behind its own."""
    shared = made(tmp_path, 1, [7, 9], "method=hfn", "hyper=hfn_head")
    cut = made(tmp_path, 2, [7, 9])
    cut = replace(cut, evaluations=cut.evaluations[:2])
    out = Console(width=80, record=True, highlight=False)
    out.print(terminal_table([shared, cut]))
    text = out.export_text()
    assert "…" not in text and "norm+stem+" in text and "FedAvg (1 of" in text
    numbers = [cell.removesuffix(" %") for run in (shared, cut) for cell in row(run)[1:-1]]
    assert all(cell in text for cell in numbers) and len(numbers) == 16


@pytest.mark.parametrize(("clients", "gap"), [(20, 1), (300, None)])
def test_gaps_leave_room_for_colours(clients: int, gap: int | None, tmp_path: Path) -> None:
    run = made(tmp_path, 1, [7, 9])
    counts = np.ones((clients, 10), int).tolist()
    [trace] = labels_chart(replace(run, detail=Detail(label_counts=counts))).traces
    assert trace.get("xgap") == trace.get("ygap") == gap


def test_only_hfn_as_published_stands_beside_the_papers_hfn(tmp_path: Path) -> None:
    """The paper's 76.78 % are of embeddings of 128 with phi alone sent."""
    cell = ("method=hfn", "dataset=cifar10", "model=resnet", "data.root=/nowhere", "data.fraction=0.2")
    runs = [
        made(tmp_path, 1, [7, 9], *cell, *more)
        for more in (("hypernet.embedding=128",), ("hypernet.embedding=4",), ("hypernet.embedding=128", "hypernet.share=[head]"))
    ]
    groups = [group_by_seed([run])[0] for run in runs]
    known = published(groups)
    assert known == {"HFN": 76.78} and not published(groups[1:])
    assert [measures(g, known)["paper"] for g in groups] == [76.78, None, None]


def named(tmp_path: Path, name: str) -> RunFiles:
    return made(tmp_path, 1, [7, 9], f"run.name='{name}'")


@pytest.mark.parametrize("name", [r"$\frac$", "price $5 to $6", "_hidden", "a|b", "HFN [head]", "a [/b] c"])
def test_a_name_is_shown_as_it_is(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1])
    run = named(tmp_path, name)
    plot_accuracy([run], tmp_path / "a.png", "round")
    [legend] = drawn[0].legends
    [text] = [t.get_text() for t in legend.get_texts()]
    assert text.replace("\u200b", "").replace(r"\$", "$") == name and not text.startswith("_")
    path = keep(run, tmp_path / "kept")
    assert main(["compare", str(path), "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in name.split()), "a long name is folded between its words"
    [line] = [x for x in (tmp_path / "out/comparison.md").read_text().splitlines() if x.startswith("| ") and "before" not in x]
    assert line.startswith(f"| {name.replace('|', chr(92) + '|')} |")


@pytest.mark.parametrize("command", ["compare", "keep"])
def test_a_file_is_no_folder_to_write_to(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = keep(made(tmp_path, 1, [7, 9]), tmp_path / "kept")
    assert main([command, str(path), "-o", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"hyperfed: --out = '{path}' is not valid: must be a folder that can be written")
