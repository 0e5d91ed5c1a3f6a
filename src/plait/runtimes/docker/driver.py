# SPDX-License-Identifier: Apache-2.0
"""Docker's network driver calls -> operations of the agent.

Data in: parsed bodies (`wire.py`). Data out: the answers' JSON, as mappings. The endpoint is plumbed at Join, the first call at which the
engine can name the container: `GET /networks/<id>` lists it as `ep-<EndpointID>` and `GET /containers/json` has its labels, both without
waiting. The container itself is never inspected here: the engine holds it locked until Join has answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

from plait.backends import BACKENDS, OnHostLink, child_of, on_link, own_mac, settle
from plait.ipam import FORCED, check_network, default_block_prefix, image, without_router
from plait.model.addr import IPAddress, IPNetwork
from plait.model.cluster import Endpoint, Network, PortMapping
from plait.model.errors import ConfigError, Conflict, NotFound, NotSupported, PlaitError, PortInUse
from plait.model.leases import Leased
from plait.model.limits import LABEL_PREFIX, UNSAID, Limits, limits_of
from plait.plan.desired import endpoint_mac, peer_name
from plait.runtimes.api import AttachRequest, NetworkRequest, Operations
from plait.runtimes.docker import wire
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import Attached, ContainerRow
from plait.runtimes.docker.gateways import shared
from plait.runtimes.docker.ipam import RUNTIME, SPACE, IpamDriver
from plait.runtimes.docker.names import StartingNames
from plait.runtimes.docker.networks import (
    NET_OPTION,
    OPTIONS,
    ORIGIN_DOCKER,
    ORIGIN_LABEL,
    DockerNetworks,
    as_server_says,
    network_options,
    without_aux,
)

Answer = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Created:
    """An endpoint between CreateEndpoint and Join. `ifname`: what its link is to be called inside, "" if the engine counts."""

    address: IPv4Address
    mac: str
    address6: IPv6Address | None = None
    ifname: str = ""
    limits: Limits = UNSAID


class NetworkDriver:
    """The network half of the plug-in. All calls about an endpoint are idempotent."""

    def __init__(self, ops: Operations, engine: DockerEngine, networks: DockerNetworks, ipam: IpamDriver, names: StartingNames) -> None:
        self._ops, self._engine, self._networks, self._ipam, self._names = ops, engine, networks, ipam, names
        self._created: dict[str, Created] = {}
        self._joined: dict[str, float] = {}
        self._sandboxes: dict[str, str] = {}

    def age(self, endpoint: str) -> float:
        """Seconds since `endpoint` was created or joined; infinite if neither happened since the agent started."""
        return asyncio.get_running_loop().time() - self._joined.get(endpoint, float("-inf"))

    # --- networks

    async def gateways_needed(self, request: wire.GwAllocCheck) -> Answer:
        """Which families of a network that is about to be made need no gateway address. What it can never be is refused here, before
        anything is asked for it."""
        given = network_options(self._options(request.options))
        settled = settle(given, BACKENDS.values(), ())
        child = child_of(Network("", _SOME, _SOME[1], _SOME.prefixlen, settled.backend.name, options=given))
        return {"SkipIPv4": child is not None and not child.gateway, "SkipIPv6": False}

    def _options(self, options: Mapping[str, object] | None) -> Mapping[str, str]:
        """What `-o` gives. ConfigError or NotSupported for what no network of plait's can be."""
        given = wire.text_options(options, wire.GENERIC)
        known = {NET_OPTION, FORCED, *OPTIONS}
        for unknown in sorted(given.keys() - known):
            raise ConfigError("-o", unknown, "is no option of the driver plait", f"it knows {', '.join(sorted(known))}")
        if (options or {}).get(wire.ENABLE_IPV4) is False:
            raise NotSupported("a plait network without IPv4: its IPv6 addresses follow the IPv4 ones; leave out --ipv4=false")
        return given

    async def create_network(self, request: wire.CreateNetwork) -> Answer:
        """Check everything that can be checked, and make the cluster's network if the option says which; otherwise its name is known
        only later (see `networks.py`)."""
        given = self._options(request.options)
        others = [n for n in self._ops.networks().values() if n.name != given.get(NET_OPTION)]
        settled = settle(network_options(given), BACKENDS.values(), others)
        data, data6 = request.ipv4 or [], request.ipv6 or []
        if not data or any(one.address_space != SPACE for one in (*data, *data6)):
            raise ConfigError(
                "--ipam-driver", "default", "would give the same address on two hosts", "add --ipam-driver plait to docker network create"
            )
        if len(data) > 1 or len(data6) > 1:
            raise NotSupported("a plait network has one --subnet of each family; create a second network for the second one")
        wanted = self._wanted(data[0], given, bool((request.options or {}).get(wire.INTERNAL)))
        wanted = replace(wanted, force=wanted.force or isinstance(settled.backend, OnHostLink))
        wanted = self._wanted6(wanted, data6[0] if data6 else None)
        wanted = without_aux(wanted, data[0].aux_addresses, data6[0].aux_addresses if data6 else None)
        with self._networks.arriving(wanted.name):
            network = await self._ops.ensure_network(wanted) if wanted.name else self._provisional(wanted)
            await self._networks.remember(request.network_id, network.name)
        self._networks.mark()
        return {}

    def _wanted(self, data: wire.IpamData, given: Mapping[str, str], internal: bool) -> NetworkRequest:
        subnet = wire.parse_subnet(data.pool or "", "--subnet")
        name = given.get(NET_OPTION, "")
        known = self._ops.networks().get(name)
        if known is None and self._networks.is_being_made(name):
            raise NotFound(f"network {name!r} has been removed from the cluster meanwhile")
        if known is not None and known.subnet != subnet:
            raise Conflict(f"network {name!r} exists already with subnet {known.subnet}: add --subnet {known.subnet}")
        return NetworkRequest(
            name=name,
            subnet=subnet,
            gateway=wire.parse_address(data.gateway, "--gateway") if data.gateway else None,
            internal=internal,
            ip_range=self._ipam.asked_range(subnet),
            labels={} if known is not None else {ORIGIN_LABEL: ORIGIN_DOCKER},
            options=network_options(given),
            force=given.get(FORCED) == "true",
        )

    def _wanted6(self, wanted: NetworkRequest, data: wire.IpamData | None) -> NetworkRequest:
        """The same with what is asked of IPv6. Conflict if the cluster's network has IPv6 and this engine's would have none: its containers
        would be named with addresses that they lack."""
        known = self._ops.networks().get(wanted.name)
        if data is None:
            if known is not None and known.subnet6 is not None:
                raise Conflict(f"network {known.name!r} exists already with IPv6: add --ipv6 --subnet {known.subnet6}")
            return wanted
        subnet6 = wire.parse_subnet6(data.pool or "", "--subnet")
        gateway6 = wire.parse_address6(data.gateway, "--gateway") if data.gateway and not (known is not None and known.by_dhcp6) else None
        return as_server_says(replace(wanted, subnet6=subnet6, gateway6=gateway6))

    def _provisional(self, wanted: NetworkRequest) -> Network:
        """The network as it will be, without its name: refused now if no name could make it possible."""
        assert wanted.subnet is not None
        prefix = default_block_prefix(wanted.ip_range or wanted.subnet)
        gateway = wanted.gateway or wanted.subnet[1]
        network = Network("", wanted.subnet, gateway, prefix, internal=wanted.internal, ip_range=wanted.ip_range, subnet6=wanted.subnet6)
        network = replace(network, gateway6=wanted.gateway6 or image(network, gateway), excluded=wanted.excluded)
        network = without_router(replace(network, options=wanted.options))
        known = self._ops.networks().values()
        check_network(network, [n for n in known if n.subnet != wanted.subnet])
        if not wanted.force and all(n.subnet != wanted.subnet for n in known):
            self._ops.check_overlaps(wanted.subnet)
        return network

    async def delete_network(self, request: wire.NetworkOnly) -> Answer:
        await self._networks.deleted(request.network_id)
        return {}

    # --- endpoints

    async def create_endpoint(self, request: wire.CreateEndpoint) -> Answer:
        """Note what dockerd chose; answer only what it left open (an echoed field is an error to it)."""
        network = await self._networks.identify(request.network_id)
        given = request.interface or wire.EndpointInterface()
        if not given.address:
            raise ConfigError("CreateEndpoint", network.name, "has no address", "create the Docker network with --ipam-driver plait")
        address = wire.parse_address(given.address, "endpoint address")
        if given.mac_address and not own_mac(network):
            raise NotSupported(f"containers of network {network.name} have the MAC of their link: leave out --mac-address")
        mac = given.mac_address or endpoint_mac(request.endpoint_id)
        address6 = wire.parse_address6(given.address6, "endpoint address") if given.address6 else None
        options = request.options or {}
        limits = limits_of({key: wire.text_option(options, key) for key in options if key.startswith(LABEL_PREFIX)}, LABEL_PREFIX)
        self._created[request.endpoint_id] = Created(address, mac, address6, wire.text_option(options, wire.IFNAME), limits)
        self._joined[request.endpoint_id] = asyncio.get_running_loop().time()
        return {"Interface": {} if given.mac_address or not own_mac(network) else {"MacAddress": mac}}

    async def join(self, request: wire.EndpointOnly) -> Answer:
        """Plumb the endpoint; dockerd moves the link's other end into the container, names it and sets address and route."""
        network = await self._networks.identify(request.network_id)
        attached, row = await self._who(request)
        created = self._created.get(request.endpoint_id) or self._from_elsewhere(request.endpoint_id, attached)
        endpoint = await self._ops.attach(
            AttachRequest(
                endpoint=request.endpoint_id,
                network=network.name,
                runtime=RUNTIME,
                container=row.id if row is not None else "",
                name=attached.name if attached is not None else self._names.certain(network.name, created.mac),
                address=created.address,
                mac=created.mac if own_mac(network) else "",
                labels=(row.labels or {}) if row is not None else {},
                address6=created.address6,
                ipv6=created.address6 is not None,
                limits=created.limits,
            )
        )
        self._created.pop(request.endpoint_id, None)
        self._sandboxes[request.endpoint_id] = request.sandbox_key or ""
        self._joined[request.endpoint_id] = asyncio.get_running_loop().time()
        self._ipam.settled(created.mac)
        self._names.joined(endpoint.network, endpoint.name, created.mac)
        child = child_of(network)
        source = endpoint.dev if child is not None and child.kind != "veth" else peer_name(endpoint.dev)
        called = {"DstName": created.ifname} if created.ifname else {}
        answer: dict[str, object] = {"InterfaceName": {"SrcName": source, "DstPrefix": "eth", **called}}
        if child is not None and not child.gateway:
            everywhere = _EVERYWHERE if endpoint.address6 is not None else _EVERYWHERE[:1]
            return answer | {"DisableGatewayService": True, "StaticRoutes": [_on_link(one) for one in everywhere]}
        if endpoint.leased is not None:
            return answer | _leased(endpoint.leased)
        routes = [] if on_link(network) else _behind(network.gateway, network.subnet)
        answer |= {"DisableGatewayService": True} if network.internal else {"Gateway": str(network.gateway)}
        if endpoint.address6 is not None and network.gateway6 is not None and network.subnet6 is not None:
            routes += [] if on_link(network) else _behind(network.gateway6, network.subnet6)
            answer |= {} if network.internal else {"GatewayIPv6": str(network.gateway6)}
        return answer | {"StaticRoutes": routes}

    async def _who(self, request: wire.EndpointOnly) -> tuple[Attached | None, ContainerRow | None]:
        """The joining container as far as the engine tells at once; an engine that does not (dockerd is starting) tells the watcher
        later."""
        try:
            network, rows = await asyncio.gather(self._engine.network(request.network_id, quick=True), self._engine.containers(quick=True))
        except PlaitError:
            return None, None
        attached = next((a for a in (network.containers or {}).values() if a.endpoint_id == request.endpoint_id), None)
        return attached, next((r for r in rows if attached is not None and r.name == attached.name), None)

    def _from_elsewhere(self, endpoint_id: str, attached: Attached | None) -> Created:
        """The agent was restarted since CreateEndpoint, or Join is repeated: the journal or the engine knows."""
        known = self._ops.endpoints(RUNTIME).get(endpoint_id)
        if known is not None:
            return Created(known.address, known.mac, known.address6)
        if attached is not None and attached.address:
            address = wire.parse_address(attached.address, "endpoint address")
            address6 = wire.parse_address6(attached.address6, "endpoint address") if attached.address6 else None
            return Created(address, attached.mac_address or endpoint_mac(endpoint_id), address6)
        raise NotFound(f"endpoint {endpoint_id[:12]} was created before the agent was restarted; start the container again")

    async def leave(self, request: wire.EndpointOnly) -> Answer:
        return await self._end(request.endpoint_id)

    async def delete_endpoint(self, request: wire.EndpointOnly) -> Answer:
        self._created.pop(request.endpoint_id, None)
        self._joined.pop(request.endpoint_id, None)
        return await self._end(request.endpoint_id)

    async def _end(self, endpoint_id: str) -> Answer:
        self._sandboxes.pop(endpoint_id, None)
        known = self._ops.endpoints(RUNTIME).get(endpoint_id)
        if known is not None:
            self._ipam.ended(known.network, known.address)
            if known.address6 is not None:
                self._ipam.ended(known.network, known.address6)
        await self._ops.detach(endpoint_id)
        return {}

    async def oper_info(self, request: wire.EndpointOnly) -> Answer:
        """dockerd asks twice a start and uses nothing of it."""
        del request
        return {"Value": {}}

    # --- published ports

    async def program(self, request: wire.EndpointOnly) -> Answer:
        """Publish; a refusal stops the container's start and is shown to the user as it is. May be repeated, with other options."""
        wanted = wire.port_requests(request.options)
        own = self._ops.endpoints(RUNTIME)
        known = own.get(request.endpoint_id)
        if known is not None:
            wanted, less = shared(known, wanted, [e for e in own.values() if self._is_sibling(known, e)])
            for sibling, ports in less.items():
                await self._ops.publish(sibling, ports)
        if wanted or (known is not None and known.ports):
            await self._publish(request.endpoint_id, wanted)
        return {}

    def _is_sibling(self, one: Endpoint, other: Endpoint) -> bool:
        """Whether two endpoints are of one container. The engine may not have said yet who joined."""
        if one.id == other.id:
            return False
        key = self._sandboxes.get(one.id)
        return (bool(one.container) and one.container == other.container) or (bool(key) and key == self._sandboxes.get(other.id))

    async def _publish(self, endpoint: str, wanted: list[tuple[PortMapping, int]]) -> None:
        """Fixed ports at once; each range (`-p 8000-8010:80`) by its first free port, after them."""
        done = [port for port, last in wanted if not last]
        if done or not wanted:
            done = list(await self._ops.publish(endpoint, done))
        for port, last in wanted:
            if last:
                done = await self._publish_first(endpoint, done, port, last)

    async def _publish_first(self, endpoint: str, done: list[PortMapping], port: PortMapping, last: int) -> list[PortMapping]:
        for number in range(port.host_port, last + 1):
            candidate = PortMapping(port.proto, number, port.container_port, port.host_ip)
            try:
                return list(await self._ops.publish(endpoint, [*done, candidate]))
            except PortInUse as error:
                if number == last:
                    raise PortInUse(f"no host port of {port.host_port} to {last}/{port.proto} is free; the last: {error}") from error
        raise ConfigError("-p", f"{port.host_port}-{last}", "is an empty range")

    async def revoke(self, request: wire.EndpointOnly) -> Answer:
        await self._ops.unpublish(request.endpoint_id)
        return {}


