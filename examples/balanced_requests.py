# SPDX-License-Identifier: Apache-2.0
"""Spread requests over the instances of a service and leave out the one that fails."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import urlopen

from plait.client import Client, Ejection, Service


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        pass


with Client() as client, ExitStack() as stack:
    servers = [HTTPServer(("127.0.0.1", 0), Hello) for _ in range(3)]
    for number, server in enumerate(servers):
        port = server.server_address[1]
        stack.enter_context(client.registration(Service("example-hello", port, id=f"hello-{number}", address="127.0.0.1", ttl_s=10)))
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].server_close()  # registered, but it answers nobody

    used: Counter[str] = Counter()
    failed = 0
    with client.endpoints("example-hello", policy="least_used", ejection=Ejection(failures=2, eject_s=60)) as endpoints:
        for _ in range(30):
            try:
                with endpoints.use() as instance, urlopen(f"http://{instance.endpoint}/", timeout=5) as answer:
                    answer.read()
                used[instance.id] += 1
            except OSError:
                failed += 1
    for server in servers[1:]:
        server.shutdown()
    print(f"failed: {failed}, answered: {sorted(used.items())}")
