# SPDX-License-Identifier: Apache-2.0
"""What the agent offers on its admin socket: implements `serve.admin_backend.AdminBackend` on the agent's parts."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from plait import __version__
from plait.agent import reports
from plait.agent.addresses import Addresses
from plait.agent.exposures import Exposures
from plait.agent.health import Health
from plait.agent.hostlinks import router_of, servers_of
from plait.agent.identity import Identity
from plait.agent.ipamcare import IpamCare
from plait.agent.ipamview import ipam_view
from plait.agent.joining import Joining
from plait.agent.kernelwork import KernelWork
from plait.agent.keys import rotate_key
from plait.agent.limits import LimitBook
from plait.agent.operations import AgentOperations
from plait.agent.outward import Outward
from plait.agent.policies import Policies
from plait.agent.publications import Publications
from plait.agent.removal import forget_node
from plait.agent.sandboxes import Sandboxes, SandboxRequest
from plait.agent.services import Services
from plait.agent.tunnels import Tunnels
from plait.agent.underlay import Underlay
from plait.agent.view import View
from plait.ipam import PoolChange, Reservation
from plait.ipam.merge import VERSION, ClusterExport, conflicts, export
from plait.model.cluster import Endpoint, Network, PortMapping, published_text
from plait.model.egress import Egress
from plait.model.egressreport import EgressRow
from plait.model.errors import ConfigError, Conflict, NotFound
from plait.model.limits import Limits
from plait.model.objects import Plan
from plait.model.policyreport import AppliedRow, DropRow, NamespaceRow, PolicyPlan, PolicyRow, PolicyTest, PolicyView
from plait.model.ports import HostPorts, parse_ports
from plait.model.report import (
    ClashRow,
    ContainerRow,
    EngineState,
    ExposureView,
    FindingRow,
    IpamView,
    JoinView,
    LimitRow,
    NetworkRow,
    NetworkView,
    NodeRow,
    PathRow,
    PlanEntry,
    PortRow,
    SandboxView,
    StatusView,
    StoreState,
    TokenView,
)
from plait.model.requests import NetworkRequest, NewSandbox
from plait.model.routingreport import RoutingView
from plait.model.service import ServiceChange, ServiceRequest
from plait.model.servicereport import ServiceRow, ServiceView
from plait.store.api import Put, Store
from plait.store.codec import decode, encode


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the backend is put together from; callables give what other parts know at the moment."""

    identity: Identity
    view: View
    store: Store
    ops: AgentOperations
    sandboxes: Sandboxes
    limits: LimitBook
    publications: Publications
    work: KernelWork
    health: Health
    underlay: Underlay
    tunnels: Tunnels
    addresses: Addresses
    care: IpamCare
    default_network: str
    search: str
    resolver: Callable[[Network], str]
    plan: Callable[[], Plan]
    waiting: Callable[[], str]
    store_state: Callable[[], StoreState]
    engines: Callable[[], list[EngineState]]
    token: Callable[[int], Awaitable[TokenView]]
    gateway: Callable[[bool], Awaitable[None]]
    exposures: Exposures
    host_leases: Callable[[], list[Reservation]]
    caught_up: Callable[[int], Awaitable[None]]
    joining: Joining
    policies: Policies
    services: Services
    outward: Outward


