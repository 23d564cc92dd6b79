"""What keeps a GPU busy changes no number. The tests of the GPU itself need one; those of the lanes and of the optimiser do not."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperfed.core import ALL, Role, Round, UserError, flatten
from hyperfed.engine.gpu import Gate, Gpu, prepare_gpu, side_by_side
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.optim import Optim, Standing
from hyperfed.engine.round import Finetune, StopAsked, play
from hyperfed.engine.workspace import Images, Local, NonFiniteLoss, Workspace
from hyperfed.methods import METHODS
from hyperfed.models import HyperModel, Hypernet
from problems import tiny_engine, tiny_images, tiny_network

SIZES = (20, 23, 30, 17, 20)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def played(name: str, hyper: bool, folder: Path, change: Callable[[LocalEngine], LocalEngine], rounds: int = 3) -> dict[str, Any]:
    """The server's and the clients' tensors, losses and scores after some rounds, of which the last has another learning rate."""
    network = tiny_network()
    method = METHODS[name](HyperModel(network, Hypernet(embedding=4)) if hyper else network, len(SIZES))
    optim = Optim(lr=0.05, schedule="multistep", milestones=(0.2,))
    engine = change(tiny_engine(method, folder, SIZES, optim=optim, local=Local(2, 8)))
    server, out = method.init_server(engine.initial()), dict[str, Any]()
    everyone = torch.arange(len(SIZES))
    for number in range(1, rounds + 1):
        rnd = Round(number, everyone, torch.tensor(SIZES))
        server, out[f"losses {number}"] = play(method, server, rnd, engine, lambda *a: None)
        scores = engine.evaluate(rnd, lambda k, rnd=rnd, server=server: method.download(server, rnd, k), Finetune(1, 0.03125))
        out[f"scores {number}"] = list(scores)
    out |= {f"server {n}": t.cpu() for n, t in flatten(server).items()}
    return out | {f"{k} {n}": t.cpu() for k in range(len(SIZES)) for n, t in flatten(engine.state(k)).items()}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name], name


def with_lanes(number: int) -> Callable[[LocalEngine], LocalEngine]:
    def change(engine: LocalEngine) -> LocalEngine:
        engine.lanes = number
        return engine

    return change


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("fedavg", False),
        ("fedavg", True),
        ("fedrep", False),
        ("fedfomo", False),
        ("pfedhn", False),
        ("perfedavg", False),
        ("perfedavg", True),
    ],
)
def test_clients_side_by_side_leave_the_bits_of_clients_in_turn(name: str, hyper: bool, tmp_path: Path) -> None:
    assert_same(played(name, hyper, tmp_path / "one", lambda e: e), played(name, hyper, tmp_path / "three", with_lanes(3)))


def test_who_records_is_alone() -> None:
    gate, busy, alone, wrong = Gate(), set[int](), list[int](), list[str]()

    def lane(me: int) -> None:
        with gate.working():
            for step in range(40):
                gate.give_way()
                if step % 8 == me:
                    with gate.alone():
                        alone.append(me)
                        time.sleep(0.001)
                        wrong.extend(f"{other} beside {me}" for other in busy)
                        wrong.extend(f"{me} not alone" for _ in alone[1:])
                        alone.clear()
                else:
                    busy.add(me)
                    time.sleep(0.001)
                    busy.discard(me)

    threads = [threading.Thread(target=lane, args=(me,), daemon=True) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong
    with gate.alone():  # also of someone who is no lane
        gate.give_way()


def test_the_first_job_that_fails_is_told_and_none_is_left_at_work() -> None:
    done, wait = list[int](), threading.Event()

    def job(i: int) -> Callable[[str], int]:
        def do(lane: str) -> int:
            if i == 1:
                wait.set()
                raise ValueError("the second")
            wait.wait(60)
            time.sleep(0.02)
            done.append(i)
            return i

        return do

    with pytest.raises(ValueError, match="the second"):
        side_by_side(["a", "b"], map(job, range(200)))
    assert 0 in done and len(done) < 199


def test_jobs_run_at_the_same_time_and_answer_in_their_order() -> None:
    met, made_in = threading.Barrier(3, timeout=60), list[str]()

    def jobs() -> Iterator[Callable[[str], tuple[int, str]]]:
        for i in range(6):
            made_in.append(threading.current_thread().name)

            def job(lane: str, i: int = i) -> tuple[int, str]:
                met.wait()  # passes only where three jobs run at once
                return i, lane

            yield job

    came: list[Any] = side_by_side(["a", "b", "c"], jobs())
    threads = {t.ident for t in threading.enumerate() if t.name.startswith("lane-")}
    assert [i for i, _ in came] == list(range(6))
    assert {lane for _, lane in came[:3]} == {"a", "b", "c"}
    assert set(made_in) == {threading.current_thread().name}
    assert side_by_side(["d"], iter([lambda lane: lane])) == ["d"]
    assert {t.ident for t in threading.enumerate() if t.name.startswith("lane-")} == threads  # they stay, and serve whoever comes


def test_a_diverging_client_among_lanes_is_named_and_the_rest_can_go_on(tmp_path: Path) -> None:
    warned: list[tuple[int, int]] = []

    def broken(on_nan: str) -> Callable[[LocalEngine], LocalEngine]:
        def change(engine: LocalEngine) -> LocalEngine:
            engine = with_lanes(2)(engine)
            engine.on_nan, engine.warn = on_nan, lambda number, k, text: warned.append((number, k))
            engine.optim = replace(engine.optim, lr=1e30)
            return engine

        return change

    with pytest.raises(NonFiniteLoss, match="client 0 is not finite in round 1"):
        played("fedavg", False, tmp_path / "stop", broken("stop"))
    played("fedavg", False, tmp_path / "skip", broken("skip"), rounds=1)
    assert warned == [(1, k) for k in range(len(SIZES))]


def test_a_lane_begins_what_it_knows_and_leaves_none_idle() -> None:
    both, known = threading.Barrier(2, timeout=60), {"a": {2, 3}, "b": {0, 1, 4}}

    def job(i: int) -> Callable[[str], str]:
        def do(lane: str) -> str:
            if i < 4:
                both.wait()  # two at a time
            return lane

        return do

    def rank(lane: str, i: int) -> int:
        return i not in known[lane]

    assert side_by_side(["a", "b"], map(job, range(4)), rank) == ["b", "b", "a", "a"]
    known["a"].clear()
    assert set(side_by_side(["a", "b"], map(job, range(2)), rank)) == {"a", "b"}


def test_few_downloads_are_made_ahead_and_nothing_is_held_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperfed.engine.local.AT_ONCE", 1)
    engine = with_lanes(2)(tiny_engine(METHODS["fedper"](tiny_network(), len(SIZES)), tmp_path, SIZES))
    made, begun, turn = list[int](), list[tuple[int, int]](), engine.turn
    server = engine.method.init_server(engine.initial())
    rnd = Round(1, torch.arange(len(SIZES)), torch.tensor(SIZES))

    def download(k: int) -> Any:
        made.append(k)
        return engine.method.download(server, rnd, k)

    def counting(k: int, *rest: Any) -> Any:
        begun.append((k, len(made)))
        return turn(k, *rest)

    monkeypatch.setattr(engine, "turn", counting)
    assert [reply.client for reply in engine.train(rnd, download)] == [0, 1, 2, 3, 4]
    assert sorted(begun) == [(0, 2), (1, 2), (2, 4), (3, 4), (4, 5)]
    engine.commit(1)
    turn(0, 2, download(0), engine.space)  # as a process of a federation does, which plays no round
    assert engine._read is None and not engine._staged


def test_lanes_stop_between_two_clients(tmp_path: Path) -> None:
    asked: list[int] = []

    def change(engine: LocalEngine) -> LocalEngine:
        engine = with_lanes(2)(engine)
        engine.stop = lambda: len(asked) > 2 or bool(asked.append(1))
        return engine

    with pytest.raises(StopAsked):
        played("fedavg", False, tmp_path, change)


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


@pytest.mark.parametrize("lanes", [0, 33])
def test_numbers_of_lanes_that_cannot_be_are_refused(lanes: int) -> None:
    with pytest.raises(UserError, match=rf"gpu.lanes = {lanes} is not valid: must be a whole number from 1 to 32"):
        Gpu(lanes=lanes)


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
def test_what_is_recorded_last_is_kept_and_the_bits_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
