# SPDX-License-Identifier: Apache-2.0
"""IPv6 beside IPv4 on two hosts with agents and Docker Engines: containers and sandboxes reach each other by both, by address and name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, IPv6Network

import pytest
from tests.support.mesh import docker, networks, remove_containers

from plait.lab import process
from plait.lab.lab import Lab
from plait.model.errors import PlaitError

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
FETCH = ("curl", "-sS", "-m", "3", "-o", "/dev/null", "-w", "%{http_code} %{remote_ip}")


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(hosts=2, agents=True, engines=True)
    made = json.loads(lab.run("A", "plait", "network", "create", "dual", "--ipv6", "--json").stdout)
    assert IPv6Network(made["subnet6"]).subnet_of(IPv6Network("fd00::/8"))
    for host in "AB":
        process.until(f"dual on {host}", lambda host=host: "dual" in networks(lab, host), 5)
    return lab


@pytest.fixture(autouse=True)
def clean(two: Lab) -> Iterator[None]:
    yield
    remove_containers(two, "AB")


def run(lab: Lab, host: str, name: str, *options: str) -> tuple[str, str]:
    """Start a web server; both of its addresses as the engine tells them."""
    docker(lab, host, "run", "-d", "--name", name, "--network", "dual", *options, "nginx")
    return addresses(lab, host, name)


def addresses(lab: Lab, host: str, name: str) -> tuple[str, str]:
    settings = json.loads(docker(lab, host, "inspect", name))[0]["NetworkSettings"]["Networks"]["dual"]
    return settings["IPAddress"], settings["GlobalIPv6Address"]


def fetched(lab: Lab, host: str, name: str, url: str, *options: str) -> str:
    """Status and address of who answered what container `name` asked for; "" if nobody did."""
    command = ["docker", "exec", name, *FETCH, "--retry", "3", "--retry-connrefused", *options, url]
    done = lab.run(host, *command, check=False, timeout_s=20)
    return done.stdout if done.returncode == 0 else ""


def row(lab: Lab, name: str) -> dict[str, object]:
    return next(r for r in json.loads(lab.run("A", "plait", "ps", "--json").stdout) if r["name"] == name)


def test_containers_of_two_hosts_reach_each_other_by_both_addresses_and_by_name(two: Lab) -> None:
    web = run(two, "A", "web")
    run(two, "B", "client")
    assert fetched(two, "B", "client", f"http://{web[0]}/") == f"200 {web[0]}"
    assert fetched(two, "B", "client", f"http://[{web[1]}]/") == f"200 {web[1]}"
    for family, address in zip("46", web, strict=True):
        assert fetched(two, "B", "client", "http://web/", f"-{family}") == f"200 {address}"
    two.run("B", "plait", "run", "--name", "box", "--network", "dual", "--", "ping", "-6", "-c1", "-W2", "web")
    assert row(two, "web")["addresses6"] == {"dual": web[1]}


def test_names_are_answered_in_both_families_and_at_the_ipv6_gateway(two: Lab) -> None:
    four, six = run(two, "A", "web")
    network = json.loads(two.run("B", "plait", "network", "inspect", "dual", "--json").stdout)

    def asked(*words: str) -> list[str]:
        return two.run("B", "dig", "+short", f"@{network['gateway6']}", *words).stdout.split()

    process.until("B knows the name", lambda: asked("web.plait", "AAAA") == [six], 5)
    assert asked("web.plait", "A") == [four]
    assert asked("-x", six) == ["web.plait."]


def test_a_restart_keeps_both_and_a_chosen_one_is_given(two: Lab) -> None:
    before = run(two, "A", "web")
    docker(two, "A", "restart", "-t", "0", "web")
    assert addresses(two, "A", "web") == before
    subnet = json.loads(two.run("A", "plait", "network", "inspect", "dual", "--json").stdout)["subnet6"]
    free = str(IPv6Address(before[1]) + 40)
    assert run(two, "A", "chosen", "--ip6", free)[1] == free
    run(two, "A", "client")
    assert fetched(two, "A", "client", f"http://[{free}]/") == f"200 {free}"
    beyond = str(IPv6Network(subnet)[1 << 40])
    with pytest.raises(PlaitError, match="is none that network 'dual' gives"):
        run(two, "A", "no", "--ip6", beyond)


def test_a_network_made_through_docker_has_both_families_on_every_host(two: Lab) -> None:
    pools = ("--subnet", "10.77.0.0/16", "--subnet", "fd00:77::/64")
    docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "--ipv6", *pools, "viadocker")
    process.until("it is on B", lambda: "viadocker" in networks(two, "B"), 10)
    shown = json.loads(docker(two, "B", "network", "inspect", "viadocker"))[0]
    assert shown["EnableIPv6"] and [pool["Subnet"] for pool in shown["IPAM"]["Config"]] == ["10.77.0.0/16", "fd00:77::/64"]
    docker(two, "B", "network", "connect", "viadocker", _started(two, "B", "second"))
    docker(two, "A", "run", "-d", "--name", "only", "--network", "viadocker", "nginx")
    six = json.loads(docker(two, "A", "inspect", "only"))[0]["NetworkSettings"]["Networks"]["viadocker"]["GlobalIPv6Address"]
    assert fetched(two, "B", "second", f"http://[{six}]/") == f"200 {six}", "by its second network, whose gateway is not the default one"
    remove_containers(two, "AB")
    docker(two, "A", "network", "rm", "viadocker")


def _started(lab: Lab, host: str, name: str) -> str:
    run(lab, host, name)
    return name


def test_sandboxes_have_both_too_and_reach_containers(two: Lab) -> None:
    four, six = run(two, "A", "web")
    for family, address in (("-4", four), ("-6", six)):
        words = [
            "plait",
            "run",
            "--name",
            "box",
            "--network",
            "dual",
            "--",
            *FETCH,
            "--retry",
            "3",
            "--retry-connrefused",
            family,
            "http://web/",
        ]
        assert two.run("B", *words).stdout == f"200 {address}"


def test_a_published_port_answers_on_both_families(two: Lab) -> None:
    run(two, "A", "web", "-p", "8088:80", "-p", "[::]:8089:80")
    two.run("A", "ip", "address", "add", "fd99::1/64", "dev", "eth0", "nodad")
    two.run("B", "ip", "address", "add", "fd99::2/64", "dev", "eth0", "nodad")
    try:
        for port in (8088, 8089):
            assert two.run("B", *FETCH, "--retry", "3", "--retry-connrefused", f"http://[fd99::1]:{port}/").stdout == "200 fd99::1"
        assert "[::]:8089" in two.run("B", "plait", "ports").stdout
        four = two.address("A")
        assert two.run("B", *FETCH, f"http://{four}:8088/").stdout == f"200 {four}"
        assert two.run("B", *FETCH, f"http://{four}:8089/", check=False).returncode != 0
    finally:
        two.run("A", "ip", "address", "del", "fd99::1/64", "dev", "eth0")
        two.run("B", "ip", "address", "del", "fd99::2/64", "dev", "eth0")


def test_a_service_has_records_of_both_families(two: Lab) -> None:
    four, six = run(two, "A", "shop", "--label", "plait.service=shop", "--label", "plait.port=80")

    def answers(qtype: str) -> list[str]:
        return two.run("B", "dig", "+short", "@127.0.0.1", "-p", "8600", "shop.service.consul", qtype).stdout.split()

    process.until("B knows the service", lambda: answers("A") == [four] and answers("AAAA") == [six], 10)
    (entry,) = json.loads(two.run("B", "curl", "-sS", "http://127.0.0.1:8500/v1/catalog/service/shop").stdout)
    assert entry["ServiceAddress"] == four and entry["ServiceTaggedAddresses"]["lan_ipv6"] == {"Address": six, "Port": 80}


def test_the_kernel_is_as_planned(two: Lab) -> None:
    run(two, "A", "web")
    process.until("the plan is done", lambda: not json.loads(two.run("A", "plait", "plan", "--diff", "--json").stdout), 10)
    assert two.run("A", "plait", "status", check=False).returncode == 0
