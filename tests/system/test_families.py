# SPDX-License-Identifier: Apache-2.0
"""Every backend between hosts carries IPv4 and IPv6, over an underlay of either: the table of docs/guide.md, with real packets.

A and B are on one switch, C behind a router. Each host has a sandbox on each network, and all networks have both families.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.support.matrix import unreached

from plait.lab import inside
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
ROADS = """
[[switch]]
name = "left"
underlay = "{0}"
[[switch]]
name = "right"
underlay = "{0}"
[[router]]
name = "R"
switches = ["left", "right"]
[[host]]
name = "A"
[[host]]
name = "B"
[[host]]
name = "C"
switch = "right"
"""
NETWORKS = {
    "vxl": ("--backend", "vxlan"),
    "sw": ("-o", "layer2=true"),
    "hyb": ("--backend", "hybrid"),
    "dir": ("--backend", "direct"),
    "sec": ("--backend", "wireguard"),
}
FAR = [name for name in NETWORKS if name != "dir"]
"""Those that reach beyond a router."""
OUTER = {"ipv4": {"vxl": 50, "sw": 50, "sec": 60}, "ipv6": {"vxl": 70, "sw": 70, "sec": 80}}
"""Bytes that a packet grows by on each underlay (of `hyb` none to B, those of `vxl` to C)."""
HEADS = {4: 28, 6: 48}
"""Of an echo request, by family."""
MARKER = b"MARKER-012345678"
"""What `ping -p` repeats, 16 bytes."""
TAKEN_S = 30
"""Until another path is taken; a few seconds, with room for a loaded machine."""


@pytest.fixture(scope="module", params=["ipv4", "ipv6"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(toml=ROADS.format(request.param))
    for name, options in NETWORKS.items():
        made.run("A", "plait", "network", "create", name, "--ipv6", *options)
    for host in made.hosts:
        for name in NETWORKS:
            made.run(host, "plait", "run", "--name", f"{name}-{host}", "--network", name)
    for pair in ("AB", "BA"):
        until("the link is found", lambda pair=pair: path(made, *pair, "dir")["kind"] == "direct", TAKEN_S)
    until("all encrypted tunnels carry", lambda: not missed(made, "sec", "ABC"), TAKEN_S)
    yield made


@pytest.fixture(autouse=True)
def healed(lab: Lab) -> Iterator[None]:
    yield
    lab.heal()
    for pair in ("AB", "BA"):
        until("the link is taken", lambda pair=pair: path(lab, *pair)["kind"] == "direct", TAKEN_S)
        until("the tunnel is taken", lambda pair=pair: path(lab, *pair, "vxl")["kind"] == "vxlan", TAKEN_S)


def underlay(lab: Lab) -> str:
    return "ipv6" if ":" in lab.address("A") else "ipv4"


def shown(lab: Lab, host: str, *words: str) -> Any:
    return json.loads(lab.run(host, "plait", *words, "--json", check=False).stdout)


def path(lab: Lab, host: str, to: str, network: str = "hyb") -> dict[str, Any]:
    return next(row for row in shown(lab, host, "paths") if row["node"] == to and network in row["networks"])


def addresses(lab: Lab, network: str, hosts: str) -> list[str]:
    """Of the network's sandboxes on `hosts`, first all of IPv4, then all of IPv6. They stay what they are, and are asked for once."""
    rows = [row for row in _sandboxes(lab) if network in row["addresses"] and row["node"] in hosts]
    return [row[kind][network] for kind in ("addresses", "addresses6") for row in rows]


@cache
def _sandboxes(lab: Lab) -> Any:
    return shown(lab, "A", "ps")


def missed(lab: Lab, network: str, hosts: str) -> list[str]:
    """Pairs of sandboxes, by address, that do not reach each other."""
    return unreached(lab, {host: [f"{network}-{host}"] for host in hosts}, addresses(lab, network, hosts))


