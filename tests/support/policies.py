# SPDX-License-Identifier: Apache-2.0
"""Small clusters and random policies over them: few labels, addresses and ports, so that they meet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from hypothesis import strategies as st

from plait.model.addr import IPAddress
from plait.model.cluster import Block, Container, Endpoint, Instance, Network, Node, PortMapping, Snapshot
from plait.model.policy import Group, Namespace, Policy, PolicyRule, Ports, Range, Requirement, Selector
from plait.policy.evaluate import Packet

A, N = IPv4Address, IPv4Network
NETWORKS = {
    "default": Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24),
    "six": Network("six", N("10.29.0.0/16"), A("10.29.0.1"), 24, subnet6=IPv6Network("fd00:29::/64"), gateway6=IPv6Address("fd00:29::1")),
}
NODES = {name: Node(name, name, A(f"198.51.100.{n}"), 1500, f"02:00:00:00:00:0{n}", A(f"10.28.{n}.0")) for n, name in ((1, "A"), (2, "B"))}
BLOCKS = {
    (b.network, b.cidr): b
    for b in (
        Block(net, N(f"10.{second}.{n}.0/24"), name) for net, second in (("default", 28), ("six", 29)) for n, name in ((1, "A"), (2, "B"))
    )
}
OUTSIDE = ("192.0.2.1", "192.0.2.130", "203.0.113.9", "2001:db8::1", "fd00:29::ffff")
NAMESPACES = ("default", "shop", "lab")
DOMAINS = ("api.example.com", "*.example.com", "*.example.org", "example.org")
ANSWERS = ("api.example.com", "a.b.example.com", "example.com", "www.example.org", "example.org", "other.example")
NAMED = """\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: out}
spec:
  tier: Admin
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
  egress:
  - {action: Accept, to: [{domainNames: [api.example.com, "*.example.org"]}], protocols: [{tcp: {destinationPort: {number: 443}}}]}
  - {action: Deny, to: [{networks: [0.0.0.0/0, "::/0"]}]}
