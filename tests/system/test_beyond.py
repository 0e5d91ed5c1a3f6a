# SPDX-License-Identifier: Apache-2.0
"""What the HTTP API has beyond Consul's, with real engines: containers run on B, A looks and carries the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.mesh import docker, remove_containers, two_on_mesh

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(240)]
BASE = "http://127.0.0.1:8500/v1"


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    return two_on_mesh(make_lab)


@pytest.fixture(autouse=True)
def clean(two: Lab) -> Iterator[None]:
    yield
    remove_containers(two, "B")


def asked(lab: Lab, path: str, host: str = "A") -> Any:
    return json.loads(lab.run(host, "curl", "-sS", "-m", "10", f"{BASE}/{path}").stdout)


def put(lab: Lab, host: str, path: str, body: object) -> str:
    return lab.run(host, "curl", "-sS", "-f", "-X", "PUT", "-d", json.dumps(body), f"{BASE}/{path}").stdout


def run(lab: Lab, name: str, *options: str) -> str:
    """A container of the network `mesh` on B; its address."""
    docker(lab, "B", "run", "-d", "--name", name, "--network", "mesh", *options, "nginx")
    return docker(lab, "B", "inspect", "-f", "{{.NetworkSettings.Networks.mesh.IPAddress}}", name)


def test_http_and_dns_find_the_same_instances_by_the_labels_of_real_containers(two: Lab) -> None:
    first = run(two, "one", "-e", "SERVICE_NAME=shop", "--label", "app=web", "--label", "tier=prod")
    second = run(two, "two", "-e", "SERVICE_NAME=shop", "--label", "app=web", "--label", "tier=test")
    third = run(two, "three", "--label", "app=web")
    put(two, "B", "agent/services", {"Name": "three", "Port": 80})

    def found() -> tuple[set[str], set[str]]:
        rows = asked(two, "plait/instances?selector=app=web,tier!=test&passing")
        names = two.run("A", "dig", "+short", "@127.0.0.1", "app--web.not--tier--test.label.consul").stdout.split()
        return {row["Service"]["Address"] for row in rows}, set(names)

    def both(*wanted: str) -> bool:
        return found() == (set(wanted), set(wanted))

    until("those without the label tier=test are found", lambda: both(first, third), 10)
    assert {row["Service"]["Address"] for row in asked(two, "plait/instances?selector=tier+in+(test)")} == {second}
    docker(two, "B", "stop", "-t", "0", "three")
    until("what does not run is not found", lambda: both(first), 10)
    put(two, "B", "agent/service/deregister/three", None)


def test_named_ports_reach_another_host_over_http_and_dns(two: Lab) -> None:
    address = run(two, "api")
    ports = [{"Name": "http", "Port": 80, "Default": True}, {"Name": "metrics", "Port": 9100}]
    put(two, "B", "agent/service/register", {"Name": "api", "ID": "api-1", "Address": address, "Ports": ports})
    until("A knows the service", lambda: asked(two, "health/service/api?passing") != [], 10)
    shown = [{"Default": False, **port} for port in ports]
    assert asked(two, "health/service/api")[0]["Service"]["Ports"] == shown
    assert asked(two, "health/services")["api"][0]["Service"]["Ports"] == shown
    assert asked(two, "catalog/service/api")[0]["ServicePorts"] == shown
    assert (asked(two, "agent/service/api-1", "B")["Ports"], asked(two, "agent/services", "B")["api-1"]["Port"]) == (shown, 80)
    for name, port in (
        ("metrics.port.api.service.consul", "9100"),
        ("_metrics._tcp.api.service.consul", "9100"),
        ("api.service.consul", "80"),
    ):
        assert [line.split()[2] for line in two.run("A", "dig", "+short", "@127.0.0.1", name, "SRV").stdout.splitlines()] == [port]
        assert two.run("A", "dig", "+short", "@127.0.0.1", name).stdout.split() == [address]
    put(two, "B", "agent/service/deregister/api-1", None)


def test_events_of_another_host_arrive_and_a_client_resumes_where_it_was(two: Lab) -> None:
    """A watches one service while a container on B comes and goes, with a break in which something happens."""

    def watch(file: str, *options: str) -> Callable[[], list[tuple[str, str]]]:
        """(event, change) of all that has come."""
        command = f"timeout 60 curl -sN {' '.join(options)} '{BASE}/plait/events?service=shop' > {file} 2>&1 < /dev/null & echo $!"
        watched.append(two.run("A", "sh", "-c", command).stdout.strip())
        return lambda: [
            (block.partition("event: ")[2].partition("\n")[0], block.partition('"Change":"')[2].partition('"')[0])
            for block in two.run("A", "cat", file).stdout.split("\n\n")
            if "event: " in block
        ]

    watched: list[str] = []
    seen = watch("/run/events-1")
    until("the stream begins", lambda: seen() == [("reset", "")], 10)
    run(two, "shop", "-e", "SERVICE_NAME=shop")
    until("the instance is told", lambda: ("instance", "added") in seen() and ("check", "added") in seen(), 10)
    until("it has settled", lambda: seen() == (time.sleep(1.0), seen())[1], 10)
    two.run("A", "kill", watched[0])
    last = [line for line in two.run("A", "cat", "/run/events-1").stdout.splitlines() if line.startswith("id: ")][-1]
    docker(two, "B", "pause", "shop")
    until("the catalogue has it", lambda: asked(two, "health/service/shop?passing") == [], 10)
    again = watch("/run/events-2", f"-H 'Last-Event-ID: {last.removeprefix('id: ')}'")
    until("what was missed is told", lambda: sorted(again()) == [("check", "changed"), ("instance", "changed")], 10)
    docker(two, "B", "rm", "-f", "shop")
    until("it goes", lambda: {("instance", "removed"), ("service", "removed")} <= set(again()), 10)
    two.run("A", "kill", watched[1])


PROMETHEUS = f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: plait
  http_sd_configs:
  - url: "{BASE}/plait/http_sd?selector=scrape%3Dyes"
    refresh_interval: 1s
  relabel_configs:
  - {{source_labels: [__meta_plait_service], target_label: service}}
  - {{source_labels: [__meta_plait_node], target_label: node}}
  - {{source_labels: [__meta_plait_label_tier], target_label: tier}}
- job_name: agent
  metrics_path: /v1/agent/metrics
  params: {{format: [prometheus]}}
  static_configs: [{{targets: ["127.0.0.1:8500"]}}]
"""


