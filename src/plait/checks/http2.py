# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 checks (RFC 9113): a ping that is acknowledged, and gRPC's health protocol (grpc.health.v1.Health/Check).

One connection and at most one stream per check, so that flow control never matters: requests and answers are some ten bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from plait.checks.dial import CheckFailed, connect, reason, split_host_port, tls_context
from plait.checks.hpack import Decoder, HpackError, encode
from plait.checks.resolve import Resolver
from plait.model.discovery import CheckDefinition
from plait.services.health import Result

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 6, 7, 9
_ACK, _END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 0x20
_FRAME_MAX = 16384
_BLOCK_MAX = 65536
_NO_PUSH = struct.pack(">HI", 2, 0)
_PING_DATA = b"plaithc\n"
_METHOD = "/grpc.health.v1.Health/Check"
_SERVING_STATUS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


async def run_h2ping(definition: CheckDefinition, resolver: Resolver) -> Result:
    """Passing once the server acknowledges a PING frame."""
    what = f"HTTP2 ping {definition.target}"
    host, port = split_host_port(definition.target)
    async with _connection(definition, what, host, port, resolver) as connection:
        await connection.ping()
    return Result("passing", f"{what}: Success")


async def run_grpc(definition: CheckDefinition, resolver: Resolver) -> Result:
    """Passing if the server says SERVING of the service after the target's slash, or of itself."""
    what = f"gRPC check {definition.target}"
    authority, _, service = definition.target.partition("/")
    host, port = split_host_port(authority)
    async with _connection(definition, what, host, port, resolver) as connection:
        answer = await connection.call("https" if definition.tls else "http", authority, _request(service))
    if answer.headers.get("grpc-status", "0") != "0":
        raise CheckFailed(f"{what}: {_grpc_error(answer.headers)}")
    if answer.headers.get(":status", "200") != "200":
        raise CheckFailed(f"{what}: HTTP status {answer.headers[':status']}")
    if not answer.ended:
        raise CheckFailed(f"{what}: the server ended the call without an answer")
    status = _serving(bytes(answer.data), what)
    return Result("passing" if status == 1 else "critical", f"{what}: {_SERVING_STATUS.get(status, str(status))}")


def _grpc_error(headers: dict[str, str]) -> str:
    code, message = headers["grpc-status"], unquote(headers.get("grpc-message", ""))
    name = _CODES[int(code)] if code.isdigit() and int(code) < len(_CODES) else f"status {code}"
    return f"{name}: {message}" if message else name


def _request(service: str) -> bytes:
    """HealthCheckRequest{service = 1} with gRPC's prefix: not compressed, length."""
    raw = service.encode()
    message = b"\x0a" + _varint(len(raw)) + raw if raw else b""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _serving(data: bytes, what: str) -> int:
    """HealthCheckResponse{status = 1} of the call's data."""
    length = int.from_bytes(data[1:5], "big")
    if len(data) < 5 or data[0] or len(data) != 5 + length:
        raise CheckFailed(f"{what}: the answer is no gRPC message")
    message = data[5:]
    if not message:
        return 0
    if message[0] != 0x08 or len(message) < 2 or message[1] > 127:
        raise CheckFailed(f"{what}: the answer is not that of the health protocol")
    return message[1]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number % 128 | 128)
        number //= 128
    return bytes([*out, number])


@contextlib.asynccontextmanager
async def _connection(definition: CheckDefinition, what: str, host: str, port: int, resolver: Resolver) -> AsyncIterator[_Connection]:
    """Open; whatever breaks it is a CheckFailed that says so."""
    writer: asyncio.StreamWriter | None = None
    try:
        sock = await connect(resolver, host, port, definition.timeout)
        try:
            tls = tls_context(definition, alpn="h2") if definition.tls else None
            name = definition.tls_server_name or host if definition.tls else None
            reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name)
        finally:
            if writer is None:
                sock.close()
        writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, _NO_PUSH))
        yield _Connection(reader, writer)
    except asyncio.IncompleteReadError as error:
        raise CheckFailed(f"{what}: the server closed the connection") from error
    except HpackError as error:
        raise CheckFailed(f"{what}: {error}") from error
    except _Broken as error:
        raise CheckFailed(f"{what}: {error}") from error
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise CheckFailed(f"{what}: {reason(error)}") from error
    finally:
        if writer is not None:
            writer.transport.abort()


class _Broken(Exception):
    """The server does not keep to the protocol, or gives up."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@dataclass(slots=True)
class _Answer:
    """What came on the one stream. Trailers are among the headers."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._headers = Decoder()
        self._greeted = False

    async def ping(self) -> None:
        self._writer.write(_frame(_PING, 0, 0, _PING_DATA))
        while True:
            kind, flags, _, payload = await self._next()
            if kind == _PING and flags & _ACK and payload == _PING_DATA:
                return

    async def call(self, scheme: str, authority: str, message: bytes) -> _Answer:
        """One unary call of `_METHOD`; returns when its stream ends."""
        head = encode(
            [
                (":method", "POST"),
                (":scheme", scheme),
                (":path", _METHOD),
                (":authority", authority),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("user-agent", "plait"),
            ]
        )
        self._writer.write(_frame(_HEADERS, _END_HEADERS, 1, head) + _frame(_DATA, _END_STREAM, 1, message))
        answer = _Answer()
        while not answer.ended:
            kind, flags, stream, payload = await self._next()
            if kind == _GOAWAY:
                raise _Broken(f"the server goes away (error {int.from_bytes(payload[4:8], 'big')})")
            if stream != 1:
                continue
            if kind == _RESET:
                raise _Broken(f"the server reset the call (error {int.from_bytes(payload, 'big')})")
            if kind == _DATA:
                answer.data += _unpadded(payload, flags)
                if len(answer.data) > _FRAME_MAX:
                    raise _Broken("the answer is too long for the health protocol")
            elif kind == _HEADERS:
                answer.headers.update(self._headers.decode(await self._block(flags, payload)))
            answer.ended = kind in (_DATA, _HEADERS) and bool(flags & _END_STREAM)
        return answer

    async def _block(self, flags: int, payload: bytes) -> bytes:
        """The whole header block that begins with this frame."""
        block = bytearray(_unpadded(payload, flags)[5 if flags & _PRIORITY else 0 :])
        while not flags & _END_HEADERS:
            kind, flags, _, payload = await self._read()
            if kind != _CONTINUATION or len(block) > _BLOCK_MAX:
                raise _Broken("the server's headers cannot be read")
            block += payload
        return bytes(block)

    async def _next(self) -> tuple[int, int, int, bytes]:
        """The next frame, (type, flags, stream, payload), after what every frame asks for was done."""
        kind, flags, stream, payload = await self._read()
        if not self._greeted and kind != _SETTINGS:
            raise _Broken("the server does not speak HTTP/2")
        self._greeted = True
        if kind == _SETTINGS and not flags & _ACK:
            self._writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        if kind == _PING and not flags & _ACK:
            self._writer.write(_frame(_PING, _ACK, 0, payload))
        return kind, flags, stream, payload

    async def _read(self) -> tuple[int, int, int, bytes]:
        head = await self._reader.readexactly(9)
        length = int.from_bytes(head[:3], "big")
        if length > _FRAME_MAX:
            raise _Broken("the server does not speak HTTP/2")
        stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
        return head[3], head[4], stream, await self._reader.readexactly(length)


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise _Broken("the server's padding cannot be read")
    return payload[1 : len(payload) - payload[0]]
