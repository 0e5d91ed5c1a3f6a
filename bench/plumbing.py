# SPDX-License-Identifier: Apache-2.0
"""Programming the kernel: one endpoint, and ten thousand routes, beside `ip -batch`. In a namespace made for it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from bench.core import Row, interleave, ratio
from plait.kernel.linux import LinuxKernel, create_netns, delete_netns
from plait.kernel.linux.netns import in_thread, unshare_net
from plait.model.objects import BridgeLink, EndpointLink, Op, Route

ROUTES = 10_000


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return in_thread(lambda: _measure(Path(folder)))


def _ip(arguments: list[str], text: str) -> None:
    subprocess.run(["ip", *arguments, "-batch", "-"], input=text, text=True, check=True)


def _measure(folder: Path) -> list[Row]:
    unshare_net()
    kernel = LinuxKernel()
    kernel.apply([Op("put", BridgeLink("pl-gw", "02:00:00:00:00:aa"))])
    try:
        endpoint = interleave({"plait": lambda: _endpoint_ours(kernel, folder), "ip": lambda: _endpoint_ip(folder)}, 15)
        routes = interleave({"plait": lambda: _routes_ours(kernel), "ip": lambda: _routes_ip(folder)}, 5)
    finally:
        kernel.close()
    how = "veth pair into a namespace, both sides configured, route"
    return [
        Row("plumbing one endpoint", ratio(endpoint, "plait", "ip"), "x `ip -batch`", 0.4, True, how),
        Row(
            "10,000 routes",
            ratio(routes, "plait", "ip"),
            "x `ip -batch`",
            1.0,
            True,
            "one apply of 10,000 puts, beside one `ip -batch` of as many lines",
        ),
    ]


def _endpoint_ours(kernel: LinuxKernel, folder: Path) -> float:
    path = folder / "ns"
    create_netns(path)
    link = EndpointLink(
        "pl-e1",
        1450,
        peer="pl-p1",
        mac="02:00:00:00:00:01",
        netns=str(path),
        address=IPv4Interface("10.28.0.2/16"),
        gateway=IPv4Address("10.28.0.1"),
    )
    ops = [Op("put", link), Op("put", Route(IPv4Network("10.28.0.2/32"), "pl-e1", scope="link"))]
    started = time.perf_counter()
    result = kernel.apply(ops)
    took = time.perf_counter() - started
    assert not result.failed, result.failed
    kernel.apply([Op("del", None, link)])
    delete_netns(path)
    return took


def _endpoint_ip(folder: Path) -> float:
    path = folder / "ns"
    create_netns(path)
    outside = (
        "link add pl-e1 mtu 1450 type veth peer name pl-p1 address 02:00:00:00:00:01 mtu 1450\n"
        "link set pl-e1 up\nroute add 10.28.0.2/32 dev pl-e1\n"
        f"link set pl-p1 netns {path} name eth0\n"
    )
    inside = "link set lo up\nlink set eth0 up\naddr add 10.28.0.2/16 dev eth0\nroute add default via 10.28.0.1\n"
    started = time.perf_counter()
    _ip([], outside)
    subprocess.run(["nsenter", f"--net={path}", "ip", "-batch", "-"], input=inside, text=True, check=True)
    took = time.perf_counter() - started
    _ip([], "link del pl-e1\n")
    delete_netns(path)
    return took


def _subnets() -> list[IPv4Network]:
    return [IPv4Network((int(IPv4Address("10.64.0.0")) + (n << 8), 24)) for n in range(ROUTES)]


def _routes_ours(kernel: LinuxKernel) -> float:
    ops = [Op("put", Route(subnet, "pl-gw", scope="link")) for subnet in _subnets()]
    started = time.perf_counter()
    result = kernel.apply(ops)
    took = time.perf_counter() - started
    assert not result.failed, list(result.failed.values())[:1]
    _ip([], "route flush proto 112\n")
    return took


def _routes_ip(folder: Path) -> float:
    lines = "".join(f"route replace {subnet} dev pl-gw proto 112\n" for subnet in _subnets())
    started = time.perf_counter()
    _ip([], lines)
    took = time.perf_counter() - started
    _ip([], "route flush proto 112\n")
    return took
