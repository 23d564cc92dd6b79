"""Keys of a deployment: a certificate authority, the server's certificate, and one key pair per client machine."""

import ipaddress
import re
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID

from hyperfed.core import UserError, invalid
from hyperfed.core.files import atomic

T = TypeVar("T")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"


def make_certs(folder: Path, names: Sequence[str], clients: int, days: int = 365) -> None:
    """Write ca.crt, ca.key, server.pem, server.key and client-<i>, client-<i>.pub; nothing that is there is overwritten, except that
    where server.pem is missing its key is made anew, too. What is there must be whole and fit together: UserError names what does not.

    ``names`` are the host names and addresses by which clients reach the server; the loopback ones are always added.
    """
    hosts = [general_name(name, "--name") for name in dict.fromkeys([*names, *LOOPBACK])]
    if clients < 1:
        raise invalid("--clients", clients, "an integer >= 1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"folder {str(folder)!r} cannot be made: {problem.strerror}.") from None
    try:
        _complete(folder, hosts, names, clients, days)
    except OSError as problem:
        raise UserError(f"folder {str(folder)!r} cannot be written: {problem.strerror or problem}.") from None


def _complete(folder: Path, hosts: Sequence[x509.GeneralName], names: Sequence[str], clients: int, days: int) -> None:
    """Check what is there, make what is missing."""
    if (folder / "server.pem").exists() and names:
        raise UserError(f"{folder / 'server.pem'} exists: remove it to make one for {', '.join(names)}.")
    if not (folder / "ca.crt").exists():
        if left := [name for name in ("ca.key", "server.pem") if (folder / name).exists()]:
            raise UserError(
                f"{folder / 'ca.crt'} is missing beside {' and '.join(left)}: copy ca.crt back from a client machine, or remove "
                "ca.key and server.pem, too, for a new authority, whose ca.crt every client machine will need."
            )
        _make_authority(folder, days)
    authority = _certificate(folder / "ca.crt")
    if (folder / "ca.key").exists() and not _same(_key(folder / "ca.key").public_key(), authority.public_key()):
        raise UserError(f"{folder / 'ca.key'} is another authority's key, not that of ca.crt: copy back the one that belongs to it.")
    if not (folder / "server.pem").exists():
        _make_server(folder, authority, hosts, days)
    elif not _same(_key(folder / "server.key").public_key(), _certificate(folder / "server.pem").public_key()):
        raise UserError(f"{folder / 'server.key'} is not the key of server.pem: remove server.pem to have both made anew.")
    for i in range(clients):
        _complete_machine(folder / f"client-{i}", folder / f"client-{i}.pub")


def _complete_machine(private: Path, public: Path) -> None:
    """A machine's pair of keys. Its private one may have been moved to the machine; the public one can be had from it."""
    if not private.exists():
        if public.exists():
            return
        key = ec.generate_private_key(ec.SECP384R1())
        _write(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), secret=True)
    key = _machine(private)
    if not public.exists():
        _write(public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
    elif machine_key(public) != _pem(key.public_key()):
        raise UserError(f"{public} is not the public key of {private.name}: remove it to have it made anew.")


def check_machine(authority: Path, private: Path) -> None:
    """What a client machine was given must be whole. Raises UserError."""
    _certificate(authority)
    _machine(private)


def machine_key(path: Path) -> bytes:
    """A machine's public key, client-<i>.pub, in the form by which Flower knows its node. Raises UserError."""

    def load(content: bytes) -> bytes:
        key = load_ssh_public_key(content)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError
        return _pem(key)

    return _read(path, "a machine's public key", load)


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _same(one: ec.EllipticCurvePublicKey, other: object) -> bool:
    return isinstance(other, ec.EllipticCurvePublicKey) and _pem(one) == _pem(other)


def _make_authority(folder: Path, days: int) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "HyperFed federation")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs certificates and revocations, nothing else
    made = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write(folder / "ca.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), secret=True)
    _write(folder / "ca.crt", made.public_bytes(Encoding.PEM))


def _make_server(folder: Path, authority: x509.Certificate, hosts: Sequence[x509.GeneralName], days: int) -> None:
    if not (folder / "ca.key").exists():
        raise UserError(f"{folder / 'ca.key'} is missing: the server's certificate is signed where the authority's key is.")
    signer = _key(folder / "ca.key")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "HyperFed server")])
    made = (
        _builder(subject, authority.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write(folder / "server.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), secret=True)
    _write(folder / "server.pem", made.public_bytes(Encoding.PEM))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
    )


def general_name(name: str, field: str) -> x509.GeneralName:
    """A host as a certificate names it, given as ``field``; a name with letters of other alphabets in the form that DNS knows."""
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    with suppress(UnicodeError):
        host = name.encode("idna").decode().lower()
        if len(host) <= 253 and re.fullmatch(rf"({LABEL}\.)*{LABEL}", host):
            return x509.DNSName(host)
    raise invalid(field, name, "a host name (parts of at most 63 characters) or an IP address, without a port")


def check_certs(folder: Path, host: str) -> None:
    """One TLS handshake in memory: what ``host`` will show must satisfy whoever trusts ca.crt, today. Raises UserError."""
    now, remedy = datetime.now(UTC), "docs/deploy.md says under 'Renewing certificates' how to make a new one"
    for path in (folder / "ca.crt", folder / "server.pem"):
        made = _certificate(path)
        begin, end = made.not_valid_before_utc, made.not_valid_after_utc
        if not begin <= now <= end:
            raise UserError(f"{path} is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, not now ({now:%H:%M}): {remedy}.")
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(folder / "server.pem", folder / "server.key")
        client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = client.wrap_bio(back, there, server_hostname=host), server.wrap_bio(there, back, server_side=True)
        for one in (*ends, *ends):
            with suppress(ssl.SSLWantReadError):
                one.do_handshake()
    except ssl.SSLCertVerificationError as problem:
        text = problem.verify_message.rstrip(".")
        raise UserError(f"{folder / 'server.pem'} does not stand for {host} where ca.crt is trusted ({text}): {remedy}.") from None
    except OSError as problem:
        raise UserError(f"{folder / 'server.pem'} and server.key do not serve TLS ({problem.strerror}): {remedy}.") from None


def _read(path: Path, what: str, load: Callable[[bytes], T]) -> T:
    """What is in a file. Raises UserError where it is not what it should be."""
    try:
        return load(path.read_bytes())
    except OSError as problem:
        raise UserError(f"{path} cannot be read: {problem.strerror}.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"{path} cannot be read as {what}: copy it back, or remove it and what was made with it.") from None


def _certificate(path: Path) -> x509.Certificate:
    return _read(path, "a certificate", x509.load_pem_x509_certificate)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    return _read(path, "a private key", lambda content: _curve(load_pem_private_key(content, None)))


def _machine(path: Path) -> ec.EllipticCurvePrivateKey:
    return _read(path, "a machine's private key", lambda content: _curve(load_ssh_private_key(content, None)))


def _curve(key: object) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("no key of an elliptic curve")
    return key


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    with atomic(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.chmod(0o600 if secret else 0o644)
        temporary.write_bytes(content)
