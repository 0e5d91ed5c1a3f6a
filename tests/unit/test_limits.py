# SPDX-License-Identifier: Apache-2.0
"""Limits: words, what counts for an endpoint, the objects that hold it, the agent's book of what was told. No kernel but the fake one."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.limits import check_asked
from plait.backends import BACKENDS, changed
from plait.backends.settings import settle
from plait.kernel.dryrun import render
from plait.kernel.linux.netlink import NetlinkSocket
from plait.kernel.linux.tc import TrafficControl
from plait.model.cluster import Endpoint, Network, PortMapping
from plait.model.errors import ConfigError, KernelError, NotFound, NotSupported
from plait.model.limits import (
    COUNTED,
    LABEL_PREFIX,
    LARGEST_RATE,
    LEAST_RATE,
    UNSAID,
    Limit,
    Limits,
    largest_burst,
    limits_of,
    parse_burst,
    parse_count,
    parse_rate,
    rate_text,
    read_or_unsaid,
)
from plait.model.nfttext import hooked_device
from plait.model.objects import NftChain, NftSet, Op
from plait.model.ports import parse_inside
from plait.model.shortcut import Delivery
from plait.model.tc import BURST_STEP, IfbLink, PortClass, PortQueues, Redirect, Tbf
from plait.plan.limits import has_chain, limitable
from plait.runtimes.api import AttachRequest, NetworkRequest
from plait.shaping import Limiting, Means, counted_objects, counted_rules, effective, led_away, limit_objects, unmet
from plait.shaping.counts import BYTE_METER, METER

A, N = IPv4Address, IPv4Network
NET = Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24)
WEB = Endpoint("e1", "default", "A", A("10.28.0.2"), "02:00:00:00:00:01", "pl-e1", "docker", name="web")
TEN_IN = Limits(Limit(10_000_000, drop=True))
TEN, FAST = Limit(10_000_000), Limit(1_000_000_000)


# --- words


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10M", 10_000_000),
        ("1G", 1_000_000_000),
        ("512kbit", 512_000),
        ("512K", 512_000),
        ("10mbit", 10_000_000),
        ("1.5gbit", 1_500_000_000),
        ("10Mibit", 10_485_760),
        ("64000", 64_000),
        ("64000bit", 64_000),
        (" 8 kbit ", 8_000),
        ("32gbit", 32_000_000_000),
        ("none", 0),
    ],
)
def test_rates_are_read_as_tc_writes_them(text: str, rate: int) -> None:
    assert parse_rate(text, "in") == rate


@pytest.mark.parametrize("text", ["", "fast", "-1M", "10T", "1e9", "10MM", "M", "7kbit", "33gbit", "0", "nan", "10 Mbit/s", "１０M"])
def test_what_is_no_rate_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"in: .*write 512kbit, 10M or 1G \(8kbit to 32gbit"):
        parse_rate(text, "in")


@pytest.mark.parametrize(
    ("text", "bits"), [("10mbps", "10Mbit"), ("10MB/s", "10Mbit"), ("10kbps", "10Kbit"), ("1000bps", "1000bit"), ("1 gb/s", "1Gbit")]
)
def test_what_means_bytes_to_some_and_bits_to_others_is_refused(text: str, bits: str) -> None:
    with pytest.raises(ConfigError, match=bits):
        parse_rate(text, "in")


@given(st.integers(LEAST_RATE, LARGEST_RATE))
def test_a_rate_that_is_shown_is_read_back(rate: int) -> None:
    assert parse_rate(rate_text(rate), "in") == rate


@given(st.text(max_size=12))
def test_any_text_is_a_rate_or_refused(text: str) -> None:
    try:
        rate = parse_rate(text, "in")
    except ConfigError:
        return
    assert rate == 0 or LEAST_RATE <= rate <= LARGEST_RATE


def test_bursts_are_bytes() -> None:
    assert [parse_burst(text, "burst") for text in ("1500", "64k", "64kb", "1m", "2MiB", "9b")] == [1500, 65536, 65536, 1 << 20, 2 << 20, 9]
    for text in ("", "0", "64kbit", "-1", "1.5k", "1g"):
        with pytest.raises(ConfigError, match="write bytes, 64k or 1m"):
            parse_burst(text, "burst")


def test_numbers_a_second_are_read() -> None:
    assert [parse_count(text, "packets-in") for text in ("1", "200", "50k", " 10M ", "none")] == [1, 200, 50_000, 10_000_000, 0]
    for text in ("", "0", "-1", "1.5k", "10/s", "11m", "10G", "1k0", "٣"):
        with pytest.raises(ConfigError, match=r"packets-in: .*write how many a second, 200 or 50k \(1 to 10000000\), or none"):
            parse_count(text, "packets-in")


def test_labels_say_numbers_beside_rates_or_alone() -> None:
    labels = {"plait.limit.connections-in": "50", "plait.limit.packets-out": "none"}
    assert limits_of(labels, LABEL_PREFIX) == Limits(connections_in=50, packets_out=0)
    assert limits_of({**labels, "plait.limit.out": "10M"}, LABEL_PREFIX) == Limits(None, TEN, connections_in=50, packets_out=0)


def test_labels_say_limits_of_both_directions() -> None:
    labels = {"plait.limit.in": "10M", "plait.limit.out": "none", "plait.limit.burst": "32k", "plait.limit.manner": "drop", "app": "web"}
    assert limits_of(labels, LABEL_PREFIX) == Limits(Limit(10_000_000, 32768, True), Limit(0, 32768, True))
    assert limits_of({"app": "web"}, LABEL_PREFIX) == UNSAID


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"plait.limit.in": "fast"}, "plait.limit.in: 'fast' is no rate"),
        ({"plait.limit.up": "10M"}, "plait.limit.up: '10M' is not known; use one of plait.limit.in, plait.limit.out"),
        ({"plait.limit.in": "10M", "plait.limit.manner": "queue"}, "plait.limit.manner: 'queue' is not possible; one of shape, drop"),
        ({"plait.limit.packets-in": "many"}, "plait.limit.packets-in: 'many' is no number a second; write how many"),
        ({"plait.limit.packets-in": "9", "plait.limit.manner": "drop"}, "plait.limit.manner: 'drop' says nothing by itself"),
        ({"plait.limit.burst": "32k"}, "says nothing by itself; give plait.limit.in, plait.limit.out"),
        ({"plait.limit.in": "10M", "plait.limit.burst": "2m"}, "would be no limit for more than a second; at most 1250000 bytes at 10mbit"),
    ],
)
def test_wrong_words_are_refused_by_name_and_count_as_nothing_once_they_are_there(labels: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        limits_of(labels, LABEL_PREFIX)
    assert said in str(refused.value)
    assert read_or_unsaid(labels, LABEL_PREFIX) == UNSAID


# --- what counts


def test_the_nearer_word_counts_each_direction_by_itself() -> None:
    network = replace(NET, options={"limit-in": "1M", "limit-out": "2M"})
    assert effective(WEB, network) == Limits(Limit(1_000_000), Limit(2_000_000))
    labelled = replace(WEB, labels={"plait.limit.in": "3M"})
    assert effective(labelled, network) == Limits(Limit(3_000_000), Limit(2_000_000))
    engine = replace(labelled, limits=Limits(incoming=Limit(4_000_000)))
    assert effective(engine, network) == Limits(Limit(4_000_000), Limit(2_000_000))
    assert effective(engine, network, Limits(Limit(5_000_000))) == Limits(Limit(5_000_000), Limit(2_000_000))
    assert effective(engine, network, Limits(Limit(0), Limit(0))) == UNSAID, "none is a word too"
    counting = replace(NET, options={"limit-packets-in": "10", "limit-connections-in": "20"})
    assert effective(WEB, counting) == Limits(packets_in=10, connections_in=20)
    assert effective(WEB, counting, Limits(TEN, packets_in=0)) == Limits(TEN, connections_in=20)


def test_what_a_kernel_cannot_keep_is_left_out_and_named() -> None:
    both = Limits(TEN, FAST)
    for able, kept, lacks in (
        ({"tbf", "ifb", "fwd"}, both, ()),
        ({"tbf", "ifb", "redirect"}, both, ()),
        ({"tbf", "ifb"}, Limits(TEN), ("out",)),
        ({"tbf", "fwd", "redirect"}, Limits(TEN), ("out",)),
        ({"ifb", "fwd"}, UNSAID, ("in", "out")),
        (set(), UNSAID, ("in", "out")),
    ):
        means = Means.of(able)
        assert means.within(both) == kept
        assert unmet(both, means) == lacks
        assert Limiting({("default", "web"): both}, means).of(WEB, NET) == kept
    assert unmet(UNSAID, Means()) == ()
    numbers = Limits(packets_in=1, packets_out=2, connections_in=3, connections_out=4)
    for able, lacks in (
        ({"metered", "egress"}, ()),
        ({"metered"}, ("packets-in", "connections-in")),
        ({"egress", "tbf", "ifb", "fwd"}, COUNTED),
    ):
        assert set(unmet(numbers, Means.of(able))) == set(lacks)
        assert set(Means.of(able).within(numbers).words()) == set(COUNTED) - set(lacks)


# --- objects


def test_what_comes_in_is_held_back_on_the_link_what_goes_out_on_a_device_of_its_own() -> None:
    objects = limit_objects("pl-e1", 1450, Limits(TEN, FAST))
    assert [obj.key for obj in objects] == [("qdisc", "pl-e1"), ("link", "pl-i1"), ("qdisc", "pl-i1"), ("redirect", "pl-e1")]
    assert objects[1] == IfbLink("pl-i1") and objects[3] == Redirect("pl-e1", "pl-i1")
    assert [obj.key for obj in limit_objects("pl-e1", 1450, Limits(None, TEN))] == [o.key for o in objects[1:]]
    assert limit_objects("pl-e1", 1450, Limits(TEN, FAST), by_rule=True) == objects[:3], "a rule leads there, if there are such rules"
    assert led_away("pl-e1")[-1] == 'fwd to "pl-i1"'
    assert limit_objects("pl-e1", 1450, UNSAID) == []


def test_a_rate_is_goodput_of_full_packets() -> None:
    (bucket,) = limit_objects("pl-e1", 1450, Limits(TEN))
    assert isinstance(bucket, Tbf)
    frames = bucket.rate / (1450 + 14)
    assert frames * (1450 - 52) * 8 == pytest.approx(10_000_000, rel=1e-5)


@given(
    st.integers(LEAST_RATE, LARGEST_RATE).flatmap(
        lambda rate: st.builds(Limit, st.just(rate), st.integers(0, largest_burst(rate)), st.booleans())
    ),
    st.integers(576, 9000),
)
def test_every_bucket_passes_full_packets_and_fits_what_the_kernel_counts_in(limit: Limit, mtu: int) -> None:
    (bucket,) = limit_objects("pl-e1", mtu, Limits(limit))
    assert isinstance(bucket, Tbf)
    assert bucket.burst % BURST_STEP == 0 and bucket.burst >= max(limit.burst, 2 * (mtu + 14))
    assert 0 < bucket.rate < 1 << 33 and bucket.burst <= bucket.limit < 1 << 32
    assert bucket.burst / bucket.rate * 10**9 / 64 < 1 << 32, "ticks"
    assert (bucket.limit == bucket.burst) == limit.drop


def test_an_endpoint_without_a_side_on_the_host_cannot_be_limited() -> None:
    child = Network("lan", N("192.0.2.0/24"), A("192.0.2.1"), 28, backend="macvlan", options={"parent": "eth1"})
    assert limitable(NET, "docker") and not limitable(child, "docker") and not limitable(NET, "host")


@pytest.mark.parametrize(("number", "passes"), [(errno.EOPNOTSUPP, True), (errno.ENOBUFS, False)])
def test_a_kernel_without_traffic_control_has_none(number: int, passes: bool) -> None:
    class Without:
        def dump(self, kind: int, body: bytes) -> list[tuple[int, bytes]]:
            raise OSError(number, "no")

    control = TrafficControl(cast(NetlinkSocket, Without()))
    with contextlib.nullcontext() if passes else pytest.raises(OSError):
        assert control.read({1: "pl-e1"}) == []


def test_numbers_are_elements_and_nobody_else_has_a_rule_for_them() -> None:
    held = [("pl-e1", Limits(packets_in=1000, connections_out=5)), ("pl-e2", Limits(connections_out=20)), ("pl-e3", Limits(TEN))]
    sets = {obj.name: obj.elements for obj in counted_objects(held) if isinstance(obj, NftSet)}
    assert sets == {
        "packets_in": {'"pl-e1" limit rate over 1000/second burst 100 packets counter'},
        "connections_out": {
            '"pl-e1" limit rate over 5/second counter',
            '"pl-e2" limit rate over 20/second burst 20 packets counter',
        },
    }
    (chain,) = (obj for obj in counted_objects(held) if isinstance(obj, NftChain))
    assert (chain.name, hooked_device(chain.hook), chain.rules) == ("to_pl-e1", "pl-e1", ("meta protocol != arp oifname @packets_in drop",))
    assert counted_rules(held[0][1], "out") == ("tcp flags syn / fin,syn,rst,ack iifname @connections_out drop",)
    assert counted_rules(held[2][1], "out") == () and counted_objects([held[2]]) == []


def test_ports_of_a_switch_of_others_have_rates_and_no_numbers() -> None:
    switch = Network(
        "lan", N("192.0.2.0/24"), A("192.0.2.1"), 28, backend="vlan", options={"parent": "br0", "vlan": "7", "switch": "openvswitch"}
    )
    assert limitable(switch, "docker") and not has_chain(switch)
    request = AttachRequest(endpoint="e", network="lan", runtime="docker", container="c", name="web", labels={"plait.limit.in": "10M"})
    check_asked(switch, request, None)
    with pytest.raises(NotSupported, match="its switch is not plait's; limit them there"):
        check_asked(switch, replace(request, labels={"plait.limit.packets-in": "10"}), None)


# --- networks


def test_a_network_says_limits_for_all_of_its_endpoints() -> None:
    (made,) = changed(NET, {"limit-in": "10M"}, BACKENDS.values(), [NET])
    assert effective(WEB, made) == Limits(TEN)
    (more,) = changed(made, {"limit-manner": "drop"}, BACKENDS.values(), [made])
    assert effective(WEB, more) == Limits(replace(TEN, drop=True))
    (gone,) = changed(more, {"limit-in": "none"}, BACKENDS.values(), [more])
    assert effective(WEB, gone) == UNSAID
    for wrong in ({"limit-in": "fast"}, {"limit-manner": "drop"}, {"limit-up": "1M"}):
        with pytest.raises(ConfigError):
            changed(NET, wrong, BACKENDS.values(), [NET])
    with pytest.raises(ConfigError, match="limit-in: '10M' means nothing to backend macvlan"):
        settle({"backend": "macvlan", "parent": "eth1", "limit-in": "10M"}, BACKENDS.values(), [])


# --- the agent's book


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    store = Cuttable()
    async with nodes(store, tmp_path, "A", "B") as (a, _):
        yield a
    await store.close()


def buckets(node: FakeNode) -> dict[str, int]:
    return {obj.dev[:4]: obj.rate for obj in node.kernel.objects.values() if isinstance(obj, Tbf)}


async def test_an_attach_with_labels_makes_what_the_next_pass_finds_and_leaves_nothing(node: FakeNode) -> None:
    await node.converge()
    before = dict(node.kernel.objects)
    await node.attach("web", labels={"plait.limit.in": "10M", "plait.limit.out": "20M"})
    held = buckets(node)
    assert held.keys() == {"pl-e", "pl-i"} and held["pl-e"] * 2 == pytest.approx(held["pl-i"], rel=1e-5)
    assert any(isinstance(obj, NftChain) and 'fwd to "pl-i' in "".join(obj.rules[-1:]) for obj in node.kernel.objects.values())
    assert await node.converge() == 0
    await node.detach("web")
    assert await node.converge() == 0
    assert node.kernel.objects == before


async def test_numbers_are_in_force_when_an_attach_returns_and_leave_nothing(node: FakeNode) -> None:
    await node.converge()
    before = dict(node.kernel.objects)
    await node.attach("web", labels={"plait.limit.connections-in": "50", "plait.limit.packets-out": "9k"})
    assert sorted(metered_words(node)) == ["connections_in", "packets_out"]
    assert await node.converge() == 0
    (endpoint,) = node.ops.endpoints("sandbox").values()
    node.kernel.dropped = {"connections_in": {endpoint.dev: 7}, "packets_out": {"pl-other": 9}}
    rows = [(row["what"], row["direction"], row["rate"], row["dropped"], row["held"]) for row in await node.book.rows()]
    assert rows == [("packets", "out", 9000, 0, True), ("connections", "in", 50, 7, True)]
    await node.book.tell("web", "", Limits(connections_in=0))
    assert metered_words(node) == ["packets_out"]
    await node.book.forget("web", "")
    await node.detach("web")
    await node.converge()
    assert node.kernel.objects == before


async def test_an_attach_is_refused_if_the_kernel_refuses_its_numbers(node: FakeNode) -> None:
    await node.converge()
    node.kernel.fail_next(("nft", "set", "packets_in", "netdev"), times=2)
    with pytest.raises(KernelError, match="packets_in"):
        await node.attach("web", labels={"plait.limit.packets-in": "10"})
    assert not node.ops.endpoints("sandbox")
    await node.attach("web")
    node.kernel.fail_next(("nft", "set", "packets_in", "netdev"))
    with pytest.raises(KernelError, match="packets_in"):
        await node.book.tell("web", "", Limits(packets_in=10))
    await node.converge()
    assert metered_words(node) == ["packets_in"], "it is tried again"


async def test_a_published_port_is_limited_by_itself(node: FakeNode) -> None:
    await node.converge()
    before = dict(node.kernel.objects)
    await node.attach("web", labels={"plait.ports.limit.connections-in": "50"}, ports=(PortMapping("tcp", 8080, 80),))
    assert metered_words(node) == ["port_connections_in"] and await node.converge() == 0
    with pytest.raises(NotFound, match=r"container 'web' does not publish its port 53/udp: it publishes 0.0.0.0:8080->80/tcp"):
        await node.book.tell("web", "", TEN_IN, "53/udp")
    await node.book.tell("web", "", replace(TEN_IN, connections_in=0), "80/tcp")
    (endpoint,) = node.ops.endpoints("sandbox").values()
    key = f"{endpoint.address} . tcp . 80"
    assert elements(node, "port_in") == {f"{key} limit rate over 1261222 bytes/second burst 128 kbytes counter"}
    node.kernel.dropped = {"port_in": {key: 7}}
    rows = [(row["port"], row["what"], row["direction"], row["rate"], row["by"], row["dropped"]) for row in await node.book.rows()]
    assert rows == [("80/tcp", "rate", "in", TEN.rate, "command", 7), ("80/tcp", "connections", "in", 0, "command", 0)]
    await node.stop()
    await node.start()
    await node.converge()
    assert elements(node, "port_in"), "it outlives the agent"
    await node.detach("web")
    assert metered_words(node) == [], "the address may be another's at once"
    assert [(row["port"], row["running"]) for row in await node.book.rows()] == [("80/tcp", False), ("80/tcp", False)]
    with pytest.raises(NotFound, match="nothing was set for port 81/tcp of container 'web'"):
        await node.book.forget("web", "", "81/tcp")
    await node.book.forget("web", "", "80/tcp")
    assert await node.book.rows() == []
    assert await node.converge() == 0 and node.kernel.objects == before


async def test_ports_of_a_kernel_without_such_sets_are_named_and_refused(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = node.kernel.capabilities()
    monkeypatch.setattr(node.kernel, "capabilities", lambda: everything - {"metered"})
    await node.attach("web", labels={"plait.ports.limit.in": "10M"}, ports=(PortMapping("tcp", 8080, 80),))
    assert metered_words(node) == []
    assert list(node.book.lacking().values()) == [
        "ports of container web on network default are not limited: this host's kernel lacks something (it needs sets whose elements have "
        "limits (Linux 5.7, nft_limit)); load the modules"
    ]
    assert [row["held"] for row in await node.book.rows()] == [False]
    with pytest.raises(NotSupported, match="limiting port 80/tcp of container 'web'"):
        await node.book.tell("web", "", TEN_IN, "80/tcp")


def port_queues(node: FakeNode) -> dict[str, list[int]]:
    """Minor numbers of the classes, by the beginning of the link's name."""
    found = (obj for obj in node.kernel.objects.values() if isinstance(obj, PortQueues))
    return {obj.dev[:4]: [one.minor for one in obj.classes] for obj in found}


