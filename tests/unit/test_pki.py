# SPDX-License-Identifier: Apache-2.0
"""Certificates: what is in them, who signs, and that a running agent never loads the cryptography package."""

from __future__ import annotations

import datetime
import os
import stat
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from plait.model.errors import ConfigError, Conflict, NotFound
from plait.store.pki import init_cluster, make_csr, sign_csr, sign_in_child
from plait.store.tls import ca_pin, cluster_pin, der_of, ssl_context_client, ssl_context_server


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    init_cluster(tmp_path / "pki", "A", "id-a", ip_address("192.0.2.1"))
    return tmp_path / "pki"


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_cluster_has_a_ca_and_a_first_node(pki: Path) -> None:
    ca, node = load(pki / "ca.crt"), load(pki / "node.crt")
    node.verify_directly_issued_by(ca)
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    assert abs(now - day - node.not_valid_before_utc) < day / 24 and 360 * day < node.not_valid_after_utc - now < 370 * day
    assert 3640 * day < ca.not_valid_after_utc - now < 3660 * day
    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["A"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["plait:node:id-a"]
    assert isinstance(node.public_key(), ec.EllipticCurvePublicKey)
    for file in pki.iterdir():
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert sorted(file.name for file in pki.iterdir()) == ["ca.crt", "ca.key", "node.crt", "node.key"]


def test_a_second_cluster_in_the_same_place_is_refused(pki: Path) -> None:
    before = (pki / "ca.key").read_bytes()
    with pytest.raises(Conflict, match="already"):
        init_cluster(pki, "A", "id-a", ip_address("192.0.2.1"))
    assert (pki / "ca.key").read_bytes() == before


def test_a_request_is_signed_for_the_name_that_the_signer_says(pki: Path, tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(sign_csr(pki, make_csr(tmp_path / "b"), "B", "id-b"))
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == ["B"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_bad_requests_and_names_are_refused(pki: Path, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    foreign = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    for request in (b"", b"junk", foreign.public_bytes(serialization.Encoding.PEM)):
        with pytest.raises(ConfigError, match="signing request"):
            sign_csr(pki, request, "B", "id-b")
    good = make_csr(tmp_path / "b")
    for name, node_id in (("", "i"), ("a.b", "i"), ("-a", "i"), ("a" * 64, "i"), ("a\n", "i"), ("a", ""), ("a", "i/j")):
        with pytest.raises(ConfigError):
            sign_csr(pki, good, name, node_id)
    with pytest.raises(NotFound, match="plait init"):
        sign_csr(tmp_path, good, "B", "id-b")


async def test_signing_in_a_child_gives_the_same_and_tells_why_not(pki: Path, tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(await sign_in_child(pki, make_csr(tmp_path / "b"), "B", "id-b"))
    certificate.verify_directly_issued_by(load(pki / "ca.crt"))
    with pytest.raises(ConfigError, match="cannot be read"):
        await sign_in_child(pki, b"junk", "B", "id-b")


def test_the_pin_is_that_of_the_ca(pki: Path) -> None:
    der = load(pki / "ca.crt").public_bytes(serialization.Encoding.DER)
    assert cluster_pin(pki) == ca_pin(der) == ca_pin(der_of((pki / "ca.crt").read_text())) and len(ca_pin(der)) == 43


def test_missing_certificates_are_said_so(tmp_path: Path) -> None:
    for make in (ssl_context_server, ssl_context_client):
        with pytest.raises(ConfigError, match="plait join"):
            make(tmp_path)


def test_a_running_agent_does_not_load_cryptography(pki: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import plait.store.server, plait.store.remote, plait.store.sqlite, plait.store.replica,"
        "plait.store.joinserver, plait.store.tls as t; t.ssl_context_server(Path(sys.argv[1])); assert 'cryptography' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(pki)], check=True, timeout=30)
