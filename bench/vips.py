# SPDX-License-Identifier: Apache-2.0
"""Virtual addresses of services: connections a second through one beside those to a container itself, among 1, 1,000 and 5,000 services of
three containers each; and what one container more or less costs among 5,000.

Beside plait's plan stand two shapes of kube-proxy, as it writes them for iptables-restore and for nft. Each has two hosts of
its own (network namespaces on a wire of their own, no way out), a client beside one, three servers beside the other, and the same services
on the client's host. Everything runs on one CPU, so a figure is the cost of the path. The service that is measured stands in the middle of
the list. Plait's hosts are joined by its VXLAN tunnel and have its fast path, the others by plain routes: only ratios within one compare.

`wrk` makes a connection for each request to nginx. Two clients, one for each way, and a short TIME_WAIT of tracked connections keep one
measurement from meeting the remains of another in conntrack, where a source port that is taken costs a search.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Self

from bench.core import Row, interleave, ratio
from plait.kernel.linux import LinuxKernel, create_netns, delete_netns
from plait.kernel.linux.netns import in_thread, inside
from plait.model.cluster import Block, Endpoint, Network, Node, Snapshot
from plait.model.service import Service, ServicePort
from plait.plan import Local, plan_node
from plait.reconcile import diff, order

COUNTS = (1, 1000, 5000)
SECONDS, ROUNDS, CHANGES = 1, 11, 21
PINNED = "chrt -f 10 taskset -c 0"
PORT, BARE = 8080, 8081
"""Of the servers: one that services lead to, and one that none does."""
NGINX = """daemon off; master_process off; error_log stderr crit; pid {0}.pid; events {{}}
http {{ access_log off; keepalive_requests 1; server {{ listen 8080; listen 8081; return 200 "x"; }} }}
"""
A, N = IPv4Address, IPv4Network
SERVERS = (A("10.28.2.2"), A("10.28.2.3"), A("10.28.2.4"))
NETWORK = Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24)
NODES = {k: Node(k, k, A(f"198.18.0.{n}"), 1500, f"02:00:00:00:00:0{n}", A(f"10.28.{n}.0")) for n, k in ((1, "A"), (2, "B"))}
BLOCKS = {("default", cidr): Block("default", cidr, k) for k, cidr in (("A", N("10.28.1.0/24")), ("B", N("10.28.2.0/24")))}
VIP = A("10.27.255.1")
INSIDE = {
    "direct": ("A", A("10.28.1.2")),
    "client": ("A", A("10.28.1.3")),
    **{f"server{n}": ("B", address) for n, address in enumerate(SERVERS)},
}
LABELS = {"all": "1", "middle": "1"}


def vip(number: int, services: int) -> IPv4Address:
    """That of the middle is always the same: a server's sockets in TIME_WAIT refuse a client that comes by another one, because each
    has timestamps of its own."""
    return VIP if number == services // 2 else A("10.27.0.1") + number


class Pair:
    """Hosts "A" and "B" on a wire and what is beside them, as namespaces in `folder`; empty but for the wire."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = {name: folder / name for name in (*NODES, *INSIDE)}

    def __enter__(self) -> Self:
        self.folder.mkdir()
        for path in self.paths.values():
            create_netns(path)
        self.run("A", f"ip link add wire type veth peer name wire netns {self.paths['B']}")
        for name, node in NODES.items():
            self.run(name, f"ip link set lo up; ip addr add {node.address}/24 dev wire; ip link set wire up")
            self.run(name, "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_time_wait=1")
        return self

    def __exit__(self, *_: object) -> None:
        for path in self.paths.values():
            delete_netns(path)

    def command(self, where: str, text: str) -> list[str]:
        return ["nsenter", f"--net={self.paths[where]}", "sh", "-ec", text]

    def run(self, where: str, text: str, fed: str = "") -> str:
        return subprocess.run(self.command(where, text), input=fed, check=True, capture_output=True, text=True, timeout=120).stdout

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        started: list[subprocess.Popen[bytes]] = []
        try:
            for name in INSIDE:
                if name.startswith("server"):
                    conf = self.folder / f"{name}.conf"
                    conf.write_text(NGINX.format(self.folder / name))
                    started.append(subprocess.Popen(self.command(name, f"exec {PINNED} nginx -c {conf}")))
            time.sleep(0.5)
            yield
        finally:
            for server in started:
                server.terminate()
                server.wait(5)

    def connects(self, client: str, to: IPv4Address, port: int) -> float:
        """Connections with one request each, per second."""
        text = self.run(client, f"{PINNED} wrk -t1 -c1 -d{SECONDS}s -H 'Connection: close' http://{to}:{port}/")
        found = re.search(r"Requests/sec:\s+([\d.]+)", text)
        assert found is not None, text
        assert "Socket errors" not in text, text
        return float(found[1])


