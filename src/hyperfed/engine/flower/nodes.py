"""Which nodes host which clients: asked of the nodes themselves, whose numbers mean nothing and change."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

from flwr.app import Message, MessageType, RecordDict

from hyperfed.core import UserError
from hyperfed.engine.flower.codec import Refused, header_of, pack, size_of
from hyperfed.engine.flower.grid import RAISED
from hyperfed.engine.flower.settings import Flower
from hyperfed.engine.flower.wire import Wire
from hyperfed.engine.round import StopAsked

WHOAMI = f"{MessageType.QUERY}.whoami"
INTRODUCTION = {"experiment": str, "clients": list, "examples": list, "tests": list}
MOST = 2**31 - 1
"""Examples of one client; the sum over clients must stay exact."""


class Carrier(Protocol):
    """What the engine needs of Flower's Grid."""

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are online."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send; returns the messages' ids."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies there are so far."""


class QuorumNotMet(UserError):
    """Too few clients answered well for the round to count."""


@dataclass
class Nodes:
    """The federation's address book: client -> node, and how many training and test examples each client has told.

    A node is asked once; its question stays open until it answers, and only a newcomer's answer is waited for longer than the quorum.
    """

    grid: Carrier
    experiment: str
    num_clients: int
    settings: Flower
    wire: Wire = field(default_factory=Wire)
    stop: Callable[[], bool] = lambda: False
    warn: Callable[[int, int, str], None] = lambda number, client, text: None
    pause: float = 0.05
    hosts: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    tests: dict[int, int] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    _open: dict[str, int] = field(default_factory=dict)
    _lost: set[int] = field(default_factory=set)

    def send(self, purpose: str, number: int, k: int, node: int, content: RecordDict) -> str | None:
        """The message's id; None, and nothing is counted, where the node is gone."""
        ttl = max(60.0, 2 * self.settings.timeout)
        message = Message(content, node, purpose, ttl=ttl, group_id=str(number))
        pushed = list(self.grid.push_messages([message]))
        if not pushed or not pushed[0]:
            return None
        self.wire.add(number, k, purpose, "down", size_of(content))
        return pushed[0]

    def meet(self, ids: list[int]) -> None:
        """Find out which nodes host the clients; wait for as many as the quorum asks for. Raises QuorumNotMet."""
        deadline = patience = time.monotonic() + self.settings.wait
        needed = ceil(self.settings.quorum * len(ids))
        enough = needed if self.sizes else len(ids)  # at the start: until all are there
        newcomers: set[int] = set()
        self.asked -= self._lost
        self._lost.clear()
        while True:
            heard = False
            online = self._look_around()
            if self._missing(ids):
                if new := sorted(online - self.asked):
                    self._introduce(new)
                    newcomers.update(new)
                    patience = time.monotonic() + min(self.settings.wait, self.settings.timeout)
                heard = self._hear()
            missing, now = self._missing(ids), time.monotonic()
            awaited = now < patience and not newcomers.isdisjoint(self._open.values())
            if not missing or (len(ids) - len(missing) >= enough and not awaited):
                return
            if now > deadline:
                break
            if self.stop():
                raise StopAsked
            if not heard:
                time.sleep(self.pause)
        if len(ids) - len(missing) < needed:
            raise QuorumNotMet(
                f"clients {', '.join(map(str, missing))} did not connect within engine.wait = {self.settings.wait:g} seconds; "
                f"engine.quorum = {self.settings.quorum:g} of {len(ids)} clients is needed."
            )

    def _missing(self, ids: list[int]) -> list[int]:
        return [k for k in ids if k not in self.hosts]

    def _look_around(self) -> set[int]:
        """The nodes that are online; what is known of the others is forgotten."""
        online = set(self.grid.get_node_ids())
        self.hosts = {k: node for k, node in self.hosts.items() if node in online}
        self._open = {sent: node for sent, node in self._open.items() if node in online}
        if self.asked - online:  # someone left: whoever was refused for holding the same clients may be welcome now
            self.asked = {*self.hosts.values(), *self._open.values()}
        return online

    def _introduce(self, nodes: list[int]) -> None:
        """Ask nodes for the clients they host and how many examples those have."""
        self.asked.update(nodes)
        for node in nodes:
            if sent := self.send(WHOAMI, 0, -1, node, pack({"experiment": self.experiment})):
                self._open[sent] = node

    def _hear(self) -> bool:
        """The answers there are; returns whether there was any."""
        replies = list(self.grid.pull_messages(list(self._open))) if self._open else []
        for reply in replies:
            node = self._open.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                self._welcome(node, reply)
        return bool(replies)

    def _welcome(self, node: int, reply: Message) -> None:
        if reply.has_error():
            self.warn(0, -1, f"node {node} failed (Flower's error {reply.error.code}): {first_line(reply.error.reason)}")
            if reply.error.code != RAISED:  # the question went astray, nobody refused it: it may be asked again
                self._lost.add(node)
            return
        self.wire.add(0, -1, WHOAMI, "up", size_of(reply.content))
        try:
            self._register(node, header_of(reply.content, INTRODUCTION))
        except ValueError as problem:
            self.warn(0, -1, f"node {node} was refused: {problem}")

    def _register(self, node: int, head: dict[str, Any]) -> None:
        """All of what a node says of its clients, or nothing of it. Raises Refused."""
        if head["experiment"] != self.experiment:
            raise Refused(f"it is for experiment {head['experiment']!r}, expected {self.experiment!r}.")
        if not len(head["clients"]) == len(head["examples"]) == len(head["tests"]):
            raise Refused("it does not say how many training and test examples each of its clients has.")
        told = list(zip(head["clients"], head["examples"], head["tests"], strict=True))
        for k, examples, tests in told:
            if type(k) is not int or not 0 <= k < self.num_clients:
                raise Refused(f"client {k!r} is not one of {self.num_clients}.")
            if any(type(n) is not int or not 0 <= n <= MOST for n in (examples, tests)):
                raise Refused(f"client {k} with {examples!r} training and {tests!r} test examples is not possible: from 0 to {MOST}.")
            if self.hosts.get(k, node) != node:
                raise Refused(f"client {k} is already hosted by node {self.hosts[k]}.")
        for k, examples, tests in told:
            self.hosts[k], self.sizes[k], self.tests[k] = node, examples, tests


def first_line(text: str | None) -> str:
    lines = [line for line in (text or "").strip().splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason given."
