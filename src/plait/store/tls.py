# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of a node from its certificate directory, and what is read from certificates without the cryptography package.

Data in: the directory's files `ca.crt`, `node.crt`, `node.key` (PEM). Data out: `ssl.SSLContext`s that know the cluster's CA only, TLS 1.3
only. A peer is who holds a certificate of this CA; host names and addresses are not looked at, since nodes may change theirs.
"""

from __future__ import annotations

import asyncio.sslproto
import base64
import hashlib
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from plait.model.errors import ConfigError, StoreUnavailable

CA_CERT, CA_KEY, NODE_CERT, NODE_KEY = "ca.crt", "ca.key", "node.crt", "node.key"
ID_URI = "plait:node:"
"""A node certificate holds its name as DNS name and its id as URI with this prefix."""
TLS_BUFFER = 16 * 1024
"""Bytes that asyncio reads from TLS at once: one record (RFC 8446, 5.1). Its own default of 256 KiB costs that much per connection."""


def shrink_tls_buffers() -> None:
    """Have asyncio's TLS connections take `TLS_BUFFER` bytes each instead of 256 KiB. Idempotent; a test guards that the knob exists."""
    asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER


def reason_of(error: OSError) -> str:
    """Why a connection failed, in the system's words ("No route to host"), for which asyncio puts "Connect call failed"."""
    if error.errno is None or isinstance(error, socket.gaierror | ssl.SSLError):
        return error.strerror or str(error)
    return os.strerror(error.errno)


def ssl_context_server(directory: Path) -> ssl.SSLContext:
    """For serving agents: a peer without a certificate of this cluster does not get past the handshake.

    No session tickets and no list of accepted CAs are sent: nothing follows the handshake before the peer is known.
    """
    context = _server(directory)
    context.verify_mode = ssl.CERT_REQUIRED
    _load(lambda: context.load_verify_locations(directory / CA_CERT), directory)
    return context


def ssl_context_join_server(directory: Path) -> ssl.SSLContext:
    """For serving joiners, who have no certificate yet: shows the node's own, asks for none."""
    return _server(directory)


def ssl_context_client(directory: Path) -> ssl.SSLContext:
    """For an agent that connects to the store: shows its certificate, wants one of the same cluster."""
    context = _client()
    _load(lambda: context.load_verify_locations(directory / CA_CERT), directory)
    _load(lambda: context.load_cert_chain(directory / NODE_CERT, directory / NODE_KEY), directory)
    return context


def ssl_context_joiner(ca_der: bytes | None) -> ssl.SSLContext:
    """For a joiner: trusts the CA it has pinned, or anybody (None) for the one question what the CA is."""
    context = _client()
    if ca_der is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=ca_der)
    return context


def _server(directory: Path) -> ssl.SSLContext:
    shrink_tls_buffers()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    _load(lambda: context.load_cert_chain(directory / NODE_CERT, directory / NODE_KEY), directory)
    return context


def _client() -> ssl.SSLContext:
    shrink_tls_buffers()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(load: Callable[[], None], directory: Path) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        raise ConfigError(
            "certificates", str(directory), f"cannot be used: {error}", "run `plait init` on the first node or `plait join` on the others"
        ) from error


def der_of(pem: str) -> bytes:
    """The DER bytes of a PEM certificate. Raises ValueError."""
    return ssl.PEM_cert_to_DER_cert(pem)


def ca_pin(der: bytes) -> str:
    """SHA-256 of a CA certificate's DER as unpadded base64url, as tokens carry it."""
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


def cluster_pin(directory: Path) -> str:
    """The pin of the cluster that this node belongs to. Raises StoreUnavailable if the node has no CA certificate."""
    try:
        return ca_pin(der_of((directory / CA_CERT).read_text()))
    except (OSError, ValueError) as error:
        raise StoreUnavailable(
            f"read the cluster's CA certificate in {directory}: {error}; run `plait init` or `plait join` first"
        ) from error


def peer_identity(peer: ssl.SSLObject | ssl.SSLSocket) -> tuple[str, str]:
    """(node name, node id) in the verified certificate of the other side; "" for what is not there."""
    certificate = peer.getpeercert() or {}
    name = node_id = ""
    for entry in certificate.get("subjectAltName", ()):
        match entry:
            case ("DNS", str(value)):
                name = value
            case ("URI", str(value)) if value.startswith(ID_URI):
                node_id = value.removeprefix(ID_URI)
    return name, node_id