class Ours(Pair):
    def serve(self, services: int) -> None:
        for name in NODES:
            wanted = replace(self.snapshot(services), me=name)
            self.in_kernel(name, partial(self.converge, snapshot=wanted))

    def snapshot(self, services: int, in_middle: int = len(SERVERS)) -> Snapshot:
        """All services have all servers, that of the middle the first so many."""
        made, ordered = {}, [name for name in INSIDE if name.startswith("server")]
        for number, (name, (node, address)) in enumerate(INSIDE.items()):
            labels = LABELS if name in ordered[:in_middle] else {"all": "1"} if name in ordered else {}
            mac = f"02:10:00:00:00:{number:02x}"
            netns = str(self.paths[name])
            made[name] = Endpoint(name, "default", node, address, mac, f"pl-e{name}", "sandbox", name=name, netns=netns, labels=labels)
        ports = (ServicePort("tcp", 80, PORT),)
        known = [
            Service(f"s{n}", "default", vip(n, services), ports, {"middle" if n == services // 2 else "all": "1"}) for n in range(services)
        ]
        by_ident = {one.ident: one for one in known}
        return Snapshot("A", 1, NODES, frozenset(NODES), {"default": NETWORK}, BLOCKS, made, services=by_ident)

    def in_kernel(self, node: str, work: Callable[[LinuxKernel], object]) -> None:
        def there() -> None:
            with self.paths[node].open() as file, inside(file.fileno()), contextlib.closing(LinuxKernel()) as kernel:
                work(kernel)

        in_thread(there)

    @staticmethod
    def converge(kernel: LinuxKernel, snapshot: Snapshot) -> tuple[float, float]:
        """Milliseconds of all that a pass does, and of what it writes alone."""
        began = time.perf_counter()
        plan = plan_node(snapshot, Local(fast_path=True))
        ops = order(diff(plan, kernel.owned([key for key in plan if key[0] in ("sysctl", "hook")]), True))
        wrote = time.perf_counter()
        failed = kernel.apply(ops).failed if ops else {}
        assert not failed, failed
        return 1000 * (time.perf_counter() - began), 1000 * (time.perf_counter() - wrote)

    def changes(self, services: int, restore: Callable[[int], float], times: int) -> list[tuple[float, float, float]]:
        """One container more or less of one service, so many times: milliseconds of a whole pass, of what it writes, and what `restore`
        takes for the same."""
        found: list[tuple[float, float, float]] = []

        def work(kernel: LinuxKernel) -> None:
            for number in range(times + 1):
                servers = 2 + number % 2
                found.append((*self.converge(kernel, self.snapshot(services, servers)), restore(servers)))

        self.in_kernel("A", work)
        return found[1:]


class Peer(Pair):
    """Routed by hand, with what kube-proxy would write on the client's host."""

    def __enter__(self) -> Self:
        super().__enter__()
        for name, (node, address) in INSIDE.items():
            self.run(node, f"ip link add v{name} type veth peer name eth0 netns {self.paths[name]}; ip link set v{name} up")
            self.run(name, f"ip link set lo up; ip link set eth0 up; ip addr add {address}/32 dev eth0")
            self.run(name, "ip route add 10.28.0.1 dev eth0; ip route add default via 10.28.0.1")
            self.run(node, f"sysctl -qw net.ipv4.conf.v{name}.proxy_arp=1; ip route add {address} dev v{name}")
        for node, block, other in (("A", "10.28.2.0/24", "B"), ("B", "10.28.1.0/24", "A")):
            self.run(
                node, f"sysctl -qw net.ipv4.ip_forward=1; ip addr add 10.28.0.1/32 dev lo; ip route add {block} via {NODES[other].address}"
            )
        return self


class Plain(Peer):
    def serve(self, services: int) -> None:
        """None: what the others are a ratio of, since a direct connection meets all of their rules too."""


class Iptables(Peer):
    def serve(self, services: int) -> None:
        self.run("A", "iptables-legacy-restore", self.rules(services))

    def rules(self, services: int, in_middle: int = len(SERVERS)) -> str:
        """The table `nat` whole, as the proxier of kube-proxy in mode iptables writes it."""
        chains = [":KUBE-SERVICES - [0:0]", ":KUBE-MARK-MASQ - [0:0]", ":KUBE-POSTROUTING - [0:0]"]
        rules = [
            '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
            '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
            '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
            "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
            "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        ]
        for number in range(services):
            ends = SERVERS[: in_middle if number == services // 2 else len(SERVERS)]
            name = f"default/s{number}:http"
            chains += [f":KUBE-SVC-{number:016d} - [0:0]", *(f":KUBE-SEP-{number:012d}{end:04d} - [0:0]" for end in range(len(ends)))]
            head = f'-m comment --comment "{name} cluster IP" -d {vip(number, services)}/32 -p tcp -m tcp --dport 80'
            rules.append(f"-A KUBE-SERVICES {head} -j KUBE-SVC-{number:016d}")
            rules.append(f"-A KUBE-SVC-{number:016d} ! -s 10.28.0.0/16 {head} -j KUBE-MARK-MASQ")
            for end, address in enumerate(ends):
                left = len(ends) - end
                chance = f"-m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
                rules.append(f'-A KUBE-SVC-{number:016d} -m comment --comment "{name}" {chance} -j KUBE-SEP-{number:012d}{end:04d}')
                rules.append(f"-A KUBE-SEP-{number:012d}{end:04d} -s {address}/32 -j KUBE-MARK-MASQ")
                rules.append(f"-A KUBE-SEP-{number:012d}{end:04d} -p tcp -m tcp -j DNAT --to-destination {address}:{PORT}")
        return "\n".join(["*nat", *chains, *rules, "COMMIT", ""])

    def restored_ms(self, program: str, services: int, in_middle: int) -> float:
        """The whole table, the program's start included."""
        text = self.rules(services, in_middle)
        began = time.perf_counter()
        self.run("A", program, text)
        return 1000 * (time.perf_counter() - began)


class Nft(Peer):
    def serve(self, services: int) -> None:
        """As the proxier of kube-proxy in mode nftables writes it: a map of services, a chain for each and for each of its containers."""
        lines = ["table ip kube-proxy", "delete table ip kube-proxy", "table ip kube-proxy {"]
        lines += ["chain mark-for-masquerade { meta mark set mark or 0x4000", "}"]
        for number in range(services):
            for end, address in enumerate(SERVERS):
                lines.append(f"chain endpoint-{number}-{end} {{ ip saddr {address} jump mark-for-masquerade")
                lines += [f"meta l4proto tcp dnat to {address}:{PORT}", "}"]
            ends = ", ".join(f"{end} : goto endpoint-{number}-{end}" for end in range(len(SERVERS)))
            lines.append(
                f"chain service-{number} {{ ip daddr {vip(number, services)} tcp dport 80 ip saddr != 10.28.0.0/16 jump mark-for-masquerade"
            )
            lines += [f"numgen random mod {len(SERVERS)} vmap {{ {ends} }}", "}"]
        elements = ", ".join(f"{vip(number, services)} . tcp . 80 : goto service-{number}" for number in range(services))
        lines += [
            f"map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }}",
            "}",
            "chain services { ip daddr . meta l4proto . th dport vmap @service-ips",
            "}",
            "chain nat-prerouting { type nat hook prerouting priority dstnat; jump services",
            "}",
            "chain nat-output { type nat hook output priority -100; jump services",
            "}",
            "chain masquerading { meta mark & 0x4000 == 0 return",
            "masquerade fully-random",
            "}",
            "chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading",
            "}",
            "}",
        ]
        self.run("A", "nft -f -", "\n".join(lines) + "\n")


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        ours, plain = stack.enter_context(Ours(folder / "ours")), stack.enter_context(Plain(folder / "plain"))
        tables, nft = stack.enter_context(Iptables(folder / "iptables")), stack.enter_context(Nft(folder / "nft"))
        rows: list[Row] = []
        shares: dict[int, float] = {}
        for services in COUNTS:
            for side in (ours, tables, nft):
                side.serve(services)
            if not rows:
                for other in (ours, plain, tables, nft):
                    stack.enter_context(other.serving())
            row, shares[services] = _rates(services, ours, {"plain": plain, "iptables": tables, "nft": nft})
            rows.append(row)
        flat = shares[COUNTS[-1]] / shares[1]
        rows.append(Row(f"connections by a virtual address among {COUNTS[-1]:,} services / 1", flat, "x", 0.9, False, "both to direct"))
        return [*rows, _changes(ours, tables)]


def _rates(services: int, ours: Ours, others: Mapping[str, Peer]) -> tuple[Row, float]:
    trials: dict[str, Callable[[], float]] = {
        "bare": partial(ours.connects, "direct", SERVERS[0], BARE),
        "direct": partial(ours.connects, "direct", SERVERS[0], PORT),
        "ours": partial(ours.connects, "client", VIP, 80),
    }
    trials |= {name: partial(side.connects, "client", VIP, 80) for name, side in others.items() if name != "plain"}
    trials["plain"] = partial(others["plain"].connects, "direct", SERVERS[0], PORT)
    results = interleave(trials, ROUNDS)
    share, bare = ratio(results, "ours", "direct"), ratio(results, "ours", "bare")
    peers = (
        f"kube-proxy's iptables {ratio(results, 'iptables', 'plain'):.2f}, nft {ratio(results, 'nft', 'plain'):.2f} of direct without it"
    )
    note = f"{statistics.median(results['ours']):.0f} a second; {bare:.2f} of direct to a port that no service has; {peers}"
    return Row(f"connections by a virtual address among {services:,} services / direct", share, "x", 0.85, False, note), share


def _changes(ours: Ours, tables: Iptables) -> Row:
    """By the iptables-restore that Debian has (the one over nft), and beside it by the older one."""
    services = COUNTS[-1]
    found = ours.changes(services, partial(tables.restored_ms, "iptables-legacy-restore", services), CHANGES)
    legacy = statistics.median(written / restored for _, written, restored in found)
    found = ours.changes(services, partial(tables.restored_ms, "iptables-nft-restore", services), CHANGES // 4)
    share = statistics.median(written / restored for _, written, restored in found)
    whole, written, restored = (statistics.median(column) for column in zip(*found, strict=True))
    note = f"{written:.1f} beside {restored:.0f} ms (iptables-legacy-restore: {legacy:.3f} x), most of it the kernel's waiting for readers"
    note += f"; a whole pass of the agent, which plans and compares everything, {whole:.0f} ms"
    return Row(f"one container more or less among {services:,} services / iptables-restore", share, "x", 0.02, True, note)
