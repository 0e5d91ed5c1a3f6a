# SPDX-License-Identifier: Apache-2.0
"""Records what one version of plait leaves on a disk and sends to others, for `test_formats.py` to be read by later ones.

`PYTHONPATH=<src of that version> python tests/golden/record_formats.py FOLDER`. It uses only what versions since November 2026 have.
"""

from __future__ import annotations

import asyncio
import json
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from plait.agent.journal import Journal, Write
from plait.agent.keys import record_key
from plait.model.cluster import Block, Container, Endpoint, Instance, Network, Node, PortMapping
from plait.model.discovery import Check
from plait.store import joinserver, protocol
from plait.store.api import Put
from plait.store.codec import encode
from plait.store.replica import Replica
from plait.store.sqlite import SqliteStore

A4 = IPv4Address
RECORDS: list[Any] = [
    Node("A", "id-a", A4("192.0.2.1"), vtep_mac="02:00:00:00:00:01", tunnel=A4("10.28.0.0")),
    Node("B", "id-b", A4("192.0.2.2"), vtep_mac="02:00:00:00:00:02", tunnel=A4("10.28.16.0")),
    Network("default", IPv4Network("10.28.0.0/16"), A4("10.28.0.1"), 24),
    Network("inner", IPv4Network("10.29.0.0/16"), A4("10.29.0.1"), 24, internal=True, labels={}, ip_range=IPv4Network("10.29.4.0/24")),
    Block("default", IPv4Network("10.28.0.0/24"), "A", "pool"),
    Block("default", IPv4Network("10.28.16.0/24"), "B", "pool"),
    Endpoint(
        "e1", "default", "A", A4("10.28.0.2"), "02:00:00:00:00:09", "pl-e1", runtime="docker", container="c1", name="web",
        aliases=("shop",), labels={"app": "web"}, ports=(PortMapping("tcp", 8080, 80, A4("127.0.0.1")),),
    ),
    Container("c1", "web", "A", "docker", "nginx", "running", labels={"app": "web"}, addresses={"default": A4("10.28.0.2")}),
    Instance("i1", "web", "A", "10.28.0.2", 80, ("v1",), {"k": "v"}),
    Check("k1", "A", "alive", "passing", output="200 OK", service_id="i1"),
]  # fmt: skip
WIRE: list[Any] = [
    protocol.Hello(1), protocol.Welcome(1), protocol.Ping(3), protocol.Get(4, "nodes/A"), protocol.List(5, "nodes/"),
    protocol.Txn(6, (("a", 1),), (("a", b"x", 0, False), ("b", None, 0, True))), protocol.Watch(7, "", 12), protocol.Cancel(7),
    protocol.Grant(8, 6.0), protocol.Keepalive(9, 3), protocol.Revoke(10, 3), protocol.Items(11, (("a", b"x", 1, 2, 0),), 2),
    joinserver.AskCa("t1"), joinserver.Ca(b"der"), joinserver.Join("t1", "secret", b"csr", "B", "id-b"),
    joinserver.Joined(b"cert", "192.0.2.1:7470", {"pool": "10.28.0.0/16"}), joinserver.Refused("no"),
]  # fmt: skip


async def record(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    store = await SqliteStore.open(folder / "store.db")
    await store.txn([], [Put(record_key(one), encode(one)) for one in RECORDS] + [Put("kv/shop/colour", b"red")])
    replica = Replica(store, folder / "replica.bin")
    following = asyncio.create_task(replica.run())
    while not replica.synced:  # noqa: ASYNC110 (versions differ in what tells it)
        await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await store.close()
    journal = Journal(folder / "journal.db")
    own = [one for one in RECORDS if isinstance(one, Endpoint | Instance | Check)]
    kinds = {Endpoint: "endpoint", Instance: "instance", Check: "check"}
    await journal.write([Write(kinds[type(one)], one.id, encode(one)) for one in own])
    await journal.write([Write("docker-network", "n" * 64, b'{"name": "mesh"}')])
    journal.close()
    wire = {type(one).__name__: protocol.frame(one).hex() for one in WIRE}
    (folder / "wire.json").write_text(json.dumps(wire, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1])))
