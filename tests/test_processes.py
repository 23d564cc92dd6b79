"""Programs in the background."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forks import signal_amid_the_next_fork
from hyperfed.processes import Stopped, start, stop, stopping

PYTHON = Path(sys.executable).name


@pytest.fixture
def another_thread() -> Iterator[None]:
    """Which may be the one that the system hands a signal to."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("another_thread")
def test_sigterm_amid_a_fork_is_not_lost(tmp_path: Path) -> None:
    """A service manager sends SIGTERM but once."""
    sent = signal_amid_the_next_fork(signal.SIGTERM)
    with pytest.raises(Stopped), stopping():
        start([PYTHON, "-c", "pass"], tmp_path, tmp_path / "log.txt")
    assert sent
    start([PYTHON, "-c", "pass"], tmp_path, tmp_path / "log.txt").wait()  # that was then


def test_what_is_started_hears_sigterm(tmp_path: Path) -> None:
    """At once, without force."""
    process = start([PYTHON, "-c", "import time; print('up', flush=True); time.sleep(60)"], tmp_path, tmp_path / "log.txt")
    deadline = time.monotonic() + 30
    while (tmp_path / "log.txt").read_text() != "up\n" and time.monotonic() < deadline:
        time.sleep(0.05)
    stop(process, grace=1.0)
    assert process.returncode == -signal.SIGTERM


SLOW = """import signal, sys, time
def end(*ignored):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(60)"""


@pytest.mark.parametrize("first", [True, False])
def test_a_signal_amid_a_stop_waits_for_its_end(first: bool, tmp_path: Path) -> None:
    """A second one leaves no program behind, nor is the first one lost that comes only then; Stopped is raised once."""
    heard: list[int] = []
    with pytest.raises(Stopped), stopping():
        process = start([PYTHON, "-c", SLOW], tmp_path, tmp_path / "log.txt")
        while (tmp_path / "log.txt").read_text() != "up\n":
            time.sleep(0.05)
        again = threading.Timer(0.4, lambda: (os.kill(os.getpid(), signal.SIGTERM), heard.append(1)))
        try:
            if first:
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            again.start()
            stop(process, grace=5.0)
    again.join()
    assert heard and process.returncode == 0
