# SPDX-License-Identifier: Apache-2.0
"""Where an endpoint's address comes from: this node's blocks, or, on networks of which the link has a DHCP server, a lease of that.

`Addresses` and `Leases` under what `AgentOperations` asks for; which of them it is, the network says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address

from plait.agent.addresses import Addresses
from plait.agent.assigned import Assignments
from plait.agent.dhcp import Leases
from plait.agent.hostleases import OWNER as HOST
from plait.agent.hostlinks import check_parent, links_here
from plait.agent.view import View
from plait.backends import BACKENDS, child_of, settle
from plait.ipam import NOBODY, Asker, Reservation
from plait.model.cluster import Network
from plait.model.errors import ConfigError, Conflict, NotSupported
from plait.model.leases import Leased
from plait.model.objects import KernelObject
from plait.plan.desired import leased_interface, shared_objects
from plait.runtimes.api import NetworkRequest, paired


class Addressing:
    """`put` makes kernel objects: the link on which leases are asked for, where that is plait's to make."""

    def __init__(self, blocks: Addresses, leases: Leases, view: View, put: Callable[[Sequence[KernelObject]], Awaitable[None]]) -> None:
        self._blocks, self._leases, self._view, self._put = blocks, leases, view, put

    @property
    def assigned(self) -> Assignments:
        return self._blocks.assigned

    async def maintain(self) -> None:
        """See `Addresses.maintain`."""
        await self._blocks.maintain()

    async def reserve(self, network: Network, owner: str, wanted: IPv4Address | None = None, asker: Asker = NOBODY) -> IPv4Interface:
        """See `Operations.reserve`. Durable before it returns."""
        if not network.by_dhcp:
            return await self._blocks.reserve(network, owner, wanted, asker)
        if not asker.mac:
            if wanted is None:
                raise NotSupported(f"an address of network {network.name} for nobody: its DHCP server wants to know a MAC")
            return IPv4Interface((wanted, network.subnet.prefixlen))  # somebody says what he has; the server knows of it, or will say so
        check_parent(network)
        me = self._view.snapshot.nodes.get(self._view.me)
        if me is not None and (objects := shared_objects(me, network)):
            await self._put(objects)
        child = child_of(network)
        assert child is not None
        lease = await self._leases.obtain(child.parent, network.name, owner, asker.mac, asker.name, wanted)
        if lease.address not in network.subnet:
            await self._leases.release(owner)
            raise Conflict(
                f"the DHCP server {lease.server} on {child.parent} gives {lease.address}, which is no address of network {network.name} "
                f"({network.subnet}): the link was renumbered, or another server is on it; make the network anew"
            )
        return leased_interface(network, lease.four, lease.leased)

    async def reserve6(
        self, network: Network, owner: str, address: IPv4Address, wanted: IPv6Address | None = None, asker: Asker = NOBODY
    ) -> IPv6Address:
        """See `Operations.reserve6`; `owner` has `address`."""
        return await self._blocks.reserve6(network, owner, address, wanted, asker)

    async def lease6(self, network: Network, owner: str, wanted: IPv6Address | None, asker: Asker) -> IPv6Address:
        """The IPv6 address that a server on the link gives `owner`, who has an IPv4 address. LeaseFailed, Conflict."""
        child = child_of(network)
        assert child is not None
        lease = await self._leases.obtain(child.parent, network.name, paired(owner), asker.mac, asker.name, wanted, 6)
        assert isinstance(lease.address, IPv6Address)
        return lease.address

    def leased(self, owner: str) -> Leased | None:
        """What came with the owner's address; None where it is of a block."""
        lease = self._leases.of(owner)
        return lease.leased if lease is not None else None

    async def hand_over(self, network: str, address: IPv4Address, owner: str) -> None:
        """What has `address` belongs to `owner` from now on. The caller knows that nothing else uses it."""
        await self._blocks.hand_over(network, address, owner)
        for record in self._leases.all():
            if record.lease is not None and (record.network, record.lease.address) == (network, address) and record.owner != owner:
                await self._leases.hand_over(record.owner, owner)

    async def release(self, network: str, address: IPv4Address, owner: str = "") -> None:
        """The address is free again, and whatever lease `owner` has. Unknown: success."""
        await self._blocks.release(network, address)
        for record in self._leases.all():
            if record.lease is not None and (record.network, record.lease.address) == (network, address):
                owner = owner or record.owner
        if owner:
            await self._leases.release(owner)
            await self._leases.release(paired(owner))

    def reservations(self) -> list[Reservation]:
        """All of this node's, live and remembered; leases too."""
        found = [r for r in self._leases.all() if r.family == 4 and not r.owner.startswith(HOST)]
        leases = (Reservation(r.network, r.lease.four, r.owner, r.name) for r in found if r.lease is not None)
        return [*self._blocks.reservations(), *leases]


async def learned(leases: Leases, request: NetworkRequest) -> NetworkRequest:
    """The request with the subnet and the router that a DHCP server on the link names, if that gives the addresses and the request does not
    say them; nothing is taken from it. LeaseFailed if none answers, ConfigError where it cannot be asked."""
    if request.options.get("ipam") != "dhcp" or request.subnet is not None:
        return request
    settle(request.options, BACKENDS.values(), ())
    parent = request.options.get("parent", "")
    if parent not in links_here() or "vlan" in request.options:
        why = f"is not given, and this host has no link {parent} to ask on" if parent else "is not given"
        raise ConfigError(
            "subnet", "", why, "name it with --subnet, and the router with --gateway, or make the network on a host of the link"
        )
    address, leased = await leases.look(parent)
    subnet = IPv4Network((address, leased.prefix), strict=False)
    return replace(request, subnet=subnet, gateway=request.gateway or leased.gateway)
