# SPDX-License-Identifier: Apache-2.0
"""A policy says the same by whichever address its container is asked, from either host, on networks of each kind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from tests.support.sandboxes import address, inside
from tests.support.servers import DUAL, NETWORKS, create_networks, create_service, serve, serving, vip

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


FOR_SOME = tuple(word for cidr in ("198.18.0.0/24", "2001:2::/64", "10.0.0.0/8", "fd00::/8") for word in ("--from", cidr))
"""Hosts of the lab, and containers by their own addresses."""


@dataclass(frozen=True)
class Asking:
    """A lab that is asked by one family of addresses."""

    lab: Lab
    six: bool

    def sandbox(self, name: str) -> str:
        return address(self.lab, name, family="addresses6" if self.six else "addresses")

    def host(self, name: str) -> str:
        host = self.lab.state.spec.host(name)
        return str(host.second if self.six else host.address)

    @property
    def further(self) -> str:
        """Another address of A's link."""
        return "2001:2::77" if self.six else "198.18.0.77"

    def ways(self, network: str) -> dict[str, tuple[str, int]]:
        number = list(NETWORKS).index(network)
        return {
            "its address": (self.sandbox(network), 8080),
            "the service": (vip(self.lab, network, "address6" if self.six else "address"), 80),
            "a published port": (self.host("A"), 7000 + number),
            "the service's port of its host": (self.host("A"), 9000 + number),
            "the service's port of another host": (self.host("C"), 9000 + number),
            "a published port at another address of its host": (self.further, 7000 + number),
            "the service's port there": (self.further, 9000 + number),
            "a port that is published for some": (self.host("A"), 7100 + number),
        }

    def heard(self, host: str, client: str, network: str) -> dict[str, str]:
        """By way, who answered and whom it saw, or why nobody did."""
        ways = self.ways(network)
        said = inside(self.lab, host, client, sys.executable, "-c", ASKED, json.dumps([*ways.values()])).stdout
        return {way: " ".join(words) for way, words in zip(ways, json.loads(said), strict=True)}


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def asking(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Asking]:
    """On each network a server on A, which it publishes there and by a service, and clients on A and B. C has none of them. Of IPv6, all
    networks have both families, and hosts know each other by IPv4."""
    six = request.param == 6
    made: Lab = make_lab(toml=DUAL) if six else make_lab(hosts=3)
    asked = Asking(made, six)
    made.run("A", "ip", "addr", "add", asked.further, "dev", "eth0", *(["nodad"] if six else []))
    with serving() as servers:
        create_networks(made, "B", more=["--ipv6"] if six else [])
        for number, network in enumerate(NETWORKS):
            of_it = "--network", network
            servers.append(serve(made, "A", network, *of_it, "--label", f"app={network}", "-p", f"{7000 + number}:8080"))
            made.run("A", "plait", "publish", network, f"{7100 + number}:8080", *FOR_SOME)
            for host in "AB":
                for role in ("good", "bad", f"kept-{network}"):
                    made.run(host, "plait", "run", "--name", f"{role}-{host}-{network}", *of_it, "--label", f"role={role}")
            create_service(made, network, 9000 + number)
        yield asked


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_the_same_by_every_way(asking: Asking, network: str) -> None:
    asking.lab.run("A", "plait", "policy", "apply", "-f", "-", text=POLICY.format(network))
    until("it is in force", lambda: asking.heard("B", f"kept-{network}-B-{network}", network)["its address"] == "TimeoutError", 10)
    roles = ("good", "bad", f"kept-{network}")
    with ThreadPoolExecutor(6) as pool:  # most of it is waiting for nobody
        found = {(h, r): pool.submit(asking.heard, h, f"{r}-{h}-{network}", network) for h in "AB" for r in roles}
    for (host, role), answers in found.items():
        expected = f"{network} {asking.sandbox(f'good-{host}-{network}')}" if role == "good" else "TimeoutError"
        assert answers.result() == dict.fromkeys(asking.ways(network), expected), (host, role)
