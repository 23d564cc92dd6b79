"""How alike the kernels are that a hypernetwork generates for each two clients (HyperFedNet, section 5.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hyperfed.data.partition import Groups
from hyperfed.report.plots import headed

FEW = 10  # steps of the kept digits below which a picture shows rounding only


class Separation(NamedTuple):
    """Mean cosine of two different clients; of one group, of two, and their difference. NaN where there is no such pair."""

    overall: float
    within: float
    between: float
    difference: float


def group_of_clients(config: Mapping[str, Any]) -> np.ndarray | None:
    """The group of each client, int [N], for the partition ``groups``; None for any other."""
    spec = dict(config["partition"])
    return Groups(**spec).groups(config["num_clients"]) if spec.pop("name") == "groups" else None


def separation(cosine: np.ndarray, group: np.ndarray | None) -> Separation:
    """What the matrix [N, N] says in numbers; a client is not compared with itself."""
    others = ~np.eye(len(cosine), dtype=bool)
    same = np.zeros_like(others) if group is None else group[:, None] == group[None, :]

    def mean(pairs: np.ndarray) -> float:
        return float(cosine[pairs].mean()) if pairs.any() else float("nan")

    known = group is not None
    within, between = (mean(others & same), mean(others & ~same)) if known else (float("nan"), float("nan"))
    return Separation(mean(others), within, between, within - between)


def distance(cosine: np.ndarray) -> np.ndarray:
    """1 - cosine, [N, N]: where kernels differ in the seventh digit, cosines all look like 1. Never below 0."""
    return np.clip(1 - cosine, 0, None)


def digits(cosine: np.ndarray) -> int:
    """Decimal places the cosines were kept with: 6 by older runs, else 10."""
    return 6 if np.allclose(cosine, cosine.round(6), rtol=0, atol=1e-12) else 10


def legible(cosine: np.ndarray) -> bool:
    """Whether the greatest distance spans enough steps of the kept digits to be more than rounding."""
    return bool(distance(cosine).max() >= (FEW - 0.5) * 10.0 ** -digits(cosine))


def borders(group: np.ndarray | None) -> list[float]:
    """Where one group of consecutive clients ends and the next begins, in clients."""
    return [] if group is None else (np.flatnonzero(np.diff(group)) + 0.5).tolist()


def plot_similarity(cosine: np.ndarray, group: np.ndarray | None, path: Path, title: str) -> Path:
    """1 - cosine as a heat map with a scale of its own (light: alike) and the groups' borders."""
    figure = Figure(figsize=(5.2, 4.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(distance(cosine), cmap="cividis_r", interpolation="nearest", vmin=0.0)
    for at in borders(group):
        for draw in (axes.axvline, axes.axhline):
            draw(at, color="black", linewidth=2.0)
            draw(at, color="white", linewidth=0.8)
    axes.set(xlabel="client", ylabel="client")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    headed(axes, title)
    figure.colorbar(image, ax=axes, shrink=0.85, label="1 - cosine of generated kernels", format="%.1e")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
