# SPDX-License-Identifier: Apache-2.0
"""The program that engines run, in Python and in C: what it answers by itself, hands on, and leaves for an agent that is away."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plait import __version__
from plait.runtimes.cni import shim

ROOT = Path(__file__).resolve().parents[2]
CONFIG = b'{"cniVersion" : "0.4.0", "name": "mesh", "type": "plait"}'
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def built() -> list[str]:
    if shutil.which("cc") is None:
        pytest.skip("the build in C is optional, and this machine has no C compiler")
    subprocess.run(["make", "-s", "build/plait-cni"], cwd=ROOT, check=True, timeout=60)
    return [str(ROOT / "build/plait-cni")]


@pytest.fixture(params=["python", "c"])
def program(request: pytest.FixtureRequest) -> list[str]:
    return request.getfixturevalue("built") if request.param == "c" else [sys.executable, "-I", "-S", shim.__file__]


@pytest.fixture
def run(program: list[str], tmp_path: Path) -> Run:
    """`run(verb, *words, given=…, **variables)`: one call, without an agent unless one serves tmp_path/sock."""

    def call(verb: str, *words: str, given: bytes = CONFIG, **variables: str) -> subprocess.CompletedProcess[bytes]:
        environ = {"PLAIT_CNI_SOCKET": str(tmp_path / "sock"), "PLAIT_CNI_SPOOL": str(tmp_path / "spool"), "HOME": "/"} | variables
        if not words:
            environ |= {"CNI_COMMAND": verb} if verb else {}
        command = [*program, verb, *words] if words else program
        return subprocess.run(command, env=environ, input=given, capture_output=True, timeout=20)

    return call


@contextmanager
def agent(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answers each connection with these bytes once the whole request is there; gives the bodies of the requests."""
    bodies: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(10)

        def serve() -> None:
            link, _ = listening.accept()
            with link:
                got = b""
                while b"\r\n\r\n" not in got:
                    got += link.recv(65536)
                head, _, content = got.partition(b"\r\n\r\n")
                assert head.startswith(b"POST /cni HTTP/1.1\r\n") and b"Connection: close" in head
                length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                while len(content) < length:
                    content += link.recv(65536)
                bodies.append(content)
                link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield bodies
        thread.join()


def answer(status: int, content: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nDate: now\r\ncontent-length: %d\r\n\r\n%s" % (status, len(content), content)


def taken_apart(body: bytes) -> tuple[dict[str, str], bytes]:
    head, _, given = body.partition(b"\0\0")
    return dict(field.decode().split("=", 1) for field in head.split(b"\0")), given  # type: ignore[misc]


def error_of(done: subprocess.CompletedProcess[bytes]) -> Mapping[str, Any]:
    assert done.returncode == 1
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("given", "version"), [(CONFIG, "0.4.0"), (b'{"cniVersion":"9.9"}', "1.1.0"), (b"", "1.1.0"), (b'{"cniVersion"', "1.1.0")]
)
def test_version_needs_no_agent(run: Run, given: bytes, version: str) -> None:
    done = run("VERSION", given=given)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_without_an_agent_everything_but_a_removal_is_refused(run: Run, tmp_path: Path, verb: str, code: int) -> None:
    error = error_of(run(verb))
    assert (error["cniVersion"], error["code"]) == ("0.4.0", code)
    assert str(tmp_path / "sock") in error["msg"] and "systemctl start plait" in error["msg"]
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("verb", ["", "FETCH", 'a"b\\c'])
def test_an_unknown_command_is_refused(run: Run, verb: str) -> None:
    assert error_of(run(verb))["code"] == 4


def test_a_removal_is_left_for_an_agent_that_is_away(run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        done = run("DEL", CNI_CONTAINERID="c1", CNI_IFNAME="eth0", SECRET="not for the agent")
        assert (done.returncode, done.stdout) == (0, b"")
    left = sorted((tmp_path / "spool").iterdir())
    assert len(left) == 2 and not [path for path in left if path.name.startswith(".")]
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700 and left[0].stat().st_mode & 0o777 == 0o600
    assert taken_apart(left[0].read_bytes()) == ({"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}, CONFIG)


def test_a_removal_that_cannot_be_left_fails(run: Run, tmp_path: Path) -> None:
    assert error_of(run("DEL", PLAIT_CNI_SPOOL=str(tmp_path / "no" / "where")))["code"] == 5


def test_the_agents_answer_is_passed_on_as_it_is(run: Run, tmp_path: Path) -> None:
    given = CONFIG + b" " * 200_000
    with agent(tmp_path / "sock", answer(200, b'{"any": "thing"}\n')) as bodies:
        done = run("ADD", given=given, CNI_CONTAINERID="c1", CNI_ARGS="A=1;B=2")
    assert (done.returncode, done.stdout) == (0, b'{"any": "thing"}\n')
    assert taken_apart(bodies[0]) == ({"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_ARGS": "A=1;B=2"}, given)


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_the_agents_refusal_is_passed_on(run: Run, tmp_path: Path, verb: str) -> None:
    with agent(tmp_path / "sock", answer(500, b'{"code": 7}')):
        done = run(verb)
    assert (done.returncode, done.stdout) == (1, b'{"code": 7}')
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 X\r\nContent-Le", answer(200, b'{"ips": []}')[:-3]])
def test_an_agent_that_ends_in_the_middle_is_away(run: Run, tmp_path: Path, said: bytes) -> None:
    with agent(tmp_path / "sock", said):
        assert error_of(run("ADD"))["code"] == 11
    (tmp_path / "sock").unlink()
    with agent(tmp_path / "sock", said):
        assert run("DEL").returncode == 0
    assert len(list((tmp_path / "spool").iterdir())) == 1


def test_netavark_is_served_by_the_same_program(run: Run, tmp_path: Path) -> None:
    assert json.loads(run("info", "-").stdout) == {"version": __version__, "api_version": "1.0.0"}
    with agent(tmp_path / "sock", answer(200, b"{}")) as bodies:
        done = run("setup", "/run/netns/x", given=b'{"container_id": "c"}', CNI_COMMAND="ADD")
    assert (done.returncode, done.stdout) == (0, b"{}")
    assert taken_apart(bodies[0]) == ({"NETAVARK_COMMAND": "setup", "NETAVARK_NETNS": "/run/netns/x"}, b'{"container_id": "c"}')
    (tmp_path / "sock").unlink()
    assert "does not answer" in error_of(run("setup", "/run/netns/x"))["error"]
    assert "it takes create" in error_of(run("destroy", "x"))["error"]
    assert run("teardown", "/run/netns/x").returncode == 0
    assert taken_apart(next((tmp_path / "spool").iterdir()).read_bytes())[0]["NETAVARK_COMMAND"] == "teardown"


def test_it_loads_next_to_nothing() -> None:
    """Engines run it for every container and every command."""
    code = (
        f"import sys; before = set(sys.modules); sys.path.insert(0, {str(Path(shim.__file__).parent)!r}); import shim;"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() in ("['__future__', 'shim']", "['shim']")
