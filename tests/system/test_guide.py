# SPDX-License-Identifier: Apache-2.0
"""docs/guide.md, followed word by word: the commands below its marks `<!-- step: … -->`, and nothing else, on three hosts that run
Debian's own systemd and docker.service (`tests/support/booted.py`)."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.booted import ROOT, SOURCE, Booted

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(900)]
HOSTS = "ABC"
UNITS = "/etc/systemd/system"


def step(name: str) -> list[str]:
    """The commands of one step of the guide, in order."""
    text = (ROOT / "docs" / "guide.md").read_text()
    found = re.findall(rf"<!-- step: {name} -->\n```\n(.*?)```", text, re.DOTALL)
    assert len(found) == 1, f"the guide has no step {name!r}, or several"
    return str(found[0]).splitlines()


def follow(hosts: Booted, host: str, name: str, **words: str) -> list[str]:
    """Run one step of the guide on `host`, with what it says to fill in; returns what each command printed."""
    said = []
    for line in step(name):
        for word, meant in words.items():
            line = line.replace(word, meant)
        said.append(hosts.run(host, "sh", "-c", f"cd {SOURCE} && {line}", timeout_s=120).stdout)
    return said


def everywhere(hosts: Booted, name: str) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: follow(hosts, host, name), HOSTS))


def traces(hosts: Booted, host: str) -> dict[str, str]:
    """What there is of plait on a host, by kind; "" where nothing is."""

    def ask(command: str) -> str:
        return hosts.run(host, "sh", "-c", command, check=False).stdout.strip()

    return {
        "links": ask("ip -o link | grep -o ' pl-[^:@]*'"),
        "routes": ask("ip route show table all proto 112; ip route show table all | grep 'dev pl-'"),
        "rules": ask("ip rule | grep -i plait"),
        "nft": ask("nft list tables | grep plait"),
        "files": ask("find /etc/plait /var/lib/plait /run/plait /run/docker/plugins -mindepth 1"),
        "programs": ask("find /opt /usr/bin /usr/local -name '*plait*'"),
        "units": ask(f"find {UNITS} -name '*plait*'"),
        "processes": ask("ps -eo args | grep -E '[p]lait (agent|dns)|[p]lait[./]serve'"),
        "docker networks": ask("docker network ls --filter driver=plait -q"),
        "names": ask("grep -l plait /etc/resolv.conf /etc/hosts"),
    }


@pytest.fixture
def bare(make_lab) -> Booted:
    """Three hosts with engines and no agent; as real ones they have a default route, by which each knows its address."""
    lab = make_lab(hosts=3, agents=False)
    hosts = Booted(lab)
    for host in HOSTS:
        lab.run(host, "ip", "route", "add", "default", "dev", "eth0")
    with ThreadPoolExecutor() as pool:
        list(pool.map(hosts.boot, HOSTS))
    return hosts


def test_the_guide_word_by_word(bare: Booted) -> None:
    """One test, because the guide has an order: install, three commands, look, use, and the way out."""
    form(bare)
    check_that_all_is_well(bare)
    check_the_use(bare)
    check_the_engines_options(bare)
    check_a_power_cut(bare)
    check_the_way_out(bare)


def form(bare: Booted) -> None:
    before = {host: traces(bare, host) for host in HOSTS}
    assert {text for found in before.values() for text in found.values()} == {""}, "the hosts are bare"
    everywhere(bare, "prepare")
    everywhere(bare, "install")
    follow(bare, "A", "first")
    follow(bare, "A", "start")
    for host in "BC":
        (token,) = follow(bare, "A", "token")
        follow(bare, host, "join", TOKEN=token.strip())
        follow(bare, host, "start")


def check_that_all_is_well(hosts: Booted) -> None:
    for host in HOSTS:
        status, nodes, _ = follow(hosts, host, "look")
        assert status.startswith(f"{host}: all is well")
        assert [line.split()[:2] for line in nodes.splitlines()[1:]] == [
            [f"{name}{'*' if name == host else ''}", "alive"] for name in HOSTS
        ]
        assert hosts.run(host, "systemctl", "--failed", "--no-legend").stdout == ""


def check_the_use(hosts: Booted) -> None:
    _, service, _ = follow(hosts, "A", "run")
    assert "10.28.0.2" in json.dumps(json.loads(service))
    until("mesh reaches the engine of B", lambda: "mesh" in hosts.run("B", "docker", "network", "ls").stdout, 10)
    address, page, networks, _ = follow(hosts, "B", "use")
    assert address == "10.28.0.2\n"
    assert "Welcome to nginx!" in page
    assert re.search(r"\bmesh +plait\b", networks)
    assert "shop" in hosts.run("C", "plait", "ps").stdout
    for name in ("web", "web.default"):
        assert hosts.run("C", "dig", "+short", "@localhost", name).stdout == "10.28.0.2\n"


def check_the_engines_options(hosts: Booted) -> None:
    """dockerd runs with what the agent wrote for it, and was started after the agent was ready."""
    options = re.search(r'PLAIT_DOCKER_OPTS="?(.+?)"?$', hosts.path("A", "/run/plait/docker.env").read_text())
    assert options is not None
    pid = hosts.run("A", "systemctl", "show", "-P", "MainPID", "docker").stdout.strip()
    running = hosts.path("A", f"/proc/{pid}/cmdline").read_text().split("\0")
    assert set(shlex.split(options[1])) <= set(running)


def check_a_power_cut(hosts: Booted) -> None:
    """What was on when the host lost its power is on again when it has booted, in an order that lets Docker find its networks."""
    hosts.run("B", "docker", "update", "--restart", "always", "shop")
    before = hosts.run("B", "docker", "inspect", "-f", "{{json .NetworkSettings.Networks.mesh.IPAddress}}", "shop").stdout
    hosts.power_cycle("B")
    assert hosts.run("B", "systemctl", "is-system-running").stdout == "running\n"
    assert hosts.run("B", "systemctl", "is-active", "plait", "docker").stdout == "active\nactive\n"
    after = hosts.run("B", "docker", "inspect", "-f", "{{json .NetworkSettings.Networks.mesh.IPAddress}}", "shop").stdout
    assert after == before
    until("B finds all well", lambda: hosts.run("B", "plait", "status", check=False).returncode == 0, 10)


def check_the_way_out(hosts: Booted) -> None:
    for host, name in (("A", "web"), ("B", "shop")):
        hosts.run(host, "docker", "rm", "-f", name)
    assert {kind for kind, text in traces(hosts, "A").items() if not text} <= {"rules", "names"}, "the search finds what is there"
    follow(hosts, "C", "networks")
    for host in HOSTS:
        until(f"mesh leaves the engine of {host}", lambda at=host: "mesh" not in hosts.run(at, "docker", "network", "ls").stdout, 10)
    for host in "CBA":
        follow(hosts, host, "out")
        follow(hosts, host, "bridge")
        hosts.run(host, "systemctl", "restart", "docker")
        assert hosts.run(host, "systemctl", "is-active", "docker").stdout == "active\n"
        assert {kind: text for kind, text in traces(hosts, host).items() if text} == {}
        assert hosts.run(host, "docker", "network", "inspect", "bridge", "--format", "{{json .IPAM}}").stdout.count("10.28.") == 0


def test_a_host_without_a_default_route_is_told_what_to_give(make_lab) -> None:
    lab = make_lab(hosts=1, agents=False)
    refused = lab.run("A", "plait", "init", check=False)
    assert refused.returncode == 1
    assert refused.stderr == (
        "plait: this host's address on the underlay cannot be guessed, there is no default route; "
        "give it with --address, or as node.address in /etc/plait/plait.toml\n"
    )
    lab.run("A", "plait", "init", "--address", lab.address("A"))


HOLD = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 53)); print(); time.sleep(120)"


def test_a_host_whose_resolver_port_is_taken_is_told_by_whom(make_lab) -> None:
    lab = make_lab(hosts=2, agents=False)

    @contextlib.contextmanager
    def held(host: str = "A") -> Iterator[None]:
        with lab.popen(host, sys.executable, "-c", HOLD, stdout=subprocess.PIPE) as program:
            assert program.stdout is not None and program.stdout.readline() == b"\n"
            try:
                yield
            finally:
                program.kill()

    with held():
        refused = lab.run("A", "plait", "init", "--address", lab.address("A"), check=False)
        assert refused.returncode == 1 and "127.0.0.1:53/udp is held by python" in refused.stderr
        assert not lab.path("A", "/var/lib/plait").exists() or not any(lab.path("A", "/var/lib/plait").iterdir()), "nothing was made"
    lab.run("A", "plait", "init", "--address", lab.address("A"))
    with held():
        lab.start_agent("A")
        status = lab.run("A", "plait", "status", check=False)
        assert status.returncode != 0 and "127.0.0.1:53/udp" in status.stdout and "in use by python" in status.stdout, (
            "as soon as it is ready"
        )
    with held("B"):
        lab.path("B", "/etc/plait").mkdir(parents=True, exist_ok=True)
        lab.path("B", "/etc/plait/plait.toml").write_text("[dns]\nenabled = false\n[docker]\nenabled = false\n")
        lab.run("B", "plait", "init", "--address", lab.address("B"))
        lab.start_agent("B")
        status = lab.run("B", "plait", "status", check=False)
        assert status.returncode == 0, status.stdout
        box = ("sh", "-c", "cat /etc/resolv.conf; getent hosts static.example")
        lab.path("B", "/etc/hosts").write_text("192.0.2.7 static.example\n")
        said = lab.run("B", "plait", "run", "--name", "box", "--", *box).stdout
        assert said.splitlines()[0] == lab.path("B", "/etc/resolv.conf").read_text().strip() and "192.0.2.7" in said
        listening = lab.run("B", "ss", "-lunp", "( sport = 53 or sport = 8600 )").stdout
        assert "plait" not in listening.replace("plait-", ""), "nobody asks DNS here"
    until("DNS answers", lambda: lab.run("A", "dig", "+short", "@127.0.0.1", "consul.service.consul", check=False).stdout.strip(), 10)


def test_the_front_page_is_tried_without_the_demo() -> None:
    """The block of README.md, in a lab of its own name."""
    section = (ROOT / "README.md").read_text().partition("## Try it without the demo\n")[2]
    lines = section.partition("```\n")[2].partition("```")[0].splitlines()
    lab = f"test-{os.getpid()}-readme"
    environ = {**os.environ, "PLAIT_LAB": lab}
    said: dict[str, str] = {}
    try:
        for line in lines:
            words = shlex.split(line, comments=True)
            assert words[0] == ".venv/bin/plait"
            command = [str(Path(sys.executable).with_name("plait")), *words[1:]]
            done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            said[" ".join(words[1:])] = done.stdout
    finally:
        Lab(lab).down()
    assert said["lab exec B -- dig +short web"] == "10.28.0.2\n"
    assert re.search(r"^A +web +default=10\.28\.0\.2 +running +docker", said["lab exec B -- plait ps"], re.MULTILINE)
    assert len(lines) == 5


# --- the unit files by themselves


def packaged(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters="=", comment_prefixes="#", interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string((ROOT / "packaging" / name).read_text())
    return parser


def test_docker_waits_for_a_ready_agent() -> None:
    service = packaged("plait.service")
    assert "docker.service" in service["Unit"]["Before"].split()
    assert service["Service"]["ExecStartPost"].split()[:2] == ["-/usr/bin/plait", "wait"]
    assert float(service["Service"]["ExecStartPost"].split()[-1]) < 90, "systemd's own limit for a start (DefaultTimeoutStartSec)"
    drop_in = packaged("docker.service.d-plait.conf")["Unit"]
    assert drop_in["Wants"] == drop_in["After"] == "plait.service"


def test_an_agent_that_was_told_to_stop_stays_away_and_leaves_the_kernel_alone() -> None:
    service = packaged("plait.service")["Service"]
    assert service["Restart"] == "on-failure"
    assert service["KillMode"] == "process"
    assert (service["RuntimeDirectory"], service["RuntimeDirectoryPreserve"]) == ("plait", "yes")


def test_the_plug_in_socket_is_the_one_the_agent_takes_over() -> None:
    from plait.agent.files import Paths

    paths = Paths()
    socket = packaged("plait-docker.socket")
    assert socket["Socket"]["ListenStream"] == str(paths.docker_plugin)
    assert (socket["Socket"]["SocketMode"], socket["Socket"]["Service"]) == ("0600", "plait.service")
    assert "docker.service" in socket["Unit"]["Before"].split()
    for name in ("plait.service", "plait-docker.socket"):
        assert packaged(name)["Unit"]["ConditionPathExists"] == str(paths.identity)


def test_the_program_is_where_the_guide_puts_it() -> None:
    assert "ln -sf /opt/plait/bin/plait /usr/bin/plait" in (ROOT / "docs" / "guide.md").read_text()
    assert packaged("plait.service")["Service"]["ExecStart"] == "/usr/bin/plait agent"


def test_systemd_finds_no_fault_with_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    root = tmp_path / "root"
    for program in ("usr/bin/plait", "usr/sbin/dockerd"):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        (root / program).write_text("#!/bin/sh\n")
        (root / program).chmod(0o755)
    units = root / UNITS.lstrip("/")
    (units / "docker.service.d").mkdir(parents=True)
    (units / "docker.service").write_text("[Unit]\nDescription=Docker\n[Service]\nExecStart=/usr/sbin/dockerd\n")
    for name in ("sysinit", "basic", "shutdown", "network-online", "sockets", "multi-user"):
        (units / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    for name in ("plait.service", "plait-docker.socket"):
        shutil.copy(ROOT / "packaging" / name, units / name)
    shutil.copy(ROOT / "packaging" / "docker.service.d-plait.conf", units / "docker.service.d" / "plait.conf")
    command = ["systemd-analyze", "verify", "--man=no", f"--root={root}", "plait.service", "plait-docker.socket", "docker.service"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"})
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
