"""What keeping freed memory (``hyperfed.engine.allocator``) is worth: the bare loop with and without it, in processes of their own."""

import os
import subprocess
import sys

import torch


def main(keep: bool, precision: str, repeat: int) -> None:
    """One process: print the least CPU seconds of two epochs over 1,024 images with the MNIST ResNet."""
    from benchmarks.__main__ import bare_loop, best, images
    from hyperfed.engine.allocator import keep_memory
    from hyperfed.models import Shape, build_model

    torch.set_num_threads(1)
    if keep:
        keep_memory()
    shape = Shape(1, 28, 10)
    model, data = build_model("resnet", shape), images(1024, shape)
    print(*best(lambda: bare_loop(model, data, 1024, 2, precision), repeat=repeat))


def _seconds(keep: bool, precision: str, repeat: int) -> float:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    code = f"from benchmarks.allocator import main; main({keep}, {precision!r}, {repeat})"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout)


def rows(repeat: int) -> list[tuple[str, str, str, str]]:
    """Rows of the benchmark's table: best of three processes each way."""
    out = []
    for precision in ("fp32", "bf16"):
        kept, left = (
            min(times) for times in zip(*([_seconds(keep, precision, repeat) for keep in (True, False)] for _ in range(3)), strict=True)
        )
        name = f"bare loop, memory kept / not, MNIST resnet, {precision}"
        out.append((name, f"{kept / left:.3f}", "<= 1", f"{2048 / kept:,.0f} samples / CPU s"))
    return out
