"""The store of evidence: one small JSON file per finished run, named after its settings; what every table and plot is made from."""

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

from hyperfed.core import UserError
from hyperfed.core.files import write_json
from hyperfed.evidence.plans import Cell
from hyperfed.report.runs import RunFiles, keep, read_run
from hyperfed.run.config import identity_hash

log = logging.getLogger(__name__)


@dataclass
class Store:
    """Files below ``folder/<scale>``. ``damaged`` names those that could not be read; they are skipped, and their runs repeated."""

    folder: Path
    damaged: list[str] = field(default_factory=list)
    _read: dict[str, RunFiles | None] = field(default_factory=dict)

    def path(self, cell: Cell) -> Path:
        """Where the cell's run is kept."""
        return self.folder / cell.scale / f"{cell.name}.json"

    def _failure(self, cell: Cell) -> Path:
        return self.folder / cell.scale / f"{cell.name}.failed.json"

    def get(self, cell: Cell) -> RunFiles | None:
        """The cell's finished run, if there is one."""
        path = self.path(cell)
        if cell.identity not in self._read:
            self._read[cell.identity] = self._load(path, cell) if path.exists() else None
        return self._read[cell.identity]

    def forget(self, cell: Cell) -> None:
        """Look at the disk again: another process may have been there."""
        self._read.pop(cell.identity, None)

    def _load(self, path: Path, cell: Cell) -> RunFiles | None:
        try:
            run = read_run(path)
            whole = bool(run.evaluations) and run.last["round"] == run.config["rounds"] and run.last["before"]["mean"] >= 0
        except (UserError, KeyError, TypeError) as problem:
            self._name(path, str(problem))
            return None
        if run.facts.get("identity") != cell.identity or identity_hash(run.config) != cell.identity:
            self._name(path, "it holds another run than its name says")
            return None
        if not whole:
            self._name(path, "the run in it is not finished")
            return None
        return run

    def _name(self, path: Path, why: str) -> None:
        self.damaged.append(path.name)
        log.warning("%s is left out: %s.", path, why)

    def failure(self, cell: Cell) -> str | None:
        """Why the cell's run cannot be done (its training diverged), if that is known."""
        path = self._failure(cell)
        return str(json.loads(path.read_text(encoding="utf-8"))["message"]) if path.exists() else None

    def put(self, cell: Cell, folder: Path) -> None:
        """Keep a finished run's folder."""
        run = read_run(folder)
        keep(replace(run, folder=run.folder.with_name(cell.name), facts={**run.facts, "name": cell.name}), self.folder / cell.scale)
        self._failure(cell).unlink(missing_ok=True)
        self.forget(cell)

    def put_failure(self, cell: Cell, message: str) -> None:
        """Keep what a run died of, so that it is not repeated."""
        write_json(self._failure(cell), {"identity": cell.identity, "message": message})

    def is_settled(self, cell: Cell) -> bool:
        """Whether nothing is left to do for the cell."""
        return self.get(cell) is not None or self.failure(cell) is not None

    def choose(self, cell: Cell) -> Cell | None:
        """The cell with the learning rate that did best on the validation part after fine-tuning; None while trials are missing."""
        trials = cell.trials()
        if cell.rate or not trials:
            return cell
        if not all(self.is_settled(t) for t in trials):
            return None
        scores = {t.rate: run.last["after"]["weighted"] for t in trials if (run := self.get(t)) is not None}
        return replace(cell, rate=max(scores, key=lambda rate: scores[rate])) if scores else replace(cell, rate=trials[0].rate)

    def same_version(self, runs: list[RunFiles]) -> None:
        """Numbers of different versions are not put into one table. Raises UserError that names the odd one."""
        seen: dict[str, RunFiles] = {}
        for run in runs:
            seen.setdefault(run.facts["versions"]["hyperfed"], run)
        if len(seen) > 1:
            told = " and ".join(f"{run.folder.name} with {version}" for version, run in seen.items())
            raise UserError(f"results of different versions of hyperfed are not mixed into one table: {told}; repeat one of them.")
