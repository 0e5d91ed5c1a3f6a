# SPDX-License-Identifier: Apache-2.0
"""What earlier versions left on disks and sent to others is read by this one: journals, stores, replicas, messages.

`record_formats.py` makes a folder of `formats/` from a version's own code; they are never changed."""

from __future__ import annotations

import asyncio
import json
import shutil
from ipaddress import IPv4Address
from pathlib import Path

import msgspec
import pytest
from tests.golden.record_formats import RECORDS, WIRE, record

from plait.agent.journal import Journal
from plait.agent.keys import record_key
from plait.agent.view import View
from plait.model.cluster import Endpoint, Instance
from plait.store import joinserver, protocol
from plait.store.api import Change, Listing
from plait.store.codec import decode
from plait.store.memory import MemoryStore
from plait.store.replica import Replica
from plait.store.sqlite import SqliteStore

VERSIONS = sorted((Path(__file__).parent / "formats").iterdir())
ANY_MESSAGE = msgspec.msgpack.Decoder(
    protocol.ToServer | protocol.ToClient | joinserver.AskCa | joinserver.Ca | joinserver.Join | joinserver.Joined | joinserver.Refused
)


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what that version left."""
    return Path(shutil.copytree(request.param, tmp_path / "disk"))


def taken(view: View, listing: Listing) -> None:
    view.change([Change("put", item, item.mod_revision) for item in listing.items], listing.revision)


def same(view: View) -> None:
    for wanted in RECORDS:
        stored = view.item(record_key(wanted))
        assert stored is not None, wanted
        assert decode(type(wanted), stored.value, stored.key) == wanted
    assert {"default", "inner"} == view.snapshot.networks.keys()
    assert view.snapshot.endpoints["e1"].ports[0].host_ip == IPv4Address("127.0.0.1")


async def test_a_store_of_before_is_opened_and_gives_the_same_records(disk: Path) -> None:
    store = await SqliteStore.open(disk / "store.db")
    listing = await store.list("")
    await store.close()
    view = View("B")
    taken(view, listing)
    same(view)
    assert {item.value for item in listing.items if item.key == "kv/shop/colour"} == {b"red"}


async def test_a_replica_of_before_serves_without_the_store(disk: Path) -> None:
    replica, view = Replica(MemoryStore(), disk / "replica.bin"), View("B")
    assert replica.load()
    taken(view, replica.list(""))
    same(view)


def test_a_journal_of_before_is_read(disk: Path) -> None:
    journal = Journal(disk / "journal.db")
    endpoints = {key: decode(Endpoint, body, key) for key, body in journal.load("endpoint").items()}
    instances = {key: decode(Instance, body, key) for key, body in journal.load("instance").items()}
    assert [*endpoints.values(), *instances.values()] == [one for one in RECORDS if isinstance(one, Endpoint | Instance)]
    assert json.loads(journal.load("docker-network")["n" * 64]) == {"name": "mesh"}
    journal.close()


def test_messages_of_before_are_understood(disk: Path) -> None:
    sent = json.loads((disk / "wire.json").read_text())
    for wanted in WIRE:
        body = bytes.fromhex(sent[type(wanted).__name__])[4:]
        assert ANY_MESSAGE.decode(body) == wanted


def test_messages_of_a_version_to_come_are_understood(disk: Path) -> None:
    """Messages are arrays, which grow at their end alone."""
    for wanted in WIRE:
        grown = [*msgspec.msgpack.decode(protocol.frame(wanted)[4:]), "later"]
        assert ANY_MESSAGE.decode(msgspec.msgpack.encode(grown)) == wanted


def test_this_version_can_be_recorded(tmp_path: Path) -> None:
    asyncio.run(record(tmp_path / "now"))
    assert {path.name for path in (tmp_path / "now").iterdir()} >= {"journal.db", "replica.bin", "store.db", "wire.json"}
