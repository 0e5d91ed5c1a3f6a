# SPDX-License-Identifier: Apache-2.0
"""The operator's part of the Consul-compatible API, and honest stubs for what plait does not have.

plait has one store and no Raft: its host is shown as the only voter, and what would change the voters is refused. Lists of what plait has
none of are empty; calls that would make such a thing get the answer of an agent that does not have it configured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from plait.http.message import Answer
from plait.model.addr import at_port
from plait.model.cluster import Node, Snapshot
from plait.model.errors import ConfigError
from plait.serve.consul_http import COMMON, NO_ENDPOINT, Call, Handler, Missing, Route, encoded, json_answer, read_headers, text_answer
from plait.services.directory import CONSUL_VERSION, SERVER_META, SERVER_PORT
from plait.services.requests import BadRequest, Refusal, fold

AUTOPILOT: Mapping[str, object] = {
    "CleanupDeadServers": True,
    "LastContactThreshold": "200ms",
    "MaxTrailingLogs": 250,
    "MinQuorum": 0,
    "ServerStabilizationTime": "10s",
    "RedundancyZoneTag": "",
    "DisableUpgradeMigration": False,
    "UpgradeVersionTag": "",
}
"""Consul's defaults. They are kept for clients that set them; with one store there is nothing that they steer."""
_EMPTY_LISTS = (
    "connect/intentions",
    "peerings",
    "health/connect/<name>",
    "health/ingress/<name>",
    "catalog/connect/<name>",
    "catalog/gateway-services/<name>",
    "exported-services",
    "imported-services",
)
MAX_ARCHIVE = 64 * 1024 * 1024
_NO_CONNECT = "Connect must be enabled in order to use this endpoint"
_NO_KEYRING = "keyring is empty: the agents talk over mutual TLS, there is no gossip encryption"


class OperatorBackend(Protocol):
    def snapshot(self) -> Snapshot: ...

    def last_contact_ms(self) -> int | None: ...

    def autopilot(self) -> tuple[dict[str, object], int]: ...

    async def set_autopilot(self, settings: dict[str, object], cas: int | None) -> bool: ...

    async def archive(self) -> tuple[bytes, int]: ...

    async def restore(self, archive: bytes) -> None: ...


