# SPDX-License-Identifier: Apache-2.0
"""The whole table of a small cluster as text: every name of one container, one service and two nodes."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, ip_address

from plait.dns import message as m
from plait.dns.table import Records
from plait.dns.view import OUTSIDE
from plait.dns.zone import _digest, _number, build_table
from plait.model.cluster import Container, Instance, Network, Node, Snapshot

IP = IPv4Address
EXPECTED = """\
1.0.28.10.in-addr.arpa PTR a.node.dc1.consul
1.2.0.192.in-addr.arpa PTR a.node.dc1.consul
2.0.28.10.in-addr.arpa PTR web.plait (default)
2.2.0.192.in-addr.arpa PTR b.node.dc1.consul
28.10.in-addr.arpa NS a.node.dc1.consul
28.10.in-addr.arpa NS b.node.dc1.consul
0.28.10.in-addr.arpa -
_tcp.consul -
_tcp.service.consul -
a.node.consul A 192.0.2.1
a.node.consul TXT 'server='
addr.consul -
addr.dc1.consul -
b.node.consul A 192.0.2.2
b.node.consul TXT 'rack=7'
consul NS a.node.dc1.consul
consul NS b.node.dc1.consul
consul.service.consul A 192.0.2.1
consul.service.consul SRV 1 1 8300 a.node.dc1.consul
dc1.consul -
default.plait -
http.web.service.consul A 10.28.0.2
http.web.service.consul SRV 1 1 80 0a1c0002.addr.dc1.consul
node.consul -
node.dc1.consul -
label.consul -
label.dc1.consul -
ns.consul A 192.0.2.1
plait NS a.node.dc1.consul
plait NS b.node.dc1.consul
query.consul -
query.dc1.consul -
service.consul -
service.dc1.consul -
virtual.consul -
virtual.dc1.consul -
WHO:0a1c0002 is SANDBOX
WHO:SANDBOX is on (default)
WHO:SANDBOX leads out
web A 10.28.0.2 (default)
web.default A 10.28.0.2 (default)
web.default.plait A 10.28.0.2 (default)
web.plait A 10.28.0.2 (default)
web.service.consul A 10.28.0.2
web.service.consul SRV 1 1 80 0a1c0002.addr.dc1.consul
"""


SANDBOX = _digest("c1", 8)
NOTHING = (-1, b"")


def text(names: Mapping[bytes, Records]) -> list[str]:
    found = [f"{name.decode()} {record_text(*record)}" for name, records in names.items() for record in records or (NOTHING,)]
    return sorted(line.replace(SANDBOX.hex(), "SANDBOX") for line in found)


def record_text(rtype: int, rdata: bytes) -> str:
    if (rtype, rdata) == NOTHING:
        return "-"
    if rtype in (OUTSIDE, _number("default")) and not rdata:
        return "leads out" if rtype == OUTSIDE else "is on (default)"
    if rtype >> 16:  # bound to a network
        assert rtype >> 16 == _number("default")
        return f"{record_text(rtype & 0xFFFF, rdata)} (default)"
    if rdata == SANDBOX:
        return "is SANDBOX"
    if rtype == m.A:
        return f"A {ip_address(rdata)}"
    if rtype == m.SRV:
        numbers = " ".join(str(int.from_bytes(rdata[at : at + 2], "big")) for at in (0, 2, 4))
        return f"SRV {numbers} {m.dotted(rdata[6:]).decode()}"
    if rtype == m.TXT:
        return f"TXT {rdata[1:].decode()!r}"
    return f"{({m.NS: 'NS', m.PTR: 'PTR'})[rtype]} {m.dotted(rdata).decode()}"


def test_the_table_of_a_small_cluster() -> None:
    snapshot = Snapshot(
        me="A",
        nodes={
            "A": Node("A", "1", IP("192.0.2.1"), tunnel=IP("10.28.0.1"), meta={"server": ""}),
            "B": Node("B", "2", IP("192.0.2.2"), meta={"rack": "7"}),
            "C": Node("C", "3", IP("192.0.2.3")),
        },
        alive=frozenset({"B"}),
        networks={"default": Network("default", IPv4Network("10.28.0.0/16"), IP("10.28.255.254"), 20)},
        containers={("A", "c1"): Container("c1", "web", "A", "docker", addresses={"default": IP("10.28.0.2")})},
        instances={("A", "web"): Instance("web", "web", "A", "10.28.0.2", 80, ("http",))},
    )
    assert text(build_table(snapshot).names) == sorted(EXPECTED.splitlines())
