# SPDX-License-Identifier: Apache-2.0
"""What is kept for whom, as Docker's users meet it: on two hosts with an engine each, in Docker's own words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.mesh import docker, networks, remove_containers, two_on_mesh

from plait.lab import process
from plait.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(240)]
PLAIT = ("network", "create", "-d", "plait", "--ipam-driver", "plait")


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    return two_on_mesh(make_lab)


@pytest.fixture(autouse=True)
def empty_hosts(two: Lab) -> Iterator[None]:
    yield
    remove_containers(two, "AB")
    for host in "AB":
        two.path(host, "/etc/plait/ranges.toml").unlink(missing_ok=True)


def refused(lab: Lab, host: str, *words: str) -> str:
    """What a command of Docker's that fails says."""
    done = lab.run(host, "docker", *words, check=False, timeout_s=60)
    assert done.returncode != 0, done
    return done.stderr


def started(lab: Lab, host: str, name: str, network: str, *options: str) -> str:
    docker(lab, host, "run", "-d", "--name", name, "--network", network, *options, "nginx")
    return address_of(lab, host, name)


def addresses(lab: Lab, host: str) -> list[dict[str, Any]]:
    return list(json.loads(lab.run(host, "plait", "ipam", "--json").stdout)["addresses"])


def test_an_aux_address_is_given_to_nobody_on_any_host_and_a_full_pool_says_who_has_it(two: Lab) -> None:
    docker(two, "A", *PLAIT, "--subnet", "10.66.0.0/29", "--aux-address", "router=10.66.0.2", "few")
    process.until("B has it", lambda: "few" in networks(two, "B"), 3)
    assert "10.66.0.2 of network 'few' is excluded" in refused(two, "B", "run", "-d", "--network", "few", "--ip", "10.66.0.2", "nginx")
    remove_containers(two, "AB")
    given = {started(two, host, name, "few") for host, name in (("A", "a1"), ("B", "b1"), ("B", "b2"), ("B", "b3"))}
    assert given == {"10.66.0.3", "10.66.0.4", "10.66.0.5", "10.66.0.6"}
    for host in "AB":
        text = refused(two, host, "run", "-d", "--name", "more", "--network", "few", "nginx")
        assert "pool 10.66.0.0/29 of network 'few' is exhausted: 4 usable addresses in 2 blocks of /30," in text
        assert "held by A: 1 blocks, 1 addresses in use, B: 1 blocks, 3 addresses in use; remove containers" in text
        docker(two, host, "rm", "-f", "more")
    docker(two, "B", "rm", "-f", "b2")
    docker(two, "B", "run", "-d", "--name", "now", "--network", "few", "nginx")
    remove_containers(two, "AB")
    other = (*PLAIT, "--subnet", "10.66.0.0/29", "--aux-address", "x=10.66.0.4", "-o", "plait.net=few", "other")
    assert "exists already with exclusions 10.66.0.2, not 10.66.0.4" in refused(two, "B", *other)
    docker(two, "A", "network", "rm", "few")
    process.until("it is gone", lambda: "few" not in networks(two, "B"), 5)


def test_a_reserved_address_is_its_containers_and_follows_it(two: Lab) -> None:
    two.run("A", "plait", "ipam", "reserve", "mesh", "db", "10.29.0.77")
    assert "reserved for 'db'" in refused(two, "A", "run", "-d", "--name", "web", "--network", "mesh", "--ip", "10.29.0.77", "nginx")
    assert started(two, "B", "db", "mesh") == "10.29.0.77"
    docker(two, "B", "restart", "-t", "0", "db")
    assert "in use on node B" in refused(two, "A", "run", "-d", "--name", "db", "--network", "mesh", "nginx")
    docker(two, "A", "rm", "-f", "db")
    docker(two, "B", "rm", "-f", "db")
    assert started(two, "A", "db", "mesh", "--ip", "10.29.0.77") == "10.29.0.77", "named and reserved"
    two.run("B", "plait", "ipam", "unreserve", "mesh", "db")


