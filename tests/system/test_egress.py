# SPDX-License-Identifier: Apache-2.0
"""A zone that a firewall keeps from the outside, and two gateways as the only way out, with real packets: the lab of examples/egress,
which docs/egress.md explains. What the firewall does, the lab's cuts do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.outside import answering, asked
from tests.support.sandboxes import address, inside, pings, shown

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
FILE = Path(__file__).parents[2] / "examples/egress/lab.toml"
SEEN = {"G1": "198.18.0.101", "G2": "198.18.0.102"}
"""What the outside is to see of each gateway."""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(toml=FILE.read_text())
    for gateway, own in SEEN.items():
        made.run(gateway, "ip", "addr", "add", f"{own}/24", "dev", "eth0")
    made.run("A", "plait", "network", "create", "zone", "--subnet", "10.40.0.0/16")
    for host, name, label in (("A", "web", "app=web"), ("A", "db", "app=db"), ("B", "far", "app=web")):
        made.run(host, "plait", "run", "--name", name, "--network", "zone", "--label", label)
    wall(made)
    with answering(made, "X", "X"):
        yield made


def wall(lab: Lab) -> None:
    """The zone's hosts and the outside do not reach each other."""
    for host in "AB":
        lab.cut(host, "X")


def seen_as(lab: Lab, host: str, name: str) -> str:
    """The address by which the outside sees the sandbox, "" if it does not reach it."""
    return asked(lab, host, lab.address("X"), "plait", "exec", name, "--").removeprefix("X ")


def conditions(lab: Lab, host: str) -> dict[str, str]:
    return {row["code"]: row["text"] for row in shown(lab, host, "status")["conditions"]}


def test_the_gateways_are_the_only_way_and_their_address_is_what_is_seen(lab: Lab) -> None:
    assert not seen_as(lab, "A", "web") and not seen_as(lab, "B", "far"), "the firewall"
    said = lab.run("A", "plait", "egress", "set", "out", "--network", "zone", "--via", "G1=198.18.0.101", "--via", "G2=198.18.0.102")
    assert said.stdout == "G1 198.18.0.101\n"
    assert seen_as(lab, "A", "web") == SEEN["G1"], "in force when the command returns"
    until("the other host follows", lambda: seen_as(lab, "B", "far") == SEEN["G1"], 5)
    assert pings(lab, "A", "web", address(lab, "far")) and pings(lab, "A", "web", lab.address("X"))
    assert not pings(lab, "A", "web", "192.0.2.1"), "nor is anything else reached by the host itself"
    assert lab.run("A", "plait", "plan", "--diff").stdout == ""


def test_a_rule_for_some_containers_goes_before_that_of_the_network(lab: Lab) -> None:
    lab.run("B", "plait", "egress", "set", "db", "--network", "zone", "--selector", "app=db", "--via", "G2")
    until("it is in force", lambda: seen_as(lab, "A", "db") == lab.address("G2"), 5)
    assert seen_as(lab, "A", "web") == SEEN["G1"]
    lab.run("A", "plait", "run", "--name", "db2", "--network", "zone", "--label", "app=db")
    until("a new one of them too", lambda: seen_as(lab, "A", "db2") == lab.address("G2"), 5)
    lab.run("B", "plait", "egress", "rm", "db")
    until("it is as before", lambda: seen_as(lab, "A", "db") == SEEN["G1"], 5)


def test_the_jump_host_is_the_only_way_in_too(lab: Lab) -> None:
    """By a published port of the gateway; a port of the zone's own host answers its own way to who may come there."""
    lab.run("A", "plait", "publish", "web", "8080:80")
    lab.run("A", "plait", "service", "create", "web", "--network", "zone", "--selector", "app=web", "--port", "80", "--publish", "9090:80")
    with answering(lab, "A", "web", "plait", "exec", "web", "--"):
        until("the gateway leads in", lambda: asked(lab, "X", SEEN["G1"], port=9090).startswith("web "), 10)
        lab.cut("G1", "B")
        assert asked(lab, "B", lab.address("A"), port=8080).startswith("web "), "not by way of the gateway"
        lab.heal()
        wall(lab)
        assert not asked(lab, "X", lab.address("A"), port=8080), "the firewall"
    lab.run("A", "plait", "service", "rm", "web")


def test_another_gateway_takes_over_and_without_any_nothing_leaves(lab: Lab) -> None:
    assert seen_as(lab, "A", "web") == SEEN["G1"]
    began = time.monotonic()
    for host in ("A", "B", "G2", "X"):
        lab.cut("G1", host)
    until("the other one is used", lambda: seen_as(lab, "A", "web") == SEEN["G2"], 20)
    print(f"taken over {time.monotonic() - began:.1f} s after the first gateway was lost")
    lab.cut("G2", "A")
    until("nothing leaves", lambda: "Unreachable" in inside(lab, "A", "web", "ping", "-c1", "-W1", lab.address("X")).stdout, 20)
    until("it is named", lambda: "neither G1 nor G2 is reached" in conditions(lab, "A").get("egress-lost", ""), 3)
    lab.heal()
    wall(lab)
    until("the first one is used again", lambda: seen_as(lab, "A", "web") == SEEN["G1"], 20)
    until("all is well", lambda: "egress-lost" not in conditions(lab, "A"), 5)


def test_an_address_that_a_gateway_lost_is_named_and_no_other_takes_its_place(lab: Lab) -> None:
    lab.run("G1", "ip", "addr", "del", f"{SEEN['G1']}/24", "dev", "eth0")
    until("it is named", lambda: SEEN["G1"] in conditions(lab, "G1").get("egress-address", ""), 5)
    assert seen_as(lab, "A", "web") in ("", SEEN["G1"]), "as long as its neighbours remember"
    lab.run("G1", "ip", "addr", "add", f"{SEEN['G1']}/24", "dev", "eth0")
    until("it is back", lambda: seen_as(lab, "A", "web") == SEEN["G1"] and not conditions(lab, "G1"), 5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("out", "--network", "none", "--via", "G1"), "there is no network 'none'"),
        (("out", "--network", "zone", "--via", "G9"), "there is no node 'G9'"),
        (("out", "--network", "zone", "--via", "G1=1.2"), "names what is no IPv4 address"),
        (("out", "--network", "shut", "--via", "G1"), "network 'shut' cannot have a gateway: it is internal"),
        (("Out!", "--network", "zone", "--via", "G1"), "is no name"),
    ],
)
def test_what_cannot_be_is_refused_with_words(lab: Lab, words: tuple[str, ...], says: str) -> None:
    if "shut" in words:
        lab.run("A", "plait", "network", "create", "shut", "--subnet", "10.41.0.0/24", "--internal")
    done = lab.run("A", "plait", "egress", "set", *words, check=False)
    assert done.returncode == 1 and says in done.stderr
    assert [row["name"] for row in shown(lab, "A", "egress", "ls")] == ["out"]


def test_without_the_rule_everybody_leaves_by_the_own_host_again(lab: Lab) -> None:
    lab.run("A", "plait", "egress", "rm", "out")
    lab.heal()
    until("it leaves by its own host", lambda: seen_as(lab, "A", "web") == lab.address("A"), 5)
    left = lab.run("A", "ip", "rule").stdout + lab.run("A", "nft", "list", "table", "inet", "plait").stdout
    assert "1130" not in left and "egress" not in left
    assert lab.run("A", "plait", "egress", "rm", "out", check=False).returncode == 1
