# SPDX-License-Identifier: Apache-2.0
"""Limits and what packets do: two hosts on a wire of their own, containers held back in both directions, on every way that there is.

That a limit is not passed can be said on a machine of any speed; how close it comes to what was asked is measured by `bench/limits.py`."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from tests.kernel.test_datapath import BY_NAME, WAYS, Hosts, two_hosts

from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import in_thread, inside
from plait.model.limits import Limit, Limits
from plait.shaping import Limiting, Means

pytestmark = pytest.mark.root
RATE = 8_000_000
SIZE = 600_000
ROUND = 1.15
"""Headers and what the bucket had at the start are no more than this of it, beside `ALLOWED`."""
ALLOWED = 120_000
"""Bytes that may come at once: the bucket, and what TCP's buffers take before the first byte is counted."""
BY_RULE, BY_FILTER = (Means.of({"tbf", "ifb", "metered", "egress", way}) for way in ("fwd", "redirect"))
"""What leads packets to the device that holds them back."""


@pytest.fixture(scope="module", params=WAYS)
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts"), request.param) as made:
        yield made


def hold(hosts: Hosts, container: str = "", limits: Limits | None = None, means: Means = BY_RULE) -> None:
    """Have the host of `container` hold it to `limits`, and every other one to nothing."""
    told = {(BY_NAME[container].network, container): limits} if limits is not None else {}
    hosts.limiting = Limiting(told, means)
    for node in "AB":
        hosts.converge(node)
        assert hosts.converge(node) == 0, "a second pass writes nothing"


def bytes_a_second(hosts: Hosts, client: str, server: str, size: int = SIZE) -> float:
    """At what rate `size` bytes came from `client` to `server` by TCP, less those that may come at once."""
    with hosts.socket(server) as listener, hosts.socket(client) as caller:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", 8800))
        listener.listen()
        caller.settimeout(30)
        caller.connect((str(BY_NAME[server].address), 8800))
        taker, _ = listener.accept()
        sender = threading.Thread(target=caller.sendall, args=(bytes(size),))
        with taker:
            taker.settimeout(30)
            started, got = time.monotonic(), 0
            sender.start()
            while got < size:
                got += len(taker.recv(1 << 16))
            took = time.monotonic() - started
        sender.join()
    return (size - ALLOWED) / took


@pytest.mark.parametrize("manner", ["shape", "drop"])
@pytest.mark.parametrize(
    ("client", "server"), [("near", "web"), ("far", "web"), ("web", "near"), ("web", "far"), ("A", "web")], ids="-".join
)
def test_a_limit_holds_whatever_way_packets_take(hosts: Hosts, client: str, server: str, manner: str) -> None:
    limit = Limit(RATE, drop=manner == "drop")
    hold(hosts, "web", Limits(limit) if server == "web" else Limits(outgoing=limit))
    assert bytes_a_second(hosts, client, server) * 8 < RATE * ROUND


@pytest.mark.parametrize("server", ["near", "far"])
def test_a_limit_holds_where_a_filter_leads_packets_away(hosts: Hosts, server: str) -> None:
    """As kernels without rules that do need it."""
    hold(hosts, "web", Limits(outgoing=Limit(RATE)), BY_FILTER)
    assert bytes_a_second(hosts, "web", server) * 8 < RATE * ROUND
    hold(hosts, "web", Limits(outgoing=Limit(RATE)))
    assert "mirred" not in traffic_control(hosts, "A"), "a rule is preferred as soon as there is one"
    assert bytes_a_second(hosts, "web", server) * 8 < RATE * ROUND


@pytest.mark.parametrize("server", ["near", "far"])
def test_the_other_direction_and_other_containers_are_free(hosts: Hosts, server: str) -> None:
    slow = 200_000
    hold(hosts, "web", Limits(Limit(slow)))
    assert bytes_a_second(hosts, "web", server, 1_000_000) * 8 > slow * 2, "acknowledgements alone come to the limited side"
    hold(hosts, "web", Limits(outgoing=Limit(slow)))
    assert bytes_a_second(hosts, server, "web", 1_000_000) * 8 > slow * 2
    assert bytes_a_second(hosts, "far", "near", 1_000_000) * 8 > slow * 2


def arrived(hosts: Hosts, datagrams: int) -> int:
    """How many of so many datagrams of 1,000 bytes, sent at once by a neighbour, come to the container."""
    with hosts.udp("web") as ear, hosts.udp("near") as mouth:
        ear.bind(("0.0.0.0", 9999))
        ear.settimeout(2)
        for _ in range(datagrams):
            mouth.sendto(bytes(1000), (str(BY_NAME["web"].address), 9999))
        got = 0
        try:
            while got < datagrams:
                ear.recv(2000)
                got += 1
        except TimeoutError:
            pass
        return got


