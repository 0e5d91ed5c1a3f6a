# SPDX-License-Identifier: Apache-2.0
"""Policies by names of hosts, with real packets: a DNS server and its hosts outside, and an agent that is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from tests.support.outside import answering
from tests.support.policies import NAMED
from tests.support.sandboxes import inside, shown

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(120)]
HOSTS = """
[[host]]
name = "A"
[[host]]
name = "X"
agent = false
"""
LEAST_S = 3
LONG_S = 300
API, LATE, MANY = "198.18.0.151", "198.18.0.152", [f"198.18.0.{number}" for number in range(160, 180)]
POLICY = NAMED.replace("443", "80")
WITHIN = ("nsenter", "--net=/run/plait/netns/web")
"""What `plait exec` does, but for resolv.conf: also while there is no agent."""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 80), 0.8)"
TALK = """
import socket, sys
other = socket.create_connection((sys.argv[1], 81), 2).makefile("rw")
for line in sys.stdin:
    other.write(line)
    other.flush()
    print(other.readline(), end="", flush=True)
"""
ECHO = """
import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer(("", 81), Echo).serve_forever()
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """X has a DNS server, and all the addresses that it names, each with a server at port 80; A's containers ask plait, and that asks X."""
    made = make_lab(toml=HOSTS)
    for one in (API, LATE, *MANY):
        made.run("X", "ip", "addr", "add", f"{one}/24", "dev", "eth0")
    records = [f"--host-record=api.example.com,{API},{LONG_S}", f"--host-record=late.example.org,{LATE},1"]
    records += [f"--host-record=n{number}.example.org,{one},1" for number, one in enumerate(MANY)]
    listen = f"--listen-address={made.address('X')}"
    dns = made.popen(
        "X", "dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--pid-file", listen, *records
    )
    echo = made.popen("X", "python3", "-c", ECHO)
    config = made.path("A", "/etc/plait/plait.toml")
    config.write_text(f'{config.read_text()}\n[dns]\nupstreams = ["{made.address("X")}"]\n[policy]\nmin_ttl = "{LEAST_S}s"\n')
    made.kill_agent("A")
    made.start_agent("A")
    made.run("A", "plait", "run", "--name", "web", "--label", "app=web")
    try:
        with answering(made, "X", "X"):
            yield made
    finally:
        for process in (dns, echo):
            process.kill()
            process.wait()


def gets(lab: Lab, host: str) -> bool:
    """Whether the container's first packet passes: one that is dropped is sent again after a second."""
    if host[0].isdigit():
        return lab.run("A", *WITHIN, "python3", "-c", CONNECT, host, check=False).returncode == 0
    return inside(lab, "A", "web", "python3", "-c", CONNECT, host).returncode == 0


def resolves(lab: Lab, name: str) -> str:
    return lab.run("A", *WITHIN, "dig", "+short", "+tries=1", "+time=3", "@10.28.0.1", name).stdout.strip()


def in_force(lab: Lab) -> None:
    """Names end all the while, and a plan that is asked for in that moment says what the pass is about to do."""
    until("a pass would write nothing", lambda: lab.run("A", "plait", "plan", "--diff").stdout == "", 5)


def test_a_name_is_open_when_the_answer_comes_and_nothing_else_is(lab: Lab) -> None:
    assert gets(lab, API), "before there is a policy"
    lab.run("A", "plait", "policy", "apply", "-f", "-", text=POLICY)
    assert not gets(lab, API), "by its address, before anybody asked for the name"
    assert gets(lab, "api.example.com") and gets(lab, API)
    for number in range(len(MANY)):
        assert gets(lab, f"n{number}.example.org"), "the first packet, each time"
    assert not gets(lab, LATE) and not gets(lab, lab.address("X"))
    in_force(lab)
    told = lab.run("A", "plait", "policy", "test", "web", "api.example.com:80").stdout
    assert f"since DNS gave {API} for api.example.com" in told
    assert lab.run("A", "plait", "policy", "test", "web", f"{LATE}:80", check=False).returncode == 1
    plan = json.loads(lab.run("A", "plait", "policy", "plan", "--json", "-f", "-", text=NAMED).stdout)
    assert ["tcp 80", "tcp 443"] in [[row["before"], row["after"]] for row in plan["pairs"] if row["destination"] == "api.example.com"]


def test_it_ends_with_its_time_and_connections_live_on(lab: Lab) -> None:
    lab.run("A", "plait", "policy", "apply", "-f", "-", text=POLICY.replace("number: 80", "range: {start: 80, end: 81}"))
    assert resolves(lab, "late.example.org") == LATE and gets(lab, LATE)
    argv = ("plait", "exec", "web", "--", "python3", "-u", "-c", TALK, LATE)
    with lab.popen("A", *argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as talking:
        assert talking.stdin is not None and talking.stdout is not None
        for closed in (False, True):
            if closed:
                until("the name's time is over", lambda: not gets(lab, LATE), LEAST_S + 5)
            talking.stdin.write("still here\n")
            talking.stdin.flush()
            assert talking.stdout.readline() == "still here\n"
        talking.kill()
    assert gets(lab, API), "whose answer may be kept for longer"
    in_force(lab)
    assert gets(lab, "late.example.org"), "who asks again gets there again"
    lab.run("A", "plait", "policy", "apply", "-f", "-", text=POLICY)


def test_while_the_agent_is_away_nothing_opens_or_closes_and_after_it_all_is_right(lab: Lab) -> None:
    assert gets(lab, "api.example.com") and gets(lab, "n1.example.org")
    lab.kill_agent("A")
    assert gets(lab, API) and gets(lab, MANY[1]), "the kernel goes on"
    started = time.monotonic()
    assert resolves(lab, "n2.example.org") == MANY[2] and time.monotonic() - started < 2, "the answer comes, after a second at most"
    assert not gets(lab, MANY[2]), "and opens nothing"
    time.sleep(max(0.0, LEAST_S + 0.5 - (time.monotonic() - started)))
    assert gets(lab, MANY[1]), "nor does anything end"
    lab.start_agent("A")
    until("the agent is ready", lambda: shown(lab, "A", "status").get("waiting") == "", 30)
    assert gets(lab, API), "known without being asked for again"
    until("what ended meanwhile is closed", lambda: not gets(lab, MANY[1]), 10)
    assert gets(lab, "n2.example.org")
    in_force(lab)
