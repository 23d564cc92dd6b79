"""Files that do not hold a run's numbers: one sentence each, and the report goes on without them."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperfed.cli import main
from hyperfed.core import UserError
from hyperfed.report.runs import keep, read_run
from made_runs import made
from runs import small_run

DAMAGES: dict[str, tuple[tuple[str | int, ...], Any, str]] = {  # where, what is there instead (... for nothing), how the sentence goes on
    "a list": ((), [], "it holds no configuration and no evaluations"),
    "null": ((), None, "it holds no configuration and no evaluations"),
    "no facts": (("facts",), ..., "facts is missing"),
    "no versions": (("facts", "versions"), ..., "facts.versions: field required"),
    "no evaluations": (("evaluations",), [], "evaluations: list should have at least 1 item"),
    "NaN": (("evaluations", -1, "before", "mean"), float("nan"), "evaluations.3.before.mean: input should be"),
    "no weighted": (("evaluations", -1, "before", "weighted"), ..., "evaluations.3.before.weighted: field required"),
    "text for numbers": (("evaluations", 0, "after"), "0.5", "evaluations.0.after: input should be"),
    "text for a number": (("evaluations", 0, "before", "p10"), "0.5", "evaluations.0.before.p10: input should be a valid number"),
    "110 %": (("evaluations", 0, "before", "mean"), 1.1, "evaluations.0.before.mean: input should be less than or equal to 1"),
    "endless seconds": (("evaluations", 0, "cpu_seconds"), float("inf"), "evaluations.0.cpu_seconds: input should be a finite number"),
    "text for bytes": (("per_round", "bytes"), "40", "per_round.3: input should be a valid integer"),
    "other traffic": (("per_round", "letters"), 1, "per_round holds something else than trainable, buffers, extra, bytes"),
    "a list of details": (("detail",), [], "detail holds something else than totals, roles"),
    "short totals": (("detail", "totals", 0), [1, 2], r"detail.totals: a row is not \(round, elements, bytes\)"),
    "text for roles": (("detail", "roles"), {"body": "8"}, "detail.roles.body: input should be a valid integer"),
    "a client less": (("detail", "clients", "before"), [1], "before has 1 rows for 2 clients"),
    "more right than asked": (("detail", "clients", "before", 0), 10**6, "a client has more right answers"),
    "text for counts": (("detail", "label_counts"), "none", "detail.label_counts: input should be a valid list"),
    "a class less": (("detail", "label_counts", 1), [1], "label_counts: a row has not 2 classes"),
    "no method": (("config", "method"), ..., "config.method: field required"),
}


def damage(path: Path, kind: str) -> str:
    """Spoil a kept run; returns what is to be said of it."""
    if kind == "torn":
        path.write_text(path.read_text()[:-100])
        return r"no valid JSON \(.*, line \d+, column \d+\)"
    where, value, said = DAMAGES[kind]
    whole = {"it": json.loads(path.read_text())}
    at, keys = whole, ("it", *where)
    for key in keys[:-1]:
        at = at[key]  # type: ignore[index]
    if value is ...:
        del at[keys[-1]]  # type: ignore[arg-type]
    else:
        at[keys[-1]] = value  # type: ignore[index]
    path.write_text(json.dumps(whole["it"]))
    return said


def test_a_run_given_twice_is_left_out_and_two_runs_of_one_seed_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other = (
        keep(replace(made(tmp_path, 1, right), folder=tmp_path / name), tmp_path / name)
        for name, right in (("first", [7, 9]), ("again", [7, 9]), ("other", [7, 8]))
    )
    assert main(["report", str(first), str(again), "-o", str(tmp_path / "a.html")]) == 0
    assert f"left out: {again} is {first} played again, with the same numbers." in capsys.readouterr().err
    assert main(["report", str(first), str(other), "-o", str(tmp_path / "b.html")]) == 2
    assert f"{other} repeats seed 1 of FedAvg, which {first} holds: one run per seed." in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["torn", *DAMAGES])
def test_a_damaged_run_is_named_left_out_and_counted(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"totals": [[1, 60, 1000], [2, 120, 2000], [3, 180, 3000]], "label_counts": [[5, 1], [2, 8]]}
    paths = [keep(made(tmp_path, seed, [7, 9], **more), tmp_path / "kept") for seed in (1, 2)]
    said = damage(paths[0], kind)
    with pytest.raises(UserError, match=rf"{paths[0].name}' is not a kept run: {said}[^.]*\.$"):
        read_run(paths[0])
    assert main(["report", *map(str, paths), "-o", str(tmp_path / "a.html")]) == 0
    assert re.search(rf"left out: .*{paths[0].name}' is not a kept run: {said}", capsys.readouterr().err)
    assert "1 of 2 files are left out." in (tmp_path / "a.html").read_text()
    assert main(["report", str(paths[0]), "-o", str(tmp_path / "none.html")]) == 2
    assert "none of the 1 runs could be read" in capsys.readouterr().err and not (tmp_path / "none.html").exists()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder."""
    folder = tmp_path_factory.mktemp("played") / "run"
    small_run(folder)
    return folder


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "run.json", "ledger.csv"])
@pytest.mark.parametrize("content", [b"{\n", b"\xff\n", b"[]\n", b""])
def test_a_damaged_folder_is_one_sentence_for_every_command(name: str, content: bytes, played: Path, tmp_path: Path) -> None:
    """``hyperfed compare``, ``keep`` and ``report`` all read folders by ``read_run``."""
    shutil.copytree(played, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(UserError) as told:
        read_run(tmp_path / "run")
    assert str(told.value).startswith(f"'{tmp_path / 'run'}' is not a run's folder: ") and "\n" not in str(told.value)
    assert main(["compare", str(tmp_path / "run"), "-o", str(tmp_path / "out")]) == 2
