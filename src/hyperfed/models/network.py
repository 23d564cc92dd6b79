"""A plain network as pure functions: wraps an nn.Module factory, gives every tensor a role."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from hyperfed.core import ALL, Params, Role, Scope

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers, by name."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def drop_counters(module: nn.Module) -> nn.Module:
    """Remove batch norm's ``num_batches_tracked``: with a fixed momentum nobody reads it, and an integer has no place in an average."""
    for part in module.modules():
        if isinstance(part, _NormBase):
            part.num_batches_tracked = None
    return module


def assign_roles(module: nn.Module) -> dict[str, Role]:
    """STATS: buffers. NORM: by module type, never by name. HEAD: the last Linear. STEM: the first convolution. BODY: the rest."""
    convs = [p for p in module.modules() if isinstance(p, nn.Conv2d)]
    linears = [p for p in module.modules() if isinstance(p, nn.Linear)]
    by_tensor: dict[int, Role] = {}
    for part in module.modules():
        role = Role.BODY
        if isinstance(part, NORMS):
            role = Role.NORM
        elif linears and part is linears[-1]:
            role = Role.HEAD
        elif convs and part is convs[0]:
            role = Role.STEM
        by_tensor.update((id(t), role) for t in part.parameters(recurse=False))
    roles = {name: by_tensor[id(tensor)] for name, tensor in module.named_parameters()}
    return roles | {name: Role.STATS for name, _ in module.named_buffers()}


def kaiming_std(conv: nn.Conv2d) -> float:
    """sqrt(2 / fan in)."""
    return float((2 / (conv.in_channels // conv.groups * conv.kernel_size[0] * conv.kernel_size[1])) ** 0.5)


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Kaiming normal (fan in, ReLU) for convolutions, U(+-1/sqrt(fan in)) for linear layers and biases; norms keep their 1 and 0."""
    rng = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
            if isinstance(part, nn.Conv2d):
                part.weight.normal_(0.0, kaiming_std(part), generator=rng)
            else:
                part.weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=rng)
            if part.bias is not None:
                part.bias.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=rng)


@dataclass(frozen=True)
class Network:
    """A :class:`~hyperfed.core.Model` made from a module factory."""

    build: Callable[[], nn.Module]
    num_classes: int
    communicable: Scope = ALL

    @cached_property
    def _template(self) -> nn.Module:
        return self.module()

    @cached_property
    def roles(self) -> dict[str, Role]:
        """The role of every tensor."""
        return assign_roles(self._template)

    def module(self) -> nn.Module:
        """A fresh module without batch counters."""
        return drop_counters(self.build())

    def init(self, seed: int) -> Params:
        """Initial tensors; see :func:`initialise`."""
        module = self.module()
        initialise(module, seed)
        return {name: tensor.detach().clone() for name, tensor in tensors(module)}

    def apply(self, params: Params, x: Tensor, *, train: bool) -> tuple[Tensor, Params]:
        """Output [B, C] and the STATS after the batch."""
        return pure_call(self._template, self.roles, params, x, train)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Cross entropy, mean over the batch."""
        return nn.functional.cross_entropy(output, y)


_calling = Lock()


def pure_call(module: nn.Module, roles: dict[str, Role], params: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    """Call ``module`` with the tensors of ``params``; its running statistics are copied first, since batch norm writes to them.

    One thread at a time: while the call lasts, the module holds these tensors.
    """
    stats = {n: t.detach().clone() if train else t for n, t in params.items() if roles.get(n) is Role.STATS}
    with _calling:
        module.train(train)
        return functional_call(module, {**params, **stats}, (x,)), stats
