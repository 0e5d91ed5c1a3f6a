# SPDX-License-Identifier: Apache-2.0
"""Real Docker Engines on plait networks: two hosts, each with its agent and its engine."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from tests.support.mesh import networks, two_on_mesh

from plait.lab import inside, process
from plait.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
HTTP = ("curl", "-sS", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}")


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    return two_on_mesh(make_lab)


@pytest.fixture(autouse=True)
def clean(two: Lab) -> Iterator[None]:
    """No container stays from one test to the next, and none leaves an endpoint, a link or an address."""
    yield
    for host in "AB":
        found = two.run(host, "docker", "ps", "-aq").stdout.split()
        if found:
            two.run(host, "docker", "rm", "-f", *found, timeout_s=60)
    process.until("no endpoint is left", lambda: not endpoints(two), 5)
    for host in "AB":
        process.until(f"no link is left on {host}", lambda host=host: not links(two, host), 3)


def endpoints(lab: Lab) -> dict[str, str]:
    """Address of every endpoint of mesh, by container."""
    view = json.loads(lab.run("A", "plait", "network", "inspect", "mesh", "--json").stdout)
    return {row["name"]: row["address"] for row in view["attached"]}


def links(lab: Lab, host: str) -> list[str]:
    shown = json.loads(lab.run(host, "ip", "-j", "link").stdout)
    return [link["ifname"] for link in shown if link["ifname"].startswith(("pl-e", "pl-p"))]


def bridge_ports(lab: Lab) -> list[str]:
    """Links of A's containers that are ports of a bridge of plait's."""
    shown = json.loads(lab.run("A", "ip", "-j", "link").stdout)
    return [link["ifname"] for link in shown if link.get("master", "").startswith("pl-b")]


def docker(lab: Lab, host: str, *words: str, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return lab.run(host, "docker", *words, check=check, timeout_s=timeout_s)


def run(lab: Lab, host: str, name: str, *options: str) -> str:
    """Start a web server on mesh; its address."""
    docker(lab, host, "run", "-d", "--name", name, "--network", "mesh", *options, "nginx")
    return address(lab, host, name)


def address(lab: Lab, host: str, name: str, network: str = "mesh") -> str:
    return docker(lab, host, "inspect", "-f", f"{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}", name).stdout.strip()


def answers(lab: Lab, host: str, client: str, url: str) -> bool:
    return docker(lab, host, "exec", client, *HTTP, url, check=False).stdout == "200"


def serves(lab: Lab, host: str, url: str) -> None:
    """The server behind `url` answers `host`, once it has started."""
    process.until(f"{url} answers {host}", lambda: lab.run(host, *HTTP, url, check=False).stdout == "200", 5)


# --- traffic and names


def test_containers_of_two_hosts_talk_by_name_and_address(two: Lab) -> None:
    web = run(two, "A", "web")
    run(two, "B", "cli")
    process.until("web answers by name", lambda: answers(two, "B", "cli", "http://web/"), 5)
    assert answers(two, "B", "cli", f"http://{web}/")
    pid = docker(two, "B", "inspect", "-f", "{{.State.Pid}}", "cli").stdout.strip()
    neighbours = two.run("B", "nsenter", f"--net=/proc/{pid}/ns/net", "ip", "neigh").stdout
    assert "10.29.0.1 dev" in neighbours and web not in neighbours, "one neighbour, the gateway, however many it talks to"
    assert endpoints(two)["web"] == web


def test_aliases_hold_on_every_host(two: Lab) -> None:
    run(two, "A", "web", "--network-alias", "shop")
    run(two, "B", "cli")
    process.until("the alias is known", lambda: answers(two, "B", "cli", "http://shop/"), 3)


def test_a_container_sees_the_names_of_its_own_networks(two: Lab) -> None:
    """Two projects have a `web` each, and who is on both networks sees both, as hosts do. (For containers of its own host Docker's
    resolver answers itself, and does not ask for more.)"""

    def seen() -> set[str]:
        found = docker(two, "A", "exec", "cli", "getent", "ahostsv4", "web", check=False).stdout
        return {line.split()[0] for line in found.splitlines()}

    docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "other")
    mesh = run(two, "B", "web")
    process.until("B has it too", lambda: networks(two, "B") >= {"other"}, 5)
    docker(two, "B", "run", "-d", "--name", "second", "--network", "other", "--network-alias", "web", "nginx")
    other = address(two, "B", "second", "other")
    run(two, "A", "cli")
    assert seen() == {mesh}
    assert docker(two, "A", "exec", "cli", "getent", "hosts", "second", "web.other", check=False).stdout == ""
    docker(two, "A", "network", "connect", "other", "cli")
    assert seen() == {mesh, other}
    docker(two, "A", "network", "disconnect", "mesh", "cli")
    assert seen() == {other}
    assert set(two.run("A", "dig", "+short", "@127.0.0.1", "web").stdout.split()) == {mesh, other}
    for host, name in (("A", "cli"), ("B", "second")):
        docker(two, host, "rm", "-f", name)
    docker(two, "A", "network", "rm", "other")


def test_ports_are_published_by_plait(two: Lab) -> None:
    run(two, "A", "web", "-p", "8080:80", "-p", "80")
    serves(two, "B", f"http://{two.address('A')}:8080/")
    serves(two, "A", "http://127.0.0.1:8080/")
    rows = json.loads(two.run("A", "plait", "ports", "--json").stdout)
    (free,) = [row["host_port"] for row in rows if row["host_port"] != 8080]
    serves(two, "B", f"http://{two.address('A')}:{free}/")
    refused = docker(two, "A", "run", "-d", "--name", "web2", "--network", "mesh", "-p", "8080:80", "nginx", check=False)
    assert "plait: cannot publish 0.0.0.0:8080/tcp" in refused.stderr
    docker(two, "A", "rm", "-f", "web")
    assert two.run("B", *HTTP, f"http://{two.address('A')}:8080/", check=False).stdout == "000"
    docker(two, "A", "start", "web2")
    serves(two, "B", f"http://{two.address('A')}:8080/")


def test_everybody_sees_every_container(two: Lab) -> None:
    run(two, "A", "web", "--label", "app=shop")
    docker(two, "B", "run", "-d", "--name", "plain", "nginx")

    def seen(host: str) -> dict[str, tuple[str, str]]:
        return {row["name"]: (row["node"], row["state"]) for row in json.loads(two.run(host, "plait", "ps", "--json").stdout)}

    for host in "AB":
        process.until("both are listed", lambda host=host: seen(host) == {"web": ("A", "running"), "plain": ("B", "running")}, 3)
    (web,) = [row for row in json.loads(two.run("B", "plait", "ps", "--json").stdout) if row["name"] == "web"]
    assert web["labels"]["app"] == "shop"
    docker(two, "B", "stop", "-t", "0", "plain")
    process.until("its end is seen", lambda: seen("A")["plain"] == ("B", "exited"), 1)


def test_the_default_bridge_is_reachable_from_the_other_host(two: Lab) -> None:
    docker(two, "A", "run", "-d", "--name", "plain", "nginx")
    docker(two, "B", "run", "-d", "--name", "cli", "nginx")
    web = docker(two, "A", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "plain").stdout.strip()
    assert web.startswith("10.28.")
    assert answers(two, "B", "cli", f"http://{web}/")
    process.until("by name too", lambda: answers(two, "B", "cli", "http://plain/"), 3)


# --- addresses


def test_networks_of_all_models(two: Lab) -> None:
    """A sandbox network and a hybrid one made through Docker; and its default bridge, whose FORWARD policy is drop, made hybrid while it is
    used."""
    refused = docker(
        two,
        "A",
        "network",
        "create",
        "-d",
        "plait",
        "--ipam-driver",
        "plait",
        "-o",
        "model=hybrid",
        "-o",
        "backend=vxlan",
        "x",
        check=False,
    )
    assert "cannot promise what hybrid does" in refused.stderr
    docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "-o", "model=hybrid", "near")
    process.until("B has it too", lambda: networks(two, "B") >= {"near"}, 5)
    assert json.loads(two.run("B", "plait", "network", "inspect", "near", "--json").stdout)["model"] == "hybrid"

    docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "-o", "model=sandbox", "local")
    for name in ("l1", "l2"):
        docker(two, "A", "run", "-d", "--name", name, "--network", "local", "nginx")
    assert answers(two, "A", "l1", "http://l2/") and len(bridge_ports(two)) == 2
    docker(two, "A", "rm", "-f", "l1", "l2")
    docker(two, "A", "network", "rm", "local")

    def paths() -> set[tuple[str, str]]:
        return {(n, row["kind"]) for row in json.loads(two.run("A", "plait", "paths", "--json").stdout) for n in row["networks"]}

    for host, network, name in (("A", "near", "n1"), ("B", "near", "n2"), ("A", "bridge", "d1"), ("B", "bridge", "d2")):
        docker(two, host, "run", "-d", "--name", name, "--network", network, "nginx")
    two.run("A", "plait", "network", "set", "default", "-o", "backend=hybrid")
    try:
        process.until("both go by the link", lambda: paths() >= {("near", "direct"), ("default", "direct")}, 20)
        two.run("B", "nft", "add table netdev t; add chain netdev t in { type filter hook ingress device eth0 priority -500; }")
        two.run("B", "nft", "add rule netdev t in udp dport 4789 udp length > 200 drop")
        assert answers(two, "A", "n1", f"http://{address(two, 'B', 'n2', 'near')}/") and answers(two, "A", "n1", "http://n2/")
        assert answers(two, "A", "d1", f"http://{address(two, 'B', 'd2', 'bridge')}/"), "through no tunnel that carries as much"
        assert answers(two, "B", "d2", f"http://{address(two, 'A', 'd1', 'bridge')}/")
    finally:
        two.run("B", "nft", "delete table netdev t", check=False)
        two.run("A", "plait", "network", "set", "default", "-o", "backend=vxlan")
    for host, name in (("A", "n1"), ("B", "n2")):
        docker(two, host, "rm", "-f", name)
    docker(two, "A", "network", "rm", "near")


def test_addresses_stick_to_names(two: Lab) -> None:
    first = {name: run(two, "A", name) for name in ("aa", "bb", "cc")}
    docker(two, "A", "stop", "-t", "0", *first)
    for name in ("cc", "aa"):
        docker(two, "A", "start", name)
        assert address(two, "A", name) == first[name]
    docker(two, "A", "rm", "bb")
    run(two, "A", "newcomer")
    assert run(two, "A", "bb") == first["bb"]
    docker(two, "A", "restart", "-t", "0", "aa", "bb", "cc")
    assert {name: address(two, "A", name) for name in first} == first


def test_an_address_can_be_chosen(two: Lab) -> None:
    assert run(two, "A", "web", "--ip", "10.29.200.7") == "10.29.200.7"
    again = docker(two, "A", "run", "-d", "--network", "mesh", "--ip", "10.29.200.7", "nginx", check=False)
    assert "10.29.200.7" in again.stderr and "in use" in again.stderr
    other = docker(two, "B", "run", "-d", "--network", "mesh", "--ip", "10.29.200.8", "nginx", check=False)
    assert "which node A holds" in other.stderr


# --- networks


def test_a_network_made_through_docker_is_everybodys(two: Lab) -> None:
    docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "--subnet", "10.66.0.0/16", "made")
    process.until("B has it", lambda: "made" in networks(two, "B"), 3)
    docker(two, "B", "run", "-d", "--name", "web", "--network", "made", "nginx")
    docker(two, "A", "run", "-d", "--name", "cli", "--network", "made", "nginx")
    assert answers(two, "A", "cli", f"http://{address(two, 'B', 'web', 'made')}/")
    docker(two, "A", "rm", "-f", "cli")
    docker(two, "A", "network", "rm", "made")
    process.until("it is in use on B, so it comes back", lambda: "made" in networks(two, "A"), 3)
    docker(two, "B", "rm", "-f", "web")
    docker(two, "A", "network", "rm", "made")
    process.until("now it goes everywhere", lambda: networks(two, "B") == networks(two, "A") == {"mesh"}, 3)


def test_a_range_holds_on_every_host_and_over_a_restart_of_the_agent(two: Lab) -> None:
    made = ("-d", "plait", "--ipam-driver", "plait", "--subnet", "10.66.0.0/16", "--ip-range", "10.66.4.0/28", "part")
    docker(two, "A", "network", "create", *made)
    process.until("B has it", lambda: "part" in networks(two, "B"), 3)
    two.kill_agent("B")
    two.start_agent("B")
    for host, name in (("A", "aa"), ("B", "bb"), ("B", "cc")):
        docker(two, host, "run", "-d", "--name", name, "--network", "part", "nginx")
        assert address(two, host, name, "part") in {f"10.66.4.{n}" for n in range(16)}
    docker(two, "B", "run", "-d", "--name", "outside", "--network", "part", "--ip", "10.66.200.7", "nginx")
    shown = docker(two, "B", "network", "inspect", "-f", "{{(index .IPAM.Config 0).IPRange}}", "part").stdout.strip()
    assert shown == json.loads(two.run("B", "plait", "network", "inspect", "part", "--json").stdout)["ip_range"] == "10.66.4.0/28"
    docker(two, "A", "rm", "-f", "aa")
    docker(two, "B", "rm", "-f", "bb", "cc", "outside")
    docker(two, "A", "network", "rm", "part")
    process.until("it goes everywhere", lambda: networks(two, "B") == networks(two, "A") == {"mesh"}, 3)


def test_a_network_removed_in_its_first_moment_is_gone(two: Lab) -> None:
    for _ in range(5):
        removing = two.popen(
            "B", "sh", "-c", "until docker network rm made; do :; done", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "--subnet", "10.66.0.0/16", "made")
        assert removing.wait(10) == 0
        process.until("it goes everywhere", lambda: networks(two, "B") == networks(two, "A") == {"mesh"}, 5)
        time.sleep(0.3)
        assert networks(two, "B") == networks(two, "A") == {"mesh"}, "it does not come back"


def test_a_network_named_by_its_option_is_in_each_engine_once(two: Lab) -> None:
    for _ in range(5):
        docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "-o", "plait.net=named", "named")
        process.until("B has it", lambda: networks(two, "B") == networks(two, "A") == {"mesh", "named"}, 5)
        for host in "AB":
            assert docker(two, host, "network", "ls", "-q", "--filter", "name=named").stdout.count("\n") == 1
        docker(two, "A", "network", "rm", "named")
        process.until("it goes everywhere", lambda: networks(two, "B") == networks(two, "A") == {"mesh"}, 5)


def test_prune_takes_what_an_engine_made_and_nothing_else(two: Lab) -> None:
    docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "--subnet", "10.66.0.0/16", "made")
    process.until("B has it", lambda: "made" in networks(two, "B"), 3)
    docker(two, "B", "network", "prune", "-f")
    process.until("made is gone, mesh comes back", lambda: networks(two, "B") == networks(two, "A") == {"mesh"}, 5)
    assert run(two, "B", "web").startswith("10.29.")


def test_networks_that_would_collide_are_refused(two: Lab) -> None:
    for words, text in (
        (("-d", "plait", "x"), "add --ipam-driver plait"),
        (("-d", "plait", "--ipam-driver", "plait", "-o", "speed=9", "x"), "plait.backend, plait.force, plait.net"),
        (("-d", "plait", "--ipam-driver", "plait", "--subnet", "10.29.64.0/24", "x"), "overlaps 10.29.0.0/16"),
    ):
        assert text in docker(two, "A", "network", "create", *words, check=False).stderr
    assert networks(two, "A") == {"mesh"}


def test_two_networks_one_internal_connect_and_disconnect(two: Lab) -> None:
    docker(two, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "--internal", "inner")
    docker(two, "A", "run", "-d", "--name", "web", "--network", "inner", "nginx")
    routes = docker(two, "A", "exec", "web", "ip", "route").stdout
    assert "default" not in routes and "dev eth0" in routes
    docker(two, "A", "network", "connect", "mesh", "web")
    routes = docker(two, "A", "exec", "web", "ip", "route").stdout
    assert "default via 10.29.0.1 dev eth1" in routes
    assert "docker_gwbridge" not in docker(two, "A", "network", "ls").stdout
    run(two, "B", "cli")
    assert answers(two, "B", "cli", f"http://{address(two, 'A', 'web')}/")
    docker(two, "A", "network", "disconnect", "mesh", "web")
    assert "default" not in docker(two, "A", "exec", "web", "ip", "route").stdout
    assert set(endpoints(two)) == {"cli"}
    docker(two, "A", "rm", "-f", "web")
    docker(two, "A", "network", "rm", "inner")


# --- restarts


def test_a_restarted_dockerd_keeps_its_containers_addresses(two: Lab) -> None:
    before = run(two, "B", "keeps", "--restart", "always", "-p", "8081:80")
    two.stop_engine("B", kill=True)
    time.sleep(2)
    two.start_engine("B")
    process.until("it runs again", lambda: endpoints(two) == {"keeps": before}, 10)
    serves(two, "A", f"http://{two.address('B')}:8081/")


def test_live_restore_loses_nothing(two: Lab) -> None:
    two.stop_engine("B")
    two.start_engine("B", "--live-restore")
    web = run(two, "B", "lives")
    run(two, "A", "cli")
    two.stop_engine("B", kill=True)
    assert answers(two, "A", "cli", f"http://{web}/")
    process.until("the engine's absence is said", lambda: "engine-unreachable" in two.run("B", "plait", "status", check=False).stdout, 3)
    time.sleep(2)
    two.start_engine("B", "--live-restore")
    assert answers(two, "A", "cli", f"http://{web}/")
    assert endpoints(two) == {"lives": web, "cli": address(two, "A", "cli")}
    docker(two, "B", "restart", "-t", "0", "lives")
    assert address(two, "B", "lives") == web
    two.stop_engine("B")
    two.start_engine("B")


def test_a_rebooted_host_gives_the_same_address_again(two: Lab) -> None:
    before = run(two, "B", "keeps", "--restart", "always")
    run(two, "A", "cli")
    two.reboot("B")
    process.until("it runs again", lambda: endpoints(two).get("keeps") == before, 15)
    process.until("it answers by name", lambda: answers(two, "A", "cli", "http://keeps/"), 5)


def test_an_orderly_reboot_gives_the_same_address_too(two: Lab) -> None:
    """The engine takes its leave before the agent ends, and answers nobody while it starts: only the agent's memory knows the name."""
    before = run(two, "B", "keeps", "--restart", "always")
    run(two, "B", "other")
    two.stop_engine("B")
    two.reboot("B")
    process.until("it runs again", lambda: endpoints(two).get("keeps") == before, 15)


