"""What HFN's message tells exactly, before any search: the embeddings' affine hull and the mixed gradients of the generated filters.

The gradient of phi is linear in those of the filters. With a_j^i = W_i v_j + B_i and G_j^i that of slice i of filter j,

    dW_out = sum_ij G_j^i (a_j^i)^T      dW_i = sum_j (W_out^T G_j^i) v_j^T      dB_i = sum_j W_out^T G_j^i

1. Rows of [dW_i, dB_i] span those of [v_j, 1]: a singular value decomposition gives the embeddings' affine hull (J <= N_v). Any J of its
   points u_k in general position give v = T u, rows of T summing to 1: J (J - 1) unknowns instead of J N_v.
2. Filters are affine in v, so F_j = sum_k T_jk F(u_k), and dW_out = sum_ik M_k^i (a(u_k)^i)^T with M = T^T G: where J N_in <= d the mixed
   gradients M are found exactly.
3. The first filter uses as many slices as its image has channels; of the other slices G_1 is 0, so n with sum_k n_k M_k^i = 0 there gives
   T n ~ (1, 0, 0): the line through v_2 and v_3 is known, and with it which embedding is the first.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyperfed.core import Params
from hyperfed.privacy.networks import KERNEL, LAYERS, WIDTH, HyperLeNet, filters, plain_lenet_of
from hyperfed.privacy.observer import NotApplicable, Observation, Training


@dataclass(frozen=True)
class Hull:
    """The points centre [N_v] + tau axes, tau [J - 1]; orthonormal axes [J - 1, N_v]. ``residual``: the next singular value, relative."""

    centre: Tensor
    axes: Tensor
    residual: float

    def distance(self, v: Tensor) -> Tensor:
        """How far each of v [J, N_v] is from the hull, relative to its norm."""
        off = v - self.centre
        return (off - off @ self.axes.T @ self.axes).norm(dim=1) / v.norm(dim=1)

    def simplex(self) -> Tensor:
        """J points of the hull [J, N_v], orthogonal and equally long as far as it has such: the centre of these is |v| / sqrt(J) long."""
        return self.points(corners(len(self.axes) + 1))

    def points(self, tau: Tensor) -> Tensor:
        """tau [J, J - 1] in units that make the corners of a simplex orthogonal -> points [J, N_v]."""
        return self.centre + self.centre.norm() * tau @ self.axes


def corners(j: int) -> Tensor:
    """A regular simplex [J, J - 1] around 0, corners at sqrt(J - 1)."""
    off = torch.eye(j, dtype=torch.float64) - 1 / j
    basis = torch.linalg.svd(off)[2][: j - 1]
    points = off @ basis.T
    return points / points.norm(dim=1, keepdim=True) * (j - 1) ** 0.5


def embedding_hull(gradient: Params, j: int) -> Hull:
    """The affine hull of J embeddings, from the gradient of W [N_in, d, N_v] and B [N_in, d]."""
    w, b = gradient["hyper.w_in"], gradient["hyper.b_in"]
    if j > w.shape[2]:
        raise NotApplicable(f"{j} embeddings of {w.shape[2]} dimensions span everything: their hull says nothing (J must be <= N_v).")
    _, s, rows = torch.linalg.svd(torch.cat([w.flatten(0, 1), b.reshape(-1, 1)], 1), full_matrices=False)
    rows = rows[:j]
    height = rows[:, -1]
    centre = (height @ rows / height.square().sum())[:-1]
    axes = torch.linalg.svd(height[None])[2][1:] @ rows  # combinations whose last entry is 0
    return Hull(centre, axes[:, :-1], float(s[j] / s[0]) if len(s) > j else 0.0)


def phi_of(seen: Observation) -> Params:
    """phi without its prefix."""
    return {n.removeprefix("hyper."): t for n, t in seen.before.items() if n.startswith("hyper.")}


def as_rows(kernels: Tensor) -> Tensor:
    """[..., out, in, f, f] -> [..., N_in, f N_out f]: the slices F^i; missing input channels are 0."""
    rows = kernels.movedim(-3, -4).transpose(-3, -2).flatten(-3)
    return pad(rows, (0, 0, 0, WIDTH - rows.shape[-2]))


@dataclass(frozen=True)
class Mixture:
    """What is known of the gradients M [J N_in, f N_out f] of the filters at points u [J, N_v]: factors^T M = target (None: M itself)."""

    points: Tensor
    factors: Tensor | None
    target: Tensor

    def seen(self, m: Tensor) -> Tensor:
        """What the message would show of M."""
        return m if self.factors is None else self.factors.T @ m


def mixture(seen: Observation, points: Tensor) -> Mixture:
    """What the gradient of W_out says of the filters' gradients; solved for them where J N_in <= d."""
    phi, gradient = phi_of(seen), seen.gradient()["hyper.w_out"]
    target = gradient.flatten(0, 1).T  # [d, f N_out f]
    factors = (torch.einsum("ide,je->jid", phi["w_in"], points) + phi["b_in"]).flatten(0, 1)  # [J N_in, d]
    if len(factors) > factors.shape[1]:
        return Mixture(points, factors, target)
    return Mixture(points, None, torch.linalg.pinv(factors.T) @ target)  # gelsy, lstsq's way, is not bit for bit repeatable


