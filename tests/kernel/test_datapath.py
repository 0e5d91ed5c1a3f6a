# SPDX-License-Identifier: Apache-2.0
"""Two hosts on a wire of their own, each with the plan of its node: what packets do. No agent, no engine, no way out."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import TypeVar

import pytest
from tests.support.kernel import converge, within

from plait.kernel.linux import LinuxKernel, create_netns, delete_netns
from plait.kernel.linux.netns import in_thread, inside
from plait.model.addr import IPAddress, IPNetwork
from plait.model.cluster import Block, Endpoint, Network, Node, PortMapping, Reach, Snapshot
from plait.plan import Local, plan_node
from plait.plan.guard import GUARDS
from plait.shaping import Limiting, Uplink

pytestmark = pytest.mark.root
T = TypeVar("T")
A, N = IPv4Address, IPv4Network
NETWORKS = (
    Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24),
    Network("other", N("10.29.0.0/16"), A("10.29.0.1"), 24),
    Network("inner", N("10.30.0.0/16"), A("10.30.0.1"), 24, internal=True),
)
NODES = tuple(Node(name, name * 8, A(f"198.18.0.{n}"), 1500, f"02:00:00:00:00:0{n}", A(f"10.28.{n}.0")) for n, name in ((1, "A"), (2, "B")))
WIRE = {"A": A("198.18.0.1"), "B": A("198.18.0.2")}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
WAIT_S = 1.0


def endpoint(name: str, network: str, node: str, last: int, *ports: PortMapping) -> Endpoint:
    second, third = {"default": 28, "other": 29, "inner": 30}[network], {"A": 1, "B": 2}[node]
    mac = f"02:10:{second:02x}:{third:02x}:00:{last:02x}"
    return Endpoint(name, network, node, A(f"10.{second}.{third}.{last}"), mac, f"pl-e{name}", "sandbox", name=name, ports=ports)


ENDPOINTS = (
    endpoint("web", "default", "A", 2, PortMapping("tcp", 8080, 80), PortMapping("tcp", 8081, 80, A("127.0.0.1"))),
    endpoint("near", "default", "A", 3),
    endpoint("far", "default", "B", 2),
    endpoint("stranger", "other", "A", 2),
    endpoint("foreign", "other", "B", 2),
    endpoint("safe", "inner", "A", 2),
    endpoint("vault", "inner", "B", 2),
)
BY_NAME = {e.name: e for e in ENDPOINTS}


class Hosts:
    """Namespaces by name: the hosts "A" and "B", and the containers of `ENDPOINTS`. `fast`: the plans have the fast path, and the
    `shortcut` of this link, and they know these limits (`limiting`), queues of A's link (`uplink`) and clients of published
    ports (`clients`), and drop what is forged (`guard`). `version`: of IP, what sockets are for unless said."""

    def __init__(self, folder: Path, fast: bool, shortcut: str = "") -> None:
        self.fast, self.shortcut, self.limiting, self.uplink = fast, shortcut, Limiting(), Uplink()
        self.clients: tuple[IPNetwork, ...] = ()
        self.underlay = ""
        self.guard, self.version = True, 4
        self.paths = {name: folder / name for name in ("A", "B", *BY_NAME)}
        self.snapshot = Snapshot(
            "A",
            1,
            {n.name: n for n in NODES},
            frozenset("AB"),
            {n.name: n for n in NETWORKS},
            {(b.network, b.cidr): b for b in _blocks()},
            {e.id: replace(e, netns=str(self.paths[e.name])) for e in ENDPOINTS},
        )

    def run(self, where: str, command: str) -> str:
        done = subprocess.run(within(self.paths[where], command), capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def converge(self, node: str, snapshot: Snapshot | None = None, gateway: bool = False) -> int:
        """One pass on a host; how many operations it took."""

        def work() -> int:
            with self.paths[node].open() as file, inside(file.fileno()):
                kernel = LinuxKernel()
                with contextlib.closing(kernel):
                    return converge(
                        kernel,
                        plan_node(
                            replace(snapshot or self.snapshot, me=node),
                            Local(
                                gateway=gateway,
                                fast_path=self.fast,
                                shortcut=self.shortcut,
                                underlay=self.underlay,
                                limiting=self.limiting,
                                uplink=self.uplink if node == "A" else Uplink(),
                                clients=self.clients,
                                guards=GUARDS if self.guard else frozenset(),
                            ),
                        ),
                    )

        return in_thread(work)

    def forget_paths(self, where: str) -> None:
        def work() -> None:
            with self.paths[where].open() as file, inside(file.fileno()), contextlib.closing(LinuxKernel()) as kernel:
                kernel.forget_paths()

        in_thread(work)

    def pings(self, where: str, to: IPAddress, options: str = "") -> bool:
        command = within(self.paths[where], f"ping -c1 -W1 {options} {to}")
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0

    def know_gateway(self, where: str) -> None:
        """The container does not ask for its gateway any more: one that asks with a forged address of the host gets no answer, and
        its own packets wait for that answer too."""
        gateway = self.snapshot.networks[BY_NAME[where].network].gateway
        self.pings(where, gateway)
        mac = re.search(r"lladdr (\S+)", self.run(where, f"ip neigh show {gateway} dev eth0"))
        assert mac is not None, "the gateway answers who has its address"
        self.run(where, f"ip neigh replace {gateway} lladdr {mac[1]} dev eth0 nud permanent")

    def hears(self, where: str, sender: str, source: IPAddress, wait_s: float = 0.2, port: int = 9999) -> bool:
        """Whether a datagram from `source`, which `sender` has, comes to this port of the container `where`."""
        with self.udp(where) as ear, self.udp(sender) as mouth:
            ear.bind(("0.0.0.0", port))
            ear.settimeout(wait_s)
            mouth.bind((str(source), 0))
            mouth.sendto(b"x", (str(BY_NAME[where].address), port))
            try:
                return ear.recv(9) == b"x"
            except TimeoutError:
                return False

    def udp(self, where: str) -> socket.socket:
        return self.socket(where, kind=socket.SOCK_DGRAM)

    def socket(
        self, where: str, family: int = 0, wait_s: float = WAIT_S, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """A socket, of TCP unless `kind` says another, of that namespace: it stays there whoever uses it."""

        def work() -> socket.socket:
            with self.paths[where].open() as file, inside(file.fileno()):
                return socket.socket(family or FAMILIES[self.version], kind, protocol)

        sock = in_thread(work)
        sock.settimeout(wait_s)
        return sock

    def connects(
        self, client: str, to: IPAddress, port: int, server: str = "web", listen: int = 80, size: int = 1, wait_s: float = WAIT_S
    ) -> IPAddress | None:
        """The address from which `server` sees a connection that `client` makes and sends `size` bytes over; None if it cannot."""
        family, everywhere = (socket.AF_INET6, "::") if to.version == 6 else (socket.AF_INET, "0.0.0.0")
        with self.socket(server, family) as listener, self.socket(client, family, wait_s) as caller:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((everywhere, listen))
            listener.listen()
            try:
                caller.connect((str(to), port))
            except OSError:
                return None
            answerer, peer = listener.accept()
            with answerer:
                answerer.settimeout(WAIT_S)
                answerer.sendall(b"x" * size)
                got = 0
                while got < size:
                    got += len(caller.recv(size))
            return ip_address(peer[0])


def _blocks() -> Iterator[Block]:
    for network in NETWORKS:
        for third, node in ((1, "A"), (2, "B")):
            yield Block(network.name, N((int(network.subnet.network_address) + (third << 8), 24)), node)


WAYS = ("slow", "fast", "shortcut")


@pytest.fixture(scope="module", params=WAYS)
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts"), request.param) as made:
        yield made


@contextlib.contextmanager
def two_hosts(
    folder: Path, way: str, *others: Network, linked: bool = False, before: Callable[[Hosts], None] = lambda _: None
) -> Iterator[Hosts]:
    """Both with their plans, packets taking this one of `WAYS`; `others` are networks in the place of those of their names; `linked`: the
    hosts have found each other on their link; `before`: done when the wire is there and no plan yet."""
    made = Hosts(folder, way != "slow", "wire" if way == "shortcut" else "")
    made.snapshot = replace(made.snapshot, networks={**made.snapshot.networks, **{network.name: network for network in others}})
    if linked:
        made.underlay = "wire"
        made.snapshot = replace(made.snapshot, reach={"A": Reach("A", ("B",)), "B": Reach("B", ("A",))})
    try:
        for path in made.paths.values():
            create_netns(path)
        made.run("A", f"ip link add wire type veth peer name wire netns {made.paths['B']}")
        for name, address in WIRE.items():
            made.run(name, "sysctl -qw net.ipv4.icmp_ratelimit=0")  # by default one error per second and peer, whichever test came before
            made.run(name, "ip link set lo up")
            made.run(name, f"ip addr add {address}/24 dev wire")
            made.run(name, "ip link set wire up")
        before(made)
        for name in WIRE:
            made.converge(name)
            assert made.converge(name) == 0
        yield made
    finally:
        for path in made.paths.values():
            delete_netns(path)


REACH: Mapping[tuple[str, str], bool] = {
    ("web", "near"): True,
    ("web", "far"): True,
    ("far", "web"): True,
    ("stranger", "foreign"): True,
    ("safe", "vault"): True,
    ("vault", "safe"): True,
    ("web", "stranger"): False,
    ("web", "foreign"): False,
    ("foreign", "near"): False,
    ("safe", "web"): False,
    ("web", "safe"): False,
    ("web", "vault"): False,
    ("vault", "far"): False,
}


@pytest.mark.parametrize(("client", "to"), REACH, ids="-".join)
def test_containers_of_one_network_reach_each_other_and_no_others(hosts: Hosts, client: str, to: str) -> None:
    seen = hosts.connects(client, BY_NAME[to].address, 80, to)
    assert seen == (BY_NAME[client].address if REACH[client, to] else None), "and they see each other's own address"


@pytest.mark.parametrize("host", ["A", "B"])
@pytest.mark.parametrize("to", ["web", "far"])
def test_hosts_reach_containers(hosts: Hosts, host: str, to: str) -> None:
    assert hosts.pings(host, BY_NAME[to].address)


def test_a_container_leaves_under_the_address_of_its_host(hosts: Hosts) -> None:
    assert hosts.connects("web", WIRE["B"], 9000, "B", 9000) == WIRE["A"]


def test_a_container_of_an_internal_network_does_not_leave(hosts: Hosts) -> None:
    assert "default" not in hosts.run("safe", "ip route")
    hosts.run("safe", "ip route add default via 10.30.0.1 dev eth0")
    assert not hosts.pings("safe", WIRE["B"]), "even with a route that somebody gave it"


@pytest.mark.parametrize(
    ("client", "to", "port"),
    [
        ("B", WIRE["A"], 8080),
        ("A", WIRE["A"], 8080),
        ("A", A("127.0.0.1"), 8080),
        ("A", A("127.0.0.1"), 8081),
        ("near", WIRE["A"], 8080),
        ("web", WIRE["A"], 8080),
        ("far", WIRE["A"], 8080),
    ],
    ids=str,
)
def test_a_published_port_answers(hosts: Hosts, client: str, to: IPv4Address, port: int) -> None:
    assert hosts.connects(client, to, port) is not None


@pytest.mark.parametrize(("client", "to", "port"), [("B", WIRE["A"], 8081), ("B", WIRE["A"], 80), ("B", WIRE["B"], 8080)], ids=str)
def test_what_is_not_published_there_does_not(hosts: Hosts, client: str, to: IPv4Address, port: int) -> None:
    assert hosts.connects(client, to, port) is None


@pytest.mark.parametrize("port", [4789, 7472])
@pytest.mark.parametrize(("sender", "to"), [("web", "stranger"), ("foreign", "web"), ("web", "vault"), ("web", "safe")], ids=str)
def test_what_goes_to_a_port_of_the_tunnels_stays_in_its_network_like_all_else(hosts: Hosts, sender: str, to: str, port: int) -> None:
    assert not hosts.hears(to, sender, BY_NAME[sender].address, port=port)
    assert hosts.hears("near", "web", BY_NAME["web"].address, WAIT_S, port), "a datagram that may pass is heard"


def wrapped(host: str, source: IPv4Address, to: IPv4Address) -> bytes:
    """A VXLAN packet for this host, without its outer headers: a datagram to port 9999 of a container there (RFC 7348, 791, 768)."""
    mac = bytes.fromhex(next(node.vtep_mac for node in NODES if node.name == host).replace(":", ""))
    ip = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 29, 1, 0, 64, 17, 0, source.packed, to.packed))
    total = sum(struct.unpack("!10H", ip))
    ip[10:12] = struct.pack("!H", 0xFFFF - (total % 0xFFFF))
    return struct.pack("!II", 0x0800_0000, 1 << 8) + mac + bytes(6) + b"\x08\x00" + ip + struct.pack("!HHHH", 9999, 9999, 9, 0) + b"x"


@pytest.mark.parametrize(("sender", "host", "to"), [("web", "A", "stranger"), ("web", "B", "foreign"), ("B", "A", "stranger")], ids=str)
def test_a_container_sends_nothing_into_the_tunnel_of_a_host(hosts: Hosts, sender: str, host: str, to: str) -> None:
    """What it wraps itself would come out there as if another host had sent it, which reaches every container."""
    with hosts.udp(to) as ear, hosts.udp(sender) as mouth:
        ear.bind(("0.0.0.0", 9999))
        ear.settimeout(WAIT_S if sender == "B" else 0.2)
        other = next(node.tunnel for node in NODES if node.name != host and node.tunnel is not None)
        mouth.sendto(wrapped(host, other, BY_NAME[to].address), (str(WIRE[host]), 4789))
        if sender == "B":
            assert ear.recv(9) == b"x", "what a host sends like that is heard"
        else:
            with pytest.raises(TimeoutError):
                ear.recv(9)


@contextlib.contextmanager
def on_bridge_of_an_engine(hosts: Hosts, name: str) -> Iterator[None]:
    """The container `name` of A has a link to a network there that is none of plait's, whose packets leave under A's address."""
    hosts.run("A", f"ip link add br-x type veth peer name inner netns {hosts.paths[name]}")
    try:
        hosts.run("A", "ip addr add 172.30.0.1/24 dev br-x; ip link set br-x up")
        hosts.run(name, "ip addr add 172.30.0.2/24 dev inner; ip link set inner up; ip route add 198.18.0.0/24 via 172.30.0.1")
        hosts.run(name, "ip route replace 10.28.1.0 via 172.30.0.1")
        hosts.run("A", "nft 'add table ip engine; add chain ip engine out { type nat hook postrouting priority srcnat; }'")
        hosts.run("A", "nft add rule ip engine out ip saddr 172.30.0.0/24 oifname wire masquerade")
        yield
    finally:
        hosts.run("A", "ip link del br-x; nft delete table ip engine")


@pytest.mark.parametrize("sender", ["web", "safe"])
@pytest.mark.parametrize(
    ("host", "to", "via"), [("A", "stranger", "10.28.1.0"), ("A", "stranger", "198.18.0.77"), ("B", "foreign", "198.18.0.77")]
)
def test_a_container_sends_nothing_into_a_tunnel_by_another_address_of_its_host(
    hosts: Hosts, host: str, to: str, via: str, sender: str
) -> None:
    """The kernel takes tunnel packets at all of them; what leaves to another host does so under this one's. Nor does one of an engine's
    own network (`safe`), where the underlay's link is known by the node's address either."""
    places = [via, *([str(WIRE[host])] if sender == "safe" and hosts.underlay else [])]
    other = next(node.tunnel for node in NODES if node.name != host and node.tunnel is not None)
    hosts.run(host, "ip addr add 198.18.0.77/24 dev wire")
    try:
        with on_bridge_of_an_engine(hosts, "safe"), hosts.udp(to) as ear, hosts.udp(sender) as mouth:
            ear.bind(("0.0.0.0", 9999))
            ear.settimeout(0.3)
            for place in places:
                mouth.sendto(wrapped(host, other, BY_NAME[to].address), (place, 4789))
                with pytest.raises(TimeoutError):
                    ear.recv(9)
    finally:
        hosts.run(host, "ip addr del 198.18.0.77/24 dev wire")


FORGED = {"this host's": A("10.28.1.0"), "another host's": A("10.28.2.0"), "an outsider's": A("203.0.113.9")}


@pytest.mark.parametrize("source", FORGED)
@pytest.mark.parametrize(("forger", "to"), [("web", "stranger"), ("web", "foreign"), ("web", "safe"), ("stranger", "vault")], ids=str)
@pytest.mark.parametrize("gateway", [False, True], ids=["", "gateway"])
def test_a_container_does_not_get_out_of_its_network_by_an_address_of_somebody_else(
    hosts: Hosts, forger: str, to: str, source: str, gateway: bool
) -> None:
    """Hosts reach all containers, and a gateway lets outsiders in: by the links that they come from, not by what a packet says, also where
    the kernel cannot drop what is forged, or shall not."""
    hosts.know_gateway(forger)
    hosts.guard = False
    hosts.run(forger, f"ip addr replace {FORGED[source]}/32 dev eth0")
    hosts.run(forger, "ip route replace default via 10.28.0.1 dev eth0" if forger == "web" else "true")
    try:
        hosts.converge("A", gateway=gateway)
        assert not hosts.hears(to, forger, FORGED[source])
        assert hosts.hears("near", "web", BY_NAME["web"].address, WAIT_S), "a datagram that may pass is heard"
    finally:
        hosts.guard = True
        hosts.run(forger, f"ip addr del {FORGED[source]}/32 dev eth0")
        hosts.converge("A")


@pytest.mark.parametrize("to", ["stranger", "near"])
def test_another_host_reaches_containers_by_its_own_address(hosts: Hosts, to: str) -> None:
    assert hosts.pings("B", BY_NAME[to].address)


def test_a_container_does_not_reach_its_hosts_loopback(hosts: Hosts) -> None:
    hosts.run("web", "ip route add 127.0.0.9/32 via 10.28.0.1 dev eth0")
    assert hosts.connects("web", A("127.0.0.9"), 9001, "A", 9001) is None


def test_packets_are_as_large_as_the_tunnel_lets_through_and_no_larger(hosts: Hosts) -> None:
    far = BY_NAME["far"].address
    assert hosts.pings("web", far, f"-M do -s {1450 - 28}")
    assert not hosts.pings("web", far, f"-M do -s {1451 - 28}")
    assert hosts.connects("far", BY_NAME["web"].address, 80, size=300_000) is not None


@pytest.mark.parametrize("nobody", ["10.28.9.9", "10.28.1.77"])
def test_an_address_that_nobody_holds_is_refused_at_once(hosts: Hosts, nobody: str) -> None:
    """Without its own route it would follow the host's default route."""
    with hosts.socket("A") as caller, pytest.raises(OSError, match="No route to host"):
        caller.connect((nobody, 80))


