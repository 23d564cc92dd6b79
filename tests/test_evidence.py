"""Plans of the paper's tables, the sweep that plays them, and what a table says of a store that is not whole."""

import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperfed.core import UserError
from hyperfed.evidence.command import main
from hyperfed.evidence.plans import CANDIDATES, PLANS, TABLE2, TRIED, Ask, Cell, over_hypernetwork, plan
from hyperfed.evidence.store import Store
from hyperfed.evidence.sweep import Sweep
from hyperfed.evidence.tables import entries, table2
from hyperfed.methods import FedPer
from hyperfed.report.runs import read_run
from hyperfed.run.experiment import Experiment

SMOKE = Ask("smoke", ("digits",), ("IID",), ("FedAvg", "FedPer"))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with the two runs of SMOKE."""
    root = tmp_path_factory.mktemp("evidence")
    out = Sweep(Store(root / "store"), root / "work", {}).play(plan("table2", SMOKE))
    assert len(out.finished) == 2 and not out.failed and not out.left
    yield root / "store"


def numbers(store: Path) -> dict[str, Any]:
    """What a store holds, seconds and hardware aside."""
    kept: dict[str, Any] = {}
    for path in sorted(store.rglob("*.json")):
        run = json.loads(path.read_text())
        for line in run["evaluations"]:
            line.pop("seconds"), line.pop("cpu_seconds")
        kept[path.name] = (run["config"], run["per_round"], run["evaluations"], run["detail"], run["facts"]["identity"])
    return kept


def test_the_plans_hold_the_papers_cells() -> None:
    ask = Ask("paper", seeds=(1,))
    assert {name: len(plan(name, ask)) for name in PLANS} == {
        "table2": 112,
        "table3": 12,
        "table4": 96,
        "fig3": 8,
        "fig5": 64,
        "readings": 32,
    }
    assert {c.row for c in plan("table2", ask)} == {*TABLE2}
    inside = {c.identity for c in plan("table2", ask) if (c.dataset, c.split) == ("cifar10", "IID")}
    assert {c.identity for c in plan("table3", ask)} < inside  # Table 3 is read off Table 2's runs


def test_paper_scale_is_the_papers_protocol() -> None:
    composed = Cell("HFN", "cifar10", "non-IID", "paper", rate="0.01").composed()
    assert (composed["num_clients"], composed["participation"], composed["rounds"]) == (100, 0.25, 150)
    assert composed["local"] == {"epochs": 4, "batch_size": 128, "steps": None} and composed["finetune"]["epochs"] == 4
    assert composed["model"] == {"name": "resnet", "width": 16, "blocks": 6} and composed["hypernet"]["embedding"] == 128
    assert (composed["optim"]["lr"], composed["optim"]["schedule"]) == (0.01, "constant") and composed["optim"]["nesterov"]
    assert composed["partition"]["alpha"] == 0.5 and composed["data"]["test_fraction"] == 0.2
    assert Cell("HFN", "mnist", "IID", "paper").composed()["hypernet"]["embedding"] == 64
    over = over_hypernetwork(Cell("FedBN", "cifar10", "IID", "paper")).composed()
    assert over["method"]["name"] == "fedbn" and "head" in over["hypernet"]["share"]


def test_learning_rates_are_chosen_on_a_validation_part_and_recorded(tmp_path: Path) -> None:
    """The candidate with the higher validation accuracy wins; one that diverged cannot; one seed decides for all."""
    cell = Cell("FedAvg", "digits", "IID", "mini", seed=3)
    trials = cell.trials
    assert [t.rate for t in trials] == list(TRIED["mini"]) and {t.seed for t in trials} == {1}
    composed = trials[0].composed()
    assert composed["rounds"] == 4 and composed["data"]["validation"] == 0.2 and composed["eval"]["finetune"] == "last"
    assert cell.composed()["data"]["validation"] is None
    store = Store(tmp_path)
    assert store.choose(cell) is None
    for rate, accuracy in zip(TRIED["mini"], (0.3, 0.6), strict=True):
        trial = replace(trials[0], rate=rate)
        config = trial.composed()
        before, after = ({"weighted": a, "mean": a, "p10": a} for a in (0.1, accuracy))
        line = {"round": config["rounds"], "before": before, "after": after, "trainable": 0, "bytes": 0, "cpu_seconds": 0.0}
        facts = {"identity": trial.identity, "versions": {"hyperfed": "1"}}
        run = {"facts": facts, "config": config, "per_round": {}, "evaluations": [line]}
        store.path(trial).parent.mkdir(exist_ok=True)
        store.path(trial).write_text(json.dumps(run))
    chosen = Store(tmp_path).choose(cell)
    assert chosen is not None and chosen.rate == "0.01" and chosen.seed == 3
    store.path(trials[1]).unlink()
    store.put_failure(trials[1], "nan")
    chosen = Store(tmp_path).choose(cell)
    assert chosen is not None and chosen.rate == "0.1, multistep"
    assert set(TRIED["paper"]) == set(CANDIDATES)


def test_finished_runs_are_not_repeated(played: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in played.rglob("*.json")}
    out = Sweep(Store(played), tmp_path / "work", {}).play(plan("table2", SMOKE))
    assert len(out.finished) == 2 and {p: p.stat().st_mtime_ns for p in played.rglob("*.json")} == before
    assert not (tmp_path / "work").exists()


def test_a_sweep_killed_at_any_point_ends_with_the_same_store(played: Path, tmp_path: Path) -> None:
    """SIGKILL for the sweep, twice, at random times; its worker dies with it or is waited for; then once to the end."""
    command = [sys.executable, "-m", "hyperfed.cli", "reproduce", "table2", "scale=smoke", "dataset=digits", "partition=IID"]
    command += ["method=FedAvg,FedPer", "--results", str(tmp_path / "store"), "--work", str(tmp_path / "work"), "-o", str(tmp_path / "out")]
    rng = random.Random(time.time_ns())
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(1.0, 8.0))
        process.kill()
        process.wait()
    for _ in range(5):  # a worker that outlived its sweep by a moment holds its folder's lock: that run is left for the next time
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if "0 left" in done.stdout:
            break
    assert numbers(tmp_path / "store") == numbers(played)
    assert "2 of 2 cells complete" in done.stdout and not any((tmp_path / "work/smoke").iterdir())


def test_a_diverging_run_is_listed_and_does_not_stop_the_rest(tmp_path: Path) -> None:
    """A learning rate of 1e30 goes to NaN at once; the run after it is played, and a second sweep does not try again."""
    cells = plan("table2", replace(SMOKE, methods=("FedAvg", "Local")))
    wild = replace(cells[0], extra=("optim.momentum=0", "optim.nesterov=false", "optim.clip=1e38", "optim.weight_decay=1e38"))
    store = Store(tmp_path / "store")
    for attempt in range(2):
        out = Sweep(store, tmp_path / "work", {}).play([wild, cells[1]])
        assert list(out.failed) == [wild] and "not finite" in out.failed[wild] and out.finished == [cells[1]], attempt
    entry = entries([wild], store, tmp_path / "work")[replace(wild, seed=0)]
    assert entry.state == "0 of 1 seeds, seed 1 diverged" and not entry.runs


def test_a_mistake_in_the_settings_is_not_kept_as_a_failure(tmp_path: Path) -> None:
    """Data that is not there: told, and tried again next time."""
    cells = plan("table2", Ask("smoke", ("mnist",), ("IID",), ("FedAvg",)))
    out = Sweep(Store(tmp_path / "store"), tmp_path / "work", {"data.root": str(tmp_path), "data.cache": str(tmp_path)}).play(cells)
    assert "mnist" in out.failed[cells[0]] and not list((tmp_path / "store").rglob("*.json"))


def test_at_the_deadline_runs_are_saved_and_resumed_later(played: Path, tmp_path: Path) -> None:
    cells, store = plan("table2", SMOKE), Store(tmp_path / "store")
    late = Sweep(store, tmp_path / "work", {}, deadline=time.monotonic() + 3.0).play(cells)
    assert set(late.left) | set(late.finished) == set(cells) and late.left and not late.failed
    assert not Sweep(store, tmp_path / "work", {}).play(cells).left
    assert numbers(tmp_path / "store") == numbers(played)


def test_a_damaged_file_is_named_and_counts_as_not_run(played: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(played, tmp_path / "store")
    cells = plan("table2", SMOKE)
    torn, odd = (Store(tmp_path / "store").path(c) for c in cells)
    torn.write_text(torn.read_text()[:100])
    other = json.loads(odd.read_text())
    other["config"]["local"]["epochs"] = 7
    odd.write_text(json.dumps(other))
    store = Store(tmp_path / "store")
    found = entries(cells, store, tmp_path)
    assert [e.text for e in found.values()] == ["0 of 1 seeds"] * 2
    assert store.damaged == {torn.name, odd.name} and torn.name in caplog.text and "another run than its name says" in caplog.text
    assert Sweep(store, tmp_path / "work", {}).play(cells[:1]).finished and store.damaged == {odd.name}, "repeated: no longer damaged"


def test_a_run_from_before_its_method_changed_is_named_and_repeated(
    played: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(played, tmp_path / "store")
    avg, per = plan("table2", SMOKE)
    monkeypatch.setattr(FedPer, "revision", 2)
    store = Store(tmp_path / "store")
    assert store.get(avg) is not None and store.get(per) is None and store.damaged == {store.path(per).name}
    assert "revision 1 of its method made it, and this is revision 2" in caplog.text
    store.put(per, _played_anew(per, tmp_path / "run"))
    again = store.get(per)
    assert again is not None and again.facts["versions"]["method"] == 2 and not store.damaged


def _played_anew(cell: Cell, folder: Path) -> Path:
    config = cell.composed()
    config["run"]["dir"] = str(folder)
    Experiment(config).run()
    return folder


def _without(*path: str) -> Callable[[dict[str, Any]], Any]:
    def edit(kept: dict[str, Any]) -> dict[str, Any]:
        at = kept
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]
        return kept

    return edit


def _last(**values: Any) -> Callable[[dict[str, Any]], Any]:
    def edit(kept: dict[str, Any]) -> dict[str, Any]:
        kept["evaluations"][-1].update(values)
        return kept

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: [],
        lambda kept: None,
        _without("facts", "versions"),
        _without("evaluations"),
        _without("detail", "totals"),
        _last(after=None),
        _last(after="good"),
        _last(after={"mean": 0.5, "p10": 0.4}),
        _last(after={"weighted": 64.4, "mean": 0.5, "p10": 0.4}),
        _last(after={"weighted": math.nan, "mean": 0.5, "p10": 0.4}),
        _last(round=1),
        _last(round="two"),
        _last(trainable=None),
    ],
)
def test_no_damage_ends_in_a_traceback_or_in_a_number(damage: Callable[[Any], Any], played: Path, tmp_path: Path) -> None:
    shutil.copytree(played, tmp_path / "store")
    cell = plan("table2", SMOKE)[0]
    path = Store(tmp_path / "store").path(cell)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    store = Store(tmp_path / "store")
    assert entries([cell], store, tmp_path)[replace(cell, seed=0)].text == "0 of 1 seeds" and store.damaged == {path.name}


def test_a_failure_counts_for_its_own_run_and_revision_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = plan("table2", SMOKE)[1]
    Store(tmp_path).put_failure(cell, "diverged")
    assert Store(tmp_path).failure(cell) == "diverged"
    with monkeypatch.context() as patch:
        patch.setattr(FedPer, "revision", 2)
        store = Store(tmp_path)
        assert store.failure(cell) is None and len(store.damaged) == 1
    (file,) = tmp_path.rglob("*.failed.json")
    file.write_text(file.read_text().replace(cell.identity, "0" * 16))
    assert Store(tmp_path).failure(cell) is None


def test_a_damaged_failure_is_named_and_tried_again(tmp_path: Path) -> None:
    cell, store = plan("table2", SMOKE)[0], Store(tmp_path)
    store.put_failure(cell, "diverged")
    assert store.failure(cell) == "diverged"
    (file,) = tmp_path.rglob("*.failed.json")
    file.write_text("{")
    assert store.failure(cell) is None and store.damaged == {file.name} and not store.has(cell)


def test_progress_never_goes_back(tmp_path: Path) -> None:
    """Rounds of finished runs stay counted while others of the block are under way."""
    heard: list[int] = []
    sweep = Sweep(Store(tmp_path / "store"), tmp_path / "work", {}, progress=lambda rounds: heard.append(sum(rounds.values())))
    sweep.play(plan("table2", SMOKE))
    assert heard == sorted(heard) and max(heard) >= 2


def test_versions_are_not_mixed(played: Path, tmp_path: Path) -> None:
    shutil.copytree(played, tmp_path / "store")
    path = Store(tmp_path / "store").path(plan("table2", SMOKE)[0])
    path.write_text(path.read_text().replace('"hyperfed": "', '"hyperfed": "9.'))
    with pytest.raises(UserError, match="different versions of hyperfed are not mixed"):
        entries(plan("table2", SMOKE), Store(tmp_path / "store"), tmp_path)


def test_a_cell_says_how_complete_it_is(played: Path, tmp_path: Path) -> None:
    """One of two seeds, and a run under way after its fourth round."""
    cells = plan("table2", replace(SMOKE, seeds=(1, 2)))
    other = cells[-1]
    (tmp_path / other.scale / other.name / "checkpoints/round-000004").mkdir(parents=True)
    (tmp_path / other.scale / other.name / "checkpoints/round-000004/checkpoint.json").touch()
    (table,) = table2(entries(cells, Store(played), tmp_path))
    assert table.rows[0][1].endswith("(1 of 2 seeds)") and table.rows[1][1].endswith("(1 of 2 seeds, seed 2: 4 of 2 rounds)")


def test_a_page_of_a_reproduction(played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["table2", "scale=smoke", "dataset=digits", "partition=IID", "method=FedAvg,FedPer,HFN", "--show"]
    assert main([*settings, "--results", str(played), "--work", str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    assert "2 of 3 cells complete" in capsys.readouterr().out
    folder = tmp_path / "out/table2-smoke"
    written = {p.name for p in folder.iterdir()}
    assert written == {"index.html", "table2-cells.csv", *(f"table2.{kind}" for kind in ("md", "tex", "csv", "png", "svg"))}
    assert (folder / "table2.csv").read_text().splitlines()[0] == "method,IID: ours,IID: paper,IID: difference,IID: learning rate"
    assert "0 of 1 seeds" in (folder / "table2.md").read_text() and "2 of 3 cells complete" in (folder / "index.html").read_text()
    (run, _) = (read_run(p) for p in sorted(played.rglob("*.json")))
    assert math.isclose(run.detail.totals[-1][1], run.last["trainable"]) and run.detail.clients["after"] and run.detail.roles["body"]
