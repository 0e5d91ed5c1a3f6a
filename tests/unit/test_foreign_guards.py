# SPDX-License-Identifier: Apache-2.0
"""Whose rules forwarded traffic must meet, as nft prints them."""

from __future__ import annotations

import pytest

from plait.agent.firewall import past_input
from plait.kernel.linux.foreign import Guards, guards

DOCKER = """table ip filter {
	chain DOCKER {
	}

	chain DOCKER-ISOLATION-STAGE-1 {
		iifname "docker0" oifname != "docker0" counter packets 0 bytes 0 jump DOCKER-ISOLATION-STAGE-2
		counter packets 0 bytes 0 return
	}

	chain DOCKER-ISOLATION-STAGE-2 {
		oifname "docker0" counter packets 0 bytes 0 drop
		counter packets 0 bytes 0 return
	}

	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		counter packets 0 bytes 0 jump DOCKER-USER
		counter packets 0 bytes 0 jump DOCKER-ISOLATION-STAGE-1
		oifname "docker0" ct state related,established counter packets 0 bytes 0 accept
	}

	chain DOCKER-USER {
		iifname "pl-*" oifname != "br-*" accept comment "plait"
		%s
		counter packets 0 bytes 0 return
	}
}
"""
NAT = """table ip nat {
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.17.0.0/16 oifname != "docker0" counter packets 0 bytes 0 masquerade
	}
}
"""
ADMIN = """table inet admin {
	chain fw {
		type filter hook %s priority 0; policy %s;
		%s
	}
}
"""


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ("", []),
        (DOCKER % "" + NAT, []),
        (DOCKER % "ip saddr 10.28.0.5 counter packets 0 bytes 0 drop", ["ip filter"]),
        (DOCKER % 'meta l4proto tcp counter packets 0 bytes 0 xt target "REJECT"', ["ip filter"]),
        (ADMIN % ("forward", "accept", "ip saddr 10.28.0.5 drop"), ["inet admin"]),
        (ADMIN % ("forward", "drop", 'iifname "pl-*" accept'), ["inet admin"]),
        (ADMIN % ("prerouting", "accept", "ip saddr 10.28.0.5 reject"), ["inet admin"]),
        (ADMIN % ("forward", "accept", "ip saddr 10.28.0.5 counter accept"), []),
        (ADMIN % ("input", "drop", "tcp dport 22 accept"), []),
        (ADMIN.replace("inet admin", "inet plait") % ("forward", "accept", "ip saddr 10.28.0.5 drop"), []),
    ],
)
def test_tables_that_may_drop_what_is_forwarded(listing: str, found: list[str]) -> None:
    assert guards(listing).passing == set(found)


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        (DOCKER % "" + NAT, []),
        (ADMIN % ("input", "accept", "udp dport 4789 drop"), ["inet admin"]),
        (ADMIN % ("input", "drop", "tcp dport 22 accept"), ["inet admin"]),
        (ADMIN % ("input", "accept", "udp dport 4789 counter"), []),
        (ADMIN % ("prerouting", "accept", "ip saddr 198.18.0.2 reject"), ["inet admin"]),
        (ADMIN.replace("inet", "netdev") % ('ingress device "eth0"', "accept", "ip saddr 198.18.0.2 drop"), ["netdev admin"]),
        (ADMIN % ("forward", "drop", 'iifname "pl-*" accept'), []),
        (ADMIN % ("output", "drop", "accept"), []),
        (ADMIN.replace("inet admin", "netdev plait") % ('ingress device "pl-x1"', "accept", "ip saddr 10.28.0.5 drop"), []),
    ],
)
def test_tables_that_may_drop_what_is_received(listing: str, found: list[str]) -> None:
    assert guards(listing).received == set(found)


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        (DOCKER % "" + NAT, []),
        (ADMIN % ("output", "drop", "ct state established accept"), ["inet admin"]),
        (ADMIN % ("output", "accept", "udp dport 7472 reject"), ["inet admin"]),
        (ADMIN % ("output", "accept", "udp dport 7472 counter"), []),
        (ADMIN % ("input", "drop", "ct state established accept"), []),
    ],
)
def test_tables_that_may_drop_what_the_host_sends(listing: str, found: list[str]) -> None:
    assert guards(listing).sent == set(found)


JUMPING = """table inet admin {
	chain in {
		type filter hook input priority filter; policy accept;
		iifname "eth0" jump closed
	}

	chain closed {
		tcp dport 8080 %s
	}

	chain fw {
		type filter hook forward priority filter; policy accept;
		ip saddr 192.0.2.7 drop
	}
}
"""


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        (DOCKER % "ip saddr 10.28.0.5 counter packets 0 bytes 0 drop" + NAT, []),
        (ADMIN % ("input", "accept", "tcp dport 8080 drop"), ["inet admin"]),
        (ADMIN % ("input", "drop", "tcp dport 22 accept"), ["inet admin"]),
        (ADMIN % ("input", "accept", "tcp dport 8080 counter"), []),
        (ADMIN % ("forward", "drop", ""), []),
        (JUMPING % "drop", ["inet admin"]),
        (JUMPING % "accept", []),
    ],
)
def test_tables_that_keep_some_from_the_host_itself(listing: str, found: list[str]) -> None:
    assert guards(listing).own == set(found)


def test_ports_that_are_open_past_such_a_table_are_named() -> None:
    closed = guards(JUMPING % "drop")
    assert past_input(closed, []) == {} == past_input(Guards(), ["0.0.0.0:80->80/tcp of web"])
    assert past_input(closed, ["0.0.0.0:80->80/tcp of web"]) == {
        "inet admin": "table inet admin drops some of what this host receives, and does not see what goes to published ports: "
        "0.0.0.0:80->80/tcp of web"
    }
    assert past_input(closed, list("abcdefg"))["inet admin"].endswith("a, b, c, d, e and 2 more")
