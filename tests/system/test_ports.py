# SPDX-License-Identifier: Apache-2.0
"""Published ports in a lab: by command while containers of every runtime run, for whom they are, and what becomes of flows that were there
before."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.mesh import docker, two_on_mesh

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
WEB = ("python3", "-m", "http.server", "80")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A with a sandbox and a container of Docker that serve, B and D without any."""
    made = two_on_mesh(make_lab)
    made.run("A", "plait", "run", "--name", "box", "-d", "--", *WEB)
    docker(made, "A", "run", "-d", "--name", "web", "--network", "mesh", "nginx")
    for name in ("box", "web"):
        until(f"{name} serves", lambda name=name: gets(made, "A", f"http://{address(made, name)}/"), 20)
    return made


@pytest.fixture(autouse=True)
def _nothing_stays(lab: Lab) -> Iterator[None]:
    yield
    for name in {row["container"] for row in rows(lab)}:
        lab.run("A", "plait", "unpublish", name, check=False)


def rows(lab: Lab) -> list[dict[str, Any]]:
    return list(json.loads(lab.run("A", "plait", "ports", "--json").stdout))


def address(lab: Lab, name: str) -> str:
    found = json.loads(lab.run("A", "plait", "ps", "--json").stdout)
    return str(next(iter(next(row["addresses"] for row in found if row["name"] == name).values())))


def gets(lab: Lab, host: str, url: str, wait_s: float = 2) -> bool:
    return lab.run(host, "curl", "-s", "--max-time", str(wait_s), "-o", "/dev/null", url, check=False).returncode == 0


def refused(lab: Lab, host: str, url: str) -> bool:
    """At once, as by a host on which nobody listens there."""
    return lab.run(host, "curl", "-s", "--max-time", "2", url, check=False).returncode == 7


def fails(lab: Lab, *words: str) -> str:
    done = lab.run("A", "plait", *words, check=False)
    assert done.returncode in (1, 2), done.stdout
    return str(done.stderr)


@pytest.mark.parametrize("name", ["box", "web"])
def test_a_port_is_published_while_its_container_runs_and_outlives_the_agent(lab: Lab, name: str) -> None:
    url = f"http://{lab.address('A')}:8080/"
    assert refused(lab, "B", url)
    assert lab.run("A", "plait", "publish", name, "8080:80").stdout == "0.0.0.0:8080->80/tcp\n"
    assert gets(lab, "B", url) and gets(lab, "A", "http://127.0.0.1:8080/") and gets(lab, "A", url)
    (row,) = rows(lab)
    assert (row["container"], row["host_port"], row["container_port"], row["by"]) == (name, 8080, 80, "command")
    listed = {row["name"]: row["ports"] for row in json.loads(lab.run("B", "plait", "ps", "--json").stdout)}
    assert listed[name] == ["0.0.0.0:8080->80/tcp"], "on every host"
    lab.kill_agent("A")
    assert gets(lab, "B", url), "it does not need the agent"
    lab.start_agent("A")
    assert gets(lab, "B", url) and rows(lab) == [row]
    until("the kernel is as planned", lambda: lab.run("A", "plait", "plan", "--diff").stdout == "", 10)
    assert lab.run("A", "plait", "unpublish", name, "8080").stdout == "0.0.0.0:8080->80/tcp\n"
    assert refused(lab, "B", url) and rows(lab) == []


def test_it_goes_with_its_container(lab: Lab) -> None:
    docker(lab, "A", "run", "-d", "--name", "brief", "--network", "mesh", "-p", "8081:80", "nginx")
    lab.run("A", "plait", "publish", "brief", "8082:80")
    for port in (8081, 8082):
        until(f"{port} answers", lambda port=port: gets(lab, "B", f"http://{lab.address('A')}:{port}/"), 20)
    docker(lab, "A", "restart", "-t", "0", "brief")
    until("what the engine publishes is back", lambda: gets(lab, "B", f"http://{lab.address('A')}:8081/"), 20)
    assert refused(lab, "B", f"http://{lab.address('A')}:8082/"), "the other was of the container that ran before"
    docker(lab, "A", "rm", "-f", "brief")
    assert rows(lab) == []


