"""Runs that differ in their seed only, as one line: mean and spread over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hyperfed.core import UserError
from hyperfed.report.plots import COLOURS, DASHES, finished, headed, literal, plain_powers, silence
from hyperfed.report.runs import RunFiles
from hyperfed.report.tables import markdown
from hyperfed.run.config import identity


def deviation(values: Sequence[float] | np.ndarray) -> float | None:
    """Sample standard deviation over seeds (divisor n - 1); None for one seed, which says nothing of a spread."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_and_spread(mean: float, spread: float | None) -> str:
    """``95.1 ± 0.4``."""
    return f"{mean:.1f}" + ("" if spread is None else f" ± {spread:.1f}")


@dataclass(frozen=True)
class Group:
    """The runs of one setting, one per seed."""

    label: str
    runs: tuple[RunFiles, ...]

    def curve(self, which: str, value: str = "mean") -> tuple[list[int], np.ndarray]:
        """Rounds [R], and the accuracy of every seed in % [S, R], over the rounds that all seeds have."""
        series = [{e["round"]: 100 * e[which][value] for e in run.evaluations if e[which]} for run in self.runs]
        rounds = sorted(set.intersection(*(set(s) for s in series)))
        return rounds, np.array([[s[r] for r in rounds] for s in series])

    @property
    def silent(self) -> bool:
        """Whether nothing was sent."""
        return all(run.last["bytes"] == 0 for run in self.runs)

    def megabytes(self, rounds: Sequence[int]) -> list[float]:
        """Payload of all clients up to each of ``rounds``, the mean over seeds, in MB."""
        sent = [{e["round"]: e["bytes"] / 1e6 for e in run.evaluations} for run in self.runs]
        return [float(np.mean([s[r] for s in sent])) for r in rounds]

    def final(self, which: str, value: str = "mean") -> str:
        """``95.1 ± 0.4`` at the last common round; the spread is the sample standard deviation over seeds."""
        rounds, y = self.curve(which, value)
        return mean_and_spread(float(y[:, -1].mean()), deviation(y[:, -1])) if rounds else "-"


def group_by_seed(runs: Sequence[RunFiles]) -> list[Group]:
    """Group runs by everything but the seed, in order of appearance. Two runs of one seed are refused."""
    groups: dict[str, list[RunFiles]] = {}
    for run in runs:
        known = identity(run.config).items()  # dataset.paper holds what presets refer to: no setting of a run
        key: dict[str, Any] = {k: v for k, v in known if k != "seed" and not k.startswith("dataset.paper.")}
        mates = groups.setdefault(f"{run.label} {sorted(key.items(), key=str)}", [])
        if (twin := next((m for m in mates if m.config["seed"] == run.config["seed"]), None)) is not None:
            raise UserError(f"{run.folder} repeats seed {run.config['seed']} of {run.label}, which {twin.folder} holds: one run per seed.")
        mates.append(run)
    return [Group(mates[0].label, tuple(mates)) for mates in groups.values()]


def seeds_table(groups: Sequence[Group]) -> str:
    """Markdown: accuracy before and after fine-tuning as mean ± sample standard deviation over seeds, elements, number of seeds."""
    rows = []
    for g in groups:
        first, accuracies = g.runs[0], (g.final("before"), g.final("after"), g.final("after", "p10"))
        rows.append([g.label, *accuracies, f"{first.per_round.trainable:,}", f"{first.last['round']}", f"{len(g.runs)}"])
    columns = ["setting", "before: mean", "after: mean", "after: p10", "elements / client, round", "rounds", "seeds"]
    return markdown(columns, rows)


def plot_groups(groups: Sequence[Group], path: Path, which: str, title: str, over: str = "rounds") -> Path:
    """Accuracy ``which`` ("before" or "after") fine-tuning ``over`` "rounds" or "bytes".

    The mean over seeds is a line, least to greatest a band. Bytes are the payload of all clients, the mean over seeds; a method that sends
    nothing is a level line at its last accuracy.
    """
    figure = Figure(figsize=(6.8, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    for i, g in enumerate(groups):
        rounds, y = g.curve(which)
        name = literal(f"{g.label} ({y[:, -1].mean():.1f})")
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[(i // len(COLOURS)) % len(DASHES)]
        if over == "bytes" and g.silent:
            axes.axhline(y[:, -1].mean(), color=colour, linestyle=":", label=f"{name}, {silence(g.runs[0])}")
            continue
        x, sent = (rounds, slice(None)) if over == "rounds" else (g.megabytes(rounds), slice(rounds[0] == 0, None))
        axes.plot(x[sent], y.mean(0)[sent], dash, color=colour, label=name, linewidth=1.8)
        axes.fill_between(x[sent], y.min(0)[sent], y.max(0)[sent], color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("round" if over == "rounds" else "payload of all clients so far (MB)")
    if over == "bytes":
        axes.set_xscale("log")
        plain_powers(axes.xaxis)
    axes.set_ylabel(f"mean personalised accuracy {which} fine-tuning (%)")
    headed(axes, title + ("\nlines: mean over seeds, bands: least to greatest" if any(len(g.runs) > 1 for g in groups) else ""))
    return finished(axes, path)
