"""What crossed the wire: one CSV line per message, and what it was for: one line per round, direction and role."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperfed.core import Role, Traffic, count
from hyperfed.core.codec import count_by_role
from hyperfed.core.files import write_text

HEADER = ("round", "client", "direction", "trainable", "buffers", "extra", "bytes")
ROLES_HEADER = ("round", "direction", "role", "elements")


class Ledger:
    """Messages of the run so far, appended to ``ledger.csv`` round by round; their elements by role to ``roles.csv`` beside it.

    ``trainable`` counts trained elements (the papers' unit), ``buffers`` running statistics, ``extra`` any other element (ids, counts);
    ``bytes`` is their payload without framing. Initial models come from the seed and are not sent; evaluation is measurement, not traffic.
    """

    def __init__(self, path: Path, roles: Mapping[str, Role]) -> None:
        self.path, self.roles_path, self.roles = path, path.with_name("roles.csv"), roles
        self.total = Traffic()
        self.messages = 0
        self._lines: list[tuple[int, int, str, Traffic]] = []
        self._by_role: Counter[tuple[int, str, str]] = Counter()
        for file, header in ((path, HEADER), (self.roles_path, ROLES_HEADER)):
            if not file.exists():
                write_text(file, ",".join(header) + "\n")

    def add(self, number: int, client: int, direction: str, message: Any) -> None:
        """Weigh one message; ``roles`` says what its tensors are for."""
        self._lines.append((number, client, direction, count(message, self.roles)))
        self._by_role.update({(number, direction, role): n for role, n in count_by_role(message, self.roles).items()})

    def flush(self) -> Traffic:
        """Append the round's lines to the files; returns their sum."""
        lines = sorted(self._lines)  # whatever order an engine sends in
        _append(self.path, [(number, client, direction, *traffic) for number, client, direction, traffic in lines])
        _append(self.roles_path, [(*key, n) for key, n in sorted(self._by_role.items())])
        added = sum((traffic for *_, traffic in lines), Traffic())
        self.total += added
        self.messages += len(lines)
        self.drop()
        return added

    def drop(self) -> None:
        """Forget the lines of a round that was not finished."""
        self._lines.clear()
        self._by_role.clear()

    def rewind(self, number: int) -> None:
        """Cut the files back to rounds <= ``number``, as a resumed run needs."""
        kept = [r for r in read_ledger(self.path) if r[0] <= number]
        write_text(self.path, _text([HEADER, *((n, k, d, *t) for n, k, d, t in kept)]))
        write_text(self.roles_path, _text([ROLES_HEADER, *(r for r in read_roles(self.roles_path) if r[0] <= number)]))
        self.total = sum((t for *_, t in kept), Traffic())
        self.messages = len(kept)


def _text(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _append(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_text(rows))


def _rows(path: Path, header: tuple[str, ...]) -> list[list[str]]:
    """The lines below the header; a torn last line (the process was killed while writing) is left out."""
    with path.open(encoding="utf-8", newline="") as file:
        parts = [line.rstrip("\n").split(",") for line in file if line.endswith("\n")]
    return [p for p in parts if len(p) == len(header) and p[0] != header[0]]


def read_ledger(path: Path) -> list[tuple[int, int, str, Traffic]]:
    """Round, client, direction and weight of every message."""
    return [(int(p[0]), int(p[1]), p[2], Traffic(*map(int, p[3:]))) for p in _rows(path, HEADER)]


def read_roles(path: Path) -> list[tuple[int, str, str, int]]:
    """Round, direction, role and elements, summed over the round's clients; nothing where the file is missing."""
    return [(int(p[0]), p[1], p[2], int(p[3])) for p in _rows(path, ROLES_HEADER)] if path.exists() else []


def per_client_and_round(rows: list[tuple[int, int, str, Traffic]]) -> Traffic:
    """Mean over (client, round) pairs of what went up and down, rounded to whole elements and bytes."""
    pairs: defaultdict[tuple[int, int], Traffic] = defaultdict(Traffic)
    for number, client, _, traffic in rows:
        pairs[number, client] += traffic
    if not pairs:
        return Traffic()
    total = sum(pairs.values(), Traffic())
    return Traffic(*(round(v / len(pairs)) for v in total))


def roles_per_client_and_round(ledger: list[tuple[int, int, str, Traffic]], roles: list[tuple[int, str, str, int]]) -> dict[str, int]:
    """Role -> elements up and down of one client in one round, the mean over (client, round) pairs."""
    pairs = len({(number, client) for number, client, *_ in ledger})
    sums: Counter[str] = Counter()
    for _, _, role, n in roles:
        sums[role] += n
    return {role: round(n / pairs) for role, n in sorted(sums.items()) if pairs}


def totals_by_round(rows: list[tuple[int, int, str, Traffic]]) -> list[tuple[int, int, int]]:
    """Round, trained elements and bytes of all clients so far, after every round with traffic."""
    by_round: defaultdict[int, Traffic] = defaultdict(Traffic)
    for number, _, _, traffic in rows:
        by_round[number] += traffic
    out, total = [], Traffic()
    for number in sorted(by_round):
        total += by_round[number]
        out.append((number, total.trainable, total.bytes))
    return out
