"""``hyperfed reproduce table2``: run what is missing, then ours beside the paper's."""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hyperfed.core import UserError, invalid, unknown
from hyperfed.data import load_dataset
from hyperfed.evidence.plans import PLANS, Ask, Cell, plan
from hyperfed.evidence.store import Store
from hyperfed.evidence.sweep import Outcome, Sweep
from hyperfed.main import EXIT_INTERRUPTED
from hyperfed.run.config import make_config, writable

N = TypeVar("N", int, float)
OF_THE_MACHINE = ("data.root", "data.cache", "device", "gpu.graphs", "gpu.lanes")
"""Settings of :data:`hyperfed.run.config.FREE` that make sense for a whole plan."""
SPEED_OVER_SECONDS = 6 * 3600.0
"""The time left is told by the speed since then; a run says how far it is once a checkpoint, which may be minutes."""
LISTS = {"dataset": "datasets", "partition": "splits", "method": "methods", "seed": "seeds"}
EPILOG = """examples:
  hyperfed reproduce table2 scale=mini data.root=DIR --jobs 2
  hyperfed reproduce table2 scale=mini dataset=cifar10 partition=non-IID method=HFN,FedAvg seed=1,2,3 --budget-minutes 60
  hyperfed reproduce table3 --show                   what the store has, without running anything
"""


def read_settings(settings: Sequence[str]) -> tuple[Ask, dict[str, Any]]:
    """``scale=``, ``dataset=``, ``partition=``, ``method=``, ``seed=`` (lists with commas), and settings that do not change a run."""
    wanted: dict[str, Any] = {}
    free: dict[str, Any] = {}
    seen: set[str] = set()
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is not a setting: write NAME=VALUE, for example scale=mini.")
        if key in seen:
            raise UserError(f"setting {key!r} is given twice: write its values as one list with commas, or leave one out.")
        seen.add(key)
        if key in LISTS:
            wanted[LISTS[key]] = tuple(dict.fromkeys(value.split(",")))
        elif key == "scale":
            wanted["scale"] = value
        elif key in OF_THE_MACHINE:
            free[key] = value
        else:
            raise unknown("setting", key, ["scale", *LISTS, *OF_THE_MACHINE])
    if "seeds" in wanted:
        for seed in wanted["seeds"]:
            if not (seed.isascii() and seed.isdecimal()):
                raise invalid("seed", seed, "a whole number >= 0")
        wanted["seeds"] = tuple(dict.fromkeys(int(seed) for seed in wanted["seeds"]))
    return Ask(**wanted), free


def check_machine(sweep: Sweep, cells: Sequence[Cell]) -> None:
    """What is wrong with the settings of this machine, or with a data set, is said once, before the first run."""
    from hyperfed.run.build import choose_device

    config = make_config(sweep.composed(cells[0], sweep.work / cells[0].name))
    choose_device(config.device)
    if config.data.root is not None and not Path(config.data.root).is_dir():
        raise invalid("data.root", config.data.root, "an existing folder")
    for name in dict.fromkeys(cell.dataset for cell in cells if not sweep.store.has(cell)):
        load_dataset(name, config.data.root, config.data.cache)


def run_plan(cells: Sequence[Cell], sweep: Sweep, console: Console) -> Outcome:
    """Trials and runs of a plan, with a line for each that ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn())
    bar = Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, speed_estimate_period=SPEED_OVER_SECONDS
    )
    everything = dict.fromkeys(one for cell in cells for one in (*cell.trials, cell))
    missing = {cell: cell.rounds for cell in everything if not sweep.store.has(cell)}
    ended: dict[Cell, int] = {}
    done = itertools.count(1)

    def follow(rounds: dict[Cell, int]) -> None:
        for cell, number in rounds.items():
            known = cell if cell in missing else replace(cell, rate=None)  # its learning rate was chosen since
            if known in missing:
                ended[known] = number
        bar.update(task, completed=sum(ended.values()))

    sweep.progress = follow
    sweep.say = lambda text: console.print(f"{next(done)} of {len(missing)} {text}", markup=False)
    with bar:
        task = bar.add_task(f"{len(missing)} runs", total=sum(missing.values()))
        return sweep.play(cells)


def tell(outcome: Outcome, store: Store, console: Console) -> None:
    """What was done, what failed and why, what is left."""
    console.print(f"{len(outcome.finished)} runs in the store, {len(outcome.failed)} failed, {len(outcome.left)} left for another time")
    for cell, why in outcome.failed.items():
        console.print(f"  failed: {cell.name}: {why}", markup=False)
    if store.damaged:
        console.print(f"  damaged files left out: {len(store.damaged)} ({', '.join(sorted(store.damaged))})", markup=False)


def _number(name: str, text: str, kind: Callable[[str], N], valid: str, least: float) -> N:
    try:
        value = kind(text)
    except ValueError:
        raise invalid(name, text, valid) from None
    if not least <= value < math.inf:
        raise invalid(name, text, valid)
    return value


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    from hyperfed.evidence.page import show

    parser = argparse.ArgumentParser(
        "hyperfed reproduce",
        description="A table or figure of the HyperFedNet paper: run what is missing, show ours beside the paper's.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", nargs="?", help=", ".join(PLANS))
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="scale, dataset, partition, method, seed, data.root, device")
    parser.add_argument("--jobs", default="1", help="runs at a time, one thread each (default 1)")
    parser.add_argument("--budget-minutes", help="stop after so long; what is under way is saved and resumed next time")
    parser.add_argument("--results", type=Path, default=Path("results/evidence"), help="the store (default ./results/evidence)")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folders of runs under way (default ./runs/evidence)")
    parser.add_argument("-o", "--out", type=Path, default=Path("reproduce"), help="where its page goes (default ./reproduce)")
    parser.add_argument("--show", action="store_true", help="run nothing")
    given = parser.parse_intermixed_args(arguments)
    if given.experiment is None:
        raise UserError(f"say which table or figure: hyperfed reproduce NAME, one of {', '.join(PLANS)}.")
    jobs, minutes = _number("--jobs", given.jobs, int, "a whole number >= 1", 1), None
    if given.budget_minutes is not None:
        minutes = _number("--budget-minutes", given.budget_minutes, float, "a number > 0", sys.float_info.min)
    if given.out.exists() and not given.out.is_dir():
        raise invalid("--out", str(given.out), "a folder")
    if given.results.exists() != given.results.is_dir() or (given.show and not given.results.exists()):
        raise invalid("--results", str(given.results), "the folder of a store; without --show a new one is made")
    for name in ("results", "work", "out") if not given.show else ("out",):
        writable(f"--{name}", getattr(given, name))
    ask, free = read_settings(given.settings)
    cells, console = plan(given.experiment, ask), Console(highlight=False, soft_wrap=True)
    store, failed = Store(given.results), False
    if not given.show:
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        sweep = Sweep(store, given.work, free, jobs, deadline)
        store.refuse_other_versions(cells)
        check_machine(sweep, cells)
        try:
            outcome = run_plan(cells, sweep, console)
        except KeyboardInterrupt:
            console.print("interrupted; what was under way is saved, the same command goes on from there")
            return EXIT_INTERRUPTED
        tell(outcome, store, console)
        failed = any(store.failure(cell) is None for cell in outcome.failed)  # a run that diverged is a result
    try:
        show(given.experiment, cells, store, given.work, given.out, console)
    except OSError as problem:
        raise UserError(f"--out = {str(given.out)!r} could not be written: {problem.strerror or problem}.") from problem
    return int(failed)
