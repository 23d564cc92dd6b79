"""A run from start (or its last checkpoint) to end, with everything it leaves in its folder."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperfed.core import Bank, Round, UserError
from hyperfed.core.codec import fields
from hyperfed.core.files import clear, write_json
from hyperfed.data import label_counts
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.round import Finetune, Keeper, StopAsked, gather, sample, settle
from hyperfed.engine.store import Row, Rows, Store
from hyperfed.engine.workspace import NonFiniteLoss
from hyperfed.models import HyperModel
from hyperfed.processes import interruptible
from hyperfed.run import checkpoint, origin
from hyperfed.run.build import Federation, build, server_type
from hyperfed.run.claim import Claim
from hyperfed.run.config import Config, identity_hash, make_config, resume_setting, run_folder
from hyperfed.run.evaluate import Evaluation
from hyperfed.run.journal import Journal
from hyperfed.run.ledger import Ledger

MOST_COMPARED = 40
"""Up to so many clients, the similarity of their generated kernels is written (a matrix [num_clients, num_clients])."""
Listener = Callable[[dict[str, Any]], None]


class Diverged(UserError):
    """The local training of a client went to NaN: the same run would do so again."""


class Interrupted(Exception):
    """The run was asked to stop: what it says is where it goes on from."""


@dataclass
class Clock:
    """Wall and CPU seconds of this run, those before a resume included."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    _start: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def read(self) -> tuple[float, float]:
        """Seconds so far: wall, CPU of all threads."""
        return self.seconds + time.perf_counter() - self._start[0], self.cpu_seconds + time.process_time() - self._start[1]


