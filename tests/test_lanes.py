"""Clients trained side by side change no number: what can be seen of it without a GPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperfed.core import Round
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.round import Finetune, StopAsked
from hyperfed.engine.workspace import NonFiniteLoss
from hyperfed.methods import METHODS
from played import SIZES, assert_same, played
from problems import tiny_engine, tiny_network


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


def test_tensors_that_do_not_fit_their_place_are_refused(tmp_path: Path) -> None:
    space = tiny_engine(METHODS["fedavg"](tiny_network(), len(SIZES)), tmp_path, SIZES).space
    first = space.place("key", {"a": torch.ones(3)})
    assert space.place("key", {"a": torch.full((3,), 2.0)})["a"] is first["a"] and first["a"].tolist() == [2.0] * 3
    for wrong in ({"a": torch.ones(1)}, {"a": torch.ones(3, dtype=torch.float64)}, {}, {"a": torch.ones(3), "b": torch.ones(3)}):
        with pytest.raises(ValueError, match="steps cannot be replayed"):
            space.place("key", wrong)


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


def test_clients_whose_fine_tuning_breaks_are_named_in_their_order(tmp_path: Path) -> None:
    engine = with_lanes(3)(tiny_engine(METHODS["fedavg"](tiny_network(), len(SIZES)), tmp_path, SIZES))
    told: list[int] = []
    engine.on_nan, engine.warn = "skip", lambda number, k, text: told.append(k)
    rnd, server = Round(1, torch.arange(len(SIZES)), torch.tensor(SIZES)), engine.method.init_server(engine.initial())
    for turn in range(6):
        for space in engine._spaces:  # so that the last clients are begun first
            space.met = {4 - turn % 3}
        scores = list(engine.evaluate(rnd, lambda k: engine.method.download(server, rnd, k), Finetune(1, 1e30)))
        assert told == [0, 1, 2, 3, 4] and all(s.before == s.after for s in scores)
        told.clear()
    engine.on_nan = "stop"
    with pytest.raises(NonFiniteLoss, match="client 0 "):
        list(engine.evaluate(rnd, lambda k: engine.method.download(server, rnd, k), Finetune(1, 1e30)))


def test_lanes_stop_between_two_clients(tmp_path: Path) -> None:
    asked: list[int] = []

    def change(engine: LocalEngine) -> LocalEngine:
        engine = with_lanes(2)(engine)
        engine.stop = lambda: len(asked) > 2 or bool(asked.append(1))
        return engine

    with pytest.raises(StopAsked):
        played("fedavg", False, tmp_path, change)
