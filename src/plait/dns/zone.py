# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the cluster, one after another -> Table of every name that resolves now, and what changed of it. Pure and deterministic.

| name | records |
|---|---|
| `NAME.service.<domain>`, `TAG.NAME.service.<domain>` | A, AAAA or CNAME, SRV of instances on living nodes without a critical check |
| `PORT.port.NAME.service.<domain>`, `_PORT._PROTOCOL.NAME.service.<domain>` | the same, SRV with the port of that name |
| `consul.service.<domain>` | A and SRV (port 8300) of every living node that carries the store |
| `KEY--VALUE.label.<domain>`, `KEY.label.<domain>` | SRV of such instances with that label, in their metadata or on their container |
| `NODE.node.<domain>` | A, TXT (its meta) of a living node, or of one that was put into the catalogue |
| `WEB`, `WEB.<search>`, `WEB.<network>`, `WEB.<network>.<search>` and the same for aliases | A and AAAA of the running containers |
| `NAME.NAMESPACE.svc.cluster.local` and more | the virtual addresses of services: see `services` |
| `….in-addr.arpa`, `….ip6.arpa` | PTR to node, container or service |
| each zone | NS: up to three living nodes |

Records of containers are bound to their network, and containers of this host are known by their addresses (see `view`).

Other spellings of these names are brought to them by `grammar`. Names that cannot be asked for (an empty label, one over 63
bytes) are left out. A service registered without address has that of its node.

A change of instances, checks, endpoints, containers or services costs what it touches; one of nodes or networks is rare and
costs a look at all.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import cast

from plait.dns import message as m
from plait.dns.grammar import KEYWORDS
from plait.dns.names import CONTAINER_POINTER, NODE_POINTER, SERVICE_POINTER, Entry, Names
from plait.dns.records import address_record, dotted, is_name, label_word, located, reverse_zones, text_record
from plait.dns.services import ZONE as SERVICE_ZONE
from plait.dns.services import service_entries
from plait.dns.table import Changes, Table, diff_tables
from plait.dns.view import asker_entries, bound
from plait.model.addr import IPAddress, IPNetwork
from plait.model.cluster import Container, Endpoint, Instance, Node, Snapshot
from plait.model.discovery import LAN6, CatalogNode, Check
from plait.model.labels import Labels, has_names
from plait.model.service import VIP_POOL, VIP_POOL6

SERVER_META, SERVER_PORT = "server", 8300
"""Key of a node's meta that marks the node that carries the store, and the port that the service `consul` has there; a
test keeps both equal to those of `services`."""
_NAME_SERVERS = 3
Touched = tuple[str, Hashable]
"""Kind of a record (the name of its map in Snapshot), and its key there."""
_Key = tuple[str, str]
_Behind = Mapping[_Key, tuple[IPAddress, ...]]


def build_table(snapshot: Snapshot, domain: str = "consul", datacenter: str = "dc1", search: str = "plait") -> Table:
    """Every name of the cluster as this node sees it. `domain` holds services and nodes, `search` containers; both lower case."""
    return Zone(snapshot, domain, datacenter, search).table


