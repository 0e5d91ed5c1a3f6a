# SPDX-License-Identifier: Apache-2.0
"""Requests that no description allows, byte by byte, to 127.0.0.1:8500: `nonsense.py SEED COUNT`.

Prints JSON: how often each status came, and what was wrong, which is nothing. Every request must get one well-formed answer within ten
seconds, or have its connection ended; none may be a fault of the agent.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import urllib.request
from collections import Counter

ADDRESS = ("127.0.0.1", 8500)
METHODS = ["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "get", "X" * 40]
ENDLESS = ("/v1/plait/events", "/v1/agent/monitor", "/v1/agent/metrics/stream", "/v1/agent/leave")
PARTS = [
    "web",
    "n1",
    "k",
    "%",
    "%2",
    "%zz",
    "%00",
    "%2F",
    "%2e%2e",
    "..",
    "%ff%fe",
    "%C3%BC",
    "ü",
    "\x7f",
    "a" * 3000,
    "//",
    "%0d%0a",
    "+",
    "%E2%80%AE",
]
VALUES = [
    "",
    "1",
    "true",
    "-1",
    "1e9",
    "9" * 25,
    "%00",
    "%",
    "a&b",
    "ü",
    "'",
    '"',
    "web==",
    "Checks.Status==x",
    "(" * 200,
    "1ms",
    "0",
    "dc1",
    "a=b,c!=d",
]
NUMBERS = ["NaN", "-Infinity", "1e999", "9" * 400, "9" * 5000, "-0", "1.5", "18446744073709551616", "true", "null", '"1"']
KEYS = [
    "Name",
    "ID",
    "name",
    "service_id",
    "Node",
    "Service",
    "Check",
    "Checks",
    "Meta",
    "Weights",
    "Ports",
    "TTL",
    "LockDelay",
    "Coord",
    "KV",
    "Definition",
]
TYPES = [
    "application/json",
    "text/plain; charset=utf-16",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "\xff",
    "",
]


class Client:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        with urllib.request.urlopen("http://127.0.0.1:8500/v1/plait/openapi.json", timeout=10) as answer:
            described = json.load(answer)
        self.paths = [path for path in described["paths"] if path not in ENDLESS]
        self.names = sorted(described["components"]["parameters"])
        self.statuses: Counter[str] = Counter()
        self.wrong: list[str] = []

    def value(self, depth: int = 0) -> str:
        """A body, which is JSON or nearly so."""
        pick = self.chance.randrange(8 if depth < 4 else 4)
        if pick < 2:
            return self.chance.choice(NUMBERS)
        if pick < 4:
            return json.dumps(self.chance.choice([*PARTS, *VALUES, "\ud800", "\u0000"]))
        inner = [self.value(depth + 1) for _ in range(self.chance.randrange(4))]
        if pick < 6:
            return f"[{','.join(inner)}]"
        return "{" + ",".join(f'"{self.chance.choice(KEYS)}":{value}' for value in inner) + "}"

    def body(self) -> bytes:
        depth = self.chance.choice([50, 150, 990, 50_000])
        whole = self.chance.choice(
            [self.value(), '{"Name":' * depth + "1" + "}" * depth, "[" * depth, "", "{", self.value()[:-1], "\ufeff{}"]
        )
        data = whole.encode("utf-8", "surrogatepass")
        return self.chance.choice(
            [data, data, data, self.chance.randbytes(200), whole.encode("utf-16", "surrogatepass"), b"\xff" * 600_000]
        )

    def target(self) -> str:
        path = "/".join(self.chance.choice(PARTS) if part.startswith("{") else part for part in self.chance.choice(self.paths).split("/"))
        if self.chance.random() < 0.1:
            path = self.chance.choice(
                ["/", "*", "http://x/v1/status/leader", "//v1//", path + "/", path.upper(), self.chance.choice(PARTS)]
            )
        names = [self.chance.choice([*self.names, *PARTS]) for _ in range(self.chance.randrange(5))]
        return path + "?" * bool(names) + "&".join(f"{name}={self.chance.choice(VALUES)}" for name in [*names, *names[:1], "wait=1ms"])

    def request(self) -> bytes:
        body = self.body() if self.chance.random() < 0.6 else b""
        fields = {"Host": "x", "Connection": "close", "Content-Type": self.chance.choice(TYPES), "Content-Length": str(len(body))}
        if self.chance.random() < 0.1:
            fields[
                self.chance.choice(
                    ["Accept-Encoding", "Transfer-Encoding", "Expect", "Range", "If-Match", "Last-Event-ID", "Content-Length"]
                )
            ] = self.chance.choice(["gzip", "chunked", "100-continue", "-1", "ü", "a" * 40_000])
        head = "\r\n".join([f"{self.chance.choice(METHODS)} {self.target()} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""])
        return head.encode("utf-8", "surrogatepass") + body

    def ask(self) -> None:
        data = self.request()
        with socket.create_connection(ADDRESS, timeout=10) as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            except ConnectionError:
                pass  # it was refused before it was all there
            try:
                answer = b"".join(iter(lambda: sock.recv(65536), b""))
            except ConnectionError:
                answer = b""
        status = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.1 ") else ("none" if not answer else "garbage")
        self.statuses[status] += 1
        if status == "garbage" or b"error inside the agent" in answer:
            self.wrong.append(f"{data[:600]!r} -> {answer[:600]!r}")


def main(seed: int, count: int) -> None:
    client = Client(seed)
    for _ in range(count):
        client.ask()
    print(json.dumps({"statuses": client.statuses, "wrong": client.wrong[:5]}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
