"""The keys of a deployment: made, made again, and checked before they are used."""

import shutil
import socket
import ssl
import threading
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from hyperfed.certs import check_certs, make_certs
from hyperfed.core import UserError


def test_the_certificates_serve_tls(tmp_path: Path) -> None:
    """A client that trusts ca.crt reaches the server by the names asked for; keys are readable by their owner alone."""
    make_certs(tmp_path, ["fed.example.org"], 2)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    for name in ("fed.example.org", "localhost", "127.0.0.1"):
        a, b = socket.socketpair()
        thread = threading.Thread(target=lambda end=a: server.wrap_socket(end, server_side=True).close())
        thread.start()
        with trusting.wrap_socket(b, server_hostname=name):
            pass
        thread.join()
    for secret in ("ca.key", "server.key", "client-0", "client-1"):
        assert (tmp_path / secret).stat().st_mode & 0o077 == 0
    before = (tmp_path / "client-0").read_bytes()
    make_certs(tmp_path, [], 3)
    assert (tmp_path / "client-0").read_bytes() == before and (tmp_path / "client-2.pub").exists()
    with pytest.raises(UserError, match=r"server\.pem exists"):
        make_certs(tmp_path, ["other.example.org"], 1)


def test_a_name_in_another_alphabet_is_what_dns_calls_it(tmp_path: Path) -> None:
    long = f"{'a' * 60}.{'b' * 60}.example"  # longer than a certificate's common name may be
    make_certs(tmp_path, ["bücher.example", long, "10.0.0.7"], 1)
    for host in ("xn--bcher-kva.example", long, "10.0.0.7", "127.0.0.1", "::1", "localhost"):
        check_certs(tmp_path, host)


@pytest.mark.parametrize("name", ["fed.example.org:9500", "https://fed.example.org", "", "a..b", "-a", "[::1]", "a" * 64, "ä" * 70])
def test_what_is_no_host_is_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--name = .* is not valid: must be a host name"):
        make_certs(tmp_path / "keys", ["fed.example.org", name], 1)
    assert not (tmp_path / "keys").exists()


def test_impossible_wishes_are_one_sentence(tmp_path: Path) -> None:
    for clients in (0, -1):
        with pytest.raises(UserError, match=rf"--clients = {clients} is not valid: must be an integer >= 1"):
            make_certs(tmp_path / "keys", [], clients)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be made"):
            make_certs(folder, [], 1)
    assert not (tmp_path / "keys").exists()


def test_a_lost_authority_is_not_replaced_in_silence(tmp_path: Path) -> None:
    make_certs(tmp_path, [], 1)
    (tmp_path / "ca.crt").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"ca\.crt is missing beside ca\.key and server\.pem: copy ca\.crt back"):
        make_certs(tmp_path, [], 1)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_renewing_keeps_the_authority_and_gives_the_new_key_to_its_owner_alone(tmp_path: Path) -> None:
    make_certs(tmp_path, [], 1)
    authority, key = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "server.key").read_bytes()
    (tmp_path / "server.key").chmod(0o644)
    (tmp_path / "server.pem").unlink()
    make_certs(tmp_path, ["fed.example.org"], 1)
    check_certs(tmp_path, "fed.example.org")
    assert (tmp_path / "ca.crt").read_bytes() == authority and (tmp_path / "server.key").read_bytes() != key
    assert (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600


def test_certificates_that_cannot_serve_are_found_before_the_server_starts(tmp_path: Path) -> None:
    good, other, old = tmp_path / "good", tmp_path / "other", tmp_path / "old"
    make_certs(good, [], 1)
    make_certs(other, [], 1)
    make_certs(old, [], 1, days=0)
    check_certs(good, "127.0.0.1")
    with pytest.raises(UserError, match=r"old/ca\.crt is valid from .* UTC, not now .* 'Renewing certificates'"):
        check_certs(old, "127.0.0.1")
    with pytest.raises(UserError, match=r"does not stand for 10\.0\.0\.1 where ca\.crt is trusted \(IP address mismatch"):
        check_certs(good, "10.0.0.1")
    shutil.copy(other / "server.pem", good)
    with pytest.raises(UserError, match=r"server\.pem and server\.key do not serve TLS"):
        check_certs(good, "127.0.0.1")
    shutil.copy(other / "server.key", good)
    with pytest.raises(UserError, match=r"does not stand for 127\.0\.0\.1 where ca\.crt is trusted"):
        check_certs(good, "127.0.0.1")
    (good / "server.pem").write_text("nothing")
    with pytest.raises(UserError, match=r"server\.pem cannot be read as a certificate"):
        check_certs(good, "127.0.0.1")
