"""``python -m benchmarks.gpu``: the engine on a GPU, beside the bare PyTorch loop in the same run, and what limits it.

Wall seconds, since the GPU's work is not in the CPU's; random images of the real sizes, bf16, the paper's batch of 128. ``--load SECONDS``
plays rounds for so long and prints samples per second: start several at once to see what processes gain that share a GPU.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from hyperfed.core import ALL, Model, Round, flatten
from hyperfed.engine.gpu import Gpu, prepare_gpu
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.optim import Optim
from hyperfed.engine.round import play
from hyperfed.engine.store import Store
from hyperfed.engine.workspace import Images, Local, Workspace
from hyperfed.methods import METHODS
from hyperfed.models import HyperModel, Hypernet, Shape, build_model
from hyperfed.run.build import client_type

BATCH, SAMPLES, EPOCHS = 128, 480, 4
DEVICE = torch.device("cuda:0")


def networks() -> dict[str, Model]:
    """The networks of Table 1, and HFN over CIFAR-10's."""
    cifar = build_model("resnet", Shape(3, 32, 10), blocks=6)
    return {
        "MNIST ResNet": build_model("resnet", Shape(1, 28, 10), blocks=1),
        "CIFAR-10 ResNet": cifar,
        "CIFAR-10 ResNet, HFN": HyperModel(cifar, Hypernet(embedding=128)),
        "CIFAR-100 ResNet": build_model("resnet", Shape(3, 32, 100), blocks=6, width=32),
    }


def images(model_name: str, n: int) -> Images:
    """Random images."""
    rng = np.random.default_rng(0)
    size, channels = (28, 1) if "MNIST" in model_name else (32, 3)
    x = rng.integers(0, 256, (n, size, size, channels), np.uint8)
    return Images(x, rng.integers(0, 10, n), (0.5,) * channels, (0.5,) * channels, DEVICE)


def seconds(action: Callable[[], object]) -> float:
    """Wall seconds until the GPU is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - start


class Bare:
    """Forward, backward and step over ready batches on a model in place, nothing else."""

    def __init__(self, model: Model, data: Images, graphs: bool = False) -> None:
        self.model, self.space = model, Workspace(model, data, "bf16", Gpu(graphs))
        groups = Optim().groups(self.space.live, model.roles, ALL, 0.01)
        self.optimiser = Optim().build(groups, 0.01)
        self.batches = [data.batch(torch.arange(i, i + BATCH, device=DEVICE)) for i in range(0, 3 * BATCH, BATCH)]
        self.space.module.train()

    def steps(self, number: int) -> None:
        """So many steps."""
        for i in range(number):
            x, y = self.batches[i % len(self.batches)]
            self.optimiser.zero_grad()
            self.model.loss(self.space.forward(x), y).backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()


def engine_for(model: Model, data: Images, clients: int, gpu: Gpu, folder: Path) -> LocalEngine:
    """A real engine with FedAvg, every client with as many samples as in the paper."""
    method = METHODS["fedavg"](model, clients)
    index = [torch.arange(SAMPLES, device=DEVICE) + SAMPLES * (k % 4) for k in range(clients)]
    store = Store(folder, client_type(method), device=str(DEVICE))
    space = Workspace(model, data, "bf16", gpu)
    return LocalEngine(method, space, index, index, store, Optim(lr=0.01), Local(EPOCHS, BATCH), 1, 1000, lanes=gpu.lanes)


def one_round(engine: LocalEngine) -> dict[str, Any]:
    """A round of all clients; the server's tensors."""
    clients = len(engine.train_index)
    rnd = Round(1, torch.arange(clients), torch.full((clients,), SAMPLES))
    server, _ = play(engine.method, engine.method.init_server(engine.initial()), rnd, engine, lambda *a: None)
    return flatten(server)


KINDS = {  # what a kernel's name holds -> what it is for
    "wgrad": "convolutions, gradient of the kernels",
    "dgrad": "convolutions, gradient of the input",
    "fprop": "convolutions, forward",
    "convolve": "convolutions, forward",
    "cudnn": "convolutions, formats",
    "batch_norm": "batch norm",
    "multi_tensor": "SGD",
}


