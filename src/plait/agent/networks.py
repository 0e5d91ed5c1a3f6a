# SPDX-License-Identifier: Apache-2.0
"""Making and removing networks of the cluster: one guarded transaction each, so that two nodes cannot make overlapping ones."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

from plait.agent.hostlinks import designed, of_link, without_hosts
from plait.agent.keys import NETWORK_GUARD, assigned_prefix, blocks_prefix, network_key
from plait.agent.view import View
from plait.backends import BACKENDS, HOST_LINK, OnHostLink, changed, child_of, settle
from plait.ipam import (
    FORCED,
    RESIZED,
    PoolChange,
    check_network,
    check_overlaps,
    default_block_prefix,
    default_subnet6,
    image,
    next_subnet,
    resized,
    taken,
)
from plait.model.addr import AddressRange
from plait.model.cluster import Network
from plait.model.errors import ConfigError, Conflict, NotFound
from plait.runtimes.api import NetworkRequest
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.networks")
_TRIES = 16
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Networks:
    """Create, find and remove networks. `caught_up(revision)` waits until the view has that revision; `look()` learns what this host uses
    addresses for outside plait, `able()` is what its kernel can do, `learn` completes a request by what is on its link."""

    def __init__(
        self,
        view: View,
        store: Store,
        default: str,
        caught_up: Callable[[int], Awaitable[None]],
        look: Callable[[], Awaitable[None]] | None = None,
        able: Callable[[], frozenset[str]] = frozenset,
        learn: Callable[[NetworkRequest], Awaitable[NetworkRequest]] | None = None,
    ) -> None:
        self._able, self._learn = able, learn
        self._view, self._store, self._default, self._caught_up, self._look = view, store, default, caught_up, look

    async def ensure(self, request: NetworkRequest) -> Network:
        """See `Operations.ensure_network`."""
        _check_name(request.name)
        if self._look is not None and request.name not in self._view.snapshot.networks:
            await self._look()
        for _ in range(_TRIES):
            guard = await self._store.get(NETWORK_GUARD)
            if guard is not None:  # what the guard stands for must be in the view before the view is judged by
                await self._caught_up(guard.mod_revision)
            known = self._view.snapshot.networks
            existing = known.get(request.name)
            if existing is not None:
                return _same(existing, request)
            request = of_link(request)
            if self._learn is not None:
                request = await self._learn(request)
            network = self._design(request)
            routed = child_of(network) is None
            nodes = sorted(self._view.snapshot.nodes.values(), key=lambda n: n.name)
            check_network(network, list(known.values()), nodes if routed else ())
            if routed and not request.force and request.name != self._default:
                check_overlaps(network.subnet, self._view.snapshot)
            result = await self._store.txn(
                [Compare(network_key(network.name), 0), Compare(NETWORK_GUARD, guard.mod_revision if guard else 0)],
                [Put(network_key(network.name), encode(network)), Put(NETWORK_GUARD, network.name.encode())],
            )
            if result.ok:
                await self._caught_up(result.revision)
                log.info("network_created", extra={"network": network.name, "subnet": str(network.subnet)})
                return network
            await asyncio.sleep(random.uniform(0.01, 0.1))  # somebody else made a network just now: look at it, then try again
        raise Conflict(f"network {request.name!r} could not be created: other networks are being created at the same time; try again")

    async def change(self, name: str, options: Mapping[str, str], pool: PoolChange | None = None) -> list[Network]:
        """See `Operations.change_network`."""
        for _ in range(_TRIES):
            networks = self._view.snapshot.networks
            if name not in networks:
                raise NotFound(f"there is no network {name!r}; `plait network ls` lists them")
            network = resized(networks[name], pool) if pool is not None else networks[name]
            network = without_hosts(network, self._view.snapshot.nodes.values())
            wanted = changed(network, options, BACKENDS.values(), networks.values())
            items = {network.name: self._view.item(network_key(network.name)) for network in wanted}
            guard = await self._store.get(NETWORK_GUARD)
            same = [Compare(item.key, item.mod_revision) for item in items.values() if item is not None]
            puts = [Put(network_key(network.name), encode(network)) for network in wanted]
            guards = Compare(NETWORK_GUARD, guard.mod_revision if guard else 0), Put(NETWORK_GUARD, name.encode())
            result = await self._store.txn([*same, guards[0]], [*puts, guards[1]])
            await self._caught_up(result.revision)
            if result.ok and len(same) == len(puts):
                for network in wanted:
                    fields = [*options, *(["pool"] if pool is not None and network.name == name else [])]
                    log.info("network_changed", extra={"network": network.name, "fields": ", ".join(sorted(fields))})
                return wanted
        raise Conflict(f"network {name!r} could not be changed: networks are being changed at the same time; try again")

    async def remove(self, name: str, force: bool = False) -> None:
        """See `Operations.remove_network`."""
        snapshot = self._view.snapshot
        if name not in snapshot.networks:
            raise NotFound(f"there is no network {name!r}; `plait network ls` lists them")
        if name == self._default:
            raise Conflict(f"network {name!r} is the cluster's own and cannot be removed")
        holders = sorted(f"{e.name or e.id} on {e.node}" for e in snapshot.endpoints.values() if e.network == name)
        if holders and not force:
            shown = ", ".join(holders[:5]) + (f" and {len(holders) - 5} more" if len(holders) > 5 else "")
            raise Conflict(f"network {name!r} is in use by {shown}; remove or disconnect them first, or use --force")
        ops: list[Put | Delete] = [Delete(network_key(name)), Put(NETWORK_GUARD, name.encode())]
        ops += [Delete(prefix, prefix=True) for prefix in (blocks_prefix(name), assigned_prefix(name))]
        result = await self._store.txn([], ops)
        await self._caught_up(result.revision)
        log.info("network_removed", extra={"network": name})

    def _design(self, request: NetworkRequest) -> Network:
        snapshot = self._view.snapshot
        subnet = request.subnet or next_subnet(taken(snapshot))
        settled = settle(request.options, BACKENDS.values(), snapshot.networks.values())
        if request.internal and request.options.get("lease"):
            raise ConfigError("lease", request.options["lease"], "means nothing to a network that has no way out", "leave it out")
        prefix = request.block_prefix or default_block_prefix(request.ip_range or subnet)
        network = Network(
            name=request.name,
            subnet=subnet,
            gateway=request.gateway or subnet.network_address + 1,
            block_prefix=prefix,
            backend=settled.backend.name,
            vni=settled.vni,
            port=settled.port,
            internal=request.internal,
            labels=dict(request.labels),
            options={**request.options, **({FORCED: "true"} if request.force or isinstance(settled.backend, OnHostLink) else {})},
            ip_range=request.ip_range,
            excluded=request.excluded,
        )
        network = _with_ipv6(network, request) if request.dual and not network.by_dhcp else replace(network, subnet6=request.subnet6)
        return designed(network, request, self._able(), snapshot.nodes.values())


def _with_ipv6(network: Network, request: NetworkRequest) -> Network:
    both = replace(network, subnet6=request.subnet6 or default_subnet6(random.SystemRandom().getrandbits(40)))
    return replace(both, gateway6=request.gateway6 or image(both, network.gateway))


def _check_name(name: str) -> None:
    if not 0 < len(name) <= 63 or not _NAME_CHARACTERS.issuperset(name) or not name[0].isalnum():
        raise ConfigError("network name", name, "is not possible", "use letters, digits, _ . and -, at most 63, first a letter or digit")


def _spelled(parts: Iterable[AddressRange]) -> str | None:
    return ", ".join(map(str, parts)) or None


def _same(existing: Network, request: NetworkRequest) -> Network:
    """The existing network if the request does not contradict it; Conflict otherwise. An engine goes on asking for the range that it was
    told when it got to know the network."""
    ranges = (
        ("IP range", request.ip_range, existing.ip_range or "none"),
        ("exclusions", _spelled(request.excluded), _spelled(existing.excluded) or "none"),
    )
    pairs = (
        ("subnet", request.subnet, existing.subnet),
        ("gateway", request.gateway, existing.gateway),
        ("internal", request.internal or None, existing.internal),
        ("backend", request.options.get("backend"), existing.backend),
        ("port", request.options.get("port"), str(existing.port)),
        ("VNI", request.options.get("vni"), str(existing.vni)),
        *((name, request.options.get(name), existing.options.get(name, "the default")) for name in HOST_LINK),
        ("lease", request.options.get("lease"), existing.options.get("lease", "none")),
        ("layer2", request.options.get("layer2"), str(existing.layer2).lower()),
        ("multicast", request.options.get("multicast"), str(existing.multicast).lower()),
        *(ranges if RESIZED not in existing.options else ()),
        ("IPv6", request.dual or None, existing.subnet6 is not None or existing.by_dhcp6),
        ("IPv6 subnet", request.subnet6, existing.subnet6),
        ("IPv6 gateway", request.gateway6, existing.gateway6),
    )
    for what, asked, present in pairs:
        if asked is not None and asked != present:
            raise Conflict(f"network {request.name!r} exists already with {what} {present}, not {asked}; use that or choose another name")
    return existing
