"""``make bench``: where the time goes, as ratios to the bare PyTorch loop measured in the same run.

All times are CPU seconds of one thread (``process_time``), so that other load on the machine does not count; the best of interleaved
repetitions is taken on both sides. The data are random images of the real sizes: speed does not depend on what they show.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import allocator, bf16
from hyperfed.core import ALL, Model, Round
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.optim import Optim
from hyperfed.engine.round import play
from hyperfed.engine.store import Store
from hyperfed.engine.workspace import Images, Local, Workspace
from hyperfed.methods import METHODS
from hyperfed.models import HyperModel, Hypernet, Shape, build_model
from hyperfed.run.build import client_type
from hyperfed.run.ledger import Ledger

Row = tuple[str, str, str, str]
BATCH = 128


def images(n: int, shape: Shape) -> Images:
    """Random images of a data set's size."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, shape.size, shape.size, shape.channels), np.uint8)
    channels = (0.5,) * shape.channels
    return Images(x, rng.integers(0, shape.num_classes, n), channels, channels, torch.device("cpu"))


def engine_for(
    model: Model, method: str, data: Images, sizes: list[int], local: Local, folder: Path, precision: str = "fp32"
) -> LocalEngine:
    """A real engine on ``data``, one client per size."""
    built = METHODS[method](model, len(sizes))
    bounds = np.cumsum([0, *sizes])
    index = [torch.arange(a, b) for a, b in pairwise(bounds)]
    store = Store(folder, client_type(built))
    return LocalEngine(built, Workspace(model, data, precision), index, index, store, Optim(), local, 1, 1000)


