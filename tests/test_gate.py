"""Threads beside each other on one GPU, without one: who records is alone, jobs have a lane each, streams are not shared."""

import gc
import itertools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch

from hyperfed.core import UserError
from hyperfed.engine import gpu
from hyperfed.engine.gpu import Gate, Gpu, side_by_side


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


def test_an_interrupt_leaves_the_gate_open() -> None:
    """Ctrl-C at any instruction of the main thread, which records: the next to record is not kept waiting for ever."""
    instructions, at = itertools.count(), 0

    def interrupt(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is not Gate.alone.__wrapped__.__code__:  # type: ignore[attr-defined]
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(instructions) == at:
            raise KeyboardInterrupt
        return interrupt

    def once(gate: Gate) -> bool:
        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            with gate.alone():
                pass
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    while once(gate := Gate()):
        assert not gate._working and not gate._wanting
        with gate.alone():
            pass
        with gate.working():
            gate.give_way()
        instructions, at = itertools.count(), at + 1
    assert at > 50


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


def test_a_lane_begins_what_it_knows_and_leaves_none_idle() -> None:
    both, known = threading.Barrier(2, timeout=60), {"a": {2, 3}, "b": {0, 1}}

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


def test_what_breaks_outside_a_job_is_told_and_what_broke_is_not_held() -> None:
    def rank(lane: str, i: int) -> int:
        raise LookupError("no rank")

    with pytest.raises(LookupError, match="no rank"):
        side_by_side(["a", "b"], [lambda lane: lane] * 3, rank)

    class Large:
        """What a job holds."""

    held = list[weakref.ref[Large]]()

    def job(lane: str) -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise ValueError("broken")

    gc.disable()
    try:
        try:
            side_by_side(["a"], [job])
        except ValueError as problem:
            assert str(problem) == "broken"
        assert held[0]() is None, "freed without a search for circles"
    finally:
        gc.enable()


def test_a_lane_has_the_same_thread_every_time() -> None:
    def thread(lane: str) -> str:
        return threading.current_thread().name

    assert [side_by_side([lane], [thread]) for lane in "ab"] == [["lane-0"]] * 2
    both = threading.Barrier(2, timeout=60)

    def at_once(lane: str) -> tuple[str, str]:
        both.wait()
        return lane, thread(lane)

    assert {*side_by_side(["a", "b"], [at_once] * 2)} == {("a", "lane-0"), ("b", "lane-1")}


def test_two_recorders_share_no_stream_while_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch hands out 32 streams in turn."""

    class Worker:
        """Stands for a recorder."""

    handed_out = itertools.cycle(range(32))
    monkeypatch.setattr("torch.cuda.Stream", lambda device: SimpleNamespace(cuda_stream=next(handed_out)))
    monkeypatch.setattr(gpu, "_on_stream", WeakValueDictionary())
    at_work = [Worker() for _ in range(32)]
    device = torch.device("cpu")
    first = gpu.own_stream(device).cuda_stream
    for worker in at_work:
        gpu._on_stream[gpu.own_stream(device).cuda_stream] = worker  # type: ignore[assignment]
    assert len(gpu._on_stream) == 32
    gpu.own_stream(device)  # all are taken: any
    gone = next(n for n, worker in gpu._on_stream.items() if worker is at_work[7])
    del at_work[7], worker
    assert gpu.own_stream(device).cuda_stream == gone != first


@pytest.mark.parametrize("lanes", [0, 33])
def test_numbers_of_lanes_that_cannot_be_are_refused(lanes: int) -> None:
    with pytest.raises(UserError, match=rf"gpu.lanes = {lanes} is not valid: must be a whole number from 1 to 32"):
        Gpu(lanes=lanes)
