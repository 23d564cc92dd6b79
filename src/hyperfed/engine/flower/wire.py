"""What Flower's messages weigh, framing included: one CSV line per message, beside the ledger's elements."""

from os import SEEK_END
from pathlib import Path

from hyperfed.core.files import write_text

HEADER = "round,client,purpose,direction,bytes\n"
LONGEST = 4096
"""More bytes than any line has."""


class Wire:
    """Appends to ``wire.csv``. Unlike the ledger it is never cut back: what was sent was sent. Evaluation and queries count, too."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.totals = {"down": 0, "up": 0}
        if path is not None and not (path.exists() and _mend(path)):
            write_text(path, HEADER)

    def add(self, number: int, client: int, purpose: str, direction: str, size: int) -> None:
        """Note one message of ``size`` bytes; client -1 stands for a node that has not said which clients it hosts."""
        self.totals[direction] += size
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{number},{client},{purpose},{direction},{size}\n")


def _mend(path: Path) -> bool:
    """Cut off half a last line, of a process that was killed while it wrote; whether any line is left."""
    with path.open("r+b") as file:
        end = file.seek(0, SEEK_END)
        start = file.seek(max(0, end - LONGEST))
        whole = start + file.read().rfind(b"\n") + 1
        if whole < end:
            file.truncate(whole)
    return whole > 0
