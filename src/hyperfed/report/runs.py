"""Finished (or running) runs as read from their folders; a report never touches a live object."""

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hyperfed.core import Traffic, UserError
from hyperfed.core.files import write_text
from hyperfed.run.ledger import HEADER, per_client_and_round, read_ledger, read_roles, roles_per_client_and_round, totals_by_round


@dataclass(frozen=True)
class Detail:
    """What goes beyond the summary of a run. Empty where a run does not have it.

    ``totals``: (round, trained elements, bytes) of all clients so far. ``roles``: elements up + down of one client in one round, by role.
    ``clients``: test samples and right answers before and after fine-tuning at the last evaluation, [N] each. ``label_counts``: [N, C].
    ``similarity``: cosine of the kernels generated for each two clients, [N, N].
    """

    totals: list[list[int]] = field(default_factory=list)
    roles: dict[str, int] = field(default_factory=dict)
    clients: dict[str, list[int]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    label_counts: list[list[int]] = field(default_factory=list)
    similarity: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class RunFiles:
    """One run: configuration, evaluations in order, what one client sent and received per round, identity and versions."""

    folder: Path
    config: dict[str, Any]
    evaluations: list[dict[str, Any]]
    per_round: Traffic
    facts: dict[str, Any]
    detail: Detail = Detail()

    @property
    def label(self) -> str:
        """The method's name as the papers write it."""
        return method_label(self.config)

    @property
    def last(self) -> dict[str, Any]:
        """The last evaluation."""
        return self.evaluations[-1]


NAMES = {
    "centre": "Centre",
    "fedavg": "FedAvg",
    "local": "Local",
    "fedper": "FedPer",
    "fedbn": "FedBN",
    "fedprox": "FedProx",
    "feddyn": "FedDyn",
    "fedrep": "FedRep",
    "fedbabu": "FedBABU",
    "fedgen": "FedGen",
    "pfedsim": "pFedSim",
    "pfedla": "pFedLA",
    "fedfomo": "FedFomo",
    "pfedhn": "pFedHN",
    "pfedhn_pc": "pFedHN-PC",
    "perfedavg": "Per-FedAvg",
    "lgfedavg": "LG-FedAvg",
}


def method_label(config: dict[str, Any]) -> str:
    """HFN is FedAvg over a hypernetwork; any other method over one is HFN+method."""
    if config["run"].get("name"):
        return str(config["run"]["name"])
    name, privacy = config["method"]["name"], config.get("privacy")
    defence = f", {privacy['name']}" if privacy else ""
    plain = NAMES.get(name, name)
    hyper = config.get("hypernet")
    if not hyper:
        return plain + defence
    shared = "+".join(hyper["share"])
    return ("HFN" if name == "fedavg" else f"HFN+{plain}") + (f" sharing {shared}" if shared else "") + defence


def keep(run: RunFiles, folder: Path) -> Path:
    """Write a run as one small JSON file, which :func:`read_run` takes: evidence to be committed."""
    path = folder / f"{run.folder.name}.json"
    config = {k: v for k, v in run.config.items() if k not in ("data", "run")}
    config |= {
        "data": {**run.config["data"], "root": None, "cache": None},
        "run": {"dir": None, "root": "runs", "name": run.config["run"]["name"]},
    }
    facts = {"facts": run.facts, "config": config, "per_round": run.per_round._asdict(), "evaluations": run.evaluations}
    facts["detail"] = {name: value for name, value in asdict(run.detail).items() if value}
    write_text(path, "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()) + "\n}\n")
    return path


def _read_kept(path: Path) -> RunFiles:
    kept = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(kept, dict):
        raise ValueError("it holds no configuration and no evaluations")
    for name, known in (("per_round", Traffic._fields), ("detail", Detail.__dataclass_fields__)):
        part = kept[name] if name == "per_round" else kept.setdefault(name, {})
        if not isinstance(part, dict) or not part.keys() <= set(known):
            raise ValueError(f"{name} holds something else than {', '.join(known)}")
    return RunFiles(path, kept["config"], kept["evaluations"], Traffic(**kept["per_round"]), kept["facts"], Detail(**kept["detail"]))


def read_run(folder: str | Path) -> RunFiles:
    """Read a run's folder (a torn last line is left out) or the JSON file :func:`keep` made of it, and check that it holds a run's numbers.

    Raises ``UserError`` for what is no run.
    """
    from hyperfed.report.html_load import check, reason  # which reads runs by this module

    folder = Path(folder)
    kept = folder.suffix == ".json" and not folder.is_dir()
    if not kept and folder.is_file():
        raise UserError(f"{str(folder)!r} is neither a run's folder nor a kept run (.json).")
    try:
        run = _read_kept(folder) if kept else _read_folder(folder)
        check(run)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as problem:
        kind = "kept run" if kept else "run's folder"
        raise UserError(f"{str(folder)!r} is not a {kind}: {reason(problem)}.") from None
    return run


def _read_folder(folder: Path) -> RunFiles:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    if not (folder / "ledger.csv").read_text(encoding="utf-8").startswith(",".join(HEADER)):
        raise ValueError("ledger.csv does not begin with the names of its columns")
    ledger = read_ledger(folder / "ledger.csv")
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    evaluations = [line for line in (json.loads(text) for text in lines if text.endswith("\n")) if "before" in line]
    if not evaluations:
        raise ValueError("it has no evaluation yet")
    return RunFiles(
        folder, config, evaluations, per_client_and_round(ledger), facts, _read_detail(folder, ledger, evaluations[-1]["round"])
    )


def _read_detail(folder: Path, ledger: list[tuple[int, int, str, Traffic]], number: int) -> Detail:
    """The parts of a run's folder that older runs may lack."""

    def part(name: str) -> dict[str, Any]:
        path = folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    clients: dict[str, list[int]] = {}
    if (folder / "clients.csv").exists():
        with (folder / "clients.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["round"] == str(number)]
        columns = {"tests": "test_samples", "before": "correct_before", "after": "correct_after"}
        clients = {name: [int(row[c]) for row in rows] for name, c in columns.items() if rows and rows[0][c]}
    roles = roles_per_client_and_round(ledger, read_roles(folder / "roles.csv"))
    totals = [list(row) for row in totals_by_round(ledger)]
    return Detail(totals, roles, clients, similarity=part("similarity.json").get("cosine", []), **part("data.json"))
