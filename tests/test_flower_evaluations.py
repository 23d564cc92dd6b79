"""Evaluations behind Flower: fine-tuning that breaks, too few who answer."""

from pathlib import Path

import pytest

pytest.importorskip("flwr")

from flowers import ALL_IN, BadGrid, changed, experiment, failed, notes
from hyperfed.core import UserError
from hyperfed.run.experiment import Diverged

WILD = (*ALL_IN, "rounds=1", "eval.every=1", "finetune.epochs=1", "finetune.lr=1e30")


def test_fine_tuning_that_breaks_stops_or_is_left_out_as_in_the_local_engine(tmp_path: Path) -> None:
    """The same sentence and advice, the same remarks in the same order, the same numbers."""
    told = []
    for engine in ("local", "flower"):
        with pytest.raises(Diverged) as stop:
            experiment(tmp_path / f"{engine} stop", engine, *WILD).run()
        skip = experiment(tmp_path / f"{engine} skip", engine, *WILD, "on_nan=skip")
        last = skip.run()
        files = [(run / "clients.csv").read_text() for run in (skip.folder, tmp_path / f"{engine} stop")]
        told.append((str(stop.value), notes(skip.folder), last["before"], last["after"], files))
    assert told[0] == told[1]
    assert "the loss of client 0 is not finite in round 1 at fine-tuning step" in told[0][0] and "finetune.lr" in told[0][0]
    assert [note["message"][:34] for note in told[0][1]] == ["scored without fine-tuning: the lo"] * 3


def test_a_failure_that_is_none_is_refused(tmp_path: Path) -> None:
    lie = changed(lambda content: content.config_records["hyperfed"].update(failure="nonfinite", step="two"))
    grid = BadGrid(tmp_path, {("evaluate", 1, 1): lie}, *ALL_IN, "rounds=1", "eval.every=1")
    run = experiment(tmp_path, "flower", *ALL_IN, "rounds=1", "eval.every=1", grid=grid)
    run.run()
    (note,) = notes(run.folder)
    assert note["client"] == 1 and "header entry 'step' is 'two', expected int" in note["message"]


@pytest.mark.parametrize(
    ("gone", "settings", "words"),
    [
        ((0, 1), ("engine.quorum=0.6",), "has good replies of 1 of 3 clients, fewer than engine.quorum = 0.6 asks for"),
        ((0, 1, 2), ("engine.quorum=0",), "has no test example of any client"),
    ],
)
def test_an_evaluation_has_a_quorum_too(gone: tuple[int, ...], settings: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """The round before it is saved, and the run goes on with the evaluation."""
    overrides = [*ALL_IN, "rounds=1", "eval.every=1", "finetune.epochs=0", *settings]
    grid = BadGrid(tmp_path, {("evaluate", 1, k): failed for k in gone}, *overrides)
    with pytest.raises(UserError, match=f"^the evaluation after round 1 {words}"):
        experiment(tmp_path, "flower", *overrides, grid=grid).run()
    again = experiment(tmp_path, "flower", *overrides)
    assert again.number == 1
    assert again.run()["round"] == 1
