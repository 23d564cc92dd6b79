"""The store of evidence: one small JSON file per finished run, named after its settings; what every table and plot is made from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hyperfed import __version__
from hyperfed.core import UserError
from hyperfed.core.files import read_json, write_json
from hyperfed.evidence.plans import Cell
from hyperfed.methods import METHODS
from hyperfed.report.runs import RunFiles, keep, read_run
from hyperfed.run.config import identity_hash

log = logging.getLogger(__name__)


@dataclass
class Store:
    """Files below ``folder/<scale>``. ``damaged`` names those that could not be read; they are skipped, and their runs repeated."""

    folder: Path
    damaged: set[str] = field(default_factory=set)
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
        except UserError as problem:
            self._name(path, str(problem).rstrip("."))
            return None
        if run.facts.get("identity") != cell.identity or identity_hash(run.config) != cell.identity:
            self._name(path, "it holds another run than its name says")
            return None
        if (made := _revision(run)) != (now := revision(cell)):
            self._name(path, f"revision {made} of its method made it, and this is revision {now}")
            return None
        if run.last["round"] != run.config["rounds"] or run.last["after"] is None:
            self._name(path, "the run in it is not finished, or without the accuracy after fine-tuning")
            return None
        if cell.experiment == "fig3" and not run.detail.similarity:
            self._name(path, "the similarity of the generated kernels (detail.similarity) is missing")
            return None
        if run.per_round.trainable and {e["round"] for e in run.evaluations} - {0} - {row[0] for row in run.detail.totals}:
            self._name(path, "its ledger's totals (detail.totals) are missing")
            return None
        return run

    def _name(self, path: Path, why: str) -> None:
        if path.name not in self.damaged:
            log.warning("%s is left out: %s.", path, why)
        self.damaged.add(path.name)

    def failure(self, cell: Cell) -> str | None:
        """Why the cell's run cannot be done (its training diverged), if that is known."""
        path = self._failure(cell)
        if not path.exists():
            return None
        try:
            kept = read_json(path, "message", "identity")
        except UserError:
            self._name(path, "it does not say what the run died of")
            return None
        if kept["identity"] != cell.identity or kept.get("method", 1) != revision(cell):
            self._name(path, "it is another run's, or of another revision of its method")
            return None
        return str(kept["message"])

    def put(self, cell: Cell, folder: Path) -> None:
        """Keep a finished run's folder."""
        run = read_run(folder)
        keep(replace(run, folder=run.folder.with_name(cell.name), facts={**run.facts, "name": cell.name}), self.folder / cell.scale)
        self._failure(cell).unlink(missing_ok=True)
        self.damaged -= {self.path(cell).name, self._failure(cell).name}
        self.forget(cell)

    def put_failure(self, cell: Cell, message: str) -> None:
        """Keep what a run died of, so that it is not repeated."""
        write_json(self._failure(cell), {"identity": cell.identity, "method": revision(cell), "message": message})
        self.damaged -= {self.path(cell).name, self._failure(cell).name}

    def is_settled(self, cell: Cell) -> bool:
        """Whether nothing is left to do for the cell."""
        return self.get(cell) is not None or self.failure(cell) is not None

    def has(self, cell: Cell) -> bool:
        """Whether nothing is left to do for the cell and for the choice of its learning rate."""
        chosen = self.choose(cell)
        return chosen is not None and self.is_settled(chosen)

    def refuse_other_versions(self, cells: Sequence[Cell]) -> None:
        """What is missing beside runs of another version is not worth running: no table takes both. Raises UserError."""
        there = {run.folder.name: run for c in cells for one in (*c.trials, self.choose(c)) if one and (run := self.get(one))}
        others = [f"{name} of {made}" for name, run in there.items() if (made := run.facts["versions"]["hyperfed"]) != __version__]
        if others:
            raise UserError(
                f"--results = {str(self.folder)!r} holds {len(others)} of these runs in another version of hyperfed ({others[0]}; this is "
                f"{__version__}), and no table takes both: choose another --results, or delete those to have them repeated."
            )

    def choose(self, cell: Cell) -> Cell | None:
        """The cell with the learning rate that did best on the validation part after fine-tuning; None while trials are missing."""
        trials = cell.trials
        if not trials:
            return cell
        if not all(self.is_settled(t) for t in trials):
            return None
        scores = {t.rate: run.last["after"]["weighted"] for t in trials if (run := self.get(t)) is not None}
        return replace(cell, rate=max(scores, key=lambda rate: scores[rate])) if scores else replace(cell, rate=trials[0].rate)


def revision(cell: Cell) -> int:
    """The present one of the cell's method."""
    return METHODS[cell.composed()["method"]["name"]].revision


def _revision(run: RunFiles) -> int | str:
    return run.facts["versions"].get("method", 1)


def same_version(runs: Sequence[RunFiles]) -> None:
    """Numbers of different versions are not put into one table, nor of two revisions of a method. Raises UserError."""
    seen: dict[str, dict[str, RunFiles]] = {}
    for run in runs:
        seen.setdefault("hyperfed", {}).setdefault(run.facts["versions"]["hyperfed"], run)
        seen.setdefault(run.config["method"]["name"], {}).setdefault(f"revision {_revision(run)}", run)
    for what, versions in seen.items():
        if len(versions) > 1:
            told = " and ".join(f"{run.folder.name} with {version}" for version, run in versions.items())
            raise UserError(f"results of different versions of {what} are not mixed into one table: {told}; repeat one of them.")
