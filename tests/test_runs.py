"""A run, its files, its determinism, and what a stop or a fault leaves behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyperfed.core import Round, UserError, flatten
from hyperfed.main import compose_checked, composed_dict
from hyperfed.report.runs import read_run
from hyperfed.run import checkpoint
from hyperfed.run.checkpoint import available
from hyperfed.run.config import make_config
from hyperfed.run.evaluate import Evaluation
from hyperfed.run.experiment import Experiment, Interrupted
from hyperfed.run.ledger import read_ledger, read_roles
from problems import tiny_network
from runs import SMALL, assert_bit_identical, composed, final_tensors, small_run


def test_a_run_leaves_everything_in_its_folder(tmp_path: Path) -> None:
    experiment = small_run(tmp_path / "a", "method=fedper")
    lines = [json.loads(text) for text in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 2, 3]
    assert [line["after"] is not None for line in lines] == [False, False, True]
    assert lines[-1]["before"]["weighted"] > lines[0]["before"]["weighted"]
    rows = read_ledger(tmp_path / "a/ledger.csv")
    assert len(rows) == 3 * 3 * 2 and lines[-1]["bytes"] == sum(t.bytes for *_, t in rows)
    head = 10 * 64 + 10
    total = sum(t.numel() for t in experiment.fed.model.init(0).values())
    assert {t.trainable for *_, t in rows} == {total - head}
    assert len(available(tmp_path / "a/checkpoints")) == 2
    run = read_run(tmp_path / "a")
    assert run.label == "FedPer" and run.per_round.trainable == 2 * (total - head)


def test_other_versions_that_go_on_with_a_run_are_told_and_written_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same versions say nothing; what was written once is not written twice; a finished run stays as it is."""
    config = composed(tmp_path / "a")
    first = Experiment(config)
    begun = json.loads((tmp_path / "a/run.json").read_text())
    first._round(1)
    first.save()
    assert begun["versions"]["method"] == 1
    Experiment(config)
    assert json.loads((tmp_path / "a/run.json").read_text()) == begun and not caplog.records
    monkeypatch.setattr("hyperfed.run.origin.__version__", "0.9")
    for _ in range(2):
        last = Experiment(config)
    now = json.loads((tmp_path / "a/run.json").read_text())
    assert now["versions"] == begun["versions"] | {"hyperfed": f"{begun['versions']['hyperfed']}, then 0.9"} and len(caplog.records) == 1
    assert f"(hyperfed {begun['versions']['hyperfed']}, now 0.9)" in caplog.text
    last.run()
    monkeypatch.setattr("hyperfed.run.origin.__version__", "1.0")
    Experiment(config)
    assert json.loads((tmp_path / "a/run.json").read_text()) == now and len(caplog.records) == 2
    assert "is complete and was played with other versions" in caplog.text and "delete it to play it with these" in caplog.text


def test_every_element_has_a_role_and_every_round_a_total(tmp_path: Path) -> None:
    """The two files of the ledger agree; FedGen's generator and label counts belong to no tensor of the model."""
    small_run(tmp_path / "a", "method=fedgen")
    rows = read_ledger(tmp_path / "a/ledger.csv")
    roles = read_roles(tmp_path / "a/roles.csv")
    for number in (1, 2, 3):
        for way in ("down", "up"):
            weighed = sum(t.trainable + t.buffers + t.extra for n, _, w, t in rows if (n, w) == (number, way))
            assert sum(n for m, w, _, n in roles if (m, w) == (number, way)) == weighed > 0
    assert {role for _, way, role, _ in roles if way == "down"} == {"body", "head", "other"}
    detail = read_run(tmp_path / "a").detail
    assert [n for n, *_ in detail.totals] == [1, 2, 3] and detail.totals[-1][1] == sum(t.trainable for *_, t in rows)
    assert sum(detail.roles.values()) == sum(n for *_, n in roles) / 9 and len(detail.clients["after"]) == 6


