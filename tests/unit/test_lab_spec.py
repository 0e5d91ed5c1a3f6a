# SPDX-License-Identifier: Apache-2.0
"""Lab files and the wiring that follows from them."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from plait.lab import spec, wires
from plait.model.errors import ConfigError

TWO_LINKS = """
[[switch]]
name = "left"
[[switch]]
name = "right"
mtu = 1400
[[router]]
name = "R1"
switches = ["left", "right"]
[[host]]
name = "A"
[[host]]
name = "B"
switch = "right"
mtu = 1300
[[host]]
name = "D"
agent = false
engine = true
"""


def test_a_number_of_hosts_is_one_switch() -> None:
    lab = spec.simple(3)
    assert [(host.name, str(host.address)) for host in lab.hosts] == [("A", "198.18.0.1"), ("B", "198.18.0.2"), ("C", "198.18.0.3")]
    assert all(host.agent and not host.engine for host in lab.hosts)


def test_names_go_on_after_z() -> None:
    assert spec.host_names(28)[24:] == ["Y", "Z", "AA", "AB"]


def test_a_file_with_two_links() -> None:
    lab = spec.parse_toml(TWO_LINKS)
    a, b, d = lab.hosts
    assert (str(a.address), str(b.address), str(d.address)) == ("198.18.0.1", "198.18.1.1", "198.18.0.2")
    assert (a.mtu, b.mtu) == (1500, 1300)
    assert (a.agent, d.agent, a.engine, d.engine) == (True, False, False, True)
    assert [str(address) for address in lab.routers[0].addresses] == ["198.18.0.254", "198.18.1.254"]
    assert lab.routes("left") == {IPv4Network("198.18.1.0/24"): IPv4Address("198.18.0.254")}


def test_flags_against_the_file() -> None:
    lab = spec.parse_toml(TWO_LINKS, agents=False, engines=True)
    assert [host.agent for host in lab.hosts] == [False, False, False]
    assert [host.engine for host in lab.hosts] == [True, True, True]
    assert not spec.parse_toml('[[host]]\nname = "A"\nengine = false', engines=True).hosts[0].engine


def test_routes_over_two_routers() -> None:
    text = "".join(f'[[switch]]\nname = "s{n}"\n' for n in range(3))
    text += '[[router]]\nname = "R1"\nswitches = ["s0", "s1"]\n[[router]]\nname = "R2"\nswitches = ["s1", "s2"]\n[[host]]\nname = "A"\n'
    lab = spec.parse_toml(text)
    assert {str(net): str(hop) for net, hop in lab.routes("s0").items()} == {
        "198.18.1.0/24": "198.18.0.254",
        "198.18.2.0/24": "198.18.0.254",
    }
    assert "route add 198.18.2.0/24 via 198.18.1.253" in wires.router_batch(lab, lab.routers[0])
    assert "route add 198.18.0.0/24 via 198.18.1.254" in wires.router_batch(lab, lab.routers[1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[host", "is not TOML"),
        ("", r"host: \[\] is empty"),
        ("hosts = 3", "'hosts' is not a known key; allowed: switch, router, host"),
        ("host = 3", r"write \[\[host\]\]"),
        ('[[host]]\nname = "A"\ncolour = 1', r"host\[0\]: 'colour' is not a known key; allowed: name, switch, mtu, agent, engine"),
        ("[[host]]\nmtu = 1500", r"host\[0\].name: None is not a name"),
        ('[[host]]\nname = "A/.."', "is not a name"),
        ('[[host]]\nname = "A"\nmtu = 100', "a number of bytes from 576 to 65535"),
        ('[[host]]\nname = "A"\nmtu = true', "is not an MTU"),
        ('[[host]]\nname = "A"\nmtu = 9000', "is above that of switch lan; at most 1500"),
        ('[[host]]\nname = "A"\nagent = "no"', r"host\[0\].agent: 'no' is not a truth value; true or false"),
        ('[[host]]\nname = "A"\nswitch = "x"', "'x' is not a switch of this file; switches: lan"),
        ('[[host]]\nname = "A"\n[[host]]\nname = "A"', "'A' is used twice"),
        ('[[host]]\nname = "A"\n[[router]]\nname = "R"\nswitches = ["lan"]', "at least two names"),
        ('[[host]]\nname = "A"\n[[router]]\nname = "R"\nswitches = ["lan", "lan"]', "different switches"),
    ],
)
def test_a_bad_file_is_refused_with_the_key(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        spec.parse_toml(text)


@pytest.mark.parametrize("count", [0, -1, 201])
def test_a_bad_number_of_hosts_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="1 to 200"):
        spec.simple(count)


@pytest.mark.parametrize("name", ["", "../etc", "A", "a b", "x" * 32])
def test_a_lab_name_cannot_be_a_path(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a lab name"):
        spec.lab_name(name)


def test_an_unknown_host_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="hosts: A, B"):
        spec.simple(2).host("X")


def test_no_end_of_a_link_is_born_outside() -> None:
    batch = wires.plug_batch("A", 4711, 1400, IPv4Address("198.18.0.1"))
    assert "peer name eth0 mtu 1400 address 02:4c:c6:12:00:01 netns 4711" in batch


def test_cuts_are_whole_and_replace_each_other() -> None:
    lab = spec.parse_toml(TWO_LINKS)
    same = wires.cut_rules(lab, [("A", "D")])
    assert 'iifname "p-A" oifname "p-D" drop' in same["left"]
    assert 'iifname "p-D" oifname "p-A" drop' in same["left"]
    across = wires.cut_rules(lab, [("A", "B")])
    assert 'iifname "p-A" ip daddr 198.18.1.1 drop' in across["left"]
    assert 'iifname "p-B" ip daddr 198.18.0.1 drop' in across["right"]
    assert all("drop" not in script and "delete table" in script for script in wires.cut_rules(lab, []).values())


def test_the_documented_lab_file_is_a_lab_file() -> None:
    page = (Path(__file__).parents[2] / "docs/lab.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    lab = spec.parse_toml(example)
    assert [host.name for host in lab.hosts] == ["A", "B", "D"]
