# SPDX-License-Identifier: Apache-2.0
"""Snapshot of the cluster -> Table of every name that resolves now. Pure and deterministic.

| name | records |
|---|---|
| `NAME.service.<domain>`, `TAG.NAME.service.<domain>` | A, AAAA or CNAME, SRV of instances on living nodes without a critical check |
| `consul.service.<domain>` | A and SRV (port 8300) of every living node that carries the store |
| `NODE.node.<domain>` | A, TXT (its meta) of a living node, or of one that was put into the catalogue |
| `WEB`, `WEB.<search>`, `WEB.<network>`, `WEB.<network>.<search>` and the same for aliases | A of the running containers |
| `….in-addr.arpa` | PTR to node, container or service |
| each zone | NS: up to three living nodes |

Other spellings of these names are brought to them by `grammar`. Names that cannot be asked for (an empty label, one over 63
bytes) are left out. A service registered without address has that of its node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

from plait.dns import message as m
from plait.dns.grammar import KEYWORDS
from plait.dns.table import Records, Table
from plait.model.addr import IPAddress
from plait.model.cluster import Instance, Node, Snapshot
from plait.model.discovery import CatalogNode

SERVER_META, SERVER_PORT = "server", 8300
"""Key of a node's meta that marks the node that carries the store, and the port that the service `consul` has there; a
test keeps both equal to those of `services`."""
_NAME_SERVERS = 3
_Names = defaultdict[bytes, set[m.Record]]


def build_table(snapshot: Snapshot, domain: str = "consul", datacenter: str = "dc1", search: str = "plait") -> Table:
    """Every name of the cluster as this node sees it. `domain` holds services and nodes, `search` containers; both lower case."""
    return _Build(snapshot, dotted(domain), dotted(datacenter), dotted(search)).table()


def dotted(name: str) -> bytes:
    """The table's shape of a name as people write it: lower case, UTF-8, no final dot."""
    return name.encode().lower().removesuffix(b".")


