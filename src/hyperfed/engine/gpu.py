"""A GPU kept busy: steps recorded once and replayed (CUDA graphs), clients trained side by side on streams of their own.

A step of a small network is hundreds of kernels of a few microseconds each. Started one by one from Python, they leave the GPU idle most
of the time, and one client's alone do not fill it (figures: benchmarks/README.md). With or without either the bits are the same.
"""

import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from hyperfed.core import invalid

log = logging.getLogger(__name__)
T = TypeVar("T")
Body = Callable[[Tensor], Tensor]
"""Indices of a batch [B] -> a scalar; everything else it reads or changes stays where it is in memory."""
MOST_RECORDED = 512
"""Steps of further kinds and sizes are run as they are. No graph is given up for them: with it would go the memory that cuBLAS works in on
its stream, where the stream's other graphs go on writing."""
MOST_LANES = 32
"""PyTorch hands out so many streams, then the first again."""
_giving = threading.Lock()
"""Held while a step is given to the GPU, which works on many lanes' at once: all backward passes of a process are given by one thread of
autograd, whose cuDNN and cuBLAS handles would otherwise go back and forth between lanes."""


class Gate:
    """Many threads work with the GPU, or one alone records: PyTorch allows no other work in the process while a graph is captured.

    A thread of a lane is known while it works, and steps aside between two of its steps when another wants to be alone. Who is where
    is told by sets of threads and not by counts, so that an interrupt does not leave it wrong.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working: set[int] = set()
        self._wanting: set[int] = set()
        self._alone: int | None = None

    def _enter(self, me: int) -> None:
        self._changed.wait_for(lambda: not self._wanting and self._alone is None)
        self._working.add(me)

    def _leave(self, me: int) -> None:
        self._working.discard(me)
        self._changed.notify_all()

    @contextmanager
    def working(self) -> Iterator[None]:
        """This thread works with the GPU."""
        me = threading.get_ident()
        try:
            with self._changed:
                self._enter(me)
            yield
        finally:
            with self._changed:
                self._leave(me)

    def give_way(self) -> None:
        """Let those go first who want to be alone."""
        me = threading.get_ident()
        if self._wanting and me in self._working:
            with self._changed:
                self._leave(me)
                self._enter(me)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other thread works until this is left."""
        me = threading.get_ident()
        works = me in self._working
        try:
            with self._changed:
                self._wanting.add(me)
                self._leave(me)
                self._changed.wait_for(lambda: not self._working and self._alone in (None, me))
                self._alone = me
                self._wanting.discard(me)
            yield
        finally:
            with self._changed:
                self._wanting.discard(me)
                self._alone = None if self._alone == me else self._alone
                if works:
                    self._working.add(me)
                self._changed.notify_all()


GATE = Gate()


@dataclass(frozen=True)
class Gpu:
    """``graphs``: record and replay steps. ``lanes``: clients that train at the same time, each on a model of its own."""

    graphs: bool = True
    lanes: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= MOST_LANES:
            raise invalid("gpu.lanes", self.lanes, f"a whole number from 1 to {MOST_LANES}")


