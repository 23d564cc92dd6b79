"""Programs in the background."""

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
