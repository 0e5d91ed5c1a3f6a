# SPDX-License-Identifier: Apache-2.0
"""Priorities in the kernel: marks in what containers send, on both headers of a tunnel, and the queues of the host's link."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.kernel.test_datapath import BY_NAME, WAYS, Hosts, two_hosts

from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import in_thread, inside
from plait.model.limits import PRIORITIES, Limit, Limits
from plait.shaping import Limiting, Means, Uplink

pytestmark = pytest.mark.root
MEANS = Means.of({"tbf", "ifb", "fwd", "metered", "egress", "ingress", "htb"})
QUEUES = Uplink("wire", 80_000_000)
CLASS = {"guaranteed": "7070:10", "normal": "7070:20", "bulk": "7070:30"}
DSCP = {"guaranteed": "ef", "normal": "cs0", "bulk": "cs1"}


@pytest.fixture(scope="module", params=WAYS)
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts"), request.param) as made:
        yield made


def prefer(hosts: Hosts, uplink: Uplink, **priorities: Limits) -> None:
    """Containers of A have these limits, and its link these queues."""
    told = {(BY_NAME[name].network, name): limits for name, limits in priorities.items()}
    hosts.limiting, hosts.uplink = Limiting(told, MEANS, honours=bool(uplink.rate)), uplink
    hosts.converge("A")
    assert hosts.converge("A") == 0, "a second pass writes nothing"


def sent(hosts: Hosts) -> dict[str, int]:
    """Packets by class of A's link."""
    text = hosts.run("A", "tc -s class show dev wire")
    found = re.findall(r"class htb (7070:[123]0) .*?Sent \d+ bytes (\d+) pkt", text, re.DOTALL)
    return {name: int(packets) for name, packets in found}


@contextlib.contextmanager
def counting(hosts: Hosts, *what: str) -> Iterator[list[int]]:
    """How many packets of each kind leave by A's link, when it is over."""
    hook = 'type filter hook egress device "wire" priority 10;'
    hosts.run("A", f"nft 'add table netdev seen; add chain netdev seen at {{ {hook} }}'")
    for one in what:
        hosts.run("A", f"nft 'add rule netdev seen at {one} counter'")
    found: list[int] = []
    try:
        yield found
        found += [int(n) for n in re.findall(r"counter packets (\d+)", hosts.run("A", "nft list table netdev seen"))]
    finally:
        hosts.run("A", "nft delete table netdev seen")


@pytest.mark.parametrize("held", [False, True], ids=["free", "limited"])
@pytest.mark.parametrize("priority", PRIORITIES)
def test_what_a_container_sends_is_marked_on_both_headers_and_waits_in_its_class(hosts: Hosts, priority: str, held: bool) -> None:
    prefer(hosts, QUEUES, web=Limits(outgoing=Limit(50_000_000) if held else None, priority=priority))
    before, mark = sent(hosts), DSCP[priority]
    with counting(hosts, f"ip dscp {mark} udp dport 4789") as found:
        for _ in range(5):
            assert hosts.pings("web", BY_NAME["far"].address)
    assert found[0] >= 5, "the tunnel's header"
    after = sent(hosts)
    assert after[CLASS[priority]] - before[CLASS[priority]] >= 5
    prefer(hosts, Uplink())


def test_the_inner_header_has_the_mark_and_nobody_takes_a_better_one(hosts: Hosts) -> None:
    prefer(hosts, QUEUES, web=Limits(priority="bulk"))
    with counting(hosts, "ip dscp ef", "ip dscp af41") as found:
        assert hosts.pings("near", BY_NAME["far"].address, "-Q 0xb8"), "a normal container that says it is a better one"
        assert hosts.pings("near", BY_NAME["far"].address, "-Q 0x88"), "other marks are the program's own"
    assert found == [0, 1]
    hosts.run("far", "nft 'add table ip seen; add chain ip seen in { type filter hook input priority 0; }'")
    hosts.run("far", "nft 'add rule ip seen in ip dscp cs1 counter'")
    assert hosts.pings("web", BY_NAME["far"].address, "-Q 0xb8")
    assert "packets 1 " in hosts.run("far", "nft list table ip seen")
    hosts.run("far", "nft delete table ip seen")
    prefer(hosts, Uplink(), web=Limits(priority="guaranteed"))
    with counting(hosts, "ip dscp ef") as found:
        assert hosts.pings("web", BY_NAME["far"].address), "marked where no queue goes by it, too"
        assert hosts.pings("near", BY_NAME["far"].address, "-Q 0xb8")
    assert found == [2]


