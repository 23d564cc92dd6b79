"""What a sweep starts next, what it begins anew, what it clears, and what it says meanwhile."""

import json
from pathlib import Path
from typing import Any

import pytest

from hyperfed.core import UserError
from hyperfed.evidence import plans
from hyperfed.evidence.command import main
from hyperfed.evidence.plans import Ask, Cell, plan
from hyperfed.evidence.store import Store
from hyperfed.evidence.sweep import Sweep

CELLS = plan("table2", Ask("smoke", ("digits",), ("IID",), ("FedAvg", "Local")))


@pytest.fixture
def two_rates(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Two cells of two blocks of a plan, each with two trials of one round."""
    monkeypatch.setitem(plans.TRIED, "smoke", ("0.1, multistep", "0.01"))
    return plan("table2", Ask("smoke", ("digits",), ("non-IID", "IID"), ("Local",)))


def test_no_worker_waits_while_a_trial_of_any_cell_is_open(two_rates: list[Cell], tmp_path: Path) -> None:
    """Four workers start with the four trials of both cells; then each cell's run by the better of its rates."""
    at_once: list[set[Cell]] = []
    store = Store(tmp_path / "store")
    out = Sweep(store, tmp_path / "work", {}, workers=4, progress=lambda rounds: at_once.append({*rounds})).play(two_rates)
    assert at_once[0] == {trial for cell in two_rates for trial in cell.trials} and len(at_once[0]) == 4
    assert not out.left and not out.failed and len(out.finished) == 6
    assert {store.choose(cell) for cell in two_rates} <= {*out.finished}
    assert not any((tmp_path / "work/smoke").iterdir())


def test_a_cell_whose_trials_cannot_be_played_is_left_and_the_others_go_on(
    two_rates: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_rates
    composed = Sweep.composed

    def with_an_unknown_field(self: Sweep, cell: Cell, folder: Path) -> dict[str, Any]:
        return composed(self, cell, folder) | ({"colour": "blue"} if cell == first.trials[0] else {})

    monkeypatch.setattr(Sweep, "composed", with_an_unknown_field)
    out = Sweep(Store(tmp_path / "store"), tmp_path / "work", {}).play(two_rates)
    assert [*out.failed] == [first.trials[0]] and out.left == [first]
    assert {c.split for c in out.finished if not c.trial} == {second.split}


def test_what_another_version_began_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cell = CELLS[1]
    folder = tmp_path / "work/smoke" / cell.name
    (folder / "checkpoints/round-000001").mkdir(parents=True)
    (folder / "checkpoints/round-000001/checkpoint.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"identity": cell.identity, "versions": {"hyperfed": "0.0.0"}}))
    out = Sweep(Store(tmp_path / "store"), tmp_path / "work", {}).play([cell])
    assert out.finished == [cell] and "begun anew" in caplog.text
    kept = Store(tmp_path / "store").get(cell)
    assert kept is not None and "then" not in kept.facts["versions"]["hyperfed"]


def test_a_folder_that_a_killed_sweep_left_is_cleared(tmp_path: Path) -> None:
    """It was killed when the result was in the store already."""
    store, folder = Store(tmp_path / "store"), tmp_path / "work/smoke" / CELLS[1].name
    assert Sweep(store, tmp_path / "work", {}).play(CELLS[1:]).finished
    (folder / "checkpoints").mkdir(parents=True)
    assert Sweep(store, tmp_path / "work", {}).play(CELLS[1:]).finished and not folder.exists()


def test_a_result_that_cannot_be_kept_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    put = Store.put

    def full(self: Store, cell: Cell, folder: Path) -> None:
        if cell == CELLS[0]:
            raise UserError("its folder holds no run.")
        put(self, cell, folder)

    monkeypatch.setattr(Store, "put", full)
    out = Sweep(Store(tmp_path / "store"), tmp_path / "work", {}, say=said.append).play(CELLS)
    assert out.finished == CELLS[1:]
    assert out.failed[CELLS[0]].startswith("its result could not be written: its folder holds no run; it is in")
    assert (tmp_path / "work/smoke" / CELLS[0].name / "metrics.jsonl").exists(), "nothing is lost"
    assert [line.partition(":")[0] for line in said] == ["failed", "done"]


def arguments(tmp_path: Path, *words: str) -> list[str]:
    return ["table2", "scale=smoke", "dataset=digits", "partition=IID", *words, *folders(tmp_path)]


def folders(tmp_path: Path) -> list[str]:
    return ["--results", str(tmp_path / "store"), "--work", str(tmp_path / "wörk (1)"), "-o", str(tmp_path / "out")]


def test_each_run_that_ends_is_told_and_runs_of_another_version_are_refused_before_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder's name has a blank, brackets and a letter outside ASCII."""
    assert main(arguments(tmp_path, "method=FedAvg")) == 0
    assert f"1 of 1 done: {CELLS[0].name}" in capsys.readouterr().out
    path = Store(tmp_path / "store").path(CELLS[0])
    path.write_text(path.read_text().replace('"hyperfed": "', '"hyperfed": "9.'))
    with pytest.raises(UserError, match=rf"holds 1 of these runs in another version of hyperfed \({path.name} of 9\."):
        main(arguments(tmp_path, "method=FedAvg,Local"))
    assert [p.name for p in (tmp_path / "store/smoke").iterdir()] == [path.name], "nothing was played"


def test_data_that_is_not_there_is_told_once_before_the_first_run(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"data.root: .*mnist.* does not exist"):
        main(["table2", "scale=smoke", "dataset=mnist", f"data.root={tmp_path / 'data'}", *folders(tmp_path)])
    assert not (tmp_path / "wörk (1)").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--jobs", "two"), ("--jobs", "1.5"), ("--budget-minutes", "an hour"), ("--budget-minutes", "inf")]
)
def test_numbers_are_numbers(option: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{option} = '{value}' is not valid: must be a (whole )?number"):
        main(arguments(tmp_path, option, value))