class OperatorApi:
    def __init__(self, backend: OperatorBackend, datacenter: str) -> None:
        self._backend, self._datacenter = backend, datacenter
        keyring = dict.fromkeys(("GET", "POST", "PUT", "DELETE"), _refuse(_NO_KEYRING))
        self.routes = (
            Route(
                "snapshot", "all that clients wrote as one archive; PUT restores it", {"GET": self._save, "PUT": self._restore}, MAX_ARCHIVE
            ),
            Route("operator/raft/configuration", "the store's host as the only voter", {"GET": self._raft}),
            Route("operator/raft/peer", "refused: there is no other voter", {"DELETE": self._remove_peer}),
            Route(
                "operator/raft/transfer-leader",
                "refused: there is no other voter",
                {"POST": _refuse("cannot find peer: there is one store")},
            ),
            Route("operator/autopilot/configuration", "kept, steers nothing", {"GET": self._autopilot, "PUT": self._set_autopilot}),
            Route("operator/autopilot/health", "whether the store is well", {"GET": self._health}),
            Route("operator/autopilot/state", "the same by server", {"GET": self._state}),
            Route("operator/keyring", "refused: there is no gossip", keyring),
            Route("operator/usage", "counts of nodes and services", {"GET": self._usage}),
            Route("connect/ca/roots", "refused: there is no Connect", {"GET": _refuse(_NO_CONNECT)}),
            Route("connect/ca/configuration", "refused: there is no Connect", dict.fromkeys(("GET", "PUT"), _refuse(_NO_CONNECT))),
            Route("agent/connect/ca/roots", "refused: there is no Connect", {"GET": _refuse(_NO_CONNECT)}),
            Route("agent/connect/ca/leaf/<service>", "refused: there is no Connect", {"GET": _refuse(_NO_CONNECT)}),
            Route("config/<kind>", "always empty: plait has none", {"GET": _no_entries}),
            *(Route(path, "always empty: plait has none", {"GET": _empty}) for path in _EMPTY_LISTS),
        )

    # --- snapshot

    async def _save(self, call: Call) -> Answer:
        archive, index = await self._backend.archive()
        headers = read_headers(index, self._backend.last_contact_ms(), call.consistency())
        return Answer(200, archive, "application/x-gzip", COMMON | headers)

    async def _restore(self, call: Call) -> Answer:
        try:
            await self._backend.restore(call.body)
        except ConfigError as error:
            raise BadRequest(str(error)) from error
        return text_answer(200, "")

    # --- servers

    def _servers(self) -> list[Node]:
        nodes = self._backend.snapshot().nodes.values()
        return sorted((node for node in nodes if SERVER_META in node.meta), key=lambda node: node.name)

    async def _raft(self, call: Call) -> Answer:
        servers = [
            {
                "ID": node.id,
                "Node": node.name,
                "Address": at_port(node.address, SERVER_PORT),
                "Leader": True,
                "Voter": True,
                "ProtocolVersion": "3",
                "LastIndex": self._backend.snapshot().revision,
            }
            for node in self._servers()
        ]
        return _shown(call, {"Servers": servers, "Index": 0})

    async def _remove_peer(self, call: Call) -> Answer:
        wanted = call.one("id") or call.one("address")
        if not wanted:
            raise BadRequest("Must specify either ?id with the server's ID or ?address with IP:port of peer to remove")
        raise Refusal(f'"{wanted}" was not found in the Raft configuration, or is the only voter')

    def _healthy(self, node: Node) -> bool:
        return node.name in self._backend.snapshot().alive and self._backend.last_contact_ms() is not None

    def _server(self, node: Node) -> dict[str, object]:
        healthy = self._healthy(node)
        return {
            "ID": node.id,
            "Name": node.name,
            "Address": at_port(node.address, SERVER_PORT),
            "SerfStatus": "alive" if healthy else "failed",
            "Version": CONSUL_VERSION,
            "Leader": True,
            "LastContact": "0s",
            "LastTerm": 1,
            "LastIndex": self._backend.snapshot().revision,
            "Healthy": healthy,
            "Voter": True,
            "StableSince": "1970-01-01T00:00:00Z",
        }

    async def _health(self, call: Call) -> Answer:
        servers = self._servers()
        healthy = bool(servers) and all(self._healthy(node) for node in servers)
        answer = _shown(call, {"Healthy": healthy, "FailureTolerance": 0, "Servers": [self._server(node) for node in servers]})
        if not healthy:
            answer.status = 429
        return answer

    async def _state(self, call: Call) -> Answer:
        servers = {node.id: {**self._server(node), "Status": "leader", "NodeStatus": "alive"} for node in self._servers()}
        leader = next(iter(servers), "")
        healthy = bool(servers) and all(self._healthy(node) for node in self._servers())
        state = {"Healthy": healthy, "FailureTolerance": 0, "Leader": leader, "Voters": list(servers), "Servers": servers}
        return _shown(call, state)

    # --- autopilot's settings

    async def _autopilot(self, call: Call) -> Answer:
        settings, index = self._backend.autopilot()
        return _shown(call, {**AUTOPILOT, **settings, "CreateIndex": max(index, 1), "ModifyIndex": max(index, 1)})

    async def _set_autopilot(self, call: Call) -> Answer:
        known = {key.lower(): key for key in AUTOPILOT}
        given = {known[key]: value for key, value in fold(call.json()).items() if key in known}
        for key, value in given.items():
            if type(value) is not type(AUTOPILOT[key]):
                raise BadRequest(f"Error parsing autopilot config: {key} must be like {AUTOPILOT[key]!r}")
        cas = call.number("cas")
        if cas is not None and self._backend.autopilot()[1] == 0:
            cas = 0 if cas == 1 else cas
        done = await self._backend.set_autopilot(given, cas)
        return json_answer(b"true" if done else b"false")

    async def _usage(self, call: Call) -> Answer:
        snapshot = self._backend.snapshot()
        counts = {
            "Nodes": len(snapshot.nodes),
            "Services": len({instance.name for instance in snapshot.instances.values()}) + 1,
            "ServiceInstances": len(snapshot.instances) + 1,
            "ConnectServiceInstances": {},
            "BillableServiceInstances": len(snapshot.instances),
        }
        headers = read_headers(max(snapshot.revision, 1), self._backend.last_contact_ms(), call.consistency())
        body = {"Usage": {self._datacenter: counts}, "Index": snapshot.revision, "LastContact": 0, "KnownLeader": True}
        body |= {"ConsistencyLevel": call.consistency(), "NotModified": False, "Backend": 0, "ResultsFilteredByACLs": False}
        return json_answer(encoded(body, call.flag("pretty")), headers)


def _shown(call: Call, value: object) -> Answer:
    return json_answer(encoded(value, call.flag("pretty")))


def _refuse(why: str) -> Handler:
    async def refuse(_: Call) -> Answer:
        raise Refusal(why)

    return refuse


async def _no_entries(call: Call) -> Answer:
    if "/" in call.parts[0]:  # a single one
        raise Missing(NO_ENDPOINT)
    return await _empty(call)


async def _empty(call: Call) -> Answer:
    return json_answer(b"[]", read_headers(1, 0, call.consistency()))