_SOME = IPv4Network("10.0.0.0/8")
_EVERYWHERE = ("0.0.0.0/0", "::/0")


def _on_link(destination: str) -> dict[str, object]:
    return {"Destination": destination, "RouteType": wire.CONNECTED}


def _leased(leased: Leased) -> dict[str, object]:
    """What the container's DHCP server named: the router, and ways past it."""
    gateway = leased.gateway
    ways = [way for way in leased.ways if way.to.prefixlen]
    rows: list[dict[str, object]] = [{"Destination": str(w.to), "RouteType": wire.CONNECTED} for w in ways if w.via is None]
    rows += [{"Destination": str(w.to), "RouteType": wire.BY_HOP, "NextHop": str(w.via)} for w in ways if w.via is not None]
    return {"StaticRoutes": rows} | ({"Gateway": str(gateway)} if gateway is not None else {"DisableGatewayService": True})


def _behind(gateway: IPAddress, subnet: IPNetwork) -> list[dict[str, object]]:
    """The gateway as the one neighbour, and the rest of the network behind it; dockerd sets connected routes first."""
    return [
        {"Destination": str(ip_network(gateway)), "RouteType": wire.CONNECTED},
        {"Destination": str(subnet), "RouteType": wire.BY_HOP, "NextHop": str(gateway)},
    ]
