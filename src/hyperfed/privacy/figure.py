"""The grid of original and recovered images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from hyperfed.core.files import atomic
from hyperfed.privacy.metrics import SUCCESS

LEAK, SAFE = "#B00020", "#333333"


class Picture(NamedTuple):
    """An image [channels, H, W] in [0, 1], and its PSNR and SSIM; None for an original or a failed attempt."""

    image: Tensor | None
    psnr: float | None = None
    ssim: float | None = None


def draw(axes: Axes, picture: Picture) -> None:
    """One cell, PSNR and SSIM under it."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if picture.image is None:
        axes.text(0.5, 0.5, "NaN", ha="center", va="center", transform=axes.transAxes)
        return
    pixels = picture.image.permute(1, 2, 0).squeeze(-1).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if picture.psnr is not None:
        colour = LEAK if picture.psnr >= SUCCESS else SAFE
        axes.set_xlabel(f"{picture.psnr:.1f} dB  {picture.ssim:.2f}", fontsize=6, color=colour, labelpad=2)


def draw_grid(path: Path, rows: Sequence[tuple[str, Sequence[Picture]]], title: str) -> Path:
    """One row of pictures for each title; the first row holds the originals."""
    columns = max(len(pictures) for _, pictures in rows)
    figure = Figure(figsize=(2.3 + 0.95 * columns, 0.4 + 1.08 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=8)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pictures) in zip(grid, rows, strict=True):
        for axes in line[len(pictures) :]:
            axes.set_axis_off()
        for axes, picture in zip(line, pictures, strict=False):
            draw(axes, picture)
        line[0].set_ylabel(name.replace(": ", ":\n", 1), fontsize=7, rotation=0, ha="right", va="center", labelpad=6)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
