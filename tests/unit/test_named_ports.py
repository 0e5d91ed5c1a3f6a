# SPDX-License-Identifier: Apache-2.0
"""Several ports of one service: what a registration may say of them, where HTTP shows them, how DNS finds them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import dnslib
import pytest

from plait.dns import message as m
from plait.dns.answer import answer
from plait.dns.table import Table
from plait.dns.zone import Zone, build_table
from plait.model.cluster import Instance, NamedPort, Node, Snapshot
from plait.services.catalogrequests import parse_registration
from plait.services.directory import Directory
from plait.services.requests import BadRequest, parse_service
from plait.services.views import Views
from plait.store.codec import decode, encode

HTTP, GRPC = {"Name": "http", "Port": 8080}, {"Name": "grpc", "Port": 9090}
NODES = {"A": Node("A", "1", IPv4Address("192.0.2.1"))}


def registered(**body: Any) -> Instance:
    return parse_service({"Name": "web", "Address": "10.28.0.1", **body}, "A")


def instance(number: int, *ports: NamedPort, **more: Any) -> Instance:
    return Instance(str(number), "Web", "A", f"10.28.0.{number}", 80, ports=ports, **more)


@pytest.mark.parametrize(
    ("body", "port", "default"),
    [
        ({"Ports": [HTTP, GRPC]}, 8080, "http"),
        ({"Ports": [HTTP, {**GRPC, "Default": True}]}, 9090, "grpc"),
        ({"ports": [{"name": "http", "port": 8080}, {"name": "grpc", "port": 9090, "default": True}]}, 9090, "grpc"),
        ({"Ports": [HTTP, GRPC], "Port": 9090}, 9090, "grpc"),
        ({"Ports": [HTTP, GRPC], "Port": 70}, 70, None),
        ({"Ports": [], "Port": 80}, 80, None),
        ({"Ports": None}, 0, None),
    ],
)
def test_one_of_the_ports_is_the_services_own(body: dict[str, Any], port: int, default: str | None) -> None:
    found = registered(**body)
    assert found.port == port
    assert [named.name for named in found.ports if named.default] == ([default] if default else [])


@pytest.mark.parametrize(
    ("ports", "why"),
    [
        ("http", "list of at most 64"),
        ([{"Name": f"p{n}", "Port": 1} for n in range(65)], "list of at most 64"),
        (["http"], "expected a JSON object"),
        ([{"Port": 80}], "'' is no name"),
        ([{"Name": "a.b", "Port": 80}], "'a.b' is no name"),
        ([{"Name": "-a", "Port": 80}], "'-a' is no name"),
        ([{"Name": "x" * 63, "Port": 80}], "at most 62"),
        ([{"Name": "a"}], "needs a port from 1"),
        ([{"Name": "a", "Port": 65536}], "from 0 to 65535"),
        ([{"Name": "a", "Port": 1, "Protocol": "http"}], "must be one of tcp, udp, sctp"),
        ([HTTP, {"Name": "HTTP", "Port": 81}], "a name of its own"),
        ([{**HTTP, "Default": True}, {**GRPC, "Default": True}], "only one"),
        ([{**HTTP, "Default": "yes"}], "true or false"),
    ],
)
def test_bad_ports_are_refused_with_the_reason(ports: object, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        registered(Ports=ports)


def test_a_port_beside_another_default_is_refused() -> None:
    with pytest.raises(BadRequest, match="Port is 80, but the default port 'http' is 8080"):
        registered(Port=80, Ports=[{**HTTP, "Default": True}])


def test_ports_are_shown_wherever_the_port_is_and_only_if_there_are_any() -> None:
    named = registered(Ports=[HTTP, {"Name": "dns", "Port": 53, "Protocol": "UDP"}])
    plain = registered(ID="plain", Port=80)
    snapshot = Snapshot("A", nodes=NODES, instances={(i.node, i.id): i for i in (named, plain)})
    views = Views(Directory.of(snapshot), "dc1")
    shown = [{"Name": "http", "Port": 8080, "Default": True}, {"Name": "dns", "Port": 53, "Default": False, "Protocol": "udp"}]
    assert (
        views.node_service(named)["Ports"] == views.agent_service(named)["Ports"] == views.health_entry(named)["Service"]["Ports"] == shown
    )
    assert views.catalog_service(named)["ServicePorts"] == shown
    assert "Ports" not in views.node_service(plain) and "ServicePorts" not in views.catalog_service(plain)


def test_others_can_put_them_into_the_catalogue_and_the_store_keeps_them() -> None:
    body = {"Node": "x", "Address": "192.0.2.9", "Service": {"Service": "web", "Ports": [HTTP, GRPC]}}
    found = parse_registration(body).instance
    assert found is not None and [port.name for port in found.ports] == ["http", "grpc"]
    assert decode(Instance, encode(found), "k") == found
    assert decode(Instance, b'{"id": "a", "name": "a", "node": "A"}', "k").ports == (), "a record of an earlier version"


def table(*instances: Instance) -> Table:
    return build_table(Snapshot("A", nodes=NODES, instances={(i.node, i.id): i for i in instances}))


def ask(table: Table, name: str, qtype: str = "SRV") -> dnslib.DNSRecord:
    response = answer(table, bytes(dnslib.DNSRecord.question(name, qtype).pack()), 1232, lambda n: 0)
    assert isinstance(response, bytes)
    return dnslib.DNSRecord.parse(response)


PORTS = table(
    instance(1, NamedPort("Metrics", 9100), NamedPort("dns", 53, protocol="udp")),
    instance(2, NamedPort("metrics", 9200), tags=("blue",)),
    instance(3, NamedPort("metrics", 9300), down=True),
    instance(4),
)


@pytest.mark.parametrize(
    ("name", "ports"),
    [
        ("metrics.port.web.service.consul", {9100, 9200}),
        ("METRICS.port.web.service.dc1.consul", {9100, 9200}),
        ("_metrics._tcp.web.service.consul", {9100, 9200}),
        ("_metrics._tcp.web.service.dc1.dc.consul", {9100, 9200}),
        ("dns.port.web.service.consul", {53}),
        ("_dns._udp.web.service.consul", {53}),
        ("_dns._tcp.web.service.consul", set()),
        ("_metrics._udp.web.service.consul", set()),
        ("nix.port.web.service.consul", set()),
        ("metrics.port.db.service.consul", set()),
        ("web.service.consul", {80}),
        ("_web._tcp.service.consul", {80}),
    ],
)
def test_srv_by_port_name(name: str, ports: set[int]) -> None:
    record = ask(PORTS, name)
    assert {rr.rdata.port for rr in record.rr} == ports
    assert record.header.rcode == (m.NOERROR if ports else m.NXDOMAIN)


def test_addresses_by_port_name_and_the_names_between() -> None:
    assert {str(rr.rdata) for rr in ask(PORTS, "metrics.port.web.service.consul", "A").rr} == {"10.28.0.1", "10.28.0.2"}
    for name in ("port.web.service.consul", "_tcp.web.service.consul"):
        record = ask(PORTS, name)
        assert (record.header.rcode, record.rr) == (m.NOERROR, [])


def test_port_names_follow_a_change() -> None:
    first = instance(1, NamedPort("http", 80))
    snapshot = Snapshot("A", nodes=NODES, instances={("A", "1"): first})
    zone = Zone(snapshot)
    moved = replace(first, ports=(NamedPort("grpc", 81),))
    zone.advance(replace(snapshot, revision=2, instances={("A", "1"): moved}), {("instances", ("A", "1"))})
    assert {rr.rdata.port for rr in ask(zone.table, "grpc.port.web.service.consul").rr} == {81}
    assert ask(zone.table, "http.port.web.service.consul").header.rcode == m.NXDOMAIN
