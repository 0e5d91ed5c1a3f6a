# SPDX-License-Identifier: Apache-2.0
"""A router on a link that has IPv6 alone: it carries the containers' IPv4 as well."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support.sandboxes import pings, shown

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]
LAB = """
switch = [{name = "lan", underlay = "ipv6"}]
host = [{name = "A"}, {name = "R", agent = false}]
"""
ROUTER = """
log stderr all;
router id 198.18.0.2;
protocol device { }
protocol static behind { ipv4; route 10.200.0.0/16 blackhole; }
protocol static behind6 { ipv6; route 2001:db8:200::/48 blackhole; }
protocol kernel { ipv4 { import none; export where source != RTS_STATIC; }; }
protocol kernel { ipv6 { import none; export where source != RTS_STATIC; }; }
protocol bgp host_a {
  local 2001:2::2 as 65000;
  neighbor 2001:2::1 as 65010;
  connect delay time 1;
  ipv4 { extended next hop on; import all; export where source = RTS_STATIC; };
  ipv6 { import all; export where source = RTS_STATIC; };
}
"""
FILE = """
as = 65010
table = [{name = "red", networks = ["red"]}]
bgp = [{neighbor = "2001:2::2", as = 65000, import = ["10.200.0.0/16", "2001:db8:200::/48"]}]
"""


def test_ipv4_of_containers_goes_by_next_hops_of_ipv6(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(toml=LAB)
    lab.run("A", "plait", "network", "create", "red", "--subnet", "10.40.0.0/16", "--subnet6", "fd00:40::/64")
    lab.run("A", "plait", "run", "--name", "web", "--network", "red")
    outside = ("10.200.0.1", "2001:db8:200::1")
    for address in outside:
        lab.run("R", "ip", "addr", "add", address, "dev", "lo")
    lab.run("R", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    lab.run("R", "tee", "/run/bird.conf", text=ROUTER)
    lab.run("R", "bird", "-c", "/run/bird.conf", "-s", "/run/bird.ctl", "-P", "/run/bird.pid")
    lab.run("A", "tee", "/etc/plait/routing.toml", text=FILE)
    until("both families are learned", lambda: [row["learned"] for row in shown(lab, "A", "routing")["sessions"]] == [1, 1], 20)
    assert {row["via"] for row in shown(lab, "A", "routing")["learned"]} == {"2001:2::2"}
    assert all(f"{prefix} via inet6 2001:2::1" in lab.run("R", "ip", "-4", "route").stdout for prefix in four(lab))
    for address in outside:
        assert pings(lab, "A", "web", address), address


def four(lab: Lab) -> list[str]:
    """IPv4 prefixes that A announces."""
    return [prefix for prefix in shown(lab, "A", "routing")["announced"]["red"] if ":" not in prefix]
