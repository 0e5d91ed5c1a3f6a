# SPDX-License-Identifier: Apache-2.0
"""Isolated networks and forged packets with a real engine: options of its networks, labels of `docker run`, Docker's own bridge."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.support.mesh import docker
from tests.support.sandboxes import shown

from plait.lab.lab import Lab
from plait.lab.process import until

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
    yield made


def address(lab: Lab, name: str, network: str) -> str:
    return docker(lab, "A", "inspect", "-f", f"{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}", name).strip()


def gets(lab: Lab, name: str, to: str, wait_s: float = 1) -> bool:
    command = ("curl", "-s", "-o", "/dev/null", "--max-time", f"{wait_s:g}", f"http://{to}/")
    where = ("docker", "exec", name) if name else ()
    return lab.run("A", *where, *command, check=False).returncode == 0


def forge(lab: Lab, name: str, source: str) -> None:
    """Two pings to the host from an address that the container gives itself."""
    pid = docker(lab, "A", "inspect", "-f", "{{.State.Pid}}", name).strip()
    inside = ("nsenter", "-n", "-t", pid)
    lab.run("A", *inside, "ip", "addr", "add", f"{source}/32", "dev", "eth0")
    lab.run("A", *inside, "ping", "-c2", "-W1", "-I", source, lab.address("A"), check=False)
    lab.run("A", *inside, "ip", "addr", "del", f"{source}/32", "dev", "eth0")


def forgers(lab: Lab) -> set[str]:
    return {c["subject"] for c in shown(lab, "A", "status")["conditions"] if c["code"] == "spoofed-packets"}


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
    forge(lab, "legacy", address(lab, "two", "apart"))
    until("the bridge is named", lambda: "docker0" in forgers(lab), 10)
    assert gets(lab, "legacy", lab.address("A") + ":8081", 5), "what is its own passes"
