# SPDX-License-Identifier: Apache-2.0
"""The node that carries the store goes to the others when they do not come: its address may be another than they know.

Data in: a knock, over TLS with certificates on both sides, at the port where the store itself listens on its own node. Data out: which
store the node that was knocked at follows, by its `run` (protocol.Hello): the first node learns so that it is a copy of a living one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from plait.model.addr import IPAddress
from plait.model.errors import StoreUnavailable
from plait.store.joinserver import MAX_FRAME, read_message
from plait.store.listener import Limits, TlsServer, plain
from plait.store.protocol import Frames, Message, ProtocolError, frame
from plait.store.server import PORT
from plait.store.tls import peer_identity

log = logging.getLogger("plait.store")
TIMEOUT = 3.0
"""Seconds for one knock, the answer included."""


class Knock(Message, frozen=True, tag="knock"):
    """`run` is that of the store's node."""

    run: str


class Knocked(Message, frozen=True, tag="knocked"):
    """`run` of the store that answered this node after the knock, and `place` where it did; "" for none."""

    run: str = ""
    place: str = ""


_knock_decoder: msgspec.msgpack.Decoder[Knock] = msgspec.msgpack.Decoder(Knock)
_knocked_decoder: msgspec.msgpack.Decoder[Knocked] = msgspec.msgpack.Decoder(Knocked)

OnKnock = Callable[[str, str], Awaitable[Knocked | None]]
"""Called with the id of the node that knocks and the address that it comes from; None is no answer."""


class KnockServer(TlsServer):
    """`open` binds, `run` serves until cancelled. `context` is that of `tls.ssl_context_server`."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, on_knock: OnKnock) -> None:
        self._on_knock = on_knock
        super().__init__(host, port, context, Limits(connections=16, handshakes=16, handshakes_per_source=4))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = plain(writer.get_extra_info("peername")[0])
        _, node_id = peer_identity(cast(ssl.SSLObject, writer.get_extra_info("ssl_object")))
        try:
            async with asyncio.timeout(TIMEOUT):
                if await read_message(reader, Frames(_knock_decoder, MAX_FRAME)) is None:
                    return
                answer = await self._on_knock(node_id, source)
                if answer is not None:
                    writer.write(frame(answer))
                    await writer.drain()
                    await reader.read(1)
        except (ProtocolError, TimeoutError) as error:
            log.info("knock_failed", extra={"peer": source, "error": str(error) or "no answer in time"})


async def knock(address: IPAddress, run: str, context: ssl.SSLContext, port: int = PORT) -> Knocked:
    """Knock at the node at `address`; `context` is that of `tls.ssl_context_client`. StoreUnavailable if it does not answer."""
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(str(address), port, ssl=context, server_hostname="plait")
            try:
                writer.write(frame(Knock(run)))
                answer = await read_message(reader, Frames(_knocked_decoder, MAX_FRAME))
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, ProtocolError) as error:
        raise StoreUnavailable(f"knock at {address}: {error or 'no answer in time'}") from error
    if answer is None:
        raise StoreUnavailable(f"knock at {address}: it closed the connection")
    return answer
