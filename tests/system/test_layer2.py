# SPDX-License-Identifier: Apache-2.0
"""Networks of layer 2 with real frames: three hosts on one switch, a sandbox on each, and what passes the underlay meanwhile."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.frames import ARP, IP4, ODD, Frame, ask_arp, seen, send, wire

from plait.lab.lab import Lab
from plait.lab.process import until
from plait.model.addr import link_local

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
EVERYBODY = "ff:ff:ff:ff:ff:ff"
GROUP, GROUP_MAC = "239.1.2.3", "01:00:5e:01:02:03"
HEAR = """
import socket, struct, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 7002))
link = struct.pack("4s4si", socket.inet_aton("239.1.2.3"), bytes(4), socket.if_nametoindex("eth0"))
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, link)
print("ready", flush=True)
sock.settimeout(float(sys.argv[1]))
try:
    print(sock.recv(99).decode())
except TimeoutError:
    print("nothing")
"""
SAY = """
import socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 4)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", bytes(4), bytes(4), socket.if_nametoindex("eth0")))
sock.sendto(b"hello", ("239.1.2.3", 7002))
"""
SANDBOXES = {
    "quiet": {"qa": "A", "qa2": "A", "qb": "B", "qc": "C"},
    "loud": {"la": "A", "la2": "A", "lb": "B", "lb2": "B"},
    "other": {"oa": "A"},
}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(hosts=3)
    made.run("A", "plait", "network", "create", "quiet", "-o", "layer2=true", "--subnet", "10.66.0.0/24", "--ipv6")
    loud = ("-o", "layer2=true", "-o", "multicast=true", "--subnet", "10.67.0.0/24", "--ipv6", "--internal")
    made.run("A", "plait", "network", "create", "loud", *loud)
    made.run("A", "plait", "network", "create", "other", "-o", "layer2=true", "--subnet", "10.68.0.0/24")
    for network, found in SANDBOXES.items():
        for name, host in found.items():
            made.run(host, "plait", "run", "--name", name, "--network", network, *(("-p", "8080:80") if name == "qb" else ()))
    for name in ("qa", "la"):
        until("all are there", lambda name=name: pings(made, name, address(made, f"{name[0]}b")), 10)
    yield made


def host_of(name: str) -> str:
    return next(found[name] for found in SANDBOXES.values() if name in found)


def addresses(lab: Lab, name: str) -> list[str]:
    """IPv4, and IPv6 where it has that."""
    rows = json.loads(lab.run("A", "plait", "ps", "--json").stdout)
    row = next(row for row in rows if row["name"] == name)
    return [*row["addresses"].values(), *row["addresses6"].values()]


def address(lab: Lab, name: str) -> str:
    return addresses(lab, name)[0]


def inside(lab: Lab, name: str, *command: str, host: str = "") -> str:
    return lab.run(host or host_of(name), "plait", "exec", name, "--", *command, check=False).stdout


def mac(lab: Lab, name: str, host: str = "") -> str:
    return str(json.loads(inside(lab, name, "ip", "-j", "link", "show", "eth0", host=host))[0]["address"])


def pings(lab: Lab, name: str, to: str) -> bool:
    return lab.run(host_of(name), "plait", "exec", name, "--", "ping", "-c1", "-W1", to, check=False).returncode == 0


def vni(lab: Lab, network: str) -> int:
    rows = json.loads(lab.run("A", "plait", "network", "ls", "--json").stdout)
    return next(int(row["vni"]) for row in rows if row["name"] == network)


def of_containers(lab: Lab, network: str, passed: list[Frame]) -> list[Frame]:
    """Those of a network but for the hosts' own echoes between their tunnel addresses."""
    macs = {mac(lab, name) for name in SANDBOXES[network]}
    number = vni(lab, network)
    return [frame for frame in passed if frame.vni == number and (frame.dst in macs or frame.to_many)]


