# SPDX-License-Identifier: Apache-2.0
"""The JSON shapes of the local admin API: what the agent answers and the command line shows.

Addresses and networks are texts ("10.28.0.2", "10.28.0.0/20"), times are seconds since the epoch, and every list is in the order in
which it shall be shown. A key added later is absent from the answers of an older agent, so readers use `.get` for it.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class NodeRow(TypedDict):
    """A node of the cluster. `tunnel` is its overlay address ("" while it has none), `blocks` the CIDRs it holds, all networks. `key` is
    its WireGuard public key ("": it cannot encrypt), `rotating` whether it is changing it. `further`: its other addresses that mean it
    for all nodes."""

    name: str
    id: str
    address: str
    tunnel: str
    mtu: int
    version: str
    alive: bool
    me: bool
    gateway: bool
    key: str
    rotating: bool
    blocks: list[str]
    further: list[str]


class NetworkRow(TypedDict):
    """A network; `endpoints` counts its attachments on all nodes, `ip_range` is "" where addresses come from all of the subnet, `excluded`
    what is given to nobody, `subnet6` and `gateway6` are "" where it has no IPv6. `exposed`: the asked host's own address in it, "" if it
    has none."""

    name: str
    subnet: str
    gateway: str
    ip_range: str
    excluded: list[str]
    model: str
    backend: str
    vni: int
    port: int
    internal: bool
    block_prefix: int
    endpoints: int
    labels: dict[str, str]
    options: dict[str, str]
    subnet6: str
    gateway6: str
    exposed: str


class EndpointRow(TypedDict):
    """One attachment of a container or sandbox to a network; `address6` is "" without IPv6."""

    id: str
    name: str
    node: str
    runtime: str
    address: str
    mac: str
    aliases: list[str]
    ports: list[str]
    address6: str


class ExposureView(TypedDict):
    """The host's own address in a network; `address6` is "" without IPv6."""

    network: str
    address: str
    address6: str


class NetworkView(NetworkRow):
    """A network with who holds which part of it and who is attached."""

    held: list[BlockRow]
    attached: list[EndpointRow]


class BlockRow(TypedDict):
    """A part of a pool. `size` and `used` count addresses that can be handed out; `used` is -1 where an engine counts them itself. `cidr6`
    is what goes with it in IPv6, "" without."""

    network: str
    cidr: str
    node: str
    purpose: str
    size: int
    used: int
    cidr6: str


class PoolRow(TypedDict):
    """A network's pool. `size` counts addresses for containers; `used` those that containers have anywhere (in the pool or asked for
    outside it), `used_by` the same by node; `reserved` those kept for a name that nobody has now; `remembered` those that this node keeps
    in mind for their last name, which count as `free`."""

    network: str
    pool: str
    size: int
    used: int
    used_by: dict[str, int]
    reserved: int
    remembered: int
    free: int
    excluded: list[str]


class AddressRow(TypedDict):
    """An address and why it is not simply free. `state`: "used" (by container `name`), "reserved" (for `reserved_for`, nobody has it),
    "lent" (to `node`, not in use yet), "held" (by this node's journal, without an endpoint), "remembered" (for its last name here).
    `address6`: what the container has of IPv6 with which this address goes; asked for apart, it makes a row of its own.
    `shared_by`: further containers in the same network namespace; `lent_by`: the node whose block it lies in, if that is another;
    `started`: of the container, 0 = unknown."""

    network: str
    address: str
    address6: str
    node: str
    state: str
    name: str
    shared_by: list[str]
    runtime: str
    endpoint: str
    container: str
    reserved_for: str
    lent_by: str
    started: float


class IpamView(TypedDict):
    """Pools, who holds which block of them, and every address that is not simply free. What is remembered or held is known only of the node
    that was asked."""

    pools: list[PoolRow]
    blocks: list[BlockRow]
    addresses: list[AddressRow]


class FindingRow(TypedDict):
    """Something that records, journal, engine and kernel say differently. `kind` is a fixed word (docs/addresses.md)."""

    kind: str
    node: str
    network: str
    address: str
    text: str


class ClashRow(TypedDict):
    """Something that two clusters both use: what it is on either side, and what would end the conflict."""

    kind: str
    here: str
    there: str
    todo: str
    stops: bool


class JoinView(TypedDict):
    """What came of joining another cluster with the whole own one: what stands against it (then nothing was changed) or is settled by it,
    the nodes that go, the keys whose lock is released."""

    clashes: list[ClashRow]
    nodes: list[str]
    locks: list[str]
    joined: bool


