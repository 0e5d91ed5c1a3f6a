# SPDX-License-Identifier: Apache-2.0
"""Names of containers as each client sees them: the DNS process' answers, caches and all, against the rule computed from the records.

The rule: a container sees the names of containers on networks that it is on itself; whoever is no container of this host sees all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import dnslib
import pytest

from plait.dns.table import Table, apply_changes
from plait.dns.zone import Touched, Zone
from plait.model.cluster import Container, Endpoint, Network, Node, Snapshot
from plait.serve.dns_responder import Counters, Responder

IP = IPv4Address
NODES = {"A": Node("A", "1", IP("192.0.2.1")), "B": Node("B", "2", IP("192.0.2.2")), "C": Node("C", "3", IP("192.0.2.3"))}
SUBNETS = {"red": "10.1.0.0/24", "blue": "10.2.0.0/24", "default": "10.3.0.0/24"}
NETWORKS = {name: Network(name, IPv4Network(subnet), IPv4Network(subnet)[254], 28) for name, subnet in SUBNETS.items()}
NAMES, SANDBOXES = ("web", "db", "a.red", "Web"), ("s1", "s2", "s3", "")
ADDRESSES = {name: [network.subnet[number] for number in (2, 3, 4)] for name, network in NETWORKS.items()}
ASKERS = [*(address for some in ADDRESSES.values() for address in some), IP("127.0.0.1"), IP("192.0.2.9")]
FORMS = ("", ".plait", ".red", ".red.plait", ".blue", ".default.plait")


def record(kind: str, pick: random.Random) -> Endpoint | Container:
    ident, node, name = pick.choice("123456"), pick.choice("AABC"), pick.choice(NAMES)
    network = pick.choice(list(NETWORKS))
    if kind == "endpoints":
        aliases, address = pick.choice(((), ("sql",), ("web", "db"))), pick.choice(ADDRESSES[network])
        return Endpoint(ident, network, node, address, "", "", "docker", pick.choice(SANDBOXES), name, aliases)
    addresses = {network: pick.choice(ADDRESSES[network]) for network in pick.sample(list(NETWORKS), pick.randrange(3))}
    return Container(pick.choice(SANDBOXES[:3]), name, node, "docker", pick.choice(("running", "running", "exited")), addresses=addresses)


def step(snapshot: Snapshot, pick: random.Random) -> tuple[Snapshot, set[Touched]]:
    if pick.random() < 0.05:
        return replace(snapshot, alive=frozenset(pick.choice(("B", "BC", "C")))), set()
    kind = pick.choice(("endpoints", "endpoints", "containers"))
    found = record(kind, pick)
    key = found.id if isinstance(found, Endpoint) else (found.node, found.id)
    records = dict(getattr(snapshot, kind))
    records.pop(key, None)
    if pick.random() < 0.7:
        records[key] = found
    return replace(snapshot, revision=snapshot.revision + 1, **{kind: records}), {(kind, key)}


Attached = tuple[str, str, set[str], str, IPv4Address]
"""Node, sandbox, names, network, address."""


def attached(snapshot: Snapshot) -> Iterator[Attached]:
    for endpoint in snapshot.endpoints.values():
        names = {endpoint.name, *endpoint.aliases}
        yield endpoint.node, endpoint.container or endpoint.id, names, endpoint.network, endpoint.address
    for container in snapshot.containers.values():
        for network, address in container.addresses.items() if container.state == "running" else ():
            yield container.node, container.id, {container.name}, network, address


def by_rule(snapshot: Snapshot, name: str, asker: IPv4Address) -> set[IPv4Address]:
    living = [row for row in attached(snapshot) if row[0] in snapshot.alive | {snapshot.me}]
    own = [row for row in living if row[0] == snapshot.me]
    sandboxes = {row[1] for row in own if row[4] == asker}
    networks = {row[3] for row in own if row[1] in sandboxes} if sandboxes else set(NETWORKS)
    found = set()
    for _, _, names, network, address in living:
        forms = {f"{known}{middle}{end}".lower() for known in names for middle in ("", f".{network}") for end in ("", ".plait")}
        if network in networks and name.lower() in forms:
            found.add(address)
    return found


def asked(responder: Responder, name: str, asker: IPv4Address, stream: bool) -> set[IPv4Address]:
    response = responder.reply(bytes(dnslib.DNSRecord.question(name).pack()), lambda slot: asker.packed, stream=stream)
    assert isinstance(response, bytes)
    answer = dnslib.DNSRecord.parse(response)
    found = {IP(str(row.rdata)) for row in answer.rr}
    assert not found or answer.header.rcode == dnslib.RCODE.NOERROR
    return found


@pytest.mark.parametrize("seed", range(8))
def test_everybody_sees_what_the_rule_says_at_every_moment(seed: int) -> None:
    pick = random.Random(seed)
    snapshot = Snapshot("A", 1, NODES, frozenset("BC"), NETWORKS)
    zone, responder = Zone(snapshot), Responder(Counters())
    table = Table(*zone.table.parts())
    responder.set_table(table)
    different = 0
    for _ in range(250):
        snapshot, touched = step(snapshot, pick)
        changes = zone.advance(snapshot, touched)
        if changes is not None:
            apply_changes(table, changes)
            responder.set_table(table)
        questions = [(pick.choice((*NAMES, "sql")) + pick.choice(FORMS), asker) for asker in pick.sample(ASKERS, 4)]
        questions += [(name, asker) for name, _ in questions[:2] for asker in pick.sample(ASKERS, 3)]
        for name, asker in questions * 2:
            wanted = by_rule(snapshot, name, asker)
            assert asked(responder, name, asker, pick.random() < 0.3) == wanted, (name, asker)
            different += wanted != by_rule(snapshot, name, ASKERS[-1])
    assert different > 200, "views that are all alike would prove nothing"
