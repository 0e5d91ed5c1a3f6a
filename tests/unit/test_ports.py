# SPDX-License-Identifier: Apache-2.0
"""Ports as people write them, and publications that come and go while containers run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest
from tests.support.cluster import DEFAULT, FakeNode

from plait.agent import reports
from plait.agent.config import load_config
from plait.agent.kernelwork import PassReport
from plait.agent.ports import assign_ports
from plait.model.cluster import Container, Endpoint, PortMapping
from plait.model.errors import ConfigError, KernelError, NotFound, PortInUse
from plait.model.objects import NftSet
from plait.model.ports import labelled, parse_held, parse_ports, parse_sources
from plait.runtimes.api import AttachRequest
from plait.runtimes.docker.gateways import shared
from plait.store.memory import MemoryStore

A, A6 = IPv4Address, IPv6Address
WEB = PortMapping("tcp", 8080, 80)


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.agent.ports.listener", lambda *where: "nginx (pid 12)" if where[1] == 8443 else None)


# --- words


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("80", [PortMapping("tcp", 0, 80)]),
        ("0:80", [PortMapping("tcp", 0, 80)]),
        ("127.0.0.1::80", [PortMapping("tcp", 0, 80, A("127.0.0.1"))]),
        ("8080:80/sctp", [PortMapping("sctp", 8080, 80)]),
        ("8000-8002:90-92/udp", [PortMapping("udp", 8000 + n, 90 + n) for n in range(3)]),
        ("90-91", [PortMapping("tcp", 0, 90), PortMapping("tcp", 0, 91)]),
        ("[fd99::1]:8000-8001:80-81", [PortMapping("tcp", 8000 + n, 80 + n, A6("fd99::1")) for n in range(2)]),
    ],
)
def test_ports_are_written_as_docker_does(text: str, wanted: list[PortMapping]) -> None:
    assert list(parse_ports([text])) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither a port nor a range"),
        ("web", "neither a port nor a range"),
        ("80/icmp", r"is not \[ADDRESS:\]\[HOST:\]CONTAINER"),
        ("1:2:3:4", r"is not \[ADDRESS:\]\[HOST:\]CONTAINER"),
        ("80:65536", "outside 1 to 65535"),
        ("80:0", "outside 1 to 65535"),
        ("8000-8001:80", "ranges of different length"),
        ("8001-8000:80-81", "range that is empty or longer than 1024"),
        ("1-60000", "range that is empty or longer than 1024"),
        ("nowhere:80:80", "does not appear to be an IPv4 or IPv6 address"),
        ("80:٣", "neither a port nor a range"),
    ],
)
def test_what_is_no_port_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_ports([text])


@pytest.mark.parametrize(
    ("text", "meant", "shown"),
    [
        ("8080", True, "8080/tcp"),
        ("8080/udp", False, "8080/udp"),
        ("8000-8090", True, "8000-8090/tcp"),
        ("127.0.0.1:8080", False, "127.0.0.1:8080/tcp"),
        ("0.0.0.0:8080", True, "0.0.0.0:8080/tcp"),
        ("[::]:8080", False, "[::]:8080/tcp"),
    ],
)
def test_a_publication_is_named_by_its_host_side(text: str, meant: bool, shown: str) -> None:
    held = parse_held(text)
    assert (WEB in held) == meant and str(held) == shown


@pytest.mark.parametrize("text", ["", "8080:80:1", "x:80", "0", "80/x"])
def test_what_names_no_publication_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="port: "):
        parse_held(text)


def test_labels_say_for_whom_an_engines_ports_are() -> None:
    labels = {"plait.ports.from": "10.0.0.0/8, fd00::/8", "plait.ports.nat": "true"}
    told = replace(WEB, host_port=9, told=True)
    sources = parse_sources(["10.0.0.0/8", "fd00::/8"])
    assert labelled([WEB, told], labels) == (replace(WEB, sources=sources, hidden=True), told)
    assert labelled([WEB], {}) == (WEB,)
    for key, value, said in (
        ("plait.ports.from", "everywhere", "label plait.ports.from: 'everywhere' is no network or address"),
        ("plait.ports.from", "10.0.0.1/8", "has host bits set"),
        ("plait.ports.nat", "yes", "must be true or false"),
    ):
        with pytest.raises(ConfigError, match=said):
            labelled([WEB], {key: value})


def test_the_hosts_list_of_clients_is_a_list_of_networks(tmp_path: Path) -> None:
    file = tmp_path / "plait.toml"
    assert load_config(file).clients == ()
    file.write_text('[ports]\nfrom = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"]\n')
    assert load_config(file).clients == (ip_network("10.0.0.0/8"), ip_network("192.0.2.7"), ip_network("fd00::/8"))
    for text in ("[]", '"10.0.0.0/8"', '["10.0.0.1/8"]', "[10]", '["all"]'):
        file.write_text(f"[ports]\nfrom = {text}\n")
        with pytest.raises(ConfigError, match=r"ports\.from: .* must be a list of networks"):
            load_config(file)


# --- while containers run


@contextlib.asynccontextmanager
async def a_node(folder: Path) -> AsyncIterator[FakeNode]:
    node = FakeNode("A", 1, MemoryStore(), folder)
    await node.start()
    try:
        await attach(node, "web")
        yield node
    finally:
        await node.stop()


async def attach(node: FakeNode, name: str, ports: Sequence[PortMapping] = (), **more: object) -> Endpoint:
    request = AttachRequest(endpoint=f"e-{name}", network=DEFAULT, runtime="sandbox", container=name, name=name, ports=tuple(ports))
    return await node.ops.attach(replace(request, **more))  # type: ignore[arg-type]


def told(text: str, **more: object) -> PortMapping:
    return replace(parse_ports([text])[0], told=True, **more)  # type: ignore[arg-type]


def elements(node: FakeNode, name: str = "ports_any") -> set[str]:
    found = next(obj for obj in node.kernel.owned().values() if isinstance(obj, NftSet) and obj.name == name)
    return set(found.elements)


async def test_a_publication_by_command_comes_and_goes_while_the_container_runs(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        web = node.view.snapshot.endpoints["e-web"]
        assert await node.publications.publish("web", "", [told("8080:80"), told("8053:53/udp")]) == [
            "0.0.0.0:8080->80/tcp",
            "0.0.0.0:8053->53/udp",
        ]
        assert elements(node) == {f"tcp . 8080 : {web.address} . 80", f"udp . 8053 : {web.address} . 53"}
        await node.stop()
        await node.start()
        await node.converge()
        assert len(elements(node)) == 2, "it outlives the agent"
        assert await node.publications.unpublish("web", "", [parse_held("8080")]) == ["0.0.0.0:8080->80/tcp"]
        assert elements(node) == {f"udp . 8053 : {web.address} . 53"}
        await node.ops.detach("e-web")
        assert elements(node) == set(), "and goes with the container"
        await attach(node, "web")
        assert elements(node) == set()


async def test_any_free_port_is_taken_where_none_is_named(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        first, second = await node.publications.publish("web", "", [told("80"), told("80")])
        assert first != second and all(text.endswith("->80/tcp") for text in (first, second))


async def test_what_an_engine_asks_for_later_leaves_it_alone(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        await node.publications.publish("web", "", [told("9000:90")])
        assert await node.ops.publish("e-web", [WEB]) == (WEB,), "an engine is told of its own"
        assert await node.ops.publish("e-web", [WEB, PortMapping("tcp", 9000, 90)]) == (WEB,), "who asks for what is there already gets it"
        assert {p.host_port for p in node.view.snapshot.endpoints["e-web"].ports} == {8080, 9000}
        await node.ops.unpublish("e-web")
        assert [p.host_port for p in node.view.snapshot.endpoints["e-web"].ports] == [9000]
        await attach(node, "web", [WEB])
        assert {p.host_port for p in node.view.snapshot.endpoints["e-web"].ports} == {8080, 9000}
        sibling = replace(node.view.snapshot.endpoints["e-web"], id="e-2", ports=(told("9000:80"),))
        assert shared(sibling, [(WEB, 0)], [sibling]) == ([(WEB, 0)], {}), "nor does its other network move it"


async def test_the_same_again_says_anew_for_whom_it_is(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        await attach(node, "db", [WEB])
        await node.publications.publish("db", "", [told("8080:80", sources=parse_sources(["10.0.0.0/8"]))])
        (port,) = node.view.snapshot.endpoints["e-db"].ports
        assert (
            port.told and elements(node, "sources_any") == {"tcp . 8080 . 10.0.0.0/8"} and elements(node, "guarded_any") == {"tcp . 8080"}
        )
        await node.publications.publish("db", "", [told("8080:80")])
        assert elements(node, "sources_any") == set() == elements(node, "guarded_any")


async def test_what_stands_against_it_is_named_and_nothing_changes(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        await attach(node, "db", [WEB])
        before = node.view.snapshot.endpoints
        for container, text, error, said in (
            ("web", "8080:81", PortInUse, "published for 'db' already; choose another host port, or `plait unpublish` that one"),
            ("web", "8443:80", PortInUse, r"nginx \(pid 12\) listens on that port"),
            ("db", "8080:81", ConfigError, "0.0.0.0:8080/tcp' would lead to 80 and to 81"),
            ("none", "8081:80", NotFound, "this host has no container 'none'"),
        ):
            with pytest.raises(error, match=said):
                await node.publications.publish(container, "", [told(text)])
        for container, held, said in (
            ("db", "8081", "container 'db' does not publish 8081/tcp: it publishes 0.0.0.0:8080->80/tcp"),
            ("db", "", "does not publish anything by command"),
            ("web", "80", "it publishes nothing"),
        ):
            with pytest.raises(NotFound, match=said):
                await node.publications.unpublish(container, "", [parse_held(held)] if held else [])
        assert node.view.snapshot.endpoints == before


async def test_what_the_kernel_refuses_is_told_and_tried_again_by_every_pass(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        error = KernelError("nft", ("nft", "ports"), 1)
        node.next_report = PassReport(1, {("nft", "map", "ports_any"): error})
        with pytest.raises(KernelError):
            await node.publications.publish("web", "", [told("8080:80")])
        await node.converge()
        assert elements(node) != set()


async def test_an_engines_own_publication_may_be_given_up_too(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        await attach(node, "db", [WEB])
        await node.publications.unpublish("db", "", [parse_held("8080")])
        assert elements(node) == set()


async def test_those_who_ask_what_runs_learn_of_it(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        others = [Container("x", "x", "A", "sandbox"), Container("y", "y", "A", "sandbox", shares="web")]
        await node.ops.report("sandbox", [Container("web", "web", "A", "sandbox"), *others])
        await node.publications.publish("web", "", [told("8080:80", sources=parse_sources(["10.0.0.0/8"]), hidden=True)])
        rows = {row["name"]: row["ports"] for row in reports.container_rows(node.view.snapshot)}
        assert rows == {"web": ["0.0.0.0:8080->80/tcp"], "x": [], "y": []}
        (row,) = reports.port_rows(node.view.snapshot)
        assert (row["runtime"], row["by"], row["sources"], row["nat"]) == ("sandbox", "command", ["10.0.0.0/8"], True)
        assert reports.open_ports(node.view.snapshot) == []
        await node.publications.unpublish("web", "", [])
        assert all(not row["ports"] for row in reports.container_rows(node.view.snapshot)) and not reports.port_rows(node.view.snapshot)


async def test_the_chain_for_ports_by_nat_is_there_while_there_are_any(tmp_path: Path) -> None:
    """No pass is needed for it, which would look at all other chains too."""
    key = ("nft", "chain", "hidden")
    async with a_node(tmp_path) as node:
        await node.converge()
        assert key not in node.kernel.owned()
        node.next_report = unused = PassReport(1, {})
        for name, port in (("one", 8091), ("two", 8092)):
            await attach(node, name, [replace(WEB, host_port=port)], labels={"plait.ports.nat": "true"})
            assert key in node.kernel.owned()
        await node.ops.detach("e-one")
        assert key in node.kernel.owned(), "there is one still"
        await node.ops.detach("e-two")
        assert key not in node.kernel.owned() and node.next_report is unused


async def test_a_label_that_cannot_be_meant_stops_the_start(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        with pytest.raises(ConfigError, match=r"plait\.ports\.from"):
            await attach(node, "db", [WEB], labels={"plait.ports.from": "me"})
        assert "e-db" not in node.view.snapshot.endpoints
        await attach(node, "db", [WEB], labels={"plait.ports.from": "192.0.2.7"})
        assert elements(node, "sources_any") == {"tcp . 8080 . 192.0.2.7"}


def test_a_free_port_is_none_that_is_asked_for_beside_it() -> None:
    endpoint = Endpoint("e", DEFAULT, "A", A("10.28.0.2"), "02:00:00:00:00:01", "pl-e1", "sandbox")
    from plait.model.cluster import Snapshot

    snapshot = Snapshot("A", 1)
    free, fixed = assign_ports([PortMapping("tcp", 0, 80), PortMapping("tcp", 8080, 81)], endpoint, snapshot, [8080, 8081])
    assert (free.host_port, fixed.host_port) == (8081, 8080)


async def test_ports_that_are_open_to_everybody_are_those_without_sources_that_others_reach(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        local, narrow = told("127.0.0.1:81:80"), told("82:80", sources=parse_sources(["10.0.0.0/8"]))
        await node.publications.publish("web", "", [told("80:80"), local, narrow])
        assert reports.open_ports(node.view.snapshot) == ["0.0.0.0:80->80/tcp of web"]
