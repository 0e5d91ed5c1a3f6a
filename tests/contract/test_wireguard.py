# SPDX-License-Identifier: Apache-2.0
"""WireGuard devices: one text over the fake kernel, the real one (its own WireGuard or wireguard-go) and the dry run over either; then what
only real devices do: processes that crash, hang and are taken over, keys, wg(8) as the judge."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

import pytest
from tests.support.kernel import converge, sh
from tests.support.wireguard import needs_wireguard_go, new_link, with_devices

from plait.kernel.api import Kernel, Op
from plait.kernel.dryrun import DryRunKernel
from plait.kernel.fake import FakeKernel
from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.wgdevice import key_text
from plait.model.objects import Addr, KernelObject, Plan, Route
from plait.model.wireguard import AllowedIp, WireguardLink, WireguardPeer

pytestmark = [pytest.mark.root, needs_wireguard_go]
A, N, N6 = IPv4Address, IPv4Network, IPv6Network
ONE, TWO = key_text(bytes([1]) * 32), key_text(bytes([2]) * 32)
HERE, THERE = (A("198.18.0.2"), 7472), (A("198.18.0.3"), 7000)
Run = Callable[[Callable[[Kernel, Plan], None]], None]


def plan_of(link: WireguardLink) -> Plan:
    objects: tuple[KernelObject, ...] = (
        link,
        WireguardPeer("pl-wg", ONE, HERE),
        WireguardPeer("pl-wg", TWO, None, 25),
        AllowedIp("pl-wg", N("10.29.2.0/24"), ONE),
        AllowedIp("pl-wg", N("10.29.3.0/24"), ONE),
        AllowedIp("pl-wg", N("10.29.4.0/24"), TWO),
        AllowedIp("pl-wg", N6("fd00:29::200/120"), ONE),
        AllowedIp("pl-wg", N6("fd11::2/128"), TWO),
        Addr("pl-wg", IPv6Interface("fd11::1/128")),
        Route(N("10.29.2.0/24"), "pl-wg", scope="link"),
        Route(N6("fd00:29::200/120"), "pl-wg", src=IPv6Address("fd11::1")),
    )
    return {obj.key: obj for obj in objects}


@pytest.fixture(params=["fake", "linux", "dryrun-fake", "dryrun-linux"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs a body with a kernel and a plan that fits it."""
    rehearsed, _, below = request.param.rpartition("-")

    def runner(body: Callable[[Kernel, Plan], None]) -> None:
        plan = plan_of(new_link(tmp_path))

        def over(kernel: Kernel) -> None:
            body(DryRunKernel(kernel) if rehearsed else kernel, plan)
            assert not rehearsed or kernel.owned() == {}, "a dry run writes nothing"

        if below == "fake":
            over(FakeKernel())
        else:
            with_devices(tmp_path, over)

    return runner


def test_what_is_put_is_read_back_equal_and_a_plan_of_nothing_leaves_nothing(run: Run) -> None:
    def body(kernel: Kernel, plan: Plan) -> None:
        assert converge(kernel, plan) == len(plan)
        assert converge(kernel, plan) == 0
        assert kernel.owned() == plan
        converge(kernel, {})
        assert kernel.owned() == {}

    run(body)


@pytest.mark.parametrize(
    "changed",
    [
        WireguardPeer("pl-wg", ONE, THERE),
        WireguardPeer("pl-wg", ONE, HERE, 10),
        AllowedIp("pl-wg", N("10.29.2.0/24"), TWO),
        Route(N("10.29.2.0/24"), "pl-wg", scope="link", mtu=1300),
    ],
    ids=str,
)
def test_a_changed_value_is_one_operation_and_everything_else_stays(run: Run, changed: KernelObject) -> None:
    def body(kernel: Kernel, plan: Plan) -> None:
        converge(kernel, plan)
        wanted = {**plan, changed.key: changed}
        assert converge(kernel, wanted) == 1
        assert kernel.owned() == wanted

    run(body)


def test_port_and_mtu_of_a_living_device_change_without_its_peers(run: Run) -> None:
    def body(kernel: Kernel, plan: Plan) -> None:
        converge(kernel, plan)
        link = plan["link", "pl-wg"]
        assert isinstance(link, WireguardLink)
        for other in (replace(link, port=7473), replace(link, mtu=1400)):
            wanted = {**plan, link.key: other}
            assert converge(kernel, wanted) == 1
            assert kernel.owned() == wanted

    run(body)


def test_a_row_goes_alone_and_a_peer_takes_its_rows_along(run: Run) -> None:
    def body(kernel: Kernel, plan: Plan) -> None:
        converge(kernel, plan)
        row = AllowedIp("pl-wg", N("10.29.2.0/24"), ONE)
        for _ in range(2):  # the second time it is gone already
            assert not kernel.apply([Op("del", None, row)]).failed
        left = {key: obj for key, obj in plan.items() if key != row.key}
        assert kernel.owned() == left
        kernel.apply([Op("del", None, plan["peer", "pl-wg", ONE])])
        assert kernel.owned() == {key: obj for key, obj in left.items() if ONE not in key and getattr(obj, "public", "") != ONE}

    run(body)


