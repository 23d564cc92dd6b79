"""Which node hosts which client: gone, back, claimed twice, too few, of another configuration."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from flwr.app import Error, Message

from flowers import ALL_IN, BadGrid, assert_same, experiment, introduction, notes, results
from hyperfed.core import UserError


def test_a_node_that_is_gone_is_named_and_one_that_comes_back_takes_part(tmp_path: Path) -> None:
    overrides = [*ALL_IN, "method=fedavg", "rounds=3", "eval.every=3"]
    grid = BadGrid(tmp_path / "run", {}, *overrides, nodes=3)
    run = experiment(tmp_path / "run", "flower", *overrides, grid=grid)
    examples = run.fed.engine.examples
    run.fed.engine.watch(lambda: False, run._skipped)
    run._round(1)
    grid.gone.add(1001)
    run._round(2)
    grid.gone.clear()
    run._round(3)
    assert [(n["round"], n["message"]) for n in notes(run.folder)] == [(2, "client 1 is not connected.")]
    ledger = (run.folder / "ledger.csv").read_text()
    assert "2,1," not in ledger and "3,1,up" in ledger and run.fed.engine.examples == examples


def test_a_client_belongs_to_one_node_until_that_is_gone(tmp_path: Path) -> None:
    """Node 1003 says it hosts client 1, too: refused; when node 1001 has left it is asked again and takes over."""
    overrides = [*ALL_IN, "method=fedavg"]
    grid = BadGrid(tmp_path / "run", {}, *overrides, nodes=4)
    for node, clients in zip(grid.contexts.values(), ("0", "1", "2", "1"), strict=True):
        node.node_config = {"clients": clients}
    grid.gone = {1003}
    engine = experiment(tmp_path / "run", "flower", *overrides, grid=grid).fed.engine
    told: list[tuple[int, int, str]] = []
    engine.watch(lambda: False, lambda *note: told.append(note))
    assert engine.examples and not told
    nodes = engine.nodes
    grid.gone, nodes.hosts = set(), {k: n for k, n in nodes.hosts.items() if k != 0}  # client 0 must be looked for again
    nodes.meet([0, 1, 2])
    assert [text for _, _, text in told] == ["node 1003 was refused: client 1 is already hosted by node 1001."]
    grid.gone = {1001}
    nodes.meet([0, 1, 2])
    assert nodes.hosts == {0: 1000, 1: 1003, 2: 1002}


def test_the_run_does_not_start_without_a_quorum(tmp_path: Path) -> None:
    overrides = [*ALL_IN, "engine.wait=0.2", "engine.quorum=0.9"]
    grid = BadGrid(tmp_path / "run", {}, *overrides, nodes=3)
    grid.gone = {1000}
    with pytest.raises(UserError, match=r"clients 0 did not connect within engine\.wait = 0\.2 seconds"):
        experiment(tmp_path / "run", "flower", *overrides, grid=grid).run()


def test_a_client_with_another_configuration_is_refused(tmp_path: Path) -> None:
    grid = BadGrid(tmp_path / "other", {}, *ALL_IN, "optim.lr=0.5", nodes=3)
    run = experiment(tmp_path / "run", "flower", *ALL_IN, "engine.wait=0.2", grid=grid)
    with pytest.raises(UserError, match="clients 0, 1, 2 did not connect"):
        run.run()
    assert "the configuration here has identity" in notes(run.folder)[0]["message"]


def test_two_nodes_can_host_eight_clients(tmp_path: Path) -> None:
    run = experiment(tmp_path / "two", "flower", "method=fedper", grid=BadGrid(tmp_path / "two", {}, "method=fedper", nodes=2))
    run.run()
    local = experiment(tmp_path / "local", "local", "method=fedper")
    local.run()
    assert_same(results(local), results(run))


def test_a_silent_node_is_asked_once_and_holds_nobody_up(tmp_path: Path) -> None:
    """Without client 1 the run starts after engine.wait; no later round waits for it again; its late answer is welcome."""
    overrides = [*ALL_IN, "method=fedavg", "engine.wait=0.3", "engine.timeout=0.3"]
    held: list[Any] = []
    grid = BadGrid(tmp_path / "run", introduction(lambda grid, sent, replies: held.extend(replies) or []), *overrides, nodes=3)
    run = experiment(tmp_path / "run", "flower", *overrides, grid=grid)
    asked_to_stop: list[int] = []

    def stop() -> bool:
        asked_to_stop.append(1)
        return len(asked_to_stop) > 200  # a meeting without an end is stopped here

    run.fed.engine.watch(stop, run._skipped)
    nodes = run.fed.engine.nodes
    nodes.meet([0, 1, 2])
    assert nodes.hosts == {0: 1000, 2: 1002}
    nodes.pause = 1e6  # from here on nobody may wait
    nodes.meet([0, 1, 2])
    assert nodes.hosts == {0: 1000, 2: 1002} and grid.asked == [1000, 1001, 1002]
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [*held, *pull(ids)]
    nodes.meet([0, 1, 2])
    assert nodes.hosts == {0: 1000, 1: 1001, 2: 1002} and grid.asked == [1000, 1001, 1002]


def test_silent_nodes_do_not_keep_a_run_without_a_quorum_alive(tmp_path: Path) -> None:
    overrides = [*ALL_IN, "engine.wait=0.2", "engine.timeout=0.1", "engine.quorum=0.9"]
    grid = BadGrid(tmp_path / "run", introduction(lambda grid, sent, replies: []), *overrides, nodes=3)
    with pytest.raises(UserError, match=r"clients 1 did not connect within engine\.wait = 0\.2 seconds"):
        experiment(tmp_path / "run", "flower", *overrides, grid=grid).fed.engine.nodes.meet([0, 1, 2])


def test_a_question_that_went_astray_is_asked_again_and_a_refusal_is_not(tmp_path: Path) -> None:
    """Flower answers for node 1001 that it is unavailable (5); then its ClientApp raises (2); then it would answer well."""
    overrides = [*ALL_IN, "method=fedavg", "engine.wait=0.2"]
    codes = [5, 2]

    def trick(grid: BadGrid, sent: Any, replies: list[Message]) -> list[Message]:
        return [Message(Error(code=codes.pop(0), reason="no"), reply_to=sent.message)] if codes else replies

    grid = BadGrid(tmp_path / "run", introduction(trick), *overrides, nodes=3)
    nodes = experiment(tmp_path / "run", "flower", *overrides, grid=grid).fed.engine.nodes
    for times in (1, 2, 2):
        nodes.meet([0, 1, 2])
        assert grid.asked.count(1001) == times and nodes.hosts == {0: 1000, 2: 1002}
