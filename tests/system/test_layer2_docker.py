# SPDX-License-Identifier: Apache-2.0
"""Layer 2 by way of Docker: the options come through, and containers on two hosts are neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tests.support.mesh import docker, networks

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def test_containers_of_two_engines_are_neighbours(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=2, engines=True)
    wanted = ("-o", "layer2=true", "-o", "multicast=true", "--ipv6", "--subnet", "10.91.0.0/24", "--subnet", "fd00:91::/64")
    docker(lab, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", *wanted, "flat")
    until("both engines have it", lambda: "flat" in networks(lab, "B"), 5)
    found = {}
    for host in "AB":
        docker(lab, host, "run", "-d", "--name", f"w{host}", "--network", "flat", "nginx")
        found[host] = json.loads(docker(lab, host, "inspect", "-f", "{{json .NetworkSettings.Networks.flat}}", f"w{host}"))
        assert (found[host]["IPPrefixLen"], found[host]["GlobalIPv6PrefixLen"]) == (24, 64)
    there = found["B"]
    for address in (there["IPAddress"], there["GlobalIPv6Address"]):
        ping = ("docker", "exec", "wA", "ping", "-c1", "-W1", address)
        until("it answers", lambda ping=ping: lab.run("A", *ping, check=False).returncode == 0, 5)
        assert there["MacAddress"] in docker(lab, "A", "exec", "wA", "ip", "neigh", "show", address)
    assert docker(lab, "A", "exec", "wA", "curl", "-sS", "-m2", "-o", "/dev/null", "-w", "%{http_code}", "http://wB/") == "200"
    assert lab.run("A", "plait", "plan", "--diff").stdout == lab.run("B", "plait", "plan", "--diff").stdout == ""
