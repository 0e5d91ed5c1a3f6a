# SPDX-License-Identifier: Apache-2.0
"""The order of nearness in DNS: what is how far, and that answers follow it, also when it changes."""

import random
from collections import Counter
from ipaddress import IPv4Address, ip_address

import dnslib
from tests.support.dns import HOST, ask, free_port

from plait.agent.config import parse_config
from plait.agent.dnsnear import DnsNear, distances
from plait.dns.answer import answer
from plait.dns.options import Options
from plait.dns.order import nearest_first
from plait.dns.zone import build_table
from plait.model.cluster import Container, Endpoint, Instance, Node, Snapshot
from plait.model.discovery import CatalogNode
from plait.serve.dns_parent import DnsService

FAR_MS = {"a": 0, "b": 30, "c": 2}
NODES = {name: Node(name, name, IPv4Address(f"192.0.2.{at}")) for at, name in enumerate(FAR_MS, 1)}
INSTANCES = {
    ("b", "own"): Instance("own", "web", "b", "10.28.2.1", 80),
    ("b", "node"): Instance("node", "web", "b", "", 81),
    ("c", "own"): Instance("own", "web", "c", "10.28.3.1", 80),
    ("a", "own"): Instance("own", "web", "a", "10.28.1.1", 80),
    ("a", "two"): Instance("two", "web", "a", "10.28.1.2", 80),
    ("a", "out"): Instance("out", "web", "a", "db.example.org", 80),
}
SNAPSHOT = Snapshot(me="a", revision=1, nodes=NODES, alive=frozenset(NODES), instances=INSTANCES)


def far(node: str) -> float:
    return FAR_MS[node] / 1000


def asked(options: Options, qtype: str, size: int = 1232) -> dnslib.DNSRecord:
    query = dnslib.DNSRecord.question("web.service.consul", qtype)
    query.add_ar(dnslib.EDNS0(udp_len=size))
    response = answer(build_table(SNAPSHOT), bytes(query.pack()), size, random.randrange, options=options)
    assert isinstance(response, bytes)
    return dnslib.DNSRecord.parse(response)


def test_the_addresses_of_a_node_are_as_far_as_the_node() -> None:
    endpoint = Endpoint("e", "default", "c", IPv4Address("10.28.3.9"), "", "", "docker")
    container = Container("k", "k", "b", "docker", addresses={"bridge": IPv4Address("10.28.2.9"), "default": IPv4Address("10.28.1.1")})
    snapshot = Snapshot(
        me="a",
        nodes=NODES,
        catalog_nodes={"a": CatalogNode("a", "192.0.2.77"), "b": CatalogNode("b", "2001:db8::1"), "c": CatalogNode("c", "c.example.org")},
        instances=INSTANCES,
        endpoints={"e": endpoint},
        containers={("b", "k"): container},
    )
    found = {str(ip_address(packed)): distance for packed, distance in distances(snapshot, far).items()}
    assert found == {
        "192.0.2.1": 0, "192.0.2.77": 0, "10.28.1.1": 0, "10.28.1.2": 0,
        "192.0.2.3": 2000, "10.28.3.1": 2000, "10.28.3.9": 2000,
        "192.0.2.2": 30000, "10.28.2.1": 30000, "10.28.2.9": 30000, "2001:db8::1": 30000,
    }  # fmt: skip


def test_answers_name_the_nearest_first_and_draw_among_those_equally_far() -> None:
    options = Options(near=distances(SNAPSHOT, far))
    firsts = set()
    for _ in range(40):
        addresses = [str(rr.rdata) for rr in asked(options, "A").rr]
        assert set(addresses[:2]) == {"10.28.1.1", "10.28.1.2"} and addresses[2] == "10.28.3.1"
        assert set(addresses[3:]) == {"10.28.2.1", "192.0.2.2"}
        firsts.add(addresses[0])
        targets = [str(rr.rdata.target) for rr in asked(options, "SRV").rr]
        assert set(targets[:2]) == {"0a1c0101.addr.dc1.consul.", "0a1c0102.addr.dc1.consul."} and targets[2] == "0a1c0301.addr.dc1.consul."
        assert set(targets[3:5]) == {"0a1c0201.addr.dc1.consul.", "b.node.dc1.consul."}
        assert targets[5] == "db.example.org.", "of what is outside nobody knows how far it is"
    assert len(firsts) == 2
    assert len({str(asked(Options(), "A").rr[0].rdata) for _ in range(80)}) == 5, "without the option the order is drawn"


def test_what_is_cut_off_is_what_is_far() -> None:
    near = distances(SNAPSHOT, far)
    assert [str(rr.rdata) for rr in asked(Options(near=near, a_record_limit=3), "A").rr][2] == "10.28.3.1"
    firsts = Counter(str(asked(Options(near=near, a_record_limit=1), "A").rr[0].rdata) for _ in range(200))
    assert set(firsts) == {"10.28.1.1", "10.28.1.2"} and min(firsts.values()) > 55, "both as often, also where few are shown"
    many = {("b", str(n)): Instance(str(n), "web", "b", f"10.28.9.{n}", 80) for n in range(200)}
    many |= {("c", "here"): Instance("here", "web", "c", "10.28.3.1", 80)}
    snapshot = Snapshot(me="a", nodes=NODES, alive=frozenset(NODES), instances=many)
    query = bytes(dnslib.DNSRecord.question("web.service.consul").pack())
    options = Options(near=distances(snapshot, far))
    for _ in range(10):
        response = answer(build_table(snapshot), query, 512, random.randrange, options=options)
        assert isinstance(response, bytes)
        record = dnslib.DNSRecord.parse(response)
        assert record.header.tc == 1 and str(record.rr[0].rdata) == "10.28.3.1"


def test_records_that_nobody_knows_come_last_in_the_order_that_they_had() -> None:
    records = [(1, bytes((n,))) for n in range(5)]
    nearest_first(records, {b"\3": 5, b"\1": 7}, lambda target: None)
    assert [data[0] for _, data in records] == [3, 1, 0, 2, 4]


async def test_the_child_follows_the_distances_and_the_option() -> None:
    where, measured = (HOST, free_port()), dict(FAR_MS)
    service = DnsService(on_crash=print)
    await service.start()
    try:
        near = DnsNear(service, lambda: SNAPSHOT, lambda: lambda node: measured[node] / 1000)
        await service.set_table(build_table(SNAPSHOT))
        await service.set_listen({where})

        async def last() -> set[str]:
            return {str((await ask("web.service.consul", where)).rr[-1].rdata) for _ in range(40)}

        await near.configure(parse_config({"dns": {"near": True, "node_ttl": 7}}, "f").dns)
        assert await last() <= {"10.28.2.1", "192.0.2.2"}
        measured["c"] = 90
        await near.look()
        assert await last() == {"10.28.3.1"}
        assert (await ask("c.node.consul", where)).rr[0].ttl == 7
        await near.configure(parse_config({}, "f").dns)
        await near.look()
        assert len(await last()) > 1
    finally:
        await service.close()
