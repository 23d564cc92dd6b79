"""The same methods and numbers behind Flower, and what happens when clients or servers fail."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import RecordDict

from flowers import (
    ALL_IN,
    CASES,
    BadGrid,
    Trick,
    assert_same,
    changed,
    composed,
    experiment,
    failed,
    late,
    notes,
    results,
    server_tensors,
    silent,
    state_files,
    twice,
)
from hyperfed.core import Round, UserError
from hyperfed.engine.flower.codec import BLOB, pack_tensors, unpack_tensors
from hyperfed.engine.round import play, sample
from hyperfed.run.experiment import Experiment


def train_round(number: int, client: int, trick: Trick) -> dict[tuple[str, int, int], Trick]:
    return {("train", number, client): trick}


@pytest.mark.parametrize("name", CASES)
def test_same_bits_as_the_local_engine(name: str, tmp_path: Path) -> None:
    """Server state, client states, ledger and every client's accuracy after three rounds of five clients out of eight."""
    local = experiment(tmp_path / "local", "local", *CASES[name])
    local.run()
    there = experiment(tmp_path / "flower", "flower", *CASES[name])
    there.run()
    assert_same(results(local), results(there))


def replace(field: str, name: str, value: torch.Tensor) -> Trick:
    def change(content: RecordDict) -> None:
        record = content.array_records[field]
        record[BLOB] = pack_tensors({**unpack_tensors(field, record[BLOB]), name: value})

    return changed(change)


def header(name: str, value: Any) -> Trick:
    def change(content: RecordDict) -> None:
        content.config_records["hyperfed"][name] = value

    return changed(change)


