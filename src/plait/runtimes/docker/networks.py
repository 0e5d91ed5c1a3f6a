# SPDX-License-Identifier: Apache-2.0
"""Networks of the cluster <-> networks of this host's Docker Engine.

Every network of the cluster but the default one appears in the engine under its name; a network that somebody made through the engine
(`docker network create -d plait --ipam-driver plait x`) becomes one of the cluster. A Docker network says which one it is by the option
`plait.net`, else by its name: ids differ from host to host. The plug-in is not told the name, and while it is asked to create the network
the engine does not list it yet, so such a network is adopted a moment later, at the engine's event or at its first container.

What has been adopted is remembered by NetworkID, to tell a network that is new in the engine from one that the cluster has removed since.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

from plait.backends import SETTINGS
from plait.ipam import FORCED, origin_in
from plait.model.addr import AddressRange, IPNetwork
from plait.model.cluster import HostRange, Network
from plait.model.errors import ConfigError, Conflict, EngineUnavailable, NotFound, PlaitError
from plait.runtimes.api import Health, NetworkRequest, Operations, shown_gateway6
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import EngineNetwork
from plait.runtimes.docker.state import NETWORKS, DockerState
from plait.runtimes.docker.wire import parse_address, parse_address6, parse_subnet, parse_subnet6

log = logging.getLogger("plait.docker")
DRIVER = "plait"
NET_OPTION = "plait.net"
OPTIONS = {"plait.backend": "backend", **{name: name for name in SETTINGS}}
"""What `-o` takes besides `NET_OPTION` -> the option of the cluster's network."""
ORIGIN_LABEL, ORIGIN_DOCKER = "plait.origin", "docker"
"""Label of a network that was made through a Docker Engine: only such a one may be removed through one."""
AUX_OWNER = "docker:aux:"
"""Owner of an address that the engine asks for without saying for whom, together with the address."""
HEALTH_NETWORK = "engine-network"
RESYNC_S = 60.0
RETRY_S = 5.0
VIEW_S = 3.0
GOING_S = 1.0
"""The engine stops listing a network before it tells its driver of the end; this long the driver waits for the word."""


