"""The generated parts of docs/defences.md."""

import json
from math import inf
from pathlib import Path

import numpy as np

from hyperfed.report.runs import RunFiles, read_run
from hyperfed.report.seeds import group_by_seed
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
            right = np.array([100 * run.last["before"]["mean"] for run in runs])
            cells = (
                text,
                label,
                f"{right.mean():.1f} ± {right.std(ddof=1):.1f} %",
                guarantee(_worst(runs)),
                human_bytes(runs[0].per_round.bytes),
            )
            lines.append("| " + " | ".join(cells) + f" | {len(runs)} |")
    return "\n".join(lines) + "\n"


ATTACKED = {  # what a server holds of one client under each defence, as a row of the privacy lab's sweep
    "none": ("one client's message", "steps=1"),
    "local-0.1": ("one client's message with noise", "noise=0.1"),
    "central-0.1": ("one client's message: the server is trusted", "steps=1"),
    "central-1": ("one client's message: the server is trusted", "steps=1"),
    "secagg": ("the mean of a cohort: as of a batch of its size; here 8", "batch=8"),
    "records-1": ("one client's message with noise", "noise=1"),
}


def defended() -> str:
    """Each defence: accuracy, guarantee and bytes on digits, and what the attacks get from the message that is left to them on MNIST."""
    rows = json.loads((RESULTS / "privacy/sweep_mnist.json").read_text(encoding="utf-8"))["rows"]
    psnr = {(row["setting"], row["row"]): f"{row['psnr_median']:.1f}" for row in rows}
    attacks = ("FedAvg: DLG", "HFN: structured, no secret", "HFN: DLG, oracle")
    head = (
        "defence",
        "accuracy: FedAvg",
        "HFN",
        "guarantee",
        "bytes: FedAvg",
        "HFN",
        "a curious server holds",
        *(f"{a}, dB" for a in attacks),
    )
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---:|---|---:|---:|---|---:|---:|---:|"]
    for setting, (what, swept) in ATTACKED.items():
        both = [_runs(method, setting) for method in ("fedavg", "hfn")]
        right = [f"{np.mean([100 * run.last['before']['mean'] for run in runs]):.1f} %" for runs in both]
        sent = [human_bytes(runs[0].per_round.bytes) for runs in both]
        cells = (DEFENCES[setting], *right, guarantee(_worst(both[0])), *sent, what, *(psnr[swept, a] for a in attacks))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


STARTS = {  # what clients draw for themselves -> the runs on digits, what the server then knows in round 1, its row in figure 4
    "nothing: one public seed": ("HFN", "everything", "DLG, oracle"),
    "embeddings": ("HFN own embeddings", "stem, shortcuts, head", "structured, stem known"),
    "stem, shortcuts, head": ("HFN own stem, shortcuts, head", "embeddings", "structured, no secret"),
    "all that does not travel": ("HFN all private parts own", "nothing", "structured, no secret"),
}


def started() -> str:
    """What clients draw for themselves: accuracy on digits, and what an attack then gets of an MNIST image behind a private stem."""
    runs = {g.label: g for g in group_by_seed([read_run(p) for p in sorted((RESULTS / "hfn_digits").glob("*.json"))])}
    rows = {row["row"]: row for row in json.loads((RESULTS / "privacy/mnist.json").read_text(encoding="utf-8"))["rows"]}
    lines = [
        "| drawn by the client | accuracy before | after fine-tuning | public in round 1 | an attack that needs no more | median dB |",
        "|---|---:|---:|---|---|---:|",
    ]
    for drawn, (label, known, attack) in STARTS.items():
        before, after = (f"{runs[label].final(which)} %" for which in ("before", "after"))
        lines.append(f"| {drawn} | {before} | {after} | {known} | {attack} | {rows[f'HFN, private stem: {attack}']['psnr_median']:.1f} |")
    return "\n".join(lines) + "\n"


def _worst(runs: list[RunFiles]) -> RunFiles:
    """The run with the weakest guarantee."""
    spent = [(run.last.get("privacy") or {"epsilon": 0})["epsilon"] for run in runs]
    return runs[max(range(len(runs)), key=lambda i: inf if spent[i] is None else spent[i])]


def membership_digits() -> str:
    """Who leaks membership, and from where."""
    head = (
        "method",
        "position",
        "p(true class) > 1/2: members",
        "held out",
        "attack",
        "AUC",
        "balanced accuracy",
        "TPR at 0.1 % FPR",
        "at 1 %",
    )
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
