# SPDX-License-Identifier: Apache-2.0
"""The library alone: built, put into an environment of its own without plait and its dependencies, and the examples run with it."""

from __future__ import annotations

import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest
from tests.support.fake_consul import FakeConsul, serve

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    "register_and_resolve.py": (
        "example-web at port 8080 of node-a: passing\nusable now: 0\nusable again: 1\nafter the block: 0\n"
    ),
    "watch_async.py": "instances: [8081]\n",
    "lock_and_leader.py": "the job runs\nsomebody is at it already\neach led once: ['a', 'b', 'c']\n",
    "balanced_requests.py": "failed: 2, answered: ",
    "settings_in_kv.py": (
        "{'level': 'info', 'limit': '10'}\nchanged: True\nchanged by somebody who saw the old value: False\n"
        "{'level': 'info', 'limit': '20'}\nrolled back: [1]\n"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the archives."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, ROOT / "scripts/client_dist.py", out], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the library and nothing else, installed by pip without an index."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, with_pip=False)
    (wheel,) = built.glob("*.whl")
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--disable-pip-version-check", wheel]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return python


def test_the_distribution_holds_the_library_its_types_and_no_agent(built: Path) -> None:
    (wheel,) = built.glob("plait_client-*.whl")
    assert list(built.glob("plait_client-*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {"plait/py.typed", "plait/client/sync.py", "plait/client/aio.py", "plait/model/errors.py"} <= names
    assert not any(name.startswith(("plait/agent", "plait/cli/", "plait/store", "plait/client/admin")) for name in names)
    assert "Requires-Dist" not in metadata and "Name: plait-client" in metadata


def test_the_library_works_without_plaits_dependencies(python: Path) -> None:
    text = (
        "import sys, plait.client as c\n"
        "assert all(getattr(c, name) for name in c.__all__)\n"
        "bad = {'aiohttp', 'click', 'msgspec', 'cryptography'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "import importlib.util as u\n"
        "assert u.find_spec('aiohttp') is None and u.find_spec('plait.agent') is None\n"
    )
    done = subprocess.run([python, "-I", "-W", "error", "-c", text], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_the_examples_do_what_they_say(python: Path, name: str) -> None:
    with serve(FakeConsul(time.monotonic)) as server:
        done = subprocess.run(
            [python, "-I", "-W", "error", ROOT / "examples" / name],
            env={"CONSUL_HTTP_ADDR": server.url},
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.returncode == 0, done.stderr
        assert EXAMPLES[name] in done.stdout
        assert server.fake.services == {} and server.fake.leases == {}, "an example leaves nothing behind"
