"""What a run measured: ``metrics.jsonl``, a line per evaluation or event, and ``clients.csv``, a block per evaluation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperfed.core.files import write_text
from hyperfed.run.evaluate import Evaluation

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
        """Cut metrics.jsonl back to rounds <= ``number``; clients.csv to the evaluations that metrics.jsonl has."""
        if not self.metrics.exists():
            self.clients.unlink(missing_ok=True)
            return
        lines = [line for line in _whole_lines(self.metrics) if json.loads(line)["round"] <= number]
        write_text(self.metrics, "".join(lines))
        if self.clients.exists():
            known = {str(fact["round"]) for fact in map(json.loads, lines) if "before" in fact}
            write_text(self.clients, "".join(line for line in _whole_lines(self.clients) if line.split(",")[0] in known | {"round"}))

    def evaluations(self) -> Iterator[dict[str, Any]]:
        """The lines of evaluations, oldest first."""
        lines = map(json.loads, _whole_lines(self.metrics)) if self.metrics.exists() else ()
        return (line for line in lines if "before" in line)


def _whole_lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n")]