async def test_a_published_port_has_a_queue_if_that_is_said(node: FakeNode) -> None:
    await node.converge()
    before = dict(node.kernel.objects)
    ports = (PortMapping("tcp", 8080, 80), PortMapping("udp", 5300, 53))
    await node.attach("web", labels={"plait.ports.limit.out": "5M", "plait.ports.limit.manner": "shape"}, ports=ports)
    await node.converge()
    (endpoint,) = node.ops.endpoints("sandbox").values()
    sending = {f"{endpoint.address} . udp . 53 : 72:10", f"{endpoint.address} . tcp . 80 : 72:11"}
    assert port_queues(node) == {"pl-i": [0x10, 0x11]} and elements(node, "port_queue_out") == sending
    await node.book.tell("web", "", Limits(TEN), "80/tcp")
    assert port_queues(node) == {"pl-i": [0x10, 0x11], "pl-e": [0x11]}, "the class stays the port's, whatever others have"
    assert elements(node, "port_queue_in") == {f"{endpoint.address} . tcp . 80 : 71:11"}
    assert [(row["port"], row["direction"], row["manner"], row["held"], row["burst"]) for row in await node.book.rows()] == [
        ("53/udp", "out", "shape", True, 0),
        ("80/tcp", "in", "shape", True, 0),
        ("80/tcp", "out", "shape", True, 0),
    ]
    await node.book.tell("web", "", Limits(FAST))
    assert port_queues(node)["pl-e"] == [1, 2, 0x11] and buckets(node) == {}
    assert (await node.book.rows())[0]["burst"] == 256 << 10, "that of the container"
    await node.book.tell("web", "", Limits(replace(TEN, drop=True), replace(TEN, drop=True)), "80/tcp")
    assert port_queues(node) == {"pl-i": [0x10]} and buckets(node).keys() == {"pl-e"}
    assert metered_words(node) == ["port_in", "port_out"]
    await node.detach("web")
    for port in ("80/tcp", ""):
        await node.book.forget("web", "", port) if await node.book.rows() else None
    assert await node.converge() == 0 and node.kernel.objects == before


