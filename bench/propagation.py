# SPDX-License-Identifier: Apache-2.0
"""How soon a service registered on one host is seen on another, with 10,000 instances in the catalogue.

Three lab hosts with agents; the catalogue holds 10,000 instances of 100 services on 500 nodes without an agent. A registers a service, B
has a blocking query on its name and asks DNS for it every 2 ms. Time runs from before the request on A until B's answer names the service.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from bench.core import Row, median, worst
from plait.lab.lab import Lab
from plait.lab.spec import simple

INSTANCES, NODES, SERVICES, ROUNDS, PAUSE_S = 10_000, 500, 100, 60, 0.3

FILL = """
import asyncio, sys
from pathlib import Path
from plait.agent.keys import record_key
from plait.model.cluster import Instance
from plait.model.discovery import CatalogNode
from plait.store.api import Put
from plait.store.codec import encode
from plait.store.remote import RemoteStore
from plait.store.tls import ssl_context_client

async def main(address, instances, nodes, services):
    store = RemoteStore(address, 7470, ssl_context_client(Path("/var/lib/plait/pki")))
    records = [CatalogNode(f"n{n}", f"192.0.2.{n % 250 + 1}") for n in range(nodes)]
    records += [Instance(f"i{n}", f"fill{n % services}", f"n{n % nodes}", "192.0.2.9", 80, origin="catalog") for n in range(instances)]
    puts = [Put(record_key(record), encode(record)) for record in records]
    for at in range(0, len(puts), 500):
        await store.txn([], puts[at : at + 500])
    await store.close()

asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
"""
WATCH = """
import http.client, json, socket, sys, threading, time
rounds = int(sys.argv[1])
blocked, dns = {}, {}

def query():
    api, index = http.client.HTTPConnection("127.0.0.1", 8500), 0
    for number in range(rounds):
        found = []
        while not found:
            api.request("GET", f"/v1/health/service/seen{number}?index={index}&wait=30s")
            answer = api.getresponse()
            index, found = int(answer.headers["X-Consul-Index"]), json.loads(answer.read())
        blocked[number] = time.time()

def ask():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.settimeout(5)
    for number in range(rounds):
        name = b"".join(bytes([len(label)]) + label for label in (b"seen%d" % number, b"service", b"consul"))
        packet = b"\\0\\1\\1\\0\\0\\1" + bytes(6) + name + b"\\0\\0\\1\\0\\1"
        while True:
            udp.sendto(packet, ("127.0.0.1", 53))
            if udp.recv(512)[7]:
                break
            time.sleep(0.002)
        dns[number] = time.time()

threads = [threading.Thread(target=target) for target in (query, ask)]
print("ready", flush=True)
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([[blocked[n], dns[n]] for n in range(rounds)]))
"""
REGISTER = """
import http.client, json, sys, time
asked = []
for number in range(int(sys.argv[1])):
    time.sleep(float(sys.argv[2]))
    asked.append(time.time())
    api = http.client.HTTPConnection("127.0.0.1", 8500)
    api.request("PUT", "/v1/agent/service/register", json.dumps({"Name": f"seen{number}", "Address": "192.0.2.1", "Port": 80}))
    answer = api.getresponse()
    assert answer.status == 200, answer.read()
print(json.dumps(asked))
"""


def run() -> list[Row]:
    lab = Lab.up(simple(3), "bench-propagation", owned=True)
    try:
        filling = [sys.executable, "-c", FILL, lab.address("A"), *map(str, (INSTANCES, NODES, SERVICES))]
        lab.run("A", *filling, timeout_s=120)
        _wait_filled(lab)
        watcher = lab.popen("B", sys.executable, "-c", WATCH, str(ROUNDS), stdout=subprocess.PIPE, text=True)
        assert watcher.stdout is not None and watcher.stdout.readline() == "ready\n"
        asked = json.loads(lab.run("A", sys.executable, "-c", REGISTER, str(ROUNDS), str(PAUSE_S), timeout_s=300).stdout)
        seen = json.loads(watcher.communicate(timeout=60)[0])
    finally:
        lab.down()
    rows: list[Row] = []
    for number, how in enumerate(("a blocking query", "DNS")):
        rows += _rows(how, [1000 * (there[number] - start) for there, start in zip(seen, asked, strict=True)])
    return rows


def _wait_filled(lab: Lab) -> None:
    """Until B's own copy has the last that was put. RuntimeError after a minute."""
    url = f"localhost:8500/v1/catalog/service/fill{(INSTANCES - 1) % SERVICES}"
    script = f"for i in $(seq 120); do curl -s {url} | grep -q '\"i{INSTANCES - 1}\"' && exit 0; sleep 0.5; done; exit 1"
    if lab.run("B", "sh", "-c", script, timeout_s=90, check=False).returncode:
        raise RuntimeError("the catalogue did not reach host B")


def _rows(how: str, taken: Sequence[float]) -> list[Row]:
    note = f"{INSTANCES:,} instances in the catalogue, 3 hosts, {ROUNDS} registrations on A seen by B; the registration itself included"
    return [
        Row(f"a registration seen by {how} elsewhere, median", median(list(taken)), "ms", 50, True, note),
        Row(f"a registration seen by {how} elsewhere, p99", worst(list(taken)), "ms", 200, True, note),
    ]
