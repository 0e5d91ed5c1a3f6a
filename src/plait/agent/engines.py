# SPDX-License-Identifier: Apache-2.0
"""The engines of this host: Docker's plug-in and that of CNI, as far as the configuration wants them.

A host without an engine spares the time and the memory of loading what serves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from plait.agent.config import Config
from plait.agent.files import Paths, replace_file
from plait.agent.health import Health
from plait.agent.journal import Journal, Write
from plait.agent.kernelwork import KernelWork
from plait.agent.view import View
from plait.kernel.api import Op
from plait.kernel.linux import inspect_sandbox, port_into
from plait.model.cluster import Endpoint, HostRange, Network
from plait.model.hostlinks import BridgePort
from plait.model.objects import InsideRoutes, NftSet, Plan
from plait.model.report import EngineState
from plait.plan import member, network_mtu
from plait.plan.guard import DOCKER_BRIDGE
from plait.runtimes.api import Operations

if TYPE_CHECKING:
    from plait.runtimes.cni.files import Places
    from plait.runtimes.cni.runtime import CniRuntime
    from plait.runtimes.docker.engine import DockerEngine
    from plait.runtimes.docker.runtime import DockerRuntime

_LIMITING = ("kernel-lacks", "kernel-refused", "firewall-drops")
"""Conditions that containers feel which run already."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What engines are served with; callables give what other parts know at the moment. `current()`: the view of the cluster is.
    `on_others()`: networks that are an engine's own use other addresses. `on_port()`: a link to a container there was found."""

    config: Config
    paths: Paths
    node: str
    journal: Journal
    view: View
    ops: Operations
    work: KernelWork
    health: Health
    default_network: str
    plan: Callable[[], Plan]
    waiting: Callable[[], str]
    current: Callable[[], bool]
    on_others: Callable[[], None]
    on_port: Callable[[], None]
    resolver: Callable[[Network], str]


class Engines:
    def __init__(self, parts: EngineParts) -> None:
        self._p = parts
        self.docker = self._docker() if parts.config.docker_enabled else None
        self.cni = self._cni() if parts.config.cni_enabled else None

    @property
    def docker_api(self) -> DockerEngine | None:
        return self.docker.engine if self.docker is not None else None

    def states(self) -> list[EngineState]:
        return [self.docker.state] if self.docker is not None else []

    def vanished(self) -> set[str]:
        """Ids of endpoints whose namespace is gone: the plan has nothing for them."""
        return self.cni.vanished() if self.cni is not None else set()

    def others(self) -> Iterable[HostRange]:
        """What networks that are an engine's own use, as last heard."""
        return self.docker.networks.others if self.docker is not None else ()

    def bridged(self) -> Mapping[str, BridgePort]:
        """The links of the containers on Docker's default bridge, by container."""
        return self.docker.ports.known if self.docker is not None else {}

    def networks_changed(self) -> None:
        for runtime in (self.docker, self.cni):
            if runtime is not None:
                runtime.networks_changed()

    async def answer_docker(self) -> None:
        """As early as possible: dockerd waits for its plug-in while it starts."""
        if self.docker is not None:
            await self.docker.start(self._p.paths.docker_plugin)

    async def run(self) -> None:
        """Serve them. Never returns."""
        async with asyncio.TaskGroup() as group:
            if self.docker is not None:
                group.create_task(self.docker.run())
            if self.cni is not None:
                group.create_task(self.cni.run())

    async def recover(self) -> None:
        """Once at start, after the agent's own recovery: answer the engines that can wait for it."""
        if self.cni is not None:
            await self.cni.start()

    async def close(self) -> None:
        for runtime in (self.docker, self.cni):
            if runtime is not None:
                await runtime.close()

    def _save(self, kind: str, key: str, body: bytes | None) -> Awaitable[None]:
        return self._p.journal.queue([Write(kind, key, body)])

    def _docker(self) -> DockerRuntime:
        from plait.runtimes.docker.engine import DockerEngine
        from plait.runtimes.docker.runtime import DockerRuntime
        from plait.runtimes.docker.state import CachedState

        p = self._p
        state = CachedState(p.journal.load, self._save)
        engine = DockerEngine(Path(p.config.docker_socket))
        find = partial(port_into, bridge=DOCKER_BRIDGE)
        made = DockerRuntime(p.node, p.ops, state, engine, p.health, p.default_network, p.current, find, p.on_port)
        made.networks.on_others = p.on_others
        return made

    def _cni(self) -> CniRuntime:
        from plait.runtimes.cni.host import Host
        from plait.runtimes.cni.runtime import CniRuntime

        p = self._p
        host = Host(p.ops, p.waiting, self._trouble, inspect_sandbox, self._missing, self._mtu, p.config.search_domain, p.resolver)
        places = places_of(p.config)
        return CniRuntime(p.node, host, p.journal.load, self._save, places, replace_file, p.health, p.paths.cni_socket, p.paths.cni_spool)

    def _mtu(self, network: Network) -> int:
        return network_mtu(member(self._p.view.snapshot, network), network)

    def _trouble(self, network: str) -> str:
        """What is wrong for containers of a network that run; a missing feature of the kernel is told by the network."""
        active = [one for one in self._p.health.active() if one.condition.code in _LIMITING]
        return "; ".join(one.text for one in active if one.condition.code != "kernel-lacks" or one.subject == network)

    async def _missing(self, endpoint: Endpoint) -> list[str]:
        return missing_of(await self._p.work.rehearse(self._p.plan), endpoint)


def places_of(config: Config) -> Places:
    from plait.runtimes.cni.files import Places

    netavark = Path(config.cni_netavark_dir) if config.cni_netavark_dir != "none" else None
    return Places(Path(config.cni_config_dir), Path(config.cni_bin_dir), netavark, config.cni_version)


def missing_of(ops: Iterable[Op], endpoint: Endpoint) -> list[str]:
    """What passes that would do `ops` put right of an endpoint."""
    return [f"the kernel lacks {' '.join(op.key)}" for op in ops if _concerns(op, endpoint)]


def _concerns(op: Op, endpoint: Endpoint) -> bool:
    """Whether an operation puts something that the endpoint needs: its link, its route, what sets and maps say of its address."""
    if op.verb != "put" or isinstance(op.new, InsideRoutes):
        return False
    words = set(op.key)
    if isinstance(op.new, NftSet):
        before = op.old.elements if isinstance(op.old, NftSet) else frozenset()
        words = {word for element in op.new.elements - before for word in element.split()}
    own = {endpoint.dev, str(endpoint.address), f"{endpoint.address}/32"}
    return bool(words & (own | ({str(endpoint.address6), f"{endpoint.address6}/128"} if endpoint.address6 is not None else set())))
