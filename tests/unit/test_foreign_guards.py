# SPDX-License-Identifier: Apache-2.0
"""Whose rules forwarded traffic must meet, as nft prints them."""

from __future__ import annotations

import pytest

from plait.kernel.linux.foreign import guards

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