def barycentric(tau: Tensor) -> Tensor:
    """T [J, J], the weights that make tau [J, J - 1] of the simplex' corners; rows sum to 1."""
    return torch.linalg.solve(pad(corners(len(tau)), (0, 1), value=1.0).T, pad(tau, (0, 1), value=1.0).T).T


def first_guess(mixed: Mixture, channels: int, j: int, rng: torch.Generator, turn: int) -> Tensor:
    """Where embeddings may lie, tau [J, J - 1]: an even ``turn`` and the odd one after it differ in the order of the last two.

    J = 3: on the line of step 3, as far apart as orthogonal ones; J = 2: at the corners; without M a simplex turned at random.
    """
    side = 1.0 if turn % 2 == 0 else -1.0
    if j == 2:
        return side * corners(2)
    if mixed.factors is not None:
        return corners(j) @ torch.linalg.qr(torch.randn(j - 1, j - 1, generator=rng, dtype=torch.float64))[0]
    unused = mixed.target.reshape(j, WIDTH, -1)[:, channels:].flatten(1)
    null = torch.linalg.svd(unused, full_matrices=False)[0][:, -1]
    *slope, offset = torch.linalg.solve(pad(corners(j), (0, 1), value=1.0), null)
    normal = torch.stack(slope)
    foot = -offset * normal / normal.square().sum()
    along = torch.stack([-normal[1], normal[0]]) / normal.norm() * side * 1.5**0.5
    return torch.stack([-foot / foot.norm() * 2**0.5, foot + along, foot - along])


def unmask(seen: Observation) -> Observation:
    """A message of HFN whose embeddings are known, as the message of the plain network: its kernels and their gradients."""
    model = seen.model
    if not isinstance(model, HyperLeNet) or "embed.v" not in seen.secrets or seen.training is None:
        return seen
    v = seen.secrets["embed.v"]
    if len(v) * WIDTH > v.shape[1]:
        return seen  # not determined: attack phi's own gradient
    plain, first = plain_lenet_of(model), LAYERS - len(v)
    kernels, mixed = filters(phi_of(seen), v), mixture(seen, v).target.reshape(len(v), WIDTH, KERNEL, WIDTH, KERNEL)
    gradients = mixed.permute(0, 3, 1, 2, 4)  # [J, in, f, out, f] -> [J, out, in, f, f]
    before, change = {}, {}
    for j, layer in enumerate(range(first, LAYERS)):
        depth = plain.shape.channels if layer == 0 else WIDTH
        before[f"convs.{layer}.weight"] = kernels[j, :, :depth]
        change[f"convs.{layer}.weight"] = -gradients[j, :, :depth]
    secrets = {n.removeprefix("net."): t for n, t in seen.secrets.items() if n.startswith("net.")}
    step = Training(lr=1.0)
    return replace(seen, model=plain, before=before, change=change, secrets=secrets, training=step)