def prepare_gpu(device: torch.device) -> None:
    """Work on ``device`` from here on, with kernels that sum in the same order every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.cuda.set_device(device.index or 0)


class Recorded(NamedTuple):
    """A body as a graph: it reads ``batch`` and writes ``result``, wherever they lie."""

    graph: torch.cuda.CUDAGraph
    batch: Tensor
    result: Tensor


class Recorder:
    """Runs bodies on one stream. The first time a body of some kind and size is run as it is, and then recorded; later it is replayed."""

    def __init__(self, device: torch.device, graphs: bool) -> None:
        self.stream, self.graphs = own_stream(device), graphs
        _on_stream[self.stream.cuda_stream] = self
        self.pool = torch.cuda.graph_pool_handle() if graphs else None
        self.recorded: dict[tuple[Hashable, int], Recorded] = {}
        self._broken: list[torch.cuda.CUDAGraph] = []

    def __call__(self, kind: Hashable, body: Body, index: Tensor) -> Tensor:
        """``body(index)``. Bodies of the same ``kind`` must do the same to the same memory; those of kind None are never replayed."""
        key = (kind, len(index))
        GATE.give_way()
        if (found := self.recorded.get(key)) is not None:
            with _giving:
                found.batch.copy_(index)
                found.graph.replay()
                return found.result.clone()  # the next graph may write there
        if kind is None or not self.graphs or len(self.recorded) >= MOST_RECORDED:
            with _giving:
                return body(index)
        with GATE.alone():
            result = body(index)
            self._record(key, body)
            return result

    def _record(self, key: tuple[Hashable, int], body: Body) -> None:
        """Write the kernels down, without running them. Where that cannot be done, bodies are run as they are from now on."""
        graph, batch = torch.cuda.CUDAGraph(), torch.empty(key[1], dtype=torch.int64, device=self.stream.device)
        try:
            graph.capture_begin(self.pool, capture_error_mode="thread_local")
            try:
                result = body(batch)
            finally:
                graph.capture_end()
        except RuntimeError as problem:
            self.graphs = False
            self._broken.append(graph)  # the allocator may still ask it which stream it recorded
            log.warning("steps are not recorded (gpu.graphs=false does the same): %s", str(problem).split("\n")[0])
            return
        self.recorded[key] = Recorded(graph, batch, result)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On this recorder's stream, after what was started before and before what is started afterwards."""
        outer = torch.cuda.current_stream(self.stream.device)
        if outer == self.stream:
            yield
            return
        self.stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outer.wait_stream(self.stream)


_on_stream: WeakValueDictionary[int, Recorder] = WeakValueDictionary()


def own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that no recorder works on, as long as there is one: the end of one's graphs would take the memory of the other's."""
    for _ in range(MOST_LANES):
        stream = torch.cuda.Stream(device)
        if stream.cuda_stream not in _on_stream:
            break
    return stream


class Workers:
    """Threads that never end: what cuDNN has planned belongs to the thread it was planned in, and to plan it again takes long.

    A lane always has the same one: cuBLAS keeps memory for every thread on every stream that the thread has worked on.
    """

    def __init__(self) -> None:
        self._asked: list[SimpleQueue[tuple[Callable[[], object], Future[object]]]] = []

    def submit(self, number: int, job: Callable[[], object]) -> Future[object]:
        """Have the one with this number do it."""
        while len(self._asked) <= number:
            self._asked.append(SimpleQueue())
            name = f"lane-{len(self._asked) - 1}"
            threading.Thread(target=self._serve, args=(self._asked[-1],), name=name, daemon=True).start()
        future: Future[object] = Future()
        self._asked[number].put((job, future))
        return future

    @staticmethod
    def _serve(asked: "SimpleQueue[tuple[Callable[[], object], Future[object]]]") -> None:
        while True:
            job, future = asked.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as problem:
                    future.set_exception(problem)
            del job, future  # nothing of a run is held until the next


WORKERS = Workers()


def side_by_side(lanes: list[T], jobs: Iterable[Callable[[T], object]], rank: Callable[[T, int], int] = lambda lane, i: 0) -> list[object]:
    """The results of ``jobs`` in their order; each has a lane to itself while it runs. The caller makes them all and then only waits.

    A lane that is free begins the job of the lowest ``rank``, of those the first. Once a job raises, no other is begun; of several
    exceptions that of the first job is raised.
    """
    made = list(jobs)  # they hold tensors that lanes read: none is freed, and its memory used again, before all lanes are done
    waiting, choosing = list(range(len(made))), threading.Lock()
    results: list[object] = [None] * len(made)
    problems: dict[int, BaseException] = {}

    def next_for(lane: T) -> int | None:
        with choosing:
            if problems or not waiting:
                return None
            waiting.remove(i := min(waiting, key=lambda i: (rank(lane, i), i)))
            return i

    def serve(lane: T) -> None:
        while (i := next_for(lane)) is not None:
            try:
                with GATE.working():
                    results[i] = made[i](lane)
            except BaseException as problem:
                problems[i] = problem

    serving: list[Future[object]] = []
    try:
        for number, lane in enumerate(lanes):
            serving.append(WORKERS.submit(number, partial(serve, lane)))
        wait(serving)
    finally:  # an interrupt, too, leaves no lane at work
        with choosing:
            waiting.clear()
        wait(serving)
    if problems:
        first = problems[min(problems)]
        problems.clear()
        try:
            raise first
        finally:
            del first, serving  # its traceback holds this frame: nothing of a run is to live on in a circle
    for served in serving:
        served.result()
    return results