class Zone:
    """What each record of the snapshot says in DNS, and the table of it all. `only_passing`: an instance with a warning says nothing;
    `headless` tells the containers of each service without a virtual address."""

    def __init__(
        self,
        snapshot: Snapshot,
        domain: str = "consul",
        datacenter: str = "dc1",
        search: str = "plait",
        *,
        only_passing: bool = False,
        headless: Callable[[Snapshot], _Behind] = lambda _: {},
    ) -> None:
        self._headless = headless
        self.domain, self.datacenter, self.search = dotted(domain), dotted(datacenter), dotted(search)
        self._silencing = ("critical", "warning") if only_passing else ("critical",)
        self._begin(snapshot)

    def _begin(self, snapshot: Snapshot) -> None:
        self._snapshot, self._behind = snapshot, self._headless(snapshot)
        self._names = Names((self.domain, self.datacenter), self._zones(), snapshot.revision, self._fixed())
        self._look_at_all()
        self._names.change((), (entry for entries in self._said.values() for entry in entries), snapshot.revision)

    @property
    def table(self) -> Table:
        """The table now; it changes with each `advance`."""
        return self._names.table

    def advance(self, snapshot: Snapshot, touched: Iterable[Touched]) -> Changes | None:
        """Take a later snapshot, of which `touched` names every instance, check, endpoint, container and service that may differ.
        Returns what changed of the table, None if no answer did."""
        before, self._snapshot = self._snapshot, snapshot
        others, self._behind = self._behind, self._headless(snapshot)
        stirred = [("services", one) for one in others.keys() | self._behind.keys() if others.get(one) != self._behind.get(one)]
        moved = before.networks is not snapshot.networks or before.services is not snapshot.services
        if moved and self._zones() != self.table.zones:
            old = self.table
            self._begin(snapshot)
            return diff_tables(old, self.table)
        same = before.nodes is snapshot.nodes and before.catalog_nodes is snapshot.catalog_nodes and before.networks is snapshot.networks
        if same and before.alive == snapshot.alive:
            return self._look_at(self._concerned((*touched, *stirred)))
        said = self._said
        self._look_at_all()
        gone = [entry for key, entries in said.items() if self._said.get(key) != entries for entry in entries]
        come = [entry for key, entries in self._said.items() if said.get(key) != entries for entry in entries]
        return self._names.change(gone, come, snapshot.revision)

    # --- which records are to be looked at

    def _look_at(self, sources: Iterable[Touched]) -> Changes | None:
        """Have the sources say what they say now."""
        gone: list[Entry] = []
        come: list[Entry] = []
        for source in sources:
            before, now = self._said.pop(source, ()), tuple(self._entries(source))
            if now:
                self._said[source] = now
            if before != now:
                gone += before
                come += now
        return self._names.change(gone, come, self._snapshot.revision)

    def _look_at_all(self) -> None:
        """Learn everything of the snapshot anew."""
        snapshot = self._snapshot
        self._nodes = {name: node for name, node in sorted(snapshot.nodes.items()) if name in snapshot.alive or name == snapshot.me}
        self._addresses = {name: str(node.address) for name, node in self._nodes.items()}
        self._addresses |= {name: node.address for name, node in snapshot.catalog_nodes.items() if name not in snapshot.nodes}
        self._bad: dict[_Key, Check] = {key: check for key, check in snapshot.checks.items() if check.status != "passing"}
        self._count = Counter(map(_about, self._bad.values()))
        self._labels = Labels(snapshot.containers)
        self._instances_of: defaultdict[str, set[_Key]] = defaultdict(set)
        for key in snapshot.instances:
            self._instances_of[key[0]].add(key)
        sources: list[Touched] = [("nodes", name) for name in self._addresses]
        sources += [("endpoints", ident) for ident in snapshot.endpoints]
        sources += [("containers", key) for key in snapshot.containers]
        sources += [("instances", key) for key in snapshot.instances]
        sources += [("services", key) for key in snapshot.services]
        self._said: dict[Touched, tuple[Entry, ...]] = {source: said for source in sources if (said := tuple(self._entries(source)))}
        self._said["zones", ""] = tuple(self._apexes())

    def _concerned(self, touched: Iterable[Touched]) -> Iterator[Touched]:
        """The sources that may say something else because of what was touched: a check lets its instance, or all of its node, speak."""
        found: dict[Touched, None] = {}
        for kind, key in touched:
            if kind == "checks":
                found.update(dict.fromkeys(self._judged(cast(_Key, key))))
            elif kind in ("instances", "endpoints", "containers", "services"):
                found[kind, key] = None
            if kind == "instances":
                self._note(cast(_Key, key))
            elif kind == "containers":
                found.update(dict.fromkeys(self._bound(cast(_Key, key))))
        return iter(found)

    def _note(self, key: _Key) -> None:
        """Remember on which node the instance is, or no longer is."""
        if key in self._snapshot.instances:
            self._instances_of[key[0]].add(key)
        else:
            self._instances_of[key[0]].discard(key)

    def _bound(self, key: _Key) -> Iterator[Touched]:
        """The instances that the container lends its labels, or no longer does."""
        names = self._labels.note(key, self._snapshot.containers.get(key))
        for other in sorted(self._instances_of[key[0]]):
            if (instance := self._snapshot.instances.get(other)) is not None and (instance.node, instance.container) in names:
                yield "instances", other

    def _judged(self, key: _Key) -> Iterator[Touched]:
        """The instances of which a changed check says something else than before; none if only its output changed."""
        before, now = self._bad.pop(key, None), self._snapshot.checks.get(key)
        if now is not None and now.status != "passing":
            self._bad[key] = now
        else:
            now = None
        abouts = {_about(check) for check in (before, now) if check is not None}
        if before is not None and now is not None and len(abouts) == 1:
            return
        for sign, check in ((-1, before), (1, now)):
            if check is not None:
                self._count[_about(check)] += sign
        for about in abouts:
            if not self._count[about]:
                del self._count[about]
            node, service, _ = about
            yield from (("instances", k) for k in ([(node, service)] if service else sorted(self._instances_of[node])))

    # --- what each of them says

    def _entries(self, source: Touched) -> Iterator[Entry]:
        kind, key = source
        snapshot = self._snapshot
        if kind == "nodes":
            yield from self._node(cast(str, key))
        elif kind == "endpoints" and (endpoint := snapshot.endpoints.get(cast(str, key))) is not None:
            yield from self._endpoint(endpoint)
        elif kind == "containers" and (container := snapshot.containers.get(cast(_Key, key))) is not None:
            yield from self._container(container)
        elif kind == "instances" and (instance := snapshot.instances.get(cast(_Key, key))) is not None:
            silenced = any((instance.node, about, bad) in self._count for about in ("", instance.id) for bad in self._silencing)
            if instance.node in self._addresses and not instance.down and not silenced:
                yield from self._instance(instance)
        elif kind == "services" and (service := snapshot.services.get(cast(_Key, key))) is not None:
            network, behind = snapshot.networks.get(service.network), self._behind.get(service.ident, ())
            yield from service_entries(service, network, behind, self.domain, _number(service.network))

    def _node_target(self, name: str) -> bytes:
        return dotted(name) + b".node." + self.datacenter + b"." + self.domain

    def _node(self, name: str) -> Iterator[Entry]:
        agent = self._nodes.get(name)
        known: Node | CatalogNode = agent or self._snapshot.catalog_nodes[name]
        texts = [text_record(key, value) for key, value in sorted(known.meta.items())]
        owner = dotted(name) + b".node." + self.domain
        records, own = located(self._addresses[name])
        yield from ((owner, record) for record in (*records, *texts))
        tunnels = (agent.tunnel, agent.tunnel6 if self._six() else None) if agent is not None else ()
        for address in (own, *tunnels):
            if address is not None:
                yield from _pointer(address, NODE_POINTER, self._node_target(name))
        if agent is not None and SERVER_META in agent.meta:
            yield from self._instance(Instance(id="consul", name="consul", node=name, port=SERVER_PORT))

    def _endpoint(self, endpoint: Endpoint) -> Iterator[Entry]:
        """An endpoint counts from its attachment to its end, whatever its container's state: it exists before the engine reports the
        container as running, and the attach must find its name."""
        if endpoint.node not in self._nodes:
            return
        names = sorted({endpoint.name, *endpoint.aliases} - {""}) if has_names(endpoint.labels) else ()
        for address in endpoint.present:
            yield from self._asker(endpoint.node, endpoint.container or endpoint.id, endpoint.network, address)
            for name in names:
                yield from self._attached(dotted(name), endpoint.network, address)

    def _container(self, container: Container) -> Iterator[Entry]:
        """A container without an endpoint of ours (on the engine's own bridge) counts while it runs."""
        if container.node not in self._nodes or container.state != "running":
            return
        found: list[tuple[str, IPAddress]] = [*container.addresses.items(), *container.addresses6.items()]
        for name, address in found:
            network = self._snapshot.networks.get(name)
            if network is not None and any(subnet is not None and address in subnet for subnet in (network.subnet, network.subnet6)):
                yield from self._asker(container.node, container.id, name, address)
                if has_names(container.labels):
                    yield from self._attached(dotted(container.name), name, address)

    def _asker(self, node: str, sandbox: str, network: str, address: IPAddress) -> Iterator[Entry]:
        """Which networks a container of this host sees: others ask the agents of their own."""
        if node == self._snapshot.me:
            known = self._snapshot.networks.get(network)
            internal = known is not None and known.internal
            yield from asker_entries(address.packed, _digest(sandbox, 8), _number(network), internal=internal)

    def _attached(self, name: bytes, network: str, address: IPAddress) -> Iterator[Entry]:
        """What a name or alias of something on a network of the cluster says, to who is on that network."""
        number = _number(network)
        yield from _pointer(address, CONTAINER_POINTER + number, name + b"." + self.search)
        record = bound(address_record(address), number)
        for key in (name, name + b"." + dotted(network)):
            yield key, record
            yield key + b"." + self.search, record

    def _instance(self, instance: Instance) -> Iterator[Entry]:
        """One instance's address and SRV under its name and each of its tags."""
        service = dotted(instance.name)
        if b"." in service:  # the grammar would read all but its last label as a tag of another service
            return
        records, target = self._location(instance)
        if not is_name(target):
            return
        srv = self._srv(instance, instance.port, target)
        for prefix in (b"", *(dotted(tag) + b"." for tag in instance.tags)):
            owner = prefix + service + b".service." + self.domain
            yield from ((owner, record) for record in (*records, srv))
        for port in instance.ports:
            name, named = dotted(port.name), self._srv(instance, port.port, target)
            for prefix in (name + b".port.", b"_" + name + b"._" + port.protocol.encode() + b"."):
                owner = prefix + service + b".service." + self.domain
                yield from ((owner, record) for record in (*records, named))
        for key, value in self._labels.of(instance).items():
            word = label_word(key)
            for owner in (word, word + b"--" + label_word(value)):
                yield owner + b".label." + self.domain, srv
        for rtype, rdata in records:
            if rtype in (m.A, m.AAAA):
                yield from _pointer(ip_address(rdata), SERVICE_POINTER, service + b".service." + self.datacenter + b"." + self.domain)

    def records_of(self, instance: Instance) -> tuple[m.Record, ...]:
        """The address and the SRV record of an instance, whatever its checks say; () if it cannot be named."""
        if not instance.address and instance.node not in self._addresses:
            return ()
        records, target = self._location(instance)
        return (*records, self._srv(instance, instance.port, target)) if is_name(target) else ()

    def _srv(self, instance: Instance, port: int, target: bytes) -> m.Record:
        numbers = (1, self._weight(instance), port & 0xFFFF)
        return m.SRV, b"".join(number.to_bytes(2, "big") for number in numbers) + m.wire_name(target)

    def _weight(self, instance: Instance) -> int:
        """The weight of its SRV record: by what its checks and those of its node say."""
        warned = any((instance.node, about, "warning") in self._count for about in ("", instance.id))
        return min(max(instance.weight_warning if warned else instance.weight_passing, 0), 65535)

    def _location(self, instance: Instance) -> tuple[list[m.Record], bytes]:
        """The address record of an instance and the target of its SRV: the node, the address as a name, or its own host name."""
        if not instance.address:
            return located(self._addresses[instance.node])[0], self._node_target(instance.node)
        records, address = located(instance.address)
        if address is None:
            return records, dotted(instance.address) if records else b""
        if instance.container and (other := instance.tagged_addresses.get(LAN6)):
            records += located(other)[0]
        return records, address.packed.hex().encode() + b".addr." + self.datacenter + b"." + self.domain

    # --- zones

    def _zones(self) -> frozenset[bytes]:
        subnets: list[IPNetwork] = [s for n in self._snapshot.networks.values() for s in (n.subnet, n.subnet6) if s is not None]
        subnets += [VIP_POOL, *([VIP_POOL6] if self._six() else [])] if self._snapshot.services else []
        services = [SERVICE_ZONE] if self._snapshot.services else []
        return frozenset((self.domain, self.search, *services, *(zone for subnet in subnets for zone in reverse_zones(subnet))))

    def _six(self) -> bool:
        """Whether any network has IPv6."""
        return any(network.subnet6 is not None for network in self._snapshot.networks.values())

    def _fixed(self) -> Iterator[bytes]:
        """Names that exist without any below them."""
        for word in (*KEYWORDS, b"_tcp", b"_tcp.service"):
            yield word + b"." + self.domain
        yield self.datacenter + b"." + self.domain
        for word in KEYWORDS:
            yield word + b"." + self.datacenter + b"." + self.domain

    def _apexes(self) -> Iterator[Entry]:
        """Name servers of every zone (this node first, then others by name), and `ns.<domain>`, which SOA records name."""
        order = sorted(self._nodes, key=lambda name: (name != self._snapshot.me, name))[:_NAME_SERVERS]
        for zone in self._zones():
            yield from ((zone, (m.NS, m.wire_name(self._node_target(name)))) for name in order if is_name(self._node_target(name)))
        for name in order[:1]:
            yield b"ns." + self.domain, address_record(self._nodes[name].address)


def _digest(name: str, size: int) -> bytes:
    return hashlib.blake2s(name.encode(), digest_size=size).digest()


def _number(network: str) -> int:
    """The network's number, the same on every host and for ever: 40 bits of its name's digest, never 0."""
    return int.from_bytes(_digest(network, 5), "big") + 1


def _about(check: Check) -> tuple[str, str, str]:
    return check.node, check.service_id, check.status


def _pointer(address: IPAddress, kind: int, target: bytes) -> Iterator[Entry]:
    """That `address` is `target`."""
    if is_name(target):
        yield address.reverse_pointer.encode(), (kind, m.wire_name(target))
