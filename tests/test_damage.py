"""Files of a run that are missing, cut, changed or something else: one sentence says which and what is wrong, and nothing is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hyperfed.cli import main
from hyperfed.core import UserError
from hyperfed.core.files import load_tensors, save_tensors
from hyperfed.run import checkpoint
from hyperfed.run.experiment import Experiment
from runs import assert_bit_identical, composed, small_run

SETTINGS = ("method=fedper", "rounds=4", "num_clients=3", "checkpoint.every=2", "finetune.epochs=0")
LAST = "checkpoints/round-000004/checkpoint.json"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "run"
    small_run(folder, *SETTINGS)
    return folder


@pytest.fixture
def run(played: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(played, tmp_path / "run"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


def other(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(path.read_text().replace(old, new, 1)) and None


def file(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


def without_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


DAMAGE = [
    ("config.json", cut, "config.json is damaged: it holds no JSON ("),
    ("config.json", text("[1]"), "config.json is damaged: it holds no JSON object."),
    ("config.json", text("{}"), "config.json is damaged: it has no 'method'."),
    ("config.json", other('"rounds": 4', '"rounds": "many"'), "config.json cannot be used: rounds = 'many' is not valid"),
    ("run.json", cut, "run.json is damaged: it holds no JSON ("),
    ("run.json", text("{}"), "run.json is damaged: it has no 'identity'."),
    (LAST, cut, "checkpoint.json is damaged: it holds no JSON ("),
    (LAST, text("{}"), "is damaged: it has no 'format'; delete that folder to go on from the checkpoint before it, round-000002."),
    (LAST, other('"number": 4', '"number": []'), "is damaged: checkpoint.json holds something else than numbers ("),
    (LAST, other('"states"', '"strays"'), "is damaged: 'states' is missing; delete that folder"),
    ("metrics.jsonl", other("{", "<"), "metrics.jsonl is damaged: line 1 is no line of a run"),
    ("metrics.jsonl", folder, "metrics.jsonl cannot be read: Is a directory."),
    ("clients.csv", Path.unlink, "clients.csv is missing beside metrics.jsonl"),
    ("clients.csv", without_last_line, "clients.csv is damaged: it does not have every client once in round 4; copy it back"),
    ("ledger.csv", Path.unlink, "ledger.csv is missing, and with it what the rounds so far have cost"),
    ("ledger.csv", without_last_line, "ledger.csv is damaged: it has 15 messages up to round 4, 16 were sent"),
    ("ledger.csv", other(",down,", ",down;"), "ledger.csv is damaged: line 2 has 6 fields, not 7"),
    ("ledger.csv", other("1,", "x,"), "ledger.csv is damaged: invalid literal"),
    ("roles.csv", Path.unlink, "roles.csv is missing, and with it"),
    ("roles.csv", without_last_line, "ledger.csv or roles.csv beside it is damaged: they differ in round 4"),
    ("states", file, "states is no folder and cannot be made one: File exists."),
    ("states", shutil.rmtree, "round-000004 is damaged: the state of client"),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE, ids=[f"{n}: {w[-30:]}" for n, _, w in DAMAGE])
def test_a_damaged_file_is_named(
    name: str, damage: Callable[[Path], None], words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / name)
    for arguments in (["run", f"resume={run}"], ["export", str(run), "-o", str(run.parent / "models")]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert words in said and said.startswith("hyperfed: ") and said.count("\n") == 1


def test_a_damaged_name_of_an_experiment_is_named(tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    from hyperfed.run.flower import experiment_id

    for content, words in (("{", "it holds no JSON"), ("{}", "it has no 'experiment'")):
        (tmp_path / "experiment.json").write_text(content)
        with pytest.raises(UserError, match=rf"experiment\.json is damaged: {words}"):
            experiment_id(composed(tmp_path), tmp_path)


def test_a_foreign_file_among_the_states_is_left_alone(run: Path) -> None:
    for name in ("notes.safetensors", "._000000-000004.safetensors", "000000-000004.txt"):
        (run / "states" / name).write_text("mine")
    Experiment(composed(run, *SETTINGS)).fed.engine.store.collect([])
    assert (run / "states/notes.safetensors").read_text() == "mine"


def test_every_bit_of_what_a_file_says_of_its_tensors_counts(tmp_path: Path) -> None:
    """Whichever is flipped, the tensors are as they were or the file is refused: no other names, shapes or order, no traceback."""
    flat = {"head/fc.weight": torch.arange(6.0).view(2, 3), "head/fc.bias": torch.ones(2), "n": torch.tensor(3)}
    save_tensors(tmp_path / "t", flat, packed=True)
    raw = (tmp_path / "t").read_bytes()
    refused = 0
    for i in range(8 + int.from_bytes(raw[:8], "little")):
        for bit in (1, 32):
            (tmp_path / "t").write_bytes(raw[:i] + bytes([raw[i] ^ bit]) + raw[i + 1 :])
            try:
                back = load_tensors(tmp_path / "t")
            except OSError as problem:
                assert "damaged (" in str(problem)
                refused += 1
                continue
            assert list(back) == list(flat) and all(torch.equal(back[n], flat[n]) for n in flat)
    assert refused > 300


def test_a_ledger_of_older_versions_is_taken(run: Path) -> None:
    """Their checkpoints do not say how many messages there were."""
    facts = json.loads((run / LAST).read_text())
    del facts["messages"]
    (run / LAST).write_text(json.dumps(facts))
    without_last_line(run / "ledger.csv")
    with pytest.raises(UserError, match="they differ in round 4"):
        Experiment(composed(run, *SETTINGS))


def test_what_a_kill_left_behind_is_removed(played: Path, run: Path) -> None:
    """Names of processes that are gone, and the rest of a checkpoint that was just being deleted."""
    left = [run / name for name in (".ledger.csv.123.tmp", "states/.000000-000003.safetensors.7.tmp", "checkpoints/round-000001")]
    left[2].mkdir()
    for path in (*left[:2], left[2] / "server.safetensors"):
        path.touch()
    shutil.rmtree(run / "checkpoints/round-000004")
    kept = run / ".hidden.tmp"
    kept.touch()
    small_run(run, *SETTINGS)
    assert not any(path.exists() for path in left) and kept.exists()
    assert [p.name for p in checkpoint.available(run / "checkpoints")] == ["round-000002", "round-000004"]
    assert_bit_identical(played, run)
