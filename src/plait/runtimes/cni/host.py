# SPDX-License-Identifier: Apache-2.0
"""What CNI and netavark ask of the agent besides `Operations`: whether the node serves, and what namespaces and the kernel hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from plait.model.cluster import Endpoint, Network
from plait.model.errors import Conflict, NotFound
from plait.model.inside import SandboxState
from plait.runtimes.api import Operations
from plait.runtimes.cni.wire import ENVIRONMENT, TRY_AGAIN, CniError

READY_S = 10.0
"""How long the making of an attachment waits for an agent that is starting."""


@dataclass(frozen=True, slots=True)
class Host:
    """`waiting()`: what the node still waits for, "" = it serves. `trouble(network)`: what is wrong for containers that run on it, "" =
    nothing. `inspect(netns)` blocks; OSError if there is no such namespace. `missing(endpoint)`: objects of the plan that the kernel does
    not hold as they should be. `mtu(network)` in bytes. `search`: domain of the containers' names."""

    ops: Operations
    waiting: Callable[[], str]
    trouble: Callable[[str], str]
    inspect: Callable[[str], SandboxState]
    missing: Callable[[Endpoint], Awaitable[list[str]]]
    mtu: Callable[[Network], int]
    search: str

    async def ready(self) -> None:
        """Wait until the node serves containers. CniError 11 if that takes too long."""
        end = asyncio.get_running_loop().time() + READY_S
        while reason := self.waiting():
            if asyncio.get_running_loop().time() > end:
                raise CniError(TRY_AGAIN, f"the agent is not ready: it waits for {reason}; `plait status` on this host says more")
            await asyncio.sleep(0.05)

    def network(self, name: str) -> Network:
        found = self.ops.networks().get(name)
        if found is None:
            known = ", ".join(sorted(self.ops.networks())) or "none yet"
            raise NotFound(f"there is no network {name!r} (known: {known}); create it with `plait network create {name}`")
        return found

    async def inside(self, netns: str) -> SandboxState:
        """What the namespace holds. CniError 4 if it cannot be read."""
        try:
            return await asyncio.to_thread(self.inspect, netns)
        except OSError as error:
            raise CniError(ENVIRONMENT, f"the namespace {netns!r} cannot be read: {error.strerror or error}") from error

    async def before(self, netns: str, ifname: str, known: Endpoint | None) -> SandboxState:
        """The same, before `ifname` is made there. Conflict if it is there and not that of `known`."""
        state = await self.inside(netns)
        if known is None and ifname in state.links:
            raise Conflict(f"{netns} has an interface {ifname} already, which plait did not make")
        return state


def inode_of(path: str) -> int:
    """The inode of the namespace at `path`; 0 if there is nothing."""
    try:
        return Path(path).stat().st_ino if path else 0
    except OSError:
        return 0


def namespace(path: str, what: str) -> int:
    """The same. CniError 4 if there is nothing."""
    inode = inode_of(path)
    if not inode:
        raise CniError(ENVIRONMENT, f"{what} {path!r} is no network namespace of this host")
    return inode
