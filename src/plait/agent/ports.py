# SPDX-License-Identifier: Apache-2.0
"""Published host ports: who has one already, and which one is free. Asks the kernel of this process's namespace."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from plait.kernel.linux.sockets import Waiting, waiting_sockets
from plait.model.addr import IPAddress, at_port
from plait.model.cluster import Endpoint, PortMapping, Snapshot, clash
from plait.model.errors import ConfigError, NotSupported, PortInUse

ANY = IPv4Address("0.0.0.0")
_Taken = dict[tuple[str, int], list[tuple[PortMapping, Endpoint]]]
"""Who has published which port, by protocol and number."""
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_TCP_LISTEN, _UDP_UNCONN = "0A", "07"


def ephemeral_range() -> range:
    """The kernel's range for ports nobody asked for by number (net.ipv4.ip_local_port_range)."""
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return range(int(low), int(high) + 1)


def assign_ports(
    wanted: Sequence[PortMapping], endpoint: Endpoint, snapshot: Snapshot, candidates: Iterable[int]
) -> tuple[PortMapping, ...]:
    """`wanted` with every host port 0 replaced by a free one of `candidates`. Raises PortInUse naming the holder."""
    others = (e for e in snapshot.endpoints.values() if e.node == snapshot.me and e.id != endpoint.id)
    taken: _Taken = {}
    for other in others:
        for held in other.ports:
            taken.setdefault((held.proto, held.host_port), []).append((held, other))
    _check_apart(wanted)
    pool = iter(candidates)
    result: list[PortMapping] = []
    for port in wanted:
        if port.host_ip.version == 6 and endpoint.address6 is None:
            raise NotSupported(
                f"cannot publish a port of {endpoint.name or endpoint.id!r} on {port.host_ip}: it has no IPv6 address;"
                f" put it on a network with IPv6 (`plait network create NAME --ipv6`)"
            )
        if port.host_port:
            _check(port, endpoint, taken)
            result.append(port)
            continue
        given = {(p.proto, p.host_port) for p in (*result, *wanted)}
        free = next(
            (
                n
                for n in pool
                if (port.proto, n) not in taken and (port.proto, n) not in given and listener(port.proto, n, port.host_ip) is None
            ),
            None,
        )
        if free is None:
            raise PortInUse(f"no free {port.proto} port is left in the host's ephemeral range for {endpoint.name or endpoint.id}")
        result.append(replace(port, host_port=free))
    return tuple(result)


def _check_apart(wanted: Sequence[PortMapping]) -> None:
    """ConfigError if one host port were to lead to two ports of a container."""
    leads: dict[tuple[str, IPAddress, int], int] = {}
    for port in (p for p in wanted if p.host_port):
        first = leads.setdefault((port.proto, port.host_ip, port.host_port), port.container_port)
        if first != port.container_port:
            at = f"{at_port(port.host_ip, port.host_port)}/{port.proto}"
            raise ConfigError("port", at, f"would lead to {first} and to {port.container_port}", "choose another host port for one of them")


def _check(port: PortMapping, endpoint: Endpoint, taken: _Taken) -> None:
    what = f"cannot publish {at_port(port.host_ip, port.host_port)}/{port.proto}"
    held = taken.get((port.proto, port.host_port), ())
    holder = next((other for its, other in held if clash(its, other, port, endpoint)), None)
    if holder is not None:
        who = holder.name or holder.id
        raise PortInUse(f"{what}: the port is published for {who!r} already; choose another host port, or `plait unpublish` that one")
    process = listener(port.proto, port.host_port, port.host_ip)
    if process is not None:
        raise PortInUse(f"{what}: {process} listens on that port of this host; choose another host port or stop that program")


def listener(proto: str, port: int, address: IPAddress = ANY) -> str | None:
    """The local process that has `port` open for `address` (as "nginx (pid 12)"), or None if nobody does."""
    for found in _waiting(proto):
        if found.port == port and _takes(found, address):
            return _owner(str(found.inode))
    return None


def _takes(found: Waiting, address: IPAddress) -> bool:
    """Whether some packet to `address` is for that socket. One of IPv6 may take IPv4 too."""
    return found.address is None or found.address == address or (address.version == 4 and ANY in (found.address, address))


def _waiting(proto: str) -> list[Waiting]:
    """Sockets that would clash with a publication; read from /proc where the kernel has no sock_diag."""
    if proto not in _PROTOCOLS:
        return []
    try:
        return waiting_sockets(_PROTOCOLS[proto])
    except OSError:
        tables = (Path("/proc/self/net", table) for table in (proto, f"{proto}6"))
        return [found for table in tables if table.exists() for found in parse_table(table.read_text(), proto)]


def parse_table(text: str, proto: str) -> list[Waiting]:
    """The sockets in /proc/net/{tcp,tcp6,udp,udp6} (proc(5)) that wait for somebody."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        raw, _, number = fields[1].partition(":")
        if fields[3] == (_TCP_LISTEN if proto == "tcp" else _UDP_UNCONN):
            bound = IPv4Address(int.from_bytes(bytes.fromhex(raw), "little")) if len(raw) == 8 else None
            found.append(Waiting(int(number, 16), bound, int(fields[9])))
    return found


def _owner(inode: str) -> str:
    wanted = f"socket:[{inode}]"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(str(fd.readlink()) == wanted for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return "a process of the kernel or of another namespace"
