# SPDX-License-Identifier: Apache-2.0
"""Records as JSON: round trip, tolerance of other versions, errors that name the key."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from plait.model.cluster import Block, Container, Endpoint, Instance, Network, Node, PortMapping
from plait.model.errors import ConfigError
from plait.store.codec import decode, encode

IP = IPv4Address("10.28.0.2")
PORTS = (PortMapping("tcp", 8080, 80), PortMapping("udp", 53, 53, IPv4Address("127.0.0.1")))
RECORDS = [
    Node("A", "id", IPv4Address("192.0.2.1"), tunnel=IP, meta={"k": "v"}),
    Node("A", "id", IPv4Address("192.0.2.1")),
    Network("default", IPv4Network("10.28.0.0/16"), IPv4Address("10.28.255.254"), 20, labels={"ä": "ö"}),
    Block("default", IPv4Network("10.28.0.0/20"), "A", "bridge"),
    Endpoint("e", "default", "A", IP, "02:00:00:00:00:01", "pl-e1", "docker", aliases=("x",), ports=PORTS),
    Container("c", "web", "A", "docker", addresses={"default": IP}, ports=PORTS, started=1.5),
    Instance("web", "web", "A", "10.28.0.2", 80, ("http",), tagged_addresses={"lan": "10.28.0.2"}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives(record: object) -> None:
    assert decode(type(record), encode(record), "k") == record


def test_unknown_fields_are_ignored_and_missing_ones_defaulted() -> None:
    value = b'{"name":"A","id":"i","address":"192.0.2.1","from_the_future":[1,{"x":2}]}'
    assert decode(Node, value, "nodes/A") == Node("A", "i", IPv4Address("192.0.2.1"))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"name":"A"}',
        b'{"name":"A","id":"i","address":"nowhere"}',
        b'{"name":"A","id":"i","address":7}',
        b"\xff\xfe",
    ],
)
def test_an_undecodable_record_names_its_key(value: bytes) -> None:
    with pytest.raises(ConfigError, match="nodes/A"):
        decode(Node, value, "nodes/A")
