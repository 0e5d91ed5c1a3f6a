# SPDX-License-Identifier: Apache-2.0
"""A resolver's socket inside a sandbox: who asks there counts as its own address, and nobody asks from the link."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.kernel import sh

from plait.kernel.linux import create_netns, delete_netns, open_resolver
from plait.serve.dns_link import SocketName
from plait.serve.dns_socket import Place, opened, place_of
from plait.serve.dns_sockets import Sockets

pytestmark = pytest.mark.root
HERE, OWN = "10.28.0.1", "192.0.2.7"
ASK = "import socket,sys;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.sendto(b'q',('10.28.0.1',53));print(s.getsockname())"


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[str]:
    """A sandbox with the address, and a machine on its link in a second namespace, `far`."""
    sandbox, far = tmp_path / "ns", tmp_path / "far"
    for path in (sandbox, far):
        create_netns(path)
    sh(f"nsenter --net={sandbox} ip link set lo up")
    sh(f"nsenter --net={sandbox} ip link add eth0 type veth peer name eth0 netns {far}")
    sh(f"nsenter --net={sandbox} ip addr add {OWN}/24 dev eth0 && nsenter --net={sandbox} ip link set eth0 up")
    sh(f"nsenter --net={far} ip addr add 192.0.2.1/24 dev eth0 && nsenter --net={far} ip link set eth0 up")
    sh(f"nsenter --net={far} ip route add {HERE} via {OWN}")
    yield str(sandbox)
    for path in (sandbox, far):
        delete_netns(path)


def udp() -> socket.socket:
    return opened(("udp", HERE, 53))


def test_who_asks_inside_is_the_sandboxs_own_address_and_the_link_is_not_heard(netns: str) -> None:
    with contextlib.closing(open_resolver(netns, HERE, OWN, udp)) as sock:
        sh(f'nsenter --net={netns} python3 -c "{ASK}"')
        assert sock.recvfrom(9)[1][0] == OWN
        sh(f'nsenter --net={netns.removesuffix("ns")}far python3 -c "{ASK}"')
        with pytest.raises(BlockingIOError):
            sock.recvfrom(9)
        with contextlib.closing(open_resolver(netns, HERE, OWN, lambda: opened(("tcp", HERE, 53)))):
            pass


def test_the_namespace_is_free_when_the_socket_is_closed(netns: str) -> None:
    open_resolver(netns, HERE, OWN, udp).close()
    with contextlib.closing(open_resolver(netns, HERE, OWN, udp)):
        pass


async def test_what_cannot_be_opened_inside_is_told_unless_it_is_the_containers_own_matter(netns: str) -> None:
    sockets = Sockets(open_resolver)

    def wanted(path: str, own: str = OWN) -> list[tuple[str, int]]:
        return [(str(Place(HERE, own, path)), 53)]

    assert await sockets.set(wanted(netns)) == ()
    assert {name[0] for name in sockets.held} == {"udp", "tcp"}
    held: dict[SocketName, socket.socket] = dict(sockets.held)
    assert await sockets.set(wanted(netns)) == () and sockets.held == held, "what is open stays"
    second = Sockets(open_resolver)
    assert await second.set(wanted(netns)) == () and not second.held, "a program there answers DNS itself"
    assert await second.set(wanted(f"{netns}-gone")) == () and not second.held
    errors = await second.set(wanted(netns, "192.0.2.99"))
    assert len(errors) == 2 and "invalid argument" in str(errors[0])
    assert len(await Sockets().set(wanted(netns))) == 2, "nobody who could"
    sockets.close()


@pytest.mark.parametrize("check", [lambda place: place_of(str(place)) == place, lambda place: place_of(place.address) is None])
def test_a_place_is_the_address_of_a_sockets_name(check: Callable[[Place], bool]) -> None:
    assert check(Place(HERE, OWN, "/run/ns/with@sign"))


async def test_a_sandbox_that_gets_another_address_is_answered_at_it_though_the_child_has_the_old_socket_still(netns: str) -> None:
    sockets = Sockets(open_resolver)
    assert await sockets.set([(str(Place(HERE, OWN, netns)), 53)]) == ()
    of_the_child = [sock.dup() for sock in sockets.held.values()]
    sh(f"nsenter --net={netns} ip addr del {OWN}/24 dev eth0 && nsenter --net={netns} ip addr add 192.0.2.8/24 dev eth0")
    assert await sockets.set([(str(Place(HERE, "192.0.2.8", netns)), 53)]) == () and len(sockets.held) == 2
    sh(f'nsenter --net={netns} python3 -c "{ASK}"')
    (asked,) = (sock for (protocol, _, _), sock in sockets.held.items() if protocol == "udp")
    assert asked.recvfrom(9)[1][0] == "192.0.2.8"
    for sock in of_the_child:
        sock.close()
    sockets.close()