def test_queues_change_in_place_and_come_back_and_go(hosts: Hosts) -> None:
    prefer(hosts, Uplink())
    free = hosts.run("A", "tc qdisc show dev wire")
    prefer(hosts, QUEUES)
    assert "rate 48Mbit ceil 80Mbit" in hosts.run("A", "tc class show dev wire")
    assert hosts.pings("A", BY_NAME["far"].address) and sent(hosts)["7070:20"] > 0
    before = sent(hosts)["7070:20"]
    prefer(hosts, replace(QUEUES, rate=40_000_000_000, weights=(1, 1, 2)))
    assert "rate 10Gbit ceil 40Gbit" in hosts.run("A", "tc class show dev wire") and sent(hosts)["7070:20"] >= before
    for gone in ("tc qdisc del dev wire root", "tc class change dev wire parent 7070:1 classid 7070:30 htb rate 1mbit ceil 2mbit"):
        hosts.run("A", gone)
        assert hosts.converge("A") == 1 and hosts.converge("A") == 0, gone
    hosts.run("A", "nft delete chain netdev plait to_wire")
    assert hosts.converge("A") == 1 and hosts.converge("A") == 0
    prefer(hosts, Uplink())
    assert hosts.run("A", "tc qdisc show dev wire") == free, "what the kernel had chosen is back"


def at(hosts: Hosts, work: str) -> str:
    def there() -> str:
        with hosts.paths["A"].open() as file, inside(file.fileno()), contextlib.closing(LinuxKernel()) as kernel:
            return kernel.foreign_root(work)

    return in_thread(there)


def test_what_somebody_else_has_at_the_root_is_never_touched(hosts: Hosts) -> None:
    prefer(hosts, Uplink())
    assert at(hosts, "wire") == "" and at(hosts, "nosuch") == ""
    hosts.run("A", "tc qdisc add dev wire root handle 8001: tbf rate 1gbit burst 1mb limit 1mb")
    theirs = hosts.run("A", "tc qdisc show dev wire")
    assert at(hosts, "wire") == "tbf 8001:"
    hosts.uplink = QUEUES
    with pytest.raises(AssertionError, match="qdisc"):
        hosts.converge("A")  # although nobody told the plan: the kernel itself refuses another root
    assert hosts.run("A", "tc qdisc show dev wire") == theirs
    prefer(hosts, replace(QUEUES, foreign="tbf 8001:"))
    assert hosts.run("A", "tc qdisc show dev wire") == theirs
    prefer(hosts, Uplink())
    assert hosts.run("A", "tc qdisc show dev wire") == theirs
    hosts.run("A", "tc qdisc del dev wire root")
    prefer(hosts, QUEUES)
    assert at(hosts, "wire") == "", "ours is not somebody else's"
    hosts.run("A", "tc qdisc replace dev wire root handle 8001: tbf rate 1gbit burst 1mb limit 1mb")
    prefer(hosts, replace(QUEUES, foreign="tbf 8001:"))
    hosts.run("A", "tc qdisc del dev wire root")
    prefer(hosts, Uplink())


def test_a_tunnel_made_before_copies_marks_from_now_on(hosts: Hosts) -> None:
    prefer(hosts, Uplink())
    index = hosts.run("A", "ip -o link show pl-x1 | cut -d: -f1")
    hosts.run("A", "ip link set pl-x1 type vxlan id 1 tos 0")
    assert hosts.converge("A") == 1 and hosts.converge("A") == 0
    assert "tos inherit" in hosts.run("A", "ip -d link show pl-x1") and hosts.run("A", "ip -o link show pl-x1 | cut -d: -f1") == index


def delay_s(hosts: Hosts, name: str, flooding: str = "") -> float:
    """How long a ping to the other host takes, behind a second's worth of datagrams of another container; more than 2 where it is lost."""
    to = str(BY_NAME["far"].address)
    if flooding:
        with hosts.udp(flooding) as mouth:
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
            for _ in range(1000):
                with contextlib.suppress(BlockingIOError):
                    mouth.sendto(bytes(1000), socket.MSG_DONTWAIT, (to, 9))
    started = time.monotonic()
    return time.monotonic() - started if hosts.pings(name, BY_NAME["far"].address, "-W2") else 9.0


def test_what_waits_in_bulk_delays_nobody_else(hosts: Hosts) -> None:
    slow = replace(QUEUES, rate=8_000_000)
    prefer(hosts, slow, web=Limits(priority="guaranteed"), near=Limits(priority="bulk"))
    assert delay_s(hosts, "web", flooding="near") < 0.3
    assert delay_s(hosts, "near") > 0.3, "its own packets wait behind what it sent before"
    prefer(hosts, Uplink())
