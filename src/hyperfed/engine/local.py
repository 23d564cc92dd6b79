"""The in-process engine: clients one after another on one model, at the speed of the bare training loop; on a GPU some side by side."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from hyperfed.core import ALL, Method, Params, Round, Scope, select
from hyperfed.core.seeds import derive_seed, generator
from hyperfed.engine.gpu import side_by_side
from hyperfed.engine.guard import Guard
from hyperfed.engine.optim import Optim
from hyperfed.engine.round import Finetune, Reply, Score, Sent, StopAsked, unheard
from hyperfed.engine.store import Store
from hyperfed.engine.workspace import DeviceClient, Local, NonFiniteLoss, Workspace

T = TypeVar("T")
AT_ONCE = 8
"""Downloads that are made for each lane before its clients begin."""


@dataclass
class LocalEngine:
    """Runs clients in this process. ``train_index`` and ``test_index`` hold one index tensor per client.

    ``lanes``: clients that train at the same time, each on a model of its own on the same GPU. A defence's clients do not.
    """

    method: Method[Any, Any, Any, Any]
    space: Workspace
    train_index: list[Tensor]
    test_index: list[Tensor]
    store: Store[Any]
    optim: Optim
    local: Local
    seed: int
    rounds: int
    private_init: Scope = frozenset()
    on_nan: str = "stop"
    guard: Guard = field(default_factory=Guard)
    stop: Callable[[], bool] = lambda: False
    warn: Callable[[int, int, str], None] = lambda number, client, text: None
    lanes: int = 1
    _lock: Any = field(default_factory=Lock)
    _initial: Params | None = None
    _staged: dict[int, Any] = field(default_factory=dict)
    _spaces: list[Workspace] = field(default_factory=list)
    _read: list[Any] | None = None  # states that lanes have read: while they work, none is freed and its memory used again

    @property
    def device(self) -> str:
        """The device of model and data."""
        return str(self.space.images.device)

    @property
    def examples(self) -> list[int]:
        """Training examples of every client."""
        return [len(i) for i in self.train_index]

    def watch(self, stop: Callable[[], bool], warn: Callable[[int, int, str], None]) -> None:
        """See :class:`~hyperfed.engine.round.Engine`."""
        self.stop, self.warn = stop, warn

    def close(self) -> None:
        """Nothing to let go of."""

    def initial(self, k: int | None = None) -> Params:
        """The common initial model; with ``k`` the client's own, whose ``private_init`` roles are drawn for it alone."""
        if self._initial is None:
            self._initial = self._draw(derive_seed(self.seed, "init"))
        if k is None or not self.private_init:
            return self._initial
        own = self._draw(derive_seed(self.seed, "init", k))
        return {**self._initial, **select(own, self.method.model.roles, self.private_init)}

    def _draw(self, seed: int) -> Params:
        return {n: t.to(self.space.images.device) for n, t in self.method.model.init(seed).items()}

    def state(self, k: int) -> Any:
        """The client's state; its initial one before its first round."""
        k = 0 if self.method.pooled else k
        with self._lock:
            state = self.store.get(k)
            state = self.method.init_client(self.initial(k)) if state is None else state
            if self._read is not None:
                self._read.append(state)
            return state

    def client(self, k: int, number: int, purpose: str, optim: Optim, lr: float, space: Workspace | None = None) -> DeviceClient:
        """The client as its method sees it."""
        index = self.train_index[k]
        if self.method.pooled and purpose == "train":
            index = torch.cat(self.train_index)
        held = int(self.method.validation * len(index))
        if held:
            index = index[torch.randperm(len(index), generator=generator(self.seed, "validation", k)).to(index.device)]
        each = self.guard.per_example if purpose == "train" else None
        return DeviceClient(space or self.space, k, index[held:], index[:held], self.seed, number, lr, optim, self.local, purpose, each)

    def _each(self, ids: list[int], job: Callable[[int], Callable[[Workspace], T]]) -> Iterator[T]:
        """What the job of every client returns, in their order. Raises StopAsked between two clients when asked to stop."""

        def ask() -> None:
            if self.stop():
                raise StopAsked

        def asked(one: Callable[[Workspace], T], k: int, space: Workspace) -> T:
            ask()
            space.met.add(k)
            return one(space)

        if self.lanes == 1 or type(self.guard) is not Guard:
            for k in ids:
                ask()
                yield job(k)(self.space)
            return
        while len(self._spaces) < self.lanes:
            self._spaces.append(self.space.another() if self._spaces else self.space)
        for start in range(0, len(ids), AT_ONCE * self.lanes):
            some = ids[start : start + AT_ONCE * self.lanes]
            self._read = []
            try:
                yield from cast(list[T], side_by_side(self._spaces, [partial(asked, job(k), k) for k in some], self._rank(some)))
            finally:
                self._read = None

    def _rank(self, ids: list[int]) -> Callable[[Workspace, int], int]:
        """For a model the clients first that it has met, then those that none has: the steps of their sizes are recorded once."""

        def rank(space: Workspace, i: int) -> int:
            return 0 if ids[i] in space.met else 1 + any(ids[i] in other.met for other in self._spaces)

        return rank

    def train(self, rnd: Round, download: Callable[[int], Any], sent: Sent = unheard) -> Iterator[Reply]:
        """See :class:`~hyperfed.engine.round.Engine`. Raises StopAsked between two clients when asked to stop."""
        self._staged.clear()
        ids = rnd.ids.tolist()

        def job(k: int) -> Callable[[Workspace], Any]:
            sent(k, message := download(k))
            return partial(self._try, k, rnd.number, message)

        for k, came in zip(ids, self._each(ids, job), strict=True):
            if isinstance(came, NonFiniteLoss):
                if self.on_nan == "stop":
                    raise came
                self.warn(rnd.number, k, f"skipped: {came}")
                continue
            self._staged[k], reply = came
            yield reply

    def _try(self, k: int, number: int, down: Any, space: Workspace) -> tuple[Any, Reply] | NonFiniteLoss:
        try:
            return self.turn(k, number, down, space)
        except NonFiniteLoss as problem:
            return problem

    def turn(self, k: int, number: int, down: Any, space: Workspace | None = None) -> tuple[Any, Reply]:
        """What client ``k`` does in a round: its new state and its answer. Raises NonFiniteLoss."""
        space = space or self.space
        with space.aside():
            client = self.client(k, number, "train", self.optim, self.optim.rate(number, self.rounds), space)
            state = self.state(k)
            state, upload = self.method.client_update(client, state, down)
            loss = sum(client.losses) / len(client.losses) if client.losses and self.guard.sends_loss else float("nan")
            return state, Reply(k, self.guard.protect(number, k, down, upload), loss)

    def commit(self, number: int) -> None:
        """Keep the states of the round that was just played."""
        for k, state in self._staged.items():
            self.store.put(k, state, number)
        self._staged.clear()

    def evaluate(self, rnd: Round, download: Callable[[int], Any], finetune: Finetune | None) -> Iterator[Score]:
        """See :class:`~hyperfed.engine.round.Engine`."""
        ids = rnd.ids.tolist()
        for k, came in zip(ids, self._each(ids, lambda k: partial(self.score, k, download(k), rnd.number, finetune)), strict=True):
            yield Score(len(self.test_index[k]), *self._told(k, rnd.number, *came))

    def model_of(self, k: int, down: Any) -> Params:
        """The model client ``k`` would deploy now."""
        return self.method.personalize(self.state(k), down)

    def deployed(self, k: int, down: Any, number: int, finetune: Finetune | None) -> Params:
        """The model client ``k`` is scored with after round ``number``, fine-tuned where asked for. Raises NonFiniteLoss."""
        with self.space.aside():
            params = self.model_of(k, down)
            return params if finetune is None else self._tuned(self._tuner(k, number, finetune, self.space), params, finetune)

    def _tuner(self, k: int, number: int, finetune: Finetune | None, space: Workspace) -> DeviceClient:
        optim = self.optim if finetune is None else Optim(**{**vars(self.optim), "lr": finetune.lr, "schedule": "constant"})
        return self.client(k, number, "finetune", optim, optim.lr, space)

    def _tuned(self, client: DeviceClient, params: Params, finetune: Finetune) -> Params:
        return self.method.finetune(client, params, finetune.epochs, frozenset(finetune.scope) or ALL)

    def correct(self, k: int, down: Any, number: int, finetune: Finetune | None) -> tuple[int, int | None]:
        """Right answers on the client's own test data, before and after fine-tuning. Disturbs neither training nor states.

        Where fine-tuning breaks and ``on_nan`` is not stop, the client is scored without it.
        """
        return self._told(k, number, *self.score(k, down, number, finetune))

    def _told(self, k: int, number: int, before: int, after: int | None, problem: NonFiniteLoss | None) -> tuple[int, int | None]:
        if problem is not None:
            if self.on_nan == "stop":
                raise problem
            self.warn(number, k, f"scored without fine-tuning: {problem}")
        return before, after

    def score(
        self, k: int, down: Any, number: int, finetune: Finetune | None, space: Workspace | None = None
    ) -> tuple[int, int | None, NonFiniteLoss | None]:
        """Right answers before and after fine-tuning, and what broke in between: then they are the same."""
        space = space or self.space
        client = self._tuner(k, number, finetune, space)
        with space.aside():
            with torch.no_grad():
                params = self.model_of(k, down)
            before = client.correct(params, self.test_index[k])
            if finetune is None:
                return before, None, None
            try:
                tuned = self._tuned(client, params, finetune)
            except NonFiniteLoss as problem:
                return before, before, problem
            return before, client.correct(tuned, self.test_index[k]), None
