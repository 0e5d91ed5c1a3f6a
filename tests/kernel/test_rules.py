# SPDX-License-Identifier: Apache-2.0
"""Rules of routing and the tables that they lead to, in a namespace that the test made: what packets do, and what is left alone."""

from __future__ import annotations

import contextlib
import errno
from ipaddress import IPv4Interface, IPv4Network, IPv6Network

import pytest
from tests.support.kernel import converge, in_namespace, sh

from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netlink import NetlinkParseError, NetlinkSocket
from plait.kernel.linux.rule import decode_rule, dump_rules
from plait.model.objects import Op, Plan
from plait.model.routing import MAIN_TABLE, Rule

pytestmark = pytest.mark.root
N, N6 = IPv4Network, IPv6Network
TENANT, TENANT6 = N("10.40.0.0/16"), N6("fd00:40::/64")
RULES: Plan = {
    rule.key: rule
    for rule in (
        Rule(11200, TENANT, MAIN_TABLE, specific=True),
        Rule(11201, TENANT, 1_120_001),
        Rule(11202, TENANT, dst=N("10.200.0.0/16")),
        Rule(11200, TENANT6, MAIN_TABLE, specific=True),
        Rule(11201, TENANT6, 1_120_001),
        Rule(11202, TENANT6, dst=N6("2001:db8:200::/48")),
    )
}
WAYS = """
ip addr add 10.40.0.1/16 dev eth0
ip route add default via 198.18.0.254
ip route add 10.1.0.0/16 via 198.18.0.11
ip route add 10.1.0.0/16 via 198.18.0.12 table 1120001 proto bird
ip route add 10.200.7.0/24 via 198.18.0.12 table 1120001 proto bird
"""
SHORT6 = b"\x0a\x00\x40\x00\xfe\x00\x00\x01\0\0\0\0" + b"\x05\x00\x15\x00\x70\0\0\0" + b"\x08\x00\x02\x00\xfd\0\0\0"
"""An IPv6 rule with four bytes of address."""
WAYS6 = """
ip addr add fd00:40::1/64 dev eth0 nodad
ip addr add 2001:2::1/64 dev eth0 nodad
ip route add default via 2001:2::fe
ip route add 2001:db8:1::/48 via 2001:2::11
ip route add 2001:db8:1::/48 via 2001:2::12 table 1120001 proto bird
ip route add 2001:db8:200:7::/64 via 2001:2::12 table 1120001 proto bird
"""


def way(to: str, source: str = "10.40.0.1") -> str:
    """The next hop for what `source` sends there, "unreachable" for none."""
    told = sh(f"ip route get {to} from {source} 2>&1 || true")
    return told.split(" via ")[1].split()[0] if " via " in told else "unreachable" if "unreachable" in told.lower() else told


def test_a_tenant_goes_by_the_hosts_own_routes_then_by_its_table_then_nowhere_or_out() -> None:
    def body(kernel: LinuxKernel) -> None:
        sh(WAYS)
        converge(kernel, RULES)
        assert way("10.1.2.3") == "198.18.0.11", "what the host has itself no router can take over"
        assert way("10.200.7.1") == "198.18.0.12" and way("10.200.8.1") == "unreachable" and way("192.0.2.1") == "198.18.0.254"
        assert way("10.200.7.1", "198.18.0.1") == "198.18.0.254", "others have nothing of it"
        converge(kernel, {})
        assert way("10.200.7.1") == "198.18.0.254"

    in_namespace(body)


def test_by_ipv6_it_goes_the_same_ways() -> None:
    def body(kernel: LinuxKernel) -> None:
        sh(WAYS6)
        converge(kernel, RULES)
        found = [way(f"2001:db8:{to}::1", "fd00:40::1") for to in ("1", "200:7", "200:8", "3")]
        assert found == ["2001:2::11", "2001:2::12", "unreachable", "2001:2::fe"]
        assert way("2001:db8:200:7::1", "2001:2::1") == "2001:2::fe", "others have nothing of it"
        assert kernel.table_sizes() == {1_120_001: 2}
        converge(kernel, {})
        kernel.flush_tables()
        assert way("2001:db8:200:7::1", "fd00:40::1") == "2001:2::fe" and kernel.table_sizes() == {}

    in_namespace(body)


def test_rules_of_others_stay_and_a_rule_is_never_there_twice() -> None:
    def body(kernel: LinuxKernel) -> None:
        sh("ip rule add from 10.40.0.0/16 lookup 1120001 pref 11300; ip rule add fwmark 7 lookup 7 pref 11201 protocol 4")
        sh("ip -6 rule add from fd00:40::/64 lookup 1120001 pref 11300")
        before = sh("ip rule; ip -6 rule")
        result = kernel.apply([Op("put", rule) for rule in RULES.values()] * 2)
        assert not result.failed and len(sh("ip rule; ip -6 rule").splitlines()) == len(before.splitlines()) + 6
        assert converge(kernel, RULES) == 0
        gone = [Op("del", None, rule) for rule in RULES.values()]
        assert not kernel.apply(gone).failed and not kernel.apply(gone).failed and sh("ip rule; ip -6 rule") == before

    in_namespace(body)


def test_tables_of_routers_are_counted_emptied_and_no_range_of_the_host() -> None:
    def body(kernel: LinuxKernel) -> None:
        sh(WAYS)
        sh("ip route add 10.3.0.0/16 via 198.18.0.12 table 1120002 proto bird; ip route add 10.4.0.0/16 via 198.18.0.12 table 7")
        assert kernel.table_sizes() == {1_120_001: 2, 1_120_002: 1}
        found = {one.cidr for one in kernel.host_ranges()}
        assert {N("10.1.0.0/16"), N("10.4.0.0/16")} <= found and not found & {N("10.200.7.0/24"), N("10.3.0.0/16")}
        kernel.flush_tables((1_120_001,))
        assert kernel.table_sizes() == {1_120_001: 2}
        kernel.flush_tables()
        assert kernel.table_sizes() == {} and "10.4.0.0/16" in sh("ip route show table 7") and "10.1.0.0/16" in sh("ip route")
        assert IPv4Interface("198.18.0.1/24") in {addr.address for addr in kernel.addresses()}

    in_namespace(body)


def test_what_no_kernel_says_is_refused_and_a_kernel_without_rules_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (b"", b"\x02\x00\x21\x00\xfe\x00\x00\x01\0\0\0\0" + b"\x05\x00\x15\x00\x70\0\0\0", SHORT6):
        with pytest.raises(NetlinkParseError):
            decode_rule(body)

    def refused(number: int) -> list[Rule]:
        def dump(*_: object) -> None:
            raise OSError(number, "refused")

        monkeypatch.setattr(NetlinkSocket, "dump", dump)
        with contextlib.closing(NetlinkSocket()) as sock:
            return dump_rules(sock)

    assert refused(errno.EOPNOTSUPP) == []
    with pytest.raises(OSError, match="refused"):
        refused(errno.EPERM)