"""
"""Containers with the label app=web get to two kinds of names, by one port, and nowhere else."""
_KEYS, _VALUES = ("app", "role"), ("web", "db", "x")


def endpoint(number: int, node: str, network: str, labels: dict[str, str]) -> Endpoint:
    second, third = {"default": 28, "six": 29}[network], {"A": 1, "B": 2}[node]
    six = IPv6Address(f"fd00:29::{third}:{number}") if network == "six" else None
    ports = (PortMapping("tcp", 8000 + number, 80),) if number % 3 == 0 else ()
    return Endpoint(
        f"e{number}",
        network,
        node,
        A(f"10.{second}.{third}.{number + 2}"),
        f"02:10:00:00:00:{number:02x}",
        f"pl-e{number}",
        "sandbox",
        name=f"c{number}",
        labels=labels,
        ports=ports,
        address6=six,
    )


_labels = st.dictionaries(st.sampled_from(_KEYS), st.sampled_from(_VALUES), max_size=2)
_more = st.fixed_dictionaries(
    {}, optional={"plait.namespace": st.sampled_from(NAMESPACES), "plait.port.http": st.sampled_from(("80", "8080", "53/udp", "junk"))}
)
_requirements = st.one_of(
    st.builds(
        Requirement,
        st.sampled_from(_KEYS),
        st.sampled_from(("In", "NotIn")),
        st.lists(st.sampled_from(_VALUES), min_size=1, max_size=2).map(tuple),
    ),
    st.builds(Requirement, st.sampled_from((*_KEYS, "plait.service.web")), st.sampled_from(("Exists", "DoesNotExist"))),
    st.builds(Requirement, st.sampled_from(("plait.service.web", "plait.service.db")), st.just("In"), st.just(("true",))),
)
_selectors = st.just(Selector()) | st.builds(Selector, st.lists(_requirements, max_size=2).map(tuple))
_of_namespaces = st.builds(
    lambda values: Selector((Requirement("kubernetes.io/metadata.name", "In", tuple(values)),)) if values else Selector(),
    st.lists(st.sampled_from(NAMESPACES), max_size=2),
) | st.just(Selector((Requirement("team", "Exists"),)))
groups = st.one_of(st.builds(Group, _selectors, _of_namespaces), st.builds(Group, _selectors, namespace=st.sampled_from(NAMESPACES)))


@st.composite
def _ranges(draw: st.DrawFn) -> Range:
    networks = ("0.0.0.0/0", "10.28.0.0/16", "10.28.1.0/24", "10.28.2.2/31", "192.0.2.0/24", "192.0.2.128/25", "::/0", "fd00:29::/64")
    whole = ip_network(draw(st.sampled_from(networks)))
    parts = [ip_network(text) for text in (*networks, "10.28.1.3/32", "fd00:29::1:4/128")]
    inside = [part for part in parts if part.version == whole.version and part.subnet_of(whole)]  # type: ignore[arg-type]
    return Range(whole, tuple(draw(st.lists(st.sampled_from(inside), max_size=2)) if whole not in inside[1:] else ()))


@st.composite
def _ports(draw: st.DrawFn) -> Ports:
    protocol = draw(st.sampled_from(("tcp", "udp", "sctp")))
    if draw(st.booleans()):
        return Ports(draw(st.sampled_from((protocol, ""))), name="http")
    first = draw(st.sampled_from((0, 1, 53, 80, 81, 8080)))
    return Ports(protocol, first, draw(st.sampled_from([last for last in (0, 53, 80, 90, 8080, 65535) if last >= first])))


def _rules(actions: tuple[str, ...], named: bool = False) -> st.SearchStrategy[tuple[PolicyRule, ...]]:
    """`named`: some for names of hosts."""
    some = st.builds(
        PolicyRule,
        st.sampled_from(actions),
        st.just("rule"),
        st.lists(groups, max_size=2).map(tuple),
        st.lists(_ranges(), max_size=2).map(tuple),
        st.sampled_from((False, False, False, True)),
        st.lists(_ports(), max_size=2).map(tuple),
        domains=st.lists(st.sampled_from(DOMAINS), max_size=2).map(tuple) if named else st.just(()),
    )
    return st.lists(some, min_size=1, max_size=3).map(tuple)


@st.composite
def _policies(draw: st.DrawFn, number: int) -> Policy:
    tier = draw(st.sampled_from(("Admin", "NetworkPolicy", "Baseline")))
    actions = ("Accept",) if tier == "NetworkPolicy" else ("Accept", "Deny", "Pass")
    namespace = draw(st.sampled_from(("default", *NAMESPACES))) if tier == "NetworkPolicy" else ""
    subject = draw(
        st.just(Group(namespace=namespace)) | (st.builds(Group, _selectors, namespace=st.just(namespace)) if namespace else groups)
    )
    ways = [draw(st.none() | _rules(actions, outward and not namespace)) for outward in (False, True)]
    audit = draw(st.sampled_from((False, False, False, True)))
    return Policy(f"p{number}", namespace, tier, subject, ways[0], ways[1], 0 if namespace else draw(st.integers(0, 2)), audit=audit)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Seen by node A."""
    count = draw(st.integers(1, 6))
    ends = [
        endpoint(n, draw(st.sampled_from("AB")), draw(st.sampled_from(tuple(NETWORKS))), draw(_labels) | draw(_more)) for n in range(count)
    ]
    bridged = Container("b1", "b1", "A", "docker", labels=draw(_labels), addresses={"default": A("10.28.1.200")})
    known = [str(address) for end in ends for address in end.present] + ["10.28.1.200", "192.0.2.1", "db.example", ""]
    instances = [
        Instance(f"i{n}", draw(st.sampled_from(("web", "db"))), "A", draw(st.sampled_from(known))) for n in range(draw(st.integers(0, 3)))
    ]
    policies = [draw(_policies(n)) for n in range(draw(st.integers(1, 4)))]
    places = st.sampled_from([ip_address(text) for text in (*known[:-2], *OUTSIDE)])
    answered = draw(st.dictionaries(places, st.frozensets(st.sampled_from(ANSWERS), min_size=1, max_size=2), max_size=4))
    given = {name: Namespace(name, {"team": "x"}) for name in draw(st.sets(st.sampled_from(NAMESPACES)))}
    return Snapshot(
        "A",
        1,
        NODES,
        frozenset("AB"),
        NETWORKS,
        BLOCKS,
        {e.id: e for e in ends},
        {("A", "b1"): bridged},
        {(one.node, one.id): one for one in instances},
        policies={p.ident: p for p in policies},
        namespaces=given,
        answered=answered,
    )


def addresses(snapshot: Snapshot) -> list[IPAddress]:
    """All of its workloads, and some of nobody's."""
    own = [address for e in snapshot.endpoints.values() for address in e.present]
    return [*own, A("10.28.1.200"), *map(ip_address, OUTSIDE)]


@st.composite
def packets(draw: st.DrawFn, snapshot: Snapshot) -> Packet:
    found = addresses(snapshot)
    source = draw(st.sampled_from(found))
    destination = draw(st.sampled_from([one for one in found if one.version == source.version]))
    protocol = draw(st.sampled_from(("tcp", "udp", "sctp", "icmp")))
    port = 0 if protocol == "icmp" else draw(st.sampled_from((1, 52, 53, 54, 79, 80, 81, 90, 91, 8080, 8081, 65535)))
    return Packet(source, destination, protocol, port)
