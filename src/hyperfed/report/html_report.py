"""``hyperfed report``: runs as one page, and as figures and tables for a paper."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from hyperfed.core import UserError
from hyperfed.core.files import write_text
from hyperfed.report.comparison import KINDS, beside_paper, comparison, distinct, played, published, write_table, write_tables
from hyperfed.report.figures import file_name, local_of, write_figures
from hyperfed.report.html import Block, Caution, Legend, Section, Table, build_page
from hyperfed.report.html_charts import (
    WORST,
    accuracy_chart,
    clients_chart,
    cost_chart,
    each_client,
    gains_chart,
    labels_chart,
    ranked,
    similarity_chart,
)
from hyperfed.report.html_load import load, without_trials
from hyperfed.report.runs import RunFiles
from hyperfed.report.seeds import Group, group_by_seed
from hyperfed.report.similarity import digits, group_of_clients, legible, separation
from hyperfed.report.tables import describe_data
from hyperfed.run.config import flat, identity


def settings(runs: Sequence[RunFiles]) -> dict[str, list[Group]]:
    """Groups of runs by data set, partition and number of clients, in order of appearance; within one, no two have the same name."""
    out: dict[str, list[Group]] = {}
    for group in group_by_seed(runs):
        out.setdefault(describe_data(group.runs[0]), []).append(group)
    return {name: distinct(groups) for name, groups in out.items()}


def kind_of(groups: Sequence[Group]) -> str:
    """What the charts show first: after fine-tuning where it has a curve everywhere, else both, or before alone."""
    points = [len(g.curve("after")[0]) for g in groups]
    return "after" if min(points) > 1 else "both" if max(points) else ""


def section_of(name: str, groups: Sequence[Group], reference: Mapping[str, float] = MappingProxyType({})) -> Section:
    """All there is to see of one setting. ``reference``: the paper's accuracy in % by method's name."""
    runs = [run for g in groups for run in g.runs]
    blocks: list[Block] = [_what(groups)]
    unfinished = [f"{r.label}, seed {r.config['seed']}: {played([r])} rounds" for r in runs if " of " in played([r])]
    if unfinished:
        blocks.append(Caution(f"Unfinished, so no final result: {'; '.join(unfinished)}."))
    blocks.append(Legend([g.label for g in groups], kind_of(groups)))
    compared = [Table("Methods compared", *comparison(groups))]
    if any(g.runs[0].label in reference for g in groups):
        compared.append(Table("Beside Table 2 of the HyperFedNet paper", *beside_paper(groups, reference)))
    blocks.append(Section("Comparison", compared))
    curves = [accuracy_chart(groups, over) for over in ("rounds", "bytes")]
    blocks.append(Section("Accuracy over rounds and payload", [*curves, _curve_table(groups)]))
    blocks.append(Section("Clients", _clients(groups)))
    blocks.append(Section("Labels of the clients", _labels(runs)))
    if any(run.detail.similarity for run in runs):
        blocks.append(Section("Similarity of generated kernels", _similarity(groups)))
    blocks.append(Section("Cost of a round", _cost(groups)))
    blocks.append(Section("Configuration and versions", _configuration(groups)))
    return Section(name, blocks)


def _what(groups: Sequence[Group]) -> str:
    runs = [run for g in groups for run in g.runs]

    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(f"{flat(r.config)[key]}" for r in runs))

    counts = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {len(groups)} method{'s' if len(groups) > 1 else ''}"
    return (
        f"{counts}: {', '.join(g.label for g in groups)}. Seeds {values('seed')}; {values('rounds')} rounds; participation "
        f"{values('participation')}; model {values('model.name')}; {values('local.epochs')} local epochs."
    )


def _curve_table(groups: Sequence[Group]) -> Table:
    rows = []
    for g in groups:
        rounds, y = g.curve("before")
        tuned, z = g.curve("after")
        after = dict(zip(tuned, z.mean(0), strict=True))
        for r, sent, value in zip(rounds, g.megabytes(rounds), y.mean(0), strict=True):
            rows.append([g.label, f"{r}", f"{sent:,.3f}", f"{value:.1f}", f"{after[r]:.1f}" if r in after else "-"])
    return Table("Numbers of both charts", ("method", "round", "MB so far", "before: mean %", "after: mean %"), rows, folded=True)


def _clients(groups: Sequence[Group]) -> list[Block]:
    known = [g for g in groups if len(ranked(g, "before")[0])]
    if not known:
        return ["These runs were kept without the results of each client."]
    kind = KINDS[all(each_client(run, "after").size for g in known for run in g.runs if each_client(run, "before").size)]
    local = local_of(known)
    columns = ["method", "clients", "mean %", "worst 10 %: mean %", "worst %"] + ["gain", "lose", "equal", "mean gain"] * (
        local is not None
    )
    rows = []
    for g in known:
        y, _ = ranked(g, kind)
        row = [g.label, f"{len(y)}", f"{y.mean():.1f}", f"{y[: max(round(WORST * len(y)), 1)].mean():.1f}", f"{y[0]:.1f}"]
        if local:
            d, _ = ranked(g, kind, local)
            compared = len(d) and g is not local
            row += [f"{(d > 0).sum()}", f"{(d < 0).sum()}", f"{(d == 0).sum()}", f"{d.mean():+.1f}"] if compared else ["-"] * 4
        rows.append(row)
    note = f"At the last evaluation, {kind} fine-tuning; clients of all seeds together. Mean %: every client counts the same."
    if local:
        note += f" Gain and lose: number of clients above and below {local.label} of the same seed; mean gain in percentage points."
    charts = [clients_chart(groups), *([gains_chart(groups, local)] if local and len(known) > 1 else [])]
    return [Table("Accuracy of the clients", columns, rows, note), *charts, _client_table(known, kind)]


def _client_table(groups: Sequence[Group], kind: str) -> Table:
    first = next(run for run in groups[0].runs if each_client(run, kind).size)
    seed, tests = first.config["seed"], first.detail.clients["tests"]
    of_seed = {g.label: each_client(run, kind) for g in groups for run in g.runs if run.config["seed"] == seed}
    each = {label: values for label, values in of_seed.items() if values.size}
    rows = [[f"{k}", f"{n}", *("-" if np.isnan(v[k]) else f"{v[k]:.1f}" for v in each.values())] for k, n in enumerate(tests)]
    caption = f"Accuracy of every client, seed {seed}, {kind} fine-tuning (%)"
    return Table(caption, ["client", "test samples", *each], rows, folded=True)


def _labels(runs: Sequence[RunFiles]) -> list[Block]:
    run = next((r for r in runs if r.detail.label_counts), None)
    if run is None:
        return ["These runs were kept without the labels of the clients."]
    counts = run.detail.label_counts
    names = run.detail.class_names or [f"{c}" for c in range(len(counts[0]))]
    rows = [[f"{k}", f"{sum(row):,}", *(f"{n}" for n in row)] for k, row in enumerate(counts)]
    return [labels_chart(run), Table("Samples of each class on each client", ["client", "samples", *names], rows, folded=True)]


def _similarity(groups: Sequence[Group]) -> list[Block]:
    rows: list[list[str]] = []
    charts: list[Block] = []
    for g in groups:
        shown = False
        for run in (r for r in g.runs if r.detail.similarity):
            cosine, group = np.array(run.detail.similarity), group_of_clients(run.config)
            number, places = separation(cosine, group), digits(cosine)
            apart = [*(1 - v for v in number[:3]), number.difference]
            known = ["-" if np.isnan(v) else f"{v:.2e}" if legible(cosine) else "too small" for v in apart]
            rows.append([g.label, f"{run.config['seed']}", *known, f"{places}"])
            if not shown and legible(cosine):
                charts.append(similarity_chart(run, g.label, group, number))
            elif not shown:
                charts.append(f"{g.label}, seed {run.config['seed']}: cosines kept with {places} digits, too few to show a difference.")
            shown = True
    columns = ("method", "seed", "all pairs", "within a group", "between groups", "between minus within", "digits kept")
    note = "Mean of 1 - cosine of the kernels generated for two different clients: 0 where they are the same. Groups: clients of the same "
    note += "classes (partition 'groups' only)."
    return [Table("Mean difference of generated kernels", columns, rows, note), *charts]


def _cost(groups: Sequence[Group]) -> list[Block]:
    if not any(g.runs[0].detail.roles for g in groups):
        return ["No traffic by role of tensor is known of these runs: they sent nothing, or were kept without it."]
    chart = cost_chart(groups)
    names = [t["name"] for t in chart.traces]
    rows = [[g.label, *(f"{g.runs[0].detail.roles.get(n, 0):,}" for n in names)] for g in groups if g.runs[0].detail.roles]
    return [chart, Table("Elements by role", ["method", *names], rows, folded=True)]


def _configuration(groups: Sequence[Group]) -> list[Block]:
    each: list[dict[str, Any]] = [identity(g.runs[0].config) for g in groups]
    keys = sorted({k for c in each for k in c} - {"seed"})
    differing = [k for k in keys if any(c.get(k) != each[0].get(k) for c in each)]
    blocks: list[Block] = []
    if differing:
        rows = []
        for k in differing:
            users: dict[str, list[str]] = {}
            for g, c in zip(groups, each, strict=True):
                users.setdefault(f"{c[k]}" if k in c else "", []).append(g.label)
            rows += [[k, value, ", ".join(labels)] for value, labels in users.items() if value]
        note = "A method that is not named beside a setting does not have it."
        blocks.append(Table("Settings in which the methods differ", ("setting", "value", "methods"), rows, note, text=True))
    same = [[k, f"{each[0][k]}"] for k in keys if k not in differing]
    blocks.append(Table("Settings they share", ("setting", "value"), same, folded=True))
    runs = []
    for g in groups:
        for run in g.runs:
            versions, hardware = run.facts.get("versions", {}), run.facts.get("hardware", {})
            used = ", ".join(f"{k} {v}" for k, v in (versions | hardware).items())
            runs.append([run.folder.stem, g.label, f"{run.config['seed']}", played([run]), run.facts["identity"], used])
    columns = ("run", "method", "seed", "rounds", "identity", "versions and machine")
    return [*blocks, Table("Runs", columns, runs, "Identity: the same for runs of the same settings and seed.", folded=True)]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file that cannot be written is told by ``path``, as the user gave it: the temporary file beside it means nothing to a reader."""
    try:
        yield
    except OSError as problem:
        raise UserError(f"the report could not be written: {str(path)!r}: {problem.strerror or problem}.") from problem


