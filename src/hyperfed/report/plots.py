"""Accuracy over rounds and over bytes."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from hyperfed.report.runs import RunFiles
from hyperfed.report.tables import title

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")  # Okabe-Ito
DASHES = ("-", "--", "-.", ":")


def literal(label: str) -> str:
    """A label as it is written: ``$`` is no formula, and a leading ``_`` hides no line from the legend."""
    label = label.replace("$", r"\$")
    return f"\u200b{label}" if label.startswith("_") else label


def headed(axes: Axes, text: str) -> None:
    """A title over the axes whose long lines are broken, so that the picture's edge cuts nothing off."""
    room = int(15 * axes.figure.get_figure(root=True).get_figwidth()) - 12
    axes.set_title("\n".join(fill(line, room) for line in text.split("\n")), fontsize=8, loc="left")


def legend_below(axes: Axes) -> None:
    """The legend below the axes, where it covers no line; the figure grows by its height."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels), default=0) > 42 else 2 if max(map(len, labels), default=0) > 22 else 4
    figure = axes.figure.get_figure(root=True)
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)


def finished(axes: Axes, path: Path) -> Path:
    """A figure of these axes alone, with a grid and its legend below, written as ``path``."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend_below(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.get_figure(root=True).savefig(path)
    return path


def plain_powers(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10, ... written out."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_locator(NullLocator())


def silence(run: RunFiles) -> str:
    """Why a run has no payload."""
    return "pools the data of all clients" if run.config["method"]["name"] == "centre" else "sends nothing"


def plot_accuracy(runs: Sequence[RunFiles], path: Path, over: str) -> Path:
    """Mean personalised accuracy of all clients before fine-tuning ``over`` "round" or "bytes", rings: after it."""
    figure = Figure(figsize=(6.4, 4.0), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    for i, run in enumerate(runs):
        lines = [e for e in run.evaluations if over == "round" or e["bytes"] > 0]
        if not lines:
            continue  # nothing was sent: no place on an axis of bytes
        x = [e["round"] if over == "round" else e["bytes"] / 1e6 for e in lines]
        y = [100 * e["before"]["mean"] for e in lines]
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[(i // len(COLOURS)) % len(DASHES)]
        axes.plot(x, y, dash, color=colour, label=literal(run.label), linewidth=1.8, marker=".", markersize=4)
        tuned = [(a, 100 * e["after"]["mean"]) for a, e in zip(x, lines, strict=True) if e["after"]]
        axes.plot(*zip(*tuned, strict=True), "o", color=colour, fillstyle="none", markersize=8) if tuned else None
    silent = [run for run in runs if over == "bytes" and run.last["bytes"] == 0]
    for run in silent:
        value = 100 * (run.last["after"] or run.last["before"])["mean"]
        axes.axhline(value, color="#777777", linestyle=":", label=literal(f"{run.label} ({silence(run)})"))
    axes.set_xlabel("round" if over == "round" else "payload sent so far, all clients (MB)")
    if over == "bytes":
        axes.set_xscale("log")
        plain_powers(axes.xaxis)
    axes.set_ylabel("mean personalised accuracy (%)")
    headed(axes, title(runs) + "\nlines: before fine-tuning, rings: after")
    return finished(axes, path)
