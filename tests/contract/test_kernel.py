# SPDX-License-Identifier: Apache-2.0
"""One text over the fake kernel, the real one, and the dry run over either. The real one is always a namespace that this test made for
itself; below a dry run it must be, at the end, what it was before."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

import pytest
from tests.support.kernel import OBJECTS, PLAN, PORT_QUEUES, SWITCH, SWITCHED, VXLAN, converge, in_namespace, make_linux, sh

from plait.kernel.api import Kernel, Op
from plait.kernel.dryrun import DryRunKernel
from plait.kernel.fake import FakeKernel
from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import create_netns, delete_netns, in_thread
from plait.model.hostlinks import Key
from plait.model.objects import (
    NO_MAC,
    Addr,
    BridgeFdb,
    BridgeLink,
    EndpointLink,
    Fdb,
    Flood,
    HookRule,
    KernelObject,
    Neigh,
    NftChain,
    NftElement,
    NftSet,
    Plan,
    Route,
    Sysctl,
)
from plait.model.tc import IfbLink, PortClass, PortQueues, Redirect, Tbf
from plait.reconcile import diff, order

pytestmark = pytest.mark.root
A, N, A6, N6 = IPv4Address, IPv4Network, IPv6Address, IPv6Network


def make_fake() -> Kernel:
    return FakeKernel(hooks=[(family, "filter", "DOCKER-USER") for family in ("ip", "ip6")])


Run = Callable[[Callable[[Kernel], None]], None]


MAKERS: dict[str, Callable[[], Kernel]] = {"fake": make_fake, "linux": make_linux}
NAMESPACE = (
    "ip -o link | cut -d' ' -f2; tc qdisc show; nft list ruleset; sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding;"
    "for f in -4 -6; do ip $f -o addr show scope global; ip $f route show table all proto 112; ip $f neigh show nud permanent; done"
)


def everything(kernel: Kernel) -> object:
    """All that there is in `kernel`, whosever it is."""
    return dict(kernel.objects) if isinstance(kernel, FakeKernel) else sh(NAMESPACE)


@pytest.fixture(params=["fake", "linux", "dryrun-fake", "dryrun-linux"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a body with a kernel, the real one in a thread that has a namespace of its own."""
    rehearsed, _, below = request.param.rpartition("-")

    def runner(body: Callable[[Kernel], None]) -> None:
        def work() -> None:
            kernel = MAKERS[below]()
            before = everything(kernel) if rehearsed else None
            try:
                body(DryRunKernel(kernel) if rehearsed else kernel)
                assert not rehearsed or everything(kernel) == before, "a dry run writes nothing"
            finally:
                kernel.close()

        in_thread(work)

    return runner