class Experiment:
    """One run. ``listen`` hears every line of metrics.jsonl, and {"event": "round"} after every round, as they happen."""

    def __init__(self, composed: dict[str, Any], listen: Listener = lambda line: None, grid: Any = None) -> None:
        self.composed, self.listen = composed, listen
        self.config: Config = make_config(composed)
        self.folder = run_folder(composed)
        self.clock = Clock()
        self.fed: Federation = build(composed, self.config, self.folder, grid)
        self.claim = Claim(self.folder)
        for place in (self.folder, self.folder / "checkpoints", self.folder / "states", *self.folder.glob("banks/*")):
            clear(place)
        self.journal = Journal(self.folder)
        self.ledger = Ledger(self._open() / "ledger.csv", self.fed.method.model.roles)
        self.number = 0
        self.loss: float | None = None
        self.server: Any = self.fed.method.init_server(self.fed.engine.initial())
        self.banks = {name: self._bank(name) for name, kind in fields(type(self.server)).items() if kind is Bank}
        self._saved: int | None = None
        self._evaluating = False
        self._restore()

    def _open(self) -> Path:
        """Make the run's folder, or check that the one there is this run's."""
        mine = identity_hash(self.composed)
        if not origin.holds(self.folder, mine):
            write_json(self.folder / "config.json", self.composed)
            write_json(self.folder / "data.json", self._describe_data())
            origin.begin(self.folder, mine, self.fed.method, self.fed.engine.device)
        return self.folder

    def _describe_data(self) -> dict[str, Any]:
        """Who has what: samples of each class, train and test together, [num_clients, num_classes]."""
        dataset = self.fed.dataset
        counts = label_counts(dataset.labels, self.fed.clients, dataset.num_classes)
        return {"class_names": list(dataset.class_names), "label_counts": counts.tolist()}

    def _restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        found = checkpoint.available(self.folder / "checkpoints")
        if not found:
            self._rewind(-1)
            self._attach()
            return
        saved, self.server = checkpoint.load(found[-1], server_type(self.fed.method), self.fed.engine.device, self._stores())
        self._attach()
        origin.go_on(self.folder, self.fed.method, complete=saved.number >= self.config.rounds)
        self.clock = Clock(saved.seconds, saved.cpu_seconds)
        self.number = self._saved = saved.number
        self.loss = saved.loss
        self._rewind(saved.number, saved.messages)

    def _bank(self, name: str) -> Store[Row]:
        return Store(self.folder / "banks" / name, Row, self.config.cache_mib * 2**20, self.fed.engine.device)

    def _stores(self) -> dict[str, Keeper]:
        """Everything that is kept per client: the clients' own states and the server's banks."""
        return {"states": self.fed.engine.store, **self.banks}

    def _attach(self) -> None:
        """Let the server state's banks live on disk."""
        for name, store in self.banks.items():
            self.server = self.server._replace(**{name: Bank(getattr(self.server, name).default, Rows(store))})

    def _rewind(self, number: int, messages: int | None = None) -> None:
        """Cut ledger and journal back to what the checkpoint knows."""
        self.ledger.rewind(number, messages)
        self.journal.rewind(number)

    def run(self) -> dict[str, Any]:
        """Play the remaining rounds. Returns the last line of metrics. Raises Interrupted, UserError (NaN with ``on_nan=stop``)."""
        self.claim.check()
        go_on = f"go on with: hyperfed run {shlex.quote(resume_setting(self.folder))}"
        try:
            self._play()
        except StopAsked:
            raise Interrupted(f"stopped after round {self.number} of {self.config.rounds}; {go_on}") from None
        except KeyboardInterrupt:  # anywhere, perhaps amid a round's changes: nothing may be saved
            raise Interrupted(f"stopped at once; {self._last_saved()}; {go_on}") from None
        except NonFiniteLoss as problem:
            raise Diverged(f"{problem} {problem.advice}") from problem
        except OSError as problem:
            raise UserError(f"the run stopped: {problem}; {self._last_saved()}; {go_on}") from problem
        finally:
            self.claim.release()
        return list(self.journal.evaluations())[-1]

    def _play(self) -> None:
        config, engine = self.config, self.fed.engine
        with interruptible() as asked:
            engine.watch(asked, self._skipped)
            try:
                self._evaluate_if_due()
                while self.number < config.rounds:
                    self._round(self.number + 1)
                    if self.number % config.checkpoint.every == 0 or self.number == config.rounds:
                        self.save()  # before the evaluation, which may take long and is made up for after a resume
                    self._evaluate_if_due()
            finally:
                engine.close()

    def _last_saved(self) -> str:
        found = checkpoint.available(self.folder / "checkpoints")
        return f"the checkpoint of round {checkpoint.read_facts(found[-1]).number} is intact" if found else "no round was saved yet"

    @contextmanager
    def _between_rounds(self) -> Iterator[None]:
        """Clients are at work, but no state changes: where they end the run, what is complete is saved."""
        try:
            yield
        except (StopAsked, NonFiniteLoss, UserError):
            self.ledger.drop()
            self.save()
            raise

    def _round(self, number: int) -> None:
        config, fed = self.config, self.fed
        engine, pooled = fed.engine, fed.method.pooled
        ids = [0] if pooled else sample(number, config.num_clients, config.participation, config.seed)
        with self._between_rounds():
            examples = torch.tensor([sum(engine.examples)] if pooled else [engine.examples[k] for k in ids])
            rnd = Round(number, torch.tensor(ids), examples)
            heard, losses = gather(fed.method, self.server, rnd, engine, self.ledger.add, fed.guard)
        self.server = settle(fed.method, self.server, rnd, engine, heard)
        self.ledger.flush()
        self.number = number
        self.loss = float(np.nanmean(losses)) if losses and not np.isnan(losses).all() else None
        self.listen({"event": "round", "round": number, "train_loss": self.loss})

    def _evaluate_if_due(self) -> None:
        """At the start, every ``eval.every`` rounds and at the end; once, also where a stop came between a round and its evaluation."""
        number, config = self.number, self.config
        if number % config.eval.every and number != config.rounds:
            return
        if all(line["round"] != number for line in self.journal.evaluations()):
            self.evaluate(number)

    def finetune(self, number: int) -> Finetune | None:
        """How models are fine-tuned at the evaluation of a round; None where they are not."""
        config, wanted = self.config, self.config.eval.finetune
        due = wanted == "always" or (wanted == "last" and number == config.rounds)
        return config.finetune if config.finetune.epochs and due else None

    def everyone(self) -> Round:
        """A round with all clients, for evaluations after the present one."""
        return Round(self.number, torch.arange(self.config.num_clients), torch.tensor(self.fed.engine.examples))

    def evaluate(self, number: int) -> Evaluation:
        """All clients' personal models on their own test data; a line in metrics.jsonl, a block in clients.csv."""
        config, engine = self.config, self.fed.engine
        tune = self.finetune(number)
        self._evaluating = True
        with self._between_rounds():
            everyone = self.everyone()
            scores = list(engine.evaluate(everyone, lambda k: self.fed.method.download(self.server, everyone, k), tune))
        self._evaluating = False
        tests, before, after = (np.array(column) for column in zip(*scores, strict=True))
        result = Evaluation(tests, before, after if tune else None)
        if number == config.rounds:
            self._compare_kernels(everyone)
        seconds, cpu = self.clock.read()
        self.journal.note_clients(number, result)
        self._note(
            {
                "round": number,
                "train_loss": self.loss,
                "before": result.summary("before"),
                "after": result.summary("after"),
                **self.ledger.total._asdict(),
                "seconds": round(seconds, 3),
                "cpu_seconds": round(cpu, 3),
                **({"privacy": spent} if (spent := self.fed.guard.spent(number)) else {}),
            }
        )
        return result

    def _compare_kernels(self, everyone: Round) -> None:
        """What the hypernetwork generates for each client, compared with what it generates for the others (HyperFedNet, section 5.2)."""
        model, engine = self.fed.model, self.fed.engine
        if isinstance(model, HyperModel) and isinstance(engine, LocalEngine) and self.config.num_clients <= MOST_COMPARED:
            personal = (engine.model_of(k, self.fed.method.download(self.server, everyone, k)) for k in everyone.ids.tolist())
            kernels = torch.stack([torch.cat([w.flatten() for w in model.kernels(params)]) for params in personal])
            unit = torch.nn.functional.normalize(kernels.double(), dim=1)
            write_json(self.folder / "similarity.json", {"cosine": [[round(c, 10) for c in row] for row in (unit @ unit.T).tolist()]})

    def save(self) -> None:
        """Write a checkpoint of the last complete round, unless it is there."""
        if self._saved == self.number:
            return
        try:
            versions = {name: store.flush() for name, store in self._stores().items()}
        except OSError as problem:
            raise UserError(
                f"client states could not be written to {self.folder}: {problem.strerror}; the checkpoint before is intact."
            ) from problem
        self.ledger.sync()
        folder, seconds = self.folder / "checkpoints", self.clock.read()
        checkpoint.save(folder, checkpoint.Saved(self.number, versions, *seconds, self.loss, self.ledger.messages), self.server)
        self._saved = self.number
        kept = checkpoint.prune(folder, self.config.checkpoint.keep)
        for name, store in self._stores().items():
            store.collect(versions[name] for versions in kept)

    def _skipped(self, number: int, client: int, message: str) -> None:
        during = {"evaluation": True} if self._evaluating else {}
        self._note({"event": "skipped", "round": number, "client": client, "message": message, **during})

    def _note(self, line: dict[str, Any]) -> None:
        self.journal.note(line)
        self.listen(line)
