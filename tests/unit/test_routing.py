# SPDX-License-Identifier: Apache-2.0
"""The routing file, BIRD's configuration made of it, and what is read from BIRD's answers."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network
from pathlib import Path

import pytest

from plait.model.cluster import Block, Endpoint, Network, Node, Snapshot
from plait.model.errors import ConfigError
from plait.model.routing import RouteTable, table_number
from plait.model.service import Service, ServicePort
from plait.plan.announced import announced, guarded, served
from plait.routing import (
    Facts,
    FilteredRoute,
    LearnedRoute,
    Routing,
    Session,
    Speaker,
    bird_config,
    channels,
    parse_filtered,
    parse_protocols,
    parse_routes,
    parse_routing,
    refusal,
)

N, A, N6, A6 = IPv4Network, IPv4Address, IPv6Network, IPv6Address
FILES = Path(__file__).parents[2] / "examples/routing"
GOLDEN = Path(__file__).parents[1] / "golden/bird"
HEAD = 'as = 65010\n[[table]]\nname = "red"\nnetworks = ["red", "pink"]\n'
BGP = HEAD + '[[bgp]]\nneighbor = "192.0.2.1"\nas = 65000\n'
OSPF = HEAD + '[[ospf]]\nlinks = ["eth0"]\n'
FACTS = Facts(A("198.18.0.1"), {"red": (N("10.40.0.0/24"), N("10.40.7.7/32"))}, {N("10.27.0.0/16"): "", N("10.40.0.0/16"): ""})
HERE = ((IPv4Interface("198.18.0.1/24"), "eth0"), (IPv6Interface("2001:2::1/64"), "eth0"), (IPv4Interface("192.0.2.7/24"), "eth1"))
DUAL = replace(
    FACTS,
    own={"red": (N("10.40.0.0/24"), N6("fd00:40::/120"))},
    guarded={N("10.40.0.0/16"): "ours", N6("fd00:40::/64"): "ours"},
    dual=["red"],
    here=HERE,
)


def parsed(text: str) -> Routing:
    return parse_routing(text, "f")


# --- the file


def test_what_is_not_said_is_told_by_the_rest() -> None:
    assert parsed("") == Routing()
    found = parsed(BGP + OSPF.removeprefix(HEAD))
    assert found.bgp[0].session == Session("red", (), ("red", "pink")), "the only table, nothing learned, all announced"
    assert (found.bgp[0].hold_s, found.bgp[0].bfd, found.ospf[0].area, found.ospf[0].hello_s, found.ospf[0].dead_s) == (
        9,
        False,
        A(0),
        2,
        8,
    )
    assert [one.name for one in channels(found, FACTS)] == ["bgp_192_0_2_1", "ospf_red_0_0_0_0"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "f: '' is not valid TOML"),
        ("[[router]]\n", "f: 'router' is not a known key; known are as, bgp, ospf, router_id, table"),
        ("table = 3", "f: table: 3 must be a list of [[table]]"),
        (BGP.replace("as = 65010\n", ""), "f: as: '' must be a whole number from 1 to 4294967294"),
        (BGP.replace("65000", "0"), "f: bgp 1: as: 0 must be a whole number from 1 to"),
        (BGP.replace("65000", "true"), "f: bgp 1: as: True must be a whole number"),
        (BGP + 'neighbour = "x"', "f: bgp 1: 'neighbour' is not a known key"),
        (BGP.replace("192.0.2.1", "here"), "f: bgp 1: neighbor: 'here' must be an IPv4 or IPv6 address"),
        (BGP.replace("192.0.2.1", "fe80::1"), "f: bgp 1: neighbor: 'fe80::1' is on every link; name the one that you mean: fe80::1%eth0"),
        (BGP.replace("192.0.2.1", "fe80::1%e;"), "f: bgp 1: neighbor: 'fe80::1%e;' is on every link"),
        (BGP.replace("192.0.2.1", "2001:db8::1%eth0"), "f: bgp 1: neighbor: '2001:db8::1%eth0' is on one link alone; leave the link out"),
        (HEAD + "[[bgp]]\nas = 1", "f: bgp 1: neighbor: '' must be a text that is not empty"),
        (BGP + BGP.removeprefix(HEAD), "f: '192.0.2.1' is the neighbor of a [[bgp]] twice"),
        (BGP + 'table = "blue"', "f: bgp 1: table: 'blue' is no [[table]] of this file; use one of red"),
        (BGP.replace('[[table]]\nname = "red"\nnetworks = ["red", "pink"]\n', ""), "f: bgp 1: table: '' there is no [[table]]; add one"),
        (BGP + 'export = ["blue"]', "f: bgp 1: export: ['blue'] names 'blue', which is none of the networks of table red"),
        (BGP + 'import = ["10.0.0.1/8"]', "holds '10.0.0.1/8', which is no network: 10.0.0.1/8 has host bits set"),
        (BGP + 'import = ["2001:db8::1/32"]', "holds '2001:db8::1/32', which is no network: 2001:db8::1/32 has host bits set"),
        (BGP + 'import = ["::/0"]', "holds '::/0'; write \"default6\" for the default route alone"),
        (BGP + 'import = ["0.0.0.0/0"]', "holds '0.0.0.0/0'; write \"default\" for the default route alone"),
        (BGP + "import = []", "f: bgp 1: import: [] must be a list of texts that is not empty"),
        (BGP + 'bfd = "yes"', "f: bgp 1: bfd: 'yes' must be true or false"),
        (BGP + "hold_s = 2", "f: bgp 1: hold_s: 2 must be a whole number from 3 to 65535"),
        (BGP + "password = 'a\"; reject'", "f: bgp 1: password: 'a\"; reject' is not possible: it is printable ASCII"),
        (HEAD.replace('"red"\n', '"Red!"\n'), "f: table 1: name: 'Red!' is not possible: it starts with a letter"),
        (HEAD + HEAD.removeprefix("as = 65010\n"), "f: 'red' is the name of a [[table]] twice"),
        (HEAD + '[[table]]\nname = "b"\nnetworks = ["pink"]', "f: 'pink' is the network of a [[table]] twice"),
        (OSPF.replace("eth0", "e; }"), "f: ospf 1: links: ['e; }'] holds what is no name of a link"),
        (OSPF + 'area = "x"', "f: ospf 1: area: 'x' must be an IPv4 address"),
        (OSPF + "hello_s = 5\ndead_s = 5", "f: ospf 1: dead_s: 5 must be a whole number from 6 to"),
        (OSPF + OSPF.removeprefix(HEAD), "f: 'eth0' is the link of an [[ospf]] twice"),
        (OSPF + OSPF.removeprefix(HEAD).replace("eth0", "eth1"), "f: 'ospf_red_0_0_0_0' is the area of an [[ospf]] of its table twice"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(text)
    assert says in str(error.value)


def test_two_tables_of_one_number_are_refused() -> None:
    numbers: dict[int, str] = {}
    for name in (f"t{n}" for n in range(1000)):
        other = numbers.setdefault(table_number(name), name)
        if other != name:
            break
    text = "".join(f'[[table]]\nname = "{name}"\nnetworks = ["n-{name}"]\n' for name in (other, name))
    with pytest.raises(ConfigError, match="have the same number of table; rename one"):
        parsed(text)


def test_tables_for_the_plan_name_what_may_be_learned_of_all_their_sessions() -> None:
    more = OSPF.removeprefix(HEAD) + 'import = ["10.201.0.0/16", "10.200.7.0/24"]\n'
    found = parsed(BGP + 'import = ["10.200.0.0/16"]\n' + more)
    assert found.route_tables() == (RouteTable("red", ("red", "pink"), (N("10.200.0.0/15"),)),)
    whole = parsed(BGP + 'import = ["default", "10.0.0.0/8"]\n')
    assert whole.route_tables()[0].outside == (N("0.0.0.0/1"), N("128.0.0.0/1")), "as no set prints the whole"
    both = parsed(BGP + 'import = ["default6", "2001:db8::/33", "10.200.0.0/16", "2001:db8:8000::/33"]\n')
    assert both.route_tables()[0].outside == (N("10.200.0.0/16"), N6("::/1"), N6("8000::/1")), "each family has its own default route"


# --- BIRD's language


def example(*dual: str) -> str:
    """The files of examples/routing, where the networks `dual` have IPv6."""
    own: dict[str, list[IPv4Network | IPv6Network]] = {"red": [N("10.40.0.0/24"), N("10.40.7.7/32")], "blue": [N("10.41.0.0/24")]}
    guarded = ["10.27.0.0/16", "10.40.0.0/16", "10.41.0.0/16", "198.18.0.0/24", "2001:2::/64"]
    for number, name in enumerate(dual):
        own[name].append(N6(f"fd00:4{number}::/120"))
        guarded.append(f"fd00:4{number}::/64")
    found = {name: tuple(prefixes) for name, prefixes in own.items()}
    facts = Facts(A("198.18.0.1"), found, {ip_network(one): "" for one in guarded}, dual, HERE)
    return bird_config(parse_routing((FILES / "routing.toml").read_text(), "f"), facts, "/run/plait/bird.log")


@pytest.mark.parametrize(("dual", "golden"), [((), "example"), (("red", "blue"), "example-dual")])
def test_the_configuration_is_as_it_was_looked_at(dual: tuple[str, ...], golden: str) -> None:
    path = GOLDEN / f"{golden}.conf"
    if os.environ.get("PLAIT_UPDATE_GOLDEN"):
        path.write_text(example(*dual))
    assert example(*dual) == path.read_text()


def test_bird_takes_it_and_the_routers_files(tmp_path: Path) -> None:
    if shutil.which("bird") is None:
        pytest.skip("bird is not installed")
    secret = bird_config(parsed(BGP + 'password = "s3cret"\n' + OSPF.removeprefix(HEAD) + 'password = "s3cret"\n'), FACTS, "/run/b.log")
    assert secret.count('password "s3cret"') == 2
    nothing = bird_config(parsed(BGP), replace(FACTS, own={}, guarded={}), "/run/b.log")
    assert "export none" in nothing
    near = parsed(BGP.replace("192.0.2.1", "fe80::1%eth0.7") + OSPF.removeprefix(HEAD) + 'password = "s3cret"\nimport = ["default6"]\n')
    texts = [example(), example("red"), example("red", "blue"), secret, nothing, bird_config(near, DUAL, "/run/b.log")]
    texts += [path.read_text() for path in sorted(FILES.glob("*.conf"))]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.conf").write_text(text)
        done = subprocess.run(["bird", "-p", "-c", tmp_path / f"{number}.conf"], capture_output=True, text=True, check=False, timeout=10)
        assert done.returncode == 0, done.stderr


def test_only_named_networks_are_announced() -> None:
    text = bird_config(
        parsed(BGP + 'export = ["pink"]\n'), replace(FACTS, own={"red": (N("10.1.0.0/24"),), "pink": (N("10.2.0.0/24"),)}), "l"
    )
    assert "net ~ [ 10.2.0.0/24 ]" in text and "route 10.1.0.0/24 blackhole" in text


def spoken(text: str, facts: Facts = DUAL) -> list[tuple[str, str, str]]:
    return [(one.peer, one.family.word, one.closed) for one in channels(parsed(text), facts)]


def test_a_network_with_ipv6_makes_its_table_one_of_both_families() -> None:
    area = OSPF.removeprefix(HEAD)
    assert spoken(BGP.replace("192.0.2.1", "2001:2::3") + area) == [
        ("2001:2::3", "ipv4", ""),
        ("2001:2::3", "ipv6", ""),
        ("area 0.0.0.0 on eth0", "ipv4", ""),
        ("area 0.0.0.0 on eth0", "ipv6", ""),
    ]
    assert [family for _, family, _ in spoken(BGP + area, replace(DUAL, dual=["other"]))] == ["ipv4", "ipv4"]
    assert "ipv6" not in bird_config(parsed(BGP + area), FACTS, "l") and "v3" not in bird_config(parsed(BGP + area), FACTS, "l")


def test_routes_have_a_next_hop_of_their_family_or_none_are_told() -> None:
    """By a session of IPv4 with 192.0.2.1 there is none of IPv6 (eth1), with 198.18.0.3 there is one (eth0)."""
    assert spoken(BGP)[1] == ("192.0.2.1", "ipv6", "this host has no IPv6 address on its link")
    assert "  ipv6 {" not in bird_config(parsed(BGP), DUAL, "l").split("protocol bgp")[1]
    assert spoken(BGP.replace("192.0.2.1", "198.18.0.3"))[1][2] == ""
    bgp = {to: bird_config(parsed(BGP.replace("192.0.2.1", to)), DUAL, "l") for to in ("2001:2::3", "fe80::3%eth0", "fe80::3%eth2")}
    assert "extended" not in bgp["2001:2::3"] and "extended" not in bgp["fe80::3%eth0"], "there is an address of IPv4"
    far = bgp["fe80::3%eth2"]
    assert far.count("extended next hop on;") == 1 and '  neighbor fe80::3 as 65000;\n  interface "eth2";' in far


# --- what is refused


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("10.200.0.0/16", ""),
        ("10.200.7.0/24", ""),
        ("10.0.0.0/8", "nothing that `import` names"),
        ("192.0.2.0/24", "nothing that `import` names"),
        ("0.0.0.0/0", "the default route, which `import` does not name"),
        ("10.200.99.0/24", "ours"),
        ("10.200.99.7/32", "ours"),
        ("2001:db8:200::/48", ""),
        ("2001:db8:200:7::1/128", ""),
        ("2001:db8::/32", "nothing that `import` names"),
        ("::/0", "the default route, which `import` does not name"),
        ("fd00:40::7/128", "ours"),
    ],
)
def test_why_an_announcement_is_refused(prefix: str, why: str) -> None:
    session = Session("red", (N("10.200.0.0/16"), N6("2001:db8:200::/48")), ())
    assert refusal(ip_network(prefix), session, {N("10.200.99.0/24"): "ours", N6("fd00:40::/64"): "ours"}) == why


def test_a_default_route_is_taken_where_it_is_named_and_names_nothing_else() -> None:
    session = Session("red", (N("0.0.0.0/0"),), ())
    assert refusal(N("0.0.0.0/0"), session, {}) == "" and refusal(N("10.0.0.0/8"), session, {}) != "" != refusal(N6("::/0"), session, {})
    assert "if net ~ [ 0.0.0.0/0 ] then accept;" in bird_config(parsed(BGP + 'import = ["default"]\n'), FACTS, "l")
    six = parsed(BGP.replace("192.0.2.1", "2001:2::3") + 'import = ["default6"]\n')
    assert "if net ~ [ ::/0 ] then accept;" in bird_config(six, DUAL, "l")


MESH = Network("red", N("10.40.0.0/16"), A("10.40.0.1"), 24)
SNAPSHOT = Snapshot(
    "A",
    1,
    {name: Node(name, name, A(f"198.18.0.{n}")) for n, name in enumerate("AB", 1)},
    frozenset("AB"),
    {
        n.name: n
        for n in (
            MESH,
            replace(MESH, name="shut", subnet=N("10.41.0.0/16"), internal=True),
            replace(MESH, name="dark", subnet=N("10.42.0.0/16"), backend="wireguard"),
            replace(MESH, name="link", subnet=N("10.43.0.0/16"), backend="macvlan", options={"parent": "eth0"}),
        )
    },
    {
        (b.network, b.cidr): b
        for b in (
            Block(n, N(f"10.{s}.{c}.0/24"), node) for n, s in (("red", 40), ("shut", 41), ("dark", 42)) for c, node in ((1, "A"), (2, "B"))
        )
    },
    {"e": Endpoint("e", "red", "A", A("10.40.2.9"), "02:00:00:00:00:01", "pl-e1", "sandbox")},
)


def test_a_node_announces_its_blocks_and_single_addresses_of_networks_that_may_be_seen() -> None:
    assert announced(SNAPSHOT, {}) == {"red": (N("10.40.1.0/24"), N("10.40.2.9/32"))}
    services = {"red": (N("10.27.0.4/32"),), "shut": (N("10.27.0.5/32"),)}
    assert announced(SNAPSHOT, services) == {"red": (N("10.27.0.4/32"), N("10.40.1.0/24"), N("10.40.2.9/32"))}


SIX = replace(
    SNAPSHOT,
    networks={**SNAPSHOT.networks, "red": replace(MESH, subnet6=N6("fd00:40::/64"), gateway6=A6("fd00:40::1"))},
    endpoints={"e": replace(SNAPSHOT.endpoints["e"], address6=A6("fd00:40::209"))},
)


def test_blocks_of_both_families_are_announced_and_guarded() -> None:
    mine = (N("10.40.1.0/24"), N("10.40.2.9/32"), N6("fd00:40::100/120"), N6("fd00:40::209/128"))
    assert announced(SIX, {}) == {"red": mine}
    found = guarded(SIX, [(IPv6Interface("2001:2::1/64"), "eth0")])
    assert found[N6("fd00:40::/64")] == "addresses of plait's network red" and found[N6("2001:2::/64")] == "this host's own link eth0"
    assert found[N6(SIX.nodes["B"].tunnel6)] == "the host of node B"
    assert {one.version for one in guarded(SNAPSHOT, [])} == {4}, "nothing of IPv6 without a network that has it"


def service(name: str, number: int, network: str = "red", **more: object) -> Service:
    made = Service(name, "default", A(f"10.27.0.{number}"), (ServicePort("tcp", 80, 80),), {"app": name}, network)
    return replace(made, **more)  # type: ignore[arg-type]


def test_a_service_is_announced_where_it_leads_somewhere() -> None:
    """On node A: `here` has a container on it, `there` on B, `both` on both."""
    rows = [("here", "A", 1), ("there", "B", 2), ("both", "A", 3), ("both", "B", 4), ("shut", "A", 5)]
    endpoints = {
        f"e{last}": Endpoint(
            f"e{last}",
            "shut" if app == "shut" else "red",
            node,
            A(f"10.40.{last}.9"),
            "02:00:00:00:00:01",
            "",
            "sandbox",
            name=f"c{last}",
            labels={"app": app},
        )
        for app, node, last in rows
    }
    services = [
        service("here", 1, local_first=True),
        service("there", 2),
        service("both", 3, local_first=True),
        service("shut", 4, "shut"),
        service("gone", 5),
        service("names", 6, address=None),
        service("there", 7, namespace="near", local_first=True),
    ]
    known = replace(SNAPSHOT, alive=frozenset("AB"), endpoints=endpoints, services={one.ident: one for one in services})
    mine = (N("10.27.0.1/32"), N("10.27.0.2/32"), N("10.27.0.3/32"))
    assert served(known, {"red"}) == {"red": mine} and served(known, ()) == {}
    near = replace(services[1], local_first=True)
    assert served(replace(known, services={**known.services, near.ident: near}), {"red"}) == {"red": (mine[0], mine[2])}, "only on B"
    both = replace(services[2], drained=("A/c3",))
    assert served(replace(known, services={**known.services, both.ident: both}), {"red"}) == {"red": mine[:2]}
    assert served(replace(known, alive=frozenset("A")), {"red"}) == {"red": (mine[0], mine[2])}, "B is away"
    dual = replace(known.networks["red"], subnet6=N6("fd00:40::/64"))
    of_both = {key: replace(one, address6=A6("fd00:40::309")) if one.name == "c3" else one for key, one in endpoints.items()}
    six = replace(known, networks={**known.networks, "red": dual}, endpoints=of_both)
    assert served(six, {"red"}) == {"red": (*mine, N6("fd55:aa3d:5f3e::3/128"))}, "of IPv6 where a container has it"
    assert N6("fd55:aa3d:5f3e::/112") in guarded(six, [])


def test_nobody_outside_may_have_what_is_of_the_cluster_or_this_host() -> None:
    found = guarded(SNAPSHOT, [(IPv4Interface("192.0.2.7/24"), "eth0"), (IPv4Interface("127.0.0.1/8"), "lo")])
    assert found[N("10.42.0.0/16")] == "addresses of plait's network dark" and found[N("10.27.0.0/16")] == "virtual addresses of services"
    assert found[N("198.18.0.2/32")] == "the host of node B" and found[N("192.0.2.0/24")] == "this host's own link eth0"


# --- what BIRD answers

PROTOCOLS = """\
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     00:07:50.829

