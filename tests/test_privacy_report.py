import csv
import json
import math
from pathlib import Path

import pytest

from hyperfed.cli import main
from hyperfed.core import UserError
from hyperfed.privacy.lab import CASES, Attempt, Case, Setting, play
from hyperfed.privacy.resnet import CASES as RESNET
from hyperfed.privacy.search import Budget
from hyperfed.privacy.summary import markdown, summary, verdicts
from hyperfed.privacy.sweep import ROWS, sweep_table
from leaks import dataset

FULL, KEPT, NAIVE, ORACLE = (
    c for c in CASES if c.title in ("FedAvg: DLG", "FedPer: DLG, head guessed", "HFN: DLG, rest guessed", "HFN: DLG, oracle")
)


def lines(case: Case, *decibels: float) -> list[Attempt]:
    """Attempts of these PSNRs."""
    cost = (None, None, None, 0.1, 10, 0, 0.5, "ok")
    return [Attempt._make(("mnist", i, 3, 0, *case, d, d, 0.5, *cost)) for i, d in enumerate(decibels)]


def test_a_failure_is_not_reported_without_its_three_controls() -> None:
    """Every subset of the controls but the whole is refused."""
    fails, controls = lines(NAIVE, 3, 4), {FULL: lines(FULL, 60, 70), KEPT: lines(KEPT, 3, 3), ORACLE: lines(ORACLE, 50, 60)}
    for left_out in controls:
        present = [a for c, group in controls.items() if c is not left_out for a in group]
        with pytest.raises(UserError, match="cannot be reported alone"):
            summary([*fails, *present], CASES)
    everything = [*fails, *(a for group in controls.values() for a in group)]
    assert verdicts(everything, CASES)[NAIVE.title] == "below 20 dB"


@pytest.mark.parametrize("weak", [FULL, ORACLE])
def test_a_failure_beside_a_control_that_fails_is_inconclusive(weak: Case) -> None:
    strong = [a for c in (FULL, ORACLE) if c is not weak for a in lines(c, 60, 70)]
    words = verdicts([*lines(NAIVE, 3, 4), *lines(KEPT, 3, 3), *strong, *lines(weak, 5, 6)], CASES)
    assert words[NAIVE.title] == f"inconclusive: the control {weak.role!r} does not succeed"


def test_all_attempts_count_not_the_best() -> None:
    attempts = [*lines(FULL, 10, 20, 30, float("nan")), *lines(KEPT, 3)]
    row = next(r for r in summary(attempts, CASES) if r["row"] == FULL.title)
    assert (row["psnr_median"], row["success"], row["attempts"]) == (15, 0.5, 4)  # a NaN is 0 dB
    assert "| mnist | FedAvg: DLG | 4 | 7.5 / **15.0** / 22.5 " in markdown([row])


def test_fig4_writes_the_picture_every_attempt_and_the_summary(tmp_path: Path) -> None:
    words = ["attack", "fig4", "scale=smoke", "dataset=digits", f"data.cache={tmp_path / 'cache'}", "-o", str(tmp_path / "out")]
    assert main(words) == 0
    rows = list(csv.DictReader((tmp_path / "out/digits.csv").read_text().splitlines()))
    assert [r["row"] for r in rows] == [c.title for c in CASES] and all(r["status"] == "ok" for r in rows)
    found = {r["row"]: float(r["psnr"]) for r in rows}
    assert found["FedAvg: DLG"] > 40 and found["HFN: DLG, rest guessed"] < 12 and found["HFN: DLG, oracle"] > 40
    kept = json.loads((tmp_path / "out/digits.json").read_text())
    assert kept["scale"] == {"images": 1, "seeds": 1, "evals": 300, "restarts": 2} and len(kept["rows"]) == len(CASES)
    assert kept["without_any_message"]["black"] < 20
    assert (tmp_path / "out/digits.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in json.dumps(kept)


def test_the_papers_own_network_is_attacked_with_its_controls(tmp_path: Path) -> None:
    """40 steps recover nothing, and because the control does not either, nothing is claimed."""
    words = ["attack", "resnet", "scale=smoke", "evals=10", "dataset=digits", f"data.cache={tmp_path / 'cache'}", "-o", str(tmp_path)]
    assert main(words) == 0
    kept = json.loads((tmp_path / "resnet_digits.json").read_text())
    assert kept["scale"]["images"] == 2 and kept["budget"]["evals"] == 40 and (kept["embedding"], kept["init"]) == (64, "as in training")
    assert {r["row"]: r["verdict"].partition(":")[0] for r in kept["rows"]} == {c.title: "inconclusive" for c in RESNET}
    assert "| digits | FedAvg | 2 |" in (tmp_path / "resnet.md").read_text()
    assert (tmp_path / "resnet_digits.png").read_bytes().startswith(b"\x89PNG")


def test_an_attack_without_meaning_is_a_row_that_says_so() -> None:
    """One embedding dimension for three embeddings: no hull, no structured attack."""
    setting = Setting(Budget(5, 5, start="grey"), embedding=1)
    (line, image), *_ = play(dataset(), 1, 1, setting, tuple(c for c in CASES if c.title == "HFN: structured, no secret"))
    assert line.status == "not applicable" and image is None and math.isnan(line.psnr)
    row = {"setting": "embedding=1", "psnr_median": 0.0, "evals_median": 0}
    assert "not applicable" in sweep_table([{**row, "row": r} for r in ROWS])


def test_a_setting_without_meaning_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for experiment, word in (("resnet", "init=default"), ("hull", "seeds=2")):
        assert main(["attack", experiment, word]) == 2
        assert f"has no meaning for 'hyperfed attack {experiment}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["scale=huge"], "scale 'huge' unknown"),
        (["dataset=mnits"], "dataset 'mnits' unknown; did you mean 'mnist'?"),
        (["init=zero"], "init 'zero' unknown"),
        (["images=0"], "images = '0' is not valid: must be an integer >= 1."),
        (["seeds=two"], "seeds = 'two' is not valid"),
        (["size=3"], "setting 'size' unknown"),
        (["mnist"], "argument 'mnist' is not valid: must be key=value"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", "fig4", *words]) == 2
    printed = capsys.readouterr().err
    assert text in printed and printed.count("\n") == 1 and printed.startswith("hyperfed: ")