def test_what_is_put_is_read_back_equal_and_a_second_pass_writes_nothing(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        assert converge(kernel, PLAN) == len(PLAN)
        assert converge(kernel, PLAN) == 0
        held = kernel.owned([key for key in PLAN if key[0] in ("sysctl", "hook")])
        assert held == PLAN

    run(body)


def test_a_plan_of_nothing_leaves_nothing(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        converge(kernel, PLAN)
        converge(kernel, {})
        assert kernel.owned() == {}

    run(body)


BY_KEY = {obj.key: obj for obj in OBJECTS}
CHANGED: tuple[KernelObject, ...] = (
    replace(VXLAN, mac="02:00:00:00:00:99"),
    replace(VXLAN, mtu=1400),
    replace(VXLAN, vni=8),
    replace(VXLAN, local=A("127.0.0.1")),
    replace(VXLAN, tx_checksum=False),
    EndpointLink("pl-e1", 1400, peer="pl-p1", mac="02:00:00:00:00:02"),
    EndpointLink("pl-e4", 1500, peer="pl-p4", mac="02:00:00:00:00:04", master="pl-b1", hairpin=True),
    EndpointLink("pl-e4", 1500, peer="pl-p4", mac="02:00:00:00:00:04"),
    EndpointLink("pl-e1", 1450, peer="pl-p1", mac="02:00:00:00:00:02", master="pl-b1"),
    Neigh("pl-x1", A("10.28.2.0"), "02:00:00:00:00:77"),
    Fdb("pl-x1", "02:00:00:00:00:03", A("198.18.0.9")),
    Route(N("10.28.2.0/24"), "pl-x1", via=A("10.28.2.0"), onlink=True, src=A("10.28.1.0")),
    Route(N("10.28.2.0/24"), "pl-x1", via=A6("fe80::ff:fe00:9"), onlink=True, src=A("10.28.1.0")),
    Route(N("10.28.1.2/32"), "pl-gw", scope="link"),
    Neigh("pl-x1", A6("fe80::ff:fe00:3"), "02:00:00:00:00:77"),
    Fdb("pl-x2", "02:00:00:00:00:23", A6("fd99::9")),
    replace(VXLAN, name="pl-x2", local=A6("fd99::5"), mac="02:00:00:00:00:21", mtu=1430, vni=8),
    Route(N6("fd00:31::200/120"), "pl-x1", via=A6("fe80::ff:fe00:9"), src=A6("fd11::1")),
    Route(N6("fd00:31::102/128"), "pl-gw"),
    NftSet("pools6", "ipv6_addr", frozenset({"fd00:31::/64", "fd00:33::/64"}), ("interval",)),
    NftSet("pools", "ipv4_addr", frozenset({"10.28.0.0/16", "10.31.0.0/16"}), ("interval",)),
    NftChain("plain", ('iifname "pl-x*" accept', "ip saddr @pools drop")),
    replace(SWITCH, querier=False),
    replace(SWITCHED, switching=frozenset({"neigh_suppress"})),
    replace(SWITCHED, switching=frozenset({"learning", "mcast_flood"})),
    replace(SWITCHED, vni=10),
    BridgeFdb("pl-b2", "02:00:00:00:00:37", "pl-e5"),
    Tbf("pl-e1", 1_309_014, 16 << 10, 80 << 10),
    Tbf("pl-e1", 1_309_013, 17 << 10, 80 << 10),
    Tbf("pl-e1", 1_309_013, 16 << 10, 16 << 10),
    replace(PORT_QUEUES, classes=PORT_QUEUES.classes[1:]),
    replace(PORT_QUEUES, classes=PORT_QUEUES.classes[:-1]),
    replace(PORT_QUEUES, classes=(*PORT_QUEUES.classes, PortClass(0x13, 1, 1000, 4 << 10, 70_000))),
    replace(
        PORT_QUEUES, classes=(*PORT_QUEUES.classes[:-1], replace(PORT_QUEUES.classes[-1], ceil=2_000_000, burst=17 << 10, limit=99_999))
    ),
    PortQueues("pl-i2", (PortClass(0x11, 4_000_000_000, 4_000_000_000, 8 << 20, 200 << 20),), 0x72),
    Redirect("pl-e1", "pl-i2"),
    NftSet("ports", OBJECTS[17].type, frozenset({"127.0.0.1 . udp . 53 : 10.28.1.9 . 53"}), kind="map"),  # type: ignore[union-attr]
)


@pytest.mark.parametrize("changed", CHANGED, ids=lambda o: " ".join(o.key))
def test_a_changed_value_under_the_same_key_is_replaced(run: Run, changed: KernelObject) -> None:
    def body(kernel: Kernel) -> None:
        converge(kernel, PLAN)
        wanted = {**PLAN, changed.key: changed}
        assert converge(kernel, wanted) == 1
        for _ in range(2):  # a replaced device takes its routes with it: they come back in the next pass
            left = converge(kernel, wanted)
        assert left == 0
        assert kernel.owned()[changed.key] == changed

    run(body)


def test_a_link_with_another_mac_keeps_all_but_its_neighbours(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        converge(kernel, PLAN)
        changed = replace(VXLAN, mac="02:00:00:00:00:99")
        kernel.apply([Op("put", changed, VXLAN)])
        probes = [key for key in PLAN if key[0] in ("sysctl", "hook")]
        assert kernel.owned(probes) == {key: obj for key, obj in {**PLAN, changed.key: changed}.items() if key[:2] != ("neigh", "pl-x1")}

    run(body)


def test_a_tunnel_device_is_told_to_compute_checksums_or_not_and_keeps_all(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        converge(kernel, PLAN)
        software = replace(VXLAN, tx_checksum=False)
        for now, then in ((VXLAN, software), (software, VXLAN)):
            kernel.apply([Op("put", then, now)])
            assert kernel.owned(PLAN) == {**PLAN, then.key: then}

    run(body)


def test_a_port_of_a_bridge_that_is_missing_is_refused_and_one_whose_bridge_goes_stays(run: Run) -> None:
    bridge, port = (next(o for o in OBJECTS if o.key == ("link", name)) for name in ("pl-b1", "pl-e4"))
    assert isinstance(port, EndpointLink)

    def body(kernel: Kernel) -> None:
        failed = kernel.apply([Op("put", port)]).failed
        assert {key: error.errno for key, error in failed.items()} == {port.key: errno.ENODEV}
        kernel.apply([Op("del", None, port)])
        assert not kernel.apply([Op("put", bridge), Op("put", port)]).failed
        kernel.apply([Op("del", None, bridge)])
        assert kernel.owned() == {port.key: replace(port, master="", isolated=False)}

    run(body)


LIMITED, THROUGH = Tbf("pl-e1", 1_309_013, 16 << 10, 80 << 10), Tbf("pl-i1", 1_309_013, 16 << 10, 80 << 10)
HELD_BACK: Plan = {obj.key: obj for obj in (BY_KEY["link", "pl-e1"], IfbLink("pl-i1"), LIMITED, THROUGH, Redirect("pl-e1", "pl-i1"))}


def test_limits_go_with_their_link_and_a_redirection_to_nothing_is_seen(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        converge(kernel, HELD_BACK)
        kernel.apply([Op("del", None, IfbLink("pl-i1"))])
        gone = (("link", "pl-i1"), THROUGH.key)
        assert kernel.owned() == {key: obj for key, obj in HELD_BACK.items() if key not in gone} | {
            ("redirect", "pl-e1"): Redirect("pl-e1", "")
        }
        assert converge(kernel, HELD_BACK) == 3
        assert kernel.owned() == HELD_BACK
        kernel.apply([Op("del", None, BY_KEY["link", "pl-e1"])])
        assert kernel.owned() == {key: obj for key, obj in HELD_BACK.items() if key in gone}

    run(body)


def test_limits_without_link_or_device_are_refused_and_absent_ones_are_removed_all_the_same(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        for refused in (LIMITED, Redirect("pl-e1", "pl-i1")):
            failed = kernel.apply([Op("put", refused)]).failed
            assert {key: error.errno for key, error in failed.items()} == {refused.key: errno.ENODEV}
        converge(kernel, {("link", "pl-e1"): BY_KEY["link", "pl-e1"]})
        failed = kernel.apply([Op("put", Redirect("pl-e1", "pl-i1"))]).failed
        assert {key: error.errno for key, error in failed.items()} == {("redirect", "pl-e1"): errno.ENODEV}
        assert not kernel.apply([Op("del", None, gone) for gone in (LIMITED, THROUGH, Redirect("pl-e1", "pl-i1"))]).failed

    run(body)


ON_SWITCH = [obj for obj in OBJECTS if obj in (SWITCH, SWITCHED) or obj.key[1] in ("pl-b2", "pl-x3", "pl-e5")]
ROWS = [obj for obj in ON_SWITCH if isinstance(obj, BridgeFdb)]


def test_rows_of_a_bridge_go_with_it_and_with_the_port_they_lead_to(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        plan = {obj.key: obj for obj in ON_SWITCH}
        for gone in (SWITCH, SWITCHED, *(obj for obj in ON_SWITCH if isinstance(obj, EndpointLink))):
            converge(kernel, plan)
            kernel.apply([Op("del", None, gone)])
            left = [row for row in ROWS if gone is not SWITCH and row.port != gone.name]
            held = kernel.owned()
            assert [row for row in ROWS if row.key in held] == left
            if gone is SWITCH:
                assert held[SWITCHED.key] == replace(SWITCHED, master="", switching=frozenset()), "the tunnel stays, as port of none"
            refused = kernel.apply([Op("put", row) for row in ROWS if row not in left]).failed
            assert {error.errno for error in refused.values()} == {errno.EOPNOTSUPP if gone is SWITCH else errno.ENODEV}

    run(body)


def test_a_tunnel_leaves_its_bridge_and_comes_back(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        plan = {obj.key: obj for obj in (SWITCH, SWITCHED)}
        alone = replace(SWITCHED, master="", switching=frozenset())
        converge(kernel, plan)
        for wanted in (alone, SWITCHED):
            assert converge(kernel, {**plan, wanted.key: wanted}) == 1
            assert kernel.owned()[wanted.key] == wanted

    run(body)


def test_what_a_bridge_learns_and_its_own_addresses_are_nobodys_rows() -> None:
    """Only static rows are plait's; rows on bridges of others are none of its business."""

    def body(kernel: LinuxKernel) -> None:
        plan = {obj.key: obj for obj in ON_SWITCH}
        sh("ip link add other type bridge && ip link add mine type veth peer name mine2 && ip link set mine master other")
        sh("bridge fdb add 02:00:00:00:00:99 dev mine master static")
        converge(kernel, plan)
        sh("ip link set pl-p5 up; sleep 0.1; bridge fdb add 02:00:00:00:00:98 dev pl-e5 master dynamic")
        assert converge(kernel, plan) == 0
        sh("bridge fdb add 02:00:00:00:00:97 dev pl-e5 master static && bridge fdb append 00:00:00:00:00:00 dev pl-x3 dst 198.18.0.9")
        assert converge(kernel, plan) == 2, "what is not planned goes"
        rows = sh("bridge fdb show")
        assert "02:00:00:00:00:99" in rows and "02:00:00:00:00:98" in rows
        assert "02:00:00:00:00:97" not in rows and "198.18.0.9" not in rows and f"{NO_MAC} dev pl-x3 dst 198.18.0.2" in rows

    in_namespace(body)


def test_a_refused_key_does_not_stop_the_others(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        bad = Addr("pl-none", IPv4Interface("10.28.9.0/32"))
        wanted: Plan = {**PLAN, bad.key: bad}
        result = kernel.apply(order(diff(wanted, kernel.owned(), True)))
        assert set(result.failed) == {bad.key}
        assert result.failed[bad.key].errno == 19
        assert len(result.done) == len(PLAN)

    run(body)


BELOW_NOTHING: tuple[KernelObject, ...] = (
    Addr("pl-none", IPv4Interface("10.28.9.0/32")),
    Neigh("pl-none", A("10.28.2.0"), "02:00:00:00:00:03"),
    Fdb("pl-none", "02:00:00:00:00:03", A("198.18.0.2")),
    Route(N("10.28.2.0/24"), "pl-none"),
    BridgeFdb("pl-b2", "02:00:00:00:00:37", "pl-none"),
    Flood("pl-none", A("198.18.0.2")),
    Sysctl("ipv4/conf/pl-none/route_localnet", "1"),
    Addr("pl-none", IPv6Interface("fd00:31::1/128")),
    Neigh("pl-none", A6("fd00:31::102"), "02:00:00:00:00:03"),
    Route(N6("fd00:31::102/128"), "pl-none"),
)


@pytest.mark.parametrize("obj", BELOW_NOTHING, ids=lambda o: o.key[0])
def test_what_lies_on_a_missing_link_is_refused_and_its_deletion_is_nothing(run: Run, obj: KernelObject) -> None:
    def body(kernel: Kernel) -> None:
        refused = kernel.apply([Op("put", obj)]).failed
        assert refused[obj.key].errno == (errno.ENOENT if isinstance(obj, Sysctl) else errno.ENODEV)
        if not isinstance(obj, Sysctl):
            assert not kernel.apply([Op("del", None, obj)]).failed

    run(body)


@pytest.mark.parametrize("run", ["fake", "linux"], indirect=True)
def test_the_table_is_one_transaction(run: Run) -> None:
    """A set on which a rule relies is refused, so the rule and the set beside it are not there either. A dry run cannot know that."""

    def body(kernel: Kernel) -> None:
        good, bad = NftSet("good", "ipv4_addr", frozenset({"10.0.0.1"})), NftSet("bad", "no_such_type", frozenset())
        if isinstance(kernel, FakeKernel):
            kernel.fail_next(bad.key)
        result = kernel.apply([Op("put", good), Op("put", bad), Op("put", BridgeLink("pl-gw", "02:00:00:00:00:aa"))])
        assert set(result.failed) == {good.key, bad.key} and result.done == (("link", "pl-gw"),)
        assert set(kernel.owned()) == {("link", "pl-gw")}

    run(body)


def test_ten_thousand_routes(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        objects = [
            BridgeLink("pl-gw", "02:00:00:00:00:aa"),
            *(Route(N((0x0A400000 + (n << 8), 24)), "pl-gw", scope="link") for n in range(10_000)),
        ]
        plan: Plan = {obj.key: obj for obj in objects}
        assert converge(kernel, plan) == 10_001
        assert kernel.owned() == plan
        converge(kernel, {})
        assert kernel.owned() == {}

    run(body)


def test_deleting_what_is_gone_succeeds(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        converge(kernel, PLAN)
        ops = order(diff({}, kernel.owned(), True))
        assert not kernel.apply(ops).failed
        assert not kernel.apply([op for op in ops if op.key[0] not in ("nft",)]).failed

    run(body)


def test_an_absent_foreign_hook_is_no_error_and_no_work(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        rule = HookRule("ip", "filter", "NOT-THERE", 'oifname "pl-*" accept')
        assert converge(kernel, {rule.key: rule}) == 0

    run(body)


def test_a_dry_run_over_a_filled_kernel_rehearses_only_what_is_left_and_follows_the_kernel() -> None:
    """Its view is the kernel's of the moment, with the record on top; the record names just the difference."""

    def body(kernel: LinuxKernel) -> None:
        converge(kernel, PLAN)
        before, dry = (sh(NAMESPACE), kernel.owned(PLAN)), DryRunKernel(kernel)
        assert converge(dry, PLAN) == 0 and dry.record == []
        route = Route(N("10.28.2.0/24"), "pl-gw", scope="link")
        wanted = {**PLAN, route.key: route}
        assert converge(dry, wanted) == 1 and converge(dry, wanted) == 0
        assert dry.record == [Op("put", route, PLAN[route.key])]
        assert dry.lines() == ["ip route replace 10.28.2.0/24 dev pl-gw proto 112 scope link"]
        assert (sh(NAMESPACE), kernel.owned(PLAN)) == before
        assert dry.capabilities() == kernel.capabilities()
        sh("ip route del unreachable 10.28.0.0/16 metric 4278198272")
        assert set(PLAN) - set(dry.owned(PLAN)) == {Route(N("10.28.0.0/16"), kind="unreachable", metric=4278198272).key}

    in_namespace(body)


def test_a_bare_dry_run_takes_a_filled_kernel_for_an_empty_one() -> None:
    def body(kernel: LinuxKernel) -> None:
        converge(kernel, PLAN)
        dry = DryRunKernel(kernel, bare=True)
        assert converge(dry, PLAN) == len(PLAN) and converge(dry, PLAN) == 0
        assert {op.key for op in dry.record} == set(PLAN)

    in_namespace(body)


def test_closing_a_dry_run_leaves_the_kernel_below_open() -> None:
    def body(kernel: LinuxKernel) -> None:
        DryRunKernel(kernel).close()
        assert converge(kernel, PLAN) == len(PLAN)

    in_namespace(body)


def test_foreign_objects_are_neither_seen_nor_touched() -> None:
    def body(kernel: LinuxKernel) -> None:
        sh("ip link add plain type veth peer name other; ip route add 10.99.0.0/16 dev eth0; nft add table inet mine")
        before = sh(
            "ip -br link show dev plain; ip route show 10.99.0.0/16; nft list table inet mine; nft list chain ip filter DOCKER-USER"
        )
        converge(kernel, PLAN)
        converge(kernel, {})
        after = sh("ip -br link show dev plain; ip route show 10.99.0.0/16; nft list table inet mine; nft list chain ip filter DOCKER-USER")
        assert after == before

    in_namespace(body)


@pytest.mark.parametrize(
    "obj",
    [
        replace(VXLAN, mac="nonsense"),
        replace(VXLAN, vni=-1),
        BridgeLink("pl-name-that-is-too-long", "02:00:00:00:00:aa"),
        EndpointLink("pl-e1", 1450, peer="pl-p1", mac=""),
        EndpointLink("pl-e1", 1450, mac="02:00:00:00:00:02", netns="/nowhere/at/all"),
        Sysctl("ipv4/no_such_thing", "1"),
    ],
    ids=str,
)
def test_values_that_fit_no_message_are_refused_by_name(obj: KernelObject) -> None:
    def body(kernel: LinuxKernel) -> None:
        gateway = BridgeLink("pl-gw", "02:00:00:00:00:aa")
        result = kernel.apply([Op("put", obj), Op("put", gateway)])
        assert set(result.failed) == {obj.key} and result.done == (gateway.key,)
        assert obj.key[1] in str(result.failed[obj.key])
        assert set(kernel.owned()) == {gateway.key}

    in_namespace(body)


@pytest.mark.parametrize(
    "harm",
    [
        "nft flush ruleset",
        "ip link del pl-x1",
        "ip link del pl-e1",
        "ip route flush proto 112",
        "ip neigh flush dev pl-x1 nud permanent",
        "bridge fdb del 02:00:00:00:00:03 dev pl-x1",
        "ip link set pl-x1 address 02:00:00:00:00:55",
        "ip link set pl-x1 down",
        "ip link set pl-e1 down",
        "ip link del pl-b1",
        "ip link set pl-e4 nomaster",
        "ip addr flush dev pl-gw",
        "ip link set pl-x1 down; ip link set pl-x1 name eno1; ip link set eno1 up",
        "ip link set pl-gw down; ip link set pl-gw name br7",
        "ip link set pl-e1 down; ip link set pl-e1 name veth9",
        "ip link set pl-e1 address 02:00:00:00:00:56",
        "ip -6 addr flush dev pl-e1 scope global",
        "ip -6 route flush proto 112",
        "ip -6 neigh flush dev pl-e1 nud permanent",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl -qw net.ipv6.conf.pl-x1.disable_ipv6=1 net.ipv6.conf.pl-x1.disable_ipv6=0",
        "nft flush chain inet plait plain",
        "nft delete element inet plait pools '{ 10.28.0.0/16 }'",
        "nft 'insert rule inet plait plain drop'",
        "ip route change 10.28.2.0/24 dev pl-gw proto 112",
        "ip rule del pref 11201",
        "ip rule add from 10.28.0.0/16 lookup 7 pref 11201 protocol 112",
    ],
)
def test_harm_done_by_others_is_repaired(harm: str) -> None:
    def body(kernel: LinuxKernel) -> None:
        converge(kernel, PLAN)
        assert converge(kernel, PLAN) == 0  # it has seen what it made
        sh(harm)
        assert converge(kernel, PLAN) > 0
        converge(kernel, PLAN)
        assert converge(kernel, PLAN) == 0
        expected = {key: obj for key, obj in PLAN.items() if harm != "nft flush ruleset" or key[0] != "hook"}
        assert {k: o for k, o in kernel.owned(PLAN).items() if k in expected} == expected
        named = {line.split()[0].partition("@")[0] for line in sh("ip -br link").splitlines()}
        assert not named & {"eno1", "br7", "veth9"}, "a renamed link has its name again"
        assert "02:00:00:00:00:5" not in sh("ip -br link"), "and the MAC that its container knows"

    in_namespace(body)


def test_an_endpoint_is_plumbed_inside_its_sandbox_and_put_back_when_somebody_deletes_it(tmp_path: Path) -> None:
    path = tmp_path / "sandbox"

    def body(kernel: LinuxKernel) -> None:
        link = EndpointLink(
            "pl-e2",
            1450,
            peer="pl-p2",
            mac="02:00:00:00:00:0b",
            netns=str(path),
            address=IPv4Interface("10.28.1.7/32"),
            gateway=A("10.28.0.1"),
            through=(N("10.28.0.0/16"), N("0.0.0.0/0")),
        )
        gateway = Addr("pl-gw", IPv4Interface("10.28.0.1/32"))
        wanted: Plan = {
            o.key: o for o in (BridgeLink("pl-gw", "02:00:00:00:00:aa"), gateway, link, Route(N("10.28.1.7/32"), "pl-e2", scope="link"))
        }
        for _ in range(2):
            converge(kernel, wanted)
            sh("ping -c1 -W1 10.28.1.7")
            inside = sh(f"nsenter --net={path} ip -d addr show eth0; nsenter --net={path} ip route")
            assert "02:00:00:00:00:0b" in inside and "10.28.1.7/32" in inside and "mtu 1450" in inside
            for way in ("default via 10.28.0.1 ", "10.28.0.0/16 via 10.28.0.1 ", "10.28.0.1 dev eth0 proto static scope link"):
                assert way in inside
            sh(f"nsenter --net={path} ping -c1 -W1 10.28.0.1")
            sh("ip link del pl-e2")
        converge(kernel, wanted)
        assert converge(kernel, {**wanted, link.key: replace(link, mtu=1400)}) == 1
        assert "mtu 1400" in sh(f"nsenter --net={path} ip link show eth0"), "both ends of the pair have one MTU"

    create_netns(path)
    try:
        in_namespace(body)
    finally:
        delete_netns(path)
    assert not path.exists()


def test_one_element_takes_the_place_of_the_one_with_its_key_and_leaves_the_others(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        links = [EndpointLink(f"pl-e{n}", 1450, peer=f"pl-p{n}", mac=f"02:00:00:00:00:1{n}") for n in (1, 2)]
        here = NftSet(
            "here", "ipv4_addr : iface_index", frozenset({'10.28.1.2 : "pl-e1"', '10.28.1.3 : "pl-e1"'}), kind="map", family="netdev"
        )
        assert not kernel.apply([Op("put", obj) for obj in (*links, here)]).failed
        for element in ('10.28.1.2 : "pl-e2"', '10.28.1.2 : "pl-e2"', '10.28.1.4 : "pl-e2"'):
            assert not kernel.apply([Op("put", NftElement(replace(here, elements=frozenset()), element))]).failed
        wanted = replace(here, elements=frozenset({'10.28.1.2 : "pl-e2"', '10.28.1.3 : "pl-e1"', '10.28.1.4 : "pl-e2"'}))
        assert kernel.owned()[here.key] == wanted

    run(body)


def test_what_names_a_link_that_went_reads_back_different(run: Run) -> None:
    """The ingress chain of that link itself is gone or waits for the next one, as the kernel's version has it."""
    hook = 'type filter hook ingress device "{}" priority filter; policy accept;'
    links = [EndpointLink(f"pl-e{n}", 1450, peer=f"pl-p{n}", mac=f"02:00:00:00:00:1{n}") for n in (1, 2)]
    here = NftSet("here", "ipv4_addr : iface_index", frozenset({'10.28.1.2 : "pl-e1"', '10.28.1.3 : "pl-e2"'}), kind="map", family="netdev")
    to_tunnel = 'ip daddr 10.28.2.0/24 fwd ip to 10.28.2.0 device "pl-x1"'
    senders = [NftChain(f"pl-e{n}", (to_tunnel,), hook.format(f"pl-e{n}"), "netdev") for n in (1, 2)]
    own = NftChain("pl-x1", ("fwd ip to ip daddr device ip daddr map @here",), hook.format("pl-x1"), "netdev")
    wanted: Plan = {obj.key: obj for obj in (VXLAN, *links, here, *senders, own)}
    other = {**wanted, VXLAN.key: replace(VXLAN, vni=8)}

    def lost(kernel: Kernel) -> set[Key]:
        held = kernel.owned()
        return {key for key, obj in other.items() if held.get(key) != obj}

    def body(kernel: Kernel) -> None:
        assert converge(kernel, wanted) == len(wanted)
        assert converge(kernel, other) == 1
        assert lost(kernel) - {own.key} == {chain.key for chain in senders}
        converge(kernel, other)
        kernel.apply([Op("del", None, links[0])])
        assert lost(kernel) - {senders[0].key} == {links[0].key, here.key}
        converge(kernel, other)
        assert converge(kernel, other) == 0

    run(body)


def test_an_element_of_what_is_not_there_is_refused(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        element = NftElement(NftSet("here", "ipv4_addr : ipv4_addr", frozenset(), kind="map", family="netdev"), "10.28.1.2 : 10.28.1.3")
        assert set(kernel.apply([Op("put", element)]).failed) == {element.key}

    run(body)


def test_a_refusal_in_one_table_leaves_the_other_written(run: Run) -> None:
    def body(kernel: Kernel) -> None:
        good = NftSet("pools", "ipv4_addr", frozenset({"10.28.0.0/16"}), ("interval",))
        bad = NftElement(NftSet("here", "ipv4_addr : ipv4_addr", frozenset(), kind="map", family="netdev"), "10.28.1.2 : 10.28.1.3")
        result = kernel.apply([Op("put", good), Op("put", bad)])
        assert result.done == (good.key,) and set(result.failed) == {bad.key}
        assert kernel.owned()[good.key] == good

    run(body)


def test_rules_that_end_beside_a_link_are_written_once_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The link's end and the rules' have threads of their own; nobody else writes the rules meanwhile, and what is refused is said."""
    link = EndpointLink("pl-e7", 1450, peer="pl-p7", mac="02:00:00:00:00:0c")
    before = NftSet("left", "inet_service", frozenset({"80", "81"}))
    written: list[int] = []

    def body(kernel: LinuxKernel) -> None:
        converge(kernel, {obj.key: obj for obj in (link, before)})
        apply = kernel._apply_nft
        monkeypatch.setattr(kernel, "_apply_nft", lambda ops: [written.append(len(ops)), time.sleep(0.05), apply(ops)][-1])
        less = replace(before, elements=frozenset({"80"}))
        assert kernel.apply([Op("del", None, link), Op("put", less, before)]).failed == {}
        assert written == [1]
        assert {k: o for k, o in kernel.owned().items() if k[0] in ("link", "nft")} == {less.key: less}
        refused = NftSet("left", "no_such_type", frozenset())
        converge(kernel, {obj.key: obj for obj in (link, less)})
        result = kernel.apply([Op("del", None, link), Op("put", refused, less)])
        assert list(result.failed) == [refused.key]

    in_namespace(body)
