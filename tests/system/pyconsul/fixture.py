# SPDX-License-Identifier: Apache-2.0
"""Takes the place of py-consul's own conftest.py: where that starts a container with Consul for each test, this starts
`plait consul agent` on Consul's own port, which some tests check.

Copied beside py-consul's tests and run there, in a lab host, with nothing of this project on the path.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

PORT = 8500
ConsulInstance = collections.namedtuple("ConsulInstance", ["container", "port", "version"])


@pytest.fixture
def consul_instance() -> Iterator[ConsulInstance]:
    config = {"enable_script_checks": True, "performance": {"raft_multiplier": 1}, "bootstrap": True}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        command = ["plait", "consul", "agent", "-dev", "-bind=127.0.0.1", f"-config-dir={folder}"]
        agent = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
        try:
            yield ConsulInstance(None, PORT, version_of(PORT))
        finally:
            agent.terminate()
            assert agent.wait(10) == 0


def version_of(port: int) -> str:
    end = time.monotonic() + 20
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/v1/agent/self", timeout=5) as answer:
                return str(json.load(answer)["Config"]["Version"])
        except URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


@pytest.fixture
def consul_port(consul_instance: ConsulInstance) -> tuple[int, str]:
    return consul_instance.port, consul_instance.version


@pytest.fixture
def acl_consul_instance(consul_instance: ConsulInstance) -> tuple[ConsulInstance, str]:
    """The same agent: it takes any token, because it has no access control."""
    return consul_instance, "any"
