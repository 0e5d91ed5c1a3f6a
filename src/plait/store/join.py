# SPDX-License-Identifier: Apache-2.0
"""The joining host's side: from a token to a certificate.

Data in: the address of a cluster's first node, a token, this node's name and id. Data out: `ca.crt`, `node.crt` and `node.key` in the
node's certificate directory, and where the store is. Nothing secret is sent before the CA has been checked against the token's pin.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from plait.model.errors import ConfigError, Conflict, StoreUnavailable
from plait.store.files import write_file
from plait.store.joinserver import PORT, READ, AskCa, Ca, Join, Joined, Refused, join_client_decoder
from plait.store.peek import Peek, Peeked
from plait.store.pki import check_identity, make_csr
from plait.store.protocol import Frames, Message, ProtocolError, frame
from plait.store.tls import CA_CERT, NODE_CERT, ca_pin, reason_of, ssl_context_joiner
from plait.store.token import Token, parse_token

TIMEOUT = 20.0
"""Seconds for one of the two steps."""

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of what a cluster shows of itself."""
_Answer = Ca | Joined | Refused | Peeked


@dataclass(frozen=True, slots=True)
class JoinResult:
    """Where the store is, and what else the cluster tells a new node."""

    store_host: str
    store_port: int
    info: Mapping[str, str]


def split_address(text: str, default_port: int) -> tuple[str, int]:
    """("host", port) of "host" or "host:port"; an IPv6 address alone, or in brackets before a port. Raises ConfigError."""
    host, port = _parts(text.strip(), str(default_port))
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ConfigError(
            "address", text, "is no HOST or HOST:PORT", f"give the first node's address, for example 192.0.2.1:{default_port}"
        )
    return host, int(port)


def _parts(text: str, default_port: str) -> tuple[str, str]:
    """Host and port of `text`; "" as the host of what has too many colons."""
    inside, bracket, rest = text.removeprefix("[").partition("]")
    if text.startswith("[") and bracket:
        return inside, rest.removeprefix(":") if rest.startswith(":") else default_port if not rest else ""
    with contextlib.suppress(ValueError):
        return str(IPv6Address(text)), default_port
    host, colon, port = text.rpartition(":")
    return ("", port) if ":" in host else (host, port) if colon else (text, default_port)


async def join_cluster(address: str, token: str, node_name: str, node_id: str, directory: Path) -> JoinResult:
    """Join by the node at `address` ("host" or "host:port"). Raises ConfigError, Conflict or StoreUnavailable; then nothing was joined.

    A directory that holds a certificate already is left alone (Conflict).
    """
    check_identity(node_name, node_id)
    parsed = parse_token(token)
    host, port = split_address(address, PORT)
    if (directory / NODE_CERT).exists():
        raise Conflict(f"join {address}: {directory} holds a certificate already; `plait down --purge` leaves that cluster first")
    ca = await _pinned_ca(host, port, parsed)
    csr = make_csr(directory)
    request = Join(parsed.id, parsed.secret, csr, node_name, node_id)
    [answer] = await _ask(host, port, ssl_context_joiner(ca), request)
    if isinstance(answer, Refused):
        raise Conflict(answer.text)
    if not isinstance(answer, Joined):
        raise _closed(host, port)
    store_host, store_port = split_address(answer.store, PORT)
    write_file(directory / CA_CERT, ssl.DER_cert_to_PEM_cert(ca).encode())
    write_file(directory / NODE_CERT, answer.certificate)
    return JoinResult(store_host, store_port, answer.info)


async def peek_cluster(address: str, token: str) -> dict[str, bytes]:
    """What of the cluster of `token` may conflict with another one (`peek.SHOWN`), by key. The token stays good. Raises as `join_cluster`
    does."""
    parsed = parse_token(token)
    host, port = split_address(address, PORT)
    ca = await _pinned_ca(host, port, parsed)
    parts = await _ask(host, port, ssl_context_joiner(ca), Peek(parsed.id, parsed.secret))
    if not all(isinstance(part, Peeked) for part in parts):
        raise _closed(host, port)
    return dict(item for part in parts if isinstance(part, Peeked) for item in part.items)


async def _pinned_ca(host: str, port: int, token: Token) -> bytes:
    """The CA certificate (DER) that the token vouches for."""
    [answer] = await _ask(host, port, ssl_context_joiner(None), AskCa(token.id))
    if not isinstance(answer, Ca):
        raise _closed(host, port)
    if not hmac.compare_digest(ca_pin(answer.der), token.pin):
        raise ConfigError(
            "token", token.id, f"is not of the cluster that answers at {host}:{port}",
            "check the address; if it is right, somebody else answers in its place: nothing secret was sent",
        )  # fmt: skip
    return answer.der


async def _ask(host: str, port: int, context: ssl.SSLContext, request: Message) -> list[_Answer | None]:
    """The answer to `request` on a connection of its own, in its parts; None if the server closes without one, or before the last."""
    where = f"join server at {host}:{port}"
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="plait")
            try:
                writer.write(frame(request))
                return await _parts_of(reader)
            finally:
                writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            "join server", f"{host}:{port}", f"is not of the token's cluster ({error.verify_message})", "check the address"
        ) from error
    except ProtocolError as error:
        raise ConfigError("join server", f"{host}:{port}", f"does not speak plait's protocol ({error})", "check the address") from error
    except (ConnectionResetError, ssl.SSLError):
        return [None]
    except TimeoutError as error:
        raise StoreUnavailable(f"{where}: no answer within {TIMEOUT:.0f} s; is its agent running and the port open?") from error
    except OSError as error:
        raise StoreUnavailable(f"{where}: {reason_of(error)}; is its agent running and the port open?") from error


async def _parts_of(reader: asyncio.StreamReader) -> list[_Answer | None]:
    frames, found, size = Frames(join_client_decoder), list[_Answer | None](), 0
    while True:
        data = await reader.read(READ)
        size += len(data)
        if size > MAX_ANSWER:
            raise ProtocolError(f"an answer of more than {MAX_ANSWER} bytes")
        found += frames.feed(data)
        if not data:
            return [None]
        if found and not (isinstance(found[-1], Peeked) and found[-1].more):
            return found


def _closed(host: str, port: int) -> ConfigError:
    return ConfigError(
        "join server", f"{host}:{port}", "closed the connection: the token is wrong, expired or used",
        "make a new one with `plait token create` on a node of the cluster",
    )  # fmt: skip
