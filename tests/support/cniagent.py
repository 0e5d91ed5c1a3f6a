# SPDX-License-Identifier: Apache-2.0
"""The agent's side of CNI without a host: the real attachments, plug-ins and server over a `FakeNode`, with namespaces that are files."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any

from plait.agent.engines import missing_of
from plait.agent.files import replace_file
from plait.agent.health import Health
from plait.agent.hostlinks import resolver_of
from plait.agent.journal import Write
from plait.http.message import Request
from plait.model.addr import IPInterface
from plait.model.cluster import Endpoint
from plait.model.inside import InsideLink, SandboxState
from plait.plan import Local, network_mtu, plan_node
from plait.plan.dual import inside6
from plait.runtimes.cni.files import Places
from plait.runtimes.cni.host import Host
from plait.runtimes.cni.runtime import CniRuntime
from tests.support.cluster import FakeNode


class CniAgent:
    """`start` and `stop` may be called again and again, like those of the node. `foreign`: links and default routes that a namespace has
    besides what plait made there; `gone`: links of plait's that somebody took away again, `routeless6`: namespaces that lost their default
    route of IPv6."""

    def __init__(self, node: FakeNode, folder: Path) -> None:
        self.node, self.folder = node, folder
        self.health = Health(lambda: 0.0)
        self.waiting = self.trouble = ""
        self.foreign: dict[str, SandboxState] = {}
        self.gone: set[str] = set()
        self.routeless6: set[str] = set()
        self.spool = folder / "cni-pending"
        self.places = Places(folder / "net.d", folder / "bin", folder / "netavark", "1.0.0")

    async def start(self) -> None:
        node = self.node

        def save(kind: str, key: str, body: bytes | None) -> Awaitable[None]:
            return node.journal.queue([Write(kind, key, body)])

        async def missing(endpoint: Endpoint) -> list[str]:
            return missing_of(await node.work.rehearse(lambda: plan_node(node.view.snapshot, Local(links=node.links))), endpoint)

        host = Host(
            node.ops,
            lambda: self.waiting,
            lambda network: self.trouble,
            self._inspect,
            missing,
            lambda network: network_mtu(node.view.snapshot.nodes[node.name], network),
            "plait",
            lambda network: resolver_of(network, "10.28.0.1"),
        )
        self.runtime = CniRuntime(
            node.name, host, node.journal.load, save, self.places, replace_file, self.health, self.folder / "cni.sock", self.spool
        )
        await self.runtime.start()

    async def stop(self) -> None:
        await self.runtime.close()

    def netns(self, name: str) -> str:
        """A new namespace: a file, whose inode is its identity."""
        path = self.folder / name
        path.touch()
        return str(path)

    def _inspect(self, netns: str) -> SandboxState:
        """What the endpoints that lie there say, and `foreign`."""
        Path(netns).stat()
        state = self.foreign.get(netns, SandboxState())
        links, gateways, gateways6 = dict(state.links), set(state.gateways), set(state.gateways6)
        snapshot = self.node.view.snapshot
        for endpoint in snapshot.endpoints.values():
            if endpoint.netns == netns and endpoint.ifname not in self.gone:
                network = snapshot.networks[endpoint.network]
                addresses: set[IPInterface] = {IPv4Interface((endpoint.address, network.subnet.prefixlen))}
                six = inside6(network, endpoint)
                addresses |= {six.interface} if six is not None else {IPv6Interface(a) for a in (endpoint.address6,) if a is not None}
                links[endpoint.ifname] = InsideLink(endpoint.mac, True, frozenset(addresses))
                gateways |= {network.gateway} if endpoint.default_route and not network.internal else set()
                gateways6 |= {six.gateway} if six is not None and six.default else set()
        return SandboxState(links, frozenset(gateways), frozenset(gateways6 if netns not in self.routeless6 else ()))

    async def call(
        self, verb: str, container: str = "c1", netns: str = "", ifname: str = "eth0", args: str = "", config: Any = None, **extra: Any
    ) -> tuple[int, Any]:
        """HTTP status and answer of one call of CNI. `config`: raw bytes, or what the configuration has besides version and name."""
        variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname, "CNI_ARGS": args}
        if not isinstance(config, bytes):
            config = json.dumps({"cniVersion": "1.0.0", "name": "default"} | (config or {}) | extra).encode()
        return await self.send({key: value for key, value in variables.items() if value}, config)

    async def netavark(self, verb: str, given: Any, netns: str = "") -> tuple[int, Any]:
        return await self.send({"NETAVARK_COMMAND": verb, "NETAVARK_NETNS": netns}, json.dumps(given).encode())

    async def send(self, variables: Mapping[str, str], given: bytes) -> tuple[int, Any]:
        answer = await self.runtime.server.respond(Request("POST", b"/cni", {}, body(variables, given)))
        return answer.status, json.loads(answer.body) if answer.body else None

    def leave(self, name: str, variables: Mapping[str, str], given: bytes) -> Path:
        """What the shim leaves while the agent is away."""
        self.spool.mkdir(exist_ok=True)
        path = self.spool / name
        path.write_bytes(body(variables, given))
        return path


def body(variables: Mapping[str, str], given: bytes) -> bytes:
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in variables.items()) + b"\0" + given