def test_what_exceeds_the_rate_waits_or_is_lost(hosts: Hosts) -> None:
    burst, sent = 6 << 10, 20
    hold(hosts, "web", Limits(Limit(100_000, burst)))
    assert arrived(hosts, sent) == sent, "a queue holds them back"
    hold(hosts, "web", Limits(Limit(100_000, burst, drop=True)))
    assert arrived(hosts, sent) < sent, "more than a bucket and a queue as long as it"


def test_a_burst_is_bounded(hosts: Hosts) -> None:
    hold(hosts, "web", Limits(Limit(100_000, 30_000, drop=True)))
    assert arrived(hosts, 200) < 100, "the bucket, the queue, and what a second or two brings"


def traffic_control(hosts: Hosts, node: str) -> str:
    """All qdiscs, filters at ingresses and links of a host."""
    filters = "for dev in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do tc filter show dev $dev ingress; done"
    return hosts.run(node, f"sh -c 'tc qdisc show; {filters}; ip -o link | cut -d: -f2'")


def test_removal_restores_and_what_somebody_deletes_comes_back(hosts: Hosts) -> None:
    hold(hosts)
    free = traffic_control(hosts, "A")
    limits = Limits(Limit(RATE), Limit(RATE))
    hold(hosts, "web", limits, BY_FILTER)
    held = traffic_control(hosts, "A")
    assert held != free and " tbf " in held and "mirred" in held
    for gone in (
        "tc qdisc del dev pl-eweb root",
        "tc qdisc del dev pl-iweb root",
        "tc qdisc del dev pl-eweb clsact",
        "tc filter del dev pl-eweb ingress pref 110",
        "tc filter del dev pl-eweb ingress pref 112",
        "ip link del pl-iweb",
    ):
        hosts.run("A", gone)
        assert hosts.converge("A") > 0
        assert hosts.converge("A") == 0, gone
        found = traffic_control(hosts, "A")
        assert found.count(" tbf ") == 2 and found.count("Redirect to device pl-iweb") == 1, gone
    hosts.run("A", "tc qdisc replace dev pl-eweb root handle 1: tbf rate 1gbit burst 64kb limit 1mb")
    assert hosts.converge("A") == 1
    hold(hosts)
    assert traffic_control(hosts, "A") == free


def test_the_device_that_holds_back_comes_back_with_the_rule_that_leads_there(hosts: Hosts) -> None:
    hold(hosts, "web", Limits(outgoing=Limit(RATE)))
    for gone in ("tc qdisc del dev pl-iweb root", "ip link del pl-iweb", "nft flush chain netdev plait pl-eweb"):
        hosts.run("A", gone)
        assert hosts.converge("A") > 0
        assert hosts.converge("A") == 0, gone
        assert 'fwd to "pl-iweb"' in hosts.run("A", "nft list chain netdev plait pl-eweb")
        assert "tbf" in hosts.run("A", "tc qdisc show dev pl-iweb")
    hold(hosts)
    assert "pl-iweb" not in hosts.run("A", "nft list ruleset") + traffic_control(hosts, "A")


def test_what_others_hang_at_a_link_stays(hosts: Hosts) -> None:
    hold(hosts)
    hosts.run("A", "tc qdisc add dev pl-enear clsact")
    hosts.run("A", "tc filter add dev pl-enear egress protocol ip pref 7 u32 match u32 0 0 flowid 1:1")
    hold(hosts, "near", Limits(Limit(RATE), Limit(RATE)), BY_FILTER)
    hold(hosts)
    assert "pref 7" in hosts.run("A", "tc filter show dev pl-enear egress")
    hosts.run("A", "tc qdisc del dev pl-enear clsact")


@pytest.mark.parametrize("way", ["rule", "filter"])
def test_what_asks_for_neighbours_is_not_led_away(hosts: Hosts, way: str) -> None:
    """A network of layer 2 has a chain for it at the link's ingress, which nothing meets that was redirected."""
    hold(hosts, "web", Limits(outgoing=Limit(RATE)), BY_FILTER if way == "filter" else BY_RULE)
    watch = 'type filter hook ingress device "pl-eweb" priority 10; policy accept;'
    hosts.run("A", f"nft 'add table netdev seen; add chain netdev seen at {{ {watch} }}'")
    for what in ("ether type arp", "icmpv6 type nd-neighbor-solicit", "ip protocol icmp"):
        hosts.run("A", f"nft 'add rule netdev seen at {what} counter'")
    hosts.run("web", "ip neigh flush dev eth0")
    hosts.run("web", "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0")
    hosts.run("web", "ip addr replace fe80::7/64 dev eth0 nodad")
    assert hosts.pings("web", BY_NAME["near"].address)
    hosts.pings("web", ip_address("fe80::9%eth0"))
    arp, solicitations, pings = (int(n) for n in re.findall(r"packets (\d+)", hosts.run("A", "nft list table netdev seen")))
    hosts.run("A", "nft delete table netdev seen")
    assert arp and solicitations and not pings


