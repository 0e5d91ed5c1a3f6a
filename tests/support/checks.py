# SPDX-License-Identifier: Apache-2.0
"""Counterparts of health checks on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def serve(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A TCP server on loopback; its port. No connection outlives it, not even one that was only just accepted."""
    open_ones: set[asyncio.StreamWriter] = set()

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        done = handler(reader, writer)
        if isinstance(done, Awaitable):
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await done

    server = await asyncio.start_server(tracked, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for _ in range(2):
            await asyncio.sleep(0.01)
            for writer in open_ones:
                writer.transport.abort()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def serve_bytes(
    answer: bytes,
    context: ssl.SSLContext | None = None,
    wait_for: bytes = b"",
    seen: bytearray | None = None,
    hold: bool = False,
    bytewise: bool = False,
) -> AsyncIterator[int]:
    """A server that reads until `wait_for`, writes `answer` and closes, unless it is to `hold` the connection."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if wait_for:
            got = await reader.readuntil(wait_for)
            if seen is not None:
                seen.extend(got)
        for part in [answer[i : i + 1] for i in range(len(answer))] if bytewise else [answer]:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001 if bytewise else 0)
        if not hold:
            writer.close()

    async with serve(handler, context) as port:
        yield port


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate and its key in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{name}.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


NGINX = """
daemon off; worker_processes 1; error_log stderr; pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  server {{ {site} }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, site: str, port: int) -> Iterator[None]:
    """A real nginx with the directives `site` for its one server, which listens on `port` among others; its files are in `folder`."""
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, site=site))
    process = subprocess.Popen(["nginx", "-p", folder, "-e", "stderr", "-c", config], stderr=subprocess.PIPE)
    with running(process, port):
        yield


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes], port: int) -> Iterator[None]:
    """Until the end of the block; the block begins once the process accepts connections on `port`."""
    try:
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                said = process.stderr.read() if process.stderr is not None and process.poll() is not None else b""
                raise AssertionError(f"{process.args!r} does not listen: {said.decode()}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)
        if process.stderr is not None:
            process.stderr.close()
