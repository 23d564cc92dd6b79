"""The in-process engine: all clients one after another on one model, at the speed of the bare training loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hyperfed.core import ALL, Method, Params, Round, Scope, select
from hyperfed.core.seeds import derive_seed, generator
from hyperfed.engine.guard import Guard
from hyperfed.engine.optim import Optim
from hyperfed.engine.round import Finetune, Reply, Score, StopAsked
from hyperfed.engine.store import Store
from hyperfed.engine.workspace import DeviceClient, Local, NonFiniteLoss, Workspace


@dataclass
class LocalEngine:
    """Runs clients in this process. ``train`` and ``test`` hold one index tensor per client."""

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
    _initial: Params | None = None
    _staged: dict[int, Any] = field(default_factory=dict)

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
        state = self.store.get(k)
        return self.method.init_client(self.initial(k)) if state is None else state

    def client(self, k: int, number: int, purpose: str, optim: Optim, lr: float) -> DeviceClient:
        """The client as its method sees it."""
        index = self.train_index[k]
        if self.method.pooled and purpose == "train":
            index = torch.cat(self.train_index)
        held = int(self.method.validation * len(index))
        if held:
            index = index[torch.randperm(len(index), generator=generator(self.seed, "validation", k)).to(index.device)]
        each = self.guard.per_example if purpose == "train" else None
        return DeviceClient(self.space, k, index[held:], index[:held], self.seed, number, lr, optim, self.local, purpose, each)

    def train(self, rnd: Round, download: Callable[[int], Any]) -> Iterator[Reply]:
        """See :class:`~hyperfed.engine.round.Engine`. Raises StopAsked between two clients when asked to stop."""
        self._staged.clear()
        for k in rnd.ids.tolist():
            if self.stop():
                raise StopAsked
            try:
                self._staged[k], reply = self.turn(k, rnd.number, download(k))
            except NonFiniteLoss as problem:
                if self.on_nan == "stop":
                    raise
                self.warn(rnd.number, k, f"skipped: {problem}")
                continue
            yield reply

    def turn(self, k: int, number: int, down: Any) -> tuple[Any, Reply]:
        """What client ``k`` does in a round: its new state and its answer. Raises NonFiniteLoss."""
        client = self.client(k, number, "train", self.optim, self.optim.rate(number, self.rounds))
        state, upload = self.method.client_update(client, self.state(k), down)
        loss = sum(client.losses) / len(client.losses) if client.losses and self.guard.sends_loss else float("nan")
        return state, Reply(k, self.guard.protect(number, k, down, upload), loss)

    def commit(self, number: int) -> None:
        """Keep the states of the round that was just played."""
        for k, state in self._staged.items():
            self.store.put(k, state, number)
        self._staged.clear()

    def evaluate(self, rnd: Round, download: Callable[[int], Any], finetune: Finetune | None) -> Iterator[Score]:
        """See :class:`~hyperfed.engine.round.Engine`."""
        for k in rnd.ids.tolist():
            if self.stop():
                raise StopAsked
            yield Score(len(self.test_index[k]), *self.correct(k, download(k), rnd.number, finetune))

    def model_of(self, k: int, down: Any) -> Params:
        """The model client ``k`` would deploy now."""
        return self.method.personalize(self.state(k), down)

    def correct(self, k: int, down: Any, number: int, finetune: Finetune | None) -> tuple[int, int | None]:
        """Right answers on the client's own test data, before and after fine-tuning. Disturbs neither training nor states.

        Where fine-tuning breaks and ``on_nan`` is not stop, the client is scored without it.
        """
        with torch.no_grad():
            params = self.model_of(k, down)
        optim = self.optim if finetune is None else Optim(**{**vars(self.optim), "lr": finetune.lr, "schedule": "constant"})
        client = self.client(k, number, "finetune", optim, optim.lr)
        before = client.correct(params, self.test_index[k])
        if finetune is None:
            return before, None
        try:
            tuned = self.method.finetune(client, params, finetune.epochs, frozenset(finetune.scope) or ALL)
        except NonFiniteLoss as problem:
            if self.on_nan == "stop":
                raise
            self.warn(number, k, f"scored without fine-tuning: {problem}")
            return before, before
        return before, client.correct(tuned, self.test_index[k])