class AgentAdmin:
    def __init__(self, parts: AdminParts) -> None:
        self._p = parts
        self._started = time.monotonic()

    async def ready(self) -> str:
        return self._p.waiting()

    async def status(self) -> StatusView:
        snapshot = self._p.view.snapshot
        return {
            "well": self._p.health.well and not self._p.waiting(),
            "waiting": self._p.waiting(),
            "node": snapshot.me,
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "store": self._p.store_state(),
            "nodes": reports.node_rows(snapshot),
            "networks": reports.network_rows(snapshot),
            "engines": self._p.engines(),
            "blocks": reports.block_rows(snapshot),
            "paths": reports.path_states(snapshot, self._p.underlay, self._p.tunnels),
            "conditions": reports.condition_rows(self._p.health),
        }

    async def nodes(self) -> list[NodeRow]:
        return reports.node_rows(self._p.view.snapshot)

    async def forget_node(self, name: str) -> None:
        await forget_node(self._p.view, self._p.store, name)

    async def rotate_key(self, name: str) -> None:
        node = self._p.view.snapshot.nodes.get(name)
        if node is None:
            raise NotFound(f"there is no node {name!r}; `plait nodes` lists them")
        if node.wireguard is None:
            raise Conflict(f"node {name!r} cannot encrypt and has no key; `plait status` there says what it lacks")
        await self._p.store.txn([], [Put(rotate_key(name), b"1")])

    async def networks(self) -> list[NetworkRow]:
        return reports.network_rows(self._p.view.snapshot)

    async def network(self, name: str) -> NetworkView:
        return reports.network_view(self._p.view.snapshot, self._network(name))

    async def create_network(self, request: NetworkRequest) -> NetworkRow:
        if request.name in self._p.view.snapshot.networks:
            raise Conflict(f"network {request.name!r} exists already; `plait network inspect {request.name}` shows it")
        return reports.network_row(self._p.view.snapshot, await self._p.ops.ensure_network(request))

    async def change_network(self, name: str, options: Mapping[str, str], pool: PoolChange | None = None) -> list[NetworkRow]:
        return [reports.network_row(self._p.view.snapshot, network) for network in await self._p.ops.change_network(name, options, pool)]

    async def remove_network(self, name: str, force: bool) -> None:
        await self._p.ops.remove_network(name, force)

    async def paths(self) -> list[PathRow]:
        return self._p.underlay.paths.rows()

    async def routing(self) -> RoutingView:
        return await self._p.outward.routing.view()

    async def egresses(self) -> list[EgressRow]:
        return self._p.outward.egresses.rows()

    async def put_egress(self, wanted: Egress) -> EgressRow:
        return await self._p.outward.egresses.put(wanted)

    async def remove_egress(self, name: str) -> None:
        await self._p.outward.egresses.remove(name)

    async def reserve_address(self, network: str, name: str, address: IPv4Address) -> None:
        await self._p.addresses.assigned.reserve(self._network(network), name, address)

    async def unreserve_address(self, network: str, name: str) -> None:
        await self._p.addresses.assigned.unreserve(self._network(network).name, name)

    def _network(self, name: str) -> Network:
        found = self._p.view.snapshot.networks.get(name)
        if found is None:
            raise NotFound(f"there is no network {name!r}; `plait network ls` lists them")
        return found

    async def ipam(self) -> IpamView:
        return ipam_view(self._p.view.snapshot, [*self._p.addresses.reservations(), *self._p.host_leases()])

    async def check_ipam(self) -> list[FindingRow]:
        found = await self._p.care.check()
        return [{"kind": f.kind, "node": f.node, "network": f.network, "address": f.address, "text": f.text} for f in found]

    async def reclaim_addresses(self, apply: bool) -> list[str]:
        return await self._p.care.reclaim(apply)

    async def export_cluster(self) -> bytes:
        return encode(export(self._p.view.snapshot))

    async def cluster_conflicts(self, other: bytes) -> list[ClashRow]:
        there = decode(ClusterExport, other, "of the export")
        if there.version != VERSION:
            raise ConfigError("export", there.version, f"is of another version than {VERSION}", "export it with this version of plait")
        found = conflicts(export(self._p.view.snapshot), there)
        return reports.clash_rows(found)

    async def join_cluster(self, address: str, token: str, dry_run: bool, both_names: bool) -> JoinView:
        found = await self._p.joining.join(address, token, dry_run, both_names)
        rows = reports.clash_rows(found.clashes)
        return {"clashes": rows, "nodes": list(found.nodes), "locks": list(found.locks), "joined": found.joined}

    async def ports(self) -> list[PortRow]:
        return reports.port_rows(self._p.view.snapshot)

    async def ps(self) -> list[ContainerRow]:
        return reports.container_rows(self._p.view.snapshot)

    async def plan(self, diff: bool) -> list[PlanEntry]:
        return reports.plan_entries(await self._p.work.rehearse(self._p.plan, bare=not diff))

    async def create_token(self, ttl_s: int) -> TokenView:
        return await self._p.token(ttl_s)

    async def set_gateway(self, enabled: bool) -> None:
        await self._p.gateway(enabled)

    async def expose(self, network: str) -> ExposureView:
        endpoint = await self._p.exposures.expose(network)
        return {"network": network, "address": str(endpoint.address), "address6": str(endpoint.address6 or "")}

    async def hide(self, network: str) -> None:
        await self._p.exposures.hide(network)

    async def publish(self, container: str, network: str, ports: Sequence[PortMapping]) -> list[str]:
        return await self._p.publications.publish(container, network, ports)

    async def unpublish(self, container: str, network: str, held: Sequence[HostPorts]) -> list[str]:
        return await self._p.publications.unpublish(container, network, held)

    async def limits(self) -> list[LimitRow]:
        return await self._p.limits.rows()

    async def set_limits(self, container: str, network: str, limits: Limits, port: str) -> None:
        await self._p.limits.tell(container, network, limits, port)

    async def unset_limits(self, container: str, network: str, port: str) -> None:
        await self._p.limits.forget(container, network, port)

    # --- policies

    async def policies(self) -> list[PolicyRow]:
        return self._p.policies.rows()

    async def policy(self, name: str) -> PolicyView:
        return self._p.policies.show(name)

    async def apply_policies(self, body: bytes) -> list[AppliedRow]:
        return await self._p.policies.apply(body)

    async def plan_policies(self, body: bytes) -> PolicyPlan:
        return await self._p.policies.plan(body)

    async def remove_policy(self, name: str) -> None:
        await self._p.policies.remove(name)

    async def namespaces(self) -> list[NamespaceRow]:
        return self._p.policies.namespaces()

    async def policy_drops(self) -> list[DropRow]:
        return await self._p.policies.judgments.drops()

    async def test_policy(self, source: str, destination: str, protocol: str, port: int) -> PolicyTest:
        return self._p.policies.test(source, destination, protocol, port)

    # --- services

    async def services(self) -> list[ServiceRow]:
        return self._p.services.rows()

    async def service(self, name: str) -> ServiceView:
        return self._p.services.show(name)

    async def create_service(self, request: ServiceRequest) -> ServiceView:
        return await self._p.services.create(request)

    async def change_service(self, name: str, change: ServiceChange) -> ServiceView:
        return await self._p.services.change(name, change)

    async def remove_service(self, name: str) -> None:
        await self._p.services.remove(name)

    # --- sandboxes

    async def create_sandbox(self, request: NewSandbox) -> SandboxView:
        endpoint = await self._p.sandboxes.create(
            SandboxRequest(
                name=request.name,
                network=request.network or self._p.default_network,
                address=request.address,
                labels=tuple(request.labels.items()),
                aliases=request.aliases,
                ports=parse_ports(request.ports),
                address6=request.address6,
                share=request.share,
            )
        )
        return self._sandbox_view(request.name, endpoint, 0)

    async def sandbox(self, name: str) -> SandboxView:
        sandbox, endpoint = self._p.sandboxes.get(name)
        return self._sandbox_view(name, endpoint, sandbox.pid)

    def _sandbox_view(self, name: str, endpoint: Endpoint, pid: int) -> SandboxView:
        network = self._p.view.snapshot.networks[endpoint.network]
        return {
            "name": name,
            "network": network.name,
            "netns": str(self._p.sandboxes.path(name)),
            "address": str(endpoint.address),
            "address6": str(endpoint.address6 or ""),
            "gateway": router_of(network, endpoint),
            "dns": servers_of(self._p.resolver(network), endpoint),
            "search": self._p.search,
            "ports": [published_text(port) for port in endpoint.ports],
            "pid": pid,
        }

    async def sandbox_started(self, name: str, pid: int) -> None:
        await self._p.sandboxes.started(name, pid)

    async def remove_sandbox(self, name: str) -> None:
        await self._p.sandboxes.remove(name)


def netns_of_own(view: View) -> dict[str, str]:
    """As `netns_of_containers`, of all endpoints of this node."""
    return netns_of_containers(view, {e.id: e for e in view.snapshot.endpoints.values() if e.node == view.me})


def netns_of_containers(view: View, endpoints: Mapping[str, Endpoint]) -> dict[str, str]:
    """Endpoint id -> path of the namespace of its container's first process, where the engine has told the process, and that the endpoint
    is in the container by now: there a link that somebody deleted is put back."""
    snapshot = view.snapshot
    running = {c.id: c for c in snapshot.containers.values() if c.node == snapshot.me and c.pid}
    joined = ((e, running[e.container]) for e in endpoints.values() if not e.netns and e.container in running)
    found = {e.id: f"/proc/{c.pid}/ns/net" for e, c in joined if c.addresses.get(e.network) == e.address}
    return {key: path for key, path in found.items() if Path(path).exists()}