def test_a_peer_may_change_its_tunnel_address_under_traffic(hosts: Hosts) -> None:
    """What leads to the old one goes last, on whichever way packets take."""
    moved = replace(NODES[1], tunnel=A("10.28.2.255"))
    other = replace(hosts.snapshot, nodes={"A": NODES[0], "B": moved})
    ping = within(hosts.paths["web"], f"exec ping -q -f -c 40000 -W 1 {BY_NAME['far'].address}")
    with subprocess.Popen(ping, stdout=subprocess.PIPE, text=True) as running:
        while running.poll() is None:
            for snapshot in (other, None):
                hosts.converge("A", snapshot)
        assert running.stdout is not None
        said = running.stdout.read()
    hosts.converge("A")
    assert "40000 packets transmitted, 40000 received" in said, said


def test_nothing_is_flooded(hosts: Hosts) -> None:
    rows = [row for row in hosts.run("A", "bridge fdb show dev pl-x1").splitlines() if row]
    assert rows == ["02:00:00:00:00:02 dst 198.18.0.2 self permanent"]


def test_a_peer_may_change_its_tunnel_mac(hosts: Hosts) -> None:
    changed = replace(NODES[1], vtep_mac="02:00:00:00:00:99")
    snapshot = replace(hosts.snapshot, nodes={"A": NODES[0], "B": changed})
    for name in WIRE:
        assert hosts.converge(name, snapshot) > 0
        hosts.converge(name, snapshot)  # the kernel forgets the neighbours of a link whose MAC changes
        assert hosts.converge(name, snapshot) == 0
    assert hosts.pings("web", BY_NAME["far"].address)
    assert "02:00:00:00:00:02" not in hosts.run("A", "bridge fdb show dev pl-x1") + hosts.run("A", "ip neigh show dev pl-x1")
    for name in ("A", "B", "B"):
        hosts.converge(name)
    assert hosts.pings("web", BY_NAME["far"].address)


