"""An attack made for HFN: it needs no secret of the client, only phi, the architecture and one message of few local steps.

The gradient of phi is linear in those of the generated filters. With a_j^i = W_i v_j + B_i and G_j^i that of slice i of filter j,

    dW_out = sum_ij G_j^i (a_j^i)^T      dW_i = sum_j (W_out^T G_j^i) v_j^T      dB_i = sum_j W_out^T G_j^i

1. Rows of [dW_i, dB_i] span those of [v_j, 1]: a singular value decomposition gives the embeddings' affine hull (J <= N_v). Any J of its
   points u_k in general position give v = T u, rows of T summing to 1; J (J - 1) unknowns instead of J N_v.
2. Filters are affine in v, so F_j = sum_k T_jk F(u_k), and dW_out = sum_ik M_k^i (a(u_k)^i)^T with M = T^T G: where J N_in <= d the mixed
   gradients M are found exactly.
3. Whatever the head and the label, they reach the convolutions only as the gradient of their output: it is a free vector of the search.

The same without 1. and 2. serves methods that keep only the head (FedPer, FedRep, FedBABU).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, linear, pad

from hyperfed.core import Params
from hyperfed.privacy.dlg import Recovered, distance, recovered, target_of
from hyperfed.privacy.networks import KERNEL, STRIDES, WIDTH, HyperLeNet, features, filters, plain_lenet_of
from hyperfed.privacy.observer import NotApplicable, Observation
from hyperfed.privacy.search import Budget, search

LAYERS = len(STRIDES)


@dataclass(frozen=True)
class Hull:
    """The points centre [N_v] + tau axes, tau [J - 1]; orthonormal axes [J - 1, N_v]. ``residual``: the first singular value beyond, relative."""

    centre: Tensor
    axes: Tensor
    residual: float

    def distance(self, v: Tensor) -> Tensor:
        """How far each of v [J, N_v] is from the hull, relative to its norm."""
        off = v - self.centre
        return (off - off @ self.axes.T @ self.axes).norm(dim=1) / v.norm(dim=1)

    def simplex(self) -> Tensor:
        """J points of the hull [J, N_v], as orthogonal and as equally long as it has: the centre of J orthogonal v is |v| / sqrt(J) long."""
        return self.centre + self.centre.norm() * corners(len(self.axes) + 1) @ self.axes


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
    """The gradients M [J N_in, f N_out f] of the filters at points u [J, N_v] of the hull, or what is known of them: factors^T M = target."""

    points: Tensor
    factors: Tensor
    target: Tensor

    def gradients(self) -> Tensor:
        """M, where it is determined."""
        return torch.linalg.lstsq(self.factors.T, self.target).solution


def mixture(seen: Observation, points: Tensor) -> Mixture:
    """What the gradient of W_out says of the filters' gradients; solved for them where J N_in <= d."""
    phi, gradient = phi_of(seen), seen.gradient()["hyper.w_out"]
    target = gradient.flatten(0, 1).T  # [d, f N_out f]
    factors = (torch.einsum("ide,je->jid", phi["w_in"], points) + phi["b_in"]).flatten(0, 1)  # [J N_in, d]
    found = Mixture(points, factors, target)
    if factors.shape[0] > factors.shape[1]:
        return found
    eye = torch.eye(len(factors), dtype=target.dtype)
    return Mixture(points, eye, found.gradients())


def unmask(seen: Observation) -> Observation:
    """A message of HFN whose embeddings are known, as the message of the plain network: its kernels and their gradients."""
    model = seen.model
    if not isinstance(model, HyperLeNet) or "embed.v" not in seen.secrets:
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
    step = replace(seen.training, lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0, steps=1) if seen.training else None
    return replace(seen, model=plain, before=before, change=change, secrets=secrets, training=step)


def structured(seen: Observation, budget: Budget, seed: int = 0) -> Recovered:
    """Images, embeddings and the features of the first convolution, from one message."""
    seen = unmask(seen)
    network, shape = plain_lenet_of(seen.model), seen.shape
    gradient = seen.gradient()
    known = {n.removeprefix("net."): t for n, t in seen.known.items()}
    hidden = {n: t.shape for n, t in network.init(0).items() if n.startswith("convs") and n not in known}
    hyper = isinstance(seen.model, HyperLeNet)
    j = LAYERS - seen.model.first if isinstance(seen.model, HyperLeNet) else 0
    made = {f"convs.{layer}.weight" for layer in range(LAYERS - j, LAYERS)}
    hull = embedding_hull(gradient, j) if hyper else None
    mixed = mixture(seen, hull.simplex()) if hull else None
    base = filters(phi_of(seen), mixed.points) if mixed else None
    simplex = corners(j) if hull else None
    wanted = {"mixed": mixed.target} if mixed else {n: g for n, g in gradient.items() if n.startswith("convs")}
    scale = 1 / torch.stack([g.square().sum() for g in wanted.values()]).sum()

    def turn(tau: Tensor) -> Tensor:
        """T [J, J] of tau [J, J - 1]: barycentric coordinates with respect to the simplex."""
        assert simplex is not None
        return torch.linalg.solve(pad(simplex, (0, 1), value=1.0).T, pad(tau, (0, 1), value=1.0).T).T

    def draw(rng: Generator) -> Params:
        point = {"x": budget.images(shape, rng)}
        normal = lambda *s: torch.randn(*s, generator=rng, dtype=torch.float64)  # noqa: E731
        if "fc.weight" in known:
            point |= {} if seen.labels is not None else {"y": normal(shape[0], network.num_classes)}
        else:
            point["delta"] = 0.1 * normal(shape[0], network.init(0)["fc.weight"].shape[1])
        point |= {n: torch.zeros(s, dtype=torch.float64) if len(s) == 1 else 0.1 * normal(*s) for n, s in hidden.items() if n not in made}
        if simplex is not None:
            point["tau"] = simplex @ torch.linalg.qr(normal(j - 1, j - 1))[0]
        return point

    def objective(point: Params) -> Tensor:
        return scale * distance(predict(point), wanted)

    def predict(point: Params) -> Params:
        weights = {**known, **point}
        turned = turn(point["tau"]) if hyper else None
        if turned is not None and base is not None:
            for layer, kernel in zip(range(LAYERS - j, LAYERS), torch.einsum("jk,koixy->joixy", turned, base), strict=True):
                weights[f"convs.{layer}.weight"] = kernel[:, : shape[1] if layer == 0 else WIDTH]
        names = sorted(made) if hyper else list(wanted)
        for n in names:
            weights[n] = weights[n] if weights[n].requires_grad else weights[n].detach().requires_grad_()
        h = features(point["x"], [weights[f"convs.{i}.weight"] for i in range(LAYERS)], [weights[f"convs.{i}.bias"] for i in range(LAYERS)])
        if "delta" in point:
            loss = (h * point["delta"]).sum() / shape[0]
        else:
            loss = cross_entropy(linear(h, known["fc.weight"], known["fc.bias"]), target_of(point, seen.labels))
        slopes = torch.autograd.grad(loss, [weights[n] for n in names], create_graph=True)
        if turned is None or mixed is None:
            return dict(zip(names, slopes, strict=True))
        rows = torch.einsum("jk,jir->kir", turned, torch.stack([as_rows(s) for s in slopes]))
        return {"mixed": mixed.factors.T @ rows.flatten(0, 1)}

    found = search(objective, draw, budget, seed)
    out = recovered(found, seen.labels)
    if hull and found.point:
        out = replace(out, embeddings=(turn(found.point["tau"]) @ mixed.points).detach())  # type: ignore[union-attr]
    return out
