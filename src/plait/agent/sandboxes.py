# SPDX-License-Identifier: Apache-2.0
"""The sandbox runtime: bare network namespaces with a name, for scripts, tests and programs that need no container engine.

A sandbox without a command lives until it is removed; one with a command lives as long as the command's process, which is watched
by a pidfd. Namespaces are bind mounts below /run/plait/netns, so they outlive the agent but not a reboot: at start what the journal
knows and the mounts show are compared, and what has lost either is removed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from plait.agent.journal import Journal, Write
from plait.model.cluster import Container, Endpoint, PortMapping
from plait.model.errors import ConfigError, Conflict, NotFound, PlaitError
from plait.runtimes.api import AttachRequest, Operations
from plait.store.codec import decode, encode

log = logging.getLogger("plait.sandboxes")
RUNTIME = "sandbox"
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox as journalled. `pid` and `started` (clock ticks since boot, proc(5) field 22) name its command, 0 = none. `share`: the
    sandbox whose namespace it is in, "" = its own. `ended`: it is gone, but others share its namespace and address still."""

    name: str
    network: str
    labels: dict[str, str]
    pid: int = 0
    started: int = 0
    share: str = ""
    ended: bool = False

    @property
    def owner(self) -> str:
        """Whose namespace it is in."""
        return self.share or self.name


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """`share`: another sandbox of this node whose namespace it is to be in; then there is no address, and no port, to ask for."""

    name: str
    network: str
    address: IPv4Address | None = None
    labels: tuple[tuple[str, str], ...] = ()
    aliases: tuple[str, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    address6: IPv6Address | None = None
    share: str = ""


class Sandboxes:
    """Create, watch and remove sandboxes. `make_netns` and `remove_netns` work on a path and are idempotent; `names_settled`
    waits until this host's DNS answers what the view says (TimeoutError if that takes too long)."""

    def __init__(
        self,
        node: str,
        ops: Operations,
        journal: Journal,
        run_dir: Path,
        make_netns: Callable[[Path], None],
        remove_netns: Callable[[Path], None],
        netns_exists: Callable[[Path], bool],
        names_settled: Callable[[], Awaitable[None]],
    ) -> None:
        self._node, self._ops, self._journal, self._dir = node, ops, journal, run_dir / "netns"
        self._make_netns, self._remove_netns, self._netns_exists = make_netns, remove_netns, netns_exists
        self._names_settled = names_settled
        self._sandboxes = {key: decode(Sandbox, body, key) for key, body in journal.load(RUNTIME).items()}
        self._watched: dict[str, int] = {}
        self._ended: asyncio.Queue[str] = asyncio.Queue()

    def _id(self, name: str) -> str:
        return f"sandbox.{self._node}.{name}"

    def path(self, name: str) -> Path:
        """Of the namespace that the sandbox is in."""
        known = self._sandboxes.get(name)
        return self._dir / (known.owner if known is not None else name)

    def get(self, name: str) -> tuple[Sandbox, Endpoint]:
        """The sandbox and its endpoint. Raises NotFound."""
        sandbox = self._sandboxes.get(name)
        endpoint = self._ops.endpoints(RUNTIME).get(self._id(sandbox.owner)) if sandbox is not None else None
        if sandbox is None or endpoint is None or sandbox.ended:
            raise NotFound(f"there is no sandbox {name!r} on this node; `plait ps` lists what runs where")
        return sandbox, endpoint

    async def create(self, request: SandboxRequest) -> Endpoint:
        """Make the namespace and attach it. Conflict if the name is taken; nothing stays behind on any error."""
        _check_name(request.name)
        known = self._sandboxes.get(request.name)
        if known is not None and known.ended:
            raise Conflict(
                f"a sandbox named {request.name!r} has ended, but {', '.join(self._sharers(request.name))} still has its address"
            )
        if known is not None:
            raise Conflict(f"a sandbox named {request.name!r} runs on this node already; `plait rm {request.name}` removes it")
        if request.share:
            return await self._join(request)
        sandbox = Sandbox(request.name, request.network, dict(request.labels))
        self._sandboxes[request.name] = sandbox
        try:
            await self._save(sandbox)
            await asyncio.to_thread(self._make_netns, self.path(request.name))
            endpoint = await self._ops.attach(
                AttachRequest(
                    endpoint=self._id(request.name),
                    network=request.network,
                    runtime=RUNTIME,
                    container=request.name,
                    name=request.name,
                    address=request.address,
                    aliases=request.aliases,
                    labels=dict(request.labels),
                    ports=request.ports,
                    netns=str(self.path(request.name)),
                    address6=request.address6,
                )
            )
        except BaseException:
            await self._erase(request.name)
            raise
        await self.report()
        return endpoint

    async def _join(self, request: SandboxRequest) -> Endpoint:
        """Put a further sandbox into the namespace of another one."""
        if request.address is not None or request.address6 is not None or request.ports or request.aliases:
            raise ConfigError("share", request.share, "comes with its address, ports and aliases", "ask for none with --share")
        other, endpoint = self.get(request.share)
        sandbox = Sandbox(request.name, other.network, dict(request.labels), share=other.owner)
        self._sandboxes[request.name] = sandbox
        await self._save(sandbox)
        await self.report()
        return endpoint

    def _sharers(self, name: str) -> list[str]:
        return sorted(sandbox.name for sandbox in self._sandboxes.values() if sandbox.share == name)

    async def started(self, name: str, pid: int) -> None:
        """The command of the sandbox runs as `pid`; when it ends the sandbox goes."""
        sandbox, _ = self.get(name)
        sandbox = replace(sandbox, pid=pid, started=_start_time(pid))
        self._sandboxes[name] = sandbox
        await self._save(sandbox)
        self._watch(sandbox)

    async def remove(self, name: str) -> None:
        """Detach, delete the namespace and wait until this host's DNS has forgotten the name; the processes in it must have been
        stopped by the caller. Slow DNS fails nothing: the sandbox is gone by then, and the name follows."""
        self.get(name)
        await self._erase(name)
        await self.report()
        try:
            await self._names_settled()
        except TimeoutError:
            log.warning("names_late", extra={"container": name})

    async def report(self) -> None:
        """Tell the agent what runs."""
        endpoints = self._ops.endpoints(RUNTIME)
        living = [sandbox for sandbox in self._sandboxes.values() if not sandbox.ended]
        found = [(sandbox, endpoints.get(self._id(sandbox.owner))) for sandbox in living]
        await self._ops.report(RUNTIME, [self._container(sandbox, endpoint) for sandbox, endpoint in found if endpoint is not None])

    async def recover(self) -> None:
        """Once at start: remove sandboxes whose namespace or command is gone, and endpoints that have no sandbox."""
        for name, sandbox in list(self._sandboxes.items()):
            if (
                not self._netns_exists(self.path(name))
                or self._id(sandbox.owner) not in self._ops.endpoints(RUNTIME)
                or (sandbox.ended and not self._sharers(name))
                or (sandbox.pid and not self._runs(sandbox))
            ):
                await self._erase(name)
            elif sandbox.pid:
                self._watch(sandbox)
        for endpoint in self._ops.endpoints(RUNTIME).values():
            if endpoint.container not in self._sandboxes:
                await self._ops.detach(endpoint.id)
        if self._dir.is_dir():
            for path in self._dir.iterdir():
                if path.name not in self._sandboxes:
                    await asyncio.to_thread(self._remove_netns, path)
        await self.report()

    async def run(self) -> None:
        """Remove sandboxes whose command has ended. Never returns."""
        while True:
            name = await self._ended.get()
            if name in self._sandboxes:
                try:
                    await self._erase(name)
                    await self.report()
                except (PlaitError, OSError) as error:
                    log.warning("sandbox_not_removed", extra={"container": name, "error": str(error)})

    # --- helpers

    async def _save(self, sandbox: Sandbox) -> None:
        await self._journal.write([Write(RUNTIME, sandbox.name, encode(sandbox))])

    async def _erase(self, name: str) -> None:
        """The sandbox is gone; namespace and address go with the last one that is in it."""
        self._unwatch(name)
        sandbox = self._sandboxes.get(name)
        if sandbox is not None and self._sharers(name):
            self._sandboxes[name] = replace(sandbox, pid=0, ended=True)
            await self._save(self._sandboxes[name])
            return
        if sandbox is None or not sandbox.share:
            await self._ops.detach(self._id(name))
            await asyncio.to_thread(self._remove_netns, self.path(name))
        self._sandboxes.pop(name, None)
        await self._journal.write([Write(RUNTIME, name, None)])
        owner = self._sandboxes.get(sandbox.share) if sandbox is not None else None
        if owner is not None and owner.ended and not self._sharers(owner.name):
            await self._erase(owner.name)

    def _container(self, sandbox: Sandbox, endpoint: Endpoint) -> Container:
        return Container(
            id=sandbox.name,
            name=sandbox.name,
            node=self._node,
            runtime=RUNTIME,
            labels=sandbox.labels,
            addresses={endpoint.network: endpoint.address},
            ports=() if sandbox.share else endpoint.ports,
            pid=sandbox.pid,
            shares=sandbox.share,
            addresses6={endpoint.network: endpoint.address6} if endpoint.address6 is not None else {},
        )

    def _watch(self, sandbox: Sandbox) -> None:
        self._unwatch(sandbox.name)
        try:
            fd = os.pidfd_open(sandbox.pid)
        except OSError:
            self._ended.put_nowait(sandbox.name)
            return
        if not self._runs(sandbox):
            os.close(fd)
            self._ended.put_nowait(sandbox.name)
            return
        self._watched[sandbox.name] = fd
        asyncio.get_running_loop().add_reader(fd, self._on_end, sandbox.name)

    def _on_end(self, name: str) -> None:
        self._unwatch(name)
        self._ended.put_nowait(name)

    def _unwatch(self, name: str) -> None:
        fd = self._watched.pop(name, None)
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def _runs(self, sandbox: Sandbox) -> bool:
        try:
            return _start_time(sandbox.pid) == sandbox.started
        except PlaitError:
            return False


def _start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat: with the pid it names a process beyond doubt. Raises NotFound if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError as error:
        raise NotFound(f"process {pid} does not exist") from error
    return int(stat.rpartition(")")[2].split()[19])


def _check_name(name: str) -> None:
    if not 0 < len(name) <= 63 or not _NAME_CHARACTERS.issuperset(name) or not name[0].isalnum():
        raise ConfigError("name", name, "is not possible", "use letters, digits, _ . and -, at most 63, first a letter or digit")
