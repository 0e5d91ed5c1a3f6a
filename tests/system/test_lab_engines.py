# SPDX-License-Identifier: Apache-2.0
"""Real Docker Engines in lab hosts, with the lab's own images."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait.lab import engines, images, process
from plait.lab.lab import Lab
from plait.lab.spec import simple
from plait.lab.state import State, list_labs
from plait.model.errors import PlaitError

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def two(make_lab) -> Lab:
    return make_lab(hosts=2, agents=False, engines=True)


def address(lab: Lab, host: str, container: str) -> str:
    pattern = "{{.NetworkSettings.IPAddress}}"
    return lab.run(host, "docker", "inspect", "--format", pattern, container).stdout.strip()


def containers(lab: Lab, host: str) -> set[str]:
    return set(lab.run(host, "docker", "ps", "--format", "{{.Names}}").stdout.split())


def test_each_engine_has_the_images_and_its_own_containers(two: Lab) -> None:
    for host in "AB":
        seen = two.run(host, "docker", "images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
        assert set(seen) == {"nginx:latest", "mysql:latest"}
    two.run("A", "docker", "run", "-dit", "--name", "web", "nginx")
    assert containers(two, "A") == {"web"}
    assert containers(two, "B") == set()
    page = two.run("A", "curl", "-sS", "--retry", "5", "--retry-connrefused", f"http://{address(two, 'A', 'web')}/").stdout
    assert "Welcome to nginx!" in page
    assert '"GET / HTTP/1.1" 200' in two.run("A", "docker", "logs", "web").stdout
    assert Path(f"/sys/fs/cgroup/memory/plait-lab/{two.name}/A").is_dir() or Path(f"/sys/fs/cgroup/plait-lab/{two.name}/A").is_dir()
    two.run("A", "docker", "rm", "-f", "web")


def test_mysql_answers_sql_to_another_container(two: Lab) -> None:
    two.run("B", "docker", "run", "-d", "--name", "mysql", "-e", "MYSQL_ROOT_PASSWORD=it's \\ secret", "mysql")
    two.run("B", "docker", "run", "-d", "--name", "web", "nginx")
    query = ["mysql", "-h", address(two, "B", "mysql"), "-uroot", "-pit's \\ secret", "-Ne", "SELECT 6*7"]

    def answers() -> bool:
        return two.run("B", "docker", "exec", "web", *query, check=False).stdout == "42\n"

    process.until("mysql answers", answers, 10, every_s=0.2)
    wrong = two.run("B", "docker", "exec", "web", *query[:4], "-pwrong", "-e", "SELECT 1", check=False)
    assert "Access denied" in wrong.stderr
    two.run("B", "docker", "rm", "-fv", "web", "mysql")


def test_mysql_without_a_password_says_so(two: Lab) -> None:
    done = two.run("A", "docker", "run", "--rm", "mysql", check=False)
    assert done.returncode == 1
    assert "MYSQL_ROOT_PASSWORD is not set" in done.stderr


def test_a_killed_engine_starts_again(two: Lab) -> None:
    two.run("A", "docker", "run", "-d", "--restart", "always", "--name", "keeps", "nginx")
    with pytest.raises(PlaitError, match="running already"):
        two.start_engine("A")
    two.stop_engine("A", kill=True)
    two.start_engine("A")
    process.until("the container is back", lambda: containers(two, "A") == {"keeps"}, 15)
    two.run("A", "docker", "rm", "-f", "keeps")


def test_live_restore_survives_the_engine(two: Lab) -> None:
    two.stop_engine("A")
    two.start_engine("A", "--live-restore")
    two.run("A", "docker", "run", "-d", "--name", "lives", "nginx")
    pid = two.run("A", "docker", "inspect", "--format", "{{.State.Pid}}", "lives").stdout
    two.stop_engine("A", kill=True)
    two.start_engine("A", "--live-restore")
    assert two.run("A", "docker", "inspect", "--format", "{{.State.Pid}} {{.State.Running}}", "lives").stdout == f"{pid.strip()} true\n"
    two.run("A", "docker", "rm", "-f", "lives")


def test_options_of_the_agents_file_are_used(two: Lab) -> None:
    two.stop_engine("B")
    two.run("B", "mkdir", "-p", "/run/plait")
    two.path("B", "/run/plait/docker.env").write_text('# for dockerd\nPLAIT_DOCKER_OPTS="--bip=10.28.5.1/24 --mtu=1450"\n')
    two.start_engine("B")
    assert "10.28.5.1/24" in two.run("B", "ip", "address", "show", "docker0").stdout
    two.stop_engine("B")
    two.run("B", "rm", "/run/plait/docker.env")
    two.start_engine("B")


def test_an_engine_that_cannot_start_shows_its_log(two: Lab) -> None:
    two.stop_engine("B")
    with pytest.raises(PlaitError, match=r"(?s)dockerd on host B: ended before it was ready.*unknown flag: --no-such"):
        two.start_engine("B", "--no-such")
    two.start_engine("B")


def test_reboot_ends_containers_and_keeps_them_on_disk(two: Lab) -> None:
    two.run("A", "docker", "run", "-d", "--restart", "always", "--name", "again", "nginx")
    two.run("A", "docker", "run", "-d", "--name", "once", "nginx")
    two.run("A", "docker", "pause", "once")
    two.reboot("A")
    process.until("the container is back", lambda: containers(two, "A") == {"again"}, 15)
    assert "once" in two.run("A", "docker", "ps", "-a").stdout
    two.run("A", "docker", "rm", "-f", "again", "once")


@pytest.mark.alone  # a namespace's number is soon that of another lab's
def test_the_template_stays_whole_and_down_leaves_nothing() -> None:
    lab = Lab.up(simple(1, agents=False, engines=True), f"test-{os.getpid()}-engine", owned=True)
    (own,) = images.template(lambda _: None).glob("overlay2/*/diff/usr/sbin/nginx")
    lab.run("A", "docker", "run", "--rm", "nginx", "sh", "-c", "echo spoiled >/usr/sbin/nginx")
    lab.run("A", "docker", "rmi", "nginx")
    assert own.stat().st_size > 100_000
    lab.run("A", "docker", "run", "-d", "-e", "MYSQL_ROOT_PASSWORD=x", "--name", "mysql", "mysql")
    # The engine gives up on freezing processes that are just being made (runc #4388): whoever asks is to ask again.
    process.until("mysql is frozen", lambda: not lab.run("A", "docker", "pause", "mysql", check=False).returncode, 30)
    nets = {holder.net for holder in lab.state.holders.values()}
    state = lab.state
    lab.down()
    assert not list(process.members(nets))
    assert not state.disks.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{lab.name}"))


def seen_engine(state: State) -> bool:
    """Whether the engine of A has been started, ready or not."""
    return "A" in state.holders and engines.is_running(state, "A")


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.2])
def test_a_killed_up_with_engines_is_replaced_by_the_next_up(delay_s: float) -> None:
    name = f"test-{os.getpid()}-killed"
    words = [sys.executable, "-m", "plait.cli.lab", "up", "--hosts", "1", "--no-agents", "--name", name]
    up = subprocess.Popen([*words, "--docker"], stderr=subprocess.DEVNULL)
    process.until("dockerd is started", lambda: any(seen_engine(state) for state in list_labs() if state.name == name), 60, every_s=0.005)
    time.sleep(delay_s)
    up.kill()
    up.wait(5)
    subprocess.run(words, check=True, timeout=60, stderr=subprocess.DEVNULL)
    lab = Lab(name)
    processes = lab.run("A", "ps", "-e", "-o", "comm=").stdout.split()
    assert "dockerd" not in processes
    assert "containerd" not in processes
    lab.down()
