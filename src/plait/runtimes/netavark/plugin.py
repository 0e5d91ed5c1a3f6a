# SPDX-License-Identifier: Apache-2.0
"""netavark's calls -> operations of the agent, for Podman 5 (`podman network create -d plait`).

Data in: JSON as netavark sends it. Data out: JSON as it wants it: `create` gives the network back with the cluster's subnet and gateway,
`setup` a status block, `teardown` nothing. Addresses are plait's: the network is answered with an IPAM driver of that name, for Podman
gives addresses itself where the driver is host-local or missing, on every host the same ones.
"""

from __future__ import annotations

from typing import Any

import msgspec

from plait.backends import child_of
from plait.model.addr import IPAddress, IPInterface
from plait.model.cluster import Endpoint, Network
from plait.model.errors import ConfigError
from plait.plan.desired import inside_address
from plait.plan.dual import inside6
from plait.runtimes.api import AttachRequest, shown_gateway6
from plait.runtimes.cni.attachments import Attachment, Attachments
from plait.runtimes.cni.host import Host, namespace
from plait.runtimes.cni.wire import checked_mac, read_json
from plait.runtimes.netavark import wire

IPAM_DRIVER = "plait"


class NetavarkPlugin:
    def __init__(self, attachments: Attachments, host: Host) -> None:
        self._attachments, self._host = attachments, host

    async def call(self, verb: str, netns: str, given: bytes) -> object:
        """The answer to one call, None where there is none. Raises PlaitErrors."""
        if verb == "create":
            return await self._create(given)
        if verb not in ("setup", "teardown"):
            raise ConfigError("command", verb, "is unknown", "use create, setup PATH, teardown PATH or info")
        asked = read_json(wire.Exec, given, f"the input of {verb}")
        async with self._attachments.turn(asked.key):
            if verb == "setup":
                return await self._setup(netns, asked)
            await self._attachments.remove(asked.key)
        return None

    async def _create(self, given: bytes) -> object:
        await self._host.ready()
        asked = read_json(wire.Network, given, "the network")
        network = await self._host.ops.ensure_network(wire.request_of(asked))
        answer = dict(read_json(dict[str, Any], given, "the network"))
        answer["subnets"] = [{"subnet": str(network.subnet), "gateway": str(network.gateway)}]
        answer["ipv6_enabled"] = network.subnet6 is not None
        if network.subnet6 is not None:
            gateway6 = shown_gateway6(network)
            answer["subnets"].append({"subnet": str(network.subnet6)} | ({"gateway": gateway6} if gateway6 else {}))
        answer["internal"] = network.internal
        answer["ipam_options"] = {"driver": IPAM_DRIVER}
        return answer

    async def _setup(self, netns: str, asked: wire.Exec) -> object:
        await self._host.ready()
        network = self._host.network(asked.network.cluster_name)
        inode, digest = namespace(netns, "the path"), msgspec.json.encode(asked).decode()
        attachment = Attachment(asked.key, asked.network.name, asked.container_id, asked.container_name, netns, inode, digest)
        endpoint = await self._attachments.add(attachment, await self._request(netns, asked, network))
        assert endpoint is not None
        return self._status(endpoint, network)

    async def _request(self, netns: str, asked: wire.Exec, network: Network) -> AttachRequest:
        options = asked.network_options
        _, known = self._attachments.get(asked.key)
        state = await self._host.before(netns, options.interface_name, known)
        address, address6 = wire.addresses_of(asked)
        return AttachRequest(
            endpoint=asked.key,
            network=network.name,
            runtime=self._attachments.runtime,
            container=asked.container_id,
            name=asked.container_name,
            address=address,
            address6=address6,
            mac=checked_mac(options.static_mac or ""),
            aliases=tuple(options.aliases or ()),
            ports=self._attachments.unpublished(asked.container_id, asked.key, wire.ports_of(asked)),
            netns=netns,
            ifname=options.interface_name,
            default_route=not state.gateways,
        )

    def _status(self, endpoint: Endpoint, network: Network) -> object:
        has: list[tuple[IPInterface, IPAddress]] = [(inside_address(network, endpoint.address), network.gateway)]
        if (six := inside6(network, endpoint)) is not None:
            has.append((six.interface, six.gateway))
        resolver, child = self._host.resolver(network), child_of(network)
        asked = not network.internal and (child is None or child.gateway)
        subnets = [{"ipnet": str(address)} | ({"gateway": str(gateway)} if asked else {}) for address, gateway in has]
        return {
            "dns_search_domains": [self._host.search] if resolver else [],
            "dns_server_ips": [resolver] if resolver else [],
            "interfaces": {endpoint.ifname: {"mac_address": endpoint.mac, "subnets": subnets}},
        }