def test_prometheus_discovers_and_scrapes_what_is_labelled(two: Lab) -> None:
    """Debian's Prometheus on A: a target comes and goes with its container on B."""
    two.run("A", "mkdir", "-p", "/run/prometheus")
    two.run("A", "tee", "/run/prometheus/config.yml", text=PROMETHEUS)
    options = "--config.file=/run/prometheus/config.yml --storage.tsdb.path=/run/prometheus/data --web.listen-address=127.0.0.1:9090"
    pid = two.run("A", "sh", "-c", f"prometheus {options} > /run/prometheus/log 2>&1 < /dev/null & echo $!").stdout.strip()

    def told(query: str) -> Any:
        got = two.run("A", "curl", "-sS", "-m", "5", f"http://127.0.0.1:9090/api/v1/{query}", check=False).stdout
        return json.loads(got)["data"] if got.startswith("{") else {}

    def scraped(*addresses: str) -> bool:
        """Whether the targets are these and healthy, and what each serves is in the database."""
        wanted = [{"instance": f"{a}:80", "job": "plait", "service": "shop", "node": "B", "tier": "prod"} for a in addresses]
        targets = [target for target in told("targets?state=active").get("activeTargets", ()) if target["labels"]["job"] == "plait"]
        found = {target["labels"]["instance"]: target["labels"] for target in targets if target["health"] == "up"}
        rows = [row["metric"] for row in told("query?query=orders_total==7").get("result", ())]
        stored = all(any(row.items() >= labels.items() for row in rows) for labels in wanted)
        return stored and len(targets) == len(wanted) and found == {labels["instance"]: labels for labels in wanted}

    def shop(name: str) -> str:
        address = run(two, name, "-e", "SERVICE_NAME=shop", "--label", "scrape=yes", "--label", "tier=prod")
        docker(two, "B", "exec", name, "sh", "-c", "echo 'orders_total 7' > /usr/share/nginx/html/metrics")
        return address

    try:
        run(two, "other", "-e", "SERVICE_NAME=other")
        first = shop("one")
        until("it scrapes the container", lambda: scraped(first), 30)
        second = shop("two")
        until("it scrapes the new one too", lambda: scraped(first, second), 30)
        docker(two, "B", "rm", "-f", "one")
        until("the target goes with its container", lambda: scraped(second), 15)
        until("the agent's own figures are there", lambda: told("query?query=consul_state_nodes").get("result"), 10)
        (row,) = told("query?query=consul_state_nodes")["result"]
        assert row["metric"]["job"] == "agent" and row["value"][1] == "2"
        assert float(told("query?query=rate(plait_http_answers_total%5B10s%5D)")["result"][0]["value"][1]) > 0, "a counter that only grows"
    finally:
        two.run("A", "kill", pid)


def test_tags_that_another_host_writes_outlast_the_agent_that_allows_them(two: Lab) -> None:
    address = run(two, "free")
    service = {"Name": "free", "Address": address, "Port": 80, "Tags": ["blue"], "EnableTagOverride": True}
    put(two, "B", "agent/service/register", service)
    until("A knows the service", lambda: asked(two, "catalog/service/free") != [], 10)
    put(two, "A", "catalog/register", {"Node": "B", "SkipNodeUpdate": True, "Service": {"Service": "free", "Tags": ["green"]}})

    def tagged(*words: str) -> bool:
        shown = [asked(two, "catalog/service/free", host)[0]["ServiceTags"] for host in "AB"]
        names = [word for word in ("blue", "green") if two.run("A", "dig", "+short", "@127.0.0.1", f"{word}.free.service.consul").stdout]
        return shown == [list(words)] * 2 and names == list(words)

    until("both hosts show the new tag", lambda: tagged("green"), 10)
    two.kill_agent("B")
    two.start_agent("B")
    put(two, "B", "agent/service/register", service)
    until("the service is back", lambda: asked(two, "health/service/free?passing") != [], 20)
    time.sleep(2)
    assert tagged("green"), "neither the restart nor the same registration again took the tag away"
    put(two, "A", "catalog/deregister", {"Node": "B", "ServiceID": "free"})
    until("the agent's own tag is back", lambda: tagged("blue"), 10)
    put(two, "B", "agent/service/deregister/free", None)
