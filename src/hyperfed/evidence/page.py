"""What a reproduction leaves: tables in three formats, pictures, one page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from hyperfed.core.files import write_text
from hyperfed.evidence import figures, tables
from hyperfed.evidence.costs import table3, table4
from hyperfed.evidence.plans import Cell
from hyperfed.evidence.store import Store
from hyperfed.evidence.tables import Entry, accuracy_rows, entries
from hyperfed.report.comparison import as_csv, write_table
from hyperfed.report.html import Block, Caution, Image, Section, Table, build_page
from hyperfed.report.html_report import section_of, settings

TITLES = {
    "table2": "Table 2: personalised accuracy of every method",
    "table3": "Table 3: traffic until each level of accuracy",
    "table4": "Table 4: methods over the hypernetwork",
    "fig3": "Figure 3: do clients with like data get like kernels?",
    "fig5": "Figure 5: accuracy and traffic over the size of the embeddings",
    "readings": "What HFN's clients keep at home: two readings of the paper",
}


def result(experiment: str, found: dict[Cell, Entry], pictures: Path, kind: str = "png") -> tuple[list[Table], list[Image]]:
    """The tables and pictures of a table or figure of the paper."""
    match experiment:
        case "table2":
            picture = figures.table2(found, pictures / f"table2.{kind}")
            alt = "accuracy of every method, ours and the paper's joined by a line, a panel a data set and partition"
            return tables.table2(found), [Image(picture, alt)] if picture else []
        case "table3":
            picture, alt = figures.accuracy_over_cost(found, pictures / f"table3.{kind}"), "accuracy over elements sent, one line a method"
            table = table3(found)
        case "table4":
            return [table4(found)], []
        case "readings":
            return [tables.readings(found)], []
        case "fig3":
            picture, alt = figures.fig3(found, pictures / f"fig3.{kind}"), "heat maps of the similarity of generated kernels, groups framed"
            table = figures.fig3_table(found)
        case _:
            picture, alt = figures.fig5(found, pictures / f"fig5.{kind}"), "accuracy and traffic over the embedding size"
            table = figures.fig5_table(found)
    return [table], [Image(picture, alt)] if picture else []


def completeness(found: dict[Cell, Entry]) -> str:
    """``31 of 112 cells complete``. A cell of Table 4 needs the method alone and over the hypernetwork."""
    needed: dict[Cell, tuple[Entry, ...]] = {
        c: (e, found[replace(c, row=c.row.removeprefix("HFN+"), experiment="table2")]) for c, e in found.items() if c.row.startswith("HFN+")
    }
    needed = needed or {c: (e,) for c, e in found.items()}
    whole = sum(not any(e.state for e in both) for both in needed.values())
    return f"{whole} of {len(needed)} cells complete (scale {next(iter(found)).scale})"


def show(experiment: str, cells: Sequence[Cell], store: Store, work: Path, out: Path, console: Console) -> None:
    """Print the tables; write ``OUT/<experiment>-<scale>/``: index.html, one .md, .tex and .csv per table, pictures."""
    found = entries(cells, store, work)
    folder = out / f"{experiment}-{cells[0].scale}"
    made, images = result(experiment, found, folder)
    result(experiment, found, folder, "svg")
    for i, table in enumerate(made):
        console.print(terminal(table))
        stem = experiment + (f"-{i + 1}" if len(made) > 1 else "")
        write_table(table, folder / stem)
    runs_of_cells = accuracy_rows(found)
    write_text(folder / f"{experiment}-cells.csv", as_csv([list(runs_of_cells[0]), *(list(row.values()) for row in runs_of_cells)]))
    lead: list[Block] = [completeness(found), tables.SCALES[cells[0].scale]]
    if store.damaged:
        names = ", ".join(sorted(store.damaged))
        lead.append(Caution(f"Damaged files, left out and counted as not run: {len(store.damaged)} ({names})."))
    runs = [run for entry in found.values() for run in entry.runs]
    detail = [section_of(name, groups) for name, groups in settings(runs).items()] if runs else []
    write_text(folder / "index.html", build_page(TITLES[experiment], [Section("Ours and the paper's", [*images, *made]), *detail], lead))
    console.print(f"{completeness(found)}; page, tables and pictures: {folder}")


def terminal(table: Table) -> TerminalTable:
    """A table for the terminal."""
    made = TerminalTable(title=table.caption, caption=table.note, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    longest = max((len(row[0]) for row in table.rows), default=0)
    for i, name in enumerate(table.columns):
        least = None if i else min(longest, 16)
        made.add_column(name.replace(": ", ":\n"), justify="right" if i else "left", overflow="fold", min_width=least)
    for row in table.rows:
        made.add_row(*map(escape, row))
    return made