def test_kernels_of_clients_are_compared(tmp_path: Path) -> None:
    """Embeddings of their own make kernels of their own; the cosine is that of the kernels the client's model really has."""
    settings = ("method=hfn", "model=resnet", "rounds=1", "num_clients=3", "private_init=[embed]")
    experiment = small_run(tmp_path / "a", *settings)
    cosine = np.array(read_run(tmp_path / "a").detail.similarity)
    assert np.allclose(np.diag(cosine), 1) and (cosine[~np.eye(3, dtype=bool)] < 0.9).all()
    fed, everyone = experiment.fed, Round(1, torch.arange(3), torch.tensor(experiment.fed.engine.examples))
    made = []
    for k in range(2):
        space = fed.engine.space  # type: ignore[attr-defined]
        space.load(fed.engine.model_of(k, fed.method.download(experiment.server, everyone, k)))  # type: ignore[attr-defined]
        made.append(torch.cat([w.flatten() for w in space.module.kernels()]))
    assert torch.isclose(torch.nn.functional.cosine_similarity(*made, dim=0), torch.tensor(cosine[0, 1]).float(), atol=1e-5)


@pytest.mark.parametrize("method", ["fedper", "hfn"])
def test_same_seed_same_bits_other_seed_other_bits(method: str, tmp_path: Path) -> None:
    model = ["model=resnet"] if method == "hfn" else []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        small_run(tmp_path / name, f"method={method}", *model, f"seed={seed}", "rounds=2")
    assert_bit_identical(tmp_path / "a", tmp_path / "b")
    one, other = final_tensors(tmp_path / "a"), final_tensors(tmp_path / "c")
    assert any(not torch.equal(one[n], other[n]) for n in one.keys() & other.keys())


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    small_run(tmp_path / "rare", "method=fedper", "eval.every=3", "eval.finetune=never")
    small_run(tmp_path / "often", "method=fedper", "eval.every=1", "eval.finetune=always")
    a, b = final_tensors(tmp_path / "rare"), final_tensors(tmp_path / "often")
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_memory_bound_does_not_change_the_numbers(tmp_path: Path) -> None:
    """With a cache that holds one client's state at a time, states come back from disk bit by bit."""
    small_run(tmp_path / "roomy", "method=local")
    experiment = Experiment(composed(tmp_path / "tight", "method=local"))
    experiment.fed.engine.store.cache_bytes = 1
    experiment.run()
    assert len(experiment.fed.engine.store._cache) == 1
    assert_bit_identical(tmp_path / "roomy", tmp_path / "tight")


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "hyperfed.main", *SMALL, f"run.dir={folder}", *overrides]


