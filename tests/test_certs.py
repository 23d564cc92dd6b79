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


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


DAMAGE = {
    "ca.crt": (_cut, r"ca\.crt cannot be read as a certificate"),
    "ca.key": (_cut, r"ca\.key cannot be read as a private key"),
    "server.key": (_cut, r"server\.key cannot be read as a private key"),
    "client-0": (lambda path: path.write_bytes(b""), r"client-0 cannot be read as a machine's private key"),
    "client-0.pub": (_cut, r"client-0\.pub cannot be read as a machine's public key"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    damage, words = DAMAGE[name]
    make_certs(tmp_path, [], 1)
    damage(tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=words):
        make_certs(tmp_path, [], 2)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("name", "words"),
    [("ca.key", "is another authority's"), ("server.key", "is not the key of server.pem"), ("client-0.pub", "is not the public key")],
)
def test_anothers_file_is_named(name: str, words: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        make_certs(folder, [], 1)
    shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    with pytest.raises(UserError, match=f"{name} {words}"):
        make_certs(tmp_path / "a", [], 1)


def test_what_is_missing_is_completed_and_what_is_elsewhere_is_left(tmp_path: Path) -> None:
    """A public key is had from its private one; a private one that was moved to its machine is not made anew."""
    make_certs(tmp_path, [], 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "client-0.pub").unlink()
    (tmp_path / "client-1").unlink()
    make_certs(tmp_path, [], 2)
    del before["client-1"]
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_key_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off while client-0 is written, the next call makes it; no other user could read it meanwhile."""
    write, seen = Path.write_bytes, []

    def cut(path: Path, content: bytes) -> int:
        if "client-0" in path.name:
            seen.append(path.stat().st_mode & 0o777)
            write(path, content[:50])
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut)
        with pytest.raises(KeyboardInterrupt):
            make_certs(tmp_path, [], 1)
    assert seen == [0o600] and not list(tmp_path.glob("*client-0*"))
    make_certs(tmp_path, [], 1)
    assert (tmp_path / "client-0").exists() and (tmp_path / "client-0.pub").exists()
