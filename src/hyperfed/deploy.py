"""``hyperfed deploy``: a SuperLink and SuperNodes of Flower with TLS and node keys, started, watched and stopped."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from hyperfed.arguments import parse
from hyperfed.core import UserError, invalid
from hyperfed.processes import Stopped, free_port, say, start, stop, stopping
from hyperfed.run.build import import_flower


def main(arguments: Sequence[str]) -> int:
    """``hyperfed deploy certs|server|client``; returns the exit code."""
    parser = argparse.ArgumentParser("hyperfed deploy", description="A real federation on Flower, with TLS and node keys: docs/deploy.md.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    certs = commands.add_parser("certs", help="make a certificate authority, the server's certificate and clients' keys")
    certs.add_argument("folder", type=Path)
    certs.add_argument("--name", action="append", default=[], help="host name or address by which clients reach the server")
    certs.add_argument("--clients", type=int, default=2, help="how many client machines (default: 2)")
    server = commands.add_parser("server", help="start the server and play a run; go on with it where its folder holds a part of it")
    server.add_argument("--dir", type=Path, required=True, help="the run's folder")
    server.add_argument("--certs", type=Path, required=True, help="ca.crt, server.pem, server.key and the clients' *.pub")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: 127.0.0.1)")
    server.add_argument("--port", type=int, default=9500)
    server.add_argument("overrides", nargs="*", help="settings of the run, as for 'hyperfed run'")
    client = commands.add_parser("client", help="start a client machine and keep it running")
    client.add_argument("--server", required=True, metavar="HOST:PORT")
    client.add_argument("--ca", type=Path, required=True, help="ca.crt")
    client.add_argument("--key", type=Path, required=True, help="this machine's private key, client-<i>")
    client.add_argument("--clients", required=True, help="numbers of the clients hosted here: 3 or 0,1,2,3")
    client.add_argument("--state-dir", type=Path, required=True, help="where personal states are kept; never sent")
    client.add_argument("--data", type=Path, help="this client's own images; without it, its share of the run's data set")
    client.add_argument("--data-root", type=Path, help="folder of the run's data set")
    client.add_argument("--data-cache", type=Path)
    client.add_argument("--device", default="", help="auto, cpu, cuda")
    known = parse(parser, arguments, "overrides")
    import_flower()
    if known.command == "certs":
        from hyperfed.certs import make_certs

        make_certs(known.folder, known.name, known.clients)
        print(f"{known.folder}: keep ca.key and server.key here; give each client machine ca.crt and its own client-<i>.")  # noqa: T201
        return 0
    with stopping():
        if known.command == "client":
            return run_client(known)
        from hyperfed.deploy_server import Server

        return Server(known).run()


def run_client(known: argparse.Namespace) -> int:
    """A SuperNode that is started again whenever it ends: after a crash the server keeps its key taken for up to a minute."""
    pause, state = 2.0, known.state_dir.absolute()
    try:
        node = check_client(known)
        config = " ".join(f'{name}="{_escaped(value)}"' for name, value in node.items())
        command = ["flower-supernode", "--superlink", known.server, "--root-certificates", str(known.ca.absolute())]
        command += ["--auth-supernode-private-key", str(known.key.absolute()), "--node-config", config]
        while True:
            began = time.monotonic()
            process = start([*command, "--port", str(free_port())], state / "flower", state / "supernode.log")
            say(f"the SuperNode for clients {known.clients} runs as process {process.pid}.")
            try:
                code = process.wait()
            finally:
                stop(process)
            pause = 2.0 if time.monotonic() - began > 60 else min(2 * pause, 30.0)
            say(f"the SuperNode ended with {code}; see {state / 'supernode.log'}. It starts again in {pause:.0f} s.")
            time.sleep(pause)
    except Stopped:
        say("stopped.")
        return 0


def _escaped(value: str) -> str:
    """The inside of a TOML string; Flower looks for its end by the next quotation mark, even an escaped one."""
    return json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', "\\u0022")


def check_client(known: argparse.Namespace) -> dict[str, str]:
    """The node config; what can be wrong with it is said here, not first when the server asks. Raises UserError."""
    from hyperfed.certs import check_machine
    from hyperfed.run.build import choose_device
    from hyperfed.run.flower import check_own, client_numbers

    host, _, port = known.server.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 2**16):
        raise invalid("--server", known.server, "HOST:PORT, such as fed.example.org:9500")
    for path in (known.ca, known.key):
        if not path.is_file():
            raise UserError(f"{path} is missing.")
    check_machine(known.ca, known.key)
    hosted = client_numbers(known.clients)
    if known.data:
        check_own(known.data, hosted)
    if known.data_root and not known.data_root.is_dir():
        raise invalid("--data-root", str(known.data_root), "the folder of the run's data set")
    if known.device:
        choose_device(known.device)
    state = known.state_dir.absolute()
    try:
        (state / "flower").mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"--state-dir = {str(state)!r} cannot be made: {problem.strerror}.") from None
    folders = {"data": known.data, "data-root": known.data_root, "data-cache": known.data_cache}
    node = {"clients": known.clients, "state-dir": str(state), "device": known.device}
    return {name: value for name, value in node.items() if value} | {n: str(f.absolute()) for n, f in folders.items() if f}