def test_killed_at_random_points_a_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL three times, each after a random part of a round, then run to the end."""
    settings = ("method=fedper", "rounds=12", "checkpoint.every=2")
    small_run(tmp_path / "whole", *settings)
    folder, rng = tmp_path / "killed", random.Random(time.time_ns())
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills = 0
    for target in (3, 6, 9):
        process = subprocess.Popen(command(folder, *settings), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            ledger = folder / "ledger.csv"
            if ledger.exists() and any(r[0] >= target for r in read_ledger(ledger)):
                time.sleep(rng.random() * 0.05)
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.002)
        process.wait()
    assert kills >= 1
    last = subprocess.run([*command(folder)[:3], f"resume={folder}"], env=env, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert_bit_identical(tmp_path / "whole", folder)


def test_ctrl_c_stops_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    small_run(tmp_path / "whole", "method=fedper")
    heard: list[int] = []

    def interrupt(line: dict[str, object]) -> None:
        if line.get("event") == "round" and line["round"] == 1 and not heard:
            heard.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"stopped after round 1 of 3; go on with: hyperfed run resume="):
        Experiment(composed(tmp_path / "cut", "method=fedper"), interrupt).run()
    assert [p.name for p in available(tmp_path / "cut/checkpoints")] == ["round-000001"]
    small_run(tmp_path / "cut", "method=fedper")
    assert_bit_identical(tmp_path / "whole", tmp_path / "cut")


def test_a_kill_between_an_evaluations_two_files_is_made_up_for(tmp_path: Path) -> None:
    """clients.csv is written first: without its line in metrics.jsonl the evaluation is done again, not doubled."""
    settings = ("method=fedper", "rounds=2", "eval.every=1")
    small_run(tmp_path / "whole", *settings)
    small_run(tmp_path / "cut", *settings)
    metrics = tmp_path / "cut/metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    small_run(tmp_path / "cut", *settings)
    assert_bit_identical(tmp_path / "whole", tmp_path / "cut")


def test_nan_names_client_round_step_and_rate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss of client \d+ is not finite in round \d+ at local step \d+ \(learning rate 1e\+30\)"):
        small_run(tmp_path / "a", "optim.lr=1e30")


def test_nan_clients_can_be_skipped(tmp_path: Path) -> None:
    experiment = small_run(tmp_path / "a", "optim.lr=1e30", "on_nan=skip")
    events = [json.loads(t) for t in (tmp_path / "a/metrics.jsonl").read_text().splitlines() if "skipped" in t]
    assert len(events) == 9
    assert {direction for _, _, direction, _ in read_ledger(tmp_path / "a/ledger.csv")} == {"down"}
    assert all(torch.isfinite(t).all() for t in experiment.server.shared.values())


def test_a_full_disk_leaves_the_previous_checkpoint_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    experiment = Experiment(composed(tmp_path / "a", "method=fedper", "rounds=2"))
    experiment._evaluate_if_due()
    experiment._round(1)
    experiment.save()
    experiment._round(2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", full)
        with pytest.raises(UserError, match=r"round 2 could not be written .*No space left on device; the one before it is intact"):
            experiment.save()
    assert [p.name for p in available(tmp_path / "a/checkpoints")] == ["round-000001"]
    assert Experiment(composed(tmp_path / "a", "method=fedper", "rounds=2")).number == 1


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    small_run(tmp_path / "a", "rounds=1")
    file = available(tmp_path / "a/checkpoints")[-1] / "server.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"round-000001 is damaged: server.safetensors has sha256"):
        Experiment(composed(tmp_path / "a", "rounds=1"))


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    small_run(tmp_path / "a", "rounds=1")
    with pytest.raises(UserError, match="holds another run"):
        Experiment(composed(tmp_path / "a", "rounds=1", "seed=9"))


def test_summary_of_an_evaluation() -> None:
    """Accuracies 1/2, 4/4, 0/4 and a client without test data: weighted 5/10, mean 1/2, worst 0."""
    result = Evaluation(np.array([2, 4, 4, 0]), np.array([1, 4, 0, 0]))
    summary = result.summary("before")
    assert summary is not None and result.summary("after") is None
    assert summary["weighted"] == pytest.approx(0.5)
    assert summary["mean"] == pytest.approx(0.5)
    assert summary["worst"] == 0
    assert summary["p10"] == pytest.approx(0.1)
    assert summary["std"] == pytest.approx(np.std([0.5, 1, 0]))


@pytest.mark.parametrize("name", ["pfedhn", "pfedla", "fedgen"])
def test_what_a_method_draws_by_itself_differs_with_the_seed_of_the_run(name: str) -> None:
    """From the same initial model: else the spread over seeds would leave these draws out."""
    network = tiny_network()

    def drawn(*overrides: str) -> dict[str, torch.Tensor]:
        config = make_config(composed_dict(compose_checked([f"method={name}", "num_clients=5", *overrides])))
        method: Any = config.build_method(network)
        server = method.init_server(network.init(7))
        return method.hypernet(server, 0) if name == "pfedla" else flatten(server)  # pFedLA draws a client's when it is first met

    def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(value, theirs[key]) for key, value in ours.items())

    first = drawn("seed=1")
    assert same(first, drawn("seed=1"))
    assert not same(first, drawn("seed=2")) and not same(first, drawn("seed=1", "method.seed=1"))
