"""The report's pictures as files: PNG and SVG for a paper."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hyperfed.report.comparison import KINDS
from hyperfed.report.html_charts import WORST, cost_chart, ranked
from hyperfed.report.labels import plot_label_distribution
from hyperfed.report.plots import COLOURS, DASHES, finished, headed, legend_below, literal
from hyperfed.report.seeds import Group, plot_groups
from hyperfed.report.similarity import group_of_clients, plot_similarity

PER_FIGURE = 8  # more curves than colours cannot be told apart on paper
HATCHES = ("", "//", "xx", "\\\\", "--", "||", "++", "..")


def local_of(groups: Sequence[Group]) -> Group | None:
    """The first group of clients that train alone, without a hypernetwork."""
    alone = (g for g in groups if g.runs[0].config["method"]["name"] == "local" and not g.runs[0].config.get("hypernet"))
    return next(alone, None)


def file_name(prefix: str, several: bool, what: str) -> str:
    """``what``, with the setting before it where there are several."""
    slug = "".join(c if c.isalnum() else "_" for c in prefix.lower()).strip("_")
    return f"{'_'.join(filter(None, slug.split('_')))}-{what}" if several else what


def plot_clients(groups: Sequence[Group], kind: str, path: Path, title: str, local: Group | None = None) -> Path:
    """Every client's accuracy ``kind`` ("before" or "after") fine-tuning, sorted, the worst tenth shaded; or its gain over ``local``."""
    figure = Figure(figsize=(6.8, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    for i, group in enumerate(groups):
        y, _ = ranked(group, kind, local)
        x = 100 * (np.arange(len(y)) + 0.5) / max(len(y), 1)
        dash = DASHES[(i // len(COLOURS)) % len(DASHES)]
        axes.plot(x, y, dash, color=COLOURS[i % len(COLOURS)], label=literal(group.label), drawstyle="steps-mid", linewidth=1.6)
    if local is None:
        axes.axvspan(0, 100 * WORST, color="#888888", alpha=0.18, linewidth=0)
        axes.set(xlabel="clients from worst to best (%)", ylabel=f"accuracy {kind} fine-tuning (%)")
    else:
        axes.axhline(0, color="#333333", linewidth=1)
        gain = f"gain over {local.label}, {kind} fine-tuning (points)"
        axes.set(xlabel="clients from greatest loss to greatest gain (%)", ylabel=literal(gain))
    axes.set_xlim(0, 100)
    headed(axes, title + ("\nshaded: the worst 10 % of the clients" if local is None else "\nbelow zero: better off alone"))
    return finished(axes, path)


def plot_cost(groups: Sequence[Group], path: Path, title: str) -> Path:
    """Elements up + down of one client in one round, stacked by role of tensor: the page's chart."""
    bars = cost_chart(groups).traces
    figure = Figure(figsize=(6.8, 1.2 + 0.34 * len(bars[0]["y"])), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    names, left = [literal(name) for name in bars[0]["y"]], np.zeros(len(bars[0]["y"]))
    for i, bar in enumerate(bars):
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "hatch": HATCHES[i % len(HATCHES)],
            "edgecolor": "white",
            "linewidth": 0.5,
        }
        axes.barh(range(len(names)), bar["x"], left=left, label=bar["name"], **style)
        left = left + np.array(bar["x"])
    axes.set_yticks(range(len(names)), labels=names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("elements up + down, one client and round")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="x", labelsize=8)
    headed(axes, title)
    axes.spines[["top", "right"]].set_visible(False)
    legend_below(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def write_figures(sections: Mapping[str, Sequence[Group]], folder: Path) -> list[Path]:
    """Every picture of the report as PNG and SVG; returns their paths."""
    paths = []
    for name, groups in sections.items():
        for ending in ("png", "svg"):

            def at(what: str, name: str = name, ending: str = ending) -> Path:
                return folder / f"{file_name(name, len(sections) > 1, what)}.{ending}"

            for start in range(0, len(groups), PER_FIGURE):
                part, number = groups[start : start + PER_FIGURE], f"_{start // PER_FIGURE + 1}" if len(groups) > PER_FIGURE else ""
                for kind in KINDS:
                    curves = [g for g in part if len(g.curve(kind)[0]) > 1]
                    paths += [
                        plot_groups(curves, at(f"accuracy_{kind}_over_{over}{number}"), kind, name, over)
                        for over in ("rounds", "bytes")
                        if curves
                    ]
                    if known := [g for g in part if len(ranked(g, kind)[0])]:
                        paths.append(plot_clients(known, kind, at(f"clients_{kind}{number}"), name))
                    local = local_of(groups)
                    if local and (gaining := [g for g in part if g is not local and len(ranked(g, kind, local)[0])]):
                        paths.append(plot_clients(gaining, kind, at(f"gains_{kind}{number}"), name, local))
            if any(g.runs[0].detail.roles for g in groups):
                paths.append(plot_cost(groups, at("cost"), name))
            paths += _maps(groups, name, at)
    return paths


def _maps(groups: Sequence[Group], name: str, at: Callable[[str], Path]) -> list[Path]:
    """Heat maps: labels, and the similarity of generated kernels."""
    paths = []
    if counted := next((g.runs[0] for g in groups if g.runs[0].detail.label_counts), None):
        paths.append(plot_label_distribution(np.array(counted.detail.label_counts), counted.detail.class_names, at("labels")))
    alike = [g for g in groups if g.runs[0].detail.similarity]
    for i, g in enumerate(alike):
        run = g.runs[0]
        where = at(f"similarity_{i + 1}" if len(alike) > 1 else "similarity")
        caption = f"{g.label}, {name}, seed {run.config['seed']}"
        paths.append(plot_similarity(np.array(run.detail.similarity), group_of_clients(run.config), where, caption))
    return paths
