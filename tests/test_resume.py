"""Going on with a run: what one types, and what its folder must hold."""

import json
import shlex
from pathlib import Path

import pytest

from hyperfed.main import compose_checked
from hyperfed.run.config import resume_setting
from hyperfed.run.experiment import Experiment
from runs import assert_bit_identical, composed, small_run

AWKWARD = ("null", "NaN", "12", "1e3", "-a", "a b", "a,b", "a=b", "[x]", "{a:b}", "glob(*)")
LETTERS = ("~/x", "a;b#c", "ü/é😀", "\u212a", " a ", "x\ny")
QUOTED = ("it's", 'say "x"', "a\\", "a\\\\'b", "${x}", "a\\${x}'", "${oc.env:HOME}", "$HOME", "a$", "\\$", "'", "a'\\")


@pytest.mark.parametrize("path", [*AWKWARD, *LETTERS, *QUOTED])
def test_any_folder_can_be_typed_again(path: str) -> None:
    (word,) = shlex.split(shlex.quote(resume_setting(Path(path))))
    assert compose_checked([word]).resume == path


@pytest.mark.parametrize("path", ["runs/hfn-mnist-dirichlet-s1-1a2b3c", "/srv/run_1.b", "a"])
def test_most_need_no_quotes(path: str) -> None:
    assert shlex.quote(resume_setting(Path(path))) == f"resume={path}" == f"resume={compose_checked([f'resume={path}']).resume}"


class Killed(BaseException):
    """The process is gone, without a word."""


def told(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


@pytest.mark.parametrize("lr", ["optim.lr=0.1", "optim.lr=1e30"])
def test_remarks_of_an_evaluation_that_was_not_ended_are_not_repeated(lr: str, tmp_path: Path) -> None:
    """Those of the training before it stay: metrics.jsonl is an uninterrupted run's."""
    settings = ("rounds=2", "eval.every=1", "eval.finetune=always", "finetune.lr=1e30", "on_nan=skip", lr)
    small_run(tmp_path / "whole", *settings)

    def kill(line: dict[str, object]) -> None:
        if "evaluation" in line and line["client"] == 3 and line["round"] == 1:
            raise Killed

    with pytest.raises(Killed):
        Experiment(composed(tmp_path / "cut", *settings), kill).run()
    assert told(tmp_path / "cut")[-1]["client"] == 3
    small_run(tmp_path / "cut", *settings)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")
    assert_bit_identical(tmp_path / "cut", tmp_path / "whole")
