"""``hyperfed deploy``: a SuperLink and SuperNodes of Flower with TLS and node keys, started, watched and stopped."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from hyperfed.arguments import parse
from hyperfed.core import UserError
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
    for path in (known.ca, known.key):
        if not path.exists():
            raise UserError(f"{path} is missing.")
    state = known.state_dir.absolute()
    node = {"clients": known.clients, "state-dir": str(state), "device": known.device}
    node |= {
        n: str(getattr(known, n.replace("-", "_")).absolute())
        for n in ("data", "data-root", "data-cache")
        if getattr(known, n.replace("-", "_"))
    }
    config = " ".join(f"{name}={json.dumps(value)}" for name, value in node.items() if value)
    command = ["flower-supernode", "--superlink", known.server, "--root-certificates", str(known.ca.absolute())]
    command += ["--auth-supernode-private-key", str(known.key.absolute()), "--node-config", config]
    pause = 2.0
    try:
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
