# SPDX-License-Identifier: Apache-2.0
"""The cluster's certificates: one CA made by `init`, one certificate per node.

Data in: names, ids, signing requests. Data out: PEM files in a node's certificate directory (mode 0600, written whole or not at all, on
disk before the call returns). Keys are EC P-256. The CA lasts 10 years, a node's certificate one; both begin a day in the past, so that a
clock that is off by less does no harm. The cryptography package is imported only when something is made: a running agent never does,
it has `python -m plait.store.pki sign` do so in a process that ends (`sign_in_child`).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from plait.model.addr import IPAddress
from plait.model.errors import ConfigError, Conflict, NotFound, StoreUnavailable
from plait.store.files import write_file
from plait.store.tls import CA_CERT, CA_KEY, ID_URI, NODE_CERT, NODE_KEY

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

CA_DAYS, NODE_DAYS = 3653, 366
_BACK = datetime.timedelta(days=1)
_SIGN_TIMEOUT = 15.0
"""Seconds for the signing process; it imports cryptography first."""
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


def check_identity(node_name: str, node_id: str) -> None:
    """Raise ConfigError unless both are fit for a certificate (a DNS label, RFC 1123; an id of letters, digits and dashes)."""
    if not _NAME.fullmatch(node_name):
        raise ConfigError("node name", node_name, "is no DNS label", "use 1 to 63 letters, digits and dashes")
    if not _ID.fullmatch(node_id):
        raise ConfigError("node id", node_id, "is no id", "use 1 to 64 letters, digits and dashes")


def init_cluster(directory: Path, node_name: str, node_id: str, address: IPAddress, now: datetime.datetime | None = None) -> None:
    """Make the CA and the first node's certificate in `directory`. Raises Conflict if there is a CA already."""
    check_identity(node_name, node_id)
    if (directory / CA_CERT).exists() or (directory / CA_KEY).exists():
        raise Conflict(f"make a cluster CA in {directory}: one is there already; `plait down --purge` removes it with the whole cluster")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "plait cluster CA")])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _valid(x509.CertificateBuilder(), CA_DAYS, now)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(directory / CA_KEY, _key_pem(key))
    write_file(directory / CA_CERT, _pem(certificate))
    csr = make_csr(directory)
    write_file(directory / NODE_CERT, sign_csr(directory, csr, node_name, node_id, address, now))


def make_csr(directory: Path) -> bytes:
    """A new node key in `directory`, and the PEM signing request for it. The request names nobody: who signs says who it is for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(directory / NODE_KEY, _key_pem(key))
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def sign_csr(
    ca_directory: Path, csr: bytes, node_name: str, node_id: str, address: IPAddress | None = None, now: datetime.datetime | None = None
) -> bytes:
    """The PEM certificate of node `node_name` for the key in `csr`, signed by the CA in `ca_directory`.

    Raises ConfigError for a bad request or name, NotFound if the CA key is not here.
    """
    check_identity(node_name, node_id)
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    public_key = _requested_key(csr)
    key, authority = _load_ca(ca_directory)
    names: list[x509.GeneralName] = [x509.DNSName(node_name), x509.UniformResourceIdentifier(ID_URI + node_id)]
    if address is not None:
        names.append(x509.IPAddress(address))
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _valid(x509.CertificateBuilder(), NODE_DAYS, now)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_name)]))
        .issuer_name(authority.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate)


async def sign_in_child(ca_directory: Path, csr: bytes, node_name: str, node_id: str) -> bytes:
    """`sign_csr` in a process of its own, which ends with it: neither the CA key nor cryptography stay in the agent's memory."""
    check_identity(node_name, node_id)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "plait.store.pki", "sign", str(ca_directory), node_name, node_id,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_SIGN_TIMEOUT):
            out, err = await process.communicate(csr)
    except TimeoutError as error:
        raise StoreUnavailable(f"sign the certificate of {node_name}: no answer within {_SIGN_TIMEOUT:.0f} s; try again") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        why = err.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise ConfigError("signing request", node_name, f"was not signed: {why}")
    return out


def _requested_key(csr: bytes) -> EllipticCurvePublicKey:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        request = x509.load_pem_x509_csr(csr)
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError) as error:
        raise ConfigError("signing request", csr[:40], f"cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1) or not proven:
        raise ConfigError("signing request", csr[:40], "is not signed by an EC P-256 key of its own")
    return key


def _load_ca(directory: Path) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key((directory / CA_KEY).read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((directory / CA_CERT).read_bytes())
    except (OSError, ValueError) as error:
        raise NotFound(f"sign with the CA in {directory}: {error}; certificates are made on the node that ran `plait init`") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NotFound(f"sign with the CA in {directory}: {CA_KEY} is no EC key; put the right file back")
    return key, certificate


def _valid(builder: x509.CertificateBuilder, days: int, now: datetime.datetime | None) -> x509.CertificateBuilder:
    start = (now or datetime.datetime.now(datetime.UTC)) - _BACK
    return builder.not_valid_before(start).not_valid_after(start + datetime.timedelta(days=days))


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def main(arguments: list[str]) -> None:
    """`sign DIR NODE_NAME NODE_ID`: the signing request on standard input, the certificate on standard output."""
    match arguments:
        case ["sign", directory, node_name, node_id]:
            sys.stdout.buffer.write(sign_csr(Path(directory), sys.stdin.buffer.read(65536), node_name, node_id))
        case _:
            raise SystemExit("usage: python -m plait.store.pki sign DIR NODE_NAME NODE_ID < request")


if __name__ == "__main__":
    main(sys.argv[1:])
