"""What a run measured: ``metrics.jsonl``, a line per evaluation or event, and ``clients.csv``, a block per evaluation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperfed.core import UserError
from hyperfed.core.files import write_text
from hyperfed.run.evaluate import Evaluation
from hyperfed.run.ledger import WAY_OUT

HEADER = "round,client,test_samples,correct_before,correct_after\n"


class Journal:
    """The two files in ``folder``. A line cut off by a crash is no line."""

    def __init__(self, folder: Path) -> None:
        self.metrics, self.clients = folder / "metrics.jsonl", folder / "clients.csv"

    def note(self, line: dict[str, Any]) -> None:
        """Append to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def note_clients(self, number: int, result: Evaluation) -> None:
        """Append to clients.csv; goes before the evaluation's line in metrics.jsonl, without which it does not count."""
        if not self.clients.exists():
            write_text(self.clients, HEADER)
        after = result.after if result.after is not None else [""] * len(result.tests)
        rows = zip(result.tests, result.before, after, strict=True)
        with self.clients.open("a", encoding="utf-8") as file:
            file.writelines(f"{number},{k},{t},{b},{a}\n" for k, (t, b, a) in enumerate(rows))

    def rewind(self, number: int) -> None:
        """Cut metrics.jsonl back to rounds <= ``number``, and to evaluations that were ended; clients.csv to those.

        Raises UserError where one of the files is damaged, or does not go with the other.
        """
        if not self.metrics.exists():
            self.clients.unlink(missing_ok=True)
            return
        lines = [(line, fact) for line, fact in _facts(self.metrics) if fact["round"] <= number]
        known = {fact["round"] for _, fact in lines if "before" in fact}
        kept = [line for line, fact in lines if "evaluation" not in fact or fact["round"] in known]
        rows = self._rows({str(k) for k in known})
        write_text(self.metrics, "".join(kept))
        if self.clients.exists():
            write_text(self.clients, HEADER + "".join(rows))

    def _rows(self, known: set[str]) -> list[str]:
        """The rows of these evaluations: as many clients in one as in any other, in their order."""
        if not self.clients.exists():
            if known:
                raise UserError(f"{self.clients} is missing beside {self.metrics.name}: {WAY_OUT}")
            return []
        rows = [line for line in _whole_lines(self.clients)[1:] if line.split(",")[0] in known]
        who: dict[str, list[str]] = {number: [] for number in known}
        for line in rows:
            who[line.split(",")[0]].append(line.split(",")[1] if line.count(",") == HEADER.count(",") else line)
        most = max(map(len, who.values()), default=0)
        if wrong := [number for number, clients in who.items() if clients != [str(k) for k in range(most or 1)]]:
            raise UserError(f"{self.clients} is damaged: it does not have every client once in round {min(wrong, key=int)}; {WAY_OUT}")
        return rows

    def evaluations(self) -> Iterator[dict[str, Any]]:
        """The lines of evaluations, oldest first."""
        return (fact for _, fact in (_facts(self.metrics) if self.metrics.exists() else ()) if "before" in fact)


def _whole_lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return [line for line in file if line.endswith("\n")]
    except OSError as problem:
        raise UserError(f"{path} cannot be read: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise UserError(f"{path} is damaged: {problem}.") from problem


def _facts(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every whole line, and what it says."""
    out = []
    for i, line in enumerate(_whole_lines(path)):
        try:
            fact = json.loads(line)
            fact["round"] = int(fact["round"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path} is damaged: line {i + 1} is no line of a run; copy the file back, or delete the run's folder."
            ) from None
        out.append((line, fact))
    return out
