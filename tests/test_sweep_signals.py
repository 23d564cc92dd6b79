"""Runs that a signal ends: the system's for memory, a driver's crash; and one that the sweep itself hears."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from forks import signal_amid_the_next_fork
from hyperfed.core import UserError
from hyperfed.evidence.command import main, read_settings
from hyperfed.evidence.plans import Ask, plan
from hyperfed.evidence.store import Store
from hyperfed.evidence.sweep import STARTS, Sweep

CELLS = plan("table2", Ask("smoke", ("digits",), ("IID",), ("FedAvg", "Local")))
DEADLY = """
import os, sys
from pathlib import Path
place = Path({place!r})
if any("fedavg" in word and "resume=" in word for word in sys.orig_argv) and len(list(place.iterdir())) < {times}:
    (place / str(os.getpid())).touch()
    os.kill(os.getpid(), 9)
"""


def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> Any:
    """A sweep in which the first runs of FedAvg are killed."""
    place, start = tmp_path / "killed", tmp_path / "start"
    place.mkdir(), start.mkdir()
    (start / "sitecustomize.py").write_text(DEADLY.format(place=str(place), times=times))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(start), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return Sweep(Store(tmp_path / "store"), tmp_path / "work", {}).play(CELLS), len(list(place.iterdir()))


def test_a_run_that_a_signal_ends_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, killed = swept(tmp_path, monkeypatch, STARTS - 1)
    assert killed == STARTS - 1
    assert {c.row for c in out.finished} == {"FedAvg", "Local"} and not out.failed and not out.left


def test_a_run_that_signals_end_again_and_again_is_listed_and_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, killed = swept(tmp_path, monkeypatch, 99)
    assert killed == STARTS
    assert [c.row for c in out.finished] == ["Local"]
    assert list(out.failed.values()) == ["ended by signal 9 in each of 3 starts"]


@pytest.mark.filterwarnings("error")
def test_ctrl_c_amid_a_fork_is_not_lost(tmp_path: Path) -> None:
    sent = signal_amid_the_next_fork(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Sweep(Store(tmp_path / "store"), tmp_path / "work", {}).play(CELLS)
    assert sent and not list((tmp_path / "store").rglob("*.json")), "stopped in its first run"


def test_settings_of_the_machine_reach_the_runs_and_change_nothing_else(tmp_path: Path) -> None:
    free = read_settings(["data.root=x", "gpu.lanes=2", "device=cuda"])[1]
    composed = Sweep(Store(tmp_path), tmp_path, free).composed(CELLS[0], tmp_path)
    assert (composed["gpu"]["lanes"], composed["gpu"]["graphs"], composed["data"]["root"], composed["device"]) == ("2", True, "x", "cuda")
    plain = CELLS[0].composed()
    assert plain["gpu"]["lanes"] == 4, "the cell's own settings are not touched"
    assert {k for k in plain if composed[k] != plain[k]} == {"gpu", "data", "device", "threads", "run"}


def test_a_mistake_in_a_setting_of_the_machine_is_told_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gpu.lanes = 0 is not valid: must be a whole number from 1 to 32"):
        main(["table2", "scale=smoke", "dataset=digits", "gpu.lanes=0", "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w")])
