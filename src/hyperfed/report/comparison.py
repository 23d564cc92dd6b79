"""The comparison of methods over seeds: as text cells for a page, as Markdown and LaTeX, and as CSV with every digit."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hyperfed.core.files import write_text
from hyperfed.evidence import paper
from hyperfed.report.html import Table
from hyperfed.report.runs import RunFiles
from hyperfed.report.seeds import Group, deviation, mean_and_spread
from hyperfed.report.tables import human_bytes, markdown
from hyperfed.run.config import identity

KINDS = ("before", "after")
HEADINGS = {
    "method": "method",
    "before": "before: mean %",
    "before_p10": "before: p10 %",
    "after": "after: mean %",
    "after_p10": "after: p10 %",
    "weighted": "after: weighted %",
    "paper": "paper %",
    "difference": "minus paper, weighted",
    "elements": "elements / client, round",
    "bytes_per_round": "bytes / client, round",
    "bytes_total": "bytes in all",
    "cpu_seconds": "CPU s",
    "rounds": "rounds",
    "seeds": "seeds",
}
NOTE = (
    "Accuracy of all clients' personalised models on their own test data, before and after fine-tuning: mean and 10th percentile over "
    "clients, unweighted; ± is the sample standard deviation over seeds. Elements: trained parameters up + down of one client in a round. "
    "Accuracy, bytes in all and CPU s are those of the last round that all seeds have evaluated."
)
AGAINST = ("weighted", "paper", "difference")
PAPER_NOTE = (
    "Weighted: after fine-tuning, every test sample counts the same, as in Table 2 of the HyperFedNet paper; minus paper: that minus the "
    "paper's figure, in percentage points. The paper's scale (100 clients, the networks of its Table 1, 90 or 150 rounds, all of the data) "
    "may differ from that of these runs."
)


def as_published(run: RunFiles) -> bool:
    """Whether a hypernetwork of the run is Table 2's: the data set's size of embeddings, and nothing shared but phi."""
    hyper = run.config.get("hypernet")
    return not hyper or (hyper.get("embedding") == run.config["dataset"].get("paper", {}).get("embedding") and not hyper.get("share"))


def published(groups: Sequence[Group]) -> dict[str, float]:
    """Table 2's accuracy in % by method's name, for runs on its data sets and partitions (IID, Dirichlet 0.5); empty for any other."""
    out: dict[str, float] = {}
    for run in (g.runs[0] for g in groups if as_published(g.runs[0])):
        partition = run.config["partition"]
        split = {("iid", None): "IID", ("dirichlet", 0.5): "non-IID"}.get((partition["name"], partition.get("alpha")))
        if split and (value := paper.accuracy(run.label, run.config["dataset"]["name"], split)) is not None:
            out[run.label] = value
    return out


def differences(run: RunFiles, mates: Sequence[RunFiles], but: str = "") -> str:
    """The settings in which ``mates``, of which the run is one, differ, and the run's own: ``model.name mlp, seed 1``; not ``but``.

    Where a choice differs (model.name), what belongs to it is not named, too.
    """
    own, all_of = identity(run.config), [identity(mate.config) for mate in mates]
    keys = sorted(k for k in {k for m in all_of for k in m} - {but} if any(m.get(k) != own.get(k) for m in all_of))
    chosen = {k.removesuffix(".name") for k in keys if k.endswith(".name")}
    return ", ".join(f"{k} {own.get(k, '-')}" for k in keys if k.endswith(".name") or k.partition(".")[0] not in chosen)


def distinct(groups: Sequence[Group]) -> list[Group]:
    """Groups of one name get the settings in which they differ added to it."""
    out = []
    for group in groups:
        extra = differences(group.runs[0], [g.runs[0] for g in groups if g.label == group.label], but="seed")
        out.append(replace(group, label=f"{group.label} ({extra})") if extra else group)
    return out


def told_apart(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """Runs of one name get the settings in which they differ added to it, the seed among them."""
    out = []
    for run in runs:
        extra = differences(run, [mate for mate in runs if mate.label == run.label])
        named = {**run.config, "run": {**run.config["run"], "name": f"{run.label} ({extra})"}}
        out.append(replace(run, config=named) if extra else run)
    return out


def played(runs: Sequence[RunFiles]) -> str:
    """``30``, or ``12 of 30`` where a run is unfinished: the least of the runs counts."""
    run = min(runs, key=lambda r: r.last["round"] / max(r.config["rounds"], 1))
    number, planned = run.last["round"], run.config["rounds"]
    return f"{number}" if number >= planned else f"{number} of {planned}"


def measures(group: Group, reference: Mapping[str, float] | None = None) -> dict[str, Any]:
    """One row as numbers: accuracies in %, bytes and CPU seconds at the last round that all seeds have evaluated; None without a value."""
    out: dict[str, Any] = {"method": group.label}
    shown = [(name, kind, value) for kind in KINDS for name, value in ((kind, "mean"), (f"{kind}_p10", "p10"))]
    for name, kind, value in (*shown, ("weighted", "after", "weighted")):
        _, y = group.curve(kind, value)
        out |= {name: float(y[:, -1].mean()) if y.size else None, f"{name}_std": deviation(y[:, -1]) if y.size else None}
    first = group.runs[0]
    theirs, ours = (reference or {}).get(first.label) if as_published(first) else None, out["weighted"]
    out |= {"paper": theirs, "difference": None if theirs is None or ours is None else ours - theirs}

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    runs, (rounds, _) = group.runs, group.curve("before")
    out |= {"elements": mean([r.per_round.trainable for r in runs]), "bytes_per_round": mean([r.per_round.bytes for r in runs])}
    ends = [e for r in runs for e in r.evaluations if rounds and e["round"] == rounds[-1]]
    for name, of in (("bytes_total", "bytes"), ("cpu_seconds", "cpu_seconds")):
        out[name] = mean([e[of] for e in ends]) if ends else None
    return out | {"rounds": played(runs), "seeds": len(runs)}


def cell(row: Mapping[str, Any], name: str) -> str:
    """One number as text; accuracies with their spread over seeds."""
    value = row[name]
    if value is None:
        return "-"
    if f"{name}_std" in row:
        return mean_and_spread(value, row[f"{name}_std"])
    if name in ("bytes_per_round", "bytes_total"):
        return human_bytes(value)
    forms = {"paper": "{:.2f}", "difference": "{:+.1f}", "elements": "{:,.0f}", "cpu_seconds": "{:,.1f}"}
    return forms.get(name, "{}").format(value)


Cells = tuple[list[str], list[list[str]], str]


def comparison(groups: Sequence[Group], reference: Mapping[str, float] | None = None) -> Cells:
    """Headings, rows of cells and the note below; the columns of the paper's figures only where ``reference`` has some."""
    rows = [measures(g, reference) for g in groups]
    against = any(row["paper"] is not None for row in rows)
    names = [n for n in HEADINGS if against or n not in AGAINST]
    return _cells(rows, names, NOTE + (f" {PAPER_NOTE}" if against else ""))


