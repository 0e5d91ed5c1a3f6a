# SPDX-License-Identifier: Apache-2.0
"""What a policy of 10,000 rules costs: requests and connections beside none, and how soon one member more is in force.

A host with three containers of one network, planned as an agent plans them, in namespaces without a way out: a client, a server that no
policy selects, and one that a policy of 10,000 rules does, of which the last lets the client in. Both servers on the same path, without
the fast path, which a container that policies select does not take; and again beside a server that takes it.

A member is a container of another host with the label of one rule: from the snapshot that has it to the kernel's answer, by elements ahead
of the pass, as the agent does it (`KernelWork.hasten`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bench.core import Row, end, interleave, median, ratio, worst
from bench.events import Timed
from plait.agent.kernelwork import KernelWork
from plait.agent.process import tune
from plait.kernel.linux import LinuxKernel, create_netns, delete_netns
from plait.kernel.linux.netns import in_thread, inside
from plait.kernel.linux.nft import Nft
from plait.model.cluster import Block, Endpoint, Network, Node, Snapshot
from plait.model.policy import Group, Policy, PolicyRule, Ports, Requirement, Selector
from plait.plan import Local, plan_node, prompt_objects
from plait.reconcile import diff, order

RULES, OTHERS, CHANGES, SECONDS, ROUNDS = 10_000, 500, 300, 1, 9
PINNED = "chrt -f 10 taskset -c 0"
"""Both ends on one CPU, before everything else there (see `bench/network.py`)."""
NETWORK = Network("default", IPv4Network("10.28.0.0/16"), IPv4Address("10.28.0.1"), 24)
NODES = {
    name: Node(name, name * 8, IPv4Address(f"198.18.0.{n}"), 1500, f"02:00:00:00:00:0{n}", IPv4Address(f"10.28.{n - 1}.0"))
    for n, name in enumerate("AB", 1)
}
NAMES = {"client": 2, "plain": 3, "policed": 4}
NGINX_CONF = """daemon off; master_process off; error_log stderr crit; pid {folder}/{name}.pid; events {{}}
http {{ access_log off; keepalive_requests 1; server {{ listen 80; return 200 "x"; }} }}
"""


def _policy() -> Policy:
    """About `policed`: a rule for each of so many labels, on one of twenty ports, and the last one for the client."""
    wanted = [(f"w{number}", 1000 + number % 20) for number in range(RULES - 1)]
    rules = [PolicyRule("Accept", f"ingress[{n}]", (_of(app),), ports=(Ports("tcp", p, p),)) for n, (app, p) in enumerate(wanted)]
    rules.append(PolicyRule("Accept", f"ingress[{RULES - 1}]", (_of("client"),)))
    return Policy("big", "default", "NetworkPolicy", _of("policed"), tuple(rules))


def _of(app: str) -> Group:
    return Group(Selector((Requirement("app", "In", (app,)),)), namespace="default")


def _endpoint(number: int, node: str, app: str, name: str = "", netns: str = "") -> Endpoint:
    address = IPv4Address("10.28.0.0") + (number if node == "A" else 256 + number)
    mac = f"02:00:00:01:{number // 256:02x}:{number % 256:02x}"
    name = name or f"{node}{number}"
    return Endpoint(name, "default", node, address, mac, f"pl-e{name}", "sandbox", name=name, netns=netns, labels={"app": app})


class Host:
    """The host's namespace and those of its containers. `others` are on another host; each has a rule of its own."""

    def __init__(self, folder: Path, fast_path: bool, others: int = OTHERS) -> None:
        self._paths = {name: folder / name for name in ("host", *NAMES)}
        for path in self._paths.values():
            create_netns(path)
        ends = [_endpoint(last, "A", name, name, str(self._paths[name])) for name, last in NAMES.items()]
        ends += [_endpoint(number, "B", f"w{number}") for number in range(others)]
        blocks = [Block("default", IPv4Network("10.28.0.0/24"), "A"), Block("default", IPv4Network("10.28.1.0/24"), "B")]
        policy = _policy()
        self._snapshot = Snapshot(
            "A",
            1,
            NODES,
            frozenset("AB"),
            {"default": NETWORK},
            {(b.network, b.cidr): b for b in blocks},
            {e.id: e for e in ends},
            policies={policy.ident: policy},
        )
        self._local = Local(fast_path=fast_path)
        self._within(lambda kernel: self._pass(kernel, self._snapshot))
        self._servers = [server for name in NAMES if name != "client" for server in self._serve(folder, name)]
        time.sleep(0.5)

    def _serve(self, folder: Path, name: str) -> list[subprocess.Popen[bytes]]:
        conf = folder / f"{name}.conf"
        conf.write_text(NGINX_CONF.format(folder=folder, name=name))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        commands = ("sockperf server --tcp -p 11111", f"nginx -c {conf}")
        return [subprocess.Popen(self._enter(name, f"exec {PINNED} {command}"), **quiet) for command in commands]

    def _enter(self, name: str, command: str) -> list[str]:
        return ["nsenter", f"--net={self._paths[name]}", "sh", "-c", command]

    def _within(self, work: Callable[[LinuxKernel], None], nft: Nft | None = None) -> None:
        def there() -> None:
            with self._paths["host"].open() as file, inside(file.fileno()), contextlib.closing(LinuxKernel(nft=nft)) as kernel:
                work(kernel)

        in_thread(there)

    def _pass(self, kernel: LinuxKernel, snapshot: Snapshot) -> None:
        result = kernel.apply(order(diff(plan_node(snapshot, self._local), kernel.owned(), may_delete=True)))
        if result.failed:
            raise RuntimeError(f"the kernel refused {result.failed}")

    def round_trips(self, name: str) -> float:
        """Requests with an answer, per second."""
        text = self._ask(f"sockperf ping-pong --tcp -i 10.28.0.{NAMES[name]} -p 11111 -t {SECONDS} --msg-size 14")
        return 1e6 / (2 * _number(r"Latency is ([\d.]+) usec", text))

    def connects(self, name: str) -> float:
        """Connections with one request each, per second."""
        return _number(
            r"Requests/sec:\s+([\d.]+)", self._ask(f"wrk -t1 -c1 -d{SECONDS}s -H 'Connection: close' http://10.28.0.{NAMES[name]}/")
        )

    def _ask(self, command: str) -> str:
        return subprocess.run(self._enter("client", f"{PINNED} {command}"), capture_output=True, text=True, check=True, timeout=30).stdout

    def changes(self) -> tuple[list[float], list[float]]:
        """Of members that come one after the other: seconds until each is in force, and of that in nft."""
        whole, nft = list[float](), Timed()

        async def members(work: KernelWork) -> None:
            snapshot, local = self._snapshot, self._local
            for _ in range(2):
                await work.converge(lambda: plan_node(snapshot, local), True)
            nft.within.clear()
            for number in range(OTHERS, OTHERS + CHANGES):
                member = _endpoint(number, "B", f"w{number}")
                snapshot = replace(snapshot, endpoints={**snapshot.endpoints, member.id: member})
                began = time.perf_counter()
                assert await work.hasten(lambda: prompt_objects(snapshot, local))  # noqa: B023
                whole.append(time.perf_counter() - began)

        def there(kernel: LinuxKernel) -> None:
            tune()
            asyncio.run(members(KernelWork(kernel)))

        self._within(there, nft)
        return whole, nft.within

    def close(self) -> None:
        end(self._servers)
        for path in self._paths.values():
            delete_netns(path)


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"no {pattern!r} in: {text[-300:]}")
    return float(match.group(1))


