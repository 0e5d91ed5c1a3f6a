# SPDX-License-Identifier: Apache-2.0
"""Who is no container, with real packets: the host itself (`plait expose`), and D, which has no agent, by a gateway."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.support.wireguard import needs_wireguard_go

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
HOSTS = """
[[host]]
name = "A"
engine = false
[[host]]
name = "B"
engine = false
[[host]]
name = "D"
agent = false
engine = false
"""
SEEN_AS = """
import socket
server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    peer, where = server.accept()
    peer.sendall(where[0].removeprefix("::ffff:").encode())
    peer.close()
"""
ASK = "import socket,sys;s=socket.create_connection((sys.argv[1],80),2);print(s.makefile().read())"
NETWORKS = {
    "inner": ("10.71.0.0/16", "--internal", "--ipv6", "--subnet6", "fd00:71::/64"),
    "linked": ("10.72.0.0/16", "--internal", "--model", "hybrid"),
    "here": ("10.73.0.0/24", "--internal", "--backend", "none"),
    "ported": ("10.74.0.0/24", "--internal", "--backend", "bridge"),
    "open": ("10.80.0.0/16", "--ipv6", "--subnet6", "fd00:80::/64"),
    "routed": ("10.81.0.0/16", "--model", "hybrid"),
}
"""Name -> subnet and options. Sandboxes are called like their network and host."""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(toml=HOSTS)
    for name, (subnet, *options) in NETWORKS.items():
        made.run("A", "plait", "network", "create", name, "--subnet", subnet, *options)
        for host in "AB":
            made.run(host, "plait", "run", "--name", f"{name}-{host}", "--network", name)
    for number, host in enumerate("ABD", 1):
        made.run(host, "ip", "addr", "add", f"fd99::{number}/64", "dev", "eth0", "nodad")
    for subnet in ("10.0.0.0/8", "fd00::/16"):
        made.run("D", "ip", "route", "add", subnet, "via", made.address("A") if "." in subnet else "fd99::1")
    return made


def address(lab: Lab, sandbox: str, family: str = "addresses") -> str:
    rows = json.loads(lab.run(sandbox[-1], "plait", "ps", "--json").stdout)
    return str(next(row[family][sandbox[:-2]] for row in rows if row["name"] == sandbox))


def pings(lab: Lab, host: str, to: str) -> bool:
    return lab.run(host, "ping", "-c1", "-W1", to, check=False).returncode == 0


def inside_pings(lab: Lab, sandbox: str, to: str) -> bool:
    return lab.run(sandbox[-1], "plait", "exec", sandbox, "--", "ping", "-c1", "-W1", to, check=False).returncode == 0


@contextmanager
def exposed(lab: Lab, host: str, network: str) -> Iterator[list[str]]:
    """The addresses that the host has while it is so."""
    yield lab.run(host, "plait", "expose", network).stdout.split()
    lab.run(host, "plait", "expose", network, "--off")


@contextmanager
def gateway(lab: Lab, host: str = "A") -> Iterator[None]:
    """Forgotten everywhere when this ends."""
    lab.run(host, "plait", "gateway", "enable")
    try:
        yield
    finally:
        lab.run(host, "plait", "gateway", "disable")
        for other in "AB":
            until("no trace is left", lambda other=other: "handed" not in kernel(lab, other), 5)
        until("the rule is back", lambda: "ip saddr != @pools ip daddr @pools drop" in kernel(lab, host), 5)


@contextmanager
def server(lab: Lab, sandbox: str) -> Iterator[None]:
    """It tells who asks what address it is seen by."""
    command = ("plait", "exec", sandbox, "--", "python3", "-c", SEEN_AS)
    with lab.popen(sandbox[-1], *command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


def seen_as(lab: Lab, host: str, to: str) -> str:
    return lab.run(host, "python3", "-c", ASK, to, check=False).stdout.strip()


def kernel(lab: Lab, host: str) -> str:
    """Everything that plait could leave behind, in an order of its own; less the link-local addresses that the kernel makes by itself."""
    shown = (
        ("nft", "-s", "list", "ruleset"),
        ("ip", "-o", "addr"),
        ("ip", "route", "show", "table", "all"),
        ("ip", "-6", "route", "show", "table", "all"),
        ("ip", "rule"),
        ("sh", "-c", "sysctl -a 2>/dev/null | grep -E 'forwarding|rp_filter|send_redirects|ip_forward'"),
    )
    lines = (line for command in shown for line in lab.run(host, *command).stdout.splitlines())
    return "\n".join(sorted(line for line in lines if "fe80::" not in line))


@pytest.mark.parametrize("network", ["inner", "linked", "here"])
def test_an_internal_network_is_reached_from_its_host_once_exposed_and_not_again_when_withdrawn(lab: Lab, network: str) -> None:
    near, far = address(lab, f"{network}-A"), address(lab, f"{network}-B")
    crosses = network != "here"
    before = kernel(lab, "A")
    assert not pings(lab, "A", near) and not pings(lab, "A", far)
    with exposed(lab, "A", network) as own:
        assert lab.run("A", "plait", "expose", network).stdout.split() == own, "twice is once"
        assert pings(lab, "A", near) and pings(lab, "A", far) == crosses
        assert inside_pings(lab, f"{network}-A", own[0]) and inside_pings(lab, f"{network}-B", own[0]) == crosses
        with server(lab, f"{network}-A"):
            assert seen_as(lab, "A", near) == own[0]
        assert not pings(lab, "B", address(lab, f"{network}-B")), "B has exposed nothing"
        assert not inside_pings(lab, f"{network}-A", lab.address("B")), "there is no way out still"
    lab.run("A", "plait", "expose", network, "--off")
    assert not pings(lab, "A", near) and not pings(lab, "A", far)
    assert kernel(lab, "A") == before
    assert lab.run("A", "plait", "plan", "--diff").stdout == ""


def test_both_families_are_exposed(lab: Lab) -> None:
    near, far = address(lab, "inner-A", "addresses6"), address(lab, "inner-B", "addresses6")
    assert not pings(lab, "A", far)
    with exposed(lab, "A", "inner") as (_, six):
        assert pings(lab, "A", near) and pings(lab, "A", far)
        assert inside_pings(lab, "inner-A", six) and inside_pings(lab, "inner-B", six)
        with server(lab, "inner-B"):
            assert seen_as(lab, "A", far) == six
    assert not pings(lab, "A", far)


def test_a_bridge_is_reached_from_its_host_as_ever_and_can_be_exposed(lab: Lab) -> None:
    near = address(lab, "ported-A")
    assert pings(lab, "A", near)
    with exposed(lab, "A", "ported") as (own,), server(lab, "ported-A"):
        assert inside_pings(lab, "ported-A", own) and seen_as(lab, "A", near) == own
    assert pings(lab, "A", near)


@needs_wireguard_go
def test_an_encrypted_internal_network_is_exposed(lab: Lab) -> None:
    lab.run("A", "plait", "network", "create", "secret", "--subnet", "10.75.0.0/16", "--internal", "--backend", "wireguard")
    for host in "AB":
        lab.run(host, "plait", "run", "--name", f"secret-{host}", "--network", "secret")
    near, far = address(lab, "secret-A"), address(lab, "secret-B")
    assert not pings(lab, "A", near)
    with exposed(lab, "A", "secret") as (own,), server(lab, "secret-B"):
        until("the tunnel is up", lambda: seen_as(lab, "A", far) == own, 20)
        assert pings(lab, "A", near) and inside_pings(lab, "secret-B", own)
        with gateway(lab):
            assert not pings(lab, "D", near) and not pings(lab, "D", far), "encrypted networks are for nobody outside"
    assert not pings(lab, "A", near)


def test_it_is_shown_and_outlives_the_agent_and_the_host(lab: Lab) -> None:
    far = address(lab, "inner-A")
    with exposed(lab, "B", "inner") as (own, _):
        rows = {row["name"]: row["exposed"] for row in json.loads(lab.run("B", "plait", "network", "ls", "--json").stdout)}
        assert rows["inner"] == own and rows["open"] == ""
        assert all(row["exposed"] == "" for row in json.loads(lab.run("A", "plait", "network", "ls", "--json").stdout))
        assert ", exposed)" in lab.run("B", "plait", "status", check=False).stdout, "whatever else the machine has to say"
        refused = lab.run("A", "plait", "network", "rm", "inner", check=False)
        assert refused.returncode == 1 and "host B on B" in refused.stderr
        lab.kill_agent("B")
        assert pings(lab, "B", far), "packets need no agent"
        lab.start_agent("B")
        until("it is so still", lambda: pings(lab, "B", far), 5)
        lab.reboot("B")
        until("and after a power cut", lambda: pings(lab, "B", far), 10)
        assert lab.run("B", "plait", "expose", "inner").stdout.split()[0] == own
        for network in NETWORKS:
            lab.run("B", "plait", "run", "--name", f"{network}-B", "--network", network)
        lab.run("B", "ip", "addr", "add", "fd99::2/64", "dev", "eth0", "nodad")
    assert not pings(lab, "B", far)


def test_networks_that_are_not_there(lab: Lab) -> None:
    for off in ((), ("--off",)):
        refused = lab.run("A", "plait", "expose", "nowhere", *off, check=False)
        assert refused.returncode == 1 and "there is no network 'nowhere'" in refused.stderr


@pytest.mark.parametrize("network", ["open", "routed"])
def test_a_host_without_agent_reaches_containers_by_a_gateway_and_only_so(lab: Lab, network: str) -> None:
    near, far = address(lab, f"{network}-A"), address(lab, f"{network}-B")
    before = {host: kernel(lab, host) for host in "AB"}
    assert not pings(lab, "D", near) and not pings(lab, "D", far)
    with gateway(lab):
        for sandbox, to in ((f"{network}-A", near), (f"{network}-B", far)):
            with server(lab, sandbox):
                until("D is let through", lambda to=to: seen_as(lab, "D", to) == lab.address("D"), 5)
            assert pings(lab, "D", to) and inside_pings(lab, sandbox, lab.address("D")), "both ways"
        assert not pings(lab, "D", address(lab, "inner-A")) and not pings(lab, "D", address(lab, "inner-B"))
        assert not pings(lab, "D", address(lab, "linked-A")) and not pings(lab, "D", address(lab, "linked-B")), "internal is internal"
    assert not pings(lab, "D", near) and not pings(lab, "D", far)
    for host in "AB":
        assert kernel(lab, host) == before[host]


def test_and_by_ipv6(lab: Lab) -> None:
    near, far = address(lab, "open-A", "addresses6"), address(lab, "open-B", "addresses6")
    assert not pings(lab, "D", near)
    with gateway(lab):
        for sandbox, to in (("open-A", near), ("open-B", far)):
            with server(lab, sandbox):
                until("D is let through", lambda to=to: seen_as(lab, "D", to) == "fd99::3", 5)
        assert not pings(lab, "D", address(lab, "inner-A", "addresses6"))
    assert not pings(lab, "D", near) and not pings(lab, "D", far)


@pytest.mark.parametrize("sandbox", ["open-A", "open-B", "routed-B"])
def test_what_was_let_through_is_cut_with_the_gateway(lab: Lab, sandbox: str) -> None:
    with gateway(lab):
        until("D is let through", lambda: pings(lab, "D", address(lab, sandbox)), 5)
        flow = lab.popen("D", "ping", "-i", "0.2", "-w", "5", address(lab, sandbox), stdout=subprocess.PIPE, text=True)
        assert flow.stdout is not None
        flow.stdout.readline(), flow.stdout.readline()
    seen = [line for line in flow.communicate(timeout=10)[0].splitlines() if "icmp_seq" in line]
    assert len(seen) < 20, "of some 25, the rest met a closed door"


def test_outward_connections_and_published_ports_of_others_stay_when_a_gateway_ends(lab: Lab) -> None:
    """What is an answer, or is meant for a published port, comes from outside too."""
    lab.run("A", "plait", "run", "--name", "shop-A", "--network", "open", "-p", "8080:80")
    outward = ("plait", "exec", "open-A", "--", "ping", "-i", "0.2", "-c", "10", lab.address("D"))
    with gateway(lab):
        flow = lab.popen("A", *outward, stdout=subprocess.PIPE, text=True)
    assert "10 received" in flow.communicate(timeout=10)[0]
    with server(lab, "shop-A"):
        assert lab.run("D", "python3", "-c", ASK.replace("80)", "8080)"), lab.address("A")).stdout.strip() == lab.address("D")
    lab.run("A", "plait", "rm", "shop-A")


def test_a_gateway_forwards_past_the_policy_of_docker(lab: Lab) -> None:
    """Docker's FORWARD policy is drop; here with what Docker makes of its table, and no Docker."""
    docker = "add table ip filter; add chain ip filter DOCKER-USER; add rule ip filter DOCKER-USER counter return;"
    docker += " add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; };"
    docker += " add rule ip filter FORWARD jump DOCKER-USER"
    for host in "AB":
        lab.run(host, "nft", docker)
    try:
        with gateway(lab):
            for sandbox in ("open-A", "open-B", "routed-A", "routed-B"):
                until(f"D reaches {sandbox}", lambda sandbox=sandbox: pings(lab, "D", address(lab, sandbox)), 5)
    finally:
        for host in "AB":
            lab.run(host, "nft", "delete table ip filter")
