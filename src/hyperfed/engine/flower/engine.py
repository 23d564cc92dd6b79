"""The server's side: an engine whose clients are reached through a Flower Grid."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, isinf
from typing import Any

from flwr.app import Message, MessageType, RecordDict

from hyperfed.core import Method, Params, Round
from hyperfed.engine.flower.codec import Refused, Spec, checked, decode, header_of, message_types, pack, size_of, spec_of
from hyperfed.engine.flower.nodes import Nodes, QuorumNotMet, first_line
from hyperfed.engine.flower.remote import Remote
from hyperfed.engine.round import Finetune, Reply, Score, Sent, StopAsked, unheard
from hyperfed.engine.workspace import NonFiniteLoss

IDENTITY = {"experiment": str, "round": int, "client": int}
TRAINED = {**IDENTITY, "loss": float, "version": int}
FAILED = {**IDENTITY, "failure": str, "step": int, "lr": float}
SCORED = {**IDENTITY, "tests": int, "before": int, "after": int}
AT_ONCE = 64
"""Messages of an evaluation in flight."""


@dataclass
class FlowerEngine:
    """Runs clients wherever the grid reaches them. ``rehearse`` maps a download to an upload of the right structure."""

    method: Method[Any, Any, Any, Any]
    nodes: Nodes
    first: Params
    rehearse: Callable[[Any], Any]
    device: str = "cpu"
    on_nan: str = "stop"
    store: Remote = field(default_factory=Remote)
    stop: Callable[[], bool] = lambda: False
    warn: Callable[[int, int, str], None] = lambda number, client, text: None
    close_grid: Callable[[], None] = lambda: None
    _late: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    _spec: Spec | None = None
    _made: dict[int, int] = field(default_factory=dict)

    def watch(self, stop: Callable[[], bool], warn: Callable[[int, int, str], None]) -> None:
        """See :class:`~hyperfed.engine.round.Engine`."""
        self.stop, self.warn = stop, warn
        self.nodes.stop, self.nodes.warn = stop, warn

    def close(self) -> None:
        """Let go of the grid."""
        self.close_grid()

    def initial(self) -> Params:
        """The common initial model; clients draw it from the same seed, so it is never sent."""
        return self.first

    @cached_property
    def _types(self) -> tuple[type, type]:
        return message_types(self.method)

    @property
    def examples(self) -> list[int]:
        """Training examples of every client, as it told; 0 of one that was never there."""
        everyone = list(range(self.method.num_clients))
        if len(self.nodes.sizes) < len(everyone):
            self.nodes.meet(everyone)
        return [self.nodes.sizes.get(k, 0) for k in everyone]

    def train(self, rnd: Round, download: Callable[[int], Any], sent: Sent = unheard) -> Iterator[Reply]:
        """See :class:`~hyperfed.engine.round.Engine`. Raises QuorumNotMet, NonFiniteLoss (``on_nan=stop``), StopAsked."""
        self._made.clear()
        everyone, sizes = rnd.ids.tolist(), rnd.examples.tolist()
        self.nodes.meet(everyone)
        ids = [k for k, size in zip(everyone, sizes, strict=True) if size]  # a client that has only just come has no weight yet
        for k in set(everyone) - set(ids):
            self.warn(rnd.number, k, f"client {k} is not connected.")

        def content(k: int) -> RecordDict:
            made[k] = message = download(k)
            if self._spec is None:
                self._spec = spec_of(self.rehearse(message))
            return pack(self._header(rnd.number, k), message)

        made: dict[int, Any] = {}
        replies: dict[int, Reply] = {}
        for k, answer in self._ask(MessageType.TRAIN, rnd.number, ids, content, lambda k: sent(k, made.pop(k))):
            try:
                replies[k] = self._accept(k, rnd.number, answer)
            except Refused as problem:
                self.warn(rnd.number, k, f"the reply of client {k} was refused: {problem}")
            except NonFiniteLoss as problem:
                if self.on_nan == "stop":
                    raise
                self.warn(rnd.number, k, f"skipped: {problem}")
        self._enough(f"round {rnd.number}", len(replies), len(everyone))
        yield from (replies[k] for k in sorted(replies))

    def _enough(self, what: str, good: int, asked: int) -> None:
        """Raise QuorumNotMet where too few clients answered well."""
        if good < ceil(self.nodes.settings.quorum * asked):
            raise QuorumNotMet(
                f"{what} has good replies of {good} of {asked} clients, fewer than engine.quorum = {self.nodes.settings.quorum:g} "
                "asks for: metrics.jsonl names each reason; resume the run when the clients are back."
            )

    def commit(self, number: int) -> None:
        """From now on the clients' states of this round are theirs."""
        self.store.versions.update(sorted(self._made.items()))  # whatever order they answered in
        self._made.clear()

    def evaluate(self, rnd: Round, download: Callable[[int], Any], finetune: Finetune | None) -> Iterator[Score]:
        """See :class:`~hyperfed.engine.round.Engine`. Raises QuorumNotMet, NonFiniteLoss (``on_nan=stop``), StopAsked."""
        ids, good, tests = rnd.ids.tolist(), 0, 0
        self.nodes.meet(ids)
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            scores: dict[int, Score] = {}
            broken: dict[int, NonFiniteLoss] = {}

            def content(k: int) -> RecordDict:
                return pack({**self._header(rnd.number, k), "finetune": finetune is not None}, download(k))

            for k, answer in self._ask(MessageType.EVALUATE, rnd.number, some, content):
                try:
                    head = self._header_from(k, rnd.number, answer, SCORED)
                    scores[k] = self._score(k, head, finetune)
                    if finetune and "failure" in head:
                        broken[k] = NonFiniteLoss(k, rnd.number, head["step"], head["lr"], "finetune")
                except Refused as problem:
                    self.warn(rnd.number, k, f"the evaluation of client {k} was refused: {problem}")
            for k, broke in sorted(broken.items()):  # whatever order they answered in
                if self.on_nan == "stop":
                    raise broke
                self.warn(rnd.number, k, f"scored without fine-tuning: {broke}")
            good, tests = good + len(scores), tests + sum(score.tests for score in scores.values())
            yield from (scores.get(k, Score(0, 0, 0 if finetune else None)) for k in some)
        self._enough(what := f"the evaluation after round {rnd.number}", good, len(ids))
        if not tests:
            raise QuorumNotMet(f"{what} has no test example of any client: metrics.jsonl names each reason; resume the run for another.")

    def _score(self, k: int, head: dict[str, Any], finetune: Finetune | None) -> Score:
        """What a client says of its accuracy (and of what broke), as far as it can be true. Raises Refused."""
        tests, told = head["tests"], self.nodes.tests.get(k, 0)
        if not 0 <= tests <= told:
            raise Refused(f"tests = {tests}, and it told of {told} test examples when it connected.")
        for name in ("before", "after") if finetune else ("before",):
            if not 0 <= head[name] <= tests:
                raise Refused(f"{name} = {head[name]} correct of tests = {tests} is not possible.")
        if "failure" in head:
            checked(head, FAILED)
        return Score(tests, head["before"], head["after"] if finetune else None)

    def _header(self, number: int, k: int) -> dict[str, Any]:
        who = 0 if self.method.pooled else k
        return {
            "experiment": self.nodes.experiment,
            "round": number,
            "client": k,
            "version": self.store.of(who),
            "keep": self.store.needed(who),
        }

    def _header_from(self, k: int, number: int, content: RecordDict, expected: dict[str, type]) -> dict[str, Any]:
        """The reply's header: this experiment's, this round's, this client's."""
        head = header_of(content, IDENTITY)
        for name, value in (("experiment", self.nodes.experiment), ("round", number), ("client", k)):
            if head[name] != value:
                raise Refused(f"it is for {name} {head[name]!r}, expected {value!r}.")
        return header_of(content, expected)

    def _accept(self, k: int, number: int, content: RecordDict) -> Reply:
        """A client's answer, checked in every part. Raises Refused, and NonFiniteLoss where the client's own training broke."""
        head = self._header_from(k, number, content, IDENTITY)
        if "failure" in head:
            checked(head, FAILED)
            raise NonFiniteLoss(k, number, head["step"], head["lr"])
        head = header_of(content, TRAINED)
        if isinf(head["loss"]):  # NaN is how a client says that its defence keeps the loss to itself
            raise Refused(f"header entry 'loss' is {head['loss']}, expected a finite number.")
        upload: Any = decode(self._types[1], content, self._spec, finite=True, device=self.device)
        if head["version"] == number:
            self._made[k] = number
        return Reply(k, upload, head["loss"])

    def _ask(
        self, purpose: str, number: int, ids: list[int], content: Callable[[int], RecordDict], left: Callable[[int], None] = lambda k: None
    ) -> Iterator[tuple[int, RecordDict]]:
        """Send one message per client (``left`` hears of it), yield the first answer of each as it comes; the rest is told to ``warn``."""
        pending: dict[str, int] = {}
        for k in ids:
            if k not in self.nodes.hosts:
                self.warn(number, k, f"client {k} is not connected.")
            elif sent := self.nodes.send(purpose, number, k, self.nodes.hosts[k], content(k)):
                pending[sent] = k
                left(k)
            else:
                self.warn(number, k, f"client {k} could not be reached: its node is gone.")
        answered: set[str] = set()
        deadline = time.monotonic() + self.nodes.settings.timeout
        while len(answered) < len(pending):
            if self.stop():
                raise StopAsked
            replies = list(self.nodes.grid.pull_messages([i for i in (*pending, *self._late) if i not in answered]))
            if not replies and time.monotonic() > deadline:
                break
            if not replies:
                time.sleep(self.nodes.pause)
            for reply in replies:
                sent = reply.metadata.reply_to_message_id
                self._weigh(reply, pending, number, purpose)
                who = self._whose(reply, pending, answered, number)
                if who is None:
                    continue
                k = who
                answered.add(sent)
                if reply.has_error():
                    self.warn(number, k, f"client {k} failed (Flower's error {reply.error.code}): {first_line(reply.error.reason)}")
                    continue
                yield k, reply.content
        for sent, k in pending.items():
            if sent not in answered:
                self._late[sent] = (k, number, purpose)
                self.warn(number, k, f"client {k} did not answer within engine.timeout = {self.nodes.settings.timeout:g} seconds.")

    def _weigh(self, reply: Message, pending: dict[str, int], number: int, purpose: str) -> None:
        """Note what arrived, whether it counts or comes too late, beside the message that it answers."""
        sent = reply.metadata.reply_to_message_id
        k, asked, what = self._late.get(sent, (pending.get(sent), number, purpose))
        if k is not None and not reply.has_error():
            self.nodes.wire.add(asked, k, what, "up", size_of(reply.content))

    def _whose(self, reply: Message, pending: dict[str, int], answered: set[str], number: int) -> int | None:
        """The client whose first answer this is; None (and a warning) for a late or a second one."""
        sent = reply.metadata.reply_to_message_id
        if sent in self._late:
            k, asked, _ = self._late.pop(sent)
            if not reply.has_error():
                self.warn(number, k, f"the reply of client {k} to round {asked} came late and was refused.")
            return None
        if sent in answered:
            self.warn(number, pending[sent], f"client {pending[sent]} answered twice; the second reply was refused.")
            return None
        return pending.get(sent)
