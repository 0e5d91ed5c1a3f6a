# SPDX-License-Identifier: Apache-2.0
"""`Operations` in memory, for the tests of runtime adapters. It raises what the agent raises.

One node of a cluster of one: every pool is this node's. `plumb` is called with each endpoint that is attached and with its network, so that
a test on a real engine can make the link; `unplumb` with each that goes. `fail` makes the next call of a name raise an error. `kept`:
addresses that only containers of that name get; `used`: what a host uses for something else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address
from itertools import count

from plait.backends import BACKENDS, own_mac
from plait.backends.settings import choose_backend
from plait.ipam import Reservation, check_network, choose_address, default_block_prefix, exhausted, image, next_subnet, origin
from plait.model.cluster import Container, Endpoint, Network, PortMapping, clash
from plait.model.errors import ConfigError, Conflict, NotFound, NotSupported, PlaitError, PortInUse
from plait.model.limits import UNSAID
from plait.plan.desired import device_name, endpoint_mac
from plait.runtimes.api import AttachRequest, NetworkRequest, paired

Plumb = Callable[[Endpoint, Network], Awaitable[None]]


async def _nothing(endpoint: Endpoint, network: Network) -> None:
    del endpoint, network


class FakeOperations:
    """Implements `runtimes.api.Operations`. `calls` has the name of every changing call, `reports` every reported list."""

    def __init__(self, node: str = "A", plumb: Plumb = _nothing, unplumb: Plumb = _nothing) -> None:
        self.node, self._plumb, self._unplumb = node, plumb, unplumb
        self.calls: list[str] = []
        self.reports: list[tuple[Container, ...]] = []
        self.attached: dict[str, Endpoint] = {}
        self.kept: dict[IPv4Address, str] = {}
        self.used: list[IPv4Network] = []
        self.reserved: dict[str, dict[IPv4Address, Reservation]] = {}
        self._networks: dict[str, Network] = {}
        self._fail: dict[str, PlaitError] = {}
        self._serial = 0
        self._free = count(32768)

    def fail(self, call: str, error: PlaitError) -> None:
        self._fail[call] = error

    def _enter(self, call: str) -> None:
        self.calls.append(call)
        if call in self._fail:
            raise self._fail.pop(call)

    # --- networks

    def networks(self) -> Mapping[str, Network]:
        return dict(self._networks)

    def taken(self) -> Sequence[IPv4Network]:
        return [*(n.subnet for n in self._networks.values()), *self.used]

    def check_overlaps(self, subnet: IPv4Network) -> None:
        if any(subnet.overlaps(other) for other in self.used):
            raise ConfigError("subnet", str(subnet), "overlaps what a host uses")

    async def ensure_network(self, request: NetworkRequest) -> Network:
        self._enter("ensure_network")
        known = self._networks.get(request.name)
        if known is not None:
            if request.ip_range not in (None, known.ip_range):
                raise Conflict(f"network {request.name!r} exists already with IP range {known.ip_range}, not {request.ip_range}")
            if request.subnet6 not in (None, known.subnet6):
                raise Conflict(f"network {request.name!r} exists already with IPv6 subnet {known.subnet6}, not {request.subnet6}")
            if request.subnet not in (None, known.subnet):
                raise Conflict(f"network {request.name!r} exists already with subnet {known.subnet}, not {request.subnet}")
            return known
        subnet = request.subnet or next_subnet([n.subnet for n in self._networks.values()])
        made = Network(
            request.name,
            subnet,
            request.gateway or subnet[1],
            request.block_prefix or default_block_prefix(request.ip_range or subnet),
            backend=choose_backend(request.options, BACKENDS.values()).name,
            internal=request.internal,
            labels=dict(request.labels),
            options=dict(request.options),
            ip_range=request.ip_range,
            excluded=request.excluded,
            subnet6=request.subnet6,
        )
        made = replace(made, gateway6=request.gateway6 or image(made, made.gateway))
        check_network(made, list(self._networks.values()))
        self._networks[made.name] = made
        return made

    async def remove_network(self, name: str, force: bool = False) -> None:
        self._enter("remove_network")
        self._network(name)
        holders = [e.name for e in self.attached.values() if e.network == name]
        if holders and not force:
            raise Conflict(f"network {name!r} is in use by {', '.join(holders)}")
        del self._networks[name]

    # --- addresses

    async def reserve(
        self,
        network: str,
        owner: str,
        address: IPv4Address | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        mac: str = "",
    ) -> IPv4Interface:
        self._enter("reserve")
        found = self._network(network)
        held = self.reserved.setdefault(network, {})
        blocks: list[IPv4Network] = [found.subnet]
        chosen = choose_address(found, blocks, held, owner, name, address, refuse=lambda a: self._refuse(a, name))
        if chosen is None:
            raise exhausted(found, [], {})
        self._serial += 1
        held[chosen] = Reservation(network, chosen, owner, name, True, self._serial)
        return IPv4Interface((chosen, found.subnet.prefixlen))

    def _refuse(self, address: IPv4Address, name: str) -> str:
        return "" if self.kept.get(address, name) == name else f"address {address} is reserved for {self.kept[address]!r}"

    async def reserve6(
        self,
        network: str,
        owner: str,
        address: IPv6Address | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        mac: str = "",
    ) -> IPv6Address:
        del mac
        found = self._network(network)
        own = image(found, (await self.reserve(network, owner)).ip)
        assert own is not None
        if address in (None, own):
            return own
        of = origin(found, address)
        assert of is not None
        await self.reserve(network, paired(owner), of, name, labels)
        return address

    async def release(self, network: str, address: IPv4Address) -> None:
        self._enter("release")
        known = self.reserved.get(network, {}).get(address)
        if known is not None and known.live:
            self._serial += 1
            self.reserved[network][address] = replace(known, live=False, serial=self._serial)

    def held(self, owner_prefix: str) -> Mapping[tuple[str, IPv4Address], str]:
        everything = (r for held in self.reserved.values() for r in held.values())
        return {(r.network, r.address): r.owner for r in everything if r.live and r.owner.startswith(owner_prefix)}

    # --- endpoints

    async def attach(self, request: AttachRequest) -> Endpoint:
        self._enter("attach")
        network = self._network(request.network)
        known = self.attached.get(request.endpoint)
        wanted = request.address or (known.address if known is not None else None)
        held = self.reserved.setdefault(network.name, {})
        if wanted in held and not any(e.address == wanted and e.id != request.endpoint for e in self._on(network.name)):
            held[wanted] = replace(held[wanted], owner=request.endpoint, name=request.name)
        address = (await self.reserve(network.name, request.endpoint, wanted, request.name)).ip
        address6 = (request.address6 or image(network, address)) if request.ipv6 else None
        endpoint = Endpoint(
            id=request.endpoint,
            network=network.name,
            node=self.node,
            address=address,
            mac=request.mac or (endpoint_mac(request.endpoint) if own_mac(network) else ""),
            dev=device_name(request.endpoint),
            runtime=request.runtime,
            container=request.container,
            name=request.name,
            aliases=request.aliases,
            labels=dict(request.labels),
            ports=known.ports if known is not None else (),
            address6=address6,
            limits=request.limits if request.limits != UNSAID else None,
        )
        if known is None:
            await self._plumb(endpoint, network)
        self.attached[endpoint.id] = endpoint
        return endpoint

    async def publish(self, endpoint: str, ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        self._enter("publish")
        known = self.attached.get(endpoint)
        if known is None:
            raise NotFound(f"cannot publish ports of endpoint {endpoint}: this node has no such endpoint")
        others = [(p, e) for e in self.attached.values() if e.id != endpoint for p in e.ports]
        done: list[PortMapping] = []
        for port in ports:
            if port.host_ip.version == 6 and known.address6 is None:
                raise NotSupported(f"cannot publish a port of {known.name!r} on {port.host_ip}: it has no IPv6 address")
            taken = {p.host_port for p in (*done, *(p for p, _ in others)) if p.proto == port.proto}
            chosen = replace(port, host_port=port.host_port or next(n for n in self._free if n not in taken))
            holder = next((e for p, e in others if clash(p, e, chosen, known)), None)
            if holder is not None:
                raise PortInUse(f"port {chosen.host_port}/{port.proto} of this host is in use by {holder.name}")
            done.append(chosen)
        self.attached[endpoint] = replace(known, ports=tuple(done))
        return tuple(done)

    async def unpublish(self, endpoint: str) -> None:
        self._enter("unpublish")
        if endpoint in self.attached:
            self.attached[endpoint] = replace(self.attached[endpoint], ports=())

    async def detach(self, endpoint: str) -> None:
        self._enter("detach")
        known = self.attached.pop(endpoint, None)
        if known is not None:
            await self._unplumb(known, self._networks[known.network])
            await self.release(known.network, known.address)

    def endpoints(self, runtime: str) -> Mapping[str, Endpoint]:
        return {e.id: e for e in self.attached.values() if e.runtime == runtime}

    async def report(self, runtime: str, containers: Sequence[Container]) -> None:
        del runtime
        self.reports.append(tuple(containers))

    # --- helpers

    def _on(self, network: str) -> list[Endpoint]:
        return [e for e in self.attached.values() if e.network == network]

    def _network(self, name: str) -> Network:
        if name not in self._networks:
            raise NotFound(f"there is no network {name!r} (known: {', '.join(sorted(self._networks)) or 'none yet'})")
        return self._networks[name]
