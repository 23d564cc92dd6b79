"""The server of a deployment: a SuperLink with TLS, and one run on it."""

import argparse
import errno
import json
import os
import shlex
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from hyperfed.certs import check_certs, general_name, machine_key
from hyperfed.core import UserError, invalid
from hyperfed.core.files import lock, write_text
from hyperfed.processes import Stopped, environment, say, start, stop

EXIT_FAILED, EXIT_STOPPED = 1, 130
APP = {
    "pyproject.toml": """[project]
name = "hyperfed-app"
version = "1.0.0"
description = "HyperFed behind Flower."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "hyperfed"

[tool.flwr.app.components]
serverapp = "hyperfed_app.server_app:app"
clientapp = "hyperfed_app.client_app:app"

[tool.flwr.app.config]
overrides = ""
run.dir = ""
""",
    "hyperfed_app/__init__.py": "",
    "hyperfed_app/server_app.py": "from hyperfed.flower_apps import server_app\n\napp = server_app\n",
    "hyperfed_app/client_app.py": "from hyperfed.flower_apps import client_app\n\napp = client_app\n",
}
"""The app that is sent to the nodes: it only names what is installed there."""


def toml(values: dict[str, str]) -> str:
    """Strings as lines of TOML, whose quoted strings are JSON's as long as those hold no surrogates."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


class Server:
    """A SuperLink and one run on it."""

    def __init__(self, known: argparse.Namespace) -> None:
        self.folder: Path = known.dir.absolute()
        self.certs: Path = known.certs.absolute()
        self.host, self.port = known.host, known.port
        self.here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        self.overrides = list(known.overrides)
        self.home = self.folder / "flower"
        if not 0 < self.port < 2**16:
            raise invalid("--port", self.port, "from 1 to 65535")
        general_name(self.host, "--host")
        for name in ("ca.crt", "server.pem", "server.key"):
            if not (self.certs / name).exists():
                raise UserError(f"{self.certs / name} is missing: make it with `hyperfed deploy certs {known.certs}`.")

    def run(self) -> int:
        """Start, play, stop; the exit code is that of the run, which Flower's own is not."""
        try:
            with self._alone():
                self._prepare()
                self._await_port()
                self._forget()
                return self._serve()
        except Stopped:
            say("stopped; the same command goes on from the last complete round.")
            return EXIT_STOPPED

    def _serve(self) -> int:
        link = start(
            [
                *("flower-superlink", "--host", self.host, "--port", str(self.port), "--database", str(self.home / "superlink.db")),
                *("--ssl-ca-certfile", str(self.certs / "ca.crt"), "--ssl-certfile", str(self.certs / "server.pem")),
                *("--ssl-keyfile", str(self.certs / "server.key"), "--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            ],
            self.home,
            self.folder / "superlink.log",
        )
        try:
            self._wait_healthy(link)
            self._register()
            self._await_folder()
            return self._play(link)
        finally:
            stop(link)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one server plays the run of a folder; the lock goes with the process, however it ends."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            held = lock(self.home / "lock")
        except OSError as problem:
            raise UserError(f"--dir = {str(self.folder)!r} cannot be written: {problem.strerror}.") from None
        if held is None:
            raise UserError(f"--dir = {str(self.folder)!r} is in use: another `hyperfed deploy server` plays this run.")
        try:
            yield
        finally:
            os.close(held)

    def _await_port(self, seconds: float = 20) -> None:
        """The port must be free; a SuperLink whose server was killed needs a moment to end."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                family, kind, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
                return
            except OSError as problem:
                if problem.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise UserError(f"--host {self.host} --port {self.port} cannot be listened on: {problem.strerror}.") from None
            time.sleep(0.5)

    def _await_folder(self, seconds: float = 60) -> None:
        """No run may be at work in the folder. That of a server which was killed ends when it hears from a SuperLink again."""
        from hyperfed.run.claim import Claim, InUse

        deadline = time.monotonic() + seconds
        while True:
            try:
                return Claim(self.folder).release()
            except InUse:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def _prepare(self) -> None:
        """Check the settings before anything starts, and write what Flower reads."""
        from hyperfed.flower_apps import compose_run
        from hyperfed.run.config import identity_hash
        from hyperfed.run.flower import check_deployable
        from hyperfed.run.origin import holds

        check_certs(self.certs, self.here)
        self.overrides += ["engine.backend=deployment"]
        composed = compose_run(self._run_config())
        check_deployable(composed)
        holds(self.folder, identity_hash(composed), "--dir")
        for name, text in APP.items():
            write_text(self.home / "app" / name, text)
        at = {"address": self._address(), "root-certificates": str(self.certs / "ca.crt")}
        write_text(self.home / "config.toml", '[superlink]\ndefault = "here"\n\n[superlink.here]\n' + toml(at))

    def _run_config(self) -> dict[str, str]:
        return {"overrides": shlex.join(self.overrides), "run.dir": str(self.folder)}

    def _address(self) -> str:
        """Where this machine reaches its own SuperLink."""
        return f"[{self.here}]:{self.port}" if ":" in self.here else f"{self.here}:{self.port}"

    def _wait_healthy(self, link: subprocess.Popen[bytes], seconds: float = 120) -> None:
        context = ssl.create_default_context(cafile=str(self.certs / "ca.crt"))
        deadline, last = time.monotonic() + seconds, "it ended"
        while time.monotonic() < deadline and link.poll() is None:
            try:
                with urllib.request.urlopen(f"https://{self._address()}/health", context=context, timeout=5):
                    say(f"the SuperLink listens on {self.host}:{self.port} with TLS.")
                    return
            except OSError as problem:
                last = str(getattr(problem, "reason", problem))
            time.sleep(0.5)
        raise UserError(f"the SuperLink does not answer on {self._address()} ({last}); see {self.folder / 'superlink.log'}.")

    def _flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).with_name("flwr"))
        return subprocess.run([program, *arguments], env=environment(self.home), capture_output=True, text=True, check=False)

    def _keys(self) -> list[Path]:
        return sorted(self.certs.glob("*.pub"))

    def _forget(self) -> None:
        """Take the nodes for which no *.pub stands out of Flower's book, where it has any; those that stay keep their numbers.

        Flower's own way, to unregister them, would refuse their keys for ever, if they should come back.
        """
        book, known = self.home / "superlink.db", {machine_key(key) for key in self._keys()}
        if not book.exists():
            return
        try:
            with closing(sqlite3.connect(book, timeout=30)) as base, base:
                if base.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'node'").fetchone():
                    marks = ", ".join("?" * len(known))
                    base.execute(f"DELETE FROM node WHERE status = 'unregistered' OR public_key NOT IN ({marks})", tuple(known))
        except sqlite3.Error as problem:
            raise UserError(f"{book} cannot be changed ({problem}): it holds nothing that the run needs, remove it.") from None

    def _register(self) -> None:
        """Every *.pub is a node that may connect; no other may."""
        keys = self._keys()
        for key in keys:
            done = self._flwr("supernode", "register", str(key), "here", "--format", "json")
            if done.returncode and "already" not in (done.stdout + done.stderr).lower():
                raise UserError(f"node key {key} was not accepted: {(done.stdout + done.stderr).strip()[-300:]}")
        say(f"{len(keys)} node keys are registered: {', '.join(k.stem for k in keys)}.")

    def _play(self, link: subprocess.Popen[bytes]) -> int:
        """Submit the run and follow it to its end."""
        config = self.home / "run-config.toml"
        write_text(config, toml(self._run_config()))
        done = self._flwr("run", str(self.home / "app"), "here", "--run-config", str(config), "--format", "json")
        try:
            run_id = str(json.loads(done.stdout[done.stdout.index("{") :])["run-id"])
        except (ValueError, KeyError):
            raise UserError(f"Flower did not take the run: {(done.stdout + done.stderr).strip()[-500:]}") from None
        say(f"run {run_id} is submitted; files: {self.folder}")
        seen = self._seen()
        while link.poll() is None:
            self._tell(seen)
            facts = self._facts(run_id)
            if str(facts.get("status", "")).startswith("finished"):
                self._tell(seen)
                return self._end(facts)
            time.sleep(2)
        say(f"the SuperLink ended with {link.returncode}; see {self.folder / 'superlink.log'}.")
        return EXIT_FAILED

    def _facts(self, run_id: str) -> dict[str, Any]:
        done = self._flwr("ls", "here", "--run-id", run_id, "--format", "json")
        with suppress(ValueError, KeyError, IndexError):
            runs = json.loads(done.stdout[done.stdout.index("{") :])["runs"]
            return dict(runs[0])
        return {}

    def _seen(self) -> list[str]:
        """The whole lines of metrics.jsonl; a run may just be writing the last one."""
        path = self.folder / "metrics.jsonl"
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []

    def _tell(self, seen: list[str]) -> None:
        """Pass on what is new in metrics.jsonl: evaluations, and every client that was left out and why."""
        from hyperfed.report.live import describe

        lines = self._seen()
        same = next((i for i, (old, new) in enumerate(zip(seen, lines, strict=False)) if old != new), min(len(seen), len(lines)))
        seen[:] = lines  # a resumed run cuts the file back
        for text in lines[same:]:
            with suppress(ValueError):
                line = json.loads(text)
                say(f"round {line['round']}: {describe(line) if 'before' in line else line.get('message', '')}")

    def _end(self, facts: dict[str, Any]) -> int:
        from hyperfed.flower_apps import FAILURE

        traffic = facts.get("network-traffic", {})
        write_text(self.folder / "traffic.json", json.dumps({"status": facts.get("status"), "network-traffic": traffic}) + "\n")
        why = self.folder / FAILURE
        if facts["status"] == "finished:completed" and not why.exists():
            say(f"done; Flower counted {traffic}.")
            return 0
        say(f"failed: {why.read_text(encoding='utf-8').strip() if why.exists() else facts.get('status-details') or facts['status']}")
        return EXIT_FAILED