def as_planned(lab: Lab, *hosts: str) -> None:
    for host in hosts:
        until(f"nothing is left to do on {host}", lambda host=host: lab.run(host, "plait", "plan", "--diff").stdout == "", 5)


def hears(lab: Lab, name: str, speaker: str, wait_s: float = 3) -> str:
    """What a container receives of a group that `speaker` sends to."""
    command = ("plait", "exec", name, "--", "python3", "-c", HEAR, str(wait_s))
    with lab.popen(host_of(name), *command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        inside(lab, speaker, "python3", "-c", SAY)
        return str(process.communicate(timeout=wait_s + 10)[0].strip())


@pytest.mark.parametrize("network", ["quiet", "loud"])
def test_a_peer_on_another_host_is_a_neighbour_and_nobody_asks_the_underlay_for_it(lab: Lab, network: str, tmp_path: Path) -> None:
    near, far = f"{network[0]}a", f"{network[0]}b"
    own = mac(lab, far)
    inside(lab, near, "ip", "neigh", "flush", "dev", "eth0")
    inside(lab, near, "ip", "-6", "neigh", "flush", "dev", "eth0")
    with wire(lab, "A", tmp_path) as passed:
        for to in addresses(lab, far):
            assert "ttl=64" in inside(lab, near, "ping", "-c1", "-W1", to), "no router in between"
            assert own in inside(lab, near, "ip", "neigh", "show", to)
        assert pings(lab, near, f"{link_local(own)}%eth0")
        ask = ask_arp(address(lab, near), address(lab, far))
        for whom in (EVERYBODY, own):  # who has an old entry asks that MAC alone whether it is still right
            with seen(lab, "A", near, ARP, 3, bytes.fromhex(own.replace(":", ""))) as answers:
                send(lab, "A", near, whom, ARP, ask)
            assert any(bytes.fromhex(own.replace(":", "")) in answer for answer in answers)
    frames = of_containers(lab, network, passed)
    assert {frame.kind for frame in frames if frame.dst == own} >= {IP4}, "the capture sees what passes"
    assert not [frame for frame in frames if frame.discovers]


def test_frames_that_are_no_ip_reach_a_mac_and_unknown_macs_stay_at_home(lab: Lab, tmp_path: Path) -> None:
    with seen(lab, "B", "qb", ODD, 5, b"odd") as arrived:
        send(lab, "A", "qa", mac(lab, "qb"), ODD, b"odd" * 20)
    assert [frame[14:17] for frame in arrived] == [b"odd"]
    for name in ("qa", "la"):
        with wire(lab, "A", tmp_path) as passed:
            send(lab, "A", name, "02:00:00:00:be:ef", ODD, b"lost" * 20)
        assert not [frame for frame in passed if frame.kind == ODD]


def test_without_multicast_none_leaves_the_host(lab: Lab, tmp_path: Path) -> None:
    with wire(lab, "A", tmp_path) as passed:
        assert hears(lab, "qa2", "qa") == "hello", "on the same host it does"
        assert hears(lab, "qb", "qa", 1) == "nothing"
        send(lab, "A", "qa", EVERYBODY, ODD, b"to all" * 10)
        send(lab, "A", "qa", EVERYBODY, ARP, ask_arp(address(lab, "qa"), "10.66.0.250"))
    assert not [frame for frame in passed if frame.vni == vni(lab, "quiet") and frame.to_many]


def test_multicast_reaches_members_on_hosts_that_have_containers_of_the_network(lab: Lab, tmp_path: Path) -> None:
    """The network is internal, and br_netfilter shows the table what the bridge switches: that must not stop it."""
    bridge = json.loads(lab.run("C", "ip", "-j", "link", "show", "dev", f"pl-x{vni(lab, 'loud')}").stdout)[0]["master"]
    with wire(lab, "C", tmp_path, "out") as sent, wire(lab, "C", tmp_path, "in") as passed:
        lab.run("C", "ping", "-c1", "-W1", f"ff02::1%{bridge}", check=False)  # a host of the network speaks too, as when it answers MLD
        assert hears(lab, "lb", "la") == "hello"
        with seen(lab, "B", "lb2", ODD, 5, b"to all") as arrived:
            send(lab, "A", "la", EVERYBODY, ODD, b"to all" * 10)
        assert len(arrived) == 1
    assert [frame for frame in sent if frame.vni == vni(lab, "loud") and frame.to_many], "the capture sees what passes"
    assert not [frame for frame in passed if frame.vni == vni(lab, "loud") and frame.to_many], "C has none"
    lab.run("C", "plait", "run", "--name", "lc", "--network", "loud")
    SANDBOXES["loud"]["lc"] = "C"
    until("now it has", lambda: hears(lab, "lc", "la", 1) == "hello", 10)
    lab.run("C", "plait", "rm", "lc")
    del SANDBOXES["loud"]["lc"]
    flood = f"00:00:00:00:00:00 dev pl-x{vni(lab, 'loud')} dst {lab.address('C')}"
    until("and no more", lambda: flood not in lab.run("A", "bridge", "fdb", "show").stdout, 5)


@pytest.mark.parametrize("outsider", ["la2", "lb2"])
def test_a_group_is_passed_on_to_members_alone(lab: Lab, outsider: str) -> None:
    with seen(lab, host_of(outsider), outsider, IP4, 3) as arrived:
        assert hears(lab, "lb", "la") == "hello"
    assert not [frame for frame in arrived if frame[:6].hex(":") == GROUP_MAC]


def test_multicast_is_switched_on_and_off_while_containers_run(lab: Lab) -> None:
    assert hears(lab, "qb", "qa", 1) == "nothing"
    lab.run("B", "plait", "network", "set", "quiet", "-o", "multicast=true")
    until("it arrives", lambda: hears(lab, "qb", "qa", 1) == "hello", 10)
    as_planned(lab, "A", "B", "C")
    lab.run("B", "plait", "network", "set", "quiet", "-o", "multicast=false")
    until("it does not", lambda: hears(lab, "qb", "qa", 1) == "nothing", 10)
    as_planned(lab, "A", "B", "C")


def test_an_address_that_a_container_gave_itself_is_found_by_broadcast_where_there_is_any(lab: Lab) -> None:
    for network, name, own, found in (("loud", "lb", "10.67.0.200/24", True), ("quiet", "qb", "10.66.0.200/24", False)):
        inside(lab, name, "ip", "addr", "add", own, "dev", "eth0")
        asks = lambda name=name, own=own: pings(lab, f"{name[0]}a", own.partition("/")[0])  # noqa: E731
        assert not asks(), "what it sends under that address is dropped"
        lab.run("B", "plait", "network", "set", network, "-o", "spoofing=allow")
        as_planned(lab, "A", "B", "C")
        assert asks() is found
        inside(lab, name, "ip", "addr", "del", own, "dev", "eth0")
        lab.run("B", "plait", "network", "set", network, "-o", "spoofing=drop")


def test_the_tunnel_changes_while_containers_run(lab: Lab) -> None:
    before = vni(lab, "quiet")
    for number in (77, before):
        lab.run("C", "plait", "network", "set", "quiet", "-o", f"vni={number}")
        as_planned(lab, "A", "B", "C")
        until("it carries", lambda: pings(lab, "qa", address(lab, "qb")), 5)
        assert f"pl-x{number} " in lab.run("A", "ip", "-br", "link").stdout
    assert "pl-x77" not in lab.run("A", "ip", "-br", "link").stdout


def rows_of(lab: Lab, host: str, mac: str) -> set[str]:
    """Where frames for a MAC go on a host: underlay addresses, or a port of its own."""
    rows = [row for row in lab.run(host, "bridge", "fdb", "show").stdout.splitlines() if row.startswith(mac)]
    return {row.partition("dst ")[2].split()[0] if " dst " in row else row.split()[2] for row in rows}


def test_an_address_that_moves_to_another_host_leaves_nothing_behind(lab: Lab) -> None:
    lab.run("A", "plait", "ipam", "reserve", "quiet", "mover", "10.66.0.77")
    lab.run("B", "plait", "run", "--name", "mover", "--network", "quiet")
    until("it is there", lambda: pings(lab, "qa", "10.66.0.77"), 5)
    before = mac(lab, "mover", "B")
    lab.run("B", "plait", "rm", "mover")
    lab.run("C", "plait", "run", "--name", "mover", "--network", "quiet")
    until("it answers from there", lambda: pings(lab, "qa", "10.66.0.77") and pings(lab, "qb", "10.66.0.77"), 5)
    after, tunnel = mac(lab, "mover", "C"), f"pl-x{vni(lab, 'quiet')}"
    assert after in inside(lab, "qa", "ip", "neigh", "show", "10.66.0.77")
    for host in "AB":
        assert after in lab.run(host, "ip", "neigh", "show", "10.66.0.77").stdout
        assert rows_of(lab, host, after) == {lab.address("C"), tunnel}
        assert before == after or not rows_of(lab, host, before)
    assert all(row.startswith("pl-e") for row in rows_of(lab, "C", after))
    as_planned(lab, "A", "B", "C")
    lab.run("C", "plait", "rm", "mover")
    for host in "ABC":
        until("it is gone", lambda host=host: not rows_of(lab, host, after), 5)
        assert lab.run(host, "ip", "neigh", "show", "10.66.0.77").stdout == ""


HARM = {
    "bridge": "ip link del {bridge}",
    "tunnel": "ip link del {tunnel}",
    "port": "ip link set {tunnel} nomaster",
    "flags": "bridge link set dev {tunnel} neigh_suppress off flood on learning on",
    "rows": "bridge fdb show dev {tunnel} | while read mac rest; do bridge fdb del $mac dev {tunnel} $rest; done 2>/dev/null; true",
    "neighbours": "for a in $(ip neigh show dev {bridge} | cut -d' ' -f1); do ip neigh del $a dev {bridge}; done",
    "own": "bridge fdb show br {bridge} | grep pl-e | grep static | while read mac _ dev _; do bridge fdb del $mac dev $dev master; done",
}


@pytest.mark.parametrize("harm", HARM)
def test_what_somebody_breaks_is_put_back(lab: Lab, harm: str) -> None:
    tunnel = f"pl-x{vni(lab, 'quiet')}"
    bridge = json.loads(lab.run("A", "ip", "-j", "link", "show", "dev", tunnel).stdout)[0]["master"]
    held = ("sh", "-c", f"bridge -d link show dev {tunnel}; bridge fdb show br {bridge} | sort; ip neigh show dev {bridge} | sort")
    lab.run("A", "sh", "-c", HARM[harm].format(bridge=bridge, tunnel=tunnel))
    as_planned(lab, "A")
    until("it carries again", lambda: pings(lab, "qa", address(lab, "qb")) and pings(lab, "qb", address(lab, "qa")), 5)
    assert "static" in lab.run("A", *held).stdout and "neigh_suppress on" in lab.run("A", *held).stdout


def test_rows_of_others_stay(lab: Lab) -> None:
    lab.run(
        "A", "sh", "-c", "ip link add theirs type bridge; ip link add their0 type veth peer name their1; ip link set their0 master theirs"
    )
    lab.run("A", "bridge", "fdb", "add", "02:00:00:00:be:ef", "dev", "their0", "master", "static")
    lab.run("A", "ip", "neigh", "add", "192.0.2.9", "dev", "theirs", "lladdr", "02:00:00:00:be:ef", "nud", "permanent")
    lab.run("A", "plait", "run", "--name", "more", "--network", "quiet")
    as_planned(lab, "A")
    assert "02:00:00:00:be:ef" in lab.run("A", "bridge", "fdb", "show", "br", "theirs").stdout
    assert "02:00:00:00:be:ef" in lab.run("A", "ip", "neigh", "show", "dev", "theirs").stdout
    lab.run("A", "plait", "rm", "more")
    lab.run("A", "sh", "-c", "ip link del theirs; ip link del their0")


def test_hosts_the_outside_names_and_published_ports_work_as_ever(lab: Lab) -> None:
    for host in "AC":
        for to in addresses(lab, "qb"):
            assert lab.run(host, "ping", "-c1", "-W1", to, check=False).returncode == 0, f"{host} to {to}"
    assert pings(lab, "qa", lab.address("C")), "out by NAT"
    assert inside(lab, "qa", "dig", "+short", "+time=1", "@10.66.0.1", "qb").strip() == address(lab, "qb")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = lab.popen("B", "plait", "exec", "qb", "--", "python3", "-m", "http.server", "80", **quiet)
    fetch = ("curl", "-sS", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}")
    try:
        until("it listens", lambda: lab.run("B", *fetch, "http://127.0.0.1:8080/", check=False).stdout == "200", 5)
        assert lab.run("A", *fetch, f"http://{lab.address('B')}:8080/", check=False).stdout == "200"
        assert lab.run("A", *fetch, f"http://{address(lab, 'qb')}/", check=False).stdout == "200", "a host, over the tunnel"
        for name in ("qa", "qb"):
            assert inside(lab, name, *fetch, f"http://{lab.address('B')}:8080/") == "200", f"{name}, itself too"
    finally:
        server.kill()
        server.wait()


def test_an_exposed_host_and_the_containers_of_an_internal_network_reach_each_other(lab: Lab) -> None:
    own = lab.run("A", "plait", "expose", "loud").stdout.split()
    try:
        for here, there in zip(own, addresses(lab, "lb"), strict=True):
            until("they reach it", lambda here=here: pings(lab, "lb", here) and pings(lab, "la", here), 5)
            assert lab.run("A", "ping", "-c1", "-W1", there, check=False).returncode == 0
        as_planned(lab, "A", "B", "C")
    finally:
        lab.run("A", "plait", "expose", "loud", "--off")
    until("no more", lambda: not pings(lab, "lb", own[0]), 5)


def test_networks_stay_apart(lab: Lab) -> None:
    assert not pings(lab, "qa", address(lab, "oa")) and not pings(lab, "oa", address(lab, "qb"))
    with seen(lab, "A", "oa", ODD, 1) as here, seen(lab, "B", "qb", ODD, 1) as there:
        send(lab, "A", "la", EVERYBODY, ODD, b"to all" * 10)
        send(lab, "A", "oa", mac(lab, "qb"), ODD, b"to one" * 10)
    assert here == there == []
    assert not pings(lab, "la", lab.address("B")), "an internal one has no way out"


def test_the_path_says_that_nothing_but_the_tunnel_carries_frames(lab: Lab) -> None:
    rows = json.loads(lab.run("A", "plait", "paths", "--json").stdout)
    why = {network: row["why"] for row in rows for network in row["networks"] if row["node"] == "B"}
    assert why["quiet"] == why["loud"] == "frames go through the tunnel alone"


REFUSED = {
    "-o layer2=true --backend hybrid": "layer2: 'true' means nothing to backend hybrid; leave it out; it is an option of vxlan",
    "-o layer2=true --backend wireguard": "means nothing to backend wireguard",
    "-o layer2=true -o isolated=true -o multicast=true": "isolated: 'true' leaves multicast=true nobody to send to; leave one of them out",
    "-o multicast=true": "multicast: 'true' needs containers that are on one link; add -o layer2=true",
    "-o layer2=yes": "layer2: 'yes' is not possible; true or false",
    "-o layer2=true -o vni=1": "is that of default",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused_and_says_why(lab: Lab, words: str) -> None:
    asked = lab.run("A", "plait", "network", "create", "bad", *words.split(), check=False)
    assert asked.returncode != 0 and REFUSED[words] in asked.stderr