def test_a_range_is_for_containers_with_the_label(two: Lab) -> None:
    text = '[[range]]\nnetwork = "mesh"\naddresses = ["10.29.0.100-10.29.0.102"]\nlabels = "tier=web"\n'
    for host in "AB":
        two.path(host, "/etc/plait/ranges.toml").write_text(text)

    def has_read(host: str) -> bool:
        done = two.run(host, "plait", "run", "--name", "x", "--network", "mesh", "--ip", "10.29.0.100", check=False)
        if done.returncode == 0:
            two.run(host, "plait", "rm", "x")
        return "in range" in done.stderr

    for host in "AB":
        process.until(f"{host} has read it", lambda host=host: has_read(host), 5)
    given = {started(two, host, f"web-{host}", "mesh", "-l", "tier=web") for host in "AB"}
    assert len(given) == 2 and given < {f"10.29.0.{n}" for n in (100, 101, 102)}
    assert started(two, "B", "other", "mesh") not in {f"10.29.0.{n}" for n in (100, 101, 102)}
    assert "is in range 'tier=web'" in refused(
        two, "B", "run", "-d", "--name", "stranger", "--network", "mesh", "--ip", "10.29.0.102", "nginx"
    )


def test_an_engine_that_was_told_another_range_starts_again(two: Lab) -> None:
    """Docker asks for its pools anew when it starts, with the range that the network was made with."""
    docker(two, "A", *PLAIT, "--subnet", "10.67.0.0/16", "--ip-range", "10.67.0.0/18", "--aux-address", "r=10.67.0.2", "moving")
    process.until("B has it", lambda: "moving" in networks(two, "B"), 3)
    assert started(two, "A", "old", "moving", "--restart", "always").startswith("10.67.")
    two.run("B", "plait", "network", "set", "moving", "--ip-range", "10.67.64.0/18", "--exclude", "none")
    assert started(two, "B", "new", "moving") >= "10.67.64.1"
    two.stop_engine("A")
    two.start_engine("A")
    process.until("it runs again", lambda: docker(two, "A", "inspect", "-f", "{{.State.Running}}", "old") == "true", 20)
    assert started(two, "A", "more", "moving").startswith("10.67.6")
    for host in "AB":
        codes = [row["code"] for row in json.loads(two.run(host, "plait", "status", "--json", check=False).stdout)["conditions"]]
        assert "engine-network" not in codes and "moving" in networks(two, host), codes
    remove_containers(two, "AB")
    docker(two, "A", "network", "rm", "moving")


def test_pools_and_networks_of_engines_keep_clear_of_each_other(two: Lab) -> None:
    docker(two, "B", "network", "create", "--subnet", "10.77.4.0/24", "old")
    clash = (*PLAIT, "--subnet", "10.77.0.0/16", "clash")
    process.until("A hears of it", lambda: any("10.77.4.0/24" in text for text in _why_not(two, "A")), 5)
    assert "overlaps 10.77.4.0/24" in refused(two, "A", *clash) and "on node B" in refused(two, "A", *clash)
    docker(two, "A", *clash, "-o", "plait.force=true")
    docker(two, "A", "network", "rm", "clash")
    docker(two, "B", "network", "rm", "old")


def _why_not(lab: Lab, host: str) -> list[str]:
    """What a network over Docker's pool is refused with; none: it is made, and removed again."""
    done = lab.run(host, "plait", "network", "create", "probe", "--subnet", "10.77.0.0/16", check=False)
    if done.returncode == 0:
        lab.run(host, "plait", "network", "rm", "probe")
    return done.stderr.splitlines()


def test_containers_in_one_namespace_are_shown_with_one_address(two: Lab) -> None:
    given = started(two, "A", "web", "mesh")
    docker(two, "A", "run", "-d", "--name", "side", "--network", "container:web", "nginx", "sleep", "60")
    process.until("B sees both", lambda: [row["shared_by"] for row in addresses(two, "B") if row["address"] == given] == [["side"]], 5)
    rows = json.loads(two.run("B", "plait", "ps", "--json").stdout)
    assert {row["name"]: row["addresses"] for row in rows if row["name"] in ("web", "side")} == {
        key: {"mesh": given} for key in ("web", "side")
    }
    docker(two, "A", "rm", "-f", "side")
    process.until("one is left", lambda: [row["shared_by"] for row in addresses(two, "B") if row["address"] == given] == [[]], 5)
    process.until("all agree", lambda: two.run("A", "plait", "ipam", "check", check=False).returncode == 0, 10)


