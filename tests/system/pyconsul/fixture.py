# SPDX-License-Identifier: Apache-2.0
"""Takes the place of py-consul's own conftest.py: its tests get this host's agent, empty, instead of a new container for each.

Copied beside py-consul's tests and run there, in a lab host, with nothing of this project on the path.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

PORT = 8500
ConsulInstance = collections.namedtuple("ConsulInstance", ["container", "port", "version"])


def ask(method: str, path: str) -> Any:
    with urlopen(Request(f"http://127.0.0.1:{PORT}/v1/{path}", method=method), timeout=10) as answer:
        body = answer.read()
    return json.loads(body) if body else None


def clear() -> None:
    """Remove what a test may have written; events cannot be removed, and no test counts them all."""
    ask("DELETE", "kv/?recurse")
    for session in ask("GET", "session/list"):
        ask("PUT", f"session/destroy/{session['ID']}")
    for query in ask("GET", "query"):
        ask("DELETE", f"query/{query['ID']}")
    ask("PUT", "agent/maintenance?enable=false")
    for service in ask("GET", "agent/services"):
        ask("PUT", f"agent/service/deregister/{service}")
    for check in ask("GET", "agent/checks"):
        ask("PUT", f"agent/check/deregister/{check}")


@pytest.fixture
def consul_instance() -> Iterator[ConsulInstance]:
    clear()
    yield ConsulInstance(None, PORT, ask("GET", "agent/self")["Config"]["Version"])
    clear()


@pytest.fixture
def consul_port(consul_instance: ConsulInstance) -> tuple[int, str]:
    return consul_instance.port, consul_instance.version


@pytest.fixture
def acl_consul_instance(consul_instance: ConsulInstance) -> tuple[ConsulInstance, str]:
    """The same agent: it takes any token, because it has no access control."""
    return consul_instance, "any"
