# SPDX-License-Identifier: Apache-2.0
"""CNI with what really uses it: Podman 4.3, `ctr --cni` of containerd, a runner as libcni is one, Debian's plug-ins in a chain."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.cni import Refused, Runner

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]
ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ("/opt/cni/bin", "/usr/lib/cni")
PODMAN = """[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
"""
TAR = "/var/lib/plait-lab/nginx.tar"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A has Docker and Podman, B neither; agents of both serve CNI because the directory is there. Networks `default`, `mesh`, `red`, and
    `dual` with IPv6."""
    lab = make_lab(toml='[[host]]\nname = "A"\nengine = true\n[[host]]\nname = "B"\n')
    for host in lab.hosts:
        lab.run(host, "mkdir", "-p", "/etc/cni/net.d", "/etc/containers")
        lab.path(host, "/etc/containers/containers.conf").write_text(PODMAN)
        lab.kill_agent(host)
        lab.start_agent(host)
    for network in ("mesh", "red"):
        lab.run("A", "plait", "network", "create", network)
    lab.run("A", "plait", "network", "create", "dual", "--subnet", "10.50.0.0/16", "--subnet6", "fd00:50::/64")
    for host in lab.hosts:
        until(f"the configurations of {host}", lambda host=host: len(conflists(lab, host)) == 4, 5)
    return lab


@pytest.fixture(scope="module")
def podman(lab: Lab) -> Callable[..., str]:
    """`podman(word, …)` on A, with the image nginx."""
    lab.run("A", "docker", "save", "nginx", "-o", TAR, timeout_s=60)
    lab.run("A", "podman", "load", "-i", TAR, timeout_s=60)
    return lambda *words: lab.run("A", "podman", *words, timeout_s=60).stdout.strip()


@pytest.fixture(scope="module", params=["python", "c"])
def runner(request: pytest.FixtureRequest, lab: Lab) -> Runner:
    """On A, with the list that the agent wrote for `mesh`; the plug-in in Python (as the agent installed it), or in C."""
    path = PLUGINS
    if request.param == "c":
        if shutil.which("cc") is None:
            pytest.skip("the build in C is optional, and this machine has no C compiler")
        subprocess.run(["make", "-s", "build/plait-cni"], cwd=ROOT, check=True, timeout=60)
        lab.run("A", "mkdir", "-p", "/var/lib/plait-lab/c")
        shutil.copy(ROOT / "build/plait-cni", lab.path("A", "/var/lib/plait-lab/c/plait"))
        path = ("/var/lib/plait-lab/c", "/usr/lib/cni")
    return Runner(lab, "A", read(lab, "A", "50-plait-mesh.conflist"), path)


def conflists(lab: Lab, host: str) -> list[str]:
    return sorted(path.name for path in lab.path(host, "/etc/cni/net.d").iterdir() if path.name.startswith("50-plait-"))


def read(lab: Lab, host: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.path(host, f"/etc/cni/net.d/{name}").read_text())
    return found


def shown(lab: Lab, host: str, *words: str) -> Any:
    return json.loads(lab.run(host, "plait", *words, "--json").stdout)


def running(lab: Lab, host: str) -> dict[str, Any]:
    """Addresses by network of what runs on a host, by name."""
    return {row["name"]: row["addresses"] for row in shown(lab, host, "ps") if row["node"] == host}


def netns(lab: Lab, name: str) -> str:
    lab.run("A", "ip", "netns", "add", name)
    return f"/run/netns/{name}"


def inside(lab: Lab, name: str, *words: str) -> str:
    return lab.run("A", "nsenter", f"--net=/run/netns/{name}", *words).stdout


def links(lab: Lab) -> set[str]:
    return {name for name in lab.run("A", "ls", "/sys/class/net").stdout.split() if name.startswith("pl-e")}


def page(lab: Lab, host: str, url: str, *within: str) -> str:
    return lab.run(host, *within, "curl", "-sS", "-m", "5", "--retry", "5", "--retry-connrefused", url, timeout_s=60).stdout


def narrow(lab: Lab, *within: str) -> list[str]:
    """Where a container on A has routes with the MTU of a way of 1400 bytes to."""
    lines = lab.run("A", *within, "ip", "-4", "route").stdout.splitlines()
    return sorted(line.split()[0] for line in lines if " mtu 1350" in line)


# --- a runner that does what libcni does


@pytest.mark.parametrize("version", ["0.3.1", "1.1.0"])
def test_the_life_of_an_attachment_in_the_oldest_and_the_newest_version(lab: Lab, runner: Runner, version: str) -> None:
    runner = Runner(lab, "A", {**runner.config, "cniVersion": version}, runner.path)
    path = netns(lab, "life")
    before = links(lab)
    try:
        result = runner.add("c1", path, args="IgnoreUnknown=1;K8S_POD_NAME=web", portMappings=[{"hostPort": 8099, "containerPort": 80}])
        address = result["ips"][0]["address"].partition("/")[0]
        assert result["cniVersion"] == version and f"inet {address}/32" in inside(lab, "life", "ip", "addr", "show", "eth0")
        assert lab.run("A", "dig", "+short", "@127.0.0.1", "web.mesh").stdout.strip() == address, "the name resolves when ADD returns"
        assert lab.run("B", "ping", "-c1", "-W2", address).returncode == 0
        assert [row["host_port"] for row in shown(lab, "A", "ports")] == [8099]
        if version != "0.3.1":
            runner.check("c1", path, result)
            inside(lab, "life", "ip", "addr", "flush", "dev", "eth0")
            with pytest.raises(Refused, match=f"it has no address {address}"):
                runner.check("c1", path, result)
        with pytest.raises(Refused, match="DEL comes before another ADD"):
            runner.add("c1", path)
        if version == "1.1.0":
            runner.status()
            runner.collect(("c1", "eth0"))
            assert running(lab, "A") == {"web": {"mesh": address}}
            runner.collect()
        else:
            runner.delete("c1", path, result)
        runner.delete("c1", "")
        assert running(lab, "A") == {} and links(lab) == before and shown(lab, "A", "ports") == []
    finally:
        lab.run("A", "ip", "netns", "del", "life")


def test_both_families(lab: Lab, runner: Runner) -> None:
    """ADD, CHECK, ranges, ports and DEL of an attachment with IPv6."""
    both = Runner(lab, "A", read(lab, "A", "50-plait-dual.conflist"), runner.path)
    path = netns(lab, "dual")
    asked: dict[str, Any] = {
        "ipRanges": [[{"subnet": "10.50.0.64/27"}], [{"subnet": "fd00:50::/64", "rangeStart": "fd00:50::48"}]],
        "portMappings": [{"hostPort": 8096, "containerPort": 80, "hostIP": "::"}],
    }
    lab.run("B", "plait", "run", "--name", "far-both", "--network", "dual")
    far = next(row for row in shown(lab, "B", "ps") if row["name"] == "far-both")
    server = lab.popen("A", "nsenter", f"--net={path}", "python3", "-m", "http.server", "80", "--bind", "::", "-d", "/usr/share/nginx/html")
    try:
        result = both.add("c1", path, **asked)
        assert [row["address"] for row in result["ips"]] == ["10.50.0.72/32", "fd00:50::48/128"]
        assert [row["dst"] for row in result["routes"]] == ["0.0.0.0/0", "::/0"]
        both.check("c1", path, result, **asked)
        for address in (far["addresses"]["dual"], far["addresses6"]["dual"]):
            assert " 0% packet loss" in inside(lab, "dual", "ping", "-c1", "-W2", address)
        assert lab.run("A", "dig", "+short", "AAAA", "@127.0.0.1", "c1.dual").stdout.strip() == "fd00:50::48"
        for number, host in enumerate("AB", 1):
            lab.run(host, "ip", "addr", "add", f"fd99::{number}/64", "dev", "eth0", "nodad")
        assert "nginx" in page(lab, "B", "http://[fd99::1]:8096/index.html")
        inside(lab, "dual", "ip", "-6", "route", "del", "default")
        with pytest.raises(Refused, match=r"made: the IPv6 default route is gone$"):
            both.check("c1", path, result, **asked)
        inside(lab, "dual", "ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global")
        with pytest.raises(Refused, match="it has no address fd00:50::48"):
            both.check("c1", path, result, **asked)
    finally:
        server.kill()
        server.wait()
        both.delete("c1", path, **asked)
        lab.run("A", "ip", "netns", "del", "dual")
        lab.run("B", "plait", "rm", "far-both")
        for number, host in enumerate("AB", 1):
            lab.run(host, "ip", "addr", "del", f"fd99::{number}/64", "dev", "eth0", check=False)
    assert running(lab, "A") == {} and shown(lab, "A", "ports") == []


def test_both_families_go_through_a_chain(lab: Lab, runner: Runner) -> None:
    """Debian's plug-ins take a result of two addresses, and hand it on."""
    plugins = [
        {"type": "plait", "network": "dual"},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.accept_redirects": "0"}},
    ]
    chain = Runner(lab, "A", {"cniVersion": "1.0.0", "name": "chain6", "plugins": plugins}, runner.path)
    path, ports = netns(lab, "chain6"), [{"hostPort": 8095, "containerPort": 80, "protocol": "tcp"}]
    try:
        result = chain.add("c1", path, portMappings=ports)
        assert [row["address"].partition("/")[2] for row in result["ips"]] == ["32", "128"]
        without_portmap = {
            **chain.config,
            "plugins": [plugins[0], plugins[2]],
        }  # portmap 1.1.1 looks for the rules of one family in the other
        Runner(lab, "A", without_portmap, runner.path).check("c1", path, result)
    finally:
        chain.delete("c1", path, portMappings=ports)
        lab.run("A", "ip", "netns", "del", "chain6")
    assert running(lab, "A") == {}


def test_a_namespace_that_goes_without_a_word_leaves_nothing(lab: Lab, runner: Runner) -> None:
    before, log = links(lab), lab.state.disks / "A" / "agent.log"
    refusals = log.read_text().count("kernel_refused")
    runner.add("lost", netns(lab, "lost"), portMappings=[{"hostPort": 8098, "containerPort": 80}])
    assert "lost" in running(lab, "A")
    lab.run("A", "ip", "netns", "del", "lost")
    until("what stood there is given back", lambda: "lost" not in running(lab, "A"), 15)
    assert links(lab) == before and shown(lab, "A", "ports") == []
    assert log.read_text().count("kernel_refused") == refusals, "nobody tried to make anything where the namespace was"


def test_an_agent_that_is_killed_leaks_nothing_and_loses_no_removal(lab: Lab, runner: Runner) -> None:
    before = links(lab)
    kept, gone = netns(lab, "kept"), netns(lab, "gone")
    try:
        result = runner.add("kept", kept)
        runner.add("gone", gone)
        lab.kill_agent("A")
        assert inside(lab, "kept", "ping", "-c1", "-W2", lab.address("B")), "the kernel goes on"
        with pytest.raises(Refused, match="does not answer"):
            runner.add("new", gone, "eth1")
        runner.delete("gone", gone)
        assert len(list(lab.path("A", "/var/lib/plait/cni-pending").iterdir())) == 1
        lab.start_agent("A")
        assert set(running(lab, "A")) == {"kept"} and len(links(lab)) == len(before) + 1
        assert not list(lab.path("A", "/var/lib/plait/cni-pending").iterdir())
        if runner.config["cniVersion"] != "0.3.1":
            runner.check("kept", kept, result)
        runner.delete("kept", kept)
        assert links(lab) == before
    finally:
        lab.run("A", "ip", "netns", "del", "kept")
        lab.run("A", "ip", "netns", "del", "gone")


def test_first_in_a_chain_with_portmap_and_tuning(lab: Lab, runner: Runner) -> None:
    """Debian's plug-ins take plait's result: portmap publishes to its address, tuning sets a sysctl of its interface."""
    plugins = [
        {"type": "plait", "network": "mesh"},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.accept_redirects": "0"}},
    ]
    chain = Runner(lab, "A", {"cniVersion": "1.0.0", "name": "chain", "plugins": plugins}, runner.path)
    path = netns(lab, "chain")
    ports = [{"hostPort": 8097, "containerPort": 80, "protocol": "tcp"}]
    server = lab.popen("A", "nsenter", f"--net={path}", "python3", "-m", "http.server", "80", "-d", "/usr/share/nginx/html")
    try:
        result = chain.add("c1", path, portMappings=ports)
        assert result["ips"][0]["address"].startswith("10.29.") and "sandbox" in result["interfaces"][1]
        assert "nginx" in page(lab, "B", f"http://{lab.address('A')}:8097/index.html")
        assert inside(lab, "chain", "cat", "/proc/sys/net/ipv4/conf/eth0/accept_redirects").strip() == "0"
        without_portmap = {**chain.config, "plugins": [plugins[0], plugins[2]]}  # portmap 1.1.1 looks for IPv6 rules that it did not make
        Runner(lab, "A", without_portmap, runner.path).check("c1", path, result)
    finally:
        server.kill()
        server.wait()
        chain.delete("c1", path, portMappings=ports)
        lab.run("A", "ip", "netns", "del", "chain")
    assert running(lab, "A") == {}


def test_behind_bridge_the_container_is_in_the_directory(lab: Lab, runner: Runner) -> None:
    bridge = {
        "type": "bridge",
        "bridge": "cni-test",
        "isGateway": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    config = {"cniVersion": "1.0.0", "name": "behind", "plugins": [bridge, {"type": "plait"}]}
    chain = Runner(lab, "A", config, runner.path)
    path = netns(lab, "behind")
    try:
        result = chain.add("c1", path, args="IgnoreUnknown=1;K8S_POD_NAME=shop")
        address = result["ips"][0]["address"].partition("/")[0]
        assert address.startswith("10.99.0.") and running(lab, "A") == {"shop": {"behind": address}}
        chain.check("c1", path, result)
    finally:
        chain.delete("c1", path)
        lab.run("A", "ip", "netns", "del", "behind")
        lab.run("A", "ip", "link", "del", "cni-test")
    assert running(lab, "A") == {}


# --- Podman


def test_podman_sees_the_networks_and_loses_those_that_go(lab: Lab, podman: Callable[..., str]) -> None:
    lab.run("B", "plait", "network", "create", "brief")
    rows = lambda: dict(line.split()[1:3] for line in podman("network", "ls").splitlines()[1:])  # noqa: E731
    until("podman lists it", lambda: rows().get("brief") == "plait", 5)
    assert rows() == {"default": "plait", "mesh": "plait", "red": "plait", "dual": "plait", "brief": "plait", "podman": "bridge"}
    lab.run("A", "plait", "network", "rm", "brief")
    until("podman lists it no more", lambda: "brief" not in rows(), 5)


def test_a_podman_container_is_published_named_and_keeps_its_address(lab: Lab, podman: Callable[..., str]) -> None:
    podman("run", "-d", "--name", "web", "--network", "mesh", "--network-alias", "www", "-p", "8080:80", "nginx")
    try:
        address = podman("inspect", "web", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
        assert running(lab, "A") == {"web": {"mesh": address}}
        assert podman("port", "web") == "80/tcp -> 0.0.0.0:8080"
        for url in (f"http://{lab.address('A')}:8080/", f"http://{address}/"):
            assert "Welcome to nginx!" in page(lab, "B", url)
        assert podman("exec", "web", "cat", "/etc/resolv.conf").splitlines()[:2] == ["search plait", "nameserver 10.29.0.1"]
        podman("run", "-d", "--name", "db", "--network", "mesh", "--ip", "10.29.0.99", "--mac-address", "02:11:22:33:44:55", "nginx")
        assert "Welcome" in page(lab, "A", "http://www/", "podman", "exec", "db")
        assert "10.29.0.99/32" in podman("exec", "db", "ip", "-4", "addr")
        assert lab.run("A", "plait", "publish", "db", "8081:80").stdout == "0.0.0.0:8081->80/tcp\n"
        assert "Welcome" in page(lab, "B", f"http://{lab.address('A')}:8081/"), "and by command while it runs"
        lab.run("A", "plait", "unpublish", "db", "8081")
        assert [row["host_port"] for row in shown(lab, "A", "ports")] == [8080]
        podman("restart", "-t", "0", "web")
        assert running(lab, "A")["web"] == {"mesh": address} and "Welcome" in page(lab, "B", f"http://{lab.address('A')}:8080/")
        podman("network", "connect", "red", "web")
        assert set(running(lab, "A")["web"]) == {"mesh", "red"}
        assert podman("exec", "web", "ip", "route", "show", "default").startswith("default via 10.29.0.1 ")
        podman("network", "disconnect", "red", "web")
        assert set(running(lab, "A")["web"]) == {"mesh"}
    finally:
        podman("rm", "-f", "-t", "0", "web", "db")
    assert running(lab, "A") == {} and shown(lab, "A", "ports") == []


def test_a_podman_container_has_both_families(lab: Lab, podman: Callable[..., str]) -> None:
    podman("run", "-d", "--name", "six", "--network", "dual", "nginx")
    try:
        seen = podman("inspect", "six", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}").split()
        row = next(row for row in shown(lab, "A", "ps") if row["name"] == "six")
        assert seen == [row["addresses"]["dual"], row["addresses6"]["dual"]]
        assert f"inet6 {seen[1]}/128" in podman("exec", "six", "ip", "-6", "addr", "show", "eth0")
        assert lab.run("B", "ping", "-c1", "-W2", seen[1]).returncode == 0
        podman("restart", "-t", "0", "six")
        assert next(row for row in shown(lab, "A", "ps") if row["name"] == "six")["addresses6"]["dual"] == seen[1]
    finally:
        podman("rm", "-f", "-t", "0", "six")


def test_podman_fails_cleanly_without_the_agent_and_forgets_no_network(lab: Lab, podman: Callable[..., str]) -> None:
    podman("run", "-d", "--name", "stays", "--network", "mesh", "nginx")
    lab.kill_agent("A")
    try:
        done = lab.run("A", "podman", "run", "--rm", "--network", "mesh", "nginx", "true", check=False, timeout_s=60)
        assert done.returncode == 126 and "the plait agent of this host does not answer" in done.stderr
        assert "mesh" in podman("network", "ls")
        podman("rm", "-f", "-t", "0", "stays")
    finally:
        lab.start_agent("A")
    assert running(lab, "A") == {}


# --- containerd


@pytest.fixture(scope="module")
def ctr(lab: Lab, podman: Callable[..., str]) -> Callable[..., str]:
    """What a command prints in a container of containerd."""
    program = ["ctr", "-a", "/run/docker/containerd/containerd.sock", "-n", "test"]
    lab.run("A", *program, "image", "import", TAR, timeout_s=60)

    def run(name: str, *command: str) -> str:
        return lab.run("A", *program, "run", "--rm", "--cni", "docker.io/library/nginx:latest", name, *command, timeout_s=60).stdout

    return run


def test_ctr_of_containerd(lab: Lab, ctr: Callable[..., str]) -> None:
    """Its DEL comes with an empty CNI_NETNS and without prevResult."""
    assert "inet 10.28." in ctr("one", "ip", "-4", "addr", "show", "eth0")
    assert running(lab, "A") == {} and not links(lab)


def test_ctr_gives_both_families(lab: Lab, ctr: Callable[..., str]) -> None:
    """It takes the first list of the directory: here one of the operator's."""
    first = {"cniVersion": "1.0.0", "name": "first", "plugins": [{"type": "plait", "network": "dual"}]}
    path = lab.path("A", "/etc/cni/net.d/10-first.conflist")
    path.write_text(json.dumps(first))
    try:
        found = ctr("two", "ip", "addr", "show", "eth0")
        assert "inet 10.50." in found and "inet6 fd00:50::" in found
    finally:
        path.unlink()
    assert running(lab, "A") == {} and not links(lab)


# --- all of them


def test_containers_of_all_engines_on_one_network_reach_each_other(lab: Lab, podman: Callable[..., str]) -> None:
    """Docker's and Podman's on A, a sandbox on A and one on B: each reaches each by name and by address."""
    until("docker has the network", lambda: "mesh" in lab.run("A", "docker", "network", "ls").stdout.split(), 10)
    lab.run("A", "docker", "run", "-d", "--name", "dock", "--network", "mesh", "nginx", timeout_s=60)
    podman("run", "-d", "--name", "pod", "--network", "mesh", "nginx")
    lab.run("A", "plait", "run", "--name", "near", "--network", "mesh")
    lab.run("B", "plait", "run", "--name", "far", "--network", "mesh")
    serve = ["python3", "-m", "http.server", "80", "-d", "/usr/share/nginx/html"]
    servers = [lab.popen(host, "plait", "exec", name, "--", *serve) for host, name in (("A", "near"), ("B", "far"))]
    within = {
        "dock": ("A", "docker", "exec", "dock"),
        "pod": ("A", "podman", "exec", "pod"),
        "near": ("A", "plait", "exec", "near", "--"),
        "far": ("B", "plait", "exec", "far", "--"),
    }
    try:
        addresses = {name: row["mesh"] for host in lab.hosts for name, row in running(lab, host).items()}
        assert set(addresses) == set(within)
        for one, (host, *words) in within.items():
            targets = " ".join(target for other in within if other != one for target in (other, addresses[other]))
            script = (
                f"for t in {targets}; do curl -sS -m 5 --retry 5 --retry-connrefused http://$t/index.html | grep -q nginx || echo $t; done"
            )
            assert lab.run(host, *words, "sh", "-c", script, timeout_s=60).stdout == "", f"{one} does not reach these"
        blocks = [f"{row['cidr']}" for row in shown(lab, "A", "network", "inspect", "mesh")["held"] if row["node"] == "B"]
        for mtu, wanted in ((1400, blocks), (1500, [])):
            lab.run("B", "ip", "link", "set", "eth0", "mtu", str(mtu))
            for one in ("dock", "pod", "near"):
                host, *words = within[one]
                until(f"{one} knows how narrow the way to B is", lambda w=words, n=wanted: narrow(lab, *w) == n, 15)
    finally:
        for server in servers:
            server.kill()
            server.wait()
        podman("rm", "-f", "-t", "0", "pod")
        lab.run("A", "docker", "rm", "-f", "dock")
        lab.run("A", "plait", "rm", "near")
        lab.run("B", "plait", "rm", "far")


@pytest.mark.parametrize("backend", ["hybrid", "direct", "wireguard"])
def test_containers_of_all_engines_have_both_families_whatever_carries_them(lab: Lab, podman: Callable[..., str], backend: str) -> None:
    """The network is made through Docker; each reaches each by both addresses, and by name in both families."""
    pools = ("--subnet", "10.60.0.0/16", "--subnet", "fd00:60::/64")
    made = ("network", "create", "-d", "plait", "--ipam-driver", "plait", "--ipv6", *pools, "-o", f"backend={backend}", "six")
    lab.run("A", "docker", *made, timeout_s=60)
    until("CNI has it", lambda: "50-plait-six.conflist" in conflists(lab, "A") and "50-plait-six.conflist" in conflists(lab, "B"), 10)
    lab.run("A", "docker", "run", "-d", "--name", "dock", "--network", "six", "nginx", timeout_s=60)
    podman("run", "-d", "--name", "pod", "--network", "six", "nginx")
    lab.run("B", "plait", "run", "--name", "far", "--network", "six")
    server = lab.popen(
        "B", "plait", "exec", "far", "--", "python3", "-m", "http.server", "80", "--bind", "::", "-d", "/usr/share/nginx/html"
    )
    within = {"dock": ("A", "docker", "exec", "dock"), "pod": ("A", "podman", "exec", "pod"), "far": ("B", "plait", "exec", "far", "--")}
    try:
        rows = {row["name"]: row for row in shown(lab, "A", "ps") if "six" in row["addresses"]}
        until(
            "the hosts found their way",
            lambda: lab.run("B", "ping", "-c1", "-W1", rows["dock"]["addresses6"]["six"], check=False).returncode == 0,
            20,
        )
        for one, (host, *words) in within.items():
            of = [rows[other] for other in within if other != one]
            targets = [target for row in of for target in (row["addresses"]["six"], f"[{row['addresses6']['six']}]")]
            asked = [*targets, *(f"-{family} {row['name']}" for row in of for family in (4, 6))]
            script = "\n".join(
                f"curl -sS -m 5 --retry 5 --retry-connrefused {to}/index.html | grep -q nginx || echo '{to}'" for to in asked
            )
            assert lab.run(host, *words, "sh", "-c", script, timeout_s=60).stdout == "", f"{one} does not reach these"
    finally:
        server.kill()
        server.wait()
        podman("rm", "-f", "-t", "0", "pod")
        lab.run("A", "docker", "rm", "-f", "dock")
        lab.run("B", "plait", "rm", "far")
        lab.run("A", "docker", "network", "rm", "six")
        until("CNI has it no longer", lambda: "50-plait-six.conflist" not in conflists(lab, "A"), 10)