def test_what_is_taken_is_refused_with_the_holder(lab: Lab) -> None:
    lab.run("A", "plait", "publish", "box", "8080:80")
    assert "the port is published for 'box' already" in fails(lab, "publish", "web", "8080:80")
    listener = lab.popen("A", "python3", "-m", "http.server", "9099", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until("it listens", lambda: ":9099" in lab.run("A", "ss", "-Hltn").stdout, 10)
        said = fails(lab, "publish", "web", "9099:80")
        assert "python3 (pid " in said and "listens on that port of this host" in said
    finally:
        listener.terminate()
        listener.wait()
    assert "it runs on A, publish and unpublish its ports there" in str(lab.run("B", "plait", "publish", "box", "80", check=False).stderr)
    assert [row["host_port"] for row in rows(lab)] == [8080]


def test_it_is_for_its_sources_and_for_the_hosts_clients(lab: Lab) -> None:
    url = f"http://{lab.address('A')}:8080/"
    lab.run("A", "plait", "publish", "web", "8080:80", "--from", "203.0.113.0/24")
    assert refused(lab, "B", url) and gets(lab, "A", url)
    assert rows(lab)[0]["sources"] == ["203.0.113.0/24"]
    lab.run("A", "plait", "publish", "web", "8080:80", "--from", f"{lab.address('B')}")
    assert gets(lab, "B", url), "said anew while it is published"
    try:
        configure(lab, '[ports]\nfrom = ["203.0.113.0/24"]\n')
        until("the host's own list counts as well", lambda: refused(lab, "B", url), 20)
        assert gets(lab, "A", url)
    finally:
        configure(lab, "")
    until("it counts no more", lambda: gets(lab, "B", url), 20)


def configure(lab: Lab, text: str) -> None:
    lab.run("A", "mkdir", "-p", "/etc/plait")
    lab.run("A", "sh", "-c", "cat > /etc/plait/plait.toml", text=text)
    lab.kill_agent("A")
    lab.start_agent("A")


def test_labels_say_for_whom_an_engine_publishes(lab: Lab) -> None:
    url = f"http://{lab.address('A')}:8084/"
    labels = ("--label", "plait.ports.from=203.0.113.0/24", "--label", "plait.ports.nat=true")
    docker(lab, "A", "run", "-d", "--name", "some", "--network", "mesh", "-p", "8084:80", *labels, "nginx")
    until("it answers its host", lambda: gets(lab, "A", url), 20)
    assert refused(lab, "B", url) and refused(lab, "A", f"http://{address(lab, 'some')}/")
    docker(lab, "A", "rm", "-f", "some")
    wrong = lab.run(
        "A",
        "docker",
        "run",
        "--name",
        "wrong",
        "--network",
        "mesh",
        "-p",
        "8084:80",
        "--label",
        "plait.ports.nat=maybe",
        "nginx",
        check=False,
    )
    assert "label plait.ports.nat: 'maybe' must be true or false" in wrong.stderr
    docker(lab, "A", "rm", "-f", "wrong")


MODES = {  # outside to the host's port, the host to that, the host to the container's, a neighbour to the container's
    "nothing is published": ((), (False, False, True, True)),
    "sandbox": (("80",), (True, True, True, True)),
    "HostPort": (("8080:80",), (True, True, True, True)),
    "NAT": (("8080:80", "--nat"), (True, True, False, True)),
}


@pytest.mark.parametrize("mode", MODES)
def test_who_sees_what_in_each_of_the_modes(lab: Lab, mode: str) -> None:
    words, wanted = MODES[mode]
    line = lab.run("A", "plait", "publish", "web", *words).stdout if words else "0.0.0.0:8080->80/tcp"
    published = f"http://{lab.address('A')}:{line.partition('->')[0].rpartition(':')[2]}/"
    inside = f"http://{address(lab, 'web')}/"
    if mode == "HostPort":
        assert published.endswith(":8080/")
    docker(lab, "A", "run", "-d", "--name", "near", "--network", "mesh", "nginx")
    try:
        fetch = ("curl", "-s", "-o", "/dev/null", "--max-time", "2")
        near = lab.run("A", "docker", "exec", "near", *fetch, inside, check=False).returncode == 0
        assert (gets(lab, "B", published), gets(lab, "A", published), gets(lab, "A", inside), near) == wanted
    finally:
        docker(lab, "A", "rm", "-f", "near")


ECHO = "import socket as s,sys; u=s.socket(2,2); u.bind(('',53))\nwhile 1: u.sendto(sys.argv[1].encode(), u.recvfrom(9)[1])"
ASK = "import socket as s,sys; u=s.socket(2,2); u.bind(('',7777)); u.settimeout(1); u.sendto(b'?',(sys.argv[1],5353))"
ASK += "; print(u.recv(9).decode())"


def test_the_next_datagram_of_a_client_goes_to_whom_the_port_is_of_now(lab: Lab) -> None:
    """It sends from one port all the time, and the container's port is another one than the host's."""
    ask = lambda: lab.run("B", "python3", "-c", ASK, lab.address("A"), check=False).stdout.strip()  # noqa: E731
    for name in ("one", "two"):
        lab.run("A", "plait", "run", "--name", name, "-d", "--", "python3", "-c", ECHO, name)
    assert ask() == "", "its first datagram was meant for the host itself"
    for name in ("one", "two", "one"):
        lab.run("A", "plait", "publish", name, "5353:53/udp")
        until(f"{name} answers", lambda name=name: ask() == name, 5)
        assert [ask() for _ in range(3)] == [name] * 3
        lab.run("A", "plait", "unpublish", name)
        assert ask() == ""
    lab.run("A", "plait", "publish", "one", "5353:53/udp")
    assert ask() == "one"
    lab.run("A", "plait", "rm", "one")
    lab.run("A", "plait", "publish", "two", "5353:53/udp")
    assert ask() == "two"
    lab.run("A", "plait", "rm", "two")


def test_a_drop_rule_of_the_host_for_what_it_forwards_holds(lab: Lab) -> None:
    """One that looks at what the host itself receives (hook input) never sees what goes to a container."""
    url = f"http://{lab.address('A')}:8080/"
    lab.run("A", "plait", "publish", "web", "8080:80")
    assert gets(lab, "B", url)
    chain = "add chain inet own c { type filter hook %s; }"
    for hook, rule in (
        ("prerouting priority mangle", "tcp dport 8080 drop"),
        ("forward priority filter", "meta l4proto tcp ct original proto-dst 8080 drop"),
    ):
        script = f"add table inet own\n{chain % hook}\nadd rule inet own c iifname eth0 {rule}\n"
        lab.run("A", "nft", "-f", "-", text=script)
        try:
            assert not gets(lab, "B", url, 1), hook
        finally:
            lab.run("A", "nft", "delete", "table", "inet", "own")
    assert gets(lab, "B", url)


def test_rules_of_the_host_that_do_not_see_its_published_ports_are_named(lab: Lab) -> None:
    said = lambda: lab.run("A", "plait", "status", check=False).stdout  # noqa: E731
    lab.run("A", "plait", "publish", "web", "8080:80")
    chain = "add chain inet own c { type filter hook input priority filter; }"
    lab.run("A", "nft", "-f", "-", text=f"add table inet own\n{chain}\nadd rule inet own c iifname eth0 tcp dport 8080 drop\n")
    try:
        until("it is named", lambda: "ports-past-input" in said(), 10)
        assert "0.0.0.0:8080->80/tcp of web" in said()
        lab.run("A", "plait", "publish", "web", "8080:80", "--from", "203.0.113.0/24")
        until("it is for some by now", lambda: "ports-past-input" not in said(), 10)
    finally:
        lab.run("A", "nft", "delete", "table", "inet", "own")