def bare_loop(model: Model, data: Images, n: int, epochs: int, precision: str) -> float:
    """CPU seconds of forward, backward and step over ready batches on a model in place, nothing else."""
    space = Workspace(model, data, precision)
    optim = Optim()
    optimiser = optim.build(optim.groups(space.live, model.roles, ALL, optim.lr), optim.lr)
    batches = [data.batch(torch.arange(i, min(i + BATCH, n))) for i in range(0, n, BATCH)]
    space.module.train()
    start = time.process_time()
    for _ in range(epochs):
        for x, y in batches:
            optimiser.zero_grad()
            model.loss(space.forward(x), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return time.process_time() - start


def one_fit(engine: LocalEngine) -> float:
    """CPU seconds of one client's whole visit: download, training, state, upload, server's step."""
    server = engine.method.init_server(engine.initial())
    rnd = Round(1, torch.tensor([0]), torch.tensor([len(engine.train_index[0])]))
    start = time.process_time()
    play(engine.method, server, rnd, engine, lambda *a: None)
    return time.process_time() - start


def best(*actions: Callable[[], float], repeat: int) -> list[float]:
    """The least CPU seconds of each action, measured in turns."""
    times = [[action() for action in actions] for _ in range(repeat)]
    return [min(column) for column in zip(*times, strict=True)]


def throughput(repeat: int) -> list[Row]:
    """Engine over bare loop, samples per CPU second."""
    rows = []
    shape, n, epochs = Shape(1, 28, 10), 560, 4
    data = images(n, shape)
    for name in ("resnet", "lenet"):
        for precision in ("fp32", "bf16"):
            model = build_model(name, shape)
            with tempfile.TemporaryDirectory() as folder:
                engine = engine_for(model, "fedavg", data, [n], Local(epochs, BATCH), Path(folder), precision)
                bare, ours = best(lambda m=model, p=precision: bare_loop(m, data, n, epochs, p), lambda e=engine: one_fit(e), repeat=repeat)
            rows.append(
                (
                    f"engine / bare loop, MNIST {name}, {precision}",
                    f"{bare / ours:.3f}",
                    ">= 0.95",
                    f"{n * epochs / ours:,.0f} samples / CPU s",
                )
            )
    return rows


def hypernetwork(repeat: int) -> list[Row]:
    """HFN's time per round over FedAvg's on the same network."""
    rows = []
    for title, shape, n, settings, embedding in (
        ("MNIST ResNet", Shape(1, 28, 10), 560, {"blocks": 1}, 64),
        ("CIFAR-10 ResNet", Shape(3, 32, 10), 256, {"blocks": 6}, 128),
    ):
        data, plain = images(n, shape), build_model("resnet", shape, **settings)
        with tempfile.TemporaryDirectory() as folder:
            epochs = 4 if n > 300 else 1
            engines = [
                engine_for(m, "fedavg", data, [n], Local(epochs, BATCH), Path(folder) / str(i))
                for i, m in enumerate((plain, HyperModel(plain, Hypernet(embedding=embedding))))
            ]
            fedavg, hfn = best(*(lambda e=e: one_fit(e) for e in engines), repeat=repeat)
        rows.append((f"HFN / FedAvg, time per round, {title}", f"{hfn / fedavg:.3f}", "<= 1.15", f"embedding {embedding}"))
    return rows


def methods(repeat: int) -> list[Row]:
    """Every method's time per round over FedAvg's on the MNIST ResNet: two clients of 140 samples, four epochs, after a first round."""
    shape, clients, rows = Shape(1, 28, 10), 2, []
    data, network = images(140 * clients, shape), build_model("resnet", shape)
    rnd = Round(2, torch.arange(clients), torch.full((clients,), 140))
    with tempfile.TemporaryDirectory() as folder:
        visits = []
        for name in METHODS:
            engine = engine_for(network, name, data, [140] * clients, Local(4, BATCH), Path(folder) / name)
            server, _ = play(engine.method, engine.method.init_server(engine.initial()), rnd._replace(number=1), engine, lambda *a: None)

            def visit(engine: LocalEngine = engine, server: Any = server) -> float:
                start = time.process_time()
                play(engine.method, server, rnd, engine, lambda *a: None)
                return time.process_time() - start

            visits.append(visit)
        times = dict(zip(METHODS, best(*visits, repeat=repeat), strict=True))
    limited = ("fedprox", "fedper", "fedrep", "fedbabu", "fedbn", "feddyn")
    for name, seconds in times.items():
        goal = "<= 1.15" if name in limited else ""
        rows.append((f"{name} / FedAvg, time per round, MNIST ResNet", f"{seconds / times['fedavg']:.2f}", goal, f"{seconds:.2f} CPU s"))
    return rows


def overhead(repeat: int) -> list[Row]:
    """Everything that is not training, per client and round: no local step, but weights in and out, state, message, ledger, server."""
    rows = []
    cases = (
        ("ResNet, 563,930 parameters", build_model("resnet", Shape(3, 32, 10), blocks=6), Shape(3, 32, 10), "fedper", 10, 3.0),
        (
            "ResNet, HFN",
            HyperModel(build_model("resnet", Shape(3, 32, 10), blocks=6), Hypernet(embedding=128)),
            Shape(3, 32, 10),
            "fedavg",
            10,
            3.0,
        ),
        ("MLP, 64 hidden units", build_model("mlp", Shape(1, 8, 10)), Shape(1, 8, 10), "fedper", 100, 0.5),
    )
    for title, model, shape, method, clients, limit in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            engine = engine_for(model, method, images(2 * clients, shape), [2] * clients, Local(1, BATCH, steps=0), folder / "states")
            ledger = Ledger(folder / "ledger.csv", engine.method.model.roles)
            server = engine.method.init_server(engine.initial())
            rounds = (Round(number, torch.arange(clients), torch.full((clients,), 2)) for number in count(1))

            def visit(engine: LocalEngine = engine, server: Any = server, rounds: Any = rounds, ledger: Ledger = ledger) -> float:
                start = time.process_time()
                play(engine.method, server, next(rounds), engine, ledger.add)
                ledger.flush()
                engine.store.flush()
                return time.process_time() - start

            (seconds,) = best(visit, repeat=max(repeat, 5))
        rows.append(
            (
                f"not training, per client and round: {title}",
                f"{1000 * seconds / clients:.2f} ms",
                f"<= {limit} ms",
                "states written to disk",
            )
        )
    return rows


def tiny_clients(repeat: int) -> list[Row]:
    """A round of 1,000 clients with 20 samples each, one epoch of an MLP."""
    shape = Shape(1, 8, 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = engine_for(build_model("mlp", shape), "fedavg", images(20_000, shape), [20] * 1000, Local(1, BATCH), folder / "states")
        ledger = Ledger(folder / "ledger.csv", engine.method.model.roles)
        server = engine.method.init_server(engine.initial())
        rnd = Round(1, torch.arange(1000), torch.full((1000,), 20))

        def visit() -> float:
            start = time.process_time()
            play(engine.method, server, rnd, engine, ledger.add)
            ledger.flush()
            return time.process_time() - start

        (seconds,) = best(visit, repeat=repeat)
    return [("a round of 1,000 clients, 20 samples each, MLP", f"{seconds:.2f} CPU s", "about 2 CPU s", "")]


def command_seconds(arguments: list[str]) -> tuple[float, float]:
    """CPU seconds of all threads and peak memory (MiB) of a whole command, start included."""
    with tempfile.TemporaryDirectory() as folder:
        code = "import resource,sys; from hyperfed.main import main; main(sys.argv[1:]); u=resource.getrusage(resource.RUSAGE_SELF); "
        code += "print('USED', u.ru_utime + u.ru_stime, u.ru_maxrss / 1024)"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, f"run.dir={folder}/run"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ},
        )
        used = next(line for line in done.stdout.splitlines() if line.startswith("USED"))
        return float(used.split()[1]), float(used.split()[2])


