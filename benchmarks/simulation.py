"""``python -m benchmarks.simulation``: what Flower's simulator costs per client visit. Linux, on a machine that does nothing else.

A visit is a download, one local step and an upload. CPU time is the whole machine's: Ray's processes are nobody's children. Two runs of
different length tell what a visit costs and what start, evaluations and end do.
"""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

CLIENTS, ROUNDS = 8, (3, 23)
RUN = ["dataset=digits", "method=fedavg", f"num_clients={CLIENTS}", "participation=1", "local.steps=1", "local.batch_size=16", "threads=1"]
MODELS = {"MLP": ["model=mlp"], "ResNet, six blocks a group": ["model=resnet", "dataset.resnet.blocks=6"]}
ENGINES = {
    "local": ["engine=local"],
    "grid in this process": ["engine=flower", "engine.backend=grid"],
    "Flower's simulator": ["engine=flower", "engine.backend=simulation"],
}


def busy() -> float:
    """CPU seconds that the machine has worked."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / 100


def seconds(settings: list[str], rounds: int) -> tuple[float, float]:
    """CPU and wall seconds of one run."""
    with TemporaryDirectory() as folder:
        every = [f"rounds={rounds}", f"eval.every={rounds}", f"checkpoint.every={rounds}", "eval.finetune=never", f"run.dir={folder}/run"]
        cpu, wall = busy(), time.monotonic()
        subprocess.run([sys.executable, "-m", "hyperfed.main", *RUN, *every, *settings], check=True, capture_output=True)
        return busy() - cpu, time.monotonic() - wall


def main() -> None:
    """Print the table."""
    print("| model | engine | CPU ms / visit | wall ms / visit | CPU s to start, evaluate and stop |\n|---|---|---:|---:|---:|")
    for model, network in MODELS.items():
        for engine, settings in ENGINES.items():
            (cpu, wall), (more_cpu, more_wall) = (seconds([*network, *settings], rounds) for rounds in ROUNDS)
            visits = CLIENTS * (ROUNDS[1] - ROUNDS[0])
            each = [1000 * (more_cpu - cpu) / visits, 1000 * (more_wall - wall) / visits]
            fixed = cpu - each[0] * CLIENTS * ROUNDS[0] / 1000
            print(f"| {model} | {engine} | {each[0]:.1f} | {each[1]:.1f} | {fixed:.1f} |", flush=True)


if __name__ == "__main__":
    main()
