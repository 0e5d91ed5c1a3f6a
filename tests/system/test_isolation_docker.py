# SPDX-License-Identifier: Apache-2.0
"""Isolated networks and forged packets with a real engine: options of its networks, labels of `docker run`, Docker's own bridge."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import pytest
from tests.support.mesh import docker
from tests.support.sandboxes import shown

from plait.lab.lab import Lab
from plait.lab.process import until

CLAIM = """
import socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("eth0", 0))
mac = sock.getsockname()[4]
own = mac + socket.inet_aton(sys.argv[1])
for _ in range(2):
    sock.send(b"\\xff" * 6 + mac + bytes.fromhex("08060001080006040002") + own + b"\\xff" * 6 + own[6:])
"""
"""A gratuitous ARP answer for an address."""
pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(hosts=1, engines=True)
    docker(made, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "-o", "isolated=true", "apart")
    docker(made, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "mesh")
    docker(made, "A", "run", "-d", "--name", "one", "--network", "apart", "nginx")
    docker(made, "A", "run", "-d", "--name", "two", "--network", "apart", "-p", "8081:80", "nginx")
    docker(made, "A", "run", "-d", "--name", "bad", "--network", "mesh", "nginx")
    docker(made, "A", "run", "-d", "--name", "router", "--network", "mesh", "--label", "plait.spoofing=allow", "nginx")
    docker(made, "A", "run", "-d", "--name", "legacy", "nginx")
    docker(made, "A", "run", "-d", "--name", "victim", "-p", "8082:80", "nginx")
    yield made


def address(lab: Lab, name: str, network: str) -> str:
    return docker(lab, "A", "inspect", "-f", f"{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}", name).strip()


def mac(lab: Lab, name: str) -> str:
    """On Docker's bridge."""
    return docker(lab, "A", "inspect", "-f", "{{.NetworkSettings.Networks.bridge.MacAddress}}", name).strip()


def gets(lab: Lab, name: str, to: str, wait_s: float = 1) -> bool:
    command = ("curl", "-s", "-o", "/dev/null", "--max-time", f"{wait_s:g}", f"http://{to}/")
    where = ("docker", "exec", name) if name else ()
    return lab.run("A", *where, *command, check=False).returncode == 0


def inside(lab: Lab, name: str, *command: str) -> int:
    """A command of the host in the container's network namespace, its status."""
    pid = docker(lab, "A", "inspect", "-f", "{{.State.Pid}}", name).strip()
    return lab.run("A", "nsenter", "-n", "-t", pid, *command, check=False).returncode


def forge(lab: Lab, name: str, source: str, to: str = "") -> None:
    """Two pings, to the host if to nobody else, from an address that the container gives itself."""
    inside(lab, name, "ip", "addr", "add", f"{source}/32", "dev", "eth0")
    inside(lab, name, "ping", "-c2", "-W1", "-I", source, to or lab.address("A"))
    inside(lab, name, "ip", "addr", "del", f"{source}/32", "dev", "eth0")


def forgers(lab: Lab) -> dict[str, str]:
    return {c["subject"]: c["text"] for c in shown(lab, "A", "status")["conditions"] if c["code"] == "spoofed-packets"}


def counted(lab: Lab, name: str) -> int:
    return int(forgers(lab).get(f"default/{name}", "0").split()[0])


def chains(lab: Lab) -> set[str]:
    """Of links of Docker's."""
    found = lab.run("A", "nft", "list", "table", "netdev", "plait").stdout.split("chain ")[1:]
    return {chain.split()[0] for chain in found if chain.startswith("veth")}


def test_a_network_that_an_engine_made_isolated_is_and_can_be_opened(lab: Lab) -> None:
    two = address(lab, "two", "apart")
    until("its host reaches it", lambda: gets(lab, "", two), 20)
    assert gets(lab, "", f"{lab.address('A')}:8081"), "and its published port answers"
    assert not gets(lab, "one", two)
    lab.run("A", "plait", "network", "set", "apart", "--open")
    until("neighbours reach each other", lambda: gets(lab, "one", two), 10)
    lab.run("A", "plait", "network", "set", "apart", "--isolated")
    until("and do not any more", lambda: not gets(lab, "one", two), 10)


def test_who_forges_is_named_and_who_has_the_label_may(lab: Lab) -> None:
    forge(lab, "router", "10.99.0.1")
    forge(lab, "bad", "10.99.0.2")
    until("it is named", lambda: "mesh/bad" in forgers(lab), 10)
    assert "mesh/router" not in forgers(lab)


