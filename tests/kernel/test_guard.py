# SPDX-License-Identifier: Apache-2.0
"""What containers send under addresses that are not theirs, as frames: one host with containers on networks of each kind."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import pytest
from tests.support.kernel import converge, within

from plait.ipam import image
from plait.kernel.linux import LinuxKernel, create_netns, delete_netns, port_into
from plait.kernel.linux.netns import in_thread, inside
from plait.model.addr import link_local
from plait.model.cluster import Block, Container, Endpoint, Network, Node, PortMapping, Snapshot
from plait.model.hostlinks import BridgePort
from plait.model.spoofing import LABEL, OPTION
from plait.plan import Local, plan_node
from plait.plan.guard import FORGERS
from plait.shaping import Limiting, Means

pytestmark = pytest.mark.root
T = TypeVar("T")
A, N, N6 = IPv4Address, IPv4Network, IPv6Network
ARP, IP4, IP6 = 0x0806, 0x0800, 0x86DD
EVERYBODY = "ff:ff:ff:ff:ff:ff"
OTHER_MAC = "02:66:66:66:66:66"
MARK = b"forged-or-not-forged"
KINDS = ("routed", "bridge", "layer2")
WAIT_S, QUIET_S = 1.0, 0.1


def _network(kind: str, number: int) -> Network:
    options = {"layer2": "true"} if kind == "layer2" else {}
    backend, subnet6 = ("bridge" if kind == "bridge" else "vxlan"), N6(f"fd00:{number}::/64")
    subnet, gateway, gateway6 = N(f"10.{number}.0.0/16"), A(f"10.{number}.0.1"), IPv6Address(f"fd00:{number}::1")
    return Network(kind, subnet, gateway, 24, backend, number, options=options, subnet6=subnet6, gateway6=gateway6)


NETWORKS = {kind: _network(kind, number) for number, kind in enumerate(KINDS, 28)}


def _endpoint(network: Network, name: str, last: int, container: str = "", *ports: PortMapping) -> Endpoint:
    address = A(int(network.subnet.network_address) + 256 + last)
    mac, dev = f"02:10:{network.vni:02x}:00:00:{last:02x}", f"pl-e{network.name[0]}{name}"
    at = image(network, address)
    return Endpoint(f"{network.name}-{name}", network.name, "A", address, mac, dev, "sandbox", container, name, address6=at, ports=ports)


ENDPOINTS = {
    endpoint.id: endpoint
    for network in NETWORKS.values()
    for endpoint in (_endpoint(network, "me", 2, "", PortMapping("udp", 8000 + network.vni, 80)), _endpoint(network, "peer", 3))
} | {endpoint.id: endpoint for endpoint in (_endpoint(NETWORKS[kind], "both", 9, "both") for kind in ("routed", "bridge"))}


def _on_docker(name: str, last: int) -> Endpoint:
    own = _endpoint(NETWORKS["routed"], name, 256 + last)
    return replace(own, id=f"docker-{name}", mac=f"02:42:0a:1c:02:{last:02x}", dev=f"veth{name}")


ON_DOCKER = {e.id: e for e in (_on_docker("me", 7), _on_docker("peer", 8))}
PORTS = {name: BridgePort(e.dev, e.mac) for name, e in ON_DOCKER.items()}
IFNAMES = {"routed-both": "eth0", "bridge-both": "eth1"}


@dataclass
class Host:
    """The namespaces of one host "A", and of its containers by endpoint id; `both` is on two networks."""

    folder: Path
    fast: bool
    snapshot: Snapshot

    def path(self, name: str) -> Path:
        return self.folder / ("both" if name.endswith("-both") else name)

    def inside(self, name: str, work: Callable[[], T]) -> T:
        def there() -> T:
            with self.path(name).open() as file, inside(file.fileno()):
                return work()

        return in_thread(there)

    def run(self, name: str, command: str) -> str:
        done = subprocess.run(within(self.path(name), command), capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def converge(
        self, snapshot: Snapshot | None = None, *, strict: bool = False, ports: Mapping[str, BridgePort] = MappingProxyType({})
    ) -> int:
        limiting = Limiting(means=Means.of({"tbf", "ifb", "fwd", "metered", "egress"}))
        links = frozenset({"docker0", *(port.dev for port in ports.values())})
        local = Local(fast_path=self.fast, strict=strict, links=links, limiting=limiting, bridged=ports)

        def work() -> int:
            with contextlib.closing(LinuxKernel()) as kernel:
                return converge(kernel, plan_node(snapshot or self.snapshot, local))

        return self.inside("A", work)

    def forged(self) -> dict[str, int]:
        def work() -> dict[str, int]:
            with contextlib.closing(LinuxKernel()) as kernel:
                return kernel.counted_links(FORGERS)

        return self.inside("A", work)

    def dropped(self, name: str, frame: bytes) -> int:
        """How many packets of the container more are counted as forged after it has sent `frame`."""
        dev = (ENDPOINTS | ON_DOCKER)[name].dev
        before = self.forged().get(dev, 0)
        self.send(name, frame)
        return self.forged().get(dev, 0) - before

    def send(self, name: str, frame: bytes) -> None:
        with self.inside(name, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
            sock.bind((IFNAMES.get(name, "eth0"), 0))
            sock.send(frame)

    def arrives(self, name: str, frame: bytes, at: str, wait_s: float) -> bool:
        """Whether `frame`, of the container `name`, comes to the container `at`, from its source address on: routers change the rest."""
        with self.inside(at, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))) as ear:
            ear.bind((IFNAMES.get(at, "eth0"), 3))
            ear.settimeout(wait_s)
            self.send(name, frame)
            with contextlib.suppress(TimeoutError):
                while True:
                    if frame[26:] in ear.recv(2000):
                        return True
            return False

    def towards(self, name: str, peer: str) -> str:
        """The MAC that frames from one container to the other go to first."""
        if ENDPOINTS[name].network != "routed":
            return ENDPOINTS[peer].mac
        return self.mac("A", ENDPOINTS[name].dev)

    def mac(self, name: str, link: str) -> str:
        return self.run(name, f"ip -br link show dev {link}").split()[2]


def allowing(snapshot: Snapshot, endpoint: str) -> Snapshot:
    """The same where this container may send under any address."""
    return replace(snapshot, endpoints={**snapshot.endpoints, endpoint: replace(snapshot.endpoints[endpoint], labels={LABEL: "allow"})})


@pytest.fixture(scope="module", params=[False, True], ids=["slow", "fast"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("guard")
    node = Node("A", "A" * 8, A("198.18.0.1"), 1500, "02:00:00:00:00:01", A("10.28.1.0"))
    blocks = [Block(n.name, N((int(n.subnet.network_address) + 256, 24)), "A") for n in NETWORKS.values()]
    blocks.append(Block("routed", N("10.28.2.0/24"), "A", "bridge"))
    made = Host(folder, request.param, Snapshot("A", 1, {"A": node}, frozenset("A"), NETWORKS))
    endpoints = {
        id_: replace(e, netns=str(made.path(id_)), ifname=IFNAMES.get(id_, "eth0"), default_route=id_ != "bridge-both")
        for id_, e in ENDPOINTS.items()
    }
    made.snapshot = replace(made.snapshot, endpoints=endpoints, blocks={(b.network, b.cidr): b for b in blocks})
    names = {made.path(name) for name in ("A", *ENDPOINTS)}
    try:
        for path in names:
            create_netns(path)
        made.run("A", "ip link set lo up")
        made.run("A", "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")  # no other rule may drop
        made.run("A", "ip link add docker0 type bridge")
        made.run("A", "ip addr add 10.28.2.1/24 dev docker0")
        made.run("A", "ip link set docker0 up")
        made.converge()
        assert made.converge() == 0
        yield made
    finally:
        for path in names:
            delete_netns(path)


@contextlib.contextmanager
def strict_host(host: Host) -> Iterator[None]:
    host.run("A", "sysctl -qw net.ipv4.conf.all.rp_filter=1")
    try:
        yield
    finally:
        host.run("A", "sysctl -qw net.ipv4.conf.all.rp_filter=0")
        for dev in ("pl-erboth", "pl-ebboth"):
            host.run("A", f"sysctl -qw net.ipv4.conf.{dev}.rp_filter=0")
        for _ in range(2):  # routes go with the addresses that they are spoken from
            host.converge()


@contextlib.contextmanager
def beside(host: Host, name: str, link: str, address: str) -> Iterator[None]:
    """A namespace `name` with `link` to a link of the host called like it."""
    path = host.folder / name
    create_netns(path)
    try:
        host.run("A", f"ip link add {name} type veth peer name {link} netns {path}")
        host.run("A", f"ip link set {name} up")
        host.run(name, f"ip addr add {address} dev {link}")
        host.run(name, f"ip link set {link} up")
        yield
    finally:
        host.run("A", f"ip link del {name}")
        delete_netns(path)


# --- frames


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(source: str, to: str, kind: int, body: bytes) -> bytes:
    return raw(to) + raw(source) + struct.pack("!H", kind) + body


def checksum(data: bytes) -> int:
    total = sum(int(word) for word in struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def udp(port: int, source_port: int = 9000) -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(MARK), 0) + MARK


def ip4(source: str, to: str, payload: bytes, protocol: int = 17) -> bytes:
    ends = ip_address(source).packed + ip_address(to).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ip6(source: str, to: str, payload: bytes, protocol: int = 17, hops: int = 64) -> bytes:
    ends = ip_address(source).packed + ip_address(to).packed
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + ends + payload


def claim(mac: str, address: str) -> bytes:
    """A gratuitous ARP answer."""
    of = raw(mac) + ip_address(address).packed
    return struct.pack("!HHBBH", 1, IP4, 6, 4, 2) + of + raw(EVERYBODY) + ip_address(address).packed + MARK


def advertisement(source: str, target: str, *, hidden: bool = False) -> bytes:
    """A neighbour advertisement; `hidden`: behind a header of options that do nothing, whose bytes say the sender's address where that of
    the advertisement would be."""
    body = struct.pack("!BBHI", 136, 0, 0, 0x20 << 24) + ip_address(target).packed + MARK
    return ip6(
        source,
        "ff02::1",
        struct.pack("!BBBB", 58, 2, 1, 20) + bytes(4) + ip_address(source).packed + body if hidden else body,
        60 if hidden else 58,
        255,
    )


def icmp6(source: str, kind: int) -> bytes:
    return ip6(source, "ff02::1", struct.pack("!BBHI", kind, 0, 0, 0) + bytes(16) + MARK, 58, 255)


def forgeries(host: Host, kind: str) -> dict[str, bytes]:
    """Frames of the container `me` that each have one address of somebody else, by which one that is."""
    me, peer = ENDPOINTS[f"{kind}-me"], ENDPOINTS[f"{kind}-peer"]
    return forgeries_of(me, peer, host.towards(me.id, peer.id), kind != "routed")


def forgeries_of(me: Endpoint, peer: Endpoint, to: str, near: bool) -> dict[str, bytes]:
    """`near`: they are neighbours on one link. `to`: the MAC that frames go to first."""
    network, own, theirs, theirs6 = NETWORKS[me.network], str(me.address), str(peer.address), str(peer.address6)
    victim, six, group = str(A(int(peer.address) + 50)), str(me.address6), "33:33:00:00:00:01"
    victim6 = str(image(network, A(victim)))
    found = {
        "a neighbour's": ethernet(me.mac, to, IP4, ip4(victim, theirs, udp(7))),
        "a neighbour's, from a published port": ethernet(me.mac, to, IP4, ip4(victim, theirs, udp(7, 80))),
        "this host's": ethernet(me.mac, to, IP4, ip4("10.28.1.0", theirs, udp(7))),
        "the gateway's": ethernet(me.mac, to, IP4, ip4(str(network.gateway), theirs, udp(7))),
        "an outsider's": ethernet(me.mac, to, IP4, ip4("203.0.113.9", theirs, udp(7))),
        "nobody's": ethernet(me.mac, to, IP4, ip4("0.0.0.0", theirs, udp(7))),
        "another MAC": ethernet(OTHER_MAC, to, IP4, ip4(own, theirs, udp(7))),
        "a neighbour's of IPv6": ethernet(me.mac, to, IP6, ip6(victim6, theirs6, udp(7))),
        "nobody's of IPv6": ethernet(me.mac, to, IP6, ip6("::", theirs6, udp(7))),
        "a neighbour's, by ARP": ethernet(me.mac, EVERYBODY, ARP, claim(me.mac, victim)),
    }
    if near:
        found |= {
            "another link-local one": ethernet(me.mac, to, IP6, ip6("fe80::99", theirs6, udp(7))),
            "a neighbour's, advertised": ethernet(me.mac, group, IP6, advertisement(six, victim6)),
            "a neighbour's, advertised behind a header": ethernet(me.mac, group, IP6, advertisement(six, victim6, hidden=True)),
            "a router's": ethernet(me.mac, group, IP6, icmp6(str(link_local(me.mac)), 134)),
        }
    return found


CASES = [
    (kind, name)
    for kind in KINDS
    for name in (
        "a neighbour's",
        "a neighbour's, from a published port",
        "this host's",
        "the gateway's",
        "an outsider's",
        "nobody's",
        "another MAC",
        "a neighbour's of IPv6",
        "nobody's of IPv6",
        "a neighbour's, by ARP",
        "another link-local one",
        "a neighbour's, advertised",
        "a neighbour's, advertised behind a header",
        "a router's",
    )
    if kind != "routed" or (name not in ("another link-local one", "a router's") and "advertised" not in name)
]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=str)
def test_what_is_forged_is_dropped_and_counted(host: Host, kind: str, name: str) -> None:
    me, peer, frame = f"{kind}-me", f"{kind}-peer", forgeries(host, kind)[name]
    assert host.dropped(me, frame) == 1
    assert not host.arrives(me, frame, peer, QUIET_S)


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_to_wait_for_its_turn_is_judged_before(host: Host, kind: str) -> None:
    """What comes back from the device that holds it back meets no chain of its link."""
    me = ENDPOINTS[f"{kind}-me"]
    slow = replace(host.snapshot.endpoints[me.id], labels={"plait.limit.out": "100M"})
    host.converge(replace(host.snapshot, endpoints={**host.snapshot.endpoints, me.id: slow}))
    try:
        assert "tbf" in host.run("A", f"tc qdisc show dev {me.dev.replace('pl-e', 'pl-i')}")
        for name, frame in forgeries(host, kind).items():
            assert host.dropped(me.id, frame) == 1, name
    finally:
        host.converge()


@pytest.mark.parametrize("kind", ["bridge", "layer2"])
def test_who_may_forge_does(host: Host, kind: str) -> None:
    """The same frames: it is for the guard alone that they do not arrive."""
    me, peer = f"{kind}-me", f"{kind}-peer"
    before = host.forged().get(ENDPOINTS[me].dev, 0)
    host.converge(allowing(host.snapshot, me))
    try:
        assert {name for name, frame in forgeries(host, kind).items() if not host.arrives(me, frame, peer, WAIT_S)} == set()
        assert host.forged().get(ENDPOINTS[me].dev, 0) == before
    finally:
        host.converge()


def test_a_whole_network_may_be_let_forge(host: Host) -> None:
    networks = {**NETWORKS, "bridge": replace(NETWORKS["bridge"], options={OPTION: "allow"})}
    frame = forgeries(host, "bridge")["a neighbour's"]
    host.converge(replace(host.snapshot, networks=networks))
    try:
        assert host.arrives("bridge-me", frame, "bridge-peer", WAIT_S)
        assert host.dropped("routed-me", forgeries(host, "routed")["a neighbour's"]) == 1, "others may not"
    finally:
        host.converge()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_its_own_passes(host: Host, kind: str) -> None:
    me, peer = ENDPOINTS[f"{kind}-me"], ENDPOINTS[f"{kind}-peer"]
    to = host.towards(me.id, peer.id)
    for _ in range(2):  # the first may wait for its neighbour to be found
        host.send(peer.id, ethernet(peer.mac, host.towards(peer.id, me.id), IP4, ip4(str(peer.address), str(me.address), udp(7))))
    before = host.forged().get(me.dev, 0)
    assert host.arrives(me.id, ethernet(me.mac, to, IP4, ip4(str(me.address), str(peer.address), udp(7))), peer.id, WAIT_S)
    assert host.arrives(me.id, ethernet(me.mac, to, IP6, ip6(str(me.address6), str(peer.address6), udp(7))), peer.id, WAIT_S)
    assert host.forged().get(me.dev, 0) == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_before_there_is_an_address_passes(host: Host, kind: str) -> None:
    """DHCP, the search for duplicate addresses, membership of groups, ARP probes (RFC 5227); and link-local addresses."""
    me = ENDPOINTS[f"{kind}-me"]
    group, local = "33:33:00:00:00:01", str(link_local(me.mac))
    frames = {
        "dhcp": ethernet(me.mac, EVERYBODY, IP4, ip4("0.0.0.0", "255.255.255.255", udp(67, 68))),
        "igmp": ethernet(me.mac, "01:00:5e:00:00:16", IP4, ip4("0.0.0.0", "224.0.0.22", MARK, 2)),
        "probe": ethernet(me.mac, EVERYBODY, ARP, struct.pack("!HHBBH", 1, IP4, 6, 4, 1) + raw(me.mac) + bytes(10) + me.address.packed),
        "dad": ethernet(me.mac, group, IP6, icmp6("::", 135)),
        "mld": ethernet(me.mac, group, IP6, icmp6("::", 143)),
        "solicitation": ethernet(me.mac, group, IP6, icmp6(local, 135)),
        "own advertisement": ethernet(me.mac, group, IP6, advertisement(str(me.address6), str(me.address6))),
        "own link-local one": ethernet(me.mac, group, IP6, advertisement(local, local)),
    }
    assert {name: host.dropped(me.id, frame) for name, frame in frames.items()} == dict.fromkeys(frames, 0)


@pytest.mark.parametrize(("link", "of"), [("routed", "bridge"), ("bridge", "routed")])
def test_a_container_with_two_networks_answers_by_either(host: Host, link: str, of: str) -> None:
    """Its own routes say by which, whatever address it answers from."""
    sender, own = ENDPOINTS[f"{link}-both"], ENDPOINTS[f"{of}-both"]
    to = host.towards(sender.id, f"{link}-peer")
    frame = ethernet(sender.mac, to, IP4, ip4(str(own.address), str(ENDPOINTS[f"{link}-peer"].address), udp(7)))
    assert host.dropped(sender.id, frame) == 0
    assert host.dropped(sender.id, ethernet(own.mac, to, IP4, ip4(str(sender.address), "203.0.113.9", udp(7)))) == 1, "not by its MAC"


@pytest.mark.parametrize("strict", [True, False])
def test_a_port_that_is_published_on_the_second_network_answers_where_sources_are_checked(host: Host, strict: bool) -> None:
    """With rp_filter=1 the host would not take an answer from a link that it would not send to."""
    own = replace(host.snapshot.endpoints["bridge-both"], ports=(PortMapping("udp", 8088, 80),))
    snapshot = replace(host.snapshot, endpoints={**host.snapshot.endpoints, own.id: own})
    with strict_host(host), beside(host, "outside", "wire", "198.51.100.2/24"):
        host.run("A", "ip addr add 198.51.100.1/24 dev outside")
        host.converge(snapshot, strict=strict)
        assert "dev eth0" in host.run("routed-both", "ip route get 198.51.100.2"), "the answer leaves by the first network"
        with host.inside("bridge-both", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server:
            server.bind((str(own.address), 80))
            server.settimeout(WAIT_S)
            with host.inside("outside", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
                client.settimeout(WAIT_S if strict else QUIET_S)
                client.sendto(b"ask", ("198.51.100.1", 8088))
                _, peer = server.recvfrom(9)
                server.sendto(b"answer", peer)
                answered = b""
                with contextlib.suppress(TimeoutError):
                    answered = client.recv(9)
        assert (answered == b"answer") == strict, "what is not loosened drops it"


def test_a_container_on_dockers_bridge_has_no_address_of_plaits_outside_its_block(host: Host) -> None:
    """Of its link, which is Docker's, nobody knows; what the bridge passes on is judged."""
    with beside(host, "docker", "eth0", "10.28.2.7/24"):
        host.run("A", "ip link set docker master docker0")
        to, mac = host.mac("A", "docker0"), host.mac("docker", "eth0")
        target = str(ENDPOINTS["routed-peer"].address)
        host.run("docker", "ip route add default via 10.28.2.1")
        host.run("docker", f"sh -c 'ping -c1 -W2 {target} || ping -c1 -W2 {target}'")  # the first may wait for its neighbour to be found
        before = host.forged().get("docker0", 0)
        with host.inside("docker", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
            sock.bind(("eth0", 0))
            for source in ("10.28.2.8", "10.28.1.3", "10.29.1.3", "10.28.1.0"):
                sock.send(ethernet(mac, to, IP4, ip4(source, target, udp(7))))
        assert host.forged().get("docker0", 0) - before == 3
        assert host.converge() == 0


@contextlib.contextmanager
def on_docker(host: Host) -> Iterator[Snapshot]:
    """Two containers of Docker's on its bridge, and what the agent knows of them."""
    paths = {name: host.folder / name for name in ON_DOCKER}
    try:
        for name, e in ON_DOCKER.items():
            create_netns(paths[name])
            host.run("A", f"ip link add {e.dev} type veth peer name eth0 address {e.mac} netns {paths[name]}")
            host.run("A", f"ip link set {e.dev} master docker0 up")
            host.run(name, f"ip addr add {e.address}/24 dev eth0")
            host.run(name, f"ip addr add {e.address6}/64 dev eth0 nodad")
            host.run(name, "ip link set eth0 up")
        made = (
            Container(name, e.name, "A", "docker", addresses={"routed": e.address}, elsewhere=e.present[1:])
            for name, e in ON_DOCKER.items()
        )
        yield replace(host.snapshot, containers={("A", container.id): container for container in made})
    finally:
        for name, e in ON_DOCKER.items():
            delete_netns(paths[name])
            subprocess.run(within(host.path("A"), f"ip link del {e.dev}"), capture_output=True, timeout=20, check=False)
        host.converge()


def on_bridge(source: str) -> dict[str, bytes]:
    """What one container there forges for the other."""
    me, peer = ON_DOCKER[source], ON_DOCKER["docker-peer" if source == "docker-me" else "docker-me"]
    return forgeries_of(me, peer, peer.mac, True)


def test_what_a_container_on_dockers_bridge_forges_is_dropped_and_counted_as_its_own(host: Host) -> None:
    with on_docker(host) as snapshot:
        host.converge(snapshot, ports=PORTS)
        assert host.converge(snapshot, ports=PORTS) == 0
        others = {link: packets for link, packets in host.forged().items() if link != "vethme"}
        for name, frame in on_bridge("docker-me").items():
            assert host.dropped("docker-me", frame) == 1, name
            assert not host.arrives("docker-me", frame, "docker-peer", QUIET_S), name
        counted = host.forged()
        assert {link: packets for link, packets in counted.items() if link != "vethme"} == others, "and as nobody else's"
        me, peer = ON_DOCKER["docker-me"], ON_DOCKER["docker-peer"]
        own = {
            "IPv4": ethernet(me.mac, peer.mac, IP4, ip4(str(me.address), str(peer.address), udp(7))),
            "IPv6": ethernet(me.mac, peer.mac, IP6, ip6(str(me.address6), str(peer.address6), udp(7))),
            "ARP": ethernet(me.mac, EVERYBODY, ARP, claim(me.mac, str(me.address))),
            "advertisement": ethernet(me.mac, EVERYBODY, IP6, advertisement(str(me.address6), str(me.address6))),
        }
        assert [name for name, frame in own.items() if not host.arrives(me.id, frame, peer.id, WAIT_S)] == []
        assert host.forged() == counted


@pytest.mark.parametrize("by", ["label", "network"])
def test_who_may_forge_on_dockers_bridge_does(host: Host, by: str) -> None:
    """One container by its label, to the host as well; or all by the network's option, but for who says otherwise."""
    words = {"docker-me": {LABEL: "allow"}} if by == "label" else {"docker-peer": {LABEL: "drop"}}
    with on_docker(host) as snapshot:
        containers = {key: replace(c, labels=words.get(c.id, {})) for key, c in snapshot.containers.items()}
        options = {} if by == "label" else {OPTION: "allow"}
        networks = {**NETWORKS, "routed": replace(NETWORKS["routed"], options=options)}
        host.converge(replace(snapshot, containers=containers, networks=networks), ports=PORTS)
        frames = on_bridge("docker-me")
        counted = host.forged()
        assert {name for name, frame in frames.items() if not host.arrives("docker-me", frame, "docker-peer", WAIT_S)} == set()
        host.send("docker-me", ethernet(OTHER_MAC, host.mac("A", "docker0"), IP4, ip4("10.28.1.3", "10.28.1.2", udp(7))))
        assert host.forged() == counted
        assert host.dropped("docker-peer", on_bridge("docker-peer")["a neighbour's"]) == 1, "the other may not"


def test_a_link_of_dockers_that_goes_before_its_chain_is_written_keeps_nothing_else_from_the_kernel(host: Host) -> None:
    with on_docker(host) as snapshot:
        host.run("A", "ip link del vethpeer")
        host.converge(snapshot, ports=PORTS)  # which fails if anything is refused
        assert host.dropped("docker-me", on_bridge("docker-me")["another MAC"]) == 1
        host.run("A", "ip link del vethme")
        host.converge(snapshot)
        assert "veth" not in host.run("A", "nft list table netdev plait"), "what is said of it goes with it"


def test_the_port_that_leads_into_a_namespace_is_found_whatever_is_called_how_inside(host: Host) -> None:
    with on_docker(host):
        host.run("docker-peer", "ip link set eth0 down")
        host.run("docker-peer", f"ip link set eth0 name other address {ON_DOCKER['docker-me'].mac}")
        asked = {**{str(host.folder / name): "docker0" for name in ON_DOCKER}, str(host.path("routed-me")): "docker0"}

        def found() -> list[str]:
            return [port_into(path, bridge) for path, bridge in asked.items()] + [port_into("/nowhere", "docker0"), port_into("/", "none")]

        assert host.inside("A", found) == ["vethme", "vethpeer", "", "", ""]
        assert host.inside("A", lambda: port_into(str(host.path("A")), "docker0")) == "", "nor its own"
        assert host.inside("A", lambda: port_into(str(host.path("docker-me")), "nobodys")) == ""


def test_a_second_pass_finds_the_counters_as_they_should_be(host: Host) -> None:
    host.dropped("routed-me", forgeries(host, "routed")["another MAC"])
    assert host.converge() == 0, "what packets put into a set is no difference"