@contextlib.contextmanager
def _host(fast_path: bool) -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder), fast_path)
        try:
            yield host
        finally:
            host.close()


def run() -> list[Row]:
    rows: list[Row] = []
    for fast_path, beside in ((False, "none, on the same path"), (True, "none, on the fast path")):
        with _host(fast_path) as host:
            trips = interleave({name: lambda name=name: host.round_trips(name) for name in ("plain", "policed")}, ROUNDS)
            connects = interleave({name: lambda name=name: host.connects(name) for name in ("plain", "policed")}, ROUNDS)
            note = f"{RULES:,} rules, the last one lets the client in; containers of one host, both ends on one CPU, beside {beside}"
            bars = (0.95, 0.85) if not fast_path else (0.7, 0.7)
            rows.append(Row(f"requests under a policy, beside {beside}", ratio(trips, "policed", "plain"), "x none", bars[0], False, note))
            rows.append(
                Row(f"connections under a policy, beside {beside}", ratio(connects, "policed", "plain"), "x none", bars[1], False, note)
            )
            if not fast_path:
                rows += _changes(host)
    return rows


def _changes(host: Host) -> list[Row]:
    whole, within = ([1000 * seconds for seconds in found] for found in host.changes())
    note = f"{RULES:,} rules, {OTHERS} containers elsewhere and {CHANGES} more, one after the other"
    return [
        Row("a member more under 10,000 rules, event to rule, median", median(whole), "ms", 20, True, note),
        Row("a member more under 10,000 rules, event to rule, p99", worst(whole), "ms", 20, True, note),
        Row("a member more under 10,000 rules, in nft, p99", worst(within), "ms", 2, True, note),
    ]
