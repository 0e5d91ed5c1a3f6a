# SPDX-License-Identifier: Apache-2.0
"""Results of CNI: what an endpoint is in the words of a version, and what a result of before says of one.

Data in: an endpoint and its network. Data out: JSON as mappings, in the format of the configuration's version: up to 0.4.0 addresses carry
their family as `version`, from 1.1.0 on interfaces carry their MTU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Interface, ip_interface
from typing import Any

from plait.backends import child_of
from plait.model.addr import IPAddress, IPInterface
from plait.model.cluster import Endpoint, Network
from plait.model.leases import Leased
from plait.plan.desired import leased_interface
from plait.plan.dual import inside6
from plait.runtimes.cni.wire import INVALID, CniError, Dns

Result = Mapping[str, Any]


def add_result(version: str, endpoint: Endpoint, network: Network, mtu: int, dns: Mapping[str, Any]) -> Result:
    """The result of an ADD: the host's side, the container's, the addresses, the default routes if they are the endpoint's. On a link
    of the host there is no host's side, and the MTU is that link's."""
    child = child_of(network)
    inside: dict[str, Any] = {"name": endpoint.ifname, "mac": endpoint.mac, "sandbox": endpoint.netns}
    interfaces = [inside] if child is not None else [{"name": endpoint.dev}, inside]
    if version == "1.1.0" and child is None:
        for interface in interfaces:
            interface["mtu"] = mtu
    leased = endpoint.leased
    router = network.gateway if leased is None else leased.gateway
    found: list[tuple[IPInterface, IPAddress | None, str]] = [(leased_interface(network, endpoint.address, leased), router, "0.0.0.0/0")]
    if (six := inside6(network, endpoint)) is not None:
        found.append((six.interface, six.gateway, "::/0"))
    elif leased is not None and endpoint.address6 is not None:
        found.append((IPv6Interface(endpoint.address6), None, "::/0"))
    asked = not network.internal and (child is None or child.gateway)
    ips: list[dict[str, Any]] = []
    for address, gateway, _ in found:
        one = {"address": str(address), "interface": len(interfaces) - 1} | (
            {"gateway": str(gateway)} if asked and gateway is not None else {}
        )
        ips.append(one | ({"version": str(address.version)} if version in ("0.3.1", "0.4.0") else {}))
    default = endpoint.default_route and not network.internal
    routes = [{"dst": everywhere} | ({"gw": str(gateway)} if asked else {}) for _, gateway, everywhere in found if default and gateway]
    if leased is not None:
        routes += [{"dst": str(way.to)} | ({"gw": str(way.via)} if way.via is not None else {}) for way in leased.ways if way.to.prefixlen]
    return {"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": dns}


def dns_of(resolver: str, search: str, asked: Dns | None, leased: Leased | None = None) -> dict[str, Any]:
    """What the runtime asked for by the capability `dns`, else where the agent answers, else ("": nowhere) what came with a lease."""
    if asked is not None and (asked.servers or asked.nameservers):
        found = {
            "nameservers": asked.servers or asked.nameservers,
            "search": asked.searches or asked.search,
            "options": asked.options,
        }
        return {key: value for key, value in found.items() if value}
    if resolver or leased is None:
        return {"nameservers": [resolver], "search": [search]} if resolver else {}
    named = {"nameservers": list(map(str, leased.dns)), "search": [leased.domain] if leased.domain else []}
    return {key: value for key, value in named.items() if value}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a result says of one interface of a container. `mac` "" = nothing."""

    mac: str
    addresses: frozenset[IPAddress]


def seen_in(result: Result, ifname: str, netns: str = "") -> Seen | None:
    """The interface `ifname` of the container in a result of any version, None if it is not there. CniError 7 if it is no result."""
    try:
        rows = list(result.get("interfaces") or [])
        index = next(
            (n for n, row in enumerate(rows) if row["name"] == ifname and row.get("sandbox") and netns in ("", row["sandbox"])), None
        )
        if index is None:
            return None
        ips = [row for row in result.get("ips") or [] if row.get("interface", index) == index]
        addresses = (ip_interface(row["address"]).ip for row in ips)
        return Seen(str(rows[index].get("mac") or "").lower(), frozenset(addresses))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise CniError(INVALID, f"prevResult is no result of CNI: {error!r}") from error
