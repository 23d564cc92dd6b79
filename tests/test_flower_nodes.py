"""Which node hosts which client: gone, back, claimed twice, too few, of another configuration."""

from pathlib import Path

import pytest

pytest.importorskip("flwr")

from flowers import ALL_IN, BadGrid, assert_same, experiment, notes, results
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
    nodes.asked -= {1000}
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
