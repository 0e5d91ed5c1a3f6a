# SPDX-License-Identifier: Apache-2.0
"""What a service with a virtual address says in DNS: names as Kubernetes gives them ("DNS-Based Service Discovery", its specification), and
the one that Consul has for virtual addresses. Pure.

| name | records |
|---|---|
| `NAME.NAMESPACE.svc.cluster.local` | A, and SRV of each port; of a headless service those of its containers |
| `_PORT._PROTOCOL.NAME.NAMESPACE.svc.cluster.local` | SRV of the port of that name |
| `NAME.virtual.<domain>` | A, of the namespace `default` |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address

from plait.dns import message as m
from plait.dns.names import SERVICE_POINTER, Entry
from plait.dns.records import address_record, dotted
from plait.dns.view import bound
from plait.model.policy import DEFAULT_NAMESPACE
from plait.model.service import Service, ServicePort

ZONE = b"cluster.local"


def service_entries(service: Service, behind: Sequence[IPv4Address], domain: bytes, network: int) -> Iterator[Entry]:
    """To who is on the network of that number; what Consul has, to all. `behind`: the containers of a headless service."""
    owner = b".".join((dotted(service.name), dotted(service.namespace), b"svc", ZONE))
    if service.address is None:
        for one in behind:
            yield owner, bound(address_record(one), network)
            target = m.wire_name(one.packed.hex().encode() + b".addr." + domain)
            yield from _ports(owner, target, [(port, port.target) for port in service.ports], network)
        return
    address = address_record(service.address)
    yield owner, bound(address, network)
    if service.namespace == DEFAULT_NAMESPACE:
        yield dotted(service.name) + b".virtual." + domain, address
    yield from _ports(owner, m.wire_name(owner), [(port, port.port) for port in service.ports], network)
    yield service.address.reverse_pointer.encode(), (SERVICE_POINTER + network, m.wire_name(owner))


def _ports(owner: bytes, target: bytes, ports: Iterable[tuple[ServicePort, int]], network: int) -> Iterator[Entry]:
    """Each port with its number at the target."""
    for port, number in ports:
        srv = bound((m.SRV, b"".join(word.to_bytes(2, "big") for word in (0, 1, number)) + target), network)
        yield owner, srv
        if port.name:
            yield b".".join((b"_" + dotted(port.name), b"_" + port.proto.encode(), owner)), srv
