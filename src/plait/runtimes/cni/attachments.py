# SPDX-License-Identifier: Apache-2.0
"""Attachments that the agent plumbs itself into namespaces of others: journalled, reported, given back when their namespace is gone.

Data in: who asks for what in which namespace. Data out: endpoints of the agent, and containers in its reports. An attachment is journalled
before its endpoint is made, so that whatever a crash leaves is found again: an attachment without an endpoint is forgotten, an endpoint
without an attachment detached, and both go when the namespace does (runtimes that crash send no DEL).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from plait.model.cluster import Container, Endpoint, PortMapping
from plait.model.errors import Conflict, PlaitError
from plait.runtimes.api import AttachRequest, Operations

log = logging.getLogger("plait.cni")
Load = Callable[[str], Mapping[str, bytes]]
Save = Callable[[str, str, bytes | None], Awaitable[None]]
"""Puts a write in line at once; what it returns is done when the disk has it, after everything that was put in line before."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one container. `key` is the endpoint's id too, `network` the runtime's word for the network, `inode` that of the
    namespace, `asked` what was asked for (a repeated call with the same is no error). `joined`: addresses on an interface that somebody
    else made; there is no endpoint then."""

    key: str
    network: str
    container: str
    name: str
    netns: str
    inode: int
    asked: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    joined: tuple[str, ...] = ()


class Attachments:
    """Those of one runtime. `inode_of(path)` is that of a namespace, 0 if there is none; `load` and `save` are a durable map."""

    def __init__(self, runtime: str, node: str, ops: Operations, load: Load, save: Save, inode_of: Callable[[str], int]) -> None:
        self.runtime, self._node, self._ops, self._save, self.inode_of = runtime, node, ops, save, inode_of
        self._held = {key: msgspec.json.decode(body, type=Attachment) for key, body in load(runtime).items()}
        self._locks: dict[str, asyncio.Lock] = {}

    def all(self) -> Mapping[str, Attachment]:
        return self._held

    def get(self, key: str) -> tuple[Attachment | None, Endpoint | None]:
        return self._held.get(key), self._ops.endpoints(self.runtime).get(key)

    def unpublished(self, container: str, key: str, ports: tuple[PortMapping, ...]) -> tuple[PortMapping, ...]:
        """Those of `ports` that no other attachment of the container publishes: Podman asks for all of them on each network."""
        mine = [e for e in self._ops.endpoints(self.runtime).values() if e.container == container and e.id != key]
        taken = {(port.proto, port.host_ip, port.host_port) for endpoint in mine for port in endpoint.ports}
        return tuple(port for port in ports if (port.proto, port.host_ip, port.host_port) not in taken)

    @contextlib.asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """One call at a time about one attachment: a runtime that gave up an ADD may send the DEL before the ADD has ended."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield
        if key not in self._held and not lock.locked():
            self._locks.pop(key, None)

    async def add(self, attachment: Attachment, request: AttachRequest | None) -> Endpoint | None:
        """Attach, or (`request` None) take note of an interface of others. The same again gives the same; Conflict if the key stands for
        something else. Whatever is raised, nothing of a new attachment is left."""
        known, endpoint = self.get(attachment.key)
        if known is not None and self._stands(known):
            if known != attachment:
                raise Conflict(
                    f"container {known.container} is attached to network {known.network!r} already, otherwise than asked for now; "
                    "DEL comes before another ADD"
                )
            if endpoint is not None or request is None:
                return endpoint
        if known is not None:
            await self._erase(attachment.key)
        self._held[attachment.key] = attachment
        try:
            saved = self._save(self.runtime, attachment.key, msgspec.json.encode(attachment))  # on disk before what is written after it
            endpoint = await self._ops.attach(request) if request is not None else None
            await saved
        except BaseException:
            await self._erase(attachment.key)
            raise
        await self.report()
        return endpoint

    async def remove(self, key: str) -> None:
        """Detach and forget. Unknown: success."""
        if key in self._held or key in self._ops.endpoints(self.runtime):
            await self._erase(key)
            await self.report()

    def _stands(self, attachment: Attachment) -> bool:
        return self.inode_of(attachment.netns) == attachment.inode

    async def _erase(self, key: str) -> None:
        """The disk forgets the attachment while the kernel forgets its link: an endpoint without an attachment is detached at the start."""
        forgotten = self._save(self.runtime, key, None)
        await self._ops.detach(key)
        self._held.pop(key, None)
        await forgotten

    def vanished(self) -> set[str]:
        """Ids of endpoints whose namespace is gone. Its path may stand for another one by now (/proc/PID/ns/net, or a mount point): nothing
        must be made there."""
        return {key for key, attachment in self._held.items() if not self._stands(attachment)}

    # --- by itself

    async def recover(self) -> None:
        """Once at start, before anybody is answered."""
        endpoints = self._ops.endpoints(self.runtime)
        for key in {*self._held, *endpoints}:
            known = self._held.get(key)
            if known is None or (not known.joined and key not in endpoints) or not self._stands(known):
                await self._erase(key)
        await self.report()

    async def reap(self) -> None:
        """Give back what stands in namespaces that are gone."""
        for key in self.vanished():
            attachment = self._held[key]
            async with self.turn(key):
                if self._held.get(key) is attachment and not self._stands(attachment):
                    log.info("attachment_reaped", extra={"endpoint": key[:40], "container": attachment.name, "netns": attachment.netns})
                    try:
                        await self.remove(key)
                    except PlaitError as error:
                        log.warning("attachment_not_reaped", extra={"endpoint": key[:40], "error": str(error)})

    async def report(self) -> None:
        """Tell the agent which containers there are, each once with all its addresses."""
        endpoints = self._ops.endpoints(self.runtime)
        found: dict[str, list[tuple[Attachment, Endpoint | None]]] = {}
        for key, attachment in self._held.items():
            if attachment.joined or key in endpoints:
                found.setdefault(attachment.container, []).append((attachment, endpoints.get(key)))
        await self._ops.report(self.runtime, [self._container(ident, rows) for ident, rows in found.items()])

    def _container(self, ident: str, rows: list[tuple[Attachment, Endpoint | None]]) -> Container:
        addresses: dict[str, IPv4Address] = {}
        addresses6: dict[str, IPv6Address] = {}
        for attachment, endpoint in rows:
            network = attachment.network if endpoint is None else endpoint.network
            found = map(ip_address, attachment.joined) if endpoint is None else (endpoint.address, endpoint.address6)
            for address in found:
                if isinstance(address, IPv6Address):
                    addresses6.setdefault(network, address)
                elif address is not None:
                    addresses.setdefault(network, address)
        first = rows[0][0]
        ports = tuple(port for _, endpoint in rows if endpoint is not None for port in endpoint.ports)
        container = Container(ident, first.name, self._node, self.runtime, labels=first.labels, addresses=addresses, ports=ports)
        return replace(container, addresses6=addresses6) if addresses6 else container
