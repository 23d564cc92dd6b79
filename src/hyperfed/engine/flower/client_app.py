"""The client's side: one ClientApp for every method. It trains with the in-process engine's own client, on one state at a time."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hyperfed.engine.flower.codec import Refused, check_download, decode, header_of, message_types, pack
from hyperfed.engine.flower.remote import NEVER
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.round import Finetune
from hyperfed.engine.store import Store
from hyperfed.engine.workspace import NonFiniteLoss

ORDER = {"experiment": str, "round": int, "client": int, "version": int, "keep": list}


@dataclass
class ClientSide:
    """One machine's clients: engine and data, where their states are, and the identity of the configuration it was built from."""

    engine: LocalEngine
    identity: str
    hosted: list[int]
    open_store: Callable[[str], Store[Any]]
    finetune: Finetune

    def begin(self, message: Message) -> tuple[dict[str, Any], Any]:
        """Check an order, put the client's committed state in place; returns header and download."""
        head = header_of(message.content, ORDER)
        self.check_experiment(head["experiment"])
        k, engine = head["client"], self.engine
        if k not in self.hosted:
            raise Refused(f"client {k} is not hosted here.")
        engine.store = self.open_store(head["experiment"])
        who = self.who(k)
        if head["version"] != NEVER and not engine.store.has(who, head["version"]):
            raise Refused(f"client {k} has lost its state of round {head['version']}: {engine.store.folder} does not hold it.")
        engine.store.restore({} if head["version"] == NEVER else {who: head["version"]})
        down: Any = decode(message_types(engine.method)[0], message.content, device=engine.device)
        check_download(down, engine.method.model.roles, engine.initial())
        return head, down

    def check_experiment(self, experiment: str) -> None:
        """The server must run the very configuration this side was built from. The name becomes a folder's, so it is nothing else."""
        if not re.fullmatch(re.escape(self.identity) + r"(-[0-9a-f]{8})?", experiment):
            raise Refused(f"the server runs experiment {experiment!r}; the configuration here has identity {self.identity!r}.")

    def who(self, k: int) -> int:
        """Whose state client ``k`` uses."""
        return 0 if self.engine.method.pooled else k

    def train(self, message: Message) -> RecordDict:
        """One client's round. The new state is on disk before the answer leaves; the server's next order says whether it counts."""
        head, down = self.begin(message)
        k, number, store = head["client"], head["round"], self.engine.store
        reply = {name: head[name] for name in ("experiment", "round", "client")}
        try:
            state, answer = self.engine.turn(k, number, down)
        except NonFiniteLoss as problem:
            return pack({**reply, "failure": "nonfinite", "step": problem.step, "lr": float(problem.lr)})
        who = self.who(k)
        store.put(who, state, number)
        store.flush()
        store.keep_only(who, head["keep"], before=number)
        return pack({**reply, "loss": float(answer.loss), "version": store.versions.get(who, NEVER)}, answer.upload)

    def evaluate(self, message: Message) -> RecordDict:
        """One client's accuracy; its state stays as it is. What broke its fine-tuning, if anything did, the server judges."""
        head, down = self.begin(message)
        k = head["client"]
        before, after, problem = self.engine.score(k, down, head["round"], self.finetune if message_flag(message, "finetune") else None)
        reply = {name: head[name] for name in ("experiment", "round", "client")}
        reply |= {"tests": len(self.engine.test_index[k]), "before": before, "after": -1 if after is None else after}
        return pack(reply if problem is None else {**reply, "failure": "nonfinite", "step": problem.step, "lr": float(problem.lr)})

    def whoami(self, message: Message) -> RecordDict:
        """The clients hosted here and their numbers of training and test examples."""
        experiment = header_of(message.content, {"experiment": str})["experiment"]
        self.check_experiment(experiment)
        examples = self.engine.examples
        tests = [len(self.engine.test_index[k]) for k in self.hosted]
        return pack({"experiment": experiment, "clients": self.hosted, "examples": [examples[k] for k in self.hosted], "tests": tests})


def message_flag(message: Message, name: str) -> bool:
    """A yes or no of the header."""
    return bool(header_of(message.content, {name: bool})[name])


def make_client_app(side: Callable[[Context], ClientSide]) -> ClientApp:
    """The ClientApp; ``side`` builds (or finds) what the node needs from its context."""
    app = ClientApp()

    @app.query("whoami")
    def whoami(message: Message, context: Context) -> Message:
        return Message(side(context).whoami(message), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(side(context).train(message), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(side(context).evaluate(message), reply_to=message)

    return app


__all__ = ["ClientSide", "make_client_app"]