@pytest.mark.parametrize(("lost", "kept"), [("htb", []), ("fwd", ["in"]), ("ifb", ["in"]), ("metered", ["in", "out"])])
async def test_queues_that_a_kernel_cannot_have_are_named_and_refused(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, lost: str, kept: list[str]
) -> None:
    everything = node.kernel.capabilities()
    monkeypatch.setattr(node.kernel, "capabilities", lambda: everything - {lost})
    labels = {f"plait.ports.limit.{word}": text for word, text in (("in", "5M"), ("out", "5M"), ("manner", "shape"))}
    await node.attach("web", labels=labels, ports=(PortMapping("tcp", 8080, 80),))
    assert [row["direction"] for row in await node.book.rows() if row["held"]] == kept
    assert port_queues(node).keys() == {{"in": "pl-e", "out": "pl-i"}[word] for word in kept}
    said = " ".join(node.book.lacking().values())
    for word, what in (("in", "what comes to a port needs sch_htb"), ("out", "what a port answers needs sch_htb, ifb and nft_fwd_netdev")):
        assert (what in said) == (word not in kept)
        if word not in kept:
            with pytest.raises(NotSupported, match=what):
                await node.book.tell("web", "", Limits(TEN) if word == "in" else Limits(outgoing=TEN), "80/tcp")


