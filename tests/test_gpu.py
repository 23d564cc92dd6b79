"""What keeps a GPU busy changes no number. The tests of the GPU itself need one; those of the optimiser and of replays do not."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperfed.core import ALL, Role
from hyperfed.engine.gpu import Gpu, prepare_gpu
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.optim import Optim, Standing
from hyperfed.engine.workspace import Images, Local, Workspace
from hyperfed.methods import METHODS
from played import SIZES, assert_same, played
from problems import tiny_engine, tiny_images, tiny_network

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_standing_optimiser_begins_as_if_new() -> None:
    """Two visits of three steps with one optimiser object end where fresh ones do: no momentum is left, and the rate is new."""
    optim, start = Optim(lr=0.5, momentum=0.5, weight_decay=0.25), torch.tensor([1.0, -2.0])
    standing_w, ends = start.clone().requires_grad_(), []

    def visit(sgd: torch.optim.SGD, w: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            w.copy_(start)
        for _ in range(3):
            sgd.zero_grad()
            (0.5 * (w - 3) ** 2).sum().backward()
            sgd.step()
        return w.detach().clone()

    def groups(w: torch.Tensor, lr: float) -> list[dict[str, object]]:
        return [{"params": [w], "lr": lr, "weight_decay": 0.25}]

    standing = Standing(optim, groups(standing_w, 0.5), torch.device("cpu"))
    for lr in (0.5, 0.125):
        fresh_w = start.clone().requires_grad_()
        fresh = visit(optim.build(groups(fresh_w, lr), lr), fresh_w)
        ends.append(visit(standing.begin(groups(standing_w, lr)), standing_w))
        assert torch.equal(ends[-1], fresh)
    assert not torch.equal(*ends)


def test_optimisers_are_told_apart_by_all_that_a_step_depends_on() -> None:
    a, b = torch.zeros(1), torch.zeros(1)
    names = {id(a): "a", id(b): "b"}

    def kind(optim: Optim, *tensors: torch.Tensor, decay: float = 0.0) -> object:
        return optim.kind([{"params": list(tensors), "lr": 0.1, "weight_decay": decay}], names)

    kinds = {
        kind(Optim(), a),
        kind(Optim(), b),
        kind(Optim(), a, b),
        kind(Optim(), a, decay=1.0),
        kind(Optim(clip=1.0), a),
        kind(Optim(momentum=0.5), a),
        kind(Optim(nesterov=False), a),
    }
    assert len(kinds) == 7
    assert kind(Optim(lr=0.1), a) == kind(Optim(lr=0.9), a)  # the rate is a tensor that a recorded step reads


class Replays:
    """What a recorder does, without a GPU: the first body of a kind and size is kept, and called in the place of every later one."""

    def __init__(self, space: Workspace) -> None:
        self.space, self.replayed, self.steps = space, 0, 0
        self.kept: dict[Any, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {}

    def aside(self) -> nullcontext[None]:
        return nullcontext()

    def __call__(self, kind: Any, body: Callable[[torch.Tensor], torch.Tensor], index: torch.Tensor) -> torch.Tensor:
        if kind is None:
            return body(index)
        key, training = (kind, len(index)), self.space.module.training
        self.replayed += key in self.kept
        self.steps += training and key in self.kept
        kept, then = self.kept.setdefault(key, (body, training))
        assert then == training
        return kept(index)


@pytest.mark.parametrize(
    "settings", [{}, {"clip": 0.5}, {"momentum": 0.0, "nesterov": False}, {"lr_scale": {Role.HEAD: 0.5, Role.STEM: 0.0}}]
)
@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("fedavg", False),
        ("fedavg", True),
        ("fedrep", False),
        ("fedbabu", False),
        ("fedfomo", False),
        ("fedgen", False),
        ("fedprox", False),
        ("fedprox", True),
        ("feddyn", False),
        ("feddyn", True),
    ],
)
def test_the_first_step_of_a_kind_stands_for_all_of_them(name: str, hyper: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    """Whatever round, client, scope or learning rate a body was made for: another of its kind would have done the same."""

    def change(engine: LocalEngine) -> LocalEngine:  # rates that float32 holds exactly, as recorded steps read them from a tensor
        engine.optim = Optim(**{"lr": 0.0625, "schedule": "multistep", "milestones": (0.2,), "gamma": 0.5, **settings})
        return engine

    def replaying(engine: LocalEngine) -> LocalEngine:
        engine.space.recorder = replays = Replays(engine.space)  # type: ignore[assignment]
        made.append(replays)
        return change(engine)

    made: list[Replays] = []
    assert_same(played(name, hyper, tmp_path / "plain", change), played(name, hyper, tmp_path / "replays", replaying))
    assert made[0].replayed > 30 and made[0].steps > 30


def on_gpu(graphs: bool, lanes: int, precision: str, made: list[LocalEngine] | None = None) -> Callable[[LocalEngine], LocalEngine]:
    def change(engine: LocalEngine) -> LocalEngine:
        device = torch.device("cuda:0")
        prepare_gpu(device)
        own = tiny_images(sum(SIZES))
        images = Images(own.x.numpy(), own.y.numpy(), (0.3,), (0.2,), device)
        engine.space, engine.lanes = Workspace(engine.method.model, images, precision, Gpu(graphs)), lanes
        engine.train_index = [i.to(device) for i in engine.train_index]
        engine.test_index = [i.to(device) for i in engine.test_index]
        if made is not None:
            made.append(engine)
        return engine

    return change


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "hyper"),
    [("fedavg", False), ("fedavg", True), ("fedrep", False), ("fedprox", False), ("feddyn", True), ("fedgen", False), ("fedfomo", False)],
)
def test_replayed_steps_and_lanes_leave_the_bits_of_plain_steps(name: str, hyper: bool, precision: str, tmp_path: Path) -> None:
    plain = played(name, hyper, tmp_path / "plain", on_gpu(False, 1, precision))
    assert_same(plain, played(name, hyper, tmp_path / "again", on_gpu(False, 1, precision)))
    for lanes in (1, 3):
        made: list[LocalEngine] = []
        assert_same(plain, played(name, hyper, tmp_path / str(lanes), on_gpu(True, lanes, precision, made)))
        assert len(made[0]._spaces) == lanes or lanes == 1
        for space in made[0]._spaces or [made[0].space]:
            assert space.recorder is not None and space.recorder.graphs and space.recorder.recorded, "nothing was replayed"


@needs_gpu
def test_what_is_too_much_to_record_is_run_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = played("fedavg", False, tmp_path / "plain", on_gpu(False, 1, "fp32"))
    monkeypatch.setattr("hyperfed.engine.gpu.MOST_RECORDED", 2)
    made: list[LocalEngine] = []
    assert_same(plain, played("fedavg", False, tmp_path / "two", on_gpu(True, 1, "fp32", made)))
    assert made[0].space.recorder is not None and len(made[0].space.recorder.recorded) == 2


@needs_gpu
def test_steps_are_recorded_once_per_size_and_replayed(tmp_path: Path) -> None:
    engine = on_gpu(True, 1, "fp32")(tiny_engine(METHODS["fedavg"](tiny_network(), len(SIZES)), tmp_path, SIZES, local=Local(2, 8)))
    client, start = engine.client(0, 1, "train", engine.optim, 0.05), engine.initial()
    client.fit(start)
    recorder = engine.space.recorder
    assert recorder is not None and recorder.graphs
    assert sorted(size for _, size in recorder.recorded) == [4, 8]
    with torch.autograd.profiler.profile() as profile:  # a replay calls no convolution
        client.fit(start, train=ALL)
    assert not [e.name for e in profile.function_events if "conv" in e.name]


@needs_gpu
def test_the_gpu_agrees_with_the_cpu(tmp_path: Path) -> None:
    """Not to the bit: another order of sums. Three rounds in float32 keep every weight within a thousandth."""
    ours, theirs = (
        played("fedavg", False, tmp_path / "gpu", on_gpu(True, 2, "fp32")),
        played("fedavg", False, tmp_path / "cpu", lambda e: e),
    )
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-3)
