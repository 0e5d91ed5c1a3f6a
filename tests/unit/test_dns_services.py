# SPDX-License-Identifier: Apache-2.0
"""Names of services with a virtual address: as Kubernetes has them, as Consul has one, and who sees them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import dnslib
import pytest
from tests.unit.test_dns_answer import data, resolve, snapshot

from plait.dns import message as m
from plait.dns.answer import answer
from plait.dns.table import apply_changes
from plait.dns.view import View, networks_of
from plait.dns.zone import Zone, build_table
from plait.model.addr import IPAddress
from plait.model.cluster import Endpoint, Snapshot
from plait.model.service import Service, ServicePort

IP = IPv4Address
PORTS = ServicePort("tcp", 80, 8080, name="http"), ServicePort("udp", 53, 53)
SHOP = Service("shop", "default", IP("10.27.3.4"), PORTS, {"app": "shop"})
LAB = replace(SHOP, namespace="lab", address=IP("10.27.3.5"))
WEB = replace(SHOP, name="web", address=IP("10.27.3.6"))


def known(*services: Service) -> Snapshot:
    return snapshot(services={one.ident: one for one in services})


@pytest.mark.parametrize(
    ("name", "qtype", "wanted"),
    [
        ("shop.default.svc.cluster.local", "A", {"10.27.3.4"}),
        ("SHOP.Default.svc.cluster.local", "A", {"10.27.3.4"}),
        ("shop.lab.svc.cluster.local", "A", {"10.27.3.5"}),
        ("shop.default.svc.cluster.local", "SRV", {f"0 1 {port} shop.default.svc.cluster.local." for port in (80, 53)}),
        ("_http._tcp.shop.default.svc.cluster.local", "SRV", {"0 1 80 shop.default.svc.cluster.local."}),
        ("4.3.27.10.in-addr.arpa", "PTR", {"shop.default.svc.cluster.local."}),
        ("shop.virtual.consul", "A", {"10.27.3.4"}),
        ("shop.virtual.dc1.consul", "A", {"10.27.3.4"}),
        ("web.virtual.consul", "A", {"10.27.3.6"}),
        ("web.service.consul", "A", {"10.28.0.2", "192.0.2.2"}),
    ],
)
def test_a_service_has_its_names(name: str, qtype: str, wanted: set[str]) -> None:
    assert data(resolve(name, qtype, table=build_table(known(SHOP, LAB, WEB)))) == wanted


@pytest.mark.parametrize("name", ["none.default.svc.cluster.local", "_53._udp.shop.default.svc.cluster.local", "9.9.27.10.in-addr.arpa"])
def test_what_is_not_there_is_not_asked_of_others(name: str) -> None:
    record = resolve(name, table=build_table(known(SHOP)), recursion=True)
    assert (record.header.rcode, record.header.aa) == (m.NXDOMAIN, 1)


def test_without_services_these_zones_are_others() -> None:
    assert resolve("shop.default.svc.cluster.local", table=build_table(known())).header.aa == 0


def test_a_container_of_another_network_does_not_see_it() -> None:
    own = {
        name: Endpoint(name, name, "A", IP(address), "", "", "docker", name)
        for name, address in (("default", "10.28.0.9"), ("x", "10.29.0.9"))
    }
    table = build_table(replace(known(SHOP), endpoints=own))
    query = bytes(dnslib.DNSRecord.question("shop.default.svc.cluster.local", "A").pack())
    for source, seen in (("10.28.0.9", {"10.27.3.4"}), ("10.29.0.9", set())):
        packed = IP(source).packed
        response = answer(table, query, 1232, lambda n: 0, view=View(networks_of(table, packed), packed))
        assert isinstance(response, bytes) and data(dnslib.DNSRecord.parse(response)) == seen


def test_on_a_network_with_ipv6_its_names_lead_to_both_addresses() -> None:
    dual = known(SHOP, replace(WEB, network="other"))
    dual = replace(dual, networks={"default": replace(dual.networks["default"], subnet6=IPv6Network("fd00:28::/64"))})
    table = build_table(dual)
    for name in ("shop.default.svc.cluster.local", "shop.virtual.consul"):
        assert data(resolve(name, "A", table=table)) == {"10.27.3.4"}
        assert data(resolve(name, "AAAA", table=table)) == {"fd55:aa3d:5f3e::304"}
    six = IPv6Address("fd55:aa3d:5f3e::304")
    assert data(resolve(six.reverse_pointer, "PTR", table=table)) == {"shop.default.svc.cluster.local."}
    assert not data(resolve("web.default.svc.cluster.local", "AAAA", table=table)), "of its own network"
    zone = six.reverse_pointer.split(".", 4)[4].encode()
    assert zone in table.zones and zone not in build_table(known(SHOP)).zones, "without IPv6 it is no zone of ours"


def test_a_change_says_the_same_as_a_new_look() -> None:
    zone = Zone(known())
    table = build_table(known())
    for now in (known(SHOP), known(SHOP, LAB), known(replace(SHOP, ports=PORTS[:1]), LAB), known(LAB), known()):
        touched = [("services", one.ident) for one in (SHOP, LAB)]
        changes = zone.advance(now, touched)
        assert changes is not None
        apply_changes(table, changes)
        fresh = build_table(now)
        assert table.names == fresh.names == zone.table.names and zone.table.zones == fresh.zones == changes.zones


def test_the_name_of_a_headless_one_leads_to_its_containers() -> None:
    bare = replace(SHOP, address=None)
    six = IPv6Address("fd00:28::7")
    behind: dict[tuple[str, str], tuple[IPAddress, ...]] = {bare.ident: (IP("10.28.0.7"), six, IP("10.28.0.8"))}
    first = known(bare)
    zone = Zone(first, headless=lambda _: behind)
    name = "shop.default.svc.cluster.local"
    assert data(resolve(name, table=zone.table)) == {"10.28.0.7", "10.28.0.8"}
    assert data(resolve(name, "AAAA", table=zone.table)) == {f"{six}"}
    assert data(resolve(f"_http._tcp.{name}", "SRV", table=zone.table)) == {f"0 1 8080 0a1c000{n}.addr.consul." for n in (7, 8)}
    assert not data(resolve("shop.virtual.consul", table=zone.table))
    behind = {bare.ident: (IP("10.28.0.8"),)}
    assert zone.advance(replace(first, revision=8), ()) is not None
    assert data(resolve(name, table=zone.table)) == {"10.28.0.8"}
    behind = {}
    zone.advance(replace(first, revision=9), ())
    assert not data(resolve(name, table=zone.table))