def test_a_limit_of_the_container_is_shared_by_the_queues_of_its_ports() -> None:
    ports = {"in": {0x10: ("80/tcp", TEN), 0x11: ("81/tcp", FAST)}}
    (alone,) = limit_objects("pl-e1", 1450, UNSAID, ports=ports)
    assert isinstance(alone, PortQueues)
    ten, fast = alone.classes
    (bucket,) = limit_objects("pl-e1", 1450, Limits(TEN))
    assert isinstance(bucket, Tbf)
    assert ten == PortClass(0x10, bucket.rate, bucket.rate, bucket.burst, bucket.limit), "as it would be in a bucket"
    (slow,) = limit_objects("pl-e1", 1450, UNSAID, ports={"in": {0x10: ("80/tcp", Limit(100_000))}})
    assert isinstance(slow, PortQueues) and slow.classes[0].limit > 64 << 10, "the largest packet finds room"
    (both,) = limit_objects("pl-e1", 1450, Limits(TEN), ports=ports)
    assert isinstance(both, PortQueues)
    whole, others, *queues = both.classes
    assert (whole.minor, whole.rate, whole.limit) == (1, bucket.rate, 0) and others.minor == 2
    assert {one.ceil for one in (whole, others, *queues)} == {bucket.rate}, "none has more than the container"
    assert others.rate + sum(one.rate for one in queues) <= bucket.rate < fast.rate


