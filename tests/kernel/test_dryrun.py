# SPDX-License-Identifier: Apache-2.0
"""The printed lines are true: typed into a shell, they do what the kernel seam does."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from tests.support.kernel import OBJECTS, PLAN, VXLAN, converge, in_namespace, sh

from plait.kernel.dryrun import DryRunKernel, render
from plait.kernel.linux import LinuxKernel, create_netns, delete_netns
from plait.model.objects import Addr, BridgeLink, EndpointLink, KernelObject, Op, Plan

pytestmark = pytest.mark.root
PROBES = [key for key in PLAN if key[0] in ("sysctl", "hook")]


def type_in(kernel: LinuxKernel, plan: Plan) -> None:
    """What a person would do who follows `plait plan --diff`."""
    sh("nft add table inet plait; nft add table netdev plait")
    dry = DryRunKernel(kernel)
    for _ in range(3):  # a replaced device takes its routes with it: they come back in the next pass
        converge(dry, plan)
    for op in dry.record:
        if op.verb == "del" and op.key[0] == "hook":
            continue  # needs a handle that only the person can look up
        for line in render(op):
            sh(line)


TYPED: Plan = {key: obj for key, obj in PLAN.items() if key[0] not in ("shortcut", "delivery", "guard")}
"""All but eBPF programs, which are in no file: what the lines for them name is not there."""


def test_the_lines_of_a_plan_make_the_plan() -> None:
    def body(kernel: LinuxKernel) -> None:
        type_in(kernel, TYPED)
        assert kernel.owned(PROBES) == TYPED
        type_in(kernel, {})
        assert {key[0] for key in kernel.owned()} == {"hook"}

    in_namespace(body)


CHANGED: tuple[KernelObject, ...] = (
    replace(VXLAN, mac="02:00:00:00:00:99", mtu=1400),
    replace(VXLAN, vni=8),
    BridgeLink("pl-gw", "02:00:00:00:00:ab"),
    EndpointLink("pl-e1", 1400, peer="pl-p1", mac="02:00:00:00:00:02"),
    *(replace(obj, elements=frozenset(sorted(obj.elements)[:1])) for obj in OBJECTS if obj.key[0] == "nft" and hasattr(obj, "elements")),
)


@pytest.mark.parametrize("changed", CHANGED, ids=lambda o: " ".join(o.key))
def test_the_lines_of_a_change_make_the_change(changed: KernelObject) -> None:
    def body(kernel: LinuxKernel) -> None:
        converge(kernel, PLAN)
        type_in(kernel, {**PLAN, changed.key: changed})
        held = kernel.owned(PROBES)
        wanted = {**PLAN, changed.key: changed}
        # A chain that names a replaced device by its index is seen only by a pass after it is gone: no dry run knows the new index.
        assert {k: o for k, o in held.items() if "netdev" not in k} == {k: o for k, o in wanted.items() if "netdev" not in k}
        assert held[changed.key] == changed

    in_namespace(body)


def test_the_lines_of_an_endpoint_plumb_its_inside(tmp_path: Path) -> None:
    path = tmp_path / "sandbox"
    address, gateway, through = IPv4Interface("10.28.1.7/32"), IPv4Address("10.28.0.1"), (IPv4Network("0.0.0.0/0"),)
    link = EndpointLink("pl-e2", 1450, mac="02:00:00:00:00:0b", netns=str(path), address=address, gateway=gateway, through=through)
    objects = (BridgeLink("pl-gw", "02:00:00:00:00:aa"), Addr("pl-gw", IPv4Interface("10.28.0.1/32")), link)

    def body(kernel: LinuxKernel) -> None:
        type_in(kernel, {obj.key: obj for obj in objects})
        assert kernel.owned()[link.key] == link
        inside = sh(f"nsenter --net={path} ip -d addr show; nsenter --net={path} ip route")
        assert "02:00:00:00:00:0b" in inside and "10.28.1.7/32" in inside and "default via 10.28.0.1" in inside

    create_netns(path)
    try:
        in_namespace(body)
    finally:
        delete_netns(path)


def test_the_deletion_of_a_hook_rule_names_what_to_look_for() -> None:
    hook = next(obj for obj in OBJECTS if obj.key[0] == "hook")
    (line,) = render(Op("del", None, hook))
    assert line.startswith("nft delete rule ip filter DOCKER-USER handle") and line.endswith('oifname "pl-*" accept')