def beside_paper(groups: Sequence[Group], reference: Mapping[str, float]) -> Cells:
    """The paper's figures alone, as a table narrow enough for paper: those methods of which there is one."""
    rows = [measures(g, reference) for g in groups]
    return _cells([row for row in rows if row["paper"] is not None], ["method", *AGAINST, "rounds", "seeds"], PAPER_NOTE)


def _cells(rows: Sequence[Mapping[str, Any]], names: Sequence[str], note: str) -> Cells:
    return [HEADINGS[n] for n in names], [[cell(row, n) for n in names] for row in rows], note


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"} | {c: f"\\{c}" for c in "&%$#_{}"}


def latex(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A LaTeX table with the rules of booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("--" if c == "-" else "".join(LATEX.get(x, x) for x in c) for c in cells) + r" \\"

    head = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule", line(columns), r"\midrule"]
    tail = [r"\bottomrule", r"\end{tabular}", rf"\caption{{{''.join(LATEX.get(x, x) for x in caption)}}}", r"\end{table}"]
    return "\n".join(["% needs \\usepackage{booktabs}", *head, *map(line, rows), *tail]) + "\n"


def write_all(contents: Mapping[str, str], stem: Path) -> list[Path]:
    """Texts by their ending as ``stem``.md, ...; returns their paths."""
    paths = [stem.with_name(stem.name + ending) for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_text(path, content)
    return paths


def as_csv(rows: Sequence[Sequence[Any]]) -> str:
    """Lines of values, commas between them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_table(table: Table, stem: Path) -> list[Path]:
    """``stem``.md, .tex and .csv, caption and note with the first two; returns their paths."""
    contents = {
        ".md": f"{table.caption}\n\n{markdown(table.columns, table.rows)}\n{table.note}\n",
        ".tex": latex(table.columns, table.rows, f"{table.caption}. {table.note}" if table.note else table.caption),
        ".csv": as_csv([table.columns, *table.rows]),
    }
    return write_all(contents, stem)


def write_tables(groups: Sequence[Group], reference: Mapping[str, float] | None, stem: Path, caption: str) -> list[Path]:
    """``stem``.md, .tex and .csv; returns their paths."""
    columns, rows, note = comparison(groups, reference)
    numbers = [measures(g, reference) for g in groups]
    plain = as_csv([list(numbers[0]), *(list(row.values()) for row in numbers)])
    return write_all({".md": f"{markdown(columns, rows)}\n{caption}. {note}\n", ".tex": latex(columns, rows, caption), ".csv": plain}, stem)