def what_limits(bare: Bare) -> tuple[int, dict[str, float]]:
    """Kernels in a step, and the milliseconds that the GPU works on each kind of them."""
    bare.steps(2)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        bare.steps(4)
        torch.cuda.synchronize()
    kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = Counter[str]()
    for e in kernels:
        busy[next((what for part, what in KINDS.items() if part in e.name), "the rest, elementwise")] += e.device_time / 4000
    return len(kernels) // 4, {what: round(ms, 3) for what, ms in busy.most_common()}


def measure(name: str, model: Model, lanes: list[int]) -> list[dict[str, Any]]:
    """Rows for one network."""
    data, rows = images(name, 4 * SAMPLES), []
    bare = Bare(model, data)
    bare.steps(8)
    steps = 40
    plain = steps * BATCH / seconds(lambda: bare.steps(steps))
    kernels, busy = what_limits(bare)
    rows.append({"network": name, "what": "bare loop", "samples_per_second": plain, "kernels_per_step": kernels, "gpu_ms_per_step": busy})
    print(json.dumps(rows[-1]), flush=True)
    before = None
    for graphs, at_once in [(False, 1), *((True, n) for n in lanes)]:
        clients = 2 if not graphs else 8 if at_once == 1 else 4 * at_once
        with tempfile.TemporaryDirectory() as folder:
            engine = engine_for(model, data, clients, Gpu(graphs, at_once), Path(folder))
            first = seconds(lambda e=engine: one_round(e))
            took = seconds(lambda e=engine: one_round(e))
            two = engine_for(model, data, 2, Gpu(graphs, at_once), Path(folder))
            two.space, two.others = engine.space, engine.others
            ended = one_round(two)
        same = before is None or all(torch.equal(t, before[n]) for n, t in ended.items())
        before = ended
        row = {"network": name, "what": "engine", "graphs": graphs, "lanes": at_once, "clients": clients, "first_round_seconds": first}
        rows.append(
            row
            | {
                "samples_per_second": clients * SAMPLES * EPOCHS / took,
                "of_bare": clients * SAMPLES * EPOCHS / took / plain,
                "same_bits": same,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def load(name: str, lanes: int, wanted: float) -> float:
    """Samples per second over ``wanted`` seconds of rounds."""
    data = images(name, 4 * SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_for(networks()[name], data, 4 * lanes, Gpu(lanes=lanes), Path(folder))
        one_round(engine)
        start, samples = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < wanted:
            one_round(engine)
            torch.cuda.synchronize()
            samples += 4 * lanes * SAMPLES * EPOCHS
    return samples / passed


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--network", nargs="*", default=list(networks()))
    parser.add_argument("--lanes", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--load", type=float, help="seconds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU is available to torch here")
    torch.set_num_threads(1)
    prepare_gpu(DEVICE)
    if given.load:
        print(f"{load(given.network[0], given.lanes[0], given.load):,.0f} samples / s")
        return
    rows = [row for name in given.network for row in measure(name, networks()[name], given.lanes)]
    if given.json:
        given.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, indent=1))
    table = Table("network", "what", "samples / s", "of the bare loop", "", title=torch.cuda.get_device_name(), title_justify="left")
    for row in rows:
        if row["what"] == "bare loop":
            note = f"{row['kernels_per_step']} kernels a step, {sum(row['gpu_ms_per_step'].values()):.2f} ms of GPU"
            table.add_row(row["network"], "bare loop", f"{row['samples_per_second']:,.0f}", "1", note)
        else:
            what = f"engine, {'replays' if row['graphs'] else 'no replays'}, lanes {row['lanes']}"
            note = "same bits" if row["same_bits"] else "OTHER BITS"
            table.add_row(row["network"], what, f"{row['samples_per_second']:,.0f}", f"{row['of_bare']:.2f}", note)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
