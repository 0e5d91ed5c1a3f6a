# SPDX-License-Identifier: Apache-2.0
"""Measured coordinates on whole hosts: echoes between B and the others are late both ways, so C is nearer to A whatever their names say."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(120)]
ANSWER = """
import socket, struct, sys, threading
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
def answer(body, sender):
    body = bytes([0, 0, 0, 0]) + body[4:]
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total >> 16) + (total & 0xFFFF)
    sock.sendto(body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:], (sender, 0))
while True:
    packet, (sender, _) = sock.recvfrom(2048)
    body = packet[(packet[0] & 15) * 4:]
    if body[0] == 8:
        threading.Timer(0.02 if sender in sys.argv else 0, answer, (body, sender)).start()
"""
"""Answers echoes in the kernel's stead, those of the addresses that it is given 20 ms late."""


@pytest.fixture(scope="module")
def three(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    lab = make_lab(hosts=3)
    far = {"A": "B", "B": "AC", "C": "B"}
    with contextlib.ExitStack() as stack:
        for host, others in far.items():
            lab.run(host, "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1")
            answering = stack.enter_context(lab.popen(host, sys.executable, "-c", ANSWER, *map(lab.address, others)))
            stack.callback(answering.kill)
        yield lab


def asked(lab: Lab, path: str) -> Any:
    return json.loads(lab.run("A", "curl", "-sS", "-m", "5", f"http://127.0.0.1:8500/v1/{path}").stdout)


def lasts(holds: Callable[[], bool]) -> bool:
    """Whether that holds twenty times within some seconds: the first measurements still move the nodes about, and what is in no order
    would not hold so often."""
    for _ in range(20):
        if not holds():
            return False
        time.sleep(0.1)
    return True


def test_near_follows_what_was_measured(three: Lab) -> None:
    for host in "ABC":
        body = json.dumps({"Name": "web", "Port": 80, "Address": three.address(host)})
        three.run(host, "curl", "-sS", "--fail", "-X", "PUT", "-d", body, "http://127.0.0.1:8500/v1/agent/service/register")
    until(
        "C is near, and stays so",
        lambda: lasts(lambda: [n["Node"] for n in asked(three, "catalog/nodes?near=_agent")] == ["A", "C", "B"]),
        90,
    )
    assert [row["Node"]["Node"] for row in asked(three, "health/service/web?near=A")] == ["A", "C", "B"]
    rows = {row["Node"]: row["Coord"] for row in asked(three, "coordinate/nodes")}
    assert set(rows) == set("ABC") and rows["A"] == asked(three, "agent/self")["Coord"] != rows["B"]

    three.run("A", "curl", "-sS", "--fail", "-d", '{"Name": "q", "Service": {"Service": "web"}}', "http://127.0.0.1:8500/v1/query")
    assert [row["Node"]["Node"] for row in asked(three, "query/q/execute?near=_agent")["Nodes"]] == ["A", "C", "B"]

    _dns_names_the_nearest_first(three)
    _known_again_after_a_restart_and_gone_with_the_node(three)


def _dns_names_the_nearest_first(three: Lab) -> None:
    config = three.path("A", "/etc/plait/plait.toml")
    config.write_text(f"{config.read_text()}\n[dns]\nnear = true\n")
    three.run("A", "curl", "-sS", "--fail", "-X", "PUT", "http://127.0.0.1:8500/v1/agent/reload")
    wanted = [three.address(host) for host in "ACB"]
    targets = [f"{IPv4Address(to).packed.hex()}.addr.dc1.consul." for to in wanted]

    def named() -> bool:
        return dig(three, "A") == wanted and [line.split()[3] for line in dig(three, "SRV")] == targets

    until("DNS names C before B every time", lambda: lasts(named), 60)


def dig(lab: Lab, qtype: str) -> list[str]:
    return lab.run("A", "dig", "+short", "+time=2", "@127.0.0.1", "web.service.consul", qtype).stdout.splitlines()


def _known_again_after_a_restart_and_gone_with_the_node(three: Lab) -> None:
    """The end of the test: C does not come back."""
    before = asked(three, "coordinate/node/C")
    three.kill_agent("C")
    assert asked(three, "coordinate/node/C") == before
    three.start_agent("C")
    three.run("C", "plait", "down", "--purge")
    until("C has left", lambda: [row["Node"] for row in asked(three, "coordinate/nodes")] == ["A", "B"], 10)
