"""What ``hyperfed deploy`` says before it starts anything. The deployments themselves: test_deploy.py."""

import argparse
import json
import os
import socket
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from flwr.cli.supernode.register import try_load_public_key
from flwr.common.config import parse_config_args
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

import hyperfed.deploy
import hyperfed.deploy_server
from hyperfed.certs import make_certs
from hyperfed.cli import main
from hyperfed.core import UserError
from hyperfed.core.files import lock
from hyperfed.deploy_server import Server, toml
from hyperfed.processes import Stopped

SETTINGS = ["model=mlp", "num_clients=2", "participation=1"]


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Certificates; and nothing may be started."""

    def start(command: list[str], *rest: Any) -> None:
        pytest.fail(f"{command[0]} was started")

    monkeypatch.setattr(hyperfed.deploy, "start", start)
    monkeypatch.setattr(hyperfed.deploy_server, "start", start)
    make_certs(tmp_path / "keys", [], 1)
    return tmp_path / "keys"


def server(keys: Path, *overrides: str, host: str = "127.0.0.1", port: int = 9, folder: str = "run") -> Server:
    return Server(argparse.Namespace(dir=keys.parent / folder, certs=keys, host=host, port=port, overrides=[*SETTINGS, *overrides]))


def client(keys: Path, *arguments: str) -> list[str]:
    state = str(keys.parent / "state")
    where = ["deploy", "client", "--server", "localhost:9", "--ca", str(keys / "ca.crt"), "--key", str(keys / "client-0")]
    return [*where, "--clients", "0", "--state-dir", state, *arguments]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--clients", "abc"], "clients = 'abc' is not valid: must be client numbers such as '0,3'."),
        (["--clients", "0-3"], "clients = '0-3' is not valid"),
        (["--data", "/nonexistent"], "data '/nonexistent' is not a folder."),
        (["--data", "/tmp", "--clients", "0,1"], "data '/tmp' is one client's, but clients [0, 1] are hosted here: name one."),
        (["--data-root", "/nonexistent"], "--data-root = '/nonexistent' is not valid"),
        (["--device", "gpu"], "device = 'gpu' is not valid"),
        (["--server", "nowhere"], "--server = 'nowhere' is not valid: must be HOST:PORT"),
        (["--server", "localhost:²"], "--server = 'localhost:²' is not valid: must be HOST:PORT"),
        (["--server", "localhost:0"], "--server = 'localhost:0' is not valid"),
        (["--server", "localhost:65536"], "--server = 'localhost:65536' is not valid"),
        (["--key", "/dev/null"], "/dev/null is missing."),
        (["--key", __file__], f"{__file__} cannot be read as a machine's private key"),
        (["--ca", __file__], f"{__file__} cannot be read as a certificate"),
        (["--key", "/nonexistent"], "/nonexistent is missing."),
        (["--state-dir", "/dev/null/state"], "--state-dir = '/dev/null/state' cannot be made: Not a directory."),
    ],
)
def test_a_clients_mistakes_are_told_at_once(arguments: list[str], sentence: str, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(client(keys, *arguments)) == 2
    assert capsys.readouterr().err.startswith(f"hyperfed: {sentence}")


def test_flower_reads_the_node_config_as_it_was_meant(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths with blanks, quotes and letters of other alphabets, too."""
    state, data = keys.parent / 'Jürgen\'s "state" \\ 😀', keys.parent / "a=b, c"
    data.mkdir()
    started: list[list[str]] = []

    def start(command: list[str], *rest: Any) -> None:
        started.append(command)
        raise Stopped

    monkeypatch.setattr(hyperfed.deploy, "start", start)
    assert main(client(keys, "--state-dir", str(state), "--data", str(data), "--device", "cpu")) == 0
    config = started[0][started[0].index("--node-config") + 1]
    assert parse_config_args([config]) == {"clients": "0", "state-dir": str(state), "device": "cpu", "data": str(data)}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["method=centre"], "method 'centre' pools the data of all clients: it cannot be deployed."),
        (["method=fedavg", "privacy=client_dp"], "privacy.secret = False is not valid: must be true in a deployment"),
        (["method=fedavg", "privacy=secagg"], "privacy=secagg has its handshake simulated"),
        (["dataset=mnist", "data.root=/nonexistent"], "data"),
        (["roundz=3"], "field 'roundz' unknown"),
    ],
)
def test_mistakes_in_the_settings_are_told_before_the_server_starts(
    settings: list[str], sentence: str, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = keys.parent / "run"
    assert main(["deploy", "server", "--dir", str(folder), "--certs", str(keys), *SETTINGS, *settings]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hyperfed: {sentence}") and said.count("\n") == 1
    assert not (folder / "run.json").exists() and not (folder / "experiment.json").exists()


def test_certificates_are_checked_for_the_address_before_the_server_starts(keys: Path) -> None:
    with pytest.raises(UserError, match=r"server\.pem does not stand for 127\.0\.0\.2"):
        server(keys, host="127.0.0.2").run()


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0", "::", "localhost"])
def test_the_server_finds_itself_where_it_listens(host: str, keys: Path) -> None:
    (keys / "server.pem").unlink()
    make_certs(keys, ["127.0.0.2"], 1)
    made = server(keys, host=host, folder="Jürgen's, (1)")
    made._prepare()
    there = {"0.0.0.0": "127.0.0.1:9", "::": "[::1]:9"}.get(host, f"{host}:9")
    config = tomllib.loads((made.home / "config.toml").read_text(encoding="utf-8"))
    assert config["superlink"]["here"] == {"address": there, "root-certificates": str(keys / "ca.crt")}
    assert tomllib.loads(toml(made._run_config()))["run"]["dir"] == str(keys.parent / "Jürgen's, (1)")


def test_a_folder_has_one_server(keys: Path) -> None:
    with server(keys)._alone(), pytest.raises(UserError, match="is in use: another `hyperfed deploy server` plays this run"):
        server(keys).run()
    with server(keys)._alone():
        pass


def test_a_server_waits_until_the_run_of_one_that_was_killed_has_ended(keys: Path) -> None:
    """Else its own run would be refused, and what the old one says as it ends be taken for its own."""
    new = server(keys)
    new.folder.mkdir(parents=True, exist_ok=True)
    held = lock(new.folder / ".run.lock")
    assert held is not None
    with pytest.raises(UserError, match="is in use by another process"):
        new._await_folder(seconds=0)
    ended = threading.Timer(1.0, os.close, [held])
    ended.start()
    new._await_folder()
    assert not ended.is_alive()
    again = lock(new.folder / ".run.lock")
    assert again is not None, "the server keeps nothing: the folder is its run's"
    os.close(again)


def test_a_folder_with_another_run_is_refused_before_the_server_starts(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = keys.parent / "run"
    folder.mkdir()
    (folder / "run.json").write_text('{"identity": "0123456789abcdef"}')
    assert main(["deploy", "server", "--dir", str(folder), "--certs", str(keys), *SETTINGS]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hyperfed: --dir '{folder}' holds another run (identity 0123456789abcdef, ") and said.count("\n") == 1


def test_a_port_has_one_server(keys: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(UserError, match=rf"--host {host} --port {port} cannot be listened on: Address already in use"):
                server(keys, host=host, port=port)._await_port(seconds=0)
    server(keys, port=port)._await_port(seconds=0)
    with pytest.raises(UserError, match="cannot be listened on: Cannot assign requested address"):
        server(keys, host="192.0.2.1", port=port)._await_port()
    for wrong in (70000, 0, -1):
        with pytest.raises(UserError, match=f"--port = {wrong} is not valid: must be from 1 to 65535"):
            server(keys, port=wrong)


@pytest.mark.parametrize("host", ["", ".x", "a" * 300, "a b", "127.0.0.1:80"])
def test_what_is_no_host_cannot_be_listened_on(host: str, keys: Path) -> None:
    with pytest.raises(UserError, match=r"--host = .* is not valid: must be a host name"):
        server(keys, host=host)


def test_a_stop_while_the_settings_are_checked_is_a_stop(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise Stopped

    monkeypatch.setattr(hyperfed.run.flower, "check_deployable", interrupted)
    assert server(keys).run() == 130


def test_a_server_that_does_not_answer_says_what_happened_last(keys: Path) -> None:
    link: Any = argparse.Namespace(poll=lambda: None)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"does not answer on 127\.0\.0\.1:\d+ \(.*Connection refused\); see .*superlink\.log"):
            server(keys, port=taken.getsockname()[1])._wait_healthy(link, seconds=0.1)


@pytest.mark.filterwarnings("ignore:No path_separator found in configuration:DeprecationWarning")  # of what Flower's book is made with
def test_a_key_that_was_taken_out_may_connect_no_more(keys: Path) -> None:
    """In Flower's own book: who stays keeps the number by which it is connected, and who comes back is taken again."""
    make_certs(keys, [], 3)
    here = server(keys)
    here.home.mkdir(parents=True)
    here._forget()  # no book yet

    path = str(here.home / "superlink.db")
    book = SqlLinkState(path, NoOpFederationManager(), ObjectStoreFactory(path).store())
    book.initialize()
    stored = [try_load_public_key(keys / f"client-{i}.pub") for i in range(3)]
    numbers = [book.create_node("", "", key, 30) for key in stored]
    book.delete_node("", numbers[2])  # by hand, with `flwr supernode unregister`
    away = (keys / "client-1.pub").rename(keys.parent / "client-1.pub")
    here._forget()
    assert [book.get_node_id_by_public_key(key) for key in stored] == [numbers[0], None, None]
    away.rename(keys / "client-1.pub")
    here._forget()
    again = [book.create_node("", "", key, 30) for key in stored[1:]]
    assert [book.get_node_id_by_public_key(key) for key in stored] == [numbers[0], *again]
    (keys / "client-0.pub").write_text("")
    with pytest.raises(UserError, match=r"client-0\.pub cannot be read as a machine's public key"):
        here._forget()
    make_certs(keys.parent / "others", [], 1)
    other = server(keys.parent / "others", folder="other")
    other.home.mkdir(parents=True)
    (other.home / "superlink.db").write_text("nothing")
    with pytest.raises(UserError, match=r"superlink\.db cannot be changed \(file is not a database\)"):
        other._forget()


def test_what_is_new_in_the_metrics_is_told_once(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that is just being written waits for its end; a run that goes on cuts the file back, and may be past its old end already."""

    def line(number: int) -> str:
        return json.dumps({"event": "skipped", "round": number, "client": 0, "message": f"note {number}"}) + "\n"

    here, told = server(keys), []
    here.folder.mkdir()
    metrics, seen = here.folder / "metrics.jsonl", here._seen()
    for text in (
        line(1) + line(2)[:20],
        line(1) + line(2),
        line(1) + "\x00{torn\n",
        line(1) + line(30) + line(4),
        line(1),
        line(1) + line(5) + line(6) + line(7),
    ):
        metrics.write_text(text)
        here._tell(seen)
        told.append([said.split("note ")[1] for said in capsys.readouterr().out.splitlines()])
    assert told == [["1"], ["2"], [], ["30", "4"], [], ["5", "6", "7"]]
