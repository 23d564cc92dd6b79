"""States of clients: in memory up to a bound, on disk beyond it, in versions that checkpoints refer to."""

import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from errno import EIO
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from hyperfed.core import Params, UserError, flatten, unflatten
from hyperfed.core.files import atomic, load_tensors, save_tensors, sync

C = TypeVar("C")


class Row(NamedTuple):
    """What a server keeps for one client."""

    row: Params


Versions = dict[int, int]


NAME = re.compile(r"(\d{6,})-(\d{6,})\.safetensors")


def _name(k: int, version: int) -> str:
    return f"{k:06d}-{version:06d}.safetensors"


class DamagedState(UserError):
    """A client's state is not on disk as it was written."""


class Store(Generic[C]):
    """Client id -> state. A version is the round in which the state was made; a file is never overwritten.

    Memory does not grow with the number of clients: beyond ``cache_bytes`` the states used longest ago live on disk only. A ``durable``
    store, a real device's, outlives a loss of power and notices every damaged bit; a simulation's, with the states of a whole
    cohort to write after each round, outlives the process and notices files that are missing or cut short.
    """

    def __init__(self, folder: Path, kind: type[C], cache_bytes: int = 256 * 2**20, device: str = "cpu", durable: bool = False) -> None:
        self.folder, self.kind, self.cache_bytes, self.device, self.durable = folder, kind, cache_bytes, device, durable
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(f"{folder} is no folder and cannot be made one: {problem.strerror}.") from problem
        self.versions: Versions = {}
        self._cache: OrderedDict[int, tuple[C, int]] = OrderedDict()
        self._held = 0
        self._dirty: set[int] = set()
        self._loose: set[Path] = set()
        self._files: defaultdict[int, set[int]] = defaultdict(set)
        for path in folder.glob("*.safetensors"):
            if found := NAME.fullmatch(path.name):  # others are not ours
                self._files[int(found[1])].add(int(found[2]))

    def get(self, k: int) -> C | None:
        """The state of client ``k``; None before its first round. Raises DamagedState."""
        if k not in self.versions:
            return None
        if k in self._cache:
            self._cache.move_to_end(k)
            return self._cache[k][0]
        path = self.folder / _name(k, self.versions[k])
        try:
            state = unflatten(self.kind, load_tensors(path, self.device))
        except (OSError, KeyError, TypeError) as problem:
            if not isinstance(problem, OSError):
                problem = OSError(EIO, "damaged (it holds something else)")
            what = "is missing" if isinstance(problem, FileNotFoundError) else f"cannot be read: {problem.strerror or problem}"
            raise DamagedState(f"the state of client {k} (round {self.versions[k]}), {path}, {what}.") from problem
        self._remember(k, state)
        return state

    def put(self, k: int, state: C, version: int) -> None:
        """Keep the state that client ``k`` reached in round ``version``. A state without a tensor is not kept: it can be made anew."""
        if not flatten(state):
            return
        self.versions[k] = version
        self._dirty.add(k)
        self._remember(k, state)

    def flush(self) -> Versions:
        """Write what is only in memory; returns client -> version, which :meth:`restore` takes."""
        for k in sorted(self._dirty):
            self._write(k)
        if self.durable and (new := self._loose & {self.folder / _name(k, version) for k, version in self.versions.items()}):
            for path in (*sorted(new), self.folder):
                sync(path)
        self._loose.clear()
        return dict(self.versions)

    def restore(self, versions: Versions) -> None:
        """Go back to the versions of a checkpoint. Raises DamagedState where one is missing or is not as it was written."""
        self._cache.clear()
        self._dirty.clear()
        self._held = 0
        self.versions = dict(versions)
        for k in versions:
            self.get(k)

    def collect(self, kept: Iterable[Versions]) -> None:
        """Delete the files that neither the present nor a kept checkpoint refers to."""
        needed: defaultdict[int, set[int]] = defaultdict(set)
        for versions in (*kept, self.versions):
            for k, version in versions.items():
                needed[k].add(version)
        for k, present in self._files.items():
            for version in present - needed[k]:
                (self.folder / _name(k, version)).unlink(missing_ok=True)
            present &= needed[k]

    def has(self, k: int, version: int) -> bool:
        """Whether this version is on disk."""
        return (self.folder / _name(k, version)).exists()

    def keep_only(self, k: int, versions: Iterable[int], before: int) -> None:
        """Delete client ``k``'s other versions from before round ``before``: who says so may be a slow order, and younger ones committed.

        Of a folder that several processes share, each deletes its own clients' only.
        """
        kept = {_name(k, v) for v in versions}
        for path in self.folder.glob(f"{k:06d}-*.safetensors"):
            found = NAME.fullmatch(path.name)
            if found and path.name not in kept and int(found[2]) < before:
                path.unlink(missing_ok=True)
                self._files[k].discard(int(found[2]))

    def _write(self, k: int) -> None:
        """Write the state of client ``k`` that is only in memory; :meth:`flush` sees to it that it outlives a loss of power."""
        path = self.folder / _name(k, self.versions[k])
        with atomic(path, durable=False) as temporary:
            save_tensors(temporary, flatten(self._cache[k][0]), packed=True, checksum=self.durable)
        self._files[k].add(self.versions[k])
        self._loose.add(path)
        self._dirty.discard(k)

    def _remember(self, k: int, state: C) -> None:
        size = sum(t.numel() * t.element_size() for t in flatten(state).values())
        if k in self._cache:
            self._held -= self._cache.pop(k)[1]
        self._cache[k] = (state, size)
        self._held += size
        while self._held > self.cache_bytes and len(self._cache) > 1:
            oldest = next(iter(self._cache))
            if oldest in self._dirty:
                self._write(oldest)  # before it leaves memory: where the disk is full, nothing is lost
            self._held -= self._cache.pop(oldest)[1]


class Rows:
    """A store as the backing of a :class:`~hyperfed.core.Bank`."""

    def __init__(self, store: Store[Row]) -> None:
        self.store = store

    def get(self, k: int) -> Params | None:
        """The row of client ``k``."""
        found = self.store.get(k)
        return None if found is None else found.row

    def put(self, k: int, row: Params, version: int) -> None:
        """Keep a row made in round ``version``."""
        self.store.put(k, Row(row), version)