def test_the_gateway_is_the_own_host_even_inside_the_block_of_another(hosts: Hosts) -> None:
    """A network's gateway is its first address and so lies in the first host's block; every host has it, and its DNS answers there."""
    gateway = A("10.28.1.254")
    networks = {**hosts.snapshot.networks, "default": replace(NETWORKS[0], gateway=gateway)}
    hosts.converge("B", replace(hosts.snapshot, networks=networks))
    for name in ("near", "far"):
        hosts.run(name, f"ip route add {gateway} dev eth0")  # as a sandbox made with this gateway has it
    try:
        assert not hosts.pings("near", gateway), "A does not have it now"
        assert hosts.pings("far", gateway)
    finally:
        for name in ("near", "far"):
            hosts.run(name, f"ip route del {gateway} dev eth0")
        hosts.converge("B")


def test_a_packet_whose_time_is_over_is_answered(hosts: Hosts) -> None:
    done = subprocess.run(
        within(hosts.paths["web"], f"ping -c1 -W2 -t1 {BY_NAME['far'].address}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Time to live exceeded" in done.stdout


def test_a_path_that_is_smaller_towards_one_peer_is_told_to_the_sender(hosts: Hosts) -> None:
    narrow = replace(hosts.snapshot, nodes={"A": NODES[0], "B": replace(NODES[1], mtu=1400)})
    hosts.converge("A", narrow)
    try:
        assert not hosts.pings("web", BY_NAME["far"].address, f"-M do -s {1400 - 28}")
        assert "mtu 1350" in hosts.run("web", f"ip route get {BY_NAME['far'].address}"), "the host said how long a packet may be"
    finally:
        hosts.converge("A")
        hosts.run("web", "ip route flush cache")


@contextlib.contextmanager
def counted(hosts: Hosts, address: IPAddress, source: str = "") -> Iterator[Callable[[], int]]:
    """How many packets to `address` (from `source` alone, if given) somebody else's hook saw on both hosts: those on the way through the
    IP stack."""

    def seen() -> int:
        text = "".join(hosts.run(host, "nft list table inet spy") for host in WIRE)
        return sum(int(number) for number in re.findall(r"counter packets (\d+)", text))

    for host in WIRE:
        hosts.run(host, "nft 'add table inet spy; add chain inet spy seen { type filter hook prerouting priority -400; }'")
        family = "ip6" if address.version == 6 else "ip"
        sender = f"{family} saddr {source}" if source else ""
        hosts.run(host, f"nft 'add rule inet spy seen {sender} {family} daddr {address} counter'")
    try:
        yield seen
    finally:
        for host in WIRE:
            hosts.run(host, "nft delete table inet spy")


@pytest.mark.parametrize(("client", "server"), [("web", "far"), ("far", "web"), ("near", "web"), ("web", "near")])
def test_the_fast_path_leaves_the_stack_of_the_host_out(hosts: Hosts, client: str, server: str) -> None:
    to = BY_NAME[server].address
    hosts.pings(client, to)
    with counted(hosts, to) as seen:
        assert hosts.connects(client, to, 7000, server, 7000, size=100_000) is not None
        assert (seen() == 0) == hosts.fast


@pytest.mark.parametrize(("client", "server"), [("web", "far"), ("far", "web"), ("stranger", "foreign")])
def test_what_a_shortcut_delivers_meets_no_hook_of_the_host_that_receives_it(hosts: Hosts, client: str, server: str) -> None:
    to, host = BY_NAME[server].address, BY_NAME[server].node
    hosts.pings(client, to)
    hosts.run(host, "nft 'add table inet spy; add chain inet spy seen { type filter hook input priority -400; }'")
    try:
        hosts.run(host, "nft 'add rule inet spy seen udp dport 4789 counter'")
        assert hosts.connects(client, to, 7000, server, 7000, size=100_000) is not None
        seen = re.search(r"counter packets (\d+)", hosts.run(host, "nft list table inet spy"))
        assert seen is not None and (int(seen[1]) == 0) == bool(hosts.shortcut)
    finally:
        hosts.run(host, "nft delete table inet spy")


def test_a_shortcut_delivers_nothing_from_another_network(hosts: Hosts) -> None:
    delivers_nothing_from_another_network(hosts, "pl-x1")


def delivers_nothing_from_another_network(hosts: Hosts, dev: str) -> None:
    """Sent from this device of the other host: what no rule there has looked at."""
    source = "10.29.1.9"
    hosts.run("A", f"ip addr add {source}/32 dev {dev}")
    try:
        with counted_inside(hosts, "far", source) as seen:
            hosts.pings("A", BY_NAME["far"].address, f"-I {source}")
            assert seen() == 0
    finally:
        hosts.run("A", f"ip addr del {source}/32 dev {dev}")


@contextlib.contextmanager
def counted_inside(hosts: Hosts, container: str, source: str) -> Iterator[Callable[[], int]]:
    """How many packets from `source` come in at a container."""
    hosts.run(container, "nft 'add table inet spy; add chain inet spy seen { type filter hook prerouting priority -400; }'")
    hosts.run(container, f"nft 'add rule inet spy seen ip saddr {source} counter'")
    try:
        yield lambda: sum(int(n) for n in re.findall(r"counter packets (\d+)", hosts.run(container, "nft list table inet spy")))
    finally:
        hosts.run(container, "nft delete table inet spy")


@pytest.mark.parametrize("guard", [True, False])
def test_an_address_that_is_not_its_own_gets_no_fast_way(hosts: Hosts, guard: bool) -> None:
    hosts.run("web", "ip addr add 10.28.1.77/32 dev eth0")
    hosts.guard = guard
    try:
        hosts.converge("A")
        with counted(hosts, BY_NAME["far"].address, "10.28.1.77") as seen:
            hosts.pings("web", BY_NAME["far"].address, "-I 10.28.1.77")
            assert (seen() == 0) == guard, "nor any way"
    finally:
        hosts.guard = True
        hosts.converge("A")
        hosts.run("web", "ip addr del 10.28.1.77/32 dev eth0")


@pytest.mark.parametrize(
    "harm",
    [
        "nft flush ruleset",
        "nft delete table netdev plait || true",
        "ip link del pl-x1",
        "ip link del pl-eweb",
        "ip link del pl-gw",
        "ip route flush proto 112",
        "sysctl -qw net.ipv4.ip_forward=0",
    ],
)
def test_two_passes_after_any_harm_all_is_well(hosts: Hosts, harm: str) -> None:
    hosts.run("A", harm)
    for _ in range(2):
        hosts.converge("A")
    assert hosts.converge("A") == 0
    assert hosts.connects("far", BY_NAME["web"].address, 80) == BY_NAME["far"].address
    assert hosts.connects("B", WIRE["A"], 8080) is not None
    assert hosts.connects("web", BY_NAME["stranger"].address, 80, "stranger") is None
