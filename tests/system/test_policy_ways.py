# SPDX-License-Identifier: Apache-2.0
"""A policy says the same by whichever address its container is asked, from either host, on networks of each kind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.sandboxes import address, inside
from tests.support.servers import NETWORKS, create_networks, create_service, serve, serving, vip

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(180)]
ASKED = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def ask(place):
    try:
        with socket.create_connection(tuple(place), 2) as sock:
            return sock.makefile().readline().split()
    except OSError as error:
        return [type(error).__name__]
places = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(places)) as pool:
    print(json.dumps(list(pool.map(ask, places))))
"""
"""What each of these addresses and ports says when it is connected to, all at once."""
POLICY = """apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {0}}}
spec:
  podSelector: {{matchLabels: {{app: {0}}}}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{role: good}}}}}}]
    ports: [{{port: 8080}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {0}-kept}}
spec:
  podSelector: {{matchLabels: {{role: kept-{0}}}}}
  policyTypes: [Egress]
  egress:
  - to: [{{podSelector: {{matchLabels: {{app: {0}}}}}}}]
    ports: [{{port: 9999}}]
"""
"""Servers hear those who are good; who is kept may send to a port of theirs on which nobody listens."""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """On each network a server on A, which it publishes there and by a service, and clients on A and B. C has none of them."""
    made: Lab = make_lab(hosts=3)
    with serving() as servers:
        create_networks(made, "B")
        for number, network in enumerate(NETWORKS):
            of_it = "--network", network
            servers.append(serve(made, "A", network, *of_it, "--label", f"app={network}", "-p", f"{7000 + number}:8080"))
            for host in "AB":
                for role in ("good", "bad", f"kept-{network}"):
                    made.run(host, "plait", "run", "--name", f"{role}-{host}-{network}", *of_it, "--label", f"role={role}")
            create_service(made, network, 9000 + number)
        yield made


def _ways(lab: Lab, network: str) -> dict[str, tuple[str, int]]:
    number = list(NETWORKS).index(network)
    return {
        "its address": (address(lab, network), 8080),
        "the service": (vip(lab, network), 80),
        "a published port": (lab.address("A"), 7000 + number),
        "the service's port of its host": (lab.address("A"), 9000 + number),
        "the service's port of another host": (lab.address("C"), 9000 + number),
    }


def _heard(lab: Lab, host: str, client: str, network: str) -> dict[str, str]:
    """By way, who answered and whom it saw, or why nobody did."""
    ways = _ways(lab, network)
    said = inside(lab, host, client, sys.executable, "-c", ASKED, json.dumps([*ways.values()])).stdout
    return {way: " ".join(words) for way, words in zip(ways, json.loads(said), strict=True)}


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_the_same_by_every_way(lab: Lab, network: str) -> None:
    lab.run("A", "plait", "policy", "apply", "-f", "-", text=POLICY.format(network))
    until("it is in force", lambda: _heard(lab, "B", f"kept-{network}-B-{network}", network)["its address"] == "TimeoutError", 10)
    roles = ("good", "bad", f"kept-{network}")
    with ThreadPoolExecutor(6) as pool:  # most of it is waiting for nobody
        asking = {(h, r): pool.submit(_heard, lab, h, f"{r}-{h}-{network}", network) for h in "AB" for r in roles}
    for (host, role), answers in asking.items():
        expected = f"{network} {address(lab, f'good-{host}-{network}')}" if role == "good" else "TimeoutError"
        assert answers.result() == dict.fromkeys(_ways(lab, network), expected), (host, role)
