# SPDX-License-Identifier: Apache-2.0
"""Routes with an MTU inside a sandbox: made, followed and taken away, without a look into it when there is nothing to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from plait.kernel.linux import LinuxKernel, create_netns, delete_netns, narrow
from plait.kernel.linux.netns import in_thread, unshare_net
from plait.model.addr import IPAddress, IPNetwork
from plait.model.objects import EndpointLink, Inside6, InsideRoutes, Key, Op, Route
from plait.reconcile import diff, order

pytestmark = pytest.mark.root
GATEWAY, GATEWAY6 = IPv4Address("10.28.0.1"), IPv6Address("fd00:28::1")
TO_B, TO_C, TO_B6 = IPv4Network("10.28.2.0/24"), IPv4Network("10.28.3.0/24"), IPv6Network("fd00:28::200/120")


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "ns"
    create_netns(path)
    yield str(path)
    delete_netns(path)


def link(netns: str) -> EndpointLink:
    through, six = (IPv4Network("10.28.0.0/16"),), Inside6(IPv6Address("fd00:28::2"), GATEWAY6, IPv6Network("fd00:28::/64"), False)
    address = IPv4Interface("10.28.0.2/32")
    return EndpointLink("pl-e1", 1450, mac="02:00:00:00:00:07", netns=netns, address=address, gateway=GATEWAY, through=through, inside6=six)


def wanted(netns: str, *ways: tuple[IPNetwork, int]) -> InsideRoutes:
    gateways: dict[int, IPAddress] = {4: GATEWAY, 6: GATEWAY6}
    routes = tuple(Route(to, "eth0", via=gateways[to.version], onlink=to.version == 4, mtu=mtu) for to, mtu in ways)
    return InsideRoutes("pl-e1", netns, "eth0", routes)


def found(netns: str) -> dict[str, str]:
    """Destination -> rest of the routes of ours there."""
    shown = [
        subprocess.run(
            ["nsenter", f"--net={netns}", "ip", family, "route", "show", "proto", "112"], check=True, capture_output=True, text=True
        )
        for family in ("-4", "-6")
    ]
    return dict(line.split(maxsplit=1) for one in shown for line in one.stdout.splitlines())


def with_kernel(netns: str, body: Callable[[Callable[..., int], Path], None], folder: Path) -> None:
    """`body` gets a pass to exactly these objects, which tells how much there was to do."""

    def run() -> None:
        unshare_net()
        kernels = [LinuxKernel(folder)]

        def converge(*objects: EndpointLink | InsideRoutes, anew: bool = False) -> int:
            if anew:
                kernels.append(LinuxKernel(folder))
            plan: dict[Key, EndpointLink | InsideRoutes] = {obj.key: obj for obj in objects}
            ops = order(diff(plan, {k: o for k, o in kernels[-1].owned().items() if k[0] in ("link", "inside")}, True))
            assert not kernels[-1].apply(ops).failed
            return len(ops)

        body(converge, folder)
        for kernel in kernels:
            kernel.close()

    in_thread(run)


def test_they_follow_what_is_wanted(netns: str, tmp_path: Path) -> None:
    def body(converge: Callable[..., int], folder: Path) -> None:
        converge(link(netns))
        assert not (folder / narrow.FILE).exists() and found(netns) == {}
        converge(link(netns), wanted(netns, (TO_B, 1350), (TO_C, 1300), (TO_B6, 1350)))
        assert {to: rest.split(" mtu ")[1].split()[0] for to, rest in found(netns).items()} == {
            "10.28.2.0/24": "1350",
            "10.28.3.0/24": "1300",
            "fd00:28::200/120": "1350",
        }
        converge(link(netns), wanted(netns, (TO_B, 1200)))
        assert list(found(netns)) == ["10.28.2.0/24"] and " mtu 1200" in found(netns)["10.28.2.0/24"]
        converge(link(netns))
        assert found(netns) == {} and converge(link(netns)) == 0

    with_kernel(netns, body, tmp_path)


def test_nobody_looks_into_the_sandbox_when_nothing_has_changed(netns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    opened = narrow.opened
    monkeypatch.setattr(narrow, "opened", lambda path: (entered.append(path), opened(path))[1])

    def body(converge: Callable[..., int], _: Path) -> None:
        plan = link(netns), wanted(netns, (TO_B, 1350))
        converge(*plan)
        assert entered == [netns]
        assert converge(*plan) == converge(*plan) == 0 and entered == [netns]

    with_kernel(netns, body, tmp_path)


def test_routes_that_the_container_made_stay(netns: str, tmp_path: Path) -> None:
    def body(converge: Callable[..., int], _: Path) -> None:
        converge(link(netns))
        enter = ["nsenter", f"--net={netns}", "ip", "route"]
        subprocess.run([*enter, "add", str(TO_B), "via", str(GATEWAY), "dev", "eth0", "mtu", "700"], check=True)
        converge(link(netns), wanted(netns, (TO_B, 1350), (TO_C, 1300)))
        assert list(found(netns)) == ["10.28.3.0/24"]
        converge(link(netns))
        shown = subprocess.run(enter, check=True, capture_output=True, text=True).stdout
        assert "10.28.2.0/24 via 10.28.0.1 dev eth0 mtu 700" in shown and "10.28.3.0" not in shown

    with_kernel(netns, body, tmp_path)


@pytest.mark.parametrize("still", [True, False])
def test_what_an_agent_of_before_made_is_found_again(netns: str, tmp_path: Path, still: bool) -> None:
    def body(converge: Callable[..., int], _: Path) -> None:
        converge(link(netns), wanted(netns, (TO_B, 1350), (TO_C, 1350)))
        rest = [wanted(netns, (TO_B, 1300))] if still else []
        assert converge(link(netns), *rest, anew=True) == 1
        assert [" mtu 1300" in line for line in found(netns).values()] == [True] * still
        assert converge(link(netns), *rest) == 0

    with_kernel(netns, body, tmp_path)


def test_a_link_that_is_made_again_gets_them_again(netns: str, tmp_path: Path) -> None:
    def body(converge: Callable[..., int], _: Path) -> None:
        plan = link(netns), wanted(netns, (TO_B, 1350))
        converge(*plan)
        subprocess.run(["ip", "link", "del", "pl-e1"], check=True)
        converge(*plan)
        assert list(found(netns)) == ["10.28.2.0/24"] and converge(*plan) == 0

    with_kernel(netns, body, tmp_path)


def test_a_sandbox_that_is_gone_is_told_and_forgotten(netns: str, tmp_path: Path) -> None:
    def run() -> None:
        unshare_net()
        kernel = LinuxKernel(tmp_path)
        assert not kernel.apply([Op("put", link(netns))]).failed
        for subject, text in (
            (wanted("/nowhere", (TO_B, 1350)), "No such file"),
            (InsideRoutes("pl-e9", netns, "eth0", ()), "into no sandbox"),
        ):
            failed = kernel.apply([Op("put", subject)]).failed
            assert text in str(failed[subject.key])
        assert not kernel.apply([Op("del", None, wanted("/nowhere"))]).failed
        assert ("inside", "pl-e1") not in kernel.owned()
        kernel.close()

    in_thread(run)
