"""How HFN's hypernetwork starts and how fast each of its tensors moves the kernels: docs/hfn.md has the reasons and measurements.

With phi as in ``models/hyper.py``, a step of SGD on W_out, W, v, B and B_out moves a generated kernel as a step on the kernel itself
would, times a factor lambda each. Sums over all J tiles and N_in slices make these factors as different as 1 and 512 (J N_in), so a
single learning rate is at once too large for the biases and too small for W. Each tensor is therefore stored divided by a constant
gain g, and a step moves the kernels g^2 lambda as far: the gains bring every factor to its ``pace``.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import NamedTuple

import torch
from torch import Tensor

from hyperfed.core import Params, invalid

INITS = {
    "conditioned": "orthogonal factors, smooth kernels first, every layer at its Kaiming variance, equal pace",
    "kaiming": "Gaussian factors whose kernels have every layer's Kaiming variance; no gains",
    "normal": "truncated standard normal everywhere; no gains",
}


@dataclass(frozen=True)
class Pace:
    """Squared gains: W_out, W (``w_in``), embeddings, both biases."""

    w_out: float = 0.3
    w_in: float = 1.0
    embed: float = 0.01
    bias: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise invalid(f"hypernet.pace.{name}", value, "a number > 0")


class Gains(NamedTuple):
    """What multiplies each stored tensor in the forward pass."""

    w_out: float = 1.0
    w_in: float = 1.0
    embed: float = 1.0
    b_in: float = 1.0
    b_out: float = 1.0


@dataclass(frozen=True)
class Start:
    """The start of phi and v for J tiles of ``tile`` x ``tile`` kernels; ``std`` [J] is each tile's Kaiming standard deviation."""

    init: str
    tile: int
    embedding: int
    std: Tensor

    @property
    def slice_norm(self) -> float:
        """The norm of a generated slice F_j^i of f N_out f values in the layer with the largest kernels."""
        return float(self.std.max()) * (9 * self.tile) ** 0.5

    def gains(self, pace: Pace) -> Gains:
        """sqrt(pace / lambda), with lambda at the start below: orthonormal W_out, unit embeddings, |W v| = slice norm.

        W_out: the J N_in hidden vectors of norm ``slice_norm`` share d directions. v: moves N_in slices at once. B: all J tiles.
        B_out: all J N_in slices.
        """
        if self.init != "conditioned":
            return Gains()
        j, n_in, norm2 = len(self.std), self.tile, self.slice_norm**2
        raw = (j * n_in * norm2 / self.embedding, 1.0, n_in * norm2, float(j), float(j * n_in))
        wanted = (pace.w_out, pace.w_in, pace.embed, pace.bias, pace.bias)
        return Gains(*((p / r) ** 0.5 for p, r in zip(wanted, raw, strict=True)))

    def draw(self, gains: Gains, rng: torch.Generator) -> Params:
        """The stored tensors by name."""
        n, d, j = self.tile, self.embedding, len(self.std)
        shapes = {"w_in": (n, d, d), "b_in": (n, d), "w_out": (3, n * 3, d), "b_out": (3, n * 3)}
        out = {f"hyper.{name}": torch.zeros(shape) for name, shape in shapes.items()}
        v, w_in, w_out = torch.zeros(j, d), out["hyper.w_in"], out["hyper.w_out"]
        if self.init == "conditioned":
            v, maps = embeddings(self.std / self.std.max(), d, rng)
            w_in.normal_(0.0, self.slice_norm * d**-0.5, generator=rng)
            out["hyper.w_in"] = w_in @ maps / gains.w_in
            out["hyper.w_out"] = filter_basis(n, d, rng).reshape(w_out.shape) / gains.w_out
            v = v / gains.embed
        elif self.init == "kaiming":
            w_in.normal_(0.0, d**-0.5, generator=rng)
            w_out.normal_(0.0, d**-0.5, generator=rng)
            v = v.normal_(generator=rng) * self.std[:, None]
        else:
            for t in (*out.values(), v):
                torch.nn.init.trunc_normal_(t, generator=rng)
        return {**out, "embed.v": v}


def embeddings(scale: Tensor, d: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Unit embeddings v [J, d] as far apart as they can be, and a map [d, d] that scales each by ``scale`` [J].

    Orthonormal where J <= d; then the map is exact. Beyond, no linear map can tell J > d embeddings apart: v takes the scale itself.
    """
    j = len(scale)
    v = torch.nn.init.orthogonal_(torch.empty(j, d), generator=rng)
    v = v / v.norm(dim=1, keepdim=True)
    if j > d:
        return v * scale[:, None], torch.eye(d)
    return v, v.T @ (scale[:, None] * v) + torch.eye(d) - v.T @ v


def filter_basis(n_out: int, d: int, rng: torch.Generator) -> Tensor:
    """Columns of unit length [f N_out f, d], orthonormal as far as d <= f N_out f: 3x3 cosine modes from smooth to rough, each for every
    output channel; those beyond are random.

    A trained 3x3 filter is mostly smooth, so with d < 9 N_out the first modes lose least. Below three modes they would lose
    too much, and the columns are random.
    """
    rows = 9 * n_out
    if d < 3 * n_out:
        return torch.nn.init.orthogonal_(torch.empty(rows, d), generator=rng)
    waves = torch.tensor([[cos(pi * (2 * x + 1) * k / 6) for x in range(3)] for k in range(3)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    order = sorted(((a, b) for a in range(3) for b in range(3)), key=lambda m: (sum(m), max(m), m))
    modes = torch.stack([torch.outer(waves[a], waves[b]) for a, b in order])  # [9, f, f]
    columns = torch.einsum("mxy,op->xoymp", modes, torch.eye(n_out)).reshape(rows, rows)
    if d <= rows:
        return columns[:, :d].contiguous()
    extra = torch.nn.init.orthogonal_(torch.empty(rows, d - rows), generator=rng)
    return torch.cat([columns, torch.nn.functional.normalize(extra, dim=0)], 1)