def test_a_rate_changes_without_a_lost_packet(hosts: Hosts) -> None:
    hold(hosts, "web", Limits(Limit(1_000_000), Limit(1_000_000)))
    with hosts.udp("web") as ear, hosts.udp("near") as mouth:
        ear.bind(("0.0.0.0", 9998))
        for number in range(10):
            mouth.sendto(bytes(100), (str(BY_NAME["web"].address), 9998))
            hold(hosts, "web", Limits(Limit(1_000_000 + number), Limit(1_000_000 + number)))
            assert ear.recv(200) == bytes(100)


def test_fragments_and_large_datagrams_pass(hosts: Hosts) -> None:
    hold(hosts, "web", Limits(Limit(RATE), Limit(RATE)))
    assert hosts.pings("near", BY_NAME["web"].address, "-s 8000")
    assert hosts.pings("far", BY_NAME["web"].address, "-s 8000")


# --- packets and connections a second


def counted(hosts: Hosts, node: str, name: str) -> dict[str, int]:
    """What a host has dropped of what was too much, by link."""

    def work() -> dict[str, int]:
        with contextlib.closing(LinuxKernel()) as kernel:
            return kernel.counted_links(name)

    def there() -> dict[str, int]:
        with hosts.paths[node].open() as file, inside(file.fileno()):
            return work()

    return in_thread(there)


def connected(hosts: Hosts, client: str, server: str, tries: int) -> int:
    """How many of so many connections, begun one after the other without waiting, come about before a segment would be sent again."""
    with hosts.socket(server) as listener, contextlib.ExitStack() as stack:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", 8801))
        listener.listen(tries)
        callers = [stack.enter_context(hosts.socket(client)) for _ in range(tries)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex((str(BY_NAME[server].address), 8801))
        _, writable, _ = select.select([], callers, [], 0.3)
        time.sleep(0.3)
        _, writable, _ = select.select([], callers, [], 0)
        return len(writable)


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("peer", ["near", "far"])
def test_connections_beyond_their_number_are_dropped_and_counted(hosts: Hosts, peer: str, direction: str) -> None:
    limits = Limits(connections_in=10) if direction == "in" else Limits(connections_out=10)
    client, server = (peer, "web") if direction == "in" else ("web", peer)
    hold(hosts)
    assert connected(hosts, client, server, 30) == 30
    hold(hosts, "web", limits)
    assert 10 <= connected(hosts, client, server, 30) <= 17, "a second's worth at once, and what half a second brings"
    assert counted(hosts, "A", f"connections_{direction}")["pl-eweb"] >= 13
    assert connected(hosts, server, client, 30) == 30, "the other direction is free"
    hold(hosts)
    assert counted(hosts, "A", f"connections_{direction}") == {}


@pytest.mark.parametrize("direction", ["in", "out"])
def test_packets_beyond_their_number_are_dropped_and_counted(hosts: Hosts, direction: str) -> None:
    hold(hosts, "web", Limits(packets_in=50) if direction == "in" else Limits(packets_out=50))
    client, server = ("near", "web") if direction == "in" else ("web", "near")
    with hosts.udp(server) as ear, hosts.udp(client) as mouth:
        ear.bind(("0.0.0.0", 9997))
        ear.settimeout(0.3)
        for _ in range(200):
            mouth.sendto(b"x", (str(BY_NAME[server].address), 9997))
        got = 0
        with contextlib.suppress(TimeoutError):
            while ear.recv(10):
                got += 1
    assert 5 <= got <= 20, "a burst of ten"
    assert counted(hosts, "A", f"packets_{direction}")["pl-eweb"] >= 180


def test_a_number_changes_without_another_ones_bucket(hosts: Hosts) -> None:
    """Each is an element: the count of one goes on while another changes, and nothing is left when a container goes."""
    hold(hosts, "web", Limits(connections_in=10, connections_out=5, packets_in=1000, packets_out=1001))
    connected(hosts, "near", "web", 30)
    before = counted(hosts, "A", "connections_in")["pl-eweb"]
    hold(hosts, "web", Limits(connections_in=10, connections_out=50, packets_in=1000, packets_out=1002))
    assert counted(hosts, "A", "connections_in")["pl-eweb"] == before > 0
    hosts.run("A", "nft flush set netdev plait packets_in")
    assert hosts.converge("A") == 1 and hosts.converge("A") == 0
    hosts.run("A", "nft delete chain netdev plait to_pl-eweb")
    assert hosts.converge("A") == 1 and hosts.converge("A") == 0
    hosts.run("A", "ip link del pl-eweb")
    assert hosts.converge("A") > 0 and hosts.converge("A") == 0
    hold(hosts)
    assert not re.search(r"connections_|packets_|to_pl-", hosts.run("A", "nft list table netdev plait"))


def test_numbers_hold_beside_a_rate(hosts: Hosts) -> None:
    """What waits for its turn has been counted before; what is counted away does not wait."""
    hold(hosts, "web", Limits(outgoing=Limit(RATE), connections_out=10))
    assert connected(hosts, "web", "far", 30) <= 17
    assert hosts.pings("web", BY_NAME["far"].address)
