# SPDX-License-Identifier: Apache-2.0
"""What the admin API asks of the agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from typing import Protocol

from plait.ipam import PoolChange
from plait.model.cluster import PortMapping
from plait.model.egress import Egress
from plait.model.egressreport import EgressRow
from plait.model.limits import Limits
from plait.model.policyreport import AppliedRow, DropRow, NamespaceRow, PolicyPlan, PolicyRow, PolicyTest, PolicyView
from plait.model.ports import HostPorts
from plait.model.report import (
    ClashRow,
    ContainerRow,
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
    TokenView,
)
from plait.model.requests import NetworkRequest, NewSandbox
from plait.model.routingreport import RoutingView
from plait.model.service import ServiceChange, ServiceRequest
from plait.model.servicereport import ServiceRow, ServiceView


class AdminBackend(Protocol):
    """What the agent offers to its own host. Every method may raise a PlaitError whose text is shown to the user as it is."""

    async def ready(self) -> str:
        """ "" when the node serves containers; otherwise what it still waits for."""
        ...

    async def status(self) -> StatusView: ...

    async def nodes(self) -> list[NodeRow]: ...

    async def forget_node(self, name: str) -> None:
        """Remove a dead node with its blocks, endpoints, containers and instances. Conflict while it gives signs of life."""
        ...

    async def rotate_key(self, name: str) -> None:
        """Have the node change its WireGuard key, as soon as it hears of it. NotFound, or Conflict if it has none."""
        ...

    async def networks(self) -> list[NetworkRow]: ...

    async def network(self, name: str) -> NetworkView: ...

    async def create_network(self, request: NetworkRequest) -> NetworkRow: ...

    async def change_network(self, name: str, options: Mapping[str, str], pool: PoolChange | None) -> list[NetworkRow]:
        """Give a network these options, and another range if there is one, while it is used; it first, then those that changed with it."""
        ...

    async def remove_network(self, name: str, force: bool) -> None: ...

    async def paths(self) -> list[PathRow]: ...

    async def routing(self) -> RoutingView: ...

    async def egresses(self) -> list[EgressRow]: ...

    async def put_egress(self, wanted: Egress) -> EgressRow:
        """Make an egress rule, or another in its place; in force on this host when it returns. NotFound, NotSupported, Conflict."""
        ...

    async def remove_egress(self, name: str) -> None: ...

    async def reserve_address(self, network: str, name: str, address: IPv4Address) -> None:
        """Keep `address` for containers called `name`, on every node. Idempotent; Conflict names what stands against it."""
        ...

    async def unreserve_address(self, network: str, name: str) -> None: ...

    async def ipam(self) -> IpamView: ...

    async def check_ipam(self) -> list[FindingRow]:
        """What differs for longer than a moment; takes about a second."""
        ...

    async def reclaim_addresses(self, apply: bool) -> list[str]:
        """What is dead beyond doubt, one line each; freed if `apply`. Safe to repeat, and on several nodes at once."""
        ...

    async def export_cluster(self) -> bytes:
        """JSON of what of this cluster may conflict with another one."""
        ...

    async def cluster_conflicts(self, other: bytes) -> list[ClashRow]:
        """Everything that this cluster and the exported one cannot both keep. ConfigError if that is no export."""
        ...

    async def join_cluster(self, address: str, token: str, dry_run: bool, both_names: bool) -> JoinView:
        """Join the cluster at `address` with all nodes of this one, or (`dry_run`) say what would stand against it. Names that containers
        of both have are no reason against it if `both_names`. Conflict, StoreUnavailable: then nothing was changed."""
        ...

    async def ports(self) -> list[PortRow]: ...

    async def ps(self) -> list[ContainerRow]: ...

    async def plan(self, diff: bool) -> list[PlanEntry]:
        """The whole desired state of this node, or (`diff`) only what a pass would change now; in the order of application."""
        ...

    async def create_token(self, ttl_s: int) -> TokenView: ...

    async def set_gateway(self, enabled: bool) -> None:
        """Whether this node forwards for hosts without an agent. Idempotent; kept over restarts."""
        ...

    async def expose(self, network: str) -> ExposureView:
        """Give this host an address of its own in `network`. Idempotent; kept over restarts. NotFound, PoolExhausted."""
        ...

    async def hide(self, network: str) -> None:
        """Take that address away. Idempotent; NotFound if there is no such network."""
        ...

    async def publish(self, container: str, network: str, ports: Sequence[PortMapping]) -> list[str]:
        """Publish ports of a container of this host besides those that it publishes; as people write them, in force when it returns.
        `network` "": by whichever it answers. PortInUse names the holder."""
        ...

    async def unpublish(self, container: str, network: str, held: Sequence[HostPorts]) -> list[str]:
        """Give up these publications of it, or (none given) all that were made by command; as people write them. NotFound."""
        ...

    async def limits(self) -> list[LimitRow]:
        """What holds of the containers of this host, and what is kept for such as do not run."""
        ...

    async def set_limits(self, container: str, network: str, limits: Limits, port: str) -> None:
        """Hold a container of this host, or what comes and goes by its published `port` (`80/tcp`) alone, to `limits`, on one of its
        networks or ("") all; in force when it returns. Idempotent."""
        ...

    async def unset_limits(self, container: str, network: str, port: str) -> None:
        """Hold it, or that port alone, to what its labels and networks say. NotFound if nothing else was set."""
        ...

    async def policies(self) -> list[PolicyRow]: ...

    async def policy(self, name: str) -> PolicyView:
        """`NAMESPACE/NAME`, or `NAME` where only one is called so. NotFound, Conflict."""
        ...

    async def apply_policies(self, body: bytes) -> list[AppliedRow]:
        """Take over all policies of a file, or none: ConfigError with line, field and reason. In force on this host when it answers."""
        ...

    async def plan_policies(self, body: bytes) -> PolicyPlan:
        """What applying a file would change. ConfigError as `apply_policies`."""

    async def remove_policy(self, name: str) -> None: ...

    async def namespaces(self) -> list[NamespaceRow]: ...

    async def policy_drops(self) -> list[DropRow]:
        """What policies dropped on this host, or would have, the latest first. NotSupported where the kernel cannot count."""

    async def test_policy(self, source: str, destination: str, protocol: str, port: int) -> PolicyTest:
        """What becomes of a new connection from one name or address to another, and which rule says so."""
        ...

    async def services(self) -> list[ServiceRow]: ...

    async def service(self, name: str) -> ServiceView:
        """`NAMESPACE/NAME`, or `NAME` where only one is called so. NotFound, Conflict."""
        ...

    async def create_service(self, request: ServiceRequest) -> ServiceView:
        """In force on this host when it answers."""
        ...

    async def change_service(self, name: str, change: ServiceChange) -> ServiceView: ...

    async def remove_service(self, name: str) -> None: ...

    async def create_sandbox(self, request: NewSandbox) -> SandboxView: ...

    async def sandbox(self, name: str) -> SandboxView: ...

    async def sandbox_started(self, name: str, pid: int) -> None:
        """The sandbox's command runs as `pid`; when that ends the sandbox is removed."""
        ...

    async def remove_sandbox(self, name: str) -> None: ...