class PortRow(TypedDict):
    """A published port of one container. `by`: its engine, or a command while it ran. `sources`: who but the host may come, [] for
    everybody. `nat`: the host reaches the container's port by this one alone."""

    node: str
    container: str
    runtime: str
    network: str
    proto: str
    host_ip: str
    host_port: int
    address: str
    container_port: int
    by: Literal["engine", "command"]
    sources: list[str]
    nat: bool


class ContainerRow(TypedDict):
    """A container or sandbox anywhere in the cluster; `addresses` and `addresses6` by network; `ports` as "0.0.0.0:8080->80/tcp"."""

    id: str
    name: str
    node: str
    runtime: str
    state: str
    image: str
    labels: dict[str, str]
    addresses: dict[str, str]
    ports: list[str]
    started: float
    addresses6: dict[str, str]


class StoreState(TypedDict):
    """How this agent reaches the shared state: `role` "embedded" (it carries it) or "remote"."""

    role: str
    address: str
    reachable: bool
    revision: int


class EngineState(TypedDict):
    """A container engine of this host; `error` is "" while it answers."""

    runtime: str
    reachable: bool
    version: str
    containers: int
    error: str


class PathState(TypedDict):
    """The way to one other node: underlay address, path (`PathRow` says more), bytes that a packet may have inside, whether that was
    probed (else it is what both ends' links allow); `error` is "" when it is usable. `encrypted` is "" for what is not, "proved" while
    echoes through the tunnel are answered, else "unproved"; `handshake` is when the latest one was, 0 for never. `relay` is
    the node that carries the packets of two encrypted tunnels, "" if none does."""

    node: str
    address: str
    backend: str
    mtu: int
    probed: bool
    error: str
    encrypted: str
    handshake: float
    relay: str


class PathRow(TypedDict):
    """The path to one other node for the packets of `networks`. `kind`: direct, the name of a tunnel's backend, relay, none. `first`: the
    kind of the first step, `relay` the node which that leads to ("" : the node itself). `mtu` is that inside, bytes; `rtt_ms` and `loss`
    (0 to 1) are those of the first step as probed last, None where nothing was. `rtt6_ms` and `loss6` are those of IPv6, where that was
    probed by itself: on the link. A tunnel carries it like IPv4."""

    node: str
    networks: list[str]
    kind: str
    relay: str
    first: str
    why: str
    since: float
    mtu: int
    rtt_ms: float | None
    loss: float | None
    rtt6_ms: float | None
    loss6: float | None
    works: bool


class ConditionRow(TypedDict):
    """Something that is wrong now, and what to do about it (docs/health-codes.md)."""

    code: str
    severity: Literal["error", "warning"]
    subject: str
    title: str
    text: str
    todo: str
    since: float


class LimitRow(TypedDict):
    """How much a container may receive (`direction` "in") or send ("out") on a network, of `what`: "rate" in bit/s of goodput, "packets" or
    "connections" a second, "priority" (`manner` is the class); `rate` 0: not limited. `burst` bytes of a rate, 0: by the rate. `by` is who
    says so. `running` False: kept for when a container of this name starts. `held` False: not in force. `dropped` packets since it was said
    so, of what is counted. `port`: of what comes and goes by this published port of the container (`80/tcp`) alone; "" of all."""

    container: str
    network: str
    port: str
    what: Literal["rate", "packets", "connections", "priority"]
    direction: str
    rate: int
    burst: int
    manner: str
    by: str
    running: bool
    held: bool
    dropped: int


class StatusView(TypedDict):
    """Everything that `plait status` shows. `well` is true when no condition holds and the node is ready; `waiting` says what it
    still waits for ("" when ready)."""

    well: bool
    waiting: str
    node: str
    version: str
    uptime_s: float
    store: StoreState
    nodes: list[NodeRow]
    networks: list[NetworkRow]
    engines: list[EngineState]
    blocks: list[BlockRow]
    paths: list[PathState]
    conditions: list[ConditionRow]


class PlanEntry(TypedDict):
    """One kernel object: what would be done to it ("put", "del"), its key, and the commands that would do the same by hand."""

    verb: Literal["put", "del"]
    key: list[str]
    commands: list[str]


class TokenView(TypedDict):
    """A join token: usable once until `expires`, at the store's join `address` (host, without port)."""

    token: str
    address: str
    expires: float


class SandboxView(TypedDict):
    """A sandbox on this host. `netns` is the path of its namespace, `pid` its command (0: none), `dns` and `search` go into resolv.conf."""

    name: str
    network: str
    netns: str
    address: str
    gateway: str
    dns: list[str]
    search: str
    ports: list[str]
    pid: int
    address6: str
