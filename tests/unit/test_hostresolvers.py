# SPDX-License-Identifier: Apache-2.0
"""The resolvers of the host: what of resolv.conf is read, and how it is followed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from plait.agent import hostresolvers
from plait.agent.dnssettings import DnsSettings, read_dns
from plait.agent.hostresolvers import HostResolvers, nameservers
from plait.serve.dns_link import Address, Upstreams
from plait.serve.dns_parent import DnsUnavailable

TEXTS: Mapping[str, tuple[Address, ...]] = {
    "": (),
    "search example.org\n# nameserver 192.0.2.9\n; nameserver 192.0.2.9\noptions ndots:2\n": (),
    "nameserver 192.0.2.1\nnameserver\t192.0.2.2 # the second\n  nameserver 192.0.2.1\n": (("192.0.2.1", 53), ("192.0.2.2", 53)),
    "nameserver 2001:db8::1\nnameserver fe80::1%eth0\n": (("2001:db8::1", 53), ("fe80::1", 53)),
    "nameserver\nnameserver nonsense\nnameserver 192.0.2.300\nnameserver 192.0.2.3": (("192.0.2.3", 53),),
    "nameserver 127.0.0.53\n": (("127.0.0.53", 53),),
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_file_names(text: str) -> None:
    assert nameservers(text) == TEXTS[text]


def settings(**raw: object) -> DnsSettings:
    return read_dns(raw, {})


class Host:
    """What the DNS process is told of a host's file."""

    def __init__(self, folder: Path) -> None:
        self.file, self.told = folder / "resolv.conf", list[Upstreams]()
        self.away = False
        self.resolvers = HostResolvers(self.tell, self.file)

    async def tell(self, upstreams: Upstreams) -> None:
        if self.away:
            raise DnsUnavailable("it is being replaced")
        self.told.append(upstreams)

    @property
    def places(self) -> tuple[Address, ...]:
        return self.told[-1].places


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_the_file_counts_unless_the_configuration_names_resolvers(host: Host) -> None:
    host.file.write_text("nameserver 192.0.2.1\n")
    await host.resolvers.look()
    assert not host.told, "nothing before it is configured"
    await host.resolvers.configure(settings(upstream_timeout="3s", upstream_limit=7))
    assert host.told[-1].parts() == ((("192.0.2.1", 53),), False, 3.0, 7)
    for named in (["192.0.2.7"], []):
        await host.resolvers.configure(settings(upstreams=named))
        host.file.write_text("nameserver 192.0.2.2\n")
        await host.resolvers.look()
        assert host.places == tuple((address, 53) for address in named)
    await host.resolvers.configure(settings())
    assert host.places == (("192.0.2.2", 53),)


async def test_it_is_followed_and_told_only_when_it_changes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostresolvers, "EVERY_S", 0.01)
    await host.resolvers.configure(settings())
    assert host.places == (), "there is no file"
    running = asyncio.create_task(host.resolvers.run())

    async def told(count: int) -> None:
        async with asyncio.timeout(5):
            while len(host.told) < count:  # noqa: ASYNC110 - the file gives no sign
                await asyncio.sleep(0.01)

    try:
        host.away = True
        host.file.write_text("nameserver 192.0.2.1\n")
        await asyncio.sleep(0.05)
        host.away = False
        await told(2)
        assert host.places == (("192.0.2.1", 53),), "what could not be told is told later"
        host.file.write_text("# the same\nnameserver 192.0.2.1\n")
        await asyncio.sleep(0.05)
        assert len(host.told) == 2
        host.file.unlink()
        await told(3)
        assert host.places == ()
    finally:
        running.cancel()
