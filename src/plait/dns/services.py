# SPDX-License-Identifier: Apache-2.0
"""What a service with a virtual address says in DNS: names as Kubernetes gives them ("DNS-Based Service Discovery", its specification), and
the one that Consul has for virtual addresses. Pure.

| name | records |
|---|---|
| `NAME.NAMESPACE.svc.cluster.local` | A (AAAA on networks with IPv6), SRV of each port; of a headless service those of its containers |
| `_PORT._PROTOCOL.NAME.NAMESPACE.svc.cluster.local` | SRV of the port of that name |
| `NAME.virtual.<domain>` | A and AAAA, of the namespace `default` |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address

from plait.dns import message as m
from plait.dns.names import SERVICE_POINTER, Entry
from plait.dns.records import address_record, dotted
from plait.dns.view import bound
from plait.model.addr import IPAddress
from plait.model.cluster import Network
from plait.model.policy import DEFAULT_NAMESPACE
from plait.model.service import Service, ServicePort

ZONE = b"cluster.local"


def service_entries(service: Service, network: Network | None, behind: Sequence[IPAddress], domain: bytes, number: int) -> Iterator[Entry]:
    """To who is on the network, which has that number; what Consul has, to all. `behind`: the addresses of a headless service's containers,
    of which those of IPv4 are targets of SRV records."""
    owner = b".".join((dotted(service.name), dotted(service.namespace), b"svc", ZONE))
    if service.address is None:
        for one in behind:
            yield owner, bound(address_record(one), number)
            if isinstance(one, IPv4Address):
                target = m.wire_name(one.packed.hex().encode() + b".addr." + domain)
                yield from _ports(owner, target, [(port, port.target) for port in service.ports], number)
        return
    for address in (service.address, service.address6(network)):
        if address is not None:
            yield owner, bound(address_record(address), number)
            if service.namespace == DEFAULT_NAMESPACE:
                yield dotted(service.name) + b".virtual." + domain, address_record(address)
            yield address.reverse_pointer.encode(), (SERVICE_POINTER + number, m.wire_name(owner))
    yield from _ports(owner, m.wire_name(owner), [(port, port.port) for port in service.ports], number)


def _ports(owner: bytes, target: bytes, ports: Iterable[tuple[ServicePort, int]], network: int) -> Iterator[Entry]:
    """Each port with its number at the target."""
    for port, number in ports:
        srv = bound((m.SRV, b"".join(word.to_bytes(2, "big") for word in (0, 1, number)) + target), network)
        yield owner, srv
        if port.name:
            yield b".".join((b"_" + dotted(port.name), b"_" + port.proto.encode(), owner)), srv
