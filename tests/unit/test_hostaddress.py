# SPDX-License-Identifier: Apache-2.0
"""Which address a host goes on with when its own has gone."""

from __future__ import annotations

import errno
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path

import pytest

from plait.agent.health import Health
from plait.agent.hostaddress import ELSEWHERE_S, LOST, HostAddress, is_here, link_local_of
from plait.agent.identity import Identity, load_identity, save_identity
from plait.model.addr import IPAddress, IPInterface
from plait.model.objects import Addr

OWN = ip_address("192.0.2.1")


class Host:
    """A kernel that holds `links`: addresses by device."""

    def __init__(self, *, pinned: bool = False, translated: bool = False) -> None:
        self.links: dict[str, list[IPInterface]] = {"lo": [IPv4Interface("127.0.0.1/8")], "eth0": [IPv4Interface(f"{OWN}/24")]}
        self.now, self.source = 0.0, ip_address("203.0.113.9")
        self.health = Health(lambda: self.now)
        self.home = HostAddress(OWN, pinned, self, self.health, translated, lambda version: self.source, lambda: self.now)

    def addresses(self) -> list[Addr]:
        return [Addr(dev, address) for dev, held in self.links.items() for address in held]

    def underlay(self, address: IPAddress) -> tuple[str, int]:
        for addr in self.addresses():
            if addr.address.ip == address:
                return addr.dev, 1500
        raise OSError(errno.EADDRNOTAVAIL, f"no link of this host has the address {address}")

    def look(self, last: IPAddress | None = None) -> str:
        """The address that holds now, "" if none does."""
        try:
            self.home.look(last)
        except OSError:
            return ""
        return str(self.home.now)

    @property
    def missed(self) -> list[str]:
        return [active.subject for active in self.health.active() if active.condition.code == LOST]


def test_another_address_of_the_same_link_is_taken_at_once_and_its_own_again_when_it_is_back() -> None:
    host = Host()
    assert host.look() == "192.0.2.1" and host.home.look() == ("eth0", 1500)
    host.links["eth0"] = [IPv6Interface("2001:db8::7/64"), IPv4Interface("198.51.100.7/24")]
    host.links["eth1"] = [IPv4Interface("203.0.113.9/24")]
    assert host.look() == "198.51.100.7" and not host.missed and not host.home.lost
    host.links["eth0"].append(IPv4Interface("192.0.2.1/24"))
    assert host.look() == "192.0.2.1"


def test_that_of_another_link_is_taken_only_after_a_while() -> None:
    host = Host()
    host.look()
    host.links["eth0"], host.links["eth1"] = [], [IPv4Interface("203.0.113.9/24"), IPv4Interface("203.0.113.10/24")]
    assert host.look() == "" and host.missed == ["192.0.2.1"] and host.home.lost
    host.now = ELSEWHERE_S - 0.1
    assert host.look() == ""
    host.now = ELSEWHERE_S
    assert host.look() == "203.0.113.9" and not host.missed and not host.home.lost


def test_a_link_that_has_its_address_back_in_time_is_not_left() -> None:
    host = Host()
    host.look()
    held, host.links["eth0"] = host.links["eth0"], []
    host.links["eth1"] = [IPv4Interface("203.0.113.9/24")]
    assert host.look() == ""
    host.links["eth0"], host.now = held, ELSEWHERE_S + 1
    assert host.look() == "192.0.2.1" and not host.missed


def test_without_a_default_route_the_only_address_is_taken_and_of_several_none() -> None:
    host = Host()
    host.source = None
    host.links = {"lo": host.links["lo"], "eth1": [IPv4Interface("203.0.113.9/24"), IPv4Interface("203.0.113.10/24")]}
    assert host.look() == ""
    host.now = ELSEWHERE_S
    assert host.look() == ""
    host.links["eth1"].pop()
    assert host.look() == "203.0.113.9"


def test_a_pinned_address_is_never_left() -> None:
    host = Host(pinned=True)
    host.links["eth0"] = [IPv4Interface("192.0.2.2/24")]
    host.now = 2 * ELSEWHERE_S
    assert host.look(ip_address("192.0.2.2")) == "" and host.missed == ["192.0.2.1"]
    assert "pinned by node.address" in host.health.active()[0].text
    host.links["eth0"] = [IPv4Interface("192.0.2.1/24")]
    assert host.look() == "192.0.2.1" and not host.missed


def test_an_agent_that_is_started_anew_goes_on_with_what_it_had_last() -> None:
    host = Host()
    host.links["eth0"] = [IPv4Interface("192.0.2.8/24"), IPv4Interface("192.0.2.9/24")]
    assert host.look(ip_address("192.0.2.9")) == "192.0.2.9"


def test_no_address_of_the_other_family_is_taken() -> None:
    host = Host()
    host.look()
    host.links["eth0"], host.source, host.now = [IPv6Interface("2001:db8::7/64")], ip_address("2001:db8::7"), 99.0
    host.look()
    host.now += ELSEWHERE_S
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        host.home.look()


def test_an_address_that_no_link_ever_had_is_never_left_and_nobody_misses_it(tmp_path: Path) -> None:
    host = Host(translated=True)
    host.links["eth0"] = [IPv4Interface("203.0.113.9/24")]
    host.look()
    host.now = 2 * ELSEWHERE_S
    assert host.look() == "" and not host.missed and host.home.now == OWN
    for translated in (True, False):
        save_identity(tmp_path / "i", Identity("A", "id-a", OWN, translated=translated))
        assert load_identity(tmp_path / "i").translated is translated
    assert is_here(ip_address("127.0.0.1")) and not is_here(OWN) and not is_here(ip_address("2001:db8::1"))


IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
20010002000000000000000000000001 02 40 00 80     eth0
fe80000000000000a00000fffe000009 02 40 20 80     eth0
fe80000000000000a00000fffe000001 02 40 20 80     eth0
fe80000000000000a00000fffe000002 03 40 20 c0     eth1
fe80000000000000a00000fffe000003 04 40 20 88     eth2
"""


@pytest.mark.parametrize(("dev", "wanted"), [("eth0", "fe80::a000:ff:fe00:1"), ("eth1", None), ("eth2", None), ("lo", None), ("", None)])
def test_the_link_local_address_of_a_link_is_one_that_may_be_used(tmp_path: Path, dev: str, wanted: str | None) -> None:
    """Not one that is looked for on the link yet (eth1), nor one that another host has (eth2)."""
    (tmp_path / "if_inet6").write_text(IF_INET6)
    assert link_local_of(dev, tmp_path / "if_inet6") == (IPv6Address(wanted) if wanted else None)
    assert link_local_of(dev, tmp_path / "missing") is None, "a kernel without IPv6"


def test_it_tells_its_other_addresses_that_mean_no_other_host() -> None:
    host = Host()
    host.links["eth0"] += [IPv4Interface("198.18.0.77/32"), IPv6Interface("2001:2::1/64")]
    host.links |= {"eth1": [IPv4Interface("192.168.1.10/24"), IPv4Interface("9.9.9.9/24")], "docker0": [IPv4Interface("172.17.0.1/16")]}
    host.look()
    assert [str(one) for one in host.home.further()] == ["9.9.9.9", "198.18.0.77", "2001:2::1"]