def test_queues_of_ports_are_shown_as_tc_lines() -> None:
    wanted = PortQueues("pl-e1", (PortClass(0x10, 1000, 1000, 16384, 70000), PortClass(0x11, 500, 500, 16384, 70000)))
    lines = render(Op("put", wanted))
    assert lines[:3] == [
        "tc qdisc replace dev pl-e1 root handle 71: htb default 2",
        "tc class replace dev pl-e1 parent 71: classid 71:10 htb rate 8000bit ceil 8000bit burst 16384 cburst 16384",
        "tc qdisc replace dev pl-e1 parent 71:10 bfifo limit 70000",
    ]
    assert render(Op("put", replace(wanted, classes=wanted.classes[:1]), wanted)) == ["tc class del dev pl-e1 classid 71:11", *lines[1:3]]
    whole = PortQueues("pl-e1", (PortClass(1, 1000, 1000, 16384, 0), wanted.classes[0]))
    assert render(Op("put", whole, wanted)) == [
        lines[0],
        "tc class replace dev pl-e1 parent 71: classid 71:1 htb rate 8000bit ceil 8000bit burst 16384 cburst 16384",
        lines[1].replace("parent 71: ", "parent 71:1 "),
        lines[2],
    ]
    assert render(Op("del", None, wanted)) == ["tc qdisc del dev pl-e1 root"]


