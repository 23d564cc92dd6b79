"""What stops a run badly: a second Ctrl-C, another process in its folder, damaged files, a disk that is full. What is kept stays whole."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hyperfed.cli import main
from hyperfed.core import UserError
from hyperfed.engine import store as store_module
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.store import Row, Store
from hyperfed.main import guarded
from hyperfed.run import checkpoint, ledger
from hyperfed.run.checkpoint import available
from hyperfed.run.experiment import Experiment, Interrupted
from hyperfed.run.journal import Journal
from runs import assert_bit_identical, composed, small_run

FULL = OSError(28, "No space left on device")


def twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("method", ["fedper", "fedfomo", "pfedla"])
def test_a_second_ctrl_c_amid_a_rounds_changes_saves_nothing(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In round 4 one client's state is new, the banks are, the others' states are not: the run goes on from round 2, the last one saved."""
    settings = (f"method={method}", "rounds=4", "checkpoint.every=2", "participation=1")
    small_run(tmp_path / "whole", *settings)
    commit = LocalEngine.commit

    def interrupted(self: LocalEngine, number: int) -> None:
        if number == 4:
            k, state = next(iter(self._staged.items()))
            self.store.put(k, state, number)
            twice()
        commit(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "commit", interrupted)
        with pytest.raises(Interrupted, match="stopped at once; the checkpoint of round 2 is intact; go on with: hyperfed run resume="):
            small_run(tmp_path / "cut", *settings)
    assert [p.name for p in available(tmp_path / "cut/checkpoints")] == ["round-000002"]
    small_run(tmp_path / "cut", *settings)
    assert_bit_identical(tmp_path / "whole", tmp_path / "cut")


