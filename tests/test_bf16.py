"""``precision=bf16`` where the processor has no such instructions: the same roundings, in float32 arithmetic."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hyperfed.core.files import read_json
from hyperfed.defences.dp_sgd import per_example
from hyperfed.engine import bf16
from hyperfed.engine.bf16 import Rounded, autocast
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.workspace import Workspace
from hyperfed.methods import METHODS
from hyperfed.models import Shape, build_model
from hyperfed.run import origin
from played import assert_same, played
from problems import tiny_images, tiny_network

HALF_A_STEP = 1 + 2**-9
"""Between 1 and the next bfloat16, 1 + 2^-7; nearer to 1."""
CPU = torch.device("cpu")
PRODUCED = 11


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has no bfloat16, whatever this one has."""
    monkeypatch.setattr(bf16, "native", lambda: False)


def test_operands_results_and_gradients_are_rounded() -> None:
    """Operands: 1.002 x 3 is 3 and not 3.006. Result: 1 + 2^-7 + 2^-8 is no bfloat16. Gradient: 1.002 arrives as 1."""
    a, b = torch.tensor([[HALF_A_STEP]], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)
    with Rounded():
        out = a @ b
        total = torch.mm(torch.tensor([[1 + 2**-7, 2**-8]]), torch.ones(2, 1))
        untouched = (a * 3, torch.mm(a.detach().double(), b.detach().double()))
    assert out.item() == 3.0 and total.item() == 1 + 2**-6 and out.dtype == torch.float32
    assert untouched[0].item() == untouched[1].item() == 3 * HALF_A_STEP
    out.backward(torch.tensor([[HALF_A_STEP]]))
    assert a.grad is not None and b.grad is not None
    assert a.grad.item() == 3.0 and b.grad.item() == 1.0


def through_every_product(context: AbstractContextManager[object]) -> list[Tensor]:
    """Outputs and gradients of products of 64ths, whose sums float32 holds exactly in any order and bfloat16 does not."""

    def numbers(*shape: int) -> Tensor:
        return (torch.randint(-127, 128, shape, generator=rng) / 64).requires_grad_()

    rng = torch.Generator().manual_seed(1)
    sizes = [(2, 3, 5), (4, 3, 3), (4,), (2, 3, 5, 5), (4, 3, 3, 3), (2, 3, 4), (6, 4), (6,)]
    leaves = [numbers(*size) for size in sizes]
    line, kernel, bias, image, kernels, left, weight, offset = leaves
    with context:
        out = [
            F.conv1d(line, kernel, bias),
            F.conv2d(image, kernels, bias, padding=1),
            F.conv3d(image[:, None], kernels[:, None], bias),
            F.linear(left, weight, bias=offset),
            torch.addmm(offset, left[0], weight.T, alpha=0.5),
            torch.baddbmm(left.mT, left.mT, left[:, :, :3]),
            left[0] @ weight.T,
            left @ weight.T,
            torch.bmm(left, left.mT),
            left.matmul(weight.T),
            torch.einsum("bij,kj->bik", left, weight),
        ]
    sum(o.float().sum() for o in out).backward()  # type: ignore[union-attr]
    return [o.detach().float() for o in out] + [leaf.grad for leaf in leaves if leaf.grad is not None]


def test_every_product_has_the_bits_of_autocast() -> None:
    """Gradients are not held to the bit: where there are no instructions, autocast's convolutions add them up in bfloat16."""
    ours, theirs = through_every_product(Rounded()), through_every_product(torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False))
    plain = through_every_product(torch.autocast("cpu", enabled=False))
    assert len(ours) == len(theirs) == PRODUCED + 8
    for a, b in zip(ours[:PRODUCED], theirs[:PRODUCED], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(ours[PRODUCED:], theirs[PRODUCED:], strict=True):
        torch.testing.assert_close(a, b, rtol=2**-6, atol=2**-4)
    assert not any(torch.equal(a, b) for a, b in zip(ours[:PRODUCED], plain[:PRODUCED], strict=True))  # or there was nothing to round


def test_who_has_the_instructions_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16, "native", lambda: True)
    assert isinstance(autocast(CPU), torch.autocast)
    monkeypatch.setattr(bf16, "native", lambda: False)
    assert isinstance(autocast(CPU), Rounded)


@pytest.mark.parametrize(("name", "hyper"), [("fedavg", False), ("fedavg", True), ("fedprox", False), ("pfedhn", False)])
@pytest.mark.usefixtures("without")
def test_a_run_repeats_itself_and_is_near_float32(name: str, hyper: bool, tmp_path: Path) -> None:
    def lower(engine: LocalEngine) -> LocalEngine:
        engine.space.precision = "bf16"
        return engine

    ours, again, plain = (
        played(name, hyper, tmp_path / where, change)
        for where, change in (("ours", lower), ("again", lower), ("plain", lambda engine: engine))
    )
    assert_same(ours, again)
    for number in (1, 2, 3):
        assert ours[f"losses {number}"] != plain[f"losses {number}"]
        assert ours[f"losses {number}"] == pytest.approx(plain[f"losses {number}"], rel=0.05)


@pytest.mark.usefixtures("without")
def test_a_gradient_per_example_is_rounded_too() -> None:
    space = Workspace(build_model("resnet_gn", Shape(1, 8, 3)), tiny_images(5), "bf16")
    space.load(space.model.init(1))
    for t in space.live.values():
        t.requires_grad_(True)
    x, y = space.images.batch(torch.arange(5))
    gradients, losses = per_example(space, dict(space.live), x, y, None, torch.Generator())
    for i in range(5):
        loss: Any = space.model.loss(space.forward(x[i : i + 1]), y[i : i + 1])
        torch.testing.assert_close(losses[i], loss.detach(), atol=1e-2, rtol=1e-2)
    head = next(g for n, g in gradients.items() if n.endswith("fc.weight"))
    assert torch.equal(head, head.bfloat16().float()) and head.abs().sum() > 0


@pytest.mark.parametrize(("has", "said"), [(True, "native"), (False, "rounded")])
def test_the_run_says_which_it_was(has: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "native", lambda: has)
    origin.begin(tmp_path, "0" * 16, METHODS["fedavg"](tiny_network(), 3), "cpu")
    assert read_json(tmp_path / "run.json")["hardware"]["bf16"] == said
