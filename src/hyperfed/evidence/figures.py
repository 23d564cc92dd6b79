"""Figures 3 and 5 of the paper, and Tables 2 and 3 as pictures, from the store."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hyperfed.evidence.plans import TABLE2, Cell
from hyperfed.evidence.tables import ACCURACY, SCALES, SPREAD, Entry, caption, number, published, spread
from hyperfed.report.html import Table
from hyperfed.report.plots import COLOURS, DASHES
from hyperfed.report.seeds import deviation
from hyperfed.report.similarity import borders, distance, group_of_clients, separation

FREE_EMBEDDINGS = "hypernet.pace.embed=1"
THEIRS: dict[str, Any] = {"color": COLOURS[1], "markerfacecolor": "none", "markersize": 5}
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8, "ncols": 2}


def canvas(columns: int, size: tuple[float, float], draw: Callable[..., None], path: Path, rows: int = 1) -> Path:
    """A figure of ``rows`` x ``columns`` axes that ``draw`` fills, written as ``path``."""
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, figure.subplots(rows, columns, squeeze=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def table2(found: dict[Cell, Entry], path: Path) -> Path | None:
    """Table 2 as a picture: each method's accuracy and the paper's, joined by a line; a panel a data set and partition."""
    panels = list(dict.fromkeys((c.split, c.dataset) for c, e in found.items() if e.runs))
    if not panels:
        return None
    splits, datasets = list(dict.fromkeys(s for s, _ in panels)), list(dict.fromkeys(d for _, d in panels))
    methods = [m for m in TABLE2 if any(c.row == m and e.runs for c, e in found.items())][::-1]

    def draw(figure: Figure, grid: np.ndarray) -> None:
        for axes in grid.flat:
            axes.set_axis_off()
        for split, data in panels:
            axes = grid[splits.index(split), datasets.index(data)]
            axes.set_axis_on()
            _plain(axes)
            for cell, entry in found.items():
                if (cell.split, cell.dataset) == (split, data) and entry.runs:
                    _ours_and_theirs(axes, methods.index(cell.row), entry, published(cell))
            axes.set_title(f"{data} {split}", fontsize=9, loc="left")
            names = methods if datasets.index(data) == 0 or (split, datasets[0]) not in panels else [""] * len(methods)
            axes.set_yticks(range(len(methods)), labels=names, fontsize=8)
            axes.set_ylim(-0.6, len(methods) - 0.4)
            axes.set_xlabel("accuracy after fine-tuning (%)", fontsize=8)
            axes.tick_params(axis="x", labelsize=8)
        signs = [Line2D([], [], linestyle="", marker="o", color=COLOURS[0]), Line2D([], [], linestyle="", marker="D", **THEIRS)]
        figure.legend(signs, ["ours (hollow: some seeds only; bar: one standard deviation)", "paper"], loc="outside lower left", **LEGEND)

    size = (1.2 + 2.3 * len(datasets), 0.6 + (0.9 + 0.19 * len(methods)) * len(splits))
    return canvas(len(datasets), (max(size[0], 5.0), size[1]), draw, path, len(splits))


def _ours_and_theirs(axes: Axes, at: int, entry: Entry, theirs: float | None) -> None:
    ours = fmean(entry.values)
    if theirs is not None:
        axes.plot([ours, theirs], [at, at], color="#bbbbbb", linewidth=1.4, zorder=1)
        axes.plot([theirs], [at], marker="D", zorder=3, **THEIRS)
    face = "white" if entry.state else COLOURS[0]
    axes.errorbar([ours], [at], xerr=deviation(entry.values), fmt="o", color=COLOURS[0], markerfacecolor=face, capsize=3)


def pace(cell: Cell) -> str:
    """How freely the embeddings move, in words."""
    return "1 (free)" if FREE_EMBEDDINGS in cell.extra else "0.01 (default)"


def fig3_table(found: dict[Cell, Entry]) -> Table:
    """The number behind the heat maps."""
    rows = []
    for cell, entry in found.items():
        name = f"{cell.dataset}, pace of the embeddings {pace(cell)}"
        parts = [separation(np.array(r.detail.similarity), group_of_clients(r.config)) for r in entry.runs if r.detail.similarity]
        if not parts:
            rows.append([name, entry.state, "-", "-", "-"])
            continue
        name += entry.mark
        within, between = (fmean(getattr(p, which) for p in parts) for which in ("within", "between"))
        rows.append([name, number(within, 6), number(between, 6), spread([p.difference for p in parts], ".1e"), entry.text])
    any_cell = next(iter(found))
    note = (
        "Mean cosine of the kernels generated for two clients of one group, of two groups, and the difference. Accuracy in % after "
        "fine-tuning, weighted. Mean ± sample standard deviation over seeds. The paper shows pictures without a number. "
        f"{SCALES[any_cell.scale]}"
    )
    return Table(
        caption("Figure 3", next(iter(found))),
        ["data and embeddings", "within groups", "between groups", "difference", "accuracy"],
        rows,
        note,
    )


def fig3(found: dict[Cell, Entry], path: Path) -> Path | None:
    """Cosine similarity of the generated kernels (light: alike, as in the paper), groups framed; each heat map with a scale of its own."""
    shown = [(c, e.runs[0]) for c, e in found.items() if e.runs and e.runs[0].detail.similarity]
    if not shown:
        return None
    datasets = list(dict.fromkeys(c.dataset for c, _ in shown))
    paces = list(dict.fromkeys(pace(c) for c, _ in shown))

    def draw(figure: Figure, grid: np.ndarray) -> None:
        for axes in grid.flat:
            axes.set_axis_off()
        for cell, run in shown:
            axes = grid[paces.index(pace(cell)), datasets.index(cell.dataset)]
            axes.set_axis_on()
            cosine, group = np.array(run.detail.similarity), group_of_clients(run.config)
            image = axes.imshow(distance(cosine), cmap="cividis_r", interpolation="nearest", vmin=0.0)
            for at in borders(group):
                axes.axvline(at, color="white", linewidth=1.0)
                axes.axhline(at, color="white", linewidth=1.0)
            apart = separation(cosine, group)
            axes.set_title(
                f"{cell.dataset}, seed {run.config['seed']}\npace {pace(cell)}\nwithin - between {apart.difference:.1e}",
                fontsize=8,
                loc="left",
            )
            axes.set(xlabel="client", ylabel="client")
            bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, label="1 - cosine")
            bar.set_ticks([0.0, image.norm.vmax], labels=["0", f"{image.norm.vmax:.1e}"])

    return canvas(len(datasets), (2.5 * len(datasets), 3.6 * len(paces)), draw, path, len(paces))


def fig5_series(found: dict[Cell, Entry]) -> dict[tuple[str, str], list[tuple[int, Entry]]]:
    """(data set, split) -> embedding size and entry, those that are there."""
    series: dict[tuple[str, str], list[tuple[int, Entry]]] = {}
    for cell, entry in found.items():
        size = int(cell.extra[-1].partition("=")[2])
        if entry.runs:
            series.setdefault((cell.dataset, cell.split), []).append((size, entry))
    return series


def fig5_table(found: dict[Cell, Entry]) -> Table:
    """Accuracy and elements for each embedding size."""
    rows = [
        [
            f"{cell.dataset} {cell.split}, {cell.extra[-1].partition('=')[2]}",
            entry.text,
            f"{entry.runs[0].per_round.trainable:,}" if entry.runs else "-",
        ]
        for cell, entry in found.items()
    ]
    any_cell = next(iter(found))
    note = f"{ACCURACY} {SPREAD.partition(';')[0]}. Elements up and down, mean over clients and rounds. {SCALES[any_cell.scale]}"
    return Table(
        caption("Figure 5", any_cell), ["cell and embedding size", "accuracy, %", "elements of one client in one round"], rows, note
    )


def fig5(found: dict[Cell, Entry], path: Path) -> Path | None:
    """Left: accuracy over the embedding size, IID dashed. Right: what one client sends and receives in a round."""
    series = {key: points for key, points in fig5_series(found).items() if len(points) > 1}
    if not series:
        return None
    datasets = list(dict.fromkeys(data for data, _ in series))
    sizes_shown = sorted({size for points in series.values() for size, _ in points})

    def draw(figure: Figure, grid: np.ndarray) -> None:
        left, right = grid[0]
        for (data, split), points in series.items():
            sizes = [size for size, _ in points]
            style = "-" if split == "non-IID" else "--"
            colour, part = COLOURS[datasets.index(data)], [(size, e.mean) for size, e in points if e.mark]
            means, spreads = [fmean(e.values) for _, e in points], [deviation(e.values) or 0.0 for _, e in points]
            left.errorbar(sizes, means, yerr=spreads, fmt=style, color=colour, marker="o", label=f"{data} {split}", capsize=3)
            if part:  # some seeds only: hollow
                label = f"{data} {split}, some seeds only"
                left.plot(*zip(*part, strict=True), "o", color=colour, markerfacecolor="white", label=label)
            right.plot(sizes, [e.runs[0].per_round.trainable for _, e in points], color="#333333", marker="o")
        left.set(xlabel="embedding size", ylabel="accuracy after fine-tuning, weighted (%)", xscale="log")
        right.set(xlabel="embedding size", ylabel="elements of a client in a round", xscale="log", yscale="log")
        for axes in (left, right):
            _plain(axes)
            axes.set_xticks(sizes_shown, labels=[str(s) for s in sizes_shown])
            axes.minorticks_off()
        left.legend(frameon=False, fontsize=8)

    return canvas(2, (8.6, 3.8), draw, path)


def accuracy_over_cost(found: dict[Cell, Entry], path: Path) -> Path | None:
    """Accuracy after fine-tuning over what one user has sent and received: Table 3 as a picture."""
    shown = [(c, e) for c, e in found.items() if e.runs]
    if not shown:
        return None

    def draw(figure: Figure, grid: np.ndarray) -> None:
        axes = grid[0, 0]
        for i, (cell, entry) in enumerate(shown):
            cohort = max(1, round(entry.runs[0].config["participation"] * entry.runs[0].config["num_clients"]))
            at_once = zip(*(run.evaluations for run in entry.runs), strict=True)  # of all seeds
            points = [
                (fmean(e["trainable"] for e in seeds) / cohort / 1e6, 100 * fmean(e["after"]["weighted"] for e in seeds))
                for seeds in at_once
                if all(e["after"] for e in seeds)
            ]
            style = DASHES[(i // len(COLOURS)) % len(DASHES)]
            axes.plot(
                *zip(*points, strict=True), style, color=COLOURS[i % len(COLOURS)], marker=".", label=cell.row + entry.mark, linewidth=1.6
            )
        axes.set(xlabel="millions of elements of one user, up and down", ylabel="accuracy after fine-tuning, weighted (%)")
        _plain(axes)
        axes.legend(frameon=False, fontsize=8, ncols=2)

    return canvas(1, (6.8, 4.2), draw, path)
