"""What clients and nodes say of themselves, where it cannot be true."""

from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from flwr.app import Message

from flowers import ALL_IN, BadGrid, Trick, changed, experiment, introduction, late, notes, twice
from hyperfed.engine.flower.wire import HEADER, Wire


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"tests": 10**9, "before": 10**9}, "tests = 1000000000, and it told of "),
        ({"tests": -7, "before": -7}, "tests = -7, and it told of "),
        ({"before": 5000}, "before = 5000 correct of tests = "),
        ({"after": -1}, "after = -1 correct of tests = "),
    ],
)
def test_accuracies_that_cannot_be_are_refused_and_named(entries: dict[str, int], reason: str, tmp_path: Path) -> None:
    """Client 1 has no weight in that evaluation; the others' numbers are the local engine's."""
    overrides = [*ALL_IN, "method=fedavg", "rounds=1", "eval.every=1"]
    lie = changed(lambda content: content.config_records["hyperfed"].update(entries))
    grid = BadGrid(tmp_path / "bad", {("evaluate", 1, 1): lie}, *overrides)
    run = experiment(tmp_path / "bad", "flower", *overrides, grid=grid)
    run.run()
    (note,) = notes(run.folder)
    assert (note["round"], note["client"]) == (1, 1) and reason in note["message"]
    good = experiment(tmp_path / "good", "local", *overrides)
    good.run()
    theirs = [line for line in (good.folder / "clients.csv").read_text().splitlines() if not line.startswith("1,1,")]
    ours = (run.folder / "clients.csv").read_text().splitlines()
    assert [line for line in ours if not line.startswith("1,1,")] == theirs and "1,1,0,0,0" in ours


LIES = {
    "a client there is not": ({"clients": [1, 99], "examples": [100, 5], "tests": [9, 9]}, "client 99 is not one of 3."),
    "more than anybody has": ({"clients": [1], "examples": [2**63 - 1]}, "client 1 with 9223372036854775807 training and"),
    "tests below none": ({"clients": [1], "tests": [-1]}, "and -1 test examples is not possible: from 0 to 2147483647."),
    "another's client": ({"clients": [1, 0], "examples": [7, 7], "tests": [7, 7]}, "client 0 is already hosted by node 1000."),
    "too short": ({"clients": [1, 2]}, "it does not say how many training and test examples each of its clients has."),
}


@pytest.mark.parametrize("how", LIES)
def test_a_refused_node_leaves_no_trace(how: str, tmp_path: Path) -> None:
    """Its first client is a good one, and yet nothing of what it says is kept."""
    entries, reason = LIES[how]
    trick = changed(lambda content: content.config_records["hyperfed"].update(entries))
    overrides = [*ALL_IN, "engine.wait=0.2"]
    grid = BadGrid(tmp_path / "run", introduction(trick), *overrides, nodes=3)
    run = experiment(tmp_path / "run", "flower", *overrides, grid=grid)
    run.fed.engine.watch(lambda: False, run._skipped)
    run.fed.engine.nodes.meet([0, 1, 2])
    (note,) = notes(run.folder)
    assert note["message"].startswith("node 1001 was refused: ") and reason in note["message"]
    nodes = run.fed.engine.nodes
    assert nodes.hosts == {0: 1000, 2: 1002} and nodes.sizes.keys() == nodes.tests.keys() == {0, 2}


@pytest.mark.parametrize(("trick", "rows"), [(late, 1), (twice, 2)])
def test_a_reply_that_came_in_vain_was_sent_all_the_same(trick: Trick, rows: int, tmp_path: Path) -> None:
    """wire.csv has the late reply under the round that asked for it, and both of two; the ledger has what was used."""
    overrides = [*ALL_IN, "method=fedavg"]
    grid = BadGrid(tmp_path / "run", {("train", 1, 1): trick}, *overrides)
    run = experiment(tmp_path / "run", "flower", *overrides, grid=grid)
    run.run()
    wire = (run.folder / "wire.csv").read_text().splitlines()
    assert sum(line.startswith("1,1,train,up,") for line in wire) == rows
    assert sum(line.startswith("2,1,train,up,") for line in wire) == 1
    assert run.fed.engine.nodes.wire.totals["up"] == sum(int(line.rpartition(",")[2]) for line in wire if ",up," in line)
    assert ("1,1,up" in (run.folder / "ledger.csv").read_text()) == (trick is twice)


class Unreachable(BadGrid):
    """Node 1001 is online, yet in round 1 no training order gets to it."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        given = list(messages)
        if all((m.metadata.message_type, m.metadata.group_id, m.metadata.dst_node_id) == ("train", "1", 1001) for m in given):
            return [""] * len(given)
        return super().push_messages(given)


def test_what_did_not_leave_is_not_counted(tmp_path: Path) -> None:
    overrides = [*ALL_IN, "method=fedavg"]
    run = experiment(tmp_path / "run", "flower", *overrides, grid=Unreachable(tmp_path / "run", {}, *overrides))
    run.run()
    assert [note["message"] for note in notes(run.folder)] == ["client 1 could not be reached: its node is gone."]
    wire = (run.folder / "wire.csv").read_text()
    assert "\n1,1,train,down," not in wire and "\n1,0,train,down," in wire and "\n2,1,train,down," in wire
    ledger = (run.folder / "ledger.csv").read_text()
    assert "\n1,1," not in ledger and "\n1,0,down," in ledger and "\n2,1,down," in ledger


@pytest.mark.parametrize("rest", ["2,1,tr", HEADER[:9], ""])
def test_half_a_line_is_not_gone_on_with(rest: str, tmp_path: Path) -> None:
    """Of a server that was killed while it wrote."""
    path, whole = tmp_path / "wire.csv", HEADER + 300 * "1,0,train,down,7\n"
    before = whole if rest.startswith("2") else ""
    path.write_text(before + rest)
    Wire(path).add(2, 0, "train", "up", 9)
    assert path.read_text() == (before or HEADER) + "2,0,train,up,9\n"
