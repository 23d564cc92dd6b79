"""How labels are distributed over clients, as a picture and as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

BLUE, GREY, INK, EMPTY = "#0072B2", "#9AA3AB", "#30363C", "#F4F6F8"
SHADES = LinearSegmentedColormap.from_list("shades", ["#CFE3F2", "#5FA5D3", "#0072B2", "#08306B"])
MAX_BUBBLES_ACROSS = 40
MAX_NAMES = 130
MAX_TABLE_CLASSES = 12


def plot_label_distribution(counts: np.ndarray, class_names: Sequence[str], path: str | Path) -> Path:
    """Draw how many samples of each class each client has and write it as a PNG, or as the path's ending says; returns its path.

    ``counts`` is int [num_clients, num_classes]. The longer of clients and classes runs across. Up to 40 across, the area of a bubble
    is its number of samples; beyond, cells are shaded, on a square-root scale. Bars give the totals of each client and each class.
    """
    clients_across = counts.shape[0] >= counts.shape[1]
    grid = counts.T if clients_across else counts
    rows, columns = grid.shape
    column_inches = min(13.0 / columns, 0.42)
    row_inches = float(np.clip(4.5 / rows, 0.115, 0.4)) if rows <= MAX_NAMES else 13.0 / rows
    width, height = max(column_inches * columns, 4.5), max(row_inches * rows, 1.2)
    figure = Figure(figsize=(width + 3.0, height + 2.2), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex="col", sharey="row", width_ratios=[width, 0.9], height_ratios=[0.75, height])
    top, corner, main, side = axes.ravel()
    corner.set_axis_off()
    if columns <= MAX_BUBBLES_ACROSS:
        _bubbles(main, grid, 72 * min(width / columns, height / rows), corner)
    else:
        _shades(main, grid, corner)
    names = {"Client": [str(i) for i in range(counts.shape[0])], "Class": list(class_names)}
    across, down = ("Client", "Class") if clients_across else ("Class", "Client")
    _ticks(main, "x", across, names[across], width / columns)
    _ticks(main, "y", down, names[down], height / rows)
    main.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    _totals(top, grid.sum(axis=0), across, vertical=True)
    _totals(side, grid.sum(axis=1), down, vertical=False)
    sizes = ((counts.sum(), "sample", "samples"), (counts.shape[1], "class", "classes"), (counts.shape[0], "client", "clients"))
    samples, classes, clients = (f"{int(n):,} {one if n == 1 else many}" for n, one, many in sizes)
    figure.suptitle(f"{samples} of {classes} on {clients}", x=0.01, ha="left", fontsize=12, color=INK, fontweight="bold")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format=Path(path).suffix[1:] or "png")
    return Path(path)


def _bubbles(axes: Axes, grid: np.ndarray, cell_points: float, legend_axes: Axes) -> None:
    """Discs whose area is the count, the largest as wide as a cell; ``legend_axes`` gets two of them as the scale."""
    down, across = np.nonzero(grid)
    largest = max(int(grid.max()), 1)
    axes.set_axisbelow(True)
    axes.grid(color="#E9ECEF", linewidth=0.6)
    axes.scatter(across, down, s=(0.94 * cell_points) ** 2 * grid[down, across] / largest, color=BLUE, linewidths=0)
    magnitude = 10 ** int(np.log10(largest))
    upper = next(step * magnitude for step in (5, 2, 1) if step * magnitude <= largest)
    widths = {value: 0.94 * cell_points * (value / largest) ** 0.5 for value in sorted({upper, max(upper // 5, 1)}, reverse=True)}
    for value, wide in widths.items():
        legend_axes.scatter([], [], s=wide**2, color=BLUE, linewidths=0, label=f"{value:,}" + (" sample" if value == 1 else " samples"))
    room = sum(widths.values()) / 2 / 8  # legends are laid out in font sizes and do not look at the size of the discs
    legend_axes.legend(
        loc="center left",
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        labelspacing=max(room - 0.6, 0.5),
        handletextpad=room / 2,
        borderpad=room / 2,
    )


def _shades(axes: Axes, grid: np.ndarray, legend_axes: Axes) -> None:
    """Cells shaded by their count, empty ones pale; ``legend_axes`` gets the scale."""
    rows, columns = grid.shape
    largest = max(int(grid.max()), 2)
    axes.set_facecolor(EMPTY)
    scale = PowerNorm(0.5, vmin=1, vmax=largest)
    colours = axes.imshow(np.ma.masked_equal(grid, 0), aspect="auto", cmap=SHADES, norm=scale, interpolation="nearest")
    if rows <= MAX_NAMES:
        axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=0.8)
    if columns <= MAX_NAMES:
        axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=0.8)
    bar = axes.figure.colorbar(colours, cax=legend_axes.inset_axes((0.0, 0.35, 1.0, 0.2)), orientation="horizontal")
    bar.set_ticks([1, largest], labels=["1", f"{largest:,}"])
    bar.ax.tick_params(length=0, labelsize=7, labelcolor=INK)
    bar.ax.set_title("samples", fontsize=8, color=INK)
    bar.outline.set_visible(False)


def _ticks(axes: Axes, side: str, what: str, names: Sequence[str], inches: float) -> None:
    """Label the rows or columns, each ``inches`` wide: every class by its name, clients by their number, thinned out to 40."""
    axis = axes.xaxis if side == "x" else axes.yaxis
    named = what == "Class" and len(names) <= MAX_NAMES
    step = 1 if named else next(s for m in range(9) for s in (10**m, 2 * 10**m, 5 * 10**m) if len(names) / s <= 40)
    size = float(np.clip(72 * inches * step * 0.8, 5.0, 9.0))
    if named:
        turned = side == "x" and max(map(len, names)) * size * 0.62 > 72 * inches
        axis.set_ticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=90 if turned else 0)
    else:
        axis.set_ticks(range(0, len(names), step))
    axis.set_tick_params(labelsize=size, length=0, labelcolor=INK)
    axis.set_label_text(what, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _totals(axes: Axes, totals: np.ndarray, what: str, *, vertical: bool) -> None:
    """Bars of the total of each column or row."""
    orientation: Literal["horizontal", "vertical"] = "vertical" if vertical else "horizontal"
    if len(totals) > MAX_NAMES:
        axes.stairs(totals, np.arange(len(totals) + 1) - 0.5, orientation=orientation, fill=True, color=GREY)
    elif vertical:
        axes.bar(np.arange(len(totals)), totals, width=0.8, color=GREY)
    else:
        axes.barh(np.arange(len(totals)), totals, height=0.8, color=GREY)
    set_label = axes.set_ylabel if vertical else axes.set_xlabel
    set_label(f"per {what.lower()}", fontsize=8, color=INK)
    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_major_locator(MaxNLocator(3 if vertical else 2, integer=True))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(length=0, labelsize=7, labelcolor=INK)
    other = axes.xaxis if vertical else axes.yaxis
    other.set_tick_params(labelbottom=False, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def label_table(counts: np.ndarray, class_names: Sequence[str], max_clients: int = 100) -> str:
    """The samples of each client as a Markdown table: every class of up to 12, else the number of classes and the most frequent.

    ``counts`` is int [num_clients, num_classes]. The last row is the total of all clients; after ``max_clients`` rows the rest is
    left out, with a row that says how many.
    """
    wide = counts.shape[1] > MAX_TABLE_CLASSES
    head = ["Client", "Samples", *(["Classes", "Most frequent"] if wide else class_names)]
    shown = [(str(i), row) for i, row in enumerate(counts[:max_clients])]
    table = [head, *(_table_row(name, row, class_names, wide) for name, row in shown)]
    if len(counts) > max_clients:
        table.append([f"({len(counts) - max_clients:,} more)", *[""] * (len(head) - 1)])
    table.append(_table_row("all", counts.sum(axis=0), class_names, wide))
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    right = [i not in (0, 3) if wide else i != 0 for i in range(len(head))]
    lines = [
        "| " + " | ".join(f"{text:>{w}}" if r else f"{text:<{w}}" for text, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in table
    ]
    rule = "| " + " | ".join("-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _table_row(name: str, counts: np.ndarray, class_names: Sequence[str], wide: bool) -> list[str]:
    total = f"{int(counts.sum()):,}"
    if not wide:
        return [name, total, *(f"{int(count):,}" for count in counts)]
    most = [i for i in np.argsort(-counts, kind="stable")[:5] if counts[i]]
    return [name, total, str(int((counts > 0).sum())), ", ".join(f"{class_names[i]} {int(counts[i]):,}" for i in most)]
