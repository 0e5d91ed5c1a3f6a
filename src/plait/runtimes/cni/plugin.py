# SPDX-License-Identifier: Apache-2.0
"""The verbs of CNI -> operations of the agent.

As the first of a chain plait makes the interface. Behind another plug-in (prevResult is there at ADD) the interface is that one's: plait
then only takes the container into the directory, under its name and labels with the address of prevResult, and hands prevResult on as it
came; ports and addresses are refused there, for they are the business of who made the interface.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from plait.ipam import origin
from plait.model.cluster import Endpoint, Network
from plait.model.errors import PlaitError
from plait.model.inside import SandboxState
from plait.runtimes.api import AttachRequest
from plait.runtimes.cni import wire
from plait.runtimes.cni.attachments import Attachment, Attachments
from plait.runtimes.cni.host import Host, namespace
from plait.runtimes.cni.ranges import wanted_ranges
from plait.runtimes.cni.results import Result, Seen, add_result, dns_of, seen_in
from plait.runtimes.cni.wire import CniCall, CniError


class CniPlugin:
    def __init__(self, attachments: Attachments, host: Host) -> None:
        self._attachments, self._host = attachments, host

    async def call(self, call: CniCall) -> Result | None:
        """The result of one call, None where there is none. CniError, or another PlaitError with a code by `wire.code_of`."""
        match call.verb:
            case "STATUS":
                self._status(call)
            case "GC":
                await self._collect(call)
            case _:
                async with self._attachments.turn(call.key):
                    return await self._about_one(call)
        return None

    async def _about_one(self, call: CniCall) -> Result | None:
        match call.verb:
            case "ADD":
                return await self._add(call)
            case "CHECK":
                await self._check(call)
            case _:
                await self._attachments.remove(call.key)
        return None

    # --- ADD

    async def _add(self, call: CniCall) -> Result:
        await self._host.ready()
        if call.config.prev_result is not None:
            return await self._join(call, call.config.prev_result)
        network = self._host.network(call.network)
        endpoint = await self._attachments.add(self._attachment(call), await self._request(call, network))
        assert endpoint is not None
        dns = dns_of(self._host.resolver(network), self._host.search, call.config.runtime.dns, endpoint.leased)
        return add_result(call.version, endpoint, network, self._host.mtu(network), dns)

    def _attachment(self, call: CniCall, joined: tuple[str, ...] = ()) -> Attachment:
        inode = namespace(call.netns, "CNI_NETNS")
        name, labels = wire.wanted_name(call), wire.wanted_labels(call)
        return Attachment(call.key, call.config.name, call.container, name, call.netns, inode, _asked(call), labels, joined)

    async def _request(self, call: CniCall, network: Network) -> AttachRequest:
        _, known = self._attachments.get(call.key)
        state = await self._host.before(call.netns, call.ifname, known)
        ports = wire.wanted_ports(call.config.runtime.port_mappings)
        (address, address6), within = wire.wanted_addresses(call), wanted_ranges(call.config.runtime.ip_ranges, network)
        within.check(address, origin(network, address6) if address6 is not None else None)
        return AttachRequest(
            endpoint=call.key,
            network=network.name,
            runtime=self._attachments.runtime,
            container=call.container,
            name=wire.wanted_name(call),
            address=address,
            address6=address6,
            within=within.address,
            within6=within.address6,
            mac=wire.wanted_mac(call),
            aliases=wire.wanted_aliases(call),
            labels=wire.wanted_labels(call),
            ports=self._attachments.unpublished(call.container, call.key, ports),
            netns=call.netns,
            ifname=call.ifname,
            default_route=call.config.is_default_gateway and not state.gateways,
            limits=wire.wanted_limits(call.config.runtime.bandwidth),
        )

    async def _join(self, call: CniCall, previous: Mapping[str, Any]) -> Result:
        seen = self._seen(call, previous)
        limits = wire.wanted_limits(call.config.runtime.bandwidth).by_direction()
        runtime = call.config.runtime  # the capabilities of this plug-in alone; CNI_ARGS and args.cni are for all of the chain
        if wire.wanted_ports(runtime.port_mappings) or runtime.ips or runtime.ip_ranges or runtime.mac or limits:
            raise CniError(
                wire.UNSUPPORTED,
                "behind another plug-in plait publishes no ports, gives no addresses and sets no limits: leave these to the others, or put "
                "plait first",
            )
        if not seen.addresses:
            raise CniError(wire.INVALID, f"prevResult gives {call.ifname} no address")
        joined = sorted(seen.addresses, key=lambda address: (address.version, int(address)))
        await self._attachments.add(self._attachment(call, tuple(map(str, joined))), None)
        return previous

    def _seen(self, call: CniCall, previous: Mapping[str, Any]) -> Seen:
        seen = seen_in(previous, call.ifname, call.netns)
        if seen is None:
            raise CniError(wire.INVALID, f"prevResult has no interface {call.ifname} in {call.netns}")
        return seen

    # --- CHECK

    async def _check(self, call: CniCall) -> None:
        known, endpoint = self._attachments.get(call.key)
        if known is None:
            raise CniError(wire.UNKNOWN, f"container {call.container} has no attachment {call.ifname} to network {call.config.name!r} here")
        if call.config.prev_result is None:
            raise CniError(wire.INVALID, "CHECK needs prevResult")
        seen = self._seen(call, call.config.prev_result)
        state = await self._host.inside(call.netns)
        wrong = _differences(seen, call.ifname, state)
        if endpoint is None:
            wrong += [] if set(map(str, seen.addresses)) >= set(known.joined) else [f"the agent knows {', '.join(known.joined)}"]
        else:
            wrong += _unlike(seen, endpoint) + await self._host.missing(endpoint)
            wrong += _routeless(endpoint, self._host.network(endpoint.network), state)
        if wrong:
            raise CniError(wire.CHANGED, f"{call.ifname} of container {call.container} is not as it was made: {'; '.join(wrong)}")

    # --- GC and STATUS

    async def _collect(self, call: CniCall) -> None:
        """Detach whatever of this network the runtime does not count as valid. Goes on after a failure."""
        valid = {(one.container_id, one.ifname) for one in call.config.valid_attachments or ()}
        keys = {f"cni.{call.config.name}.{container}.{ifname}" for container, ifname in valid}
        failed: list[str] = []
        for key, attachment in list(self._attachments.all().items()):
            if attachment.network == call.config.name and key not in keys:
                try:
                    async with self._attachments.turn(key):
                        await self._attachments.remove(key)
                except PlaitError as error:
                    failed.append(f"{attachment.container}: {error}")
        if failed:
            raise CniError(wire.INTERNAL, f"{len(failed)} attachments could not be removed", "; ".join(failed))

    def _status(self, call: CniCall) -> None:
        """Whether an ADD would be served: 50 if not, 51 if containers that run are affected too."""
        reason = self._host.waiting()
        if not reason and call.network not in self._host.ops.networks():
            reason = f"a network {call.network!r}: `plait network create {call.network}` makes it"
        trouble = self._host.trouble(call.network)
        if trouble:
            raise CniError(wire.LIMITED, f"containers that run are affected: {trouble}")
        if reason:
            raise CniError(wire.UNAVAILABLE, f"the agent waits for {reason}")


def _asked(call: CniCall) -> str:
    """A digest of what an ADD asks for."""
    runtime = msgspec.json.encode(call.config.runtime, order="sorted")
    asked = [call.network, runtime.decode(), repr(call.config.args), repr(sorted(call.args.items())), repr(call.config.prev_result)]
    return hashlib.sha256("\0".join(asked).encode()).hexdigest()[:16]


def _differences(seen: Seen, ifname: str, state: SandboxState) -> list[str]:
    """What the namespace holds otherwise than the result says."""
    link = state.links.get(ifname)
    if link is None:
        return [f"there is no interface {ifname} in the namespace"]
    wrong = [] if link.up else ["it is down"]
    if seen.mac and link.mac != seen.mac:
        wrong.append(f"its MAC address is {link.mac}, not {seen.mac}")
    have = {address.ip for address in link.addresses}
    return wrong + [f"it has no address {address}" for address in sorted(map(str, seen.addresses - have))]


def _routeless(endpoint: Endpoint, network: Network, state: SandboxState) -> list[str]:
    """The default routes that are gone; who learns those of IPv6 from routers of its link has them when they say so."""
    if not endpoint.default_route or network.internal:
        return []
    wrong = [] if state.gateways else ["the default route is gone"]
    given6 = endpoint.address6 is not None and not network.by_dhcp6
    return wrong + (["the IPv6 default route is gone"] if given6 and not state.gateways6 else [])


def _unlike(seen: Seen, endpoint: Endpoint) -> list[str]:
    """What the agent holds otherwise than the result says."""
    given = [address for address in (endpoint.address, endpoint.address6) if address is not None]
    wrong = [f"the agent gave it {address}" for address in given if address not in seen.addresses]
    return wrong + ([] if seen.mac in ("", endpoint.mac) else [f"the agent gave it the MAC address {endpoint.mac}"])
