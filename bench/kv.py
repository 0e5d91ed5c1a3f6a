# SPDX-License-Identifier: Apache-2.0
"""Durable writes of keys over HTTP, beside single-node etcd (Debian's) with the same client, watches and leases on both.

Both run in one lab host with their data on the same disk, both answer a PUT when it is synced. wrk has 64 requests in flight on 1,000 keys
with 64-byte values; plait takes Consul's `PUT /v1/kv/<key>`, etcd its JSON gateway's `POST /v3/kv/put`, which costs etcd more CPU than gRPC
would. 16 watchers follow one key each (blocking queries and watch streams) and 100 leases are alive (sessions with a TTL and leases).
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.core import Row, interleave, median, ratio
from plait.lab.lab import Lab
from plait.lab.spec import simple

KEYS, VALUE_BYTES, IN_FLIGHT, SECONDS, ROUNDS = 1000, 64, 64, 3, 5
WATCHERS, LEASES = 16, 100
ETCD = "http://127.0.0.1:12379"
PLAIT = "http://127.0.0.1:8500"
FOLDER = "/var/lib/bench-kv"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _key(number: int) -> str:
    return f"bench/k{number}"


def _script(server: str) -> str:
    """wrk's Lua script: one PUT after the other over all keys, every value another."""
    value = "v" * (VALUE_BYTES - 8)
    if server == "plait":
        request = f'wrk.format("PUT", "/v1/kv/bench/k" .. n % {KEYS}, nil, string.format("%08d{value}", n))'
        return f"local n = 0\nrequest = function() n = n + 1; return {request} end\n"
    keys = ",".join(f'"{_base64(_key(number))}"' for number in range(KEYS))
    # eight characters of base64 stand for the number; the rest of the value is always the same
    request = f"""'{{"key":"' .. keys[n % {KEYS} + 1] .. string.format('","value":"%08d{_base64("v" * (VALUE_BYTES - 6))}"}}', n)"""
    function = f'request = function() n = n + 1; return wrk.format("POST", "/v3/kv/put", nil, {request}) end'
    return f"local keys = {{{keys}}}\nlocal n = 0\n{function}\n"


WATCH = r"""
import asyncio, base64, json, re, sys
server, watchers, keys = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seen = 0
async def watch(number):
    global seen
    key = f"bench/k{number * keys // watchers}"
    reader, writer = await asyncio.open_connection("127.0.0.1", 8500 if server == "plait" else 12379)
    if server == "etcd":
        body = json.dumps({"create_request": {"key": base64.b64encode(key.encode()).decode()}}).encode()
        writer.write(b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        while data := await reader.read(65536):
            seen += data.count(b'"events"')
        return
    index = 0
    while True:
        writer.write(f"GET /v1/kv/{key}?index={index}&wait=60s HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
        index = int(re.search(rb"(?i)x-consul-index: (\d+)", head)[1])
        seen += 1
async def main():
    tasks = [asyncio.ensure_future(watch(number)) for number in range(watchers)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(seen)
    for task in tasks: task.cancel()
asyncio.run(main())
"""


def _lease(lab: Lab, server: str) -> None:
    """Leases that outlive the measurement."""
    if server == "plait":
        curl = ["curl", "-sSf", "-X", "PUT", "-d", '{"TTL":"600s"}', *[f"{PLAIT}/v1/session/create"] * LEASES]
    else:
        curl = ["curl", "-sSf", "-d", '{"TTL":600}', *[f"{ETCD}/v3/lease/grant"] * LEASES]
    lab.run("A", *curl)


def _rate(lab: Lab, server: str, counts: dict[str, int]) -> float:
    """Answered writes a second; raises if one fails. Adds to `counts` what the watchers saw."""
    watch = lab.popen(
        "A", sys.executable, "-c", WATCH, server, str(WATCHERS), str(KEYS), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    time.sleep(0.5)
    url = PLAIT if server == "plait" else ETCD
    shown = lab.run("A", "wrk", "-t1", f"-c{IN_FLIGHT}", f"-d{SECONDS}s", "-s", f"{FOLDER}/{server}.lua", url).stdout
    counts[server] = counts.get(server, 0) + int(watch.communicate("", timeout=30)[0])
    found = re.search(r"Requests/sec:\s+([\d.]+)", shown)
    if found is None or "Non-2xx" in shown or "Socket errors" in shown:
        raise RuntimeError(f"{server}: {shown}")
    return float(found.group(1))


@contextlib.contextmanager
def etcd(lab: Lab) -> Iterator[None]:
    """A single etcd with its data beside plait's, on loopback of the lab host."""
    peer = "http://127.0.0.1:12380"
    command = ["etcd", "--data-dir", f"{FOLDER}/etcd", "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
    process = lab.popen("A", *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if "true" in lab.run("A", "curl", "-s", f"{ETCD}/health", check=False).stdout:
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(10)


def run() -> list[Row]:
    lab = Lab.up(simple(1), "bench-kv", owned=True)
    try:
        folder = lab.path("A", FOLDER)
        folder.mkdir()
        for server in ("plait", "etcd"):
            (folder / f"{server}.lua").write_text(_script(server))
        with etcd(lab):
            for server in ("plait", "etcd"):
                _lease(lab, server)
            seen: dict[str, int] = {}
            results = interleave({server: lambda server=server: _rate(lab, server, seen) for server in ("plait", "etcd")}, ROUNDS)
    finally:
        lab.down()
    print(f"    {json.dumps({server: round(median(rates)) for server, rates in results.items()})} PUT/s, watchers saw {seen}", flush=True)
    held = f"{WATCHERS} watchers, {LEASES} leases"
    note = f"{IN_FLIGHT} in flight, {VALUE_BYTES}-byte values, {held}; etcd 3.4 by its JSON gateway; one host, one disk"
    return [Row("durable KV PUT/s over HTTP beside etcd", ratio(results, "plait", "etcd"), "x", 2.0, False, note)]
