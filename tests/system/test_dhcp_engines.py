# SPDX-License-Identifier: Apache-2.0
"""Engines on a link with a DHCP server (dnsmasq on D): containers of Docker and of a runtime of CNI have its addresses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.cni import Runner
from tests.support.dnsmasq import Dnsmasq, serve
from tests.support.mesh import docker, networks, remove_containers

from plait.lab import process
from plait.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]
HTTP = ("curl", "-sS", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}")
HOSTS = """
[[host]]
name = "A"
[[host]]
name = "D"
agent = false
engine = false
"""


@pytest.fixture(scope="module")
def served(make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Dnsmasq]]:
    lab = make_lab(toml=HOSTS, engines=True)
    lab.run("A", "mkdir", "-p", "/etc/cni/net.d")
    lab.kill_agent("A")
    lab.start_agent("A")
    router = lab.address("D")
    soon = ("--dhcp-option=option:T1,2", "--dhcp-option=option:T2,4")
    lab.run("D", "ip", "addr", "replace", "fd99::1/64", "dev", "eth0", "nodad")
    six = ("--enable-ra", "--dhcp-range=fd99::100,fd99::1ff,64,120")
    routes = f"--dhcp-option=121,10.9.0.0/16,{router},0.0.0.0/0,{router}"
    server = serve(lab, "D", Path(tmp_path_factory.mktemp("d")), *soon, routes, *six)
    create(lab)
    yield lab, server
    server.stop()


def create(lab: Lab) -> None:
    where = ("-o", "parent=eth0", "--ipam", "dhcp", "--ipv6", "--subnet6", "fd99::/64")
    lab.run("A", "plait", "network", "create", "lan", "--backend", "macvlan", *where)
    process.until("lan in Docker", lambda: "lan" in networks(lab, "A"), 5)


@pytest.fixture(autouse=True)
def clean(served: tuple[Lab, Dnsmasq]) -> Iterator[None]:
    """Nothing stays from one test to the next: no container, lease or link."""
    lab, server = served
    yield
    remove_containers(lab, "A")
    process.until("all leases are given back", lambda: server.rows() == {} and server.rows6() == [], 5)
    process.until("no link is left", lambda: "macvlan" not in lab.run("A", "ip", "-d", "link").stdout, 3)


def shown(lab: Lab, name: str) -> str:
    return docker(lab, "A", "inspect", "-f", "{{.NetworkSettings.Networks.lan.IPAddress}}", name)


def shown6(lab: Lab, name: str) -> str:
    return docker(lab, "A", "inspect", "-f", "{{.NetworkSettings.Networks.lan.GlobalIPv6Address}}", name)


def answers(lab: Lab, at: str) -> bool:
    return lab.run("D", *HTTP, f"http://[{at}]/" if ":" in at else f"http://{at}/", check=False).stdout == "200"


def routes(lab: Lab, *enter: str) -> dict[str, str]:
    return {row["dst"]: row.get("gateway", "") for row in json.loads(lab.run("A", *enter, "ip", "-j", "route").stdout)}


def test_docker_shows_what_the_server_gave_and_keeps_it(served: tuple[Lab, Dnsmasq]) -> None:
    lab, server = served
    docker(lab, "A", "run", "-d", "--name", "web", "--network", "lan", "nginx")
    at = shown(lab, "web")
    assert server.rows() == {at: "web"}
    process.until("it answers", lambda: answers(lab, at), 10)
    pid = docker(lab, "A", "inspect", "-f", "{{.State.Pid}}", "web")
    inside = ("nsenter", "-t", pid, "-n")
    router = lab.address("D")
    assert routes(lab, *inside) == {"default": router, "10.9.0.0/16": router, "198.18.0.0/24": ""}
    lab.kill_agent("A")
    lab.start_agent("A")
    process.until("it is renewed", lambda: server.count("DHCPACK", at) >= 3, 10)
    assert server.rows() == {at: "web"} and shown(lab, "web") == at and answers(lab, at)
    docker(lab, "A", "restart", "-t0", "web")
    assert shown(lab, "web") == at and server.rows() == {at: "web"}, "it asks for the one it had"
    docker(lab, "A", "rm", "-f", "web")
    process.until("given back", lambda: server.rows() == {}, 5)


def test_the_same_by_ipv6_whose_routes_the_container_learns(served: tuple[Lab, Dnsmasq]) -> None:
    lab, server = served
    docker(lab, "A", "run", "-d", "--name", "web", "--network", "lan", "nginx")
    six = shown6(lab, "web")
    assert server.rows6() == [six] and server.rows() == {shown(lab, "web"): "web"}
    bits = docker(lab, "A", "inspect", "-f", "{{.NetworkSettings.Networks.lan.GlobalIPv6PrefixLen}}", "web")
    assert bits == "128", "what is on the link, routers say"
    process.until("it answers", lambda: answers(lab, six), 10)
    pid = docker(lab, "A", "inspect", "-f", "{{.State.Pid}}", "web")
    inside = ("nsenter", "-t", pid, "-n", "ip", "-6")
    process.until("the router is known", lambda: "default via fe80::" in lab.run("A", *inside, "route").stdout, 10)
    rows = {row["name"]: row for row in json.loads(lab.run("A", "plait", "ps", "--json").stdout)}
    assert rows["web"]["addresses6"] == {"lan": six}
    lab.kill_agent("A")
    lab.start_agent("A")
    process.until("it is asked for again", lambda: server.count("DHCPREPLY", six) >= 2, 10)
    assert server.rows6() == [six] and answers(lab, six) and lab.run("A", "plait", "plan", "--diff").stdout == ""
    docker(lab, "A", "restart", "-t0", "web")
    assert shown6(lab, "web") == six and server.rows6() == [six]
    process.until("it answers again", lambda: answers(lab, six), 10)


def test_what_was_removed_while_the_agent_was_away_is_given_back(served: tuple[Lab, Dnsmasq]) -> None:
    lab, server = served
    docker(lab, "A", "run", "-d", "--name", "gone", "--network", "lan", "nginx")
    assert list(server.rows().values()) == ["gone"]
    pid = docker(lab, "A", "inspect", "-f", "{{.State.Pid}}", "gone")
    lab.kill_agent("A")
    lab.run("A", "kill", "-9", pid)
    lab.start_agent("A")
    remove_containers(lab, "A")
    process.until("given back", lambda: server.rows() == {}, 10)


def test_two_containers_and_a_runtime_of_cni(served: tuple[Lab, Dnsmasq]) -> None:
    lab, server = served
    for name in ("w1", "w2"):
        docker(lab, "A", "run", "-d", "--name", name, "--network", "lan", "nginx")
    w1 = shown(lab, "w1")
    config = json.loads(lab.path("A", "/etc/cni/net.d/50-plait-lan.conflist").read_text())
    runner = Runner(lab, "A", config, ("/opt/cni/bin", "/usr/lib/cni"))
    lab.run("A", "ip", "netns", "add", "c1")
    try:
        result = runner.add("c1", "/run/netns/c1")
        at = result["ips"][0]["address"]
        assert at.endswith("/24") and result["ips"][0]["gateway"] == lab.address("D")
        assert {row["dst"] for row in result["routes"]} == {"0.0.0.0/0", "10.9.0.0/16"}
        runner.check("c1", "/run/netns/c1", result)
        assert set(server.rows()) == {w1, shown(lab, "w2"), at.removesuffix("/24")}
        six = result["ips"][1]["address"].removesuffix("/128")
        assert set(server.rows6()) == {six, shown6(lab, "w1"), shown6(lab, "w2")}
        assert lab.run("A", "nsenter", "--net=/run/netns/c1", *HTTP, f"http://{w1}/").stdout == "200"
        runner.delete("c1", "/run/netns/c1", result)
        runner.delete("c1", "/run/netns/c1", result)
    finally:
        lab.run("A", "ip", "netns", "del", "c1")


def test_a_network_of_dockers_own_making_has_both(served: tuple[Lab, Dnsmasq]) -> None:
    """What it names of IPv6 is the link's prefix."""
    lab, server = served
    lab.run("A", "plait", "network", "rm", "lan")
    process.until("lan is gone", lambda: "lan" not in networks(lab, "A"), 5)
    pools = ("--subnet", "198.18.0.0/24", "--gateway", lab.address("D"), "--ipv6", "--subnet", "fd99::/64")
    options = ("-o", "backend=macvlan", "-o", "parent=eth0", "-o", "ipam=dhcp")
    docker(lab, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", *pools, *options, "own")
    docker(lab, "A", "run", "-d", "--name", "web", "--network", "own", "nginx")
    six = docker(lab, "A", "inspect", "-f", "{{.NetworkSettings.Networks.own.GlobalIPv6Address}}", "web")
    assert server.rows6() == [six]
    process.until("it answers", lambda: answers(lab, six), 10)
    made = json.loads(lab.run("A", "plait", "network", "inspect", "own", "--json").stdout)
    assert (made["subnet6"], made["gateway6"], made["options"]["ipam6"]) == ("fd99::/64", "", "dhcp")
    remove_containers(lab, "A")
    docker(lab, "A", "network", "rm", "own")
    create(lab)


def test_no_server_is_dockers_error_too(served: tuple[Lab, Dnsmasq]) -> None:
    """The last one: the server is gone."""
    lab, server = served
    server.stop()
    refused = lab.run("A", "docker", "run", "--name", "none", "--network", "lan", "nginx", check=False, timeout_s=60)
    assert refused.returncode != 0 and "on network lan: no server answered on link eth0 within 10 s" in refused.stderr
