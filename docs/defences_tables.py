"""The generated parts of docs/defences.md."""

import json
from pathlib import Path

import numpy as np

from hyperfed.report.runs import RunFiles, read_run
from hyperfed.report.tables import guarantee, human_bytes

RESULTS = Path(__file__).parent.parent / "results"
DEFENCES = {
    "none": "none",
    "central-0.01": "noise by the server, C = 2, z = 0.01",
    "central-0.1": "noise by the server, C = 2, z = 0.1",
    "central-1": "noise by the server, C = 2, z = 1",
    "local-0.1": "noise by the clients, C = 2, z = 0.1",
    "secagg": "secure aggregation",
    "records-none": "none; group norm, 1 epoch, batch 16",
    "records-1": "DP-SGD, C = 1, z = 1; the same otherwise",
}


def _runs(method: str, setting: str) -> list[RunFiles]:
    """The three seeds of one setting; without defence they are those of the table of all methods."""
    if setting == "none":
        name = {"fedavg": "fedavg", "hfn": "hfn+fedavg"}[method]
        return [read_run(p) for p in sorted((RESULTS / "methods_digits").glob(f"{name}-s?.json"))]
    return [read_run(p) for p in sorted((RESULTS / "defences").glob(f"{method}-{setting}-s?.json"))]


def defences_digits() -> str:
    """Accuracy, guarantee and traffic of every defence, for FedAvg and HFN."""
    lines = ["| defence | method | accuracy | guarantee | bytes / client, round | seeds |", "|---|---|---:|---|---:|---:|"]
    for setting, text in DEFENCES.items():
        for method, label in (("fedavg", "FedAvg"), ("hfn", "HFN")):
            runs = _runs(method, setting)
            if not runs:
                continue
            worst = max(runs, key=lambda run: (run.last.get("privacy") or {}).get("epsilon") or 0)
            right = np.array([100 * run.last["before"]["mean"] for run in runs])
            cells = (text, label, f"{right.mean():.1f} ± {right.std():.1f} %", guarantee(worst), human_bytes(runs[0].per_round.bytes))
            lines.append("| " + " | ".join(cells) + f" | {len(runs)} |")
    return "\n".join(lines) + "\n"


def membership_digits() -> str:
    """Who leaks membership, and from where."""
    head = ("method", "position", "its accuracy: members", "held out", "attack", "AUC", "balanced accuracy", "TPR at 0.1 % FPR", "at 1 %")
    lines = ["| " + " | ".join(head) + " |", "|---|---|---:|---:|---|" + "---:|" * 4]
    for path in sorted((RESULTS / "membership").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for position, leaks in found["leaks"].items():
            right = found["accuracy"][position]
            for name, a in leaks.items():
                cells = [found["label"], position, f"{100 * right['members']:.1f} %", f"{100 * right['held out']:.1f} %", name]
                cells += [f"{a['auc']:.3f} ± {a['deviation']:.3f}", f"{a['balanced_accuracy']:.3f}"]
                cells += [f"{100 * a[rate]:.2f} %" for rate in ("tpr_at_01_percent", "tpr_at_1_percent")]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