async def test_wrong_words_of_ports_are_refused(node: FakeNode) -> None:
    for label in ("plait.ports.limit.burst", "plait.ports.limit.connections-out"):
        with pytest.raises(ConfigError, match=r"is not known; use one of plait.ports.limit.in, .*connections-in, plait.ports.limit.manner"):
            await node.attach("web", labels={label: "5"}, ports=(PortMapping("tcp", 8080, 80),))
    for labels, match in (({"in": "5M", "manner": "wait"}, "one of shape, drop"), ({"manner": "shape"}, "says nothing by itself")):
        with pytest.raises(ConfigError, match=match):
            said = {f"plait.ports.limit.{word}": text for word, text in labels.items()}
            await node.attach("web", labels=said, ports=(PortMapping("tcp", 8080, 80),))
    assert parse_inside("53/udp") == "53/udp" and parse_inside("80") == "80/tcp" and parse_inside("") == ""
    for wrong in ("8080:80", "80-81", "x", "0", "80/icmp"):
        with pytest.raises(ConfigError):
            parse_inside(wrong)


def elements(node: FakeNode, name: str) -> frozenset[str]:
    return next((obj.elements for obj in node.kernel.objects.values() if isinstance(obj, NftSet) and obj.name == name), frozenset())


def metered_words(node: FakeNode) -> list[str]:
    return [obj.name for obj in node.kernel.objects.values() if isinstance(obj, NftSet) and obj.bounds in (METER, BYTE_METER)]


