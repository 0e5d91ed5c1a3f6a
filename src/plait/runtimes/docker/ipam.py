# SPDX-License-Identifier: Apache-2.0
"""Docker's IPAM calls -> reservations of the agent.

A pool's id says what it is (`plait:SUBNET` or `plait:SUBNET,RANGE`), so nothing has to be remembered for dockerd, which after a restart
asks for its pools and addresses again, without a MAC, and expects the same answers. The range is the network's (`Network.ip_range`): every
host keeps to it, also one whose engine was told nothing of it. An address is reserved for the MAC that dockerd drew;
when the container joins, the reservation passes to its endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from random import SystemRandom
from typing import TypeVar

from plait.backends import on_link
from plait.ipam import default_subnet6, is_excluded, next_subnet, origin
from plait.model.addr import IPAddress, IPNetwork
from plait.model.cluster import Network
from plait.model.errors import ConfigError, Conflict, NotFound, NotSupported
from plait.plan.desired import inside_address
from plait.runtimes.api import Operations, paired
from plait.runtimes.docker import wire
from plait.runtimes.docker.names import StartingNames
from plait.runtimes.docker.networks import AUX_OWNER, NET_OPTION, DockerNetworks

RUNTIME = "docker"
SPACE, GLOBAL_SPACE = "plait-local", "plait-global"
OWNER = "docker:"
_POOL = "plait:"
_RELEASE_DUE_S = 60.0
Given = TypeVar("Given", IPv4Interface, IPv6Address)


class IpamDriver:
    """The IPAM half of the plug-in."""

    def __init__(self, ops: Operations, networks: DockerNetworks, names: StartingNames) -> None:
        self._ops, self._networks, self._names = ops, networks, names
        self._offered: set[IPv4Network] = set()
        self._ranges: dict[IPv4Network, IPv4Network] = {}
        self._released: dict[tuple[str, IPAddress], float] = {}
        self._asked: dict[str, float] = {}

    # --- pools

    async def request_pool(self, request: wire.RequestPool) -> Mapping[str, object]:
        """The pool that was named, or the next one that neither the cluster has nor anybody was offered: dockerd asks again while it
        dislikes what it gets, and gives back all at the end. PoolExhausted when there is none left."""
        if request.address_space not in (None, "", SPACE):
            raise NotSupported(f"address space {request.address_space!r} is Swarm's; create a local network (without --scope swarm)")
        if request.v6:
            return self._request_pool6(request)
        if not request.pool:
            if request.sub_pool:
                raise ConfigError("--ip-range", request.sub_pool, "needs the --subnet that it is a part of")
            subnet = self._next_pool(request.options or {})
            return {"PoolID": f"{_POOL}{subnet}", "Pool": str(subnet), "Data": {}}
        subnet = wire.parse_subnet(request.pool, "--subnet")
        if subnet.network_address.is_unspecified:
            raise ConfigError("--subnet", str(subnet), "names no addresses", "name the subnet, or leave it out for the next free /16")
        self._ranges.pop(subnet, None)
        if not request.sub_pool:
            return {"PoolID": f"{_POOL}{subnet}", "Pool": str(subnet), "Data": {}}
        part = wire.parse_subnet(request.sub_pool, "--ip-range")
        if not part.subnet_of(subnet):
            raise ConfigError("--ip-range", str(part), f"is no part of --subnet {subnet}")
        self._ranges[subnet] = part
        return {"PoolID": f"{_POOL}{subnet},{part}", "Pool": str(subnet), "Data": {}}

    def _request_pool6(self, request: wire.RequestPool) -> Mapping[str, object]:
        """The pool that was named, or a unique local one; where the IPAM option says for which network of the cluster, that one's."""
        if request.sub_pool:
            raise NotSupported("an IPv6 --ip-range: IPv6 addresses of a plait network follow the IPv4 ones; give the range in IPv4")
        known = self._ops.networks().get((request.options or {}).get(NET_OPTION, ""))
        if request.pool:
            subnet = wire.parse_subnet6(request.pool, "--subnet")
        else:
            subnet = (known.subnet6 if known is not None else None) or default_subnet6(SystemRandom().getrandbits(40))
        return {"PoolID": f"{_POOL}{subnet}", "Pool": str(subnet), "Data": {}}

    def _next_pool(self, options: Mapping[str, str]) -> IPv4Network:
        networks = self._ops.networks()
        if NET_OPTION in options and options[NET_OPTION] in networks:
            return networks[options[NET_OPTION]].subnet
        taken = self._ops.taken()
        self._offered -= {n.subnet for n in networks.values()}
        subnet = next_subnet([*taken, *self._offered])
        self._offered.add(subnet)
        return subnet

    async def release_pool(self, request: wire.ReleasePool) -> Mapping[str, object]:
        subnet = _pool(request.pool_id)
        if isinstance(subnet, IPv4Network):
            self._offered.discard(subnet)
            self._ranges.pop(subnet, None)
        return {}

    def asked_range(self, subnet: IPv4Network) -> IPv4Network | None:
        """The --ip-range that dockerd named when it asked for pool `subnet` last. CreateNetwork, which follows, does not tell it."""
        return self._ranges.get(subnet)

    # --- addresses

    async def request_address(self, request: wire.RequestAddress) -> Mapping[str, object]:
        subnet, options = _pool(request.pool_id), request.options or {}
        if isinstance(subnet, IPv6Network):
            return await self._request_address6(subnet, options, request.address)
        wanted = wire.parse_address(request.address, "address") if request.address else None
        if options.get(wire.ADDRESS_TYPE) == wire.GATEWAY_TYPE:
            return {"Address": f"{self._gateway(subnet, wanted)}/{subnet.prefixlen}", "Data": {}}
        if wire.MAC in options:
            address = await self._for_container(subnet, options[wire.MAC], options.get(wire.NAME, ""), wanted)
        elif wanted is not None:
            address = await self._again(subnet, wanted)
        else:
            raise ConfigError("RequestAddress", "", "names neither an address nor a MAC address")
        network = self._networks.by_subnet(subnet)
        # Where the network is not known yet, an address for no container.
        return {"Address": str(inside_address(network, address)) if network is not None else f"{address}/32", "Data": {}}

    async def _request_address6(self, subnet: IPv6Network, options: Mapping[str, str], text: str | None) -> Mapping[str, object]:
        """dockerd asks for it after the IPv4 address of the same container, and with the same MAC."""
        wanted = wire.parse_address6(text, "address") if text else None
        network = self._networks.by_subnet(subnet)
        if options.get(wire.ADDRESS_TYPE) == wire.GATEWAY_TYPE:
            return {"Address": f"{_gateway6(network, subnet, wanted)}/{subnet.prefixlen}", "Data": {}}
        if wire.MAC in options:
            if network is None:
                raise NotFound(f"no network of the cluster has the pool {subnet}; remove this Docker network and create it again")
            reserve = partial(self._ops.reserve6, network.name, f"{OWNER}{options[wire.MAC]}", wanted, mac=options[wire.MAC])
            told = options.get(wire.NAME, "")
            address = await (self._chosen(network.name, wanted, told, reserve) if wanted is not None else reserve())
        elif wanted is not None:
            address = await self._again6(network, wanted)
        else:
            raise ConfigError("RequestAddress", "", "names neither an address nor a MAC address")
        prefix = subnet.prefixlen if network is not None and on_link(network) and not network.by_dhcp6 else 128
        return {"Address": f"{address}/{prefix}", "Data": {}}

    async def release_address(self, request: wire.ReleaseAddress) -> Mapping[str, object]:
        """Free the address, unless the endpoint's end has done so already or it is somebody else's by now. Unknown: success."""
        subnet = _pool(request.pool_id)
        network = self._networks.by_subnet(subnet)
        if isinstance(subnet, IPv6Network):
            await self._release6(network, wire.parse_address6(request.address, "address"))
            return {}
        address = wire.parse_address(request.address, "address")
        if network is None or address == network.gateway:
            return {}
        due = self._released.pop((network.name, address), 0.0)
        used = any(e.network == network.name and e.address == address for e in self._ops.endpoints(RUNTIME).values())
        if due < asyncio.get_running_loop().time() and not used:
            await self._ops.release(network.name, address)
        return {}

    async def _release6(self, network: Network | None, address: IPv6Address) -> None:
        """What goes with an IPv4 address comes back with that; only one that was asked for apart is held by itself."""
        of = origin(network, address) if network is not None else None
        if network is None or of is None:
            return
        due = self._released.pop((network.name, address), 0.0)
        used = any(e.network == network.name and e.address6 == address for e in self._ops.endpoints(RUNTIME).values())
        apart = self._ops.held(OWNER).get((network.name, of), "").endswith(paired(""))
        if apart and not used and due < asyncio.get_running_loop().time():
            await self._ops.release(network.name, of)

    def ended(self, network: str, address: IPAddress) -> None:
        """An endpoint's end has freed `address`; dockerd's own release of it is still to come and must not touch a new owner's."""
        now = asyncio.get_running_loop().time()
        self._released = {key: due for key, due in self._released.items() if due > now}
        self._released[network, address] = now + _RELEASE_DUE_S

    def age(self, owner: str) -> float:
        """Seconds since `owner` asked last; infinite if it did not since the agent started."""
        return asyncio.get_running_loop().time() - self._asked.get(owner.removesuffix(paired("")), float("-inf"))

    def settled(self, mac: str) -> None:
        """The container has joined."""
        self._asked.pop(f"{OWNER}{mac}", None)

    def _gateway(self, subnet: IPv4Network, wanted: IPv4Address | None) -> IPv4Address:
        network = self._networks.by_subnet(subnet)
        if network is None:
            return wanted or subnet[1]
        if wanted not in (None, network.gateway):
            raise Conflict(f"network {network.name!r} has the gateway {network.gateway}, not {wanted}: use --gateway {network.gateway}")
        return network.gateway

    async def _for_container(self, subnet: IPv4Network, mac: str, told: str, wanted: IPv4Address | None) -> IPv4Address:
        """`told`: who asks, as far as the engine says."""
        network = self._networks.by_subnet(subnet) or await self._networks.adopt_subnet(subnet)
        if network is None:
            raise NotFound(f"no network of the cluster has the pool {subnet}; remove this Docker network and create it again")
        owner = f"{OWNER}{mac}"
        self._asked[owner] = asyncio.get_running_loop().time()
        if wanted is not None:
            return (await self._chosen(network.name, wanted, told, partial(self._ops.reserve, network.name, owner, wanted, mac=mac))).ip
        if told:
            name = await self._names.told(network.name, told, mac)
        else:
            name = await self._names.guess(network.name, self._networks.ids(network.name), self._ops.endpoints(RUNTIME), mac)
        return (await self._ops.reserve(network.name, owner, None, name, self._names.labels(name), mac)).ip

    async def _chosen(self, network: str, wanted: IPAddress, told: str, reserve: Callable[..., Awaitable[Given]]) -> Given:
        """What `--ip` or `--ip6` says, by `reserve(name, labels)`. Only where it is kept for somebody it matters who asks."""
        try:
            return await reserve()
        except Conflict:
            name = told or await self._names.chooser({*self._networks.ids(network), network}, wanted)
            if not name:
                raise
            return await reserve(name, self._names.labels(name))

    async def _again(self, subnet: IPv4Network, wanted: IPv4Address) -> IPv4Address:
        """An address without a MAC: dockerd was restarted and tells what its containers have, or it is an --aux-address."""
        network = self._networks.by_subnet(subnet)
        if network is None:
            if wanted not in subnet:
                raise ConfigError("address", str(wanted), f"is no part of the pool {subnet}")
            return wanted
        held = self._ops.held("")
        if is_excluded(network, wanted):
            return wanted
        if (network.name, wanted) not in held:
            await self._ops.reserve(network.name, f"{AUX_OWNER}{wanted}", wanted)
        return wanted

    async def _again6(self, network: Network | None, wanted: IPv6Address) -> IPv6Address:
        """As `_again`: what it goes with is held already, unless it is an --aux-address."""
        of = origin(network, wanted) if network is not None else None
        if network is None or of is None or is_excluded(network, of):
            return wanted
        if (network.name, of) not in self._ops.held(""):
            await self._ops.reserve(network.name, f"{AUX_OWNER}{wanted}", of)
        return wanted


def _gateway6(network: Network | None, subnet: IPv6Network, wanted: IPv6Address | None) -> IPv6Address:
    if network is None or network.gateway6 is None:
        return wanted or subnet[1]
    if wanted not in (None, network.gateway6):
        raise Conflict(f"network {network.name!r} has the gateway {network.gateway6}, not {wanted}: use --gateway {network.gateway6}")
    return network.gateway6


def _pool(pool_id: str) -> IPNetwork:
    """The subnet of a pool's id. Raises ConfigError."""
    if not pool_id.startswith(_POOL):
        raise ConfigError("PoolID", pool_id, "is none of plait's")
    subnet = pool_id.removeprefix(_POOL).partition(",")[0]
    return wire.parse_subnet6(subnet, "PoolID") if ":" in subnet else wire.parse_subnet(subnet, "PoolID")