k_red      Kernel     t_red      up     00:07:50.829
  Channel ipv4
    Routes:         0 imported, 1 exported, 0 preferred

bgp_198_18_0_3 BGP        ---        up     00:07:51.762  Established
  BGP state:          Established
    Neighbor address: 198.18.0.3
  Channel ipv4
    State:          UP
    Routes:         1 imported, 2 filtered, 3 exported, 1 preferred

bgp_2001_2__3 BGP        ---        up     00:07:51.762  Established
  BGP state:          Established
  Channel ipv4
    State:          DOWN
    Table:          t_red
  Channel ipv6
    State:          UP
    Routes:         4 imported, 1 filtered, 2 exported, 4 preferred

bgp_198_18_0_4 BGP        ---        start  00:07:51.762  Active        Socket: Connection refused
  BGP state:          Active
    Last error:       Socket: Connection refused
  Channel ipv4
    State:          DOWN

ospf_red_0_0_0_0 OSPF       t_red      up     2026-12-01  Running
  Channel ipv4
    Routes:         1 imported, 3 filtered, 1 exported, 1 preferred

ospf_red_0_0_0_1 OSPF       t_red      up     2026-12-01 10:00:00  Alone
  Channel ipv4
    Routes:         0 imported, 0 exported, 0 preferred
