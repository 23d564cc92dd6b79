"""bfloat16 on this CPU: PyTorch's own and that of ``hyperfed.engine.bf16``, beside float32 in the same run."""

from contextlib import AbstractContextManager, nullcontext

import torch

from hyperfed.engine.bf16 import Rounded, native
from hyperfed.models import Shape, build_model


def rows(repeat: int) -> list[tuple[str, str, str, str]]:
    """Rows of the benchmark's table: the bare loop over 512 images with the MNIST ResNet, each way."""
    from benchmarks.__main__ import bare_loop, best, images

    shape, n = Shape(1, 28, 10), 512
    model, data = build_model("resnet", shape), images(n, shape)

    def seconds(context: AbstractContextManager[object]) -> float:
        with context:
            return bare_loop(model, data, n, 1, "fp32")

    plain, own, ours = best(
        lambda: seconds(nullcontext()),
        lambda: seconds(torch.autocast("cpu", dtype=torch.bfloat16)),
        lambda: seconds(Rounded()),
        repeat=repeat,
    )
    has = "with" if native() else "without"
    name = f"bare loop, CPU {has} bfloat16 instructions, MNIST resnet:"
    return [
        (f"{name} PyTorch's bf16 / fp32", f"{own / plain:.2f}", "", f"{n / own:,.0f} samples / CPU s"),
        (f"{name} rounded products / fp32", f"{ours / plain:.2f}", "", f"{n / ours:,.0f} samples / CPU s"),
    ]