NAN = torch.full((10, 64), torch.nan)
FAILURES = {
    "dies mid-round": (failed, "client 1 failed (Flower's error 5): Node is unavailable."),
    "never answers": (silent, "client 1 did not answer within engine.timeout = 0.4 seconds."),
    "NaN": (replace("shared", "fc3.weight", NAN), "'shared/fc3.weight' holds NaN or infinite values"),
    "shape": (
        replace("shared", "fc3.weight", torch.ones(64, 10)),
        "'shared/fc3.weight' has shape [64, 10], expected [10, 64]",
    ),
    "dtype": (
        replace("shared", "fc3.weight", torch.ones(10, 64, dtype=torch.float64)),
        "'shared/fc3.weight' has dtype float64, expected float32",
    ),
    "unknown tensor": (replace("shared", "back.door", torch.ones(1)), "tensor of field 'shared' 'back.door' is unknown"),
    "another round": (header("round", 7), "it is for round 7, expected 1"),
    "another experiment": (header("experiment", "0123-4567"), "it is for experiment '0123-4567'"),
    "another client": (header("client", 2), "it is for client 2, expected 1"),
    "no loss": (header("loss", "low"), "header entry 'loss' is 'low', expected float"),
    "infinite loss": (header("loss", float("inf")), "header entry 'loss' is inf, expected a finite number"),
    "no header": (changed(lambda content: content.__delitem__("hyperfed")), "the header 'hyperfed' is missing"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_bad_reply_is_refused_and_named_and_the_round_goes_on_with_the_rest(how: str, tmp_path: Path) -> None:
    """After one round the server is where the local engine is when client 1 is not in the round: weights sum to one over the others."""
    trick, reason = FAILURES[how]
    overrides = [*ALL_IN, "method=fedavg", "rounds=1", "eval.every=1"]
    grid = BadGrid(tmp_path / "bad", train_round(1, 1, trick), *overrides)
    run = experiment(tmp_path / "bad", "flower", *overrides, grid=grid)
    run.run()
    (note,) = notes(run.folder)
    assert (note["round"], note["client"]) == (1, 1)
    assert reason in note["message"] and "client 1" in note["message"]
    ledger = (run.folder / "ledger.csv").read_text()
    assert "1,1,down," in ledger and "1,1,up," not in ledger and "1,2,up," in ledger

    reference = experiment(tmp_path / "reference", "local", *overrides)
    engine, ids = reference.fed.engine, torch.tensor([0, 2])
    rest = Round(1, ids, torch.tensor([engine.examples[0], engine.examples[2]]))
    reference.server, _ = play(reference.fed.method, reference.server, rest, engine, lambda *a: None)
    assert_same(server_tensors(reference), server_tensors(run))


def test_a_second_answer_changes_nothing(tmp_path: Path) -> None:
    overrides = [*ALL_IN, "method=fedper"]
    grid = BadGrid(tmp_path / "bad", train_round(1, 1, twice), *overrides)
    run = experiment(tmp_path / "bad", "flower", *overrides, grid=grid)
    run.run()
    assert [n["message"] for n in notes(run.folder)] == ["client 1 answered twice; the second reply was refused."]
    good = experiment(tmp_path / "good", "local", *overrides)
    good.run()
    assert_same(results(good), results(run))


def test_a_late_answer_is_refused_by_the_next_round(tmp_path: Path) -> None:
    overrides = [*ALL_IN, "method=fedavg"]
    grid = BadGrid(tmp_path / "bad", train_round(1, 1, late), *overrides)
    run = experiment(tmp_path / "bad", "flower", *overrides, grid=grid)
    run.run()
    told = [(n["round"], n["client"], n["message"]) for n in notes(run.folder)]
    assert told == [
        (1, 1, "client 1 did not answer within engine.timeout = 0.4 seconds."),
        (2, 1, "the reply of client 1 to round 1 came late and was refused."),
    ]
    assert "2,1,up," in (run.folder / "ledger.csv").read_text()


def test_the_state_of_a_refused_round_is_not_kept(tmp_path: Path) -> None:
    """FedPer: client 1 trains in round 1 and is refused; in round 2 it starts from its initial head, as if round 1 had not been."""
    overrides = [*ALL_IN, "method=fedper"]
    grid = BadGrid(tmp_path / "bad", train_round(1, 1, header("round", 9)), *overrides)
    run = experiment(tmp_path / "bad", "flower", *overrides, grid=grid)
    run.run()
    assert run.fed.engine.store.flush() == {0: 2, 1: 2, 2: 2}
    reference = experiment(tmp_path / "reference", "local", *overrides)
    engine, examples = reference.fed.engine, torch.tensor(reference.fed.engine.examples)
    for number, ids in ((1, torch.tensor([0, 2])), (2, torch.arange(3))):
        reference.server, _ = play(reference.fed.method, reference.server, Round(number, ids, examples[ids]), engine, lambda *a: None)
    reference.number = 2
    reference.save()
    assert_same(state_files(reference.folder), state_files(run.folder))


def test_too_few_answers_stop_the_run_and_it_goes_on_from_there(tmp_path: Path) -> None:
    overrides = [*ALL_IN, "method=fedper", "engine.quorum=0.6"]
    tricks = {("train", 2, 0): failed, ("train", 2, 2): failed}
    grid = BadGrid(tmp_path / "bad", tricks, *overrides)
    with pytest.raises(UserError) as stop:
        experiment(tmp_path / "bad", "flower", *overrides, grid=grid).run()
    assert str(stop.value).startswith("round 2 has good replies of 1 of 3 clients, fewer than engine.quorum = 0.6 asks for")
    again = experiment(tmp_path / "bad", "flower", *overrides)
    assert again.number == 1
    again.run()
    straight = experiment(tmp_path / "good", "local", *overrides)
    straight.run()
    assert_same(results(straight), results(again))


class Killed(BaseException):
    """The server is gone, without a word."""


@pytest.mark.parametrize("name", [n for n in ("fedper", "hfn", "feddyn", "fedfomo") if n in CASES])
@pytest.mark.parametrize(("when", "every"), [(("train", 2), 1), (("train", 3), 2), (("evaluate", 3), 1)])
def test_a_killed_server_goes_on_from_its_last_checkpoint_with_the_same_clients(
    name: str, when: tuple[str, int], every: int, tmp_path: Path
) -> None:
    """Clients that trained in the round that never was go back to the state the server knows: the end is the same to the bit."""
    overrides = [*CASES[name], f"checkpoint.every={every}", "eval.every=3"]
    last = sample(when[1], 8, 0.6, 1)[-1] if when[0] == "train" else 7

    def kill(grid: BadGrid, sent: Any, replies: Any) -> Any:
        raise Killed

    grid = BadGrid(tmp_path / "killed", {(*when, last): kill}, *overrides)
    with pytest.raises(Killed):
        experiment(tmp_path / "killed", "flower", *overrides, grid=grid).run()
    again = experiment(tmp_path / "killed", "flower", *overrides)
    assert again.number == {1: when[1] - (when[0] == "train"), 2: 2}[every]
    again.run()
    straight = experiment(tmp_path / "straight", "local", *overrides)
    straight.run()
    assert_same(results(straight), results(again))


def test_clients_keep_no_more_states_than_checkpoints_need(tmp_path: Path) -> None:
    run = experiment(tmp_path / "run", "flower", "method=fedper", "rounds=6", "participation=1", "eval.every=6", "checkpoint.keep=2")
    run.run()
    assert {p.name.split("-")[0] for p in (run.folder / "states").iterdir()} == {f"{k:06d}" for k in range(8)}
    assert len(list((run.folder / "states").iterdir())) <= 3 * 8


def test_a_slow_order_deletes_no_younger_state(tmp_path: Path) -> None:
    """Client 1's node gets the order of round 2 once more when round 3 is committed: version 3 stays."""
    overrides = [*ALL_IN, "method=fedper", "rounds=4", "eval.every=4"]
    orders: list[Any] = []

    def keep(grid: BadGrid, sent: Any, replies: Any) -> Any:
        orders.append(sent)
        return replies

    def again(grid: BadGrid, sent: Any, replies: Any) -> Any:
        grid.client_app(orders[0].message, grid.contexts[orders[0].node])
        return replies

    tricks = {("train", 2, 1): keep, ("train", 4, 0): again}
    run = experiment(tmp_path / "a", "flower", *overrides, grid=BadGrid(tmp_path / "a", tricks, *overrides))
    run.run()
    assert notes(run.folder) == []


def test_a_client_that_lost_its_state_says_so(tmp_path: Path) -> None:
    overrides = [*ALL_IN, "method=fedper"]
    run = experiment(tmp_path / "run", "flower", *overrides)

    def lose(grid: BadGrid, sent: Any, replies: Any) -> Any:
        for path in (tmp_path / "run" / "states").glob("000001-*"):
            path.unlink()
        return replies

    grid = BadGrid(tmp_path / "run", train_round(2, 0, lose), *overrides)
    run = experiment(tmp_path / "run", "flower", *overrides, grid=grid)
    run.run()
    assert "client 1 has lost its state of round 1" in notes(run.folder)[0]["message"]


def test_a_broken_training_stops_or_is_skipped_as_in_the_local_engine(tmp_path: Path) -> None:
    wild = [*ALL_IN, "optim.lr=1e30", "rounds=1"]
    told = []
    for engine in ("local", "flower"):
        with pytest.raises(UserError) as stop:
            experiment(tmp_path / f"{engine} stop", engine, *wild).run()
        quorum = ["engine.quorum=0"] if engine == "flower" else []
        skip = experiment(tmp_path / f"{engine} skip", engine, *wild, "on_nan=skip", *quorum)
        skip.run()
        told.append((str(stop.value), notes(skip.folder)))
    assert told[0] == told[1]
    assert "the loss of client 0 is not finite in round 1" in told[0][0]


def test_every_message_is_weighed_with_its_framing(tmp_path: Path) -> None:
    """The wire counts at least what the ledger does, for the same trained messages, and evaluations besides."""
    run = experiment(tmp_path / "run", "flower", "method=fedavg")
    run.run()
    ledger = [line.split(",") for line in (run.folder / "ledger.csv").read_text().splitlines()[1:]]
    wire = [line.split(",") for line in (run.folder / "wire.csv").read_text().splitlines()[1:]]
    trained = {(n, k, way): int(size) for n, k, purpose, way, size in wire if purpose == "train"}
    assert trained.keys() == {(n, k, way) for n, k, way, *_ in ledger}
    for n, k, way, *_, size in ledger:
        assert int(size) < trained[n, k, way] < 1.1 * int(size)
    assert {purpose for _, _, purpose, *_ in wire} == {"query.whoami", "train", "evaluate"}


def test_the_core_needs_no_flower(tmp_path: Path) -> None:
    """With flwr hidden everything imports, and engine=flower says in one sentence what is missing."""
    code = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] == "flwr" else find(name, *a)
sys.modules["flwr"] = None
import hyperfed.run.build as build
build.find_spec = importlib.util.find_spec
import hyperfed.cli
from hyperfed.main import main
sys.exit(main(["engine=flower", "run.dir=nowhere"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "hyperfed: engine=flower needs the extra: pip install 'hyperfed[flower]'."


def test_settings_are_checked(tmp_path: Path) -> None:
    for wrong, named in (
        ("engine.quorum=2", "engine.quorum = 2"),
        ("engine.backend=ray", "engine.backend = 'ray'"),
        ("engine.timeout=0", "timeout"),
    ):
        with pytest.raises(UserError, match=named):
            experiment(tmp_path, "flower", wrong)


def test_a_finished_run_can_be_read_as_any_other(tmp_path: Path) -> None:
    from hyperfed.report.runs import read_run

    run = experiment(tmp_path / "run", "flower", "method=hfn", "rounds=1", "eval.every=1")
    run.run()
    assert read_run(run.folder).last["round"] == 1
    assert isinstance(
        Experiment(composed(tmp_path / "run", "flower", "engine.backend=grid", "method=hfn", "rounds=1", "eval.every=1")).number, int
    )
    assert json.loads((run.folder / "experiment.json").read_text())["experiment"].count("-") == 1