def report(
    paths: Sequence[str | Path],
    out: Path,
    *,
    title: str = "HyperFed report",
    figures: Path | None = None,
    tables: Path | None = None,
) -> tuple[list[Path], list[str]]:
    """Write the page (and figures, tables) of ``paths``; returns what was written and a sentence for each run left out."""
    runs, damaged = load(paths)
    from hyperfed.evidence.store import same_version  # it brings Hydra, which takes its time

    results, trials = without_trials(runs)
    sections = settings(results)
    for groups in sections.values():
        same_version([run for g in groups for run in g.runs])
    lead: list[Block] = []
    if damaged:
        lead.append(Caution(f"{len(damaged)} of {len(damaged) + len(runs)} files are left out. {' '.join(damaged)}"))
    if trials:
        lead.append(Caution(trials))
    page = build_page(title, [section_of(name, groups, published(groups)) for name, groups in sections.items()], lead)
    with writing(out):
        write_text(out, page)
    written = [out]
    if figures:
        with writing(figures):
            written += write_figures(sections, figures)
    if tables:
        with writing(tables):
            for name, groups in sections.items():
                several = len(sections) > 1
                written += write_tables(groups, published(groups), tables / file_name(name, several, "comparison"), name)
                for what, blocks in (("clients", _clients(groups)), ("cost", _cost(groups))):
                    for table, stem in zip((b for b in blocks if isinstance(b, Table)), (what, f"{what}_each"), strict=False):
                        made = replace(table, caption=f"{table.caption}: {name}")
                        written += write_table(made, tables / file_name(name, several, stem))
    return written, damaged
