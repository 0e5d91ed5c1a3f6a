# SPDX-License-Identifier: Apache-2.0
"""A container that forges, seen from its host: it is named with counts, others are not, and who may forge does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.support.sandboxes import shown

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
CODE = "spoofed-packets"
FORGE = "ip addr add 10.28.0.200/32 dev eth0; ping -c 2 -W 1 -I 10.28.0.200 {to}; ip addr del 10.28.0.200/32 dev eth0"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(hosts=2)
    for name, labels in {"good": (), "bad": (), "router": ("--label", "plait.spoofing=allow")}.items():
        made.run("A", "plait", "run", "--name", name, *labels)
    made.run("B", "plait", "run", "--name", "far")
    yield made


def address(lab: Lab, name: str) -> str:
    found = next(row for row in shown(lab, "A", "ps") if row["name"] == name)["addresses"]["default"]
    assert isinstance(found, str)
    return found


def forge(lab: Lab, name: str) -> None:
    to = address(lab, "far")
    lab.run("A", "plait", "exec", name, "--", "sh", "-c", FORGE.format(to=to), check=False)


def forgers(lab: Lab) -> dict[str, str]:
    return {c["subject"]: c["text"] for c in shown(lab, "A", "status")["conditions"] if c["code"] == CODE}


def test_who_forges_is_named_with_counts_and_nobody_else_is(lab: Lab) -> None:
    assert lab.run("A", "plait", "exec", "good", "--", "ping", "-c1", "-W2", address(lab, "far")).returncode == 0
    forge(lab, "router")
    forge(lab, "bad")
    until("it is named", lambda: "default/bad" in forgers(lab), 10)
    text = forgers(lab)["default/bad"]
    assert forgers(lab).keys() == {"default/bad"}, "not who may, nor who does not"
    assert text.split()[0].isdecimal() and int(text.split()[0]) >= 2 and address(lab, "bad") in text
    own = ("plait", "exec", "bad", "--", "ping", "-c1", "-W2", address(lab, "far"))
    until("what is its own passes", lambda: lab.run("A", *own, check=False).returncode == 0, 10)


def test_a_container_on_a_link_of_its_host_is_judged_where_it_is(lab: Lab) -> None:
    """Nothing of it lies on its host. What it forges is not on the wire, so the other host does not learn it as a neighbour."""
    where = ("--subnet", "198.18.0.0/24", "--gateway", "198.18.0.254", "--ip-range", "198.18.0.128/25")
    lab.run("A", "plait", "network", "create", "lan", "--backend", "macvlan", "-o", "parent=eth0", *where)
    for name, labels in {"liar": (), "vrrp": ("--label", "plait.spoofing=allow")}.items():
        lab.run("A", "plait", "run", "--name", name, "--network", "lan", *labels)
    own = shown(lab, "A", "network", "inspect", "lan")["attached"]
    to, addresses = lab.address("B"), {row["name"]: row["address"] for row in own}

    def claims(name: str, address: str) -> bool:
        """Whether the other host knows it by `address` after it has sent under that."""
        lab.run("B", "ip", "neigh", "del", address, "dev", "eth0", check=False)
        say = f"ip addr add {address}/24 dev eth0; ping -c1 -W1 -I {address} {to}; ip addr del {address}/24 dev eth0"
        lab.run("A", "plait", "exec", name, "--", "sh", "-c", say, check=False)
        return "lladdr" in lab.run("B", "ip", "neigh", "show", address).stdout

    try:
        assert claims("vrrp", "198.18.0.77"), "who may"
        assert not claims("liar", "198.18.0.78")
        until("it is named", lambda: "lan/liar" in forgers(lab), 10)
        assert addresses["liar"] in forgers(lab)["lan/liar"] and "lan/vrrp" not in forgers(lab)
        assert lab.run("A", "plait", "exec", "liar", "--", "ping", "-c1", "-W2", to).returncode == 0, "what is its own passes"
        lab.kill_agent("A")
        assert not claims("liar", "198.18.0.79"), "nor while nobody looks"
        lab.start_agent("A")
        assert lab.run("A", "plait", "plan", "--diff").stdout == ""
        lab.run("A", "plait", "exec", "liar", "--", "nft", "flush", "ruleset")
        assert not claims("liar", "198.18.0.82"), "nor whoever may change nft in its container"
        lab.run("B", "plait", "network", "set", "lan", "-o", "spoofing=allow")
        until("the network lets it", lambda: claims("liar", "198.18.0.80"), 10)
        lab.run("B", "plait", "network", "set", "lan", "-o", "spoofing=drop")
        until("no more", lambda: not claims("liar", "198.18.0.81"), 10)
    finally:
        for name in ("liar", "vrrp"):
            lab.run("A", "plait", "rm", name, check=False)
        lab.run("A", "plait", "network", "rm", "lan", check=False)


def test_a_network_may_be_let_forge_while_it_is_used(lab: Lab) -> None:
    lab.run("A", "plait", "network", "set", "default", "-o", "spoofing=allow")
    until(
        "no rule of it is left",
        lambda: "ether saddr" not in lab.run("A", "nft", "list", "table", "netdev", "plait").stdout,
        10,
    )
    lab.run("B", "plait", "network", "set", "default", "-o", "spoofing=drop")
    until("they are back", lambda: lab.run("A", "nft", "list", "table", "netdev", "plait").stdout.count("ether saddr") == 2, 10)


def test_a_word_that_is_none_is_refused(lab: Lab) -> None:
    done = lab.run("A", "plait", "run", "--name", "wrong", "--label", "plait.spoofing=maybe", check=False)
    assert done.returncode != 0 and "plait.spoofing: 'maybe' is not possible; drop, or allow" in done.stderr
    assert "wrong" not in {row["name"] for row in shown(lab, "A", "ps")}, "and nothing is left of it"
    done = lab.run("A", "plait", "network", "set", "default", "-o", "spoofing=off", check=False)
    assert done.returncode != 0 and "spoofing: 'off' is not possible" in done.stderr
