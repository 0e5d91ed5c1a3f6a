# SPDX-License-Identifier: Apache-2.0
"""Priorities on real hosts: said by network and command, kept on the host's link, never in the place of somebody else's queues."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
LINK = "eth0"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A, which knows how fast its link is, and B, which does not."""
    made = make_lab(hosts=2)
    config = made.path("A", "/etc/plait/plait.toml")
    config.write_text(config.read_text() + '\n[uplink]\nrate = "80M"\n')
    made.kill_agent("A")
    made.start_agent("A")
    for host, name in (("A", "web"), ("A", "job"), ("B", "far")):
        made.run(host, "plait", "run", "--name", name)
    return made


def queues(lab: Lab) -> str:
    return str(lab.run("A", "tc", "qdisc", "show", "dev", LINK, "root").stdout)


def unkept(lab: Lab, host: str) -> list[str]:
    conditions = json.loads(lab.run(host, "plait", "status", "--json", check=False).stdout)["conditions"]
    return [row["text"] for row in conditions if row["code"] == "priority-unkept"]


def sent(lab: Lab) -> dict[str, int]:
    """Packets by class of the link."""
    text = lab.run("A", "tc", "-s", "class", "show", "dev", LINK).stdout
    return {name: int(packets) for name, packets in re.findall(r"class htb (7070:[123]0) .*?Sent \d+ bytes (\d+) pkt", text, re.DOTALL)}


def test_what_containers_send_waits_in_the_class_that_was_said(lab: Lab) -> None:
    until("the link has its queues", lambda: "htb 7070:" in queues(lab), 10)
    lab.run("A", "plait", "limit", "set", "web", "--priority", "guaranteed")
    lab.run("A", "plait", "network", "set", "default", "-o", "limit-priority=bulk")
    rows = json.loads(lab.run("A", "plait", "limit", "ls", "--json").stdout)
    assert {(row["container"], row["manner"], row["by"]) for row in rows} == {
        ("web", "guaranteed", "command"),
        ("job", "bulk", "network"),
    }
    far = next(row["addresses"]["default"] for row in json.loads(lab.run("A", "plait", "ps", "--json").stdout) if row["name"] == "far")
    for name, handle in (("web", "7070:10"), ("job", "7070:30")):
        before = sent(lab).get(handle, 0)
        lab.run("A", "plait", "exec", name, "--", "ping", "-q", "-c", "20", "-i", "0.01", far)
        assert sent(lab)[handle] - before >= 20, name
    lab.kill_agent("A")
    assert "htb 7070:" in queues(lab), "they do not need the agent"
    lab.start_agent("A")
    until("a pass finds nothing to do", lambda: lab.run("A", "plait", "plan", "--diff").stdout == "", 10)
    lab.run("A", "tc", "qdisc", "del", "dev", LINK, "root")
    until("they are put back", lambda: "htb 7070:" in queues(lab), 5)
    assert unkept(lab, "A") == []
    wanted = [f"nobody has said how fast {LINK} is (uplink.rate), so that far only have marks"]
    until("B says what it lacks", lambda: unkept(lab, "B") == wanted, 10)


def test_somebody_elses_queues_stay_and_are_named(lab: Lab) -> None:
    lab.run("A", *f"tc qdisc replace dev {LINK} root handle 8001: tbf rate 1gbit burst 1mb limit 1mb".split())
    until("it is named", lambda: "tbf 8001: of somebody else" in "".join(unkept(lab, "A")), 10)
    lab.kill_agent("A")
    lab.start_agent("A")
    until("a pass finds nothing to do", lambda: lab.run("A", "plait", "plan", "--diff").stdout == "", 10)
    assert "tbf 8001:" in queues(lab)
    lab.run("A", "tc", "qdisc", "del", "dev", LINK, "root")
    until("ours are back", lambda: "htb 7070:" in queues(lab) and unkept(lab, "A") == [], 10)
    lab.run("A", "plait", "down")
    assert "htb" not in queues(lab), "nothing is left"
