# SPDX-License-Identifier: Apache-2.0
"""docs/dns-names.md is tried: each name in its table is asked for, in a cluster that has what the page speaks of."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import dnslib
import pytest

from plait.dns.answer import Pending, answer
from plait.dns.zone import build_table
from plait.model.cluster import Container, Instance, NamedPort, Network, Node, Snapshot
from plait.model.service import Service, ServicePort

IP, IP6 = IPv4Address, IPv6Address("fd00:28::2")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "dns-names.md"
TYPES = {"b.node.consul": ("A", "TXT"), "2.0.28.10.in-addr.arpa": ("PTR",), IP6.reverse_pointer: ("PTR",), "0a1c0002.addr.consul": ("A",)}
TYPES["_http._tcp.shop.default.svc.cluster.local"] = ("SRV",)
"""What the page says of a name beside A and SRV, which all the others have."""
CONTAINERS = ("web", "web.plait", "web.NETWORK", "web.NETWORK.plait")
PORTS = (NamedPort("http", 80, default=True), NamedPort("ops", 81))
WEB = Instance("web", "web", "b", "10.28.0.2", 80, tags=("TAG",), meta={"app": "web"}, ports=PORTS)
SHOP = Service("shop", "default", IP("10.27.3.4"), (ServicePort("tcp", 80, 8080, name="http"),), {"app": "shop"}, "NETWORK")
TABLE = build_table(
    Snapshot(
        me="b",
        nodes={"b": Node("b", "1", IP("192.0.2.2"), meta={"rack": "7"})},
        networks={"NETWORK": Network("NETWORK", IPv4Network("10.28.0.0/16"), IP("10.28.255.254"), 20, subnet6=IPv6Network("fd00:28::/64"))},
        containers={("b", "c"): Container("c", "web", "b", "docker", addresses={"NETWORK": IP("10.28.0.2")}, addresses6={"NETWORK": IP6})},
        instances={("b", "web"): WEB},
        services={SHOP.ident: SHOP},
    )
)


def rows() -> list[tuple[list[str], str]]:
    """(names, what they answer) of the first table."""
    table = PAGE.read_text().partition("| name | answers |\n|---|---|\n")[2].partition("\n\n")[0]
    split = [line.strip("| ").split(" | ", 1) for line in table.splitlines()]
    return [(re.findall(r"`([^`]+)`", names), said) for names, said in split]


NAMES = [(name, said) for names, said in rows() for name in names]


def ask(name: str, qtype: str) -> dnslib.DNSRecord | None:
    """None: it is asked of the prepared queries."""
    made = answer(TABLE, bytes(dnslib.DNSRecord.question(name, qtype).pack()), 1232, lambda n: 0, recursion=False)
    return None if isinstance(made, Pending) else dnslib.DNSRecord.parse(made)


def test_the_page_has_its_names() -> None:
    assert len(NAMES) > 18


@pytest.mark.parametrize(("name", "said"), NAMES, ids=[name for name, _ in NAMES])
def test_each_name_answers_as_it_is_written(name: str, said: str) -> None:
    if "prepared query" in said:
        assert ask(name, "A") is None
    elif said == "do not exist":
        found = ask(name, "A")
        assert found is not None and found.header.rcode == dnslib.RCODE.NXDOMAIN
    else:
        for qtype in TYPES.get(name, ("A",) if name in CONTAINERS else ("A", "SRV")):
            found = ask(name, qtype)
            assert found is not None and found.rr, f"{qtype} of {name}"
            assert not found.header.rcode


def test_other_datacentres_do_not_exist() -> None:
    found = ask("web.service.dc9.consul", "A")
    assert found is not None and found.header.rcode == dnslib.RCODE.NXDOMAIN
