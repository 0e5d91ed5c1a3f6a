# SPDX-License-Identifier: Apache-2.0
"""Engines on a link of their hosts: containers of Docker and of a runtime of CNI, all neighbours on the hosts' own link."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.cni import Runner
from tests.support.mesh import docker, networks, remove_containers

from plait.lab import process
from plait.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
HTTP = ("curl", "-sS", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}")
ROUTER, ROUTER6 = "198.18.0.254", "fd00:18::fe"


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(hosts=2, agents=True, engines=True)
    lab.run("A", "mkdir", "-p", "/etc/cni/net.d")
    lab.kill_agent("A")
    lab.start_agent("A")
    where = ("--subnet", "198.18.0.0/24", "--gateway", ROUTER, "--ip-range", "198.18.0.128/25")
    six = ("--subnet6", "fd00:18::/64", "--gateway6", ROUTER6)
    lab.run("A", "plait", "network", "create", "lan", "--backend", "macvlan", "-o", "parent=eth0", *where, *six)
    for host in "AB":
        process.until(f"lan on {host}", lambda host=host: "lan" in networks(lab, host), 5)
    return lab


@pytest.fixture(autouse=True)
def clean(two: Lab) -> Iterator[None]:
    """Nothing stays from one test to the next: no container, endpoint, link or address."""
    yield
    remove_containers(two, "AB")
    process.until("no endpoint is left", lambda: not attached(two), 5)
    for host in "AB":
        process.until(f"no link is left on {host}", lambda host=host: "macvlan" not in two.run(host, "ip", "-d", "link").stdout, 3)
        assert two.run(host, "plait", "plan", "--diff").stdout == ""


def attached(lab: Lab) -> dict[str, str]:
    view = json.loads(lab.run("A", "plait", "network", "inspect", "lan", "--json").stdout)
    return {row["name"]: row["address"] for row in view["attached"]}


def started(lab: Lab, host: str, name: str, *options: str) -> str:
    """A web server on lan; its address, once it answers the other host."""
    docker(lab, host, "run", "-d", "--name", name, "--network", "lan", *options, "nginx")
    at = docker(lab, host, "inspect", "-f", "{{.NetworkSettings.Networks.lan.IPAddress}}", name)
    other = "B" if host == "A" else "A"
    process.until(f"{name} answers", lambda: lab.run(other, *HTTP, f"http://{at}/", check=False).stdout == "200", 10)
    return at


def link(lab: Lab, name: str) -> dict[str, Any]:
    """The link of a container of A, as the kernel sees it."""
    pid = docker(lab, "A", "inspect", "-f", "{{.State.Pid}}", name)
    found = json.loads(lab.run("A", "nsenter", "-t", pid, "-n", "ip", "-d", "-j", "link", "show", "eth0").stdout)
    return dict(found[0])


def cni(lab: Lab) -> Runner:
    """A runtime on A, with the list that the agent wrote."""
    config = json.loads(lab.path("A", "/etc/cni/net.d/50-plait-lan.conflist").read_text())
    return Runner(lab, "A", config, ("/opt/cni/bin", "/usr/lib/cni"))


def answers(lab: Lab, host: str, name: str, url: str, *options: str) -> bool:
    return lab.run(host, "docker", "exec", name, *HTTP, *options, url, check=False).stdout == "200"


def address6(lab: Lab, host: str, name: str) -> str:
    return docker(lab, host, "inspect", "-f", "{{.NetworkSettings.Networks.lan.GlobalIPv6Address}}", name)


def test_containers_of_docker_are_on_the_link_and_know_each_others_names(two: Lab) -> None:
    a1, b1 = started(two, "A", "a1"), started(two, "B", "b1")
    found = link(two, "a1")
    assert (found["linkinfo"]["info_kind"], found["linkinfo"]["info_data"]["mode"]) == ("macvlan", "bridge")
    assert found["address"] == docker(two, "A", "inspect", "-f", "{{.NetworkSettings.Networks.lan.MacAddress}}", "a1")
    assert found["address"] in two.run("B", "ip", "neigh", "show", a1).stdout, "the host next to it knows it by its MAC"
    process.until("by name", lambda: answers(two, "A", "a1", "http://b1/") and answers(two, "B", "b1", "http://a1.plait/"), 5)
    assert attached(two) == {"a1": a1, "b1": b1}


def test_they_have_ipv6_of_the_link_too(two: Lab) -> None:
    """By address and by name; the router is who it is on the link, and its lack no obstacle."""
    started(two, "A", "a1"), started(two, "B", "b1")
    a1, b1 = address6(two, "A", "a1"), address6(two, "B", "b1")
    process.until("b1 answers by IPv6", lambda: answers(two, "A", "a1", f"http://[{b1}]/"), 5)
    process.until("and a1", lambda: answers(two, "B", "b1", f"http://[{a1}]/"), 5)
    process.until("by name", lambda: answers(two, "A", "a1", "http://b1/", "-6"), 5)
    pid = docker(two, "A", "inspect", "-f", "{{.State.Pid}}", "a1")
    inside = ("nsenter", "-t", pid, "-n", "ip", "-6", "-j")
    routes = json.loads(two.run("A", *inside, "route").stdout)
    assert [row["gateway"] for row in routes if row["dst"] == "default"] == [ROUTER6]
    assert {"fd00:18::/64"} <= {row["dst"] for row in routes}
    two.kill_agent("A")
    two.start_agent("A")
    assert answers(two, "A", "a1", f"http://[{b1}]/") and two.run("A", "plait", "plan", "--diff").stdout == ""
    docker(two, "A", "restart", "-t0", "a1")
    assert address6(two, "A", "a1") == a1
    process.until("again", lambda: answers(two, "B", "b1", f"http://[{a1}]/"), 10)


def test_a_host_that_is_rebooted_has_its_containers_back_with_both(two: Lab) -> None:
    started(two, "A", "a1"), started(two, "B", "b1", "--restart", "always")
    b1 = address6(two, "B", "b1")
    two.reboot("B")
    process.until("b1 is back", lambda: answers(two, "A", "a1", f"http://[{b1}]/"), 30)
    assert address6(two, "B", "b1") == b1
    process.until("by name", lambda: answers(two, "A", "a1", "http://b1/", "-6") and answers(two, "A", "a1", "http://b1/", "-4"), 10)


def test_a_router_may_have_a_link_local_address_alone(two: Lab) -> None:
    where = ("-o", "parent=eth0", "--subnet", "10.89.0.0/24", "--subnet6", "fd00:89::/64", "--gateway6", "fe80::1")
    two.run("A", "plait", "network", "create", "near", "--backend", "macvlan", *where)
    process.until("known", lambda: "near" in networks(two, "A"), 5)
    docker(two, "A", "run", "-d", "--name", "a1", "--network", "near", "nginx")
    pid = docker(two, "A", "inspect", "-f", "{{.State.Pid}}", "a1")
    routes = json.loads(two.run("A", "nsenter", "-t", pid, "-n", "ip", "-6", "-j", "route").stdout)
    assert [row["gateway"] for row in routes if row["dst"] == "default"] == ["fe80::1"]
    remove_containers(two, "A")
    two.run("A", "plait", "network", "rm", "near")
    process.until("gone", lambda: "near" not in networks(two, "A") | networks(two, "B"), 5)


def test_an_address_of_another_machine_is_dockers_error(two: Lab) -> None:
    two.run("B", "ip", "addr", "add", "fd00:18::c8/64", "dev", "eth0", "nodad")
    try:
        command = ("docker", "run", "--name", "twice", "--network", "lan", "--ip6", "fd00:18::c8", "nginx")
        refused = two.run("A", *command, check=False, timeout_s=60)
    finally:
        two.run("B", "ip", "addr", "del", "fd00:18::c8/64", "dev", "eth0")
    assert refused.returncode != 0 and "address fd00:18::c8 of network 'lan' cannot be used: the machine with the MAC" in refused.stderr


def test_it_keeps_its_address_and_link_whatever_is_restarted(two: Lab) -> None:
    a1 = started(two, "A", "a1")
    before = link(two, "a1")
    two.kill_agent("A")
    two.start_agent("A")
    assert link(two, "a1") == before and two.run("A", "plait", "plan", "--diff").stdout == ""
    docker(two, "A", "restart", "-t0", "a1")
    process.until("it is back", lambda: two.run("B", *HTTP, f"http://{a1}/", check=False).stdout == "200", 10)
    started(two, "B", "b1")
    process.until("names too", lambda: answers(two, "A", "a1", "http://b1/"), 5)


def test_a_link_that_somebody_deletes_is_put_back_in_the_container(two: Lab) -> None:
    a1 = started(two, "A", "a1")
    pid = docker(two, "A", "inspect", "-f", "{{.State.Pid}}", "a1")
    two.run("A", "nsenter", "-t", pid, "-n", "ip", "link", "del", "eth0")
    two.run("A", "ip", "link", "add", "pl-x", "type", "bridge")  # anything of the host's that makes a pass look
    two.run("A", "ip", "link", "del", "pl-x")
    process.until("it is back", lambda: two.run("B", *HTTP, f"http://{a1}/", check=False).stdout == "200", 5)


def test_what_one_forges_is_dropped_in_it_and_named(two: Lab) -> None:
    """Docker's containers may send what they like by packet sockets (CAP_NET_RAW). An address of the link, told to all by ARP; then as
    before the agent knew its namespace."""
    started(two, "A", "a1"), started(two, "A", "a2")
    process.until("both are judged", lambda: {"a1", "a2"} == {name for name in ("a1", "a2") if judged(two, name)}, 5)
    docker(two, "A", "restart", "-t0", "a1")
    process.until("again, with its new link", lambda: judged(two, "a1"), 5)
    before = two.run("B", "ip", "neigh", "show", "198.18.0.77").stdout
    say = "import socket;s=socket.socket(17,3);s.bind(('eth0',0));m=open('/sys/class/net/eth0/address').read()"
    forge = (
        f"{say};m=bytes.fromhex(m.strip().replace(':',''));o=socket.inet_aton('198.18.0.77');e=bytes.fromhex('ff'*6);"
        "f=e+m+bytes.fromhex('0806000108000604')+bytes([0,2])+m+o+e+o;[s.send(f) for _ in range(3)]"
    )
    pid = docker(two, "A", "inspect", "-f", "{{.State.Pid}}", "a1")
    two.run("A", "nsenter", "-t", pid, "-n", "python3", "-c", forge, check=False)
    process.until("it is named", lambda: "lan/a1" in two.run("A", "plait", "status", check=False).stdout, 10)
    assert "lan/a2" not in two.run("A", "plait", "status", check=False).stdout
    assert two.run("B", "ip", "neigh", "show", "198.18.0.77").stdout == before
    two.run("A", "nsenter", "-t", pid, "-n", "nft", "flush", "ruleset")
    two.run("A", "nsenter", "-t", pid, "-n", "python3", "-c", forge, check=False)
    assert two.run("B", "ip", "neigh", "show", "198.18.0.77").stdout == before, "on the host too"


def judged(lab: Lab, name: str) -> bool:
    """Whether a container of A has the table in its namespace."""
    pid = docker(lab, "A", "inspect", "-f", "{{.State.Pid}}", name)
    return "hook egress" in lab.run("A", "nsenter", "-t", pid, "-n", "nft", "list", "ruleset", "netdev", check=False).stdout


def test_connect_disconnect_and_a_refused_port_leave_nothing(two: Lab) -> None:
    docker(two, "A", "run", "-d", "--name", "a1", "nginx")
    docker(two, "A", "network", "connect", "lan", "a1")
    at = attached(two)["a1"]
    process.until("on the link", lambda: two.run("B", *HTTP, f"http://{at}/", check=False).stdout == "200", 5)
    docker(two, "A", "network", "disconnect", "lan", "a1")
    assert attached(two) == {} and two.run("B", "ping", "-c1", "-W1", at, check=False).returncode != 0
    refused = two.run("A", "docker", "run", "--name", "port", "--network", "lan", "-p", "80:80", "nginx", check=False, timeout_s=60)
    assert refused.returncode != 0 and "publishing ports of a container of network lan" in refused.stderr


def test_a_network_of_dockers_own_making_is_one_of_the_cluster(two: Lab) -> None:
    where = ("--subnet", "10.88.0.0/24", "--gateway", "10.88.0.254", "-o", "backend=macvlan", "-o", "parent=eth0", "-o", "mode=private")
    six = ("--ipv6", "--subnet", "fd00:88::/64", "--gateway", "fd00:88::2")
    docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", *where, *six, "apart")
    process.until("known", lambda: "apart" in networks(two, "B"), 5)
    docker(two, "B", "run", "-d", "--name", "b1", "--network", "apart", "nginx")
    rows = {row["name"]: row for row in json.loads(two.run("A", "plait", "network", "ls", "--json").stdout)}
    assert (rows["apart"]["backend"], rows["apart"]["options"]["mode"]) == ("macvlan", "private")
    assert (rows["apart"]["subnet6"], rows["apart"]["gateway6"]) == ("fd00:88::/64", "fd00:88::2"), "of another offset than that of IPv4"
    remove_containers(two, "B")
    two.run("A", "plait", "network", "rm", "apart")
    process.until("gone", lambda: "apart" not in networks(two, "A") | networks(two, "B"), 5)


def test_a_host_that_leaves_takes_links_out_of_containers(two: Lab) -> None:
    runner = Runner(
        two, "A", json.loads(two.path("A", "/etc/cni/net.d/50-plait-lan.conflist").read_text()), ("/opt/cni/bin", "/usr/lib/cni")
    )
    a1 = started(two, "A", "a1")
    pid = docker(two, "A", "inspect", "-f", "{{.State.Pid}}", "a1")
    two.run("A", "ip", "netns", "add", "c2")
    try:
        result = runner.add("c2", "/run/netns/c2")
        two.run("A", "plait", "down")
        assert "eth0" not in two.run("A", "nsenter", "-t", pid, "-n", "ip", "-br", "link").stdout, "Docker moved that one there"
        for place in (("-t", pid, "-n"), ("--net=/run/netns/c2",)):
            assert two.run("A", "nsenter", *place, "nft", "list", "tables", "netdev").stdout == "", "nor what judged it"
        left = two.run("A", "nsenter", "--net=/run/netns/c2", "ip", "-br", "link").stdout.split()
        assert "eth0" not in " ".join(left) and left[0] == "lo"
        two.start_agent("A")
        process.until("a1 is back", lambda: two.run("B", *HTTP, f"http://{a1}/", check=False).stdout == "200", 10)
        started(two, "B", "b1")
        six = f"http://[{address6(two, 'A', 'a1')}]/"
        process.until("by IPv6 too", lambda: answers(two, "B", "b1", six), 10)
        runner.delete("c2", "/run/netns/c2", result)
    finally:
        two.run("A", "ip", "netns", "del", "c2")


def test_a_runtime_of_cni_beside_them(two: Lab) -> None:
    b1 = started(two, "B", "b1")
    runner = cni(two)
    two.run("A", "ip", "netns", "add", "c1")
    netns = "/run/netns/c1"
    try:
        result = runner.add("c1", netns)
        assert [one["name"] for one in result["interfaces"]] == ["eth0"]
        assert [one["gateway"] for one in result["ips"]] == [ROUTER, ROUTER6] and result["ips"][1]["address"].endswith("/64")
        runner.check("c1", netns, result)
        inside = ("nsenter", f"--net={netns}")
        assert two.run("A", *inside, *HTTP, f"http://{b1}/").stdout == "200"
        assert two.run("A", *inside, *HTTP, f"http://[{address6(two, 'B', 'b1')}]/").stdout == "200"
        server = result["dns"]["nameservers"][0]
        assert two.run("A", *inside, "dig", "+short", "+time=1", f"@{server}", "b1").stdout.strip() == b1
        runner.delete("c1", netns, result)
        assert two.run("A", *inside, "ip", "-br", "link").stdout.split()[0] == "lo"
        runner.delete("c1", netns, result)
    finally:
        two.run("A", "ip", "netns", "del", "c1")