"""
FILTERED = """\
Table t_red:
0.0.0.0/0            unicast [bgp_198_18_0_3 00:07:54.065] * (100) [AS65000i]
	via 198.18.0.3 on eth0
	Type: BGP univ
	BGP.origin: IGP
	BGP.as_path: 65000 {65001 65002} 65003
	BGP.next_hop: 198.18.0.3
10.28.99.0/24        unicast [ospf_red_0_0_0_0 00:09:59.057] * E2 (150/10/10000) [198.18.0.4]
	via 198.18.0.4 on eth0
	Type: OSPF-E2 univ
	OSPF.router_id: 198.18.0.4
198.18.0.0/24        unicast [ospf_red_0_0_0_0 00:09:59.057] * I (150/10) [198.18.0.4]
	dev eth0
	Type: OSPF univ
	OSPF.router_id: 198.18.0.4

Table t6_red:
2001:db8:201:1:2:3:4:1/128 unicast [bgp_2001_2__3 18:40:40.391 from 198.18.0.2] (100) [AS65000i]
	via 2001:2::2 on eth0
	Type: BGP univ
	BGP.as_path: 65000
	BGP.next_hop: 2001:2::2 fe80::4c:c6ff:fe12:2
"""
ROUTES = """\
Table t_red:
10.200.0.0/16        unicast [ospf_red_0_0_0_0 00:09:59.057] * E2 (150/10/10000) [198.18.0.4]
	via 198.18.0.4 on eth0
	via 198.18.0.5 on eth1
