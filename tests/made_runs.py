"""Runs that were never played: files with numbers chosen by hand."""

from pathlib import Path
from typing import Any

import numpy as np

from hyperfed.core import Traffic
from hyperfed.report.runs import Detail, RunFiles
from runs import composed


def spent(number: int) -> dict[str, Any]:
    """Until a round."""
    return {"trainable": 250 * number, "bytes": 1000 * number, "cpu_seconds": 1.0 * number}


def made(tmp_path: Path, seed: int, right: list[int], *overrides: str, rounds: int = 3, **more: Any) -> RunFiles:
    """A run whose clients of 10 test samples each gave ``right`` right answers before fine-tuning and one more after it."""
    config = composed(tmp_path / f"s{seed}", f"seed={seed}", f"num_clients={len(right)}", *overrides)
    each = np.array(right) / 10

    def summary(a: np.ndarray) -> dict[str, float]:
        return {"weighted": a.mean(), "mean": a.mean(), "std": a.std(), "p10": float(np.percentile(a, 10)), "worst": a.min()}

    lines = [{"round": r, "before": summary(each * r / rounds), "after": summary(each + 0.1), **spent(r)} for r in range(rounds + 1)]
    clients = {"tests": [10] * len(right), "before": right, "after": [n + 1 for n in right]}
    facts = {"identity": f"{seed:016x}", "versions": {"hyperfed": "0"}, "hardware": {}}
    detail = Detail(clients=clients, roles={"body": 8, "head": 2}, **more)
    return RunFiles(tmp_path / f"run{seed}", config, lines, Traffic(10, 0, 0, 40), facts, detail)
