"""A sweep that lasts: runs in worker processes, finished ones never repeated, interrupted ones resumed, failures listed."""

import logging
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

from hyperfed import __version__
from hyperfed.core import UserError
from hyperfed.core.files import lock, read_json, write_json
from hyperfed.evidence.plans import Cell
from hyperfed.evidence.store import Store, revision
from hyperfed.main import EXIT_DIVERGED, EXIT_INTERRUPTED
from hyperfed.processes import die_with_parent, interruptible
from hyperfed.run.checkpoint import available
from hyperfed.run.config import resume_setting

log = logging.getLogger(__name__)

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
"""Hears the rounds done of every run that is finished or under way."""


@dataclass
class Sweep:
    """Plays cells into ``store``. ``free`` are settings that may differ from machine to machine (data.root, device, ...).

    ``say`` hears a sentence when a run has ended.
    """

    store: Store
    work: Path
    free: dict[str, Any]
    workers: int = 1
    deadline: float | None = None
    progress: Progress = lambda rounds: None
    say: Callable[[str], None] = lambda text: None
    _starts: Counter[Cell] = field(default_factory=Counter)

    def play(self, cells: Sequence[Cell]) -> Outcome:
        """Run what is missing, in the order of the plan; the trials of an open learning rate come before the run that waits for them.

        Stops starting runs at the deadline, and has those under way save and stop. Raises KeyboardInterrupt after Ctrl-C, when those
        under way have stopped; it is noted and not raised where it arrives: what is raised amid a fork, Python drops.
        """
        out, running, waiting = Outcome(), list[Worker](), list(dict.fromkeys(cells))
        with interruptible() as asked:
            try:
                while not asked():
                    late = self.deadline is not None and time.monotonic() >= self.deadline
                    while len(running) < self.workers and not late and not asked() and (cell := self._next(waiting, running, out)):
                        self._begin(cell, out, running)
                    if late or not running:
                        break
                    self._look(running, waiting, out)
            finally:
                self._stop(running, out)
            if asked():
                raise KeyboardInterrupt
        out.left += waiting
        return out

    def _next(self, waiting: list[Cell], running: list[Worker], out: Outcome) -> Cell | None:
        """The first run that can be started now; cells that have their result, or cannot get one today, are taken off the list."""
        busy = {worker.cell for worker in running}
        for cell in list(waiting):
            chosen = self.store.choose(cell)
            if chosen is None:
                open_ = [t for t in cell.trials if not self.store.is_settled(t)]
                if fresh := [t for t in open_ if t not in busy and t not in out.failed and t not in out.left]:
                    return fresh[0]
                if not busy & {*open_}:
                    waiting.remove(cell)
                    out.left.append(cell)
                continue
            waiting.remove(cell)
            for one in (*cell.trials, chosen):
                self._clear(one)
            if not self._settled(chosen, out):
                return chosen
        return None

    def _look(self, running: list[Worker], waiting: list[Cell], out: Outcome) -> None:
        """Settle the runs that have ended and tell how far the others are; then wait a little."""
        for worker in [w for w in running if w.process.poll() is not None]:
            running.remove(worker)
            if worker.process.returncode < 0 and self._starts[worker.cell] < STARTS:
                os.close(worker.lock)
                waiting.insert(0, worker.cell)
            else:
                self._end(worker, out)
        over = {cell: cell.rounds for cell in (*out.finished, *out.failed)}
        self.progress(over | {w.cell: rounds_done(w.folder) for w in running})
        if running:
            time.sleep(POLL_SECONDS)

    def _begin(self, cell: Cell, out: Outcome, running: list[Worker]) -> None:
        """Start the cell's run, unless another sweep is at it or has just finished it."""
        folder = self._folder(cell)
        held = _claim(folder)  # not the run's own lock, which its process takes itself
        if held is None:
            out.left.append(cell)
            return
        try:
            if self._settled(cell, out):
                return
            _without_other_versions(folder, cell)
            write_json(folder / "config.json", self.composed(cell, folder))
            with (folder / "log.txt").open("ab") as log_of_run:
                command = [sys.executable, "-m", "hyperfed.main", resume_setting(folder)]
                one = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
                process = subprocess.Popen(
                    command, stdout=log_of_run, stderr=log_of_run, env=one, pass_fds=[held], preexec_fn=die_with_parent
                )
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

    def _folder(self, cell: Cell) -> Path:
        return self.work / cell.scale / cell.name

    def _clear(self, cell: Cell) -> None:
        """Remove the folder of a run that is in the store: a sweep that was killed in between left it."""
        folder = self._folder(cell)
        if folder.exists() and self.store.get(cell) is not None and (held := _claim(folder)) is not None:
            os.close(held)
            shutil.rmtree(folder, ignore_errors=True)

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
        try:
            kept = self._keep(worker, out)
        finally:
            os.close(worker.lock)
        if kept:
            shutil.rmtree(worker.folder, ignore_errors=True)  # NFS keeps the name of a file that a process has open

    def _keep(self, worker: Worker, out: Outcome) -> bool:
        """Whether its result is in the store."""
        cell, code = worker.cell, worker.process.returncode
        if code == EXIT_INTERRUPTED:
            out.left.append(cell)
            return False
        if code == 0:
            try:
                self.store.put(cell, worker.folder)
            except (OSError, UserError) as problem:
                why = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem).rstrip(".")
                out.failed[cell] = f"its result could not be written: {why}; it is in {worker.folder}"
            else:
                out.finished.append(cell)
                self.say(f"done: {cell.name}")
                return True
        else:
            lines = (worker.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            message = lines[-1].removeprefix("hyperfed: ") if lines else f"exit status {code}"
            if code == EXIT_DIVERGED:
                self.store.put_failure(cell, message)
            out.failed[cell] = message if code >= 0 else f"ended by signal {-code} in each of {STARTS} starts"
        self.say(f"failed: {cell.name}: {out.failed[cell]}")
        return False

    def _stop(self, running: list[Worker], out: Outcome) -> None:
        """Ask the runs under way to save their last round and stop; one still being loaded has none, and might miss the question."""
        for worker in running:
            begun = (worker.folder / "run.json").exists()
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGINT if begun else signal.SIGTERM)  # what is raised amid imports may be dropped
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


def _claim(folder: Path) -> int | None:
    """The lock on a folder, made where it is missing; None: another sweep is at it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another sweep has just cleared it
            return lock(folder / ".lock")


def _without_other_versions(folder: Path, cell: Cell) -> None:
    """A run that other code began is begun anew: its numbers would be neither's, and the store would not take them."""
    try:
        made = read_json(folder / "run.json", "versions")["versions"]
        same = (made["hyperfed"], made.get("method", 1)) == (__version__, revision(cell))
    except (UserError, KeyError, TypeError, AttributeError):  # none there, or damaged: the run itself says so
        return
    if not same:
        log.warning("%s was begun by another version and is begun anew.", folder)
        for inside in folder.iterdir():
            if inside.is_dir():
                shutil.rmtree(inside)
            elif inside.name != ".lock":
                inside.unlink()


def rounds_done(folder: Path) -> int:
    """The round of the run's last checkpoint."""
    found = available(folder / "checkpoints")
    return int(found[-1].name.removeprefix("round-")) if found else 0