10.201.0.0/16        unicast [ospf_red_0_0_0_0 00:09:59.057] * I (150/10) [198.18.0.4]
	dev eth0
2001:db8:200::/48    unicast [ospf3_red_0_0_0_0 18:40:45.573] * E2 (150/10/10000) [198.18.0.2]
	via fe80::4c:c6ff:fe12:2 on eth0
"""


def test_who_speaks_and_in_which_state() -> None:
    found = parse_protocols(PROTOCOLS.splitlines())
    assert {key[1] for key in found} == {"ipv4", "ipv6"} and found["bgp_2001_2__3", "ipv6"].up
    assert list(found.values()) == [
        Speaker("bgp_198_18_0_3", "BGP", True, "Established", learned=1, refused=2, announced=3),
        Speaker("bgp_2001_2__3", "BGP", False, "ipv4 is not agreed on"),
        Speaker("bgp_2001_2__3", "BGP", True, "Established", learned=4, refused=1, announced=2),
        Speaker("bgp_198_18_0_4", "BGP", False, "Active Socket: Connection refused"),
        Speaker("ospf_red_0_0_0_0", "OSPF", True, "Running", learned=1, refused=3, announced=1),
        Speaker("ospf_red_0_0_0_1", "OSPF", False, "Alone"),
    ]


def test_what_was_refused_and_what_is_used() -> None:
    assert parse_filtered(FILTERED.splitlines()) == [
        FilteredRoute(N("0.0.0.0/0"), "bgp_198_18_0_3", path=(65000, 65003)),
        FilteredRoute(N("10.28.99.0/24"), "ospf_red_0_0_0_0", origin="198.18.0.4"),
        FilteredRoute(N("198.18.0.0/24"), "ospf_red_0_0_0_0", origin="198.18.0.4", within_area=True),
        FilteredRoute(N6("2001:db8:201:1:2:3:4:1/128"), "bgp_2001_2__3", path=(65000,)),
    ]
    assert parse_routes(ROUTES.splitlines()) == [
        LearnedRoute(N("10.200.0.0/16"), "ospf_red_0_0_0_0", "198.18.0.4", "eth0"),
        LearnedRoute(N("10.201.0.0/16"), "ospf_red_0_0_0_0", "", "eth0"),
        LearnedRoute(N6("2001:db8:200::/48"), "ospf3_red_0_0_0_0", "fe80::4c:c6ff:fe12:2", "eth0"),
    ]


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "999.1.1.1/40 unicast [x y]",
        "10.0.0.1/8 unicast [x y]",
        "fd00:::/40 unicast [x y]",
        "\x00",
        "bgp_x BGP",
        "  Channel ipv6",
        "10.0.0.0/8",
    ],
)
def test_junk_is_left_out(junk: str) -> None:
    assert parse_protocols([junk]) == {} and parse_filtered([junk]) == [] and parse_routes([junk]) == []