def test_all_that_network_create_takes_holds_on_every_host(two: Lab) -> None:
    made = ("--subnet", "10.67.0.0/16", "--ip-range", "10.67.4.0/24", "--gateway", "10.67.0.254", "--aux-address", "printer=10.67.4.0")
    docker(two, "A", *PLAIT, *made, "--aux-address", "router=10.67.4.1", "all")
    process.until("B has it", lambda: "all" in networks(two, "B"), 3)
    shown = "{{range .IPAM.Config}}{{.Subnet}} {{.IPRange}} {{.Gateway}}{{end}}"
    assert {docker(two, host, "network", "inspect", "-f", shown, "all") for host in "AB"} == {"10.67.0.0/16 10.67.4.0/24 10.67.0.254"}
    given = {host: started(two, host, f"w{host}", "all") for host in "AB"}
    assert all(address.startswith("10.67.4.") for address in given.values())
    assert not {"10.67.4.0", "10.67.4.1"} & {*given.values(), *(started(two, "A", f"more{n}", "all") for n in range(2))}
    for host, other in ("AB", "BA"):
        assert "default via 10.67.0.254 dev eth0" in docker(two, host, "exec", f"w{host}", "ip", "route")
        docker(two, host, "exec", f"w{host}", "ping", "-c1", "-W2", given[other])
    remove_containers(two, "AB")
    docker(two, "A", "network", "rm", "all")


def test_a_chosen_mac_is_the_containers_and_keeps_its_address(two: Lab) -> None:
    mac = "02:42:ac:00:00:77"

    def link() -> str:
        return docker(two, "A", "exec", "macced", "cat", "/sys/class/net/eth0/address")

    first = started_with_mac(two, "macced", mac)
    assert link() == mac
    docker(two, "A", "stop", "-t", "0", "macced")
    others = {started(two, "A", f"other{n}", "mesh") for n in range(3)}
    docker(two, "A", "start", "macced")
    assert (address_of(two, "A", "macced"), link()) == (first, mac)
    docker(two, "A", "rm", "-f", "macced")
    again = started_with_mac(two, "macced", mac)
    assert (again, link()) == (first, mac) and first not in others
    docker(two, "B", "run", "-d", "--name", "asks", "--network", "mesh", "nginx")
    docker(two, "B", "exec", "asks", "ping", "-c1", "-W2", first)


def started_with_mac(lab: Lab, name: str, mac: str) -> str:
    """By the API, because a newer `docker` refuses `--mac-address` with an engine of 20.10."""
    body = {"Image": "nginx", "MacAddress": mac, "HostConfig": {"NetworkMode": "mesh"}}
    curl = ("curl", "-sSf", "--unix-socket", "/run/docker.sock", "-H", "Content-Type: application/json")
    lab.run("A", *curl, "-d", json.dumps(body), f"http://docker/v1.41/containers/create?name={name}")
    docker(lab, "A", "start", name)
    return address_of(lab, "A", name)


def test_ports_in_every_way_that_docker_takes_them(two: Lab) -> None:
    """Ranges, a protocol, an address of the host, all exposed ones, a choice of several."""
    started(two, "A", "many", "mesh", "-p", "127.0.0.1:7000-7001:7000-7001/udp", "-p", "7100-7101:80")
    started(two, "A", "second", "mesh", "-p", "7100-7101:80")
    started(two, "A", "exposed", "mesh", "-P")
    rows = json.loads(two.run("A", "plait", "ports", "--json").stdout)
    seen = {(r["container"], r["host_ip"], r["host_port"], r["container_port"], r["proto"]) for r in rows if r["container"] != "exposed"}
    assert seen == {
        ("many", "127.0.0.1", 7000, 7000, "udp"),
        ("many", "127.0.0.1", 7001, 7001, "udp"),
        ("many", "0.0.0.0", 7100, 80, "tcp"),
        ("second", "0.0.0.0", 7101, 80, "tcp"),
    }
    (free,) = [row for row in rows if row["container"] == "exposed"]
    assert free["container_port"] == 80
    for port in (7100, 7101, free["host_port"]):
        url = f"http://{two.address('A')}:{port}/"
        process.until(f"{url} answers", lambda url=url: two.run("B", "curl", "-sfm2", url, check=False).returncode == 0, 5)
    said = refused(two, "A", "run", "-d", "--name", "third", "--network", "mesh", "-p", "7100-7101:80", "nginx")
    assert "no host port of 7100 to 7101/tcp is free" in said


def address_of(lab: Lab, host: str, name: str) -> str:
    return docker(lab, host, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