@pytest.mark.parametrize("how", ["killed", "stopped", "rebooted"])
def test_containers_that_start_together_have_the_same_addresses(two: Lab, how: str) -> None:
    """Each of them, although dockerd does not say for whom it asks."""
    names = [f"c{n}" for n in range(6)]
    first = {name: run(two, "B", name, "--restart", "always", *(["--ip", "10.29.201.7"] if name == "c3" else [])) for name in names}
    for _ in range(3):
        if how == "rebooted":
            two.reboot("B")
        else:
            two.stop_engine("B", kill=how == "killed")
            time.sleep(2)
            two.start_engine("B")
        process.until("all run and are named again", lambda: set(endpoints(two)) == set(names), 60)
        now = endpoints(two)
        assert now == {name: address(two, "B", name) for name in names}
        assert now == first


def test_a_call_that_was_cut_off_is_said_and_the_next_start_succeeds(two: Lab) -> None:
    """dockerd 20.10 repeats it without its body: what it was about cannot be known."""
    pid = inside.daemon_pid(two.state.holder("A"), "agent")
    assert pid is not None
    two.run("A", "kill", "-STOP", str(pid))
    cut = two.popen("A", "docker", "run", "-d", "--name", "cut", "--network", "mesh", "nginx", stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    two.kill_agent("A")
    two.start_agent("A")
    _, said = cut.communicate(timeout=30)
    assert cut.returncode != 0 and "without saying for what" in said and "try again" in said
    docker(two, "A", "start", "cut")
    assert endpoints(two) == {"cut": address(two, "A", "cut")}


def test_a_killed_agent_stops_nobody_and_a_waiting_start_succeeds(two: Lab) -> None:
    web = run(two, "A", "web")
    run(two, "B", "cli")
    two.kill_agent("A")
    assert answers(two, "B", "cli", f"http://{web}/")
    waiting = two.popen("A", "docker", "run", "-d", "--name", "late", "--network", "mesh", "nginx", stdout=subprocess.DEVNULL)
    time.sleep(1)
    two.start_agent("A")
    assert waiting.wait(30) == 0
    assert answers(two, "B", "cli", f"http://{web}/")
    assert set(endpoints(two)) == {"web", "cli", "late"}


def test_what_was_removed_while_the_agent_was_down_is_collected(two: Lab) -> None:
    run(two, "A", "web")
    two.kill_agent("A")
    docker(two, "A", "rm", "-f", "web", timeout_s=120)  # dockerd tries each of its four calls for 15 s
    assert links(two, "A")
    two.start_agent("A")
    process.until("the endpoint is collected", lambda: not endpoints(two) and not links(two, "A"), 5)


def test_an_agent_that_is_missing_at_boot_leaves_nobody_down(two: Lab) -> None:
    """The engine gives its container up for good after 15 s, whatever its restart policy; the agent starts it when it comes."""
    before = run(two, "B", "keeps", "--restart", "always", "-p", "8082:80")
    run(two, "B", "once")
    two.stop_engine("B")
    two.run("B", "sh", "-c", "kill -TERM $(cat /run/lab/agent.pid)")
    process.until("the agent has ended", lambda: inside.daemon_pid(two.state.holder("B"), "agent") is None, 10)
    two.start_engine("B")
    state = ("inspect", "-f", "{{.State.Status}} {{.State.Error}}", "keeps")
    process.until("it is given up", lambda: "exited plugin" in docker(two, "B", *state, check=False).stdout, 60)
    two.start_agent("B")
    process.until("it runs again", lambda: endpoints(two).get("keeps") == before, 10)
    serves(two, "A", f"http://{two.address('B')}:8082/")
    assert set(endpoints(two)) == {"keeps"}, "whoever has no restart policy stays as it is"