class DockerNetworks:
    """Keeps both sides equal. `ready()`: the view of the cluster is current enough to conclude from what it lacks."""

    def __init__(
        self, ops: Operations, state: DockerState, engine: DockerEngine, health: Health, default_network: str, ready: Callable[[], bool]
    ) -> None:
        self._ops, self._state, self._engine, self._health = ops, state, engine, health
        self._default, self._ready = default_network, ready
        self._dirty, self._arrived = asyncio.Event(), asyncio.Event()
        self._lock = asyncio.Lock()
        self._making: set[str] = set()
        self._removing: set[str] = set()
        self._leaving: set[str] = set()
        self._arriving: set[str] = set()
        self._going: dict[str, float] = {}
        self.others: set[HostRange] = set()
        self.on_others: Callable[[], None] = lambda: None
        """Called when the engine's own networks use other addresses."""

    # --- which network is it?

    def known(self, network_id: str) -> str:
        """The cluster's name of a Docker network as remembered, "" if it has not been adopted."""
        return (self._state.get(NETWORKS, network_id) or {}).get("name", "")

    def ids(self, name: str) -> frozenset[str]:
        """The Docker networks that are network `name` of the cluster."""
        return frozenset(key for key, document in self._state.all(NETWORKS).items() if document.get("name") == name)

    async def identify(self, network_id: str) -> Network:
        """The network of the cluster behind a Docker network; adopts it if need be. Raises NotFound."""
        await self._view_is_there()
        name = self.known(network_id)
        if not name:
            async with self._lock:
                name = self.known(network_id) or (await self._adopt(await self._engine.network(network_id, quick=True))).name
        found = self._ops.networks().get(name)
        if found is None:
            raise NotFound(
                f"network {name!r} is no longer part of the cluster; create it again with `plait network create {name}`, or remove it here"
            )
        return found

    def by_subnet(self, subnet: IPNetwork) -> Network | None:
        return next((n for n in self._ops.networks().values() if subnet in (n.subnet, n.subnet6)), None)

    async def adopt_subnet(self, subnet: IPv4Network) -> Network | None:
        """The network with this pool, adopted from the engine if the cluster does not have it yet."""
        await self._view_is_there()
        async with self._lock:
            if self.by_subnet(subnet) is None:
                for network in await self._engine.networks():
                    if network.driver == DRIVER and network.subnet == str(subnet):
                        return await self._adopt(network)
        return self.by_subnet(subnet)

    async def _view_is_there(self) -> None:
        """A moment after the agent's start there is no cluster to look into yet: wait for it, for `VIEW_S` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(VIEW_S):
                while not self._ops.networks():
                    self._arrived.clear()
                    await self._arrived.wait()

    @contextlib.contextmanager
    def arriving(self, name: str) -> Iterator[None]:
        """The engine has a network in the making that is `name` ("" = not known): it is told of, and listed, afterwards."""
        with _among(self._arriving, name):
            yield

    async def remember(self, network_id: str, name: str) -> None:
        """Durable. `name` "": created, not yet adopted."""
        await self._state.put(NETWORKS, network_id, {"name": name})

    async def deleted(self, network_id: str) -> None:
        """The engine is deleting it. A network that was made through an engine leaves the cluster with it unless somebody uses it; any
        other one comes back at the next sync, because Docker does not let a driver refuse."""
        name = self.known(network_id)
        network = self._ops.networks().get(name)
        if network is not None and network.labels.get(ORIGIN_LABEL) == ORIGIN_DOCKER and name not in self._removing:
            with _among(self._leaving, name):
                try:
                    await self._ops.remove_network(name)
                except (Conflict, NotFound) as error:
                    log.info("network_kept", extra={"network": name, "error": str(error)})
        await self._state.delete(NETWORKS, network_id)  # not before: asked again after a failure, it is still known
        self.mark()

    def is_being_made(self, name: str) -> bool:
        """Whether the engine is being asked to make network `name` by this module."""
        return name in self._making

    async def _adopt(self, network: EngineNetwork) -> Network:
        """Make the cluster have the Docker network. Raises Conflict or ConfigError if it cannot."""
        name = identity(network)
        made = await self._ops.ensure_network(_request(name, network))
        await self.remember(network.id, name)
        log.info("network_adopted", extra={"network": name, "docker_network": network.id[:12]})
        return made

    # --- both sides equal

    def mark(self) -> None:
        """Something changed on either side; `run` looks soon."""
        self._dirty.set()
        self._arrived.set()

    async def run(self) -> None:
        """Sync at start, after every `mark` and once a minute. Never returns."""
        wait_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._dirty.wait()
            self._dirty.clear()
            wait_s = RESYNC_S
            try:
                await self.sync()
                wait_s = GOING_S if self._going else RESYNC_S
            except EngineUnavailable:
                wait_s = RETRY_S
            except PlaitError as error:
                wait_s = RETRY_S
                self._health.set(HEALTH_NETWORK, "docker", str(error))

    async def sync(self) -> None:
        """One pass over both lists; what one network needs and cannot have becomes a condition. EngineUnavailable if there is none."""
        if not self._ready():
            return
        async with self._lock:
            texts: dict[str, str] = {}
            present: set[str] = set()
            everything = await self._engine.networks()
            listed = {network.id: network for network in everything if network.driver == DRIVER}
            self._note_others(network for network in everything if network.driver != DRIVER)
            for network in listed.values():
                name = identity(network)
                with _noted(texts, name):
                    if await self._settle(network, name):
                        present.add(name)
            going = self._arriving | await self._forget(self._state.all(NETWORKS).keys() - listed.keys())
            for name in sorted(self._ops.networks().keys() - present - texts.keys() - going - {self._default}):
                wanted = self._ops.networks().get(name)
                if wanted is not None and name not in self._leaving:
                    with _noted(texts, name), _among(self._making, name):
                        await self._create(wanted)
            self._health.replace(HEALTH_NETWORK, texts)

    def _note_others(self, networks: Iterable[EngineNetwork]) -> None:
        """Remember what addresses the engine's own networks use; tell if that is another than before."""
        pools = ((network.name, config.subnet) for network in networks for config in network.ipam.config or [])
        found = {HostRange(IPv4Network(subnet, strict=False), f"Docker network {name!r}") for name, subnet in pools if "." in subnet}
        if found != self.others:
            self.others = found
            self.on_others()

    async def _forget(self, unlisted: set[str]) -> set[str]:
        """Forget Docker networks that the engine has not listed for a while; names of the others, whose end may be told yet."""
        now = asyncio.get_running_loop().time()
        self._going = {key: self._going.get(key, now + GOING_S) for key in unlisted}
        for key in [key for key, due in self._going.items() if due <= now]:
            del self._going[key]
            await self._state.delete(NETWORKS, key)
        return {self.known(key) for key in self._going}

    async def _settle(self, network: EngineNetwork, name: str) -> bool:
        """One Docker network of ours: adopt, keep or remove it. Returns whether it stands for the cluster's one afterwards."""
        ours = self._ops.networks().get(name)
        if ours is not None and (network.subnet, network.subnet6) == (str(ours.subnet), str(ours.subnet6 or "")):
            await self.remember(network.id, name)
            return True
        if ours is None and not self.known(network.id):
            try:
                await self._adopt(network)
                return True
            except (Conflict, ConfigError) as error:
                await self._remove(network, name)
                log.warning("docker_network_refused", extra={"network": name, "error": str(error)})
                raise Conflict(f"Docker network {network.name!r} was removed again: {error}") from error
        await self._remove(network, name)
        return False

    async def _create(self, network: Network) -> None:
        made = await self._engine.create_network(creation(network))
        await self.remember(made, network.name)
        log.info("docker_network_created", extra={"network": network.name, "docker_network": made[:12]})

    async def _remove(self, network: EngineNetwork, name: str) -> None:
        """Raises Conflict while containers are attached to it."""
        with _among(self._removing, name):
            try:
                await self._engine.remove_network(network.id)
            except NotFound:
                pass
            except Conflict as error:
                raise Conflict(
                    f"Docker network {network.name!r} stands for no network of the cluster any more, but containers of this host use it:"
                    f" disconnect or remove them ({error})"
                ) from error
            await self._state.delete(NETWORKS, network.id)
        log.info("docker_network_removed", extra={"network": name, "docker_network": network.id[:12]})