def test_a_second_ctrl_c_while_the_first_is_being_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run(tmp_path / "whole", "method=fedper")
    turn = LocalEngine.turn

    def once(self: LocalEngine, *given: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return turn(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "turn", once)
        patch.setattr(checkpoint, "save_tensors", lambda *args: twice())
        with pytest.raises(Interrupted, match="stopped at once; no round was saved yet; go on with"):
            small_run(tmp_path / "cut", "method=fedper")
    assert not list((tmp_path / "cut/checkpoints").iterdir())
    small_run(tmp_path / "cut", "method=fedper")
    assert_bit_identical(tmp_path / "whole", tmp_path / "cut")


def test_ctrl_c_outside_the_rounds_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def loading() -> None:
        raise KeyboardInterrupt

    assert guarded(loading) == 130 and capsys.readouterr().err == "hyperfed: interrupted.\n"


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print('held', flush=True); input()"


def test_a_folder_is_one_processs_at_a_time(tmp_path: Path) -> None:
    folder, lock = tmp_path / "a", tmp_path / "a/.run.lock"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"run.dir '.*a' is in use by another process"):
            Experiment(composed(folder, "rounds=1"))
        assert [p.name for p in folder.glob("*.*")] == [".run.lock"]
        other.kill()
    experiment = Experiment(composed(folder, "rounds=1"))
    refused = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert "BlockingIOError" in refused.stderr
    experiment.run()
    assert subprocess.run(command, input="\n", capture_output=True, text=True, check=False).stdout == "held\n"


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre, mounted without flock, says ENOSYS; any other trouble is told."""
    from hyperfed.core import files

    def flock(error: int) -> None:
        def refuse(*args: object) -> None:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(files.fcntl, "flock", refuse)

    flock(errno.ENOSYS)
    held = files.lock(tmp_path / "lock")
    assert held is not None
    os.close(held)
    flock(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        files.lock(tmp_path / "lock")


def test_in_one_process_the_last_to_open_a_folder_has_it(tmp_path: Path) -> None:
    small_run(tmp_path / "alone", "rounds=2")
    first, second = (Experiment(composed(tmp_path / "a", "rounds=2")) for _ in range(2))
    with pytest.raises(UserError, match="is no longer this experiment's"):
        first.run()
    second.run()
    assert_bit_identical(tmp_path / "alone", tmp_path / "a")


@pytest.mark.parametrize(
    ("damage", "words"),
    [(Path.unlink, "is missing"), (lambda p: os.truncate(p, 100), "cannot be read: damaged")],
)
@pytest.mark.parametrize("kept", ["states", "banks/models"])
def test_a_damaged_state_is_named_and_the_checkpoint_before_can_be_used(kept: str, damage, words: str, tmp_path: Path) -> None:
    settings = ("method=fedfomo", "rounds=2", "participation=1")
    small_run(tmp_path / "whole", *settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "a")
    path = tmp_path / "a" / kept / "000003-000002.safetensors"
    damage(path)
    last = available(tmp_path / "a/checkpoints")[-1]
    with pytest.raises(UserError, match=rf"round-000002 is damaged: the state of client 3 \(round 2\), .*, {words}.*; delete that folder"):
        Experiment(composed(tmp_path / "a", *settings))
    shutil.rmtree(last)
    small_run(tmp_path / "a", *settings)
    assert_bit_identical(tmp_path / "whole", tmp_path / "a")


def test_a_durable_store_notices_a_single_bit(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", Row, durable=True)
    store.put(3, Row({"w": torch.ones(3)}), 2)
    versions = store.flush()
    path = tmp_path / "s/000003-000002.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"the state of client 3 \(round 2\), .*, cannot be read: damaged \(its checksum"):
        store.restore(versions)


def test_what_a_durable_store_has_written_outlives_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that had to leave memory before the checkpoint, too; each only once."""
    synced: list[str] = []
    monkeypatch.setattr(store_module, "sync", lambda path: synced.append(path.name))
    store = Store(tmp_path / "s", Row, cache_bytes=1, durable=True)
    for k in (0, 1):
        store.put(k, Row({"w": torch.ones(3)}), 1)
    assert synced == []
    store.flush()
    assert synced == ["000000-000001.safetensors", "000001-000001.safetensors", "s"]
    store.flush()
    assert len(synced) == 3


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("method", "words"),
    [("fedavg", "the checkpoint of round 1 could not be written to .*: File too large"), ("local", "the run stopped: .*File too large")],
)
def test_a_write_that_fails_is_one_sentence_and_leaves_nothing_behind(method: str, words: str, tmp_path: Path) -> None:
    """FedAvg's is the server's file; Local's a client's state that leaves memory."""
    settings = (f"method={method}", "model.width=512", "rounds=1", "cache_mib=1")
    small_run(tmp_path / "whole", *settings)
    with largest_file(200_000), pytest.raises(UserError, match=words):
        small_run(tmp_path / "a", *settings)
    assert not [p for p in (tmp_path / "a").rglob("*") if ".tmp" in p.name or p.suffix == ".safetensors"]
    small_run(tmp_path / "a", *settings)
    assert_bit_identical(tmp_path / "whole", tmp_path / "a")


def test_a_disk_that_fills_under_any_command_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    attack = ["attack", "fig4", "scale=smoke", "dataset=digits", "evals=1", "-o", str(tmp_path)]
    with largest_file(1000):
        assert main(attack) == 2
    assert capfd.readouterr().err == "hyperfed: a file could not be written: File too large; make room, and give the command again.\n"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(("where", "name"), [(ledger, "_append"), (Journal, "note"), (Journal, "note_clients")])
def test_a_disk_that_is_full_between_checkpoints_loses_no_checkpoint(
    where: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("method=fedper", "rounds=2", "eval.every=1")
    small_run(tmp_path / "whole", *settings)
    write = getattr(where, name)

    def full(*args: object) -> None:
        if any((tmp_path / "a/checkpoints").glob("round-*")):
            raise FULL
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, full)
        with pytest.raises(UserError, match=r"the run stopped: .*No space left on device; the checkpoint of round 1 is intact; go on"):
            small_run(tmp_path / "a", *settings)
    small_run(tmp_path / "a", *settings)
    assert_bit_identical(tmp_path / "whole", tmp_path / "a")


def test_a_full_disk_keeps_states_that_had_to_leave_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **settings: object) -> None:
        raise FULL

    store = Store(tmp_path, Row, cache_bytes=1)
    store.put(0, Row({"w": torch.ones(3)}), 1)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "save_tensors", full)
        with pytest.raises(OSError, match="No space"):
            store.put(1, Row({"w": torch.zeros(3)}), 1)
    assert store.flush() == {0: 1, 1: 1} and store.has(0, 1) and store.has(1, 1)