class _Build:
    """One run of `build_table`: collects records in `names`, a set per name so that equal ones fall together."""

    def __init__(self, snapshot: Snapshot, domain: bytes, datacenter: bytes, search: bytes) -> None:
        self.snapshot, self.domain, self.datacenter, self.search = snapshot, domain, datacenter, search
        self.nodes = {name: node for name, node in sorted(snapshot.nodes.items()) if name in snapshot.alive or name == snapshot.me}
        self.addresses = {name: str(node.address) for name, node in self.nodes.items()}
        self.addresses |= {name: node.address for name, node in snapshot.catalog_nodes.items() if name not in snapshot.nodes}
        self.critical = {(c.node, c.service_id) for c in snapshot.checks.values() if c.status == "critical"}
        self.warned = {(c.node, c.service_id) for c in snapshot.checks.values() if c.status == "warning"}
        self.names: _Names = defaultdict(set)
        self.reverse: dict[IPAddress, bytes] = {}

    def table(self) -> Table:
        zones = {self.domain, self.search, *(zone for network in self.snapshot.networks.values() for zone in reverse_zones(network.subnet))}
        self._nodes()
        self._containers()
        self._services()
        for address, target in self.reverse.items():
            self._add(address.reverse_pointer.encode(), (m.PTR, m.wire_name(target)))
        self._apexes(zones)
        self._empty_names(zones)
        names: dict[bytes, Records] = {name: tuple(sorted(self.names[name])) for name in sorted(self.names)}
        return Table((self.domain, self.datacenter), frozenset(zones), self.snapshot.revision, names)

    def _add(self, name: bytes, *records: m.Record) -> None:
        if is_name(name):
            self.names[name].update(records)

    def _points_back(self, address: IPAddress, target: bytes) -> None:
        """Make `target` the PTR of `address` unless an earlier caller has named it."""
        if is_name(target):
            self.reverse.setdefault(address, target)

    def _node_target(self, name: str) -> bytes:
        return dotted(name) + b".node." + self.datacenter + b"." + self.domain

    def _nodes(self) -> None:
        for name, address_text in self.addresses.items():
            known: Node | CatalogNode = self.nodes.get(name) or self.snapshot.catalog_nodes[name]
            texts = [f"{key}={value}".encode()[:255] for key, value in sorted(known.meta.items())]
            records, _ = _located(address_text)
            self._add(dotted(name) + b".node." + self.domain, *records, *((m.TXT, bytes((len(text),)) + text) for text in texts))
        for name, node in self.nodes.items():
            for address in (node.address, node.tunnel):
                if address is not None:
                    self._points_back(address, self._node_target(name))
            if SERVER_META in node.meta:
                self._instance(Instance(id="consul", name="consul", node=name, port=SERVER_PORT))

    def _containers(self) -> None:
        for name, network, address in sorted(self._attached()):
            self._points_back(address, name + b"." + self.search)
            for key in (name, name + b"." + network):
                self._add(key, address_record(address))
                self._add(key + b"." + self.search, address_record(address))

    def _attached(self) -> Iterator[tuple[bytes, bytes, IPv4Address]]:
        """(name or alias, network, address) of what is attached to a network of the cluster on a living node.

        An endpoint counts from its attachment to its end, whatever its container's state: it exists before the engine
        reports the container as running, and the attach must find its name. A container without an endpoint of ours (on
        the engine's own bridge) counts while it runs.
        """
        for endpoint in self.snapshot.endpoints.values():
            if endpoint.node in self.nodes:
                for name in {endpoint.name, *endpoint.aliases} - {""}:
                    yield dotted(name), dotted(endpoint.network), endpoint.address
        for container in self.snapshot.containers.values():
            if container.node in self.nodes and container.state == "running":
                for name, address in container.addresses.items():
                    network = self.snapshot.networks.get(name)
                    if network is not None and address in network.subnet:
                        yield dotted(container.name), dotted(name), address

    def _services(self) -> None:
        for _, instance in sorted(self.snapshot.instances.items()):
            failed = {(instance.node, ""), (instance.node, instance.id)} & self.critical
            if instance.node in self.addresses and not instance.down and not failed:
                self._instance(instance)

    def _weight(self, instance: Instance) -> int:
        """The weight of its SRV record: by what its checks and those of its node say."""
        warned = {(instance.node, ""), (instance.node, instance.id)} & self.warned
        return min(max(instance.weight_warning if warned else instance.weight_passing, 0), 65535)

    def _instance(self, instance: Instance) -> None:
        """Add one instance's address and SRV under its name and each of its tags."""
        service = dotted(instance.name)
        if b"." in service:  # the grammar would read all but its last label as a tag of another service
            return
        records, target = self._location(instance)
        if not is_name(target):
            return
        numbers = (1, self._weight(instance), instance.port & 0xFFFF)
        srv = (m.SRV, b"".join(number.to_bytes(2, "big") for number in numbers) + m.wire_name(target))
        for prefix in (b"", *(dotted(tag) + b"." for tag in instance.tags)):
            self._add(prefix + service + b".service." + self.domain, *records, srv)
        for rtype, rdata in records:
            if rtype in (m.A, m.AAAA):
                self._points_back(ip_address(rdata), service + b".service." + self.datacenter + b"." + self.domain)

    def _location(self, instance: Instance) -> tuple[list[m.Record], bytes]:
        """The address record of an instance and the target of its SRV: the node, the address as a name, or its own host name."""
        if not instance.address:
            return _located(self.addresses[instance.node])[0], self._node_target(instance.node)
        records, address = _located(instance.address)
        if address is None:
            return records, dotted(instance.address) if records else b""
        return records, address.packed.hex().encode() + b".addr." + self.datacenter + b"." + self.domain

    def _apexes(self, zones: Iterable[bytes]) -> None:
        """Name servers of every zone (this node first, then others by name), and `ns.<domain>`, which SOA records name."""
        order = sorted(self.nodes, key=lambda name: (name != self.snapshot.me, name))[:_NAME_SERVERS]
        for zone in zones:
            self._add(zone, *((m.NS, m.wire_name(self._node_target(name))) for name in order if is_name(self._node_target(name))))
        for name in order[:1]:
            self._add(b"ns." + self.domain, address_record(self.nodes[name].address))

    def _empty_names(self, zones: set[bytes]) -> None:
        """Names that exist only because others lie below them (RFC 8020): NODATA, else a resolver that walks down from the
        zone takes everything below for absent."""
        for word in (*KEYWORDS, b"_tcp", b"_tcp.service"):
            self._add(word + b"." + self.domain)
        self._add(self.datacenter + b"." + self.domain)
        for word in KEYWORDS:
            self._add(word + b"." + self.datacenter + b"." + self.domain)
        for name in list(self.names):
            parents = list(_parents(name))
            depth = next((index for index, parent in enumerate(parents) if parent in zones), 0)
            for parent in parents[:depth]:
                self._add(parent)


def _located(text: str) -> tuple[list[m.Record], IPAddress | None]:
    """The record that leads to an address or host name, and the address; no record if it is neither."""
    try:
        address = ip_address(text)
    except ValueError:
        host = dotted(text)
        return [(m.CNAME, m.wire_name(host))] if is_name(host) else [], None
    return [address_record(address)], address


def _parents(name: bytes) -> Iterator[bytes]:
    """The names above `name`, nearest first."""
    while name := name.partition(b".")[2]:
        yield name


def is_name(name: bytes) -> bool:
    """Whether `name` can be asked for and written: labels of 1 to 63 bytes, 255 in all. The root is none."""
    try:
        return bool(name) and bool(m.wire_name(name))
    except ValueError:
        return False


def address_record(address: IPAddress) -> m.Record:
    return (m.AAAA if isinstance(address, IPv6Address) else m.A, address.packed)


def reverse_zones(subnet: IPv4Network) -> Iterator[bytes]:
    """The in-addr.arpa names that cover exactly `subnet`: one if its prefix ends at a byte, else up to 128."""
    octets = -(-subnet.prefixlen // 8)
    for part in subnet.subnets(new_prefix=octets * 8):
        labels = str(part.network_address).split(".")[:octets]
        yield ".".join((*reversed(labels), "in-addr.arpa")).encode()
