"""Keys of a deployment: a certificate authority, the server's certificate, and one key pair per client machine."""

import ipaddress
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from hyperfed.core import UserError, invalid

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"


def make_certs(folder: Path, names: Sequence[str], clients: int, days: int = 365) -> None:
    """Write ca.crt, ca.key, server.pem, server.key and client-<i>, client-<i>.pub; nothing that is there is overwritten, except that
    where server.pem is missing its key is made anew, too.

    ``names`` are the host names and addresses by which clients reach the server; the loopback ones are always added.
    """
    hosts = [_general_name(name) for name in dict.fromkeys([*names, *LOOPBACK])]
    if clients < 1:
        raise invalid("--clients", clients, "an integer >= 1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"folder {str(folder)!r} cannot be made: {problem.strerror}.") from None
    if (folder / "server.pem").exists() and names:
        raise UserError(f"{folder / 'server.pem'} exists: remove it to make one for {', '.join(names)}.")
    if not (folder / "ca.crt").exists():
        if left := [name for name in ("ca.key", "server.pem") if (folder / name).exists()]:
            raise UserError(
                f"{folder / 'ca.crt'} is missing beside {' and '.join(left)}: copy ca.crt back from a client machine, or remove "
                "ca.key and server.pem, too, for a new authority, whose ca.crt every client machine will need."
            )
        _make_authority(folder, days)
    if not (folder / "server.pem").exists():
        _make_server(folder, hosts, days)
    for i in range(clients):
        if not (folder / f"client-{i}").exists():
            key = ec.generate_private_key(ec.SECP384R1())
            _write(folder / f"client-{i}", key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), secret=True)
            _write(folder / f"client-{i}.pub", key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")


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


def _make_server(folder: Path, hosts: Sequence[x509.GeneralName], days: int) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    signer = _load_key(folder / "ca.key")
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


def _general_name(name: str) -> x509.GeneralName:
    """A host as a certificate names it; a name with letters of other alphabets in the form that DNS knows."""
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    with suppress(UnicodeError):
        host = name.encode("idna").decode().lower()
        if len(host) <= 253 and re.fullmatch(rf"({LABEL}\.)*{LABEL}", host):
            return x509.DNSName(host)
    raise invalid("--name", name, "a host name (parts of at most 63 characters) or an IP address, without a port")


def check_certs(folder: Path, host: str) -> None:
    """One TLS handshake in memory: what ``host`` will show must satisfy whoever trusts ca.crt, today. Raises UserError."""
    now, remedy = datetime.now(UTC), "docs/deploy.md says under 'Renewing certificates' how to make a new one"
    for path in (folder / "ca.crt", folder / "server.pem"):
        try:
            made = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError) as problem:
            raise UserError(f"{path} cannot be read as a certificate: {problem}.") from None
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


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if not path.exists():
        raise UserError(f"{path} is missing: the server's certificate is signed where the authority's key is.")
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600 if secret else 0o644)  # touch leaves the mode of a file that is there
    path.write_bytes(content)
