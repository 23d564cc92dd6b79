"""A sweep that lasts: runs in worker processes, finished ones never repeated, interrupted ones resumed, failures listed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperfed.core.files import lock, write_json
from hyperfed.evidence.plans import Cell
from hyperfed.evidence.store import Store
from hyperfed.main import EXIT_DIVERGED, EXIT_INTERRUPTED
from hyperfed.processes import die_with_parent, interruptible
from hyperfed.run.checkpoint import available

POLL_SECONDS = 0.5
GRACE_SECONDS = 120.0
STARTS = 3
"""How often a run is started that a signal ends (killed for memory, a crash of a driver): each time it goes on from its checkpoint."""


@dataclass
class Outcome:
    """What became of a plan: cells now in the store, cells that failed with their message, cells left for another time."""

    finished: list[Cell] = field(default_factory=list)
    failed: dict[Cell, str] = field(default_factory=dict)
    left: list[Cell] = field(default_factory=list)


@dataclass
class Worker:
    """A run in a process of its own. It holds its folder's lock, too: a killed sweep leaves it locked while the run goes on."""

    cell: Cell
    folder: Path
    process: subprocess.Popen[bytes]
    lock: int


Progress = Callable[[dict[Cell, int]], None]
"""Hears the rounds done of every cell of the block that is finished or under way."""


@dataclass
class Sweep:
    """Plays cells into ``store``. ``free`` are settings that may differ from machine to machine (data.root, device, ...)."""

    store: Store
    work: Path
    free: dict[str, Any]
    workers: int = 1
    deadline: float | None = None
    progress: Progress = lambda rounds: None
    _starts: Counter[Cell] = field(default_factory=Counter)

    def play(self, cells: Sequence[Cell]) -> Outcome:
        """Run what is missing, in the order of the plan. Stops starting runs at the deadline, and has those under way save and stop.

        Raises KeyboardInterrupt after Ctrl-C, when those under way have stopped; it is noted and not raised where it arrives:
        what is raised amid a fork, Python drops.
        """
        out, running = Outcome(), list[Worker]()
        waiting = [cell for cell in dict.fromkeys(cells) if not self._settled(cell, out)]
        with interruptible() as asked:
            try:
                while (waiting or running) and not asked():
                    late = self.deadline is not None and time.monotonic() >= self.deadline
                    while waiting and len(running) < self.workers and not late and not asked():
                        self._begin(waiting.pop(0), out, running)
                    if late:
                        break
                    self._look(running, waiting, out)
            finally:
                self._stop(running, out)
            if asked():
                raise KeyboardInterrupt
        out.left += waiting
        return out

    def _look(self, running: list[Worker], waiting: list[Cell], out: Outcome) -> None:
        """Tell how far the runs are and settle those that have ended; then wait a little."""
        over = {cell: int(cell.composed()["rounds"]) for cell in (*out.finished, *out.failed)}
        self.progress(over | {w.cell: rounds_done(w.folder) for w in running})
        for worker in [w for w in running if w.process.poll() is not None]:
            running.remove(worker)
            if worker.process.returncode < 0 and self._starts[worker.cell] < STARTS:
                waiting.insert(0, worker.cell)
            else:
                self._end(worker, out)
            os.close(worker.lock)
        if running:
            time.sleep(POLL_SECONDS)

    def _begin(self, cell: Cell, out: Outcome, running: list[Worker]) -> None:
        """Start the cell's run, unless another sweep is at it or has just finished it."""
        folder = self.work / cell.scale / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / ".lock")  # not the run's own lock, which its process takes itself
        if held is None:
            out.left.append(cell)
            return
        try:
            if self._settled(cell, out):
                return
            write_json(folder / "config.json", self.composed(cell, folder))
            with (folder / "log.txt").open("ab") as log:
                command = [sys.executable, "-m", "hyperfed.main", f"resume={folder}"]
                one = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
                process = subprocess.Popen(command, stdout=log, stderr=log, env=one, pass_fds=[held], preexec_fn=die_with_parent)
            running.append(Worker(cell, folder, process, held))
            self._starts[cell] += 1
            held = None  # until its result is in the store
        finally:
            if held is not None:
                os.close(held)

    def _settled(self, cell: Cell, out: Outcome) -> bool:
        """Whether the store, as it is on disk now, has the cell's run or its failure."""
        self.store.forget(cell)
        if self.store.get(cell) is not None:
            out.finished.append(cell)
        elif (message := self.store.failure(cell)) is not None:
            out.failed[cell] = message
        else:
            return False
        return True

    def composed(self, cell: Cell, folder: Path) -> dict[str, Any]:
        """The resolved configuration of the cell's run in ``folder`` on this machine."""
        composed = cell.composed()
        for name, value in {**self.free, "threads": 1, "run.dir": str(folder)}.items():
            *above, last = name.split(".")
            part = composed
            for key in above:
                part = part[key]
            part[last] = value
        return composed

    def _end(self, worker: Worker, out: Outcome) -> None:
        """Keep a finished run and clear its folder; one that diverged is kept as a failure, anything else only told."""
        code = worker.process.returncode
        if code == 0:
            try:
                self.store.put(worker.cell, worker.folder)
            except OSError as problem:
                out.failed[worker.cell] = f"its result could not be written: {problem.strerror or problem}; it is in {worker.folder}"
                return
            shutil.rmtree(worker.folder)
            out.finished.append(worker.cell)
        elif code == EXIT_INTERRUPTED:
            out.left.append(worker.cell)
        else:
            lines = (worker.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            message = lines[-1].removeprefix("hyperfed: ") if lines else f"exit status {code}"
            if code == EXIT_DIVERGED:
                self.store.put_failure(worker.cell, message)
            out.failed[worker.cell] = message if code >= 0 else f"ended by signal {-code} in each of {STARTS} starts"

    def _stop(self, running: list[Worker], out: Outcome) -> None:
        """Ask the runs under way to save their last round and stop."""
        for worker in running:
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGINT)
        for worker in running:
            try:
                worker.process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            if worker.process.returncode == 0:
                self._end(worker, out)
            else:
                out.left.append(worker.cell)
            os.close(worker.lock)
        running.clear()


def rounds_done(folder: Path) -> int:
    """The round of the run's last checkpoint."""
    found = available(folder / "checkpoints")
    return int(found[-1].name.removeprefix("round-")) if found else 0
