"""Programs that are started in the background, watched, and stopped with everything they started."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


class Stopped(Exception):
    """SIGTERM or Ctrl-C."""


class _Signals:
    """Whether one was heard within :func:`stopping`, and whether a program is just being started, or stopped."""

    heard = False
    starting = False
    ending = False


@contextmanager
def stopping() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into :class:`Stopped`, so that children are stopped, too."""

    def stop(number: int, frame: object) -> None:
        _Signals.heard = True
        if not (_Signals.starting or _Signals.ending):
            raise Stopped

    _Signals.heard = False
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _Signals.heard = False


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks for a stop at the next good moment (says what is given); a second one raises KeyboardInterrupt at once."""
    asked = False

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread: nothing to catch
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def say(text: str) -> None:
    """One line for the operator, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)  # noqa: T201


def die_with_parent() -> None:
    """A process group of its own; and on Linux SIGTERM for the child when this process is killed, however it is killed."""
    os.setsid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def environment(home: Path) -> dict[str, str]:
    """Flower's processes find their programs beside this Python, and keep their files in ``home``."""
    bin_folder = str(Path(sys.executable).parent)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **quiet, "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}"}


def start(command: list[str], home: Path, log: Path, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start one of Flower's programs in the background. :class:`Stopped` waits for it: what is raised amid a fork, Python drops."""
    log.parent.mkdir(parents=True, exist_ok=True)
    program, env = str(Path(sys.executable).with_name(command[0])), {**environment(home), **(extra or {})}
    _Signals.starting = True
    try:
        with log.open("ab") as file:
            process = subprocess.Popen([program, *command[1:]], env=env, stdout=file, stderr=file, preexec_fn=die_with_parent)
    finally:
        _Signals.starting = False
    if _Signals.heard:
        stop(process)
        raise Stopped
    return process


def stop(process: subprocess.Popen[bytes], grace: float = 20.0) -> None:
    """End a program and the helpers it started, all of them in its process group; with force if it must be.

    A signal meanwhile waits until that is done: an impatient second one would leave programs behind.
    """
    told, _Signals.ending = _Signals.heard, True
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + grace
            with suppress(ProcessLookupError):
                while time.monotonic() < deadline:
                    os.killpg(process.pid, number)
                    process.poll()
                    time.sleep(0.2)
    finally:
        _Signals.ending = False
    if _Signals.heard and not told:
        raise Stopped


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
