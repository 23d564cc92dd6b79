"""Clients that join a trained hypernetwork: only their embedding is fitted."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hyperfed.core import stack
from hyperfed.methods.pfedhn import PFedHN
from hyperfed.models.generator import TABLE
from hyperfed.personalize import fit_embedding, join, main, novel_clients
from problems import Quadratic, one_round, play_rounds, quadratic_client, tiny_engine, tiny_network


def two_optima(rounds: int) -> tuple[PFedHN, Any]:
    """A hypernetwork trained on two clients whose optima are 0.2 and 1."""
    method = PFedHN(Quadratic(), 2, hidden=10, depth=1, lr=0.05, weight_decay=0.0)
    clients = [quadratic_client([c], method.model, lr=0.5) for c in (0.2, 1.0)]
    server, state = method.init_server({"w": torch.tensor(0.0)}), method.init_client({"w": torch.tensor(0.0)})
    for number in range(1, rounds + 1):
        rnd = one_round([0, 1], [1, 1], number)
        ups = [method.client_update(client, state, method.download(server, rnd, k))[1] for k, client in enumerate(clients)]
        server = method.server_update(server, rnd, stack(ups))
    return method, server


def test_one_visit_is_the_chain_rule_and_phi_stays() -> None:
    """v_1 = v_0 + lr (d theta / d v)^T Delta, Delta = -1/2 (theta - c) after one step of 1/2: finite differences give d theta / d v."""
    method, server = two_optima(3)
    before = {n: t.clone() for n, t in server.phi.items()}
    new = join(method, server, method.init_client({"w": torch.tensor(0.0)}))
    assert torch.equal(new.embedding, server.phi[TABLE].mean(0))
    theta = float(new.down.theta["w"])
    fitted = fit_embedding(method, server, quadratic_client([1.0], method.model, lr=0.5), new, visits=1, lr=0.1)
    h = 1e-3
    for axis in range(len(new.embedding)):
        e = torch.zeros_like(new.embedding)
        e[axis] = h
        ahead, behind = (float(join(method, server, new.state, new.embedding + s * e).down.theta["w"]) for s in (1, -1))
        slope = (ahead - behind) / (2 * h)
        assert float(fitted.embedding[axis] - new.embedding[axis]) == pytest.approx(0.1 * slope * -0.5 * (theta - 1.0), rel=0.01, abs=1e-6)
    assert all(torch.equal(t, before[n]) for n, t in server.phi.items())


def test_a_new_client_between_two_trained_ones_finds_its_optimum() -> None:
    """phi has learnt 0.2 and 1; a client that wants 0.8 is served by an embedding alone."""
    method, server = two_optima(300)
    new = join(method, server, method.init_client({"w": torch.tensor(0.0)}))
    fitted = fit_embedding(method, server, quadratic_client([0.8], method.model, lr=0.5), new, visits=200, lr=0.1)
    assert abs(float(fitted.down.theta["w"]) - 0.8) < 0.01 < abs(float(new.down.theta["w"]) - 0.8)


def test_clipping_and_batch_norm(tmp_path: Path) -> None:
    """The gradient is clipped as the method's: one visit with lr 1 moves v by ``clip`` at most. Running statistics are the client's own."""
    method = PFedHN(tiny_network(), 3, hidden=8, depth=1, clip=1e-3)
    engine = tiny_engine(method, tmp_path)
    server = play_rounds(method, engine, 1)
    new = join(method, server, method.init_client(engine.initial()))
    fitted = fit_embedding(method, server, engine.client(2, 2, "novel", engine.optim, 0.05), new, visits=1, lr=1.0)
    assert float((fitted.embedding - new.embedding).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert not torch.equal(fitted.state.personal["norm1.running_mean"], new.state.personal["norm1.running_mean"])
    assert method.personalize(fitted.state, fitted.down).keys() == method.model.init(0).keys()


def test_on_digits_a_fitted_embedding_beats_an_untrained_one(tmp_path: Path) -> None:
    """Five clients join a hypernetwork trained on fifteen; every client has two of the ten digits. With one seed it may be a tie."""
    from hyperfed.main import compose_checked, composed_dict

    gains = []
    for seed in (1, 2):
        arguments = ["experiment=pfedhn_novel_digits", "rounds=40", f"run.dir={tmp_path / str(seed)}", "threads=1", f"seed={seed}"]
        found, _ = novel_clients(composed_dict(compose_checked(arguments)), novel=5, visits=15, lr=0.03)
        assert found["known"] > 0.9
        assert (tmp_path / str(seed) / "novel-5-visits-15-lr-0.03.json").exists()
        gains.append(found["novel_fitted_embedding"] - found["novel_untrained_embedding"])
    assert sum(gains) > 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--novel", "0"], "--novel = 0 is not valid: must be between 1 and 19."),
        (["--novel", "20"], "--novel = 20 is not valid"),
        (["method=fedavg"], "method = 'fedavg' is not valid: must be pfedhn or pfedhn_pc"),
        (["--visits", "-1"], "--visits = -1 is not valid: must be an integer >= 1."),
        (["--lr", "-3"], "--lr = -3.0 is not valid: must be a finite number > 0."),
        (["privacy=client_dp"], "privacy = 'client_dp' is not valid: must be none"),
        (["engine=flower"], "engine = 'flower' is not valid: must be local"),
        (["resume=somewhere"], "resume = 'somewhere' is not valid: must be left out"),
    ],
)
def test_the_command_refuses_what_has_no_meaning(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "experiment=pfedhn_novel_digits", f"run.dir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("seed", "novel", "who"), [(1, 1, "join"), (1, 2, "join"), (6, 5, "train")])
def test_no_accuracy_without_test_data(seed: int, novel: int, who: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With seed 1 the last two of six clients have no test sample, with seed 6 the first has none."""
    small = ["experiment=pfedhn_novel_digits", "num_clients=6", "data.fraction=0.1", "data.validation=0.02", "threads=1"]
    assert main(["--novel", str(novel), *small, f"seed={seed}", f"run.dir={tmp_path / 'run'}"]) == 2
    assert f"--novel = {novel} is not valid: must be such that some clients that {who} have test data" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_question_leaves_the_earlier_answer(tmp_path: Path) -> None:
    small = ["experiment=pfedhn_novel_digits", "rounds=1", "num_clients=6", "local.steps=1", "threads=1", f"run.dir={tmp_path}"]
    for question in (["--novel", "2"], ["--novel", "1"], ["--novel", "2", "--visits", "2"], ["--novel", "2", "--lr", "0.1"]):
        assert main(["--visits", "1", *question, *small]) == 0
    names = {"novel-2-visits-1-lr-0.03", "novel-1-visits-1-lr-0.03", "novel-2-visits-2-lr-0.03", "novel-2-visits-1-lr-0.1"}
    assert {p.stem for p in tmp_path.glob("*.json")} == names


def test_training_that_breaks_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["experiment=pfedhn_novel_digits", "rounds=1", "num_clients=6", "threads=1", f"run.dir={tmp_path}"]
    assert main([*small, "--novel", "2", "optim.lr=1e9", "optim.clip=null"]) == 3
    assert "Use a smaller optim.lr" in capsys.readouterr().err
