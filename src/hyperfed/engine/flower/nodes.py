"""Which nodes host which clients: asked of the nodes themselves, whose numbers mean nothing and change."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

from flwr.app import Message, MessageType, RecordDict

from hyperfed.core import UserError
from hyperfed.engine.flower.codec import Refused, header_of, pack, size_of
from hyperfed.engine.flower.settings import Flower
from hyperfed.engine.flower.wire import Wire
from hyperfed.engine.round import StopAsked

WHOAMI = f"{MessageType.QUERY}.whoami"


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
    """The federation's address book: client -> node, and how many training examples each client has told."""

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
    asked: set[int] = field(default_factory=set)

    def send(self, purpose: str, number: int, k: int, node: int, content: RecordDict) -> str | None:
        self.wire.add(number, k, purpose, "down", size_of(content))
        ttl = max(60.0, 2 * self.settings.timeout)
        message = Message(content, node, purpose, ttl=ttl, group_id=str(number))
        pushed = list(self.grid.push_messages([message]))
        return pushed[0] if pushed and pushed[0] else None

    def meet(self, ids: list[int]) -> None:
        """Find out which nodes host the clients; wait for as many as the quorum asks for. Raises QuorumNotMet."""
        deadline = time.monotonic() + self.settings.wait
        patient = not self.sizes  # at the start: until all are there
        while True:
            online = set(self.grid.get_node_ids())
            self.hosts = {k: node for k, node in self.hosts.items() if node in online}
            if self.asked - online:  # someone left: whoever was refused for holding the same clients may be welcome now
                self.asked = set(self.hosts.values())
            missing = [k for k in ids if k not in self.hosts]
            if missing and online - self.asked:
                self._introduce(sorted(online - self.asked))
                continue
            enough = len(ids) if patient else ceil(self.settings.quorum * len(ids))
            if len(ids) - len(missing) >= enough:
                return
            if time.monotonic() > deadline:
                break
            if self.stop():
                raise StopAsked
            time.sleep(self.pause)
        if len(ids) - len(missing) < ceil(self.settings.quorum * len(ids)):
            raise QuorumNotMet(
                f"clients {', '.join(map(str, missing))} did not connect within engine.wait = {self.settings.wait:g} seconds; "
                f"engine.quorum = {self.settings.quorum:g} of {len(ids)} clients is needed."
            )

    def _introduce(self, nodes: list[int]) -> None:
        """Ask nodes for the clients they host and how many examples those have."""
        head = {"experiment": self.experiment}
        pending = {sent: node for node in nodes if (sent := self.send(WHOAMI, 0, -1, node, pack(head)))}
        deadline = time.monotonic() + min(self.settings.wait, self.settings.timeout)
        self.asked.update(nodes)
        while pending and time.monotonic() < deadline:
            if self.stop():
                raise StopAsked
            replies = list(self.grid.pull_messages(list(pending)))
            for reply in replies:
                node = pending.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    self._welcome(node, reply)
            if pending and not replies:
                time.sleep(self.pause)
        self.asked.difference_update(pending.values())

    def _welcome(self, node: int, reply: Message) -> None:
        if reply.has_error():
            self.warn(0, -1, f"node {node} failed (Flower's error {reply.error.code}): {first_line(reply.error.reason)}")
            return
        self.wire.add(0, -1, WHOAMI, "up", size_of(reply.content))
        try:
            head = header_of(reply.content, {"experiment": str, "clients": list, "examples": list})
            if head["experiment"] != self.experiment:
                raise Refused(f"it is for experiment {head['experiment']!r}, expected {self.experiment!r}.")
            for k, examples in zip(head["clients"], head["examples"], strict=True):
                if type(k) is not int or not 0 <= k < self.num_clients or type(examples) is not int or examples < 0:
                    raise Refused(f"client {k!r} with {examples!r} examples is not one of {self.num_clients}.")
                if self.hosts.get(k, node) != node:
                    raise Refused(f"client {k} is already hosted by node {self.hosts[k]}.")
                self.hosts[k], self.sizes[k] = node, examples
        except ValueError as problem:
            self.warn(0, -1, f"node {node} was refused: {problem}")


def first_line(text: str | None) -> str:
    lines = [line for line in (text or "").strip().splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason given."