async def test_wrong_labels_are_refused_before_anything_is_made(node: FakeNode) -> None:
    await node.converge()
    before = dict(node.kernel.objects)
    with pytest.raises(ConfigError, match=r"plait\.limit\.in: 'fast' is no rate; write"):
        await node.attach("web", labels={"plait.limit.in": "fast"})
    assert node.kernel.objects == before and not node.ops.endpoints("sandbox") and not node.ops.held("")


async def test_an_attach_is_refused_if_the_kernel_refuses_its_limit(node: FakeNode) -> None:
    await node.converge()
    await node.attach("web")
    (dev,) = (e.dev for e in node.ops.endpoints("sandbox").values())
    await node.detach("web")
    node.kernel.fail_next(("qdisc", dev))
    with pytest.raises(KernelError, match="qdisc"):
        await node.attach("web", labels={"plait.limit.in": "10M"})
    assert not node.ops.endpoints("sandbox")


async def test_what_is_told_holds_at_once_and_over_restarts_of_container_and_agent(node: FakeNode) -> None:
    await node.attach("web", labels={"plait.limit.in": "1M"})
    before = buckets(node)
    await node.book.tell("web", "", Limits(TEN))
    told = buckets(node)
    assert told["pl-e"] == pytest.approx(before["pl-e"] * 10, rel=1e-5)
    await node.detach("web")
    assert [(row["container"], row["by"], row["running"]) for row in await node.book.rows()] == [("web", "command", False)]
    await node.stop()
    await node.start()
    await node.attach("web", labels={"plait.limit.in": "1M"})
    assert buckets(node) == told
    await node.book.tell("web", "default", Limits(outgoing=FAST))
    await node.book.tell("web", "default", Limits(outgoing=Limit(0)))
    assert [(row["direction"], row["rate"], row["held"]) for row in await node.book.rows()] == [("in", TEN.rate, True), ("out", 0, True)]
    assert buckets(node)["pl-e"] == told["pl-e"], "what is not said of stays"
    await node.book.forget("web", "")
    assert buckets(node) == before, "the label's again"