def whole_runs(root: str | None) -> list[Row]:
    """The commands a user types: MNIST, 100 clients Dirichlet 0.5, a quarter of them a round, 4 epochs, batch 128."""
    if root is None:
        return [("whole runs on MNIST", "not run", "", "needs --data-root")]
    common = ["dataset=mnist", f"data.root={root}", "num_clients=100", "participation=0.25", "eval.finetune=never", "eval.every=1000"]
    common += ["checkpoint.every=1000"]
    rows = []
    for title, extra, limit in (
        ("3 rounds of LeNet-5", ["model=lenet", "rounds=3"], 26),
        ("1 round of the Table 1 ResNet, fp32", ["rounds=1"], 52),
        ("1 round of the Table 1 ResNet, bf16", ["rounds=1", "precision=bf16"], 34),
    ):
        seconds, _ = command_seconds([*common, *extra])
        rows.append(
            (
                f"MNIST, 100 clients: {title}, start and evaluations included",
                f"{seconds:.1f} CPU s",
                f"<= {limit} CPU s",
                "two evaluations of all clients",
            )
        )
    return rows


def memory() -> list[Row]:
    """Peak memory with 10,000 clients over that with 100, same cohort size; every client has a personal model (benchmarks/memory.py)."""
    peaks = []
    for clients in (100, 10_000):
        code = f"from benchmarks.memory import main; main({clients})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    few, many = peaks
    return [("peak memory, 10,000 clients / 100 clients, cohorts of 10", f"{many / few:.2f}", "<= 1.2", f"{many:.0f} and {few:.0f} MiB")]


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "throughput": lambda a: throughput(a.repeat),
    "hypernetwork": lambda a: hypernetwork(a.repeat),
    "methods": lambda a: methods(a.repeat),
    "overhead": lambda a: overhead(a.repeat),
    "tiny": lambda a: tiny_clients(a.repeat),
    "memory": lambda a: memory(),
    "allocator": lambda a: allocator.rows(a.repeat),
    "bf16": lambda a: bf16.rows(a.repeat),
    "runs": lambda a: whole_runs(a.data_root),
}


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--data-root", default=os.environ.get("HYPERFED_DATA_ROOT"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("what", "measured", "goal", "", title="one thread, CPU time", title_justify="left")
    for part in arguments.parts:
        for row in PARTS[part](arguments):
            table.add_row(*row)
            print(*row, sep=" | ", flush=True)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
