# SPDX-License-Identifier: Apache-2.0
"""The lab itself: hosts, faults, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from plait.cli.lab import lab as cli
from plait.lab import inside, process
from plait.lab import state as states
from plait.lab.lab import Lab, sweep
from plait.lab.spec import simple
from plait.model.errors import ConfigError, Conflict, NotFound, PlaitError

# Whether a namespace is gone is seen by its number, which the kernel gives to the next one that is made, by whomever.
pytestmark = [pytest.mark.root, pytest.mark.alone]
SLEEP_S = str(1_000_000 + os.getpid())
SLEEPER = ("sh", "-c", f"setsid -f sleep {SLEEP_S} >/dev/null 2>&1")
LAB = [sys.executable, "-m", "plait.cli.lab"]


@pytest.fixture(scope="module")
def three(make_lab) -> Lab:
    return make_lab(hosts=3, agents=False)


def own(name: str) -> str:
    """The name of a lab that no other run of these tests makes."""
    return f"test-{os.getpid()}-{name}"


def pings(lab: Lab, host: str, target: str, *options: str) -> bool:
    """Whether `target` answers within 5 s: after a cut the kernel may take a second or two until it asks for the address again."""
    return lab.run(host, "ping", "-c1", "-w5", *options, target, check=False).returncode == 0


def is_cut(lab: Lab, host: str, target: str) -> bool:
    return lab.run(host, "ping", "-c1", "-W1", target, check=False).returncode == 1


def leftovers(name: str) -> Counter[str]:
    """What exists of a lab on this machine: processes (its name is in their command line or environment), mounts, files, cgroups."""
    found: Counter[str] = Counter()
    outside = process.net_inode("self")
    mine = {os.getpid()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in mine:
            seen = process.identify(int(entry.name))
            if seen and seen.net != outside and name in _command(entry):
                found["process"] += 1
    found["mounts"] = sum(name in line for line in Path("/proc/self/mounts").read_text().splitlines())
    for top in ("/run/plait-lab", "/var/lib/plait-lab"):
        found["files"] += sum(name in str(path) for path in Path(top).glob("*"))
    found["cgroups"] += len(list(Path("/sys/fs/cgroup").glob(f"*/plait-lab/{name}")))
    return +found


def _command(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_text() + (entry / "environ").read_text()
    except OSError:
        return ""


def namespaces() -> set[int]:
    """Inode of every network namespace that a living process is in."""
    return {seen.net for entry in os.scandir("/proc") if entry.name.isdigit() and (seen := process.identify(int(entry.name)))}


def gone(nets: set[int]) -> bool:
    return not (nets & namespaces())


def test_hosts_reach_each_other_by_name_and_nothing_else(three: Lab) -> None:
    assert pings(three, "A", "B")
    assert pings(three, "C", "198.18.0.1")
    assert three.run("B", "hostname").stdout == "B\n"
    assert "default" not in three.run("A", "ip", "route").stdout


def test_a_host_has_its_own_files(three: Lab) -> None:
    three.run(
        "A", "sh", "-c", "echo a >/etc/lab-probe; echo a >/var/lib/plait/probe; echo a >/run/probe; mkdir -p /etc/cni/probe /opt/probe"
    )
    for path in ("/etc/lab-probe", "/var/lib/plait/probe", "/run/probe", "/etc/cni/probe", "/opt/probe"):
        assert three.run("B", "test", "-e", path, check=False).returncode == 1
        assert not Path(path).exists()
    assert three.run("A", "cat", "/etc/resolv.conf").stdout == "nameserver 127.0.0.1\n"
    assert set(three.run("A", "ls", "/sys/class/net").stdout.split()) == {"lo", "eth0"}
    assert three.run("A", "sh", "-c", "ls -d /proc/[0-9]* | wc -l").stdout.strip() in {"3", "4", "5"}


def test_the_machine_does_not_see_the_lab(three: Lab) -> None:
    links = {link["ifname"] for link in json.loads(subprocess.check_output(["ip", "-j", "link"]))}
    assert not {name for name in links if name.startswith(("p-", "br0"))}
    assert "plait-lab" not in Path("/proc/self/mounts").read_text()


def test_exec_passes_status_input_and_output(three: Lab) -> None:
    def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [*LAB, "exec", "--name", three.name, "A", "--", *words]
        return subprocess.run(command, text=True, capture_output=True, timeout=20, **options)  # type: ignore[call-overload,no-any-return]

    assert run("sh", "-c", "echo out; echo err >&2; exit 7").returncode == 7
    done = run("sh", "-c", "cat; echo err >&2", input="in")
    assert (done.stdout, done.stderr) == ("in", "err\n")
    assert run("sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    assert run("ls", "--all", "/etc/plait").returncode == 0


def test_exec_gives_the_terminal(three: Lab) -> None:
    words = " ".join([*LAB, "exec", "--name", three.name, "A", "--", "sh", "-c", "'test -t 0 && echo a terminal'"])
    done = subprocess.run(["script", "-qec", words, "/dev/null"], text=True, capture_output=True, timeout=20)
    assert "a terminal" in done.stdout


def test_variables_that_point_outside_stay_outside(three: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere")
    monkeypatch.setenv("http_proxy", "http://elsewhere")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "elsewhere")
    seen = three.run("A", "env").stdout
    assert "elsewhere" not in seen
    assert "PATH=/run/lab/bin:" in seen


def test_cut_and_heal(three: Lab) -> None:
    three.cut("A", "B")
    three.cut("B", "A")
    assert is_cut(three, "A", "B")
    assert is_cut(three, "B", "A")
    assert pings(three, "A", "C")
    three.heal()
    assert pings(three, "A", "B")


def test_a_cut_outlives_a_reboot(three: Lab) -> None:
    three.cut("A", "C")
    three.reboot("C")
    assert is_cut(three, "A", "C")
    three.heal()
    assert pings(three, "A", "C")


def test_reboot_keeps_the_disk_and_nothing_else(three: Lab) -> None:
    before = three.state.holders["B"]
    mac = three.run("B", "cat", "/sys/class/net/eth0/address").stdout
    three.run("B", "sh", "-c", "echo kept >/var/lib/plait/kept; echo lost >/run/lost; ip link add x type bridge; nft add table inet x")
    three.run("B", *SLEEPER)
    three.reboot("B")
    assert process.identify(before.pid) is None
    assert gone({before.net} - {three.state.holders["B"].net})
    assert three.run("B", "cat", "/var/lib/plait/kept").stdout == "kept\n"
    assert three.run("B", "ls", "/run").stdout.split() == ["lab", "lock"]
    assert three.run("B", "nft", "list", "tables").stdout == ""
    assert set(three.run("B", "ls", "/sys/class/net").stdout.split()) == {"lo", "eth0"}
    assert three.run("B", "cat", "/sys/class/net/eth0/address").stdout == mac
    assert f"sleep\0{SLEEP_S}" not in "".join(_command(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    assert pings(three, "A", "B")


def test_errors_say_what_to_do(three: Lab) -> None:
    with pytest.raises(ConfigError, match="hosts: A, B, C"):
        three.run("X", "true")
    with pytest.raises(PlaitError, match="start-agent A"):
        three.kill_agent("A")
    with pytest.raises(Conflict, match="plait lab down --name"):
        Lab.up(simple(1, agents=False), three.name)
    with pytest.raises(NotFound, match=three.name):
        Lab("no-such-lab").run("A", "true")
    with pytest.raises(inside.CommandFailed, match="on host A: exit status 3\nwhy"):
        three.run("A", "sh", "-c", "echo why >&2; exit 3")
    with pytest.raises(inside.CommandFailed, match=r"no end within 0 s"):
        three.run("A", "sleep", "5555", timeout_s=0.2)
    assert "5555" not in three.run("A", "ps", "ax").stdout


def test_the_machines_own_namespace_is_refused() -> None:
    me = process.identify(os.getpid())
    assert me is not None
    with pytest.raises(process.Refused):
        inside.argv(me, ["true"])
    with pytest.raises(process.Refused):
        process.kill(me)
    with pytest.raises(process.Refused):
        process.kill_namespaces([me])


def test_a_reused_pid_is_not_killed(three: Lab) -> None:
    holder = three.state.holders["A"]
    process.kill(process.Process(holder.pid, holder.start - 1, holder.net))
    assert process.is_alive(holder)


TWO_LINKS = """
[[switch]]
name = "left"
[[switch]]
name = "right"
mtu = 1400
[[router]]
name = "R1"
switches = ["left", "right"]
[[host]]
name = "A"
[[host]]
name = "B"
switch = "right"
[[host]]
name = "C"
"""


def test_switches_joined_by_a_router(make_lab) -> None:
    lab = make_lab(toml=TWO_LINKS, agents=False)
    assert pings(lab, "A", "B")
    assert pings(lab, "A", "C", "-s", "1472", "-M", "do")
    assert "mtu = 1400" in lab.run("A", "ping", "-c1", "-W1", "-s", "1472", "-M", "do", "B", check=False).stdout.replace("mtu=", "mtu = ")
    lab.cut("A", "B")
    assert is_cut(lab, "A", "B")
    assert pings(lab, "C", "B")
    lab.heal()
    assert pings(lab, "B", "A")


def test_a_router_of_ipv6_forwards_at_once(make_lab) -> None:
    lab = make_lab(toml=TWO_LINKS.replace("[[switch]]", '[[switch]]\nunderlay = "ipv6"'), agents=False)
    lab.run("A", "ping", "-c1", "-W1", "B")


def test_down_leaves_nothing() -> None:
    lab = Lab.up(simple(3, agents=False), own("gone"), owned=True)
    lab.run("A", *SLEEPER)
    outside = subprocess.Popen(inside.net_argv(lab.state.holders["lan"], ["sleep", "1000"]))
    nets = {holder.net for holder in lab.state.holders.values()}
    assert len(nets) == 4
    process.until("it is there", lambda: getattr(process.identify(outside.pid), "net", 0) == lab.state.holders["lan"].net, 5)
    lab.down()
    assert outside.wait(5) == -signal.SIGKILL
    assert gone(nets)
    assert not leftovers(own("gone"))
    lab.down()


def test_down_all_removes_every_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "RUN", tmp_path / "run")
    labs = [Lab.up(simple(1, agents=False), own(f"all-{number}"), owned=True) for number in range(2)]
    nets = {holder.net for one in labs for holder in one.state.holders.values()}
    assert CliRunner().invoke(cli, ["down", "--all"]).exit_code == 0
    assert gone(nets)
    assert not states.RUN.exists()


def test_a_failed_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_LAB", own("broken"))
    spec = simple(2, agents=False)
    hosts = (spec.hosts[0], replace(spec.hosts[1], mtu=70000))
    with pytest.raises(PlaitError, match="wire the lab: lan: "):
        Lab.up(replace(spec, hosts=hosts), own("broken"), owned=True)
    assert not leftovers(own("broken"))


@pytest.mark.parametrize("delay_ms", [0, 60, 90, 110, 130, 150, 170, 190, 210, 240, 280, 330])
def test_a_killed_up_leaves_nothing_after_down(delay_ms: int) -> None:
    name = own(f"killed-{delay_ms}")
    marked = {**os.environ, "PLAIT_LAB": name}
    up = subprocess.Popen([*LAB, "up", "--hosts", "3", "--no-agents"], env=marked, stderr=subprocess.DEVNULL)
    time.sleep(delay_ms / 1000)
    up.kill()
    up.wait(5)
    subprocess.run([*LAB, "down", "--name", name], check=True, timeout=30)
    process.until("everything that `up` made ends", lambda: not leftovers(name), 5)


def test_killed_holders_are_no_obstacle() -> None:
    lab = Lab.up(simple(2, agents=False), own("holders"), owned=True)
    holders = lab.state.holders
    lab.run("A", *SLEEPER)
    process.kill(holders["A"])
    with pytest.raises(PlaitError, match="plait lab reboot A"):
        lab.run("A", "true")
    lab.reboot("A")
    assert pings(lab, "A", "B")
    for holder in lab.state.holders.values():
        process.kill(holder)
    nets = {holder.net for holder in lab.state.holders.values()}
    lab.down()
    assert gone(nets)
    assert not leftovers(own("holders"))


UP = """
import sys
from pathlib import Path
from plait.lab import state
from plait.lab.lab import Lab
from plait.lab.spec import simple
state.RUN = Path(sys.argv[1])
Lab.up(simple(1, agents=False), sys.argv[2], owned=True)
print("up", flush=True)
sys.stdin.read()
"""


def test_a_lab_is_swept_once_the_run_that_made_it_is_dead_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written down apart from all others, whom another run might sweep."""
    name = own("dead")
    monkeypatch.setattr(states, "RUN", tmp_path / "run")
    command = [sys.executable, "-c", UP, str(states.RUN), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"up\n"
        assert sweep() == []
        assert Lab(name).run("A", "hostname").stdout == "A\n"
        other.kill()
    rows = json.loads(CliRunner().invoke(cli, ["ls", "--json"]).stdout)
    assert [(row["lab"], row["state"]) for row in rows] == [(name, "dead")]
    assert leftovers(name)["files"]
    assert sweep() == [name]
    assert not leftovers(name)