def pings(lab: Lab, network: str, host: str, to: str, family: int, *options: str) -> bool:
    address = addresses(lab, network, to)[family // 6]
    command = ("nsenter", f"--net=/run/plait/netns/{network}-{host}", "ping", "-c1", "-W1", *options, address)
    return lab.run(host, *command, check=False).returncode == 0


def fits(lab: Lab, network: str, host: str, to: str, family: int, room: int) -> bool:
    """Whether a packet of `room` bytes passes whole, and none that is larger."""
    whole, more = (("-M", "do", "-s", str(room - HEADS[family] + extra)) for extra in (0, 1))
    return pings(lab, network, host, to, family, *whole) and not pings(lab, network, host, to, family, "-W", "0.2", *more)


@contextmanager
def blocked(lab: Lab, host: str, rule: str) -> Iterator[None]:
    """Somebody between the hosts drops what matches `rule`."""
    hook = "{ type filter hook ingress device eth0 priority -500; }"
    lab.run(host, "nft", f"add table netdev hole; add chain netdev hole in {hook}; add rule netdev hole in {rule} drop")
    try:
        yield
    finally:
        lab.run(host, "nft", "delete table netdev hole")


@pytest.mark.parametrize("network", NETWORKS)
def test_sandboxes_reach_each_other_by_both_families(lab: Lab, network: str) -> None:
    assert missed(lab, network, "ABC" if network in FAR else "AB") == []


@pytest.mark.parametrize("network", NETWORKS)
def test_packets_are_as_large_as_there_is_room_for(lab: Lab, network: str) -> None:
    outer = OUTER[underlay(lab)]
    for to, family in itertools.product("BC" if network in FAR else "B", (4, 6)):
        grown = 0 if network in ("hyb", "dir") and to == "B" else outer.get(network, outer["vxl"])
        assert fits(lab, network, "A", to, family, 1500 - grown), (to, family, grown)


def test_names_have_addresses_of_both_families(lab: Lab) -> None:
    for network in NETWORKS:
        four, six = addresses(lab, network, "A")
        for kind, address in (("A", four), ("AAAA", six)):
            asked = ("dig", "+short", "@127.0.0.1", f"{network}-A.plait", kind)
            until("B knows", lambda asked=asked, address=address: lab.run("B", *asked).stdout.split() == [address], 5)


def test_hosts_reach_containers_by_both_families(lab: Lab) -> None:
    for network in NETWORKS:
        for address in addresses(lab, network, "B"):
            assert lab.run("A", "ping", "-c1", "-W2", address, check=False).returncode == 0, (network, address)


def test_nothing_is_left_to_do_and_all_is_well(lab: Lab) -> None:
    for host in lab.hosts:
        until("the plan is done", lambda host=host: lab.run(host, "plait", "plan", "--diff").stdout == "", 10)
        conditions = {row["code"] for row in shown(lab, host, "status")["conditions"]}
        assert conditions <= {"path-lost"}, "the direct network does not reach C"


def carried(lab: Lab, host: str, what: str, act: Callable[[], object]) -> list[str]:
    """Packets that match `what` on the host's own link meanwhile."""
    command = ("tcpdump", "-n", "-i", "eth0", "-l", "--immediate-mode", "-Z", "root", what)
    process = lab.popen(host, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "listening on" not in process.stderr.readline():
        assert process.poll() is None
    act()
    time.sleep(0.3)  # what has just passed is written down
    process.kill()
    return process.communicate(timeout=10)[0].splitlines()


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_direct_is_in_no_tunnel(lab: Lab, family: int) -> None:
    bare = addresses(lab, "hyb", "B")[family // 6]
    seen = carried(lab, "B", f"dst host {bare} and (icmp or icmp6)", lambda: pings(lab, "hyb", "A", "B", family))
    assert [line for line in seen if "echo request" in line], "its own addresses, no header around them"


@contextmanager
def recorded(lab: Lab, file: Path) -> Iterator[None]:
    """Everything that passes on the switch of A and B goes into `file`."""
    words = ["tcpdump", "-i", "any", "-s0", "-U", "--immediate-mode", "-Z", "root", "-w", str(file)]
    dump = subprocess.Popen(inside.net_argv(lab.state.holders["left"], words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert dump.stderr is not None
    while "listening on" not in dump.stderr.readline():
        assert dump.poll() is None
    try:
        yield
        time.sleep(0.3)  # what has just passed is written down
    finally:
        dump.send_signal(signal.SIGINT)
        dump.communicate(timeout=5)


def in_clear(lab: Lab, file: Path) -> list[str]:
    """Packets of the encrypted network in a capture, in whatever they are wrapped, a line each."""
    made = shown(lab, "A", "network", "inspect", "sec")
    nets = made["subnet"], made["subnet6"]
    lines = subprocess.run(["tcpdump", "-nn", "-r", str(file)], capture_output=True, text=True, check=True).stdout.splitlines()
    heads = tuple(net.partition("/")[0].removesuffix("0.0").removesuffix(":") for net in nets)
    return [line for line in lines if any(head in line for head in heads)]


def marked(lab: Lab, network: str) -> None:
    """Echoes of both families with the marker in them, from A to B and C."""
    for to, family in itertools.product("BC", (4, 6)):
        pings(lab, network, "A", to, family, "-s", "400", "-p", MARKER.hex())


def test_what_is_encrypted_is_seen_by_nobody_whatever_is_inside_and_outside(lab: Lab, tmp_path: Path) -> None:
    """A control first: the same over another network is found by the same look at the same capture."""
    for network, found in (("vxl", True), ("sec", False)):
        with recorded(lab, tmp_path / network):
            marked(lab, network)
        assert (MARKER in (tmp_path / network).read_bytes()) is found
    assert in_clear(lab, tmp_path / "sec") == []
    ports = subprocess.run(["tcpdump", "-nn", "-r", str(tmp_path / "sec"), "udp port 7472"], capture_output=True, text=True, check=True)
    assert len(ports.stdout.splitlines()) >= 16, "four echoes, each with an answer, seen on two ports of the switch"


def test_with_a_wrong_key_neither_family_passes_and_status_says_so(lab: Lab, tmp_path: Path) -> None:
    key = "/var/lib/plait/pl-wg.key"
    change = f"cp -p {key} /tmp/kept; echo damaged > {key}; wg genkey > /tmp/other; wg set pl-wg private-key /tmp/other; rm /tmp/other"
    lab.run("B", "sh", "-c", f"umask 077; {change}")
    try:
        with recorded(lab, tmp_path / "wrong"):
            assert not [family for family in (4, 6) if pings(lab, "sec", "A", "B", family, "-p", MARKER.hex())]
            assert not [family for family in (4, 6) if pings(lab, "sec", "B", "A", family, "-p", MARKER.hex())]
        assert MARKER not in (tmp_path / "wrong").read_bytes() and in_clear(lab, tmp_path / "wrong") == []
        until("A misses B", lambda: "tunnel-silent" in {row["code"] for row in shown(lab, "A", "status")["conditions"]}, 40)
    finally:
        lab.run("B", "mv", "/tmp/kept", key)
    until("both families pass again", lambda: all(pings(lab, "sec", "A", "B", family) for family in (4, 6)), TAKEN_S)


@pytest.mark.parametrize("network", ["vxl", "sec"])
def test_what_goes_through_a_tunnel_goes_round_the_stack_of_its_hosts(lab: Lab, network: str) -> None:
    """Another table's hook sees none of it. What a WireGuard device has to do with neighbours is one row a block of IPv6, of IPv4 none."""
    spy = "add table inet spy; add chain inet spy seen { type filter hook prerouting priority -400; }"
    rules = [f"add rule inet spy seen {'ip6' if ':' in to else 'ip'} daddr {to} counter" for to in addresses(lab, network, "AB")]
    for host in "AB":
        until("the fast path is there", lambda host=host: fast(lab, host, network), 10)
        lab.run(host, "nft", "; ".join([spy, *rules]))
    try:
        assert all(pings(lab, network, "A", "B", family, "-c3", "-i0.1") for family in (4, 6))
        for host in "AB":
            text = lab.run(host, "nft", "list", "table", "inet", "spy").stdout
            assert set(re.findall(r"counter packets (\d+)", text)) == {"0"}, text
        until("the plan is done", lambda: lab.run("A", "plait", "plan", "--diff").stdout == "", 10)
    finally:
        for host in "AB":
            lab.run(host, "nft", "delete table inet spy")


def fast(lab: Lab, host: str, network: str) -> bool:
    """Whether the host forwards at ingress what the network's sandbox sends to others, and what comes for it through the tunnel."""
    text, own = lab.run(host, "nft", "list", "table", "netdev", "plait").stdout, addresses(lab, network, host)
    onward = [line for line in text.splitlines() if "map @next" in line and any(f"saddr {address} " in line for address in own)]
    return len(onward) == 2 and f"chain {'pl-wg' if network == 'sec' else 'pl-x1'} {{" in text


@pytest.mark.parametrize("family", [4, 6])
def test_a_family_that_does_not_pass_on_the_link_takes_the_tunnel_and_the_other_with_it(lab: Lab, family: int) -> None:
    """Of a network that has no tunnel the other family stays on the link, and the missing one is named."""
    probe = "ip protocol icmp ip ttl 1" if family == 4 else "ip6 nexthdr icmpv6 ip6 hoplimit 1 icmpv6 type echo-request"
    plain = f"ip{'' if family == 4 else '6'} saddr {shown(lab, 'A', 'network', 'inspect', 'dir')['subnet' if family == 4 else 'subnet6']}"
    with blocked(lab, "B", f"{probe} drop; add rule netdev hole in {plain}"):
        until("the tunnel is taken", lambda: path(lab, "A", "B")["kind"] == "vxlan", TAKEN_S)
        assert path(lab, "A", "B")["why"] == f"IPv{family} does not pass on their link"
        assert all(pings(lab, "hyb", "A", "B", each) for each in (4, 6))
        row = path(lab, "A", "B", "dir")
        if (underlay(lab), family) == ("ipv6", 6):
            assert row["kind"] == "none", "plain IPv4 needs IPv6 there to find the other host"
            return
        assert row["kind"] == "direct" and row["why"] == f"both are on one link, where IPv{family} does not pass"
        assert not pings(lab, "dir", "A", "B", family) and pings(lab, "dir", "A", "B", 10 - family)
        text = f"no IPv{family} packet of network dir comes to B"
        until("status says so", lambda: text in lab.run("A", "plait", "status", check=False).stdout, 5)


def narrow(lab: Lab, network: str) -> dict[int, set[int]]:
    """The MTUs of routes inside the network's sandbox on A, by family."""
    found, within = {}, ("nsenter", f"--net=/run/plait/netns/{network}-A")
    for family in (4, 6):
        lines = lab.run("A", *within, "ip", f"-{family}", "route", "show", "proto", "112").stdout.splitlines()
        found[family] = {int(line.partition(" mtu ")[2].split()[0]) for line in lines if " mtu " in line}
    return found


def test_a_narrower_link_is_told_to_containers_in_both_families(lab: Lab) -> None:
    outer = OUTER[underlay(lab)]
    rooms = {"dir": 1400, "hyb": 1400, "sec": (1400 - outer["sec"]) // 16 * 16, "vxl": 1400 - outer["vxl"]}
    before = {network: narrow(lab, network) for network in rooms}
    lab.run("B", "ip", "link", "set", "eth0", "mtu", "1400")
    try:
        for network, room in rooms.items():
            wanted = {family: mtus | {room} for family, mtus in before[network].items()}
            until(f"{network} is narrower", lambda n=network, w=wanted: narrow(lab, n) == w, 15)
            assert [family for family in (4, 6) if not fits(lab, network, "A", "B", family, room)] == [], network
    finally:
        lab.run("B", "ip", "link", "set", "eth0", "mtu", "1500")
    for network in rooms:
        until(f"{network} is wide again", lambda n=network: narrow(lab, n) == before[n], 20)


def test_who_is_cut_off_is_reached_through_a_third_by_both_families(lab: Lab) -> None:
    lab.cut("A", "B")
    until("C relays", lambda: path(lab, "A", "B")["relay"] == path(lab, "B", "A")["relay"] == "C", TAKEN_S)
    for network in ("hyb", "vxl"):  # what is chosen is in the kernels of all three a moment later
        until(f"{network} is relayed", lambda n=network: all(pings(lab, n, "A", "B", family) for family in (4, 6)), TAKEN_S)
