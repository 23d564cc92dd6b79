"""``make methods-table``: every method, plain and over HFN, on digits, three seeds; finished runs are not repeated."""

import sys
from pathlib import Path

from hyperfed.core import UserError
from hyperfed.main import compose_checked, composed_dict
from hyperfed.methods import METHODS
from hyperfed.report.runs import keep, read_run
from hyperfed.run.experiment import Experiment

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results/methods_digits"
ROUNDS = 10
OWN = {"pfedsim": ["method.warmup_rounds=5"]}  # half of the rounds, as usual


def settings(name: str, hyper: str, seed: int) -> list[str]:
    """One run's overrides."""
    common = ["experiment=quick_digits", f"rounds={ROUNDS}", f"eval.every={ROUNDS}", f"checkpoint.every={ROUNDS}", "threads=1"]
    return [f"method={name}", f"hyper={hyper}", *common, f"seed={seed}", *OWN.get(name, [])]


def finish(label: str, overrides: list[str], results: Path) -> None:
    """Run a setting and keep it, unless it is kept already; a refusal is told."""
    if (results / f"{label}.json").exists():
        return
    folder = ROOT / "runs" / results.name / label
    try:
        Experiment(composed_dict(compose_checked([*overrides, f"run.dir={folder}"]))).run()
    except UserError as refusal:
        print(f"{label}: {refusal}")
        return
    keep(read_run(folder), results)
    print(label, read_run(folder).last["before"]["mean"], flush=True)


def main() -> None:
    """Run what is missing."""
    for seed in (1, 2, 3):
        for name in METHODS:
            for hyper in ("none", "hfn"):
                label = f"{'hfn+' if hyper == 'hfn' else ''}{name}-s{seed}"
                finish(label, settings(name, hyper, seed), RESULTS)


if __name__ == "__main__":
    sys.exit(main())
