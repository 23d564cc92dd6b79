"""``hyperfed reproduce`` as a user types it: settings, mistakes, Ctrl-C."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyperfed.core import UserError
from hyperfed.evidence.command import main, read_settings
from hyperfed.evidence.plans import Ask, plan


def test_ctrl_c_is_one_sentence(tmp_path: Path) -> None:
    """And what was under way is saved: the same command goes on."""
    command = [sys.executable, "-m", "hyperfed.cli", "reproduce", "table2", "scale=smoke", "dataset=digits", "partition=IID"]
    command += ["--results", str(tmp_path / "store"), "--work", str(tmp_path / "work"), "-o", str(tmp_path / "out")]

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the background of a script it is ignored, and so by its children

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed)
    while not list((tmp_path / "work").rglob("config.json")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on" in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["table9"], "'table9'"),
        (["table2", "scale=huge"], "scale 'huge' unknown"),
        (["table2", "dataset=imagenet"], "dataset 'imagenet' unknown"),
        (["table2", "method=fedavg"], "did you mean 'FedAvg'"),
        (["table2", "seed=one"], "seed = 'one'"),
        (["table2", "rounds=3"], "setting 'rounds' unknown"),
        (["table2", "mini"], "NAME=VALUE"),
        (["table2", "--jobs", "0"], "--jobs = '0'"),
        (["table3", "method=Centre"], "table3 has no run with method Centre: its rows are FedAvg, FedBABU"),
        (["table3", "partition=non-IID"], "table3 is CIFAR-10 IID only"),
        (["table2", "method=HFN,HFN+FedAvg"], "table2 has no run with method HFN+FedAvg: its rows are"),
        (["table4", "method=HFN+FedAvg,HFN"], "table4 has no run with method HFN: its rows are"),
        (["fig3", "method=FedAvg"], "fig3 is HFN on clients in groups"),
        (["table2", "seed=²"], "seed = '²'"),
        (["table2", "scale=mini", "scale=paper"], "setting 'scale' is given twice"),
        (["table2", "cache_mib=8"], "setting 'cache_mib' unknown"),
        (["table2", "--budget-minutes", "nan"], "--budget-minutes"),
        (["table2", "--results", "nowhere"], "--results = 'nowhere'"),
        ([], "say which table or figure"),
        (["table2", "--budget-minutes", "-1"], "--budget-minutes"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        main([*arguments, "--show", "-o", str(tmp_path)])
    assert sentence in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(("setting", "sentence"), [("device=tpu", "device = 'tpu'"), ("data.root=nowhere", "data.root = 'nowhere'")])
def test_what_is_wrong_for_every_run_is_said_once(setting: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        main(["table2", setting, "--results", str(tmp_path / "s"), "--work", str(tmp_path / "w"), "-o", str(tmp_path / "o")])
    assert sentence in str(told.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["--results", "--work", "--out"])
def test_folders_that_cannot_be_are_told_before_the_first_run(folder: str, tmp_path: Path) -> None:
    folders = {"--results": "s", "--work": "w", "--out": "o"} | {folder: "file/x"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"^{folder} = '.*' is not valid: must be a folder that can be written"):
        main(["table2", "scale=smoke", "dataset=digits", *(t for name, where in folders.items() for t in (name, str(tmp_path / where)))])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_settings_are_read() -> None:
    ask, free = read_settings(["scale=paper", "dataset=mnist,cifar10", "seed=1,2", "data.root=x", "device=cuda"])
    assert ask == Ask("paper", ("mnist", "cifar10"), seeds=(1, 2)) and free == {"data.root": "x", "device": "cuda"}
    assert read_settings(["seed=1,01,1", "method=HFN,HFN"])[0] == Ask(methods=("HFN",)), "what is named twice counts once"
    assert {c.row for c in plan("table4", Ask(methods=("HFN+FedAvg",)))} == {"FedAvg", "HFN+FedAvg"}
