"""``precision=bf16`` on processors without bfloat16 instructions."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = frozenset(
    {
        *(torch.conv1d, torch.conv2d, torch.conv3d, torch.nn.functional.linear, torch.einsum),
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm),
    }
)
"""What ``torch.autocast`` computes in bfloat16 and networks are made of."""


@cache
def native() -> bool:
    """Whether this CPU multiplies bfloat16. PyTorch takes oneDNN where it does, and plain loops where it does not."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rounded(value: Any) -> Any:
    """A float32 tensor to the nearest bfloat16, its gradient, too; anything else as it is."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.to(torch.bfloat16).to(torch.float32)
    return value


class Rounded(TorchFunctionMode):
    """Products as bfloat16 instructions have them: operands and results are rounded, forward and backward, sums are float32.

    PyTorch's own bfloat16 on a CPU without takes 11 times as long as float32, this 1.2 times (``python -m benchmarks bf16``).
    Between products float32 stays, where autocast has bfloat16 until the next float32 operation.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        return rounded(func(*map(rounded, args), **{k: rounded(v) for k, v in (kwargs or {}).items()}))


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products in bfloat16 with float32 sums, on any device."""
    if device.type == "cpu" and not native():
        return Rounded()
    return torch.autocast(device.type, dtype=torch.bfloat16)