def test_a_container_on_dockers_bridge_takes_no_address_of_plaits_from_elsewhere(lab: Lab) -> None:
    until("its link is known", lambda: len(chains(lab)) == 2, 10)
    forge(lab, "legacy", address(lab, "two", "apart"))
    until("it is named", lambda: "default/legacy" in forgers(lab), 10)
    assert "docker0" not in forgers(lab), "nor what it has in common with others"
    assert gets(lab, "legacy", lab.address("A") + ":8081", 5), "what is its own passes"


def test_a_container_on_dockers_bridge_takes_nothing_of_its_neighbours_either(lab: Lab) -> None:
    until("the links are known", lambda: len(chains(lab)) == 2, 10)
    victim, host = address(lab, "victim", "bridge"), address(lab, "legacy", "bridge").rsplit(".", 1)[0] + ".1"
    own, its = mac(lab, "legacy"), mac(lab, "victim")
    forgeries = {
        "its address": f"ip addr add {victim}/32 dev eth0; ping -c2 -W1 -I {victim} {host}; r=$?; ip addr del {victim} dev eth0; exit $r",
        "its address, told by ARP": f"{sys.executable} -c '{CLAIM}' {victim}; exit 1",
        "its MAC": f"ip link set eth0 address {its}; ping -c2 -W1 {host}; r=$?; ip link set eth0 address {own}; exit $r",
    }
    assert inside(lab, "legacy", "ping", "-c1", "-W2", host) == inside(lab, "legacy", "ping", "-c1", "-W2", victim) == 0
    assert gets(lab, "", victim, 5)
    for name, script in forgeries.items():
        before = counted(lab, "legacy")
        assert inside(lab, "legacy", "sh", "-c", script) != 0, f"{name} came through"
        until(f"{name} is counted", lambda before=before: counted(lab, "legacy") > before, 10)
    assert "default/victim" not in forgers(lab)
    assert its in lab.run("A", "ip", "neigh", "show", victim).stdout, "the host knows it by its own MAC"
    until("what is its own passes again", lambda: inside(lab, "legacy", "ping", "-c1", "-W2", host) == 0, 10)
    assert gets(lab, "legacy", victim, 5) and gets(lab, "", f"{lab.address('A')}:8082", 5), "and so do Docker's published ports"


def test_a_container_on_dockers_bridge_may_forge_by_its_label_and_its_chain_comes_and_goes_with_it(lab: Lab) -> None:
    before = chains(lab)
    docker(lab, "A", "run", "-d", "--name", "lab-router", "--label", "plait.spoofing=allow", "nginx")
    docker(lab, "A", "run", "-d", "--name", "beside", "--network", "container:legacy", "nginx", "sleep", "600")
    docker(lab, "A", "run", "-d", "--name", "honest", "nginx")
    until("only that of who may not is there", lambda: len(chains(lab)) == 3 and before < chains(lab), 10)
    forge(lab, "lab-router", "10.99.0.3", address(lab, "victim", "bridge"))
    (own,) = chains(lab) - before
    docker(lab, "A", "restart", "-t", "0", "honest")
    until("it has another link", lambda: len(chains(lab)) == 3 and own not in chains(lab) and before < chains(lab), 10)
    docker(lab, "A", "rm", "-f", "honest", "beside", "lab-router")
    until("it is gone", lambda: chains(lab) == before, 10)
    assert "default/lab-router" not in forgers(lab)
    assert not [c for c in shown(lab, "A", "status")["conditions"] if c["code"] == "kernel-refused"]


def test_an_agent_that_starts_leaves_these_chains_as_they_are(lab: Lab) -> None:
    table = ("nft", "-a", "list", "table", "netdev", "plait")
    until("nobody there may forge", lambda: "chain docker0" in lab.run("A", *table).stdout, 10)
    assert len(chains(lab)) == 2
    before = lab.run("A", *table).stdout
    lab.kill_agent("A")
    lab.start_agent("A")
    until("it has heard of the containers", lambda: any(e["reachable"] for e in shown(lab, "A", "status")["engines"]), 20)
    time.sleep(1)  # for the passes that this leads to
    after = lab.run("A", *table).stdout
    assert [line for line in after.splitlines() if "saddr !=" in line] == [line for line in before.splitlines() if "saddr !=" in line]
