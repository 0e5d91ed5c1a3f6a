# SPDX-License-Identifier: Apache-2.0
"""What travels between an agent and the store, without any I/O: frames, messages, errors.

Data in: bytes as they come from a connection, or messages. Data out: messages, or the bytes to send. A frame is a 4-byte big-endian length
and that many bytes of msgpack. A message is an array that starts with its tag. Requests carry an id chosen by the client and every answer
repeats it; id 0 is nobody's. Large answers are cut into parts, each but the last with `more` set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

from plait.model.errors import Compacted, ConfigError, Conflict, NotFound, PlaitError, StoreUnavailable
from plait.store.api import Change, Compare, Delete, Item, Put

VERSION = 1
"""Sent in Hello; the server closes on another one."""
MAX_FRAME = 4 * 1024 * 1024
"""Bytes of a frame's body. A whole transaction fits (see `state.MAX_TXN`)."""
PART = 256 * 1024
"""Bytes of keys and values after which an answer is cut into parts."""
_LENGTH = 4

WireItem = tuple[str, bytes, int, int, int]
"""key, value, create_revision, mod_revision, lease"""
WireChange = tuple[bool, int, WireItem]
"""put, revision, item"""
WireOp = tuple[str, bytes | None, int, bool]
"""key, value (None: delete), lease, prefix"""


class ProtocolError(Exception):
    """The peer does not speak this protocol. The connection is of no further use."""


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages."""


class Hello(Message, frozen=True, tag="hello"):
    """First message of a client. `run`: one run of an agent, chosen by it; "" for who is none. Two runs of one node are refused."""

    version: int
    run: str = ""


class Welcome(Message, frozen=True, tag="welcome"):
    """The answer to Hello. `run`: that of the agent that serves."""

    version: int
    run: str = ""


class Ping(Message, frozen=True, tag="ping"):
    """Answered by an equal Ping: shows both sides that the other lives."""

    id: int = 0


class Get(Message, frozen=True, tag="get"):
    id: int
    key: str


class List(Message, frozen=True, tag="list"):
    id: int
    prefix: str


class Txn(Message, frozen=True, tag="txn"):
    id: int
    compares: tuple[tuple[str, int], ...]
    ops: tuple[WireOp, ...]


class Watch(Message, frozen=True, tag="watch"):
    """Answered by any number of Changes until Cancel or Failure."""

    id: int
    prefix: str
    from_revision: int


class Cancel(Message, frozen=True, tag="cancel"):
    """End the watch `id`. Not answered."""

    id: int


class Grant(Message, frozen=True, tag="grant"):
    id: int
    ttl: float


class Keepalive(Message, frozen=True, tag="keepalive"):
    id: int
    lease: int


class Revoke(Message, frozen=True, tag="revoke"):
    id: int
    lease: int


class Items(Message, frozen=True, tag="items"):
    """Answer to Get (none or one) and List."""

    id: int
    items: tuple[WireItem, ...]
    revision: int
    more: bool = False


class Changes(Message, frozen=True, tag="changes"):
    """Changes of a watch; those of parts with `more` belong with the next part."""

    id: int
    changes: tuple[WireChange, ...]
    more: bool = False


class Result(Message, frozen=True, tag="result"):
    """Answer to Txn (ok, revision), Grant (lease), Keepalive (ok) and Revoke."""

    id: int
    ok: bool = True
    number: int = 0


class Failure(Message, frozen=True, tag="failure"):
    """The request or watch `id` ended with an error of this kind (a class of model/errors.py)."""

    id: int
    kind: str
    text: str


Request = Get | List | Txn | Watch | Grant | Keepalive | Revoke
ToServer = Hello | Ping | Cancel | Request
Answer = Items | Changes | Result | Failure
ToClient = Welcome | Ping | Answer

_encoder = msgspec.msgpack.Encoder()
server_decoder: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)
client_decoder: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)

M = TypeVar("M")


def frame(message: Message) -> bytes:
    """The bytes that carry `message`. Raises ConfigError if it is larger than a frame may be."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise ConfigError("store message", type(message).__name__, f"is {len(body)} bytes, more than {MAX_FRAME}", "split the request")
    return len(body).to_bytes(_LENGTH, "big") + body


class Frames(Generic[M]):
    """Cuts a byte stream into messages of one direction."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M], limit: int = MAX_FRAME) -> None:
        self._decoder, self._limit = decoder, limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """Messages completed by `data`, in order. Raises ProtocolError on anything else, before a body beyond the limit is buffered."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH:
            length = int.from_bytes(self._buffer[:_LENGTH], "big")
            if length > self._limit:
                raise ProtocolError(f"a frame of {length} bytes, more than {self._limit}")
            end = _LENGTH + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH:end])
            del self._buffer[:end]
            try:
                message = self._decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"an undecodable frame: {error}") from error
            yield message


def pack_item(item: Item) -> WireItem:
    return item.key, item.value, item.create_revision, item.mod_revision, item.lease


def pack_change(change: Change) -> WireChange:
    return change.kind == "put", change.revision, pack_item(change.item)


def unpack_change(change: WireChange) -> Change:
    put, revision, item = change
    return Change("put" if put else "delete", Item(*item), revision)


def pack_txn(number: int, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> Txn:
    return Txn(
        number,
        tuple((compare.key, compare.mod_revision) for compare in compares),
        tuple((op.key, op.value, op.lease, False) if isinstance(op, Put) else (op.key, None, 0, op.prefix) for op in ops),
    )


def unpack_txn(txn: Txn) -> tuple[list[Compare], list[Put | Delete]]:
    ops: list[Put | Delete] = [Delete(key, prefix) if value is None else Put(key, value, lease) for key, value, lease, prefix in txn.ops]
    return [Compare(key, revision) for key, revision in txn.compares], ops


def items_parts(number: int, items: Iterable[Item], revision: int) -> Iterator[Items]:
    """The answers that carry `items`: at least one, no frame too large."""
    part: list[WireItem] = []
    size = 0
    for item in items:
        if size > PART:
            yield Items(number, tuple(part), revision, more=True)
            part, size = [], 0
        part.append(pack_item(item))
        size += len(item.key) + len(item.value)
    yield Items(number, tuple(part), revision)


def change_parts(number: int, changes: Iterable[Change]) -> Iterator[Changes]:
    """The answers that carry `changes`: at least one, no frame too large."""
    part: list[WireChange] = []
    size = 0
    for change in changes:
        if size > PART:
            yield Changes(number, tuple(part), more=True)
            part, size = [], 0
        part.append(pack_change(change))
        size += len(change.item.key) + len(change.item.value)
    yield Changes(number, tuple(part))


_KINDS: dict[str, type[PlaitError]] = {kind.__name__: kind for kind in (NotFound, Conflict, StoreUnavailable, Compacted)}


def pack_error(number: int, error: PlaitError) -> Failure:
    kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), "PlaitError")
    return Failure(number, kind, str(error))


def unpack_error(failure: Failure) -> PlaitError:
    """The error as it was raised at the server. Wrong arguments (ConfigError) are found before sending, here they are a PlaitError."""
    return _KINDS.get(failure.kind, PlaitError)(failure.text)
