"""What crossed the wire: one CSV line per message, and what it was for: one line per round, direction and role."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperfed.core import Role, Traffic, UserError, count
from hyperfed.core.codec import count_by_role
from hyperfed.core.files import sync, write_text

HEADER = ("round", "client", "direction", "trainable", "buffers", "extra", "bytes")
ROLES_HEADER = ("round", "direction", "role", "elements")
WAY_OUT = "copy it back, or delete the run's folder to play it anew."


class Ledger:
    """Messages of the run so far, appended to ``ledger.csv`` round by round; their elements by role to ``roles.csv`` beside it.

    ``trainable`` counts trained elements (the papers' unit), ``buffers`` running statistics, ``extra`` any other element (ids, counts);
    ``bytes`` is their payload without framing. Initial models come from the seed and are not sent; evaluation is measurement, not
    traffic. Nor is a client's number of samples counted, which it says once, nor its training loss, which goes beside each upload.
    """

    def __init__(self, path: Path, roles: Mapping[str, Role]) -> None:
        self.path, self.roles_path, self.roles = path, path.with_name("roles.csv"), roles
        self.total = Traffic()
        self.messages = 0
        self._lines: list[tuple[int, int, str, Traffic]] = []
        self._by_role: Counter[tuple[int, str, str]] = Counter()

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

    def rewind(self, number: int, messages: int | None = None) -> None:
        """Begin the files, or cut them back to rounds <= ``number``, which had so many ``messages`` (None: nobody noted how many).

        Raises UserError where they are not whole: the costs of the rounds so far would be lost without a word.
        """
        kept, roles = ([row for row in _whole(read, path) if row[0] <= number] for read, path in self._files(number > 0))
        if messages is not None and len(kept) != messages:
            raise UserError(f"{self.path} is damaged: it has {len(kept)} messages up to round {number}, {messages} were sent; {WAY_OUT}")
        weighed, told = Counter[int](), Counter[int]()
        for n, _, _, traffic in kept:
            weighed[n] += traffic.trainable + traffic.buffers + traffic.extra
        for n, _, _, elements in roles:
            told[n] += elements
        if wrong := sorted(n for n in weighed | told if weighed[n] != told[n]):
            raise UserError(f"{self.path} or {self.roles_path.name} beside it is damaged: they differ in round {wrong[0]}; {WAY_OUT}")
        write_text(self.path, _text([HEADER, *((n, k, d, *t) for n, k, d, t in kept)]))
        write_text(self.roles_path, _text([ROLES_HEADER, *roles]))
        self.total = sum((t for *_, t in kept), Traffic())
        self.messages = len(kept)

    def _files(self, needed: bool) -> Iterator[tuple[Callable[[Path], list[Any]], Path]]:
        for read, path in ((read_ledger, self.path), (read_roles, self.roles_path)):
            if needed and not path.exists():
                raise UserError(f"{path} is missing, and with it what the rounds so far have cost; {WAY_OUT}")
            yield read, path

    def sync(self) -> None:
        """Have what was appended outlive a loss of power."""
        for path in (self.path, self.roles_path):
            sync(path)


def _whole(read: Callable[[Path], list[Any]], path: Path) -> list[Any]:
    try:
        return read(path) if path.exists() else []
    except OSError as problem:
        raise UserError(f"{path} cannot be read: {problem.strerror}.") from problem
    except ValueError as problem:
        raise UserError(f"{path} is damaged: {problem}; {WAY_OUT}") from problem


def _text(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _append(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_text(rows))


def _rows(path: Path, header: tuple[str, ...]) -> list[list[str]]:
    """The lines below the header; a torn last line (the process was killed while writing) is left out. Raises ValueError for others."""
    with path.open(encoding="utf-8", newline="") as file:
        parts = [line.rstrip("\n").split(",") for line in file if line.endswith("\n")]
    for i, p in enumerate(parts):
        if len(p) != len(header):
            raise ValueError(f"line {i + 1} has {len(p)} fields, not {len(header)}")
    return [p for p in parts if p[0] != header[0]]


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
