# SPDX-License-Identifier: Apache-2.0
"""Where an endpoint's address comes from: this node's blocks, or, on networks of which the link has a DHCP server, a lease of that.

`Addresses` and `Leases` under what `AgentOperations` asks for; which of them it is, the network says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address

from plait.agent.addresses import Addresses
from plait.agent.assigned import Assignments
from plait.agent.dhcp import Leases
from plait.agent.hostleases import OWNER as HOST
from plait.agent.hostlinks import check_parent, links_here, mac_of
from plait.agent.view import View
from plait.backends import BACKENDS, child_of, settle
from plait.ipam import NOBODY, Asker, Reservation, origin
from plait.model.addr import EitherAddress
from plait.model.cluster import Network
from plait.model.errors import ConfigError, Conflict, NotSupported
from plait.model.leases import Leased
from plait.model.objects import KernelObject
from plait.plan.desired import leased_interface, shared_objects
from plait.runtimes.api import AttachRequest, NetworkRequest, paired


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

    async def saved(self, owner: str) -> None:
        """See `Addresses.saved`."""
        await self._blocks.saved(owner)

    async def reserve(
        self, network: Network, owner: str, wanted: IPv4Address | None = None, asker: Asker = NOBODY, *, later: bool = False
    ) -> IPv4Interface:
        """See `Operations.reserve`. Durable before it returns; if `later`, before `saved` does, which must be awaited."""
        if not network.by_dhcp:
            return await self._blocks.reserve(network, owner, wanted, asker, later=later)
        if not asker.mac:
            if wanted is None:
                raise NotSupported(f"an address of network {network.name} for nobody: its DHCP server wants to know a MAC")
            return IPv4Interface((wanted, network.subnet.prefixlen))  # somebody says what he has; the server knows of it, or will say so
        check_parent(network)
        await self._make_shared(network)
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

    async def reserve6(self, network: Network, owner: str, wanted: IPv6Address | None = None, asker: Asker = NOBODY) -> IPv6Address:
        """See `Operations.reserve6`."""
        if network.by_dhcp6 and asker.mac:
            return await self._lease6(network, owner, wanted, asker)
        return await self._blocks.reserve6(network, owner, (await self.reserve(network, owner)).ip, wanted, asker)

    async def lease6(self, network: Network, request: AttachRequest, wanted: IPv6Address | None) -> IPv6Address | None:
        """The IPv6 address that a server on the link gives an endpoint that has an IPv4 address: now, where plait plumbs it; else what its
        engine was given before by `reserve6`, which is the endpoint's from now on, or none. LeaseFailed, Conflict."""
        if not request.netns and wanted is None:
            return None
        if wanted is not None and not request.netns:
            await self._hand_over_lease(network.name, wanted, paired(request.endpoint))
        asker = Asker(request.name, mac=mac_of(network, request))
        return await self._lease6(network, request.endpoint, wanted, asker)

    async def _lease6(self, network: Network, owner: str, wanted: IPv6Address | None, asker: Asker) -> IPv6Address:
        """As whom the server knows `owner` by IPv4."""
        child = child_of(network)
        assert child is not None
        name = asker.name or next((record.name for record in self._leases.all() if record.owner == owner), "")
        lease = await self._leases.obtain(child.parent, network.name, paired(owner), asker.mac, name, wanted, 6)
        assert isinstance(lease.address, IPv6Address)
        return lease.address

    async def check_free(self, network: Network, mac: str, addresses: Collection[EitherAddress | None]) -> None:
        """Conflict if another machine on the network's link has one of them; both are asked for at the same time. `mac` is who is to have
        them, "" for the link's own. A server's leases are asked for as they are obtained; a switch's ports are out of the host's sight."""
        child = child_of(network)
        if child is None or child.kind == "veth" or network.by_dhcp or not addresses:
            return
        await self._make_shared(network)
        wanted = [address for address in addresses if address is not None]
        holders = await asyncio.gather(*(self._leases.holder(child.parent, mac, address) for address in wanted))
        for address, holder in zip(wanted, holders, strict=True):
            if holder:
                raise _is_anothers(network, address, f"the machine with the MAC {holder} on link {child.parent}")

    async def _make_shared(self, network: Network) -> None:
        """The link that is asked on, where that is plait's to make."""
        me = self._view.snapshot.nodes.get(self._view.me)
        if me is not None and (objects := shared_objects(me, network)):
            await self._put(objects)

    def leased(self, owner: str) -> Leased | None:
        """What came with the owner's address; None where it is of a block."""
        lease = self._leases.of(owner)
        return lease.leased if lease is not None else None

    async def hand_over(self, network: str, address: IPv4Address, owner: str) -> None:
        """What has `address` belongs to `owner` from now on. The caller knows that nothing else uses it."""
        await self._blocks.hand_over(network, address, owner)
        await self._hand_over_lease(network, address, owner)

    async def _hand_over_lease(self, network: str, address: EitherAddress, owner: str) -> None:
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

    async def release_all(self, network: str, owner: str) -> None:
        """Whatever addresses `owner` has of the network are free again."""
        for held in self.reservations():
            if held.live and held.network == network and held.owner in (owner, paired(owner)):
                await self.release(network, held.address, owner)

    def reservations(self) -> list[Reservation]:
        """All of this node's, live and remembered; leases too."""
        found = [r for r in self._leases.all() if r.family == 4 and not r.owner.startswith(HOST)]
        leases = (Reservation(r.network, r.lease.four, r.owner, r.name) for r in found if r.lease is not None)
        return [*self._blocks.reservations(), *leases]


def _is_anothers(network: Network, address: EitherAddress, holder: str) -> Conflict:
    four = address if isinstance(address, IPv4Address) else origin(network, address)
    return Conflict(
        f"address {address} of network {network.name!r} cannot be used: {holder} has it; take it from that one, or keep it from containers "
        f"by `plait network set {network.name} --exclude {four}` (with what is excluded already)"
    )


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
