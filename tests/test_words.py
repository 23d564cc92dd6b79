"""Words of a command line that stand for nothing: one sentence, whichever command, and nothing is begun."""

from pathlib import Path

import pytest

from hyperfed.cli import main
from hyperfed.main import check_overrides

HUGE = "99999999999999999999"
LONG = "x" * 300


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["privacy=null"], "privacy = None is not valid: must be one of central_dp, client_dp, dp_sgd, none, secagg."),
        (["hyper=null"], "hyper = None is not valid: must be one of hfn, hfn_head, none."),
        *(([f"{name}=null"], f"{name} = None is not valid: must be one of ") for name in ("method", "model", "dataset", "engine")),
        (["partition=null"], "partition = None is not valid: must be one of dirichlet, groups, iid, pathological."),
        (["method=7"], "method = 7 is not valid: must be one of "),
        (["scale=null"], "scale = None is not valid: must be one of mini, paper, smoke, or left out."),
        (["run.dir=/proc/foo"], "run.dir = '/proc/foo' is not valid: must be a folder that can be written or made; '/proc' is none."),
        (["run.root=/proc/foo"], "run.root = '/proc/foo' is not valid: must be a folder that can be written or made"),
        ([f"run.dir={LONG}"], f"run.dir = '{LONG}' is not valid: must be a folder that can be written or made"),
        ([f"run.name={LONG}"], "is not valid: must be shorter: the folder's name would have more than 255 bytes."),
        ([f"threads={HUGE}"], f"threads = {HUGE} is not valid: must be an integer from 1 to 4096."),
        ([f"local.batch_size={HUGE}"], f"local.batch_size = {HUGE} is not valid: must be an integer from 1 to 2147483647."),
        ([f"local.epochs={HUGE}"], f"local.epochs = {HUGE} is not valid"),
        ([f"finetune.epochs={HUGE}"], f"finetune.epochs = {HUGE} is not valid: must be an integer from 0 to"),
        (["resume=[1]"], "resume = [1] is not valid: must be a run's folder"),
        (["resume=7"], "resume = 7 is not valid: must be a run's folder"),
        ([f"resume={LONG}"], f"resume = '{LONG}' is not a run's folder: it has no config.json."),
        (["~run"], "~run is not valid: a setting can be changed, run=VALUE, but not taken out."),
        (["~method"], "~method is not valid: a setting can be changed, method=VALUE, but not taken out."),
        (["~optim.lr"], "~optim.lr is not valid"),
        (
            ["privacy=secagg", "privacy.bound=1e300"],
            "privacy.bound = 1e+300 is not valid: must be at most 65536: uploads are rounded to steps",
        ),
    ],
)
def test_a_word_that_stands_for_nothing_is_one_sentence(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "model=mlp", "rounds=1", *words]) == 2
    said = capsys.readouterr().err
    assert told in said and said.startswith("hyperfed: ") and said.count("\n") == 1


def test_the_largest_numbers_are_taken() -> None:
    check_overrides(["privacy=secagg", "privacy.bound=65536", "local.batch_size=2147483647", "threads=4096"])


@pytest.mark.parametrize("words", [["images=²"], ["images=0"], ["seeds=-1"], ["evals=1e3"]])
def test_a_number_of_an_attack_is_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", "fig4", *words]) == 2
    said = capsys.readouterr().err
    assert "is not valid: must be an integer >= 1" in said and said.count("\n") == 1


def test_what_is_no_run_is_said_of_any_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", LONG, "-o", str(tmp_path)]) == 2
    assert "is not a run's folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["fig4", "dataset=digits"], ["sweep"], ["membership", "method=fedavg"], ["hull"]])
def test_an_attack_finds_out_first_that_it_cannot_write(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*given: object) -> None:
        pytest.fail("it was begun")

    monkeypatch.setattr("hyperfed.privacy.command.load_dataset", work)
    monkeypatch.setattr("hyperfed.privacy.membership.report", work)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "below", Path("/proc/foo/below")):
        assert main(["attack", *words, "--out", str(out)]) == 2
        assert "is not valid: must be a folder that can be written or made" in capsys.readouterr().err
    if words[0] == "membership":
        assert main(["attack", *words, "--out", str(tmp_path)]) == 2
        assert "--out = " in capsys.readouterr().err