def identity(network: EngineNetwork) -> str:
    """The cluster's name of a Docker network."""
    return (network.options or {}).get(NET_OPTION) or network.name


def without_aux(request: NetworkRequest, four: Mapping[str, str] | None, six: Mapping[str, str] | None) -> NetworkRequest:
    """The same with what `--aux-address` keeps from everybody, of IPv6 by the address that it goes with. ConfigError."""
    kept = {parse_address(text, "--aux-address") for text in (four or {}).values()}
    if request.subnet is not None:
        asked6 = [parse_address6(text, "--aux-address") for text in (six or {}).values()]
        kept |= {of for one in asked6 if (of := origin_in(request.subnet, request.subnet6, one)) is not None}
    return replace(request, excluded=tuple(AddressRange(a, a) for a in sorted(kept)))


def _request(name: str, network: EngineNetwork) -> NetworkRequest:
    """The network of the cluster that a Docker network stands for. ConfigError if it can be none."""
    of, four, six = f"of Docker network {network.name}", network.pool, network.pool6
    request = NetworkRequest(
        name=name,
        subnet=parse_subnet(four.subnet, f"subnet {of}"),
        gateway=parse_address(four.gateway, f"gateway {of}") if four.gateway else None,
        internal=network.internal,
        ip_range=parse_subnet(four.ip_range, f"range {of}") if four.ip_range else None,
        labels={**(network.labels or {}), ORIGIN_LABEL: ORIGIN_DOCKER},
        options=network_options(network.options or {}),
        force=(network.options or {}).get(FORCED) == "true",
        subnet6=parse_subnet6(six.subnet, f"IPv6 subnet {of}") if six.subnet else None,
        gateway6=parse_address6(six.gateway, f"IPv6 gateway {of}") if six.gateway else None,
    )
    return without_aux(as_server_says(request), four.aux, six.aux)


def as_server_says(request: NetworkRequest) -> NetworkRequest:
    """The same without the IPv6 gateway that an engine always names, where routers of the link say who that is."""
    return replace(request, gateway6=None) if request.options.get("ipam") == "dhcp" else request


def network_options(given: Mapping[str, str]) -> dict[str, str]:
    """The options of the cluster's network among those of a Docker network."""
    return {OPTIONS[name]: value for name, value in given.items() if name in OPTIONS}


def creation(network: Network) -> Mapping[str, Any]:
    """The body of `POST /networks/create` that shows a network of the cluster in an engine."""
    part = {"IPRange": str(network.ip_range)} if network.ip_range is not None else {}
    pools = [{"Subnet": str(network.subnet), "Gateway": str(network.gateway), **part}]
    if network.subnet6 is not None:
        gateway6 = shown_gateway6(network)  # it asks for one where there is none
        pools.append({"Subnet": str(network.subnet6)} | ({"Gateway": gateway6} if gateway6 else {}))
    return {
        "Name": network.name,
        "CheckDuplicate": True,
        "Driver": DRIVER,
        "Internal": network.internal,
        "EnableIPv6": network.subnet6 is not None,
        "IPAM": {"Driver": DRIVER, "Config": pools},
        "Options": {NET_OPTION: network.name},
        "Labels": dict(network.labels),
    }


@contextlib.contextmanager
def _among(names: set[str], name: str) -> Iterator[None]:
    """`name` is one of `names` meanwhile."""
    names.add(name)
    try:
        yield
    finally:
        names.discard(name)


@contextlib.contextmanager
def _noted(texts: dict[str, str], name: str) -> Iterator[None]:
    """What one network cannot have is noted and does not stop the others; an engine that is gone does."""
    try:
        yield
    except EngineUnavailable:
        raise
    except PlaitError as error:
        texts[name] = str(error)
