# SPDX-License-Identifier: Apache-2.0
"""What the agent says about itself and the cluster, in the shapes of `model.report`. Pure reading of a snapshot and a few counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from plait.agent.health import Health
from plait.agent.paths import shown
from plait.agent.tunnels import Tunnel, Tunnels
from plait.agent.underlay import Underlay
from plait.backends import Path, backend_of
from plait.backends.wireguard import relay_of
from plait.ipam import block_of, image_block, stray_endpoints, usable
from plait.ipam.merge import Clash
from plait.kernel.dryrun import render
from plait.model.cluster import GATEWAY_META, Block, Container, Endpoint, Network, Node, PortMapping, Snapshot, published_text
from plait.model.objects import Op
from plait.model.report import (
    BlockRow,
    ClashRow,
    ConditionRow,
    ContainerRow,
    EndpointRow,
    NetworkRow,
    NetworkView,
    NodeRow,
    PathState,
    PlanEntry,
    PortRow,
)
from plait.plan import choose, inner_mtu
from plait.plan.exposed import exposed_here


def node_rows(snapshot: Snapshot) -> list[NodeRow]:
    return [_node_row(snapshot, node) for node in sorted(snapshot.nodes.values(), key=lambda n: n.name)]


def _node_row(snapshot: Snapshot, node: Node) -> NodeRow:
    return {
        "name": node.name,
        "id": node.id,
        "address": str(node.address),
        "tunnel": str(node.tunnel or ""),
        "mtu": node.mtu,
        "version": node.version,
        "alive": node.name in snapshot.alive,
        "me": node.name == snapshot.me,
        "gateway": GATEWAY_META in node.meta,
        "key": node.wireguard.public if node.wireguard is not None else "",
        "rotating": node.wireguard is not None and bool(node.wireguard.rotating),
        "blocks": [str(b.cidr) for b in _sorted(snapshot.blocks.values()) if b.node == node.name],
        "further": [str(address) for address in node.further],
    }


def clash_rows(clashes: Iterable[Clash]) -> list[ClashRow]:
    return [{"kind": c.kind, "here": c.here, "there": c.there, "todo": c.todo, "stops": c.stops} for c in clashes]


def _sorted(blocks: Iterable[Block]) -> list[Block]:
    return sorted(blocks, key=lambda b: (b.network, b.cidr))


def network_row(snapshot: Snapshot, network: Network) -> NetworkRow:
    return {
        "name": network.name,
        "subnet": str(network.subnet),
        "gateway": str(network.gateway),
        "ip_range": str(network.ip_range or ""),
        "excluded": list(map(str, network.excluded)),
        "model": backend_of(network).model,
        "backend": network.backend,
        "vni": network.vni,
        "port": network.port,
        "internal": network.internal,
        "block_prefix": network.block_prefix,
        "endpoints": sum(1 for e in snapshot.endpoints.values() if e.network == network.name),
        "labels": dict(network.labels),
        "options": dict(network.options),
        "subnet6": str(network.subnet6 or ""),
        "gateway6": str(network.gateway6 or ""),
        "exposed": next((str(e.address) for e in exposed_here(snapshot) if e.network == network.name), ""),
    }


def network_rows(snapshot: Snapshot) -> list[NetworkRow]:
    return [network_row(snapshot, n) for n in sorted(snapshot.networks.values(), key=lambda n: n.name)]


def network_view(snapshot: Snapshot, network: Network) -> NetworkView:
    attached = sorted((e for e in snapshot.endpoints.values() if e.network == network.name), key=lambda e: e.address)
    return {
        **network_row(snapshot, network),
        "held": [row for row in block_rows(snapshot) if row["network"] == network.name],
        "attached": [_endpoint_row(endpoint) for endpoint in attached],
    }


def _endpoint_row(endpoint: Endpoint) -> EndpointRow:
    return {
        "id": endpoint.id,
        "name": endpoint.name,
        "node": endpoint.node,
        "runtime": endpoint.runtime,
        "address": str(endpoint.address),
        "mac": endpoint.mac,
        "aliases": list(endpoint.aliases),
        "ports": [published_text(p) for p in endpoint.ports],
        "address6": str(endpoint.address6 or ""),
    }


def strays(snapshot: Snapshot) -> dict[str, str]:
    """Endpoints of this node by id whose address lies in a block that another node holds, each with what to say of it."""
    found: dict[str, str] = {}
    for endpoint in stray_endpoints(snapshot):
        network = snapshot.networks[endpoint.network]
        block = snapshot.blocks.get((network.name, block_of(network, endpoint.address)))
        assigned = snapshot.assigned.get((network.name, endpoint.address))
        lent = assigned is not None and assigned.node == endpoint.node
        if endpoint.node == snapshot.me and block is not None and not lent:
            what = endpoint.name or endpoint.id
            found[endpoint.id] = f"{what}: {endpoint.address} of network {network.name} lies in block {block.cidr} of node {block.node}"
    return found


def block_rows(snapshot: Snapshot) -> list[BlockRow]:
    return [_block_row(snapshot, block) for block in _sorted(snapshot.blocks.values()) if block.network in snapshot.networks]


def _block_row(snapshot: Snapshot, block: Block) -> BlockRow:
    network = snapshot.networks[block.network]
    node = snapshot.nodes.get(block.node)
    if block.purpose == "bridge":
        on_bridge = (c.addresses.get(block.network) for c in snapshot.containers.values() if c.node == block.node)
        used = sum(1 for address in on_bridge if address is not None and address in block.cidr)
        size = block.cidr.num_addresses - 3
    else:
        used = sum(1 for e in snapshot.endpoints.values() if e.network == block.network and e.address in block.cidr)
        size = sum(1 for _ in usable(network, block.cidr, node.tunnel if node is not None else None))
    return {
        "network": block.network,
        "cidr": str(block.cidr),
        "node": block.node,
        "purpose": block.purpose,
        "size": size,
        "used": used,
        "cidr6": str(image_block(network, block.cidr) or "") if block.purpose == "pool" else "",
    }


def port_rows(snapshot: Snapshot) -> list[PortRow]:
    """Ports that plait publishes, and those that an engine publishes itself (Docker's on its own bridge)."""
    published = ((endpoint, port) for endpoint in snapshot.endpoints.values() for port in endpoint.ports)
    rows = [_port_row(e.node, e.name or e.id, e.runtime, e.network, port, _reached(e, port)) for e, port in published]
    ours = {(row["node"], row["proto"], row["host_port"]) for row in rows}
    for container in snapshot.containers.values():
        address = next(iter(container.addresses.items()), ("", ""))
        rows += [
            _port_row(container.node, container.name, container.runtime, address[0], port, str(address[1]))
            for port in container.ports
            if port.host_port and (container.node, port.proto, port.host_port) not in ours
        ]
    return sorted(rows, key=lambda r: (r["node"], r["host_port"], r["proto"]))


def open_ports(snapshot: Snapshot) -> list[str]:
    """This host's published ports that others than the host reach, whoever they are."""
    own = sorted((e for e in snapshot.endpoints.values() if e.node == snapshot.me), key=lambda e: e.id)
    return [
        f"{published_text(port)} of {endpoint.name or endpoint.id}"
        for endpoint in own
        for port in endpoint.ports
        if not port.sources and not port.host_ip.is_loopback
    ]


def _reached(endpoint: Endpoint, port: PortMapping) -> str:
    """The address that the port leads to: that of its family."""
    return str(endpoint.address6 if port.host_ip.version == 6 else endpoint.address)


def _port_row(node: str, container: str, runtime: str, network: str, port: PortMapping, address: str) -> PortRow:
    return {
        "node": node,
        "container": container,
        "runtime": runtime,
        "network": network,
        "proto": port.proto,
        "host_ip": str(port.host_ip),
        "host_port": port.host_port,
        "address": address,
        "container_port": port.container_port,
        "by": "command" if port.told else "engine",
        "sources": list(map(str, port.sources)),
        "nat": port.hidden,
    }


def container_rows(snapshot: Snapshot) -> list[ContainerRow]:
    return [_container_row(snapshot, c) for c in sorted(snapshot.containers.values(), key=lambda c: (c.node, c.name))]


def _container_row(snapshot: Snapshot, container: Container) -> ContainerRow:
    alive = container.node in snapshot.alive
    return {
        "id": container.id,
        "name": container.name,
        "node": container.node,
        "runtime": container.runtime,
        "state": container.state if alive else "unknown",
        "image": container.image,
        "labels": dict(container.labels),
        "addresses": {network: str(address) for network, address in container.addresses.items()},
        "ports": [published_text(p) for p in container.ports],
        "started": container.started,
        "addresses6": {network: str(address) for network, address in container.addresses6.items()},
    }


def path_states(snapshot: Snapshot, underlay: Underlay, tunnels: Tunnels) -> list[PathState]:
    """How this node reaches each other one for the first network that leaves its host, and by the encrypted tunnels if there are any."""
    me = snapshot.nodes.get(snapshot.me)
    network = next((n for _, n in sorted(snapshot.networks.items()) if backend_of(n).ways), None)
    if me is None or network is None:
        return []
    paths = choose(snapshot, network)
    rows = [_path_state(snapshot, me, snapshot.nodes[name], network, paths[name], underlay) for name in sorted(paths)]
    return rows + _tunnel_states(snapshot, me, underlay, tunnels)


def _tunnel_states(snapshot: Snapshot, me: Node, underlay: Underlay, tunnels: Tunnels) -> list[PathState]:
    network = next((n for _, n in sorted(snapshot.networks.items()) if n.encrypted), None)
    if network is None:
        return []
    rows = []
    alive = [node for name, node in snapshot.nodes.items() if name in snapshot.alive and node is not me]
    for name, path in sorted(choose(snapshot, network).items()):
        node = snapshot.nodes[name]
        row = _path_state(snapshot, me, node, network, path, underlay)
        relay = relay_of(me.wireguard, node, alive) if me.wireguard is not None else None
        if relay is not None and path is not None:
            mtu = inner_mtu(me, node, network, replace(path, relay=relay), underlay.path_mtus.known)
            row = {**row, "mtu": mtu, "probed": relay.name in underlay.path_mtus.answered, "relay": relay.name}
        rows.append(_encrypted(row, me, node, tunnels))
    return rows


def _encrypted(row: PathState, me: Node, node: Node, tunnels: Tunnels) -> PathState:
    tunnel = tunnels.known.get(node.name, Tunnel())
    lacks = next((n.name for n in (me, node) if n.wireguard is None), "")
    error = row["error"] or (f"{lacks} cannot encrypt (see `plait status` there)" if lacks else "")
    proved = "proved" if tunnel.proved and not error else "unproved"
    return {**row, "error": error, "encrypted": proved, "handshake": tunnel.handshake}


def _path_state(snapshot: Snapshot, me: Node, node: Node, network: Network, path: Path | None, underlay: Underlay) -> PathState:
    error = "" if node.tunnel is not None and node.vtep_mac else "has no block yet"
    if node.address.version != me.address.version:
        error = f"has an address of IPv{node.address.version}, this node one of IPv{me.address.version}: give both the same (node.address)"
    if node.name not in snapshot.alive:
        error = "gives no sign of life"
    elif not error and (path is None or not path.works):
        error = "no packet comes through"
    return {
        "node": node.name,
        "address": str(node.address),
        "backend": shown(path) if path is not None else network.backend,
        "mtu": inner_mtu(me, node, network, path, underlay.path_mtus.known),
        "probed": node.name in underlay.path_mtus.answered,
        "error": error,
        "encrypted": "",
        "handshake": 0.0,
        "relay": "",
    }


def condition_rows(health: Health) -> list[ConditionRow]:
    return [
        {
            "code": active.condition.code,
            "severity": active.condition.severity,
            "subject": active.subject,
            "title": active.condition.title,
            "text": active.text,
            "todo": active.condition.todo,
            "since": active.since,
        }
        for active in health.active()
    ]


def plan_entries(ops: Iterable[Op]) -> list[PlanEntry]:
    return [{"verb": op.verb, "key": list(op.key), "commands": render(op)} for op in ops]


def merged_meta(meta: Mapping[str, str], key: str, present: bool) -> dict[str, str]:
    """`meta` with or without the mark `key`."""
    rest = {name: value for name, value in meta.items() if name != key}
    return {**rest, key: "true"} if present else rest