def test_what_lies_on_nothing_is_refused_and_its_deletion_is_nothing(run: Run) -> None:
    def body(kernel: Kernel, plan: Plan) -> None:
        peer, row = WireguardPeer("pl-wg", ONE, HERE), AllowedIp("pl-wg", N("10.29.2.0/24"), ONE)
        for obj in (peer, row):
            assert kernel.apply([Op("put", obj)]).failed[obj.key].errno == errno.ENODEV
            assert not kernel.apply([Op("del", None, obj)]).failed
        kernel.apply([Op("put", plan["link", "pl-wg"])])
        assert kernel.apply([Op("put", row)]).failed[row.key].errno == errno.ENOENT, "a row of a peer that is not there"

    run(body)


def test_where_a_peer_was_heard_from_stays_if_the_plan_leaves_it_to_the_device(run: Run) -> None:
    def body(kernel: Kernel, plan: Plan) -> None:
        roaming = WireguardPeer("pl-wg", ONE, None)
        heard = WireguardPeer("pl-wg", ONE, THERE)
        converge(kernel, {**plan, heard.key: heard})
        wanted = {**plan, roaming.key: roaming}
        assert converge(kernel, wanted) == 0
        kernel.apply([Op("put", replace(roaming, keepalive=25))])
        assert kernel.owned()[heard.key] == replace(heard, keepalive=25)
        assert converge(kernel, plan) == 1, "an endpoint that is wanted is set"

    run(body)


# --- real devices


def test_wg_agrees_and_only_it_and_root_know_the_private_key(tmp_path: Path) -> None:
    def body(kernel: LinuxKernel) -> None:
        plan = plan_of(new_link(tmp_path))
        converge(kernel, plan)
        dump = [line.split("\t") for line in sh("wg show pl-wg dump").splitlines()]
        link = plan["link", "pl-wg"]
        assert isinstance(link, WireguardLink)
        assert dump[0][:3] == [(tmp_path / "pl-wg.key").read_text().strip(), link.public, "7472"]
        peers = {row[0]: (row[2], set(row[3].split(",")), row[7]) for row in dump[1:]}
        assert peers[ONE] == ("198.18.0.2:7472", {"10.29.2.0/24", "10.29.3.0/24", "fd00:29::200/120"}, "off")
        assert peers[TWO] == ("(none)", {"10.29.4.0/24", "fd11::2/128"}, "25")
        private = (tmp_path / "pl-wg.key").read_text().strip()
        assert private not in repr(kernel.owned()) and not any(private in line for line in DryRunKernel(kernel, bare=True).lines())

    with_devices(tmp_path, body)


def test_a_second_agent_takes_the_process_over_and_finds_nothing_to_do(tmp_path: Path) -> None:
    def body(kernel: LinuxKernel) -> None:
        plan = plan_of(new_link(tmp_path))
        converge(kernel, plan)
        pid = process_of("pl-wg")
        other = LinuxKernel(tmp_path)
        assert converge(other, plan) == 0 and process_of("pl-wg") == pid and other.wireguard_repairs == 0
        other.close()

    with_devices(tmp_path, body)


def process_of(name: str) -> int:
    """Pid of the device's process in the namespace of the calling thread."""
    here = os.stat("/proc/thread-self/ns/net").st_ino
    found = [int(pid) for pid in sh(f"pgrep -fx 'wireguard-go {name}' || true").split()]
    (mine,) = [pid for pid in found if os.stat(f"/proc/{pid}/ns/net").st_ino == here]
    return mine


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_crashed_or_hangs_is_replaced_and_counted(tmp_path: Path, harm: signal.Signals) -> None:
    def body(kernel: LinuxKernel) -> None:
        plan = plan_of(new_link(tmp_path))
        converge(kernel, plan)
        pid = process_of("pl-wg")
        os.kill(pid, harm)
        if harm == signal.SIGKILL:
            gone("pl-wg")
        for _ in range(2):
            converge(kernel, plan)
        assert kernel.owned() == plan and kernel.wireguard_repairs == 1
        assert process_of("pl-wg") != pid

    with_devices(tmp_path, body)


def gone(name: str) -> None:
    end = time.monotonic() + 5
    while Path(f"/sys/class/net/{name}").exists() or name in sh("ls /sys/class/net; ip -br link"):
        assert time.monotonic() < end, f"{name} is still there"
        time.sleep(0.01)


def test_another_key_in_the_file_is_taken_and_one_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    def body(kernel: LinuxKernel) -> None:
        plan = plan_of(new_link(tmp_path))
        converge(kernel, plan)
        sh("wg set pl-wg private-key /dev/null")
        assert converge(kernel, plan) == 1, "a key that somebody took away"
        link = plan["link", "pl-wg"]
        (tmp_path / "pl-wg.key").write_text("not a key\n")
        wanted = replace(link, public=ONE)  # type: ignore[call-arg]
        refused = kernel.apply([Op("put", wanted, link)]).failed[link.key]
        assert "key" in str(refused) and "not a key" not in str(refused)
        assert kernel.owned() == plan, "what was there goes on"

    with_devices(tmp_path, body)


def test_without_wireguard_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(kernel: LinuxKernel) -> None:
        assert "wireguard" in kernel.capabilities()
        monkeypatch.setattr("shutil.which", lambda name: None)
        assert "wireguard" not in kernel.capabilities(afresh=True)
        link = new_link(tmp_path)
        assert "apt install wireguard-go" in str(kernel.apply([Op("put", link)]).failed[link.key])

    with_devices(tmp_path, body)