async def test_who_is_not_here_is_refused_with_where_he_is(tmp_path: Path) -> None:
    store = Cuttable()
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await b.attach("db")
        await b.publisher.publish()
        await a.until(lambda: any(e.name == "db" for e in a.view.snapshot.endpoints.values()))
        with pytest.raises(NotFound, match="it runs on B, set its limit there"):
            await a.book.tell("db", "", Limits(TEN))
        with pytest.raises(NotFound, match="`plait ps` lists"):
            await a.book.tell("nobody", "", Limits(TEN))
        with pytest.raises(NotFound, match="on network 'other'"):
            await b.book.tell("db", "other", Limits(TEN))
        with pytest.raises(NotFound, match="nothing was set for container 'db'"):
            await b.book.forget("db", "")
    await store.close()


async def test_a_container_is_found_by_its_id_too(node: FakeNode) -> None:
    key = "0123456789ab" * 5
    request = AttachRequest(endpoint=key, network="default", runtime="docker", container=key, name="web")
    await node.ops.attach(request)
    await node.book.tell(key[:12], "", Limits(TEN))
    assert [row["container"] for row in await node.book.rows()] == ["web"]
    with pytest.raises(NotFound):
        await node.book.tell(key[:6], "", Limits(TEN))
    await node.book.forget(key[:12], "")
    assert await node.book.rows() == []


async def test_what_the_kernel_lacks_is_named_and_refused_when_it_is_told(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = node.kernel.capabilities()
    monkeypatch.setattr(node.kernel, "capabilities", lambda: everything - {"ifb"})
    await node.attach("web", labels={"plait.limit.in": "10M", "plait.limit.out": "10M"})
    assert buckets(node).keys() == {"pl-e"}
    (text,) = node.book.lacking().values()
    assert "container web on network default is not limited" in text and "what it sends needs" in text
    assert [(row["direction"], row["held"]) for row in await node.book.rows()] == [("in", True), ("out", False)]
    with pytest.raises(NotSupported, match="what it sends needs sch_tbf, ifb"):
        await node.book.tell("web", "", Limits(outgoing=TEN))
    monkeypatch.undo()
    assert node.book.lacking() == {}
    await node.converge()
    assert buckets(node).keys() == {"pl-e", "pl-i"}


async def test_a_refusal_of_the_kernel_is_told_and_tried_again(node: FakeNode) -> None:
    await node.attach("web")
    (endpoint,) = node.ops.endpoints("sandbox").values()
    node.kernel.fail_next(("qdisc", endpoint.dev))
    with pytest.raises(KernelError, match=f"qdisc {endpoint.dev}"):
        await node.book.tell("web", "", Limits(TEN))
    await node.converge()
    assert buckets(node).keys() == {"pl-e"}


@pytest.mark.parametrize("told", [Limits(TEN), Limits(outgoing=TEN)])
async def test_nothing_goes_straight_into_a_container_that_is_held_back(node: FakeNode, told: Limits) -> None:
    def delivered() -> set[str]:
        return {obj.link for obj in node.kernel.objects.values() if isinstance(obj, Delivery)}

    node.fast_path = True
    await node.converge()
    await node.attach("free")
    await node.attach("born", labels={"plait.limit.in": "10M"})
    devs = {e.name: e.dev for e in node.ops.endpoints("sandbox").values()}
    assert delivered() == {devs["free"]}, "neither by the attach"
    await node.converge()
    assert delivered() == {devs["free"]}, "nor by a pass"
    await node.book.tell("free", "", told)
    assert delivered() == (set() if told.incoming else {devs["free"]})
    await node.book.forget("free", "")
    assert delivered() == {devs["free"]}


async def test_links_of_the_host_are_refused(node: FakeNode) -> None:
    await node.ops.ensure_network(NetworkRequest("lan", N("192.0.2.0/24"), options={"backend": "macvlan", "parent": "lo"}))
    with pytest.raises(NotSupported, match="on the link lo by itself"):
        await node.attach("web", "lan", labels={"plait.limit.in": "10M"})
    await node.attach("web", "lan")
    with pytest.raises(NotSupported, match="on the link lo by itself"):
        await node.book.tell("web", "", Limits(TEN))


async def test_a_networks_limit_reaches_containers_that_run(node: FakeNode) -> None:
    await node.attach("web")
    await node.ops.change_network("default", {"limit-out": "10M"})
    await node.converge()
    assert buckets(node).keys() == {"pl-i"}
    assert [(row["by"], row["direction"], row["held"]) for row in await node.book.rows()] == [("network", "out", True)]
    await node.ops.change_network("default", {"limit-out": "none"})
    await node.converge()
    assert buckets(node) == {} and not [key for key in node.kernel.objects if key[1].startswith("pl-i")]
