# SPDX-License-Identifier: Apache-2.0
"""Real packets between bare sandboxes on three hosts: reach, isolation, ports, names, and everything put back after harm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from tests.support.sandboxes import shown

from plait.lab.lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
API = ("curl", "-sS", "--unix-socket", "/run/plait/plait.sock")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(hosts=3)


@pytest.fixture(autouse=True)
def empty_hosts(lab: Lab) -> Iterator[None]:
    """Every test begins and ends without sandboxes."""
    yield
    for host in lab.hosts:
        names = [row["name"] for row in shown(lab, host, "ps") if row["node"] == host]
        if names:
            lab.run(host, "plait", "rm", *names)


def run(lab: Lab, host: str, name: str, *options: str) -> str:
    """Make a sandbox without a command; returns its address."""
    lab.run(host, "plait", "run", "--name", name, *options)
    row = next(row for row in shown(lab, host, "ps") if row["name"] == name and row["node"] == host)
    return next(iter(row["addresses"].values()))


def inside(lab: Lab, host: str, name: str, command: str) -> bool:
    """Whether a shell command succeeds in a sandbox."""
    return lab.run(host, "plait", "exec", name, "--", "sh", "-c", command, check=False).returncode == 0


def pings(lab: Lab, host: str, name: str, address: str, *options: str) -> bool:
    return inside(lab, host, name, f"ping -c1 -W1 {' '.join(options)} {address}")


def within(seconds: float, condition: Callable[[], bool]) -> float:
    """Seconds until the condition holds; fails the test if it does not in time (with room for a loaded machine)."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds * 3, f"not within {seconds} s, nor three times that"
        time.sleep(0.02)
    return time.monotonic() - started


def resolves(lab: Lab, host: str, name: str) -> str:
    return lab.run(host, "dig", "+short", "+time=1", "+tries=1", "@127.0.0.1", name, check=False).stdout.strip()


def answers(lab: Lab, host: str, name: str, address: str) -> bool:
    """Whether `host` answers the name with exactly this address ("": not at all)."""
    return resolves(lab, host, name) == address


def server(lab: Lab, host: str, name: str, port: int) -> subprocess.Popen[str]:
    """A web server in a sandbox that answers with the client's address."""
    script = (
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        " def do_GET(s):\n  b=s.client_address[0].encode(); s.send_response(200)\n"
        "  s.send_header('Content-Length',str(len(b))); s.end_headers(); s.wfile.write(b)\n"
        f" def log_message(s,*a): pass\nh.ThreadingHTTPServer(('',{port}),H).serve_forever()\n"
    )
    process = lab.popen(host, "plait", "exec", name, "--", "python3", "-c", script, stdout=subprocess.DEVNULL, text=True)
    within(3, lambda: inside(lab, host, name, f"ss -ltn | grep -q ':{port} '"))
    return process


def stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    process.wait(5)


def fetch(lab: Lab, host: str, url: str, name: str = "") -> str:
    words = ["curl", "-sS", "-m", "2", url]
    return lab.run(host, *(["plait", "exec", name, "--", *words] if name else words), check=False).stdout


def test_sandboxes_on_different_hosts_reach_each_other_with_the_largest_packet_and_no_larger(lab: Lab) -> None:
    a, b = run(lab, "A", "a"), run(lab, "B", "b")
    assert pings(lab, "A", "a", b, "-s 1422", "-M do") and pings(lab, "B", "b", a, "-s 1422", "-M do")
    assert not pings(lab, "A", "a", b, "-s 1423", "-M do")
    assert pings(lab, "A", "a", b, "-s 10000")
    assert lab.run("C", "ping", "-c1", "-W1", a, check=False).returncode == 0, "the host itself reaches containers"


def test_networks_are_kept_apart_and_internal_ones_have_no_way_out(lab: Lab) -> None:
    lab.run("A", "plait", "network", "create", "red")
    lab.run("B", "plait", "network", "create", "blue", "--internal")
    try:
        r1, r2 = run(lab, "A", "r1", "--network", "red"), run(lab, "B", "r2", "--network", "red")
        b1, b2 = run(lab, "A", "b1", "--network", "blue"), run(lab, "C", "b2", "--network", "blue")
        plain = run(lab, "C", "plain")
        assert pings(lab, "A", "r1", r2) and pings(lab, "A", "b1", b2)
        for host, name, target in (("A", "r1", b1), ("A", "r1", b2), ("C", "b2", r1), ("B", "r2", plain), ("C", "plain", r1)):
            assert not pings(lab, host, name, target), f"{name} reaches {target} of another network"
        assert pings(lab, "A", "r1", "198.18.0.2"), "out by NAT"
        assert not pings(lab, "A", "b1", "198.18.0.2")
        with pytest.raises(Exception, match="r1 on A"):
            lab.run("C", "plait", "network", "rm", "red")
    finally:
        for host, names in (("A", ("r1", "b1")), ("B", ("r2",)), ("C", ("b2", "plain"))):
            lab.run(host, "plait", "rm", *names, check=False)
        within(3, lambda: lab.run("A", "plait", "network", "rm", "red", check=False).returncode == 0)
        within(3, lambda: lab.run("A", "plait", "network", "rm", "blue", check=False).returncode == 0)


def test_a_full_pool_is_refused_at_the_client_with_its_holders(lab: Lab) -> None:
    lab.run("A", "plait", "network", "create", "tiny", "--subnet", "10.99.0.0/28")
    for number in range(13):
        run(lab, "A", f"t{number}", "--network", "tiny")
    refused = lab.run("A", "plait", "run", "--name", "t13", "--network", "tiny", check=False)
    assert refused.returncode == 1
    assert "10.99.0.0/28" in refused.stderr and "13 usable" in refused.stderr and "A: 4 blocks" in refused.stderr
    lab.run("A", "plait", "rm", "t7")
    assert run(lab, "A", "t13", "--network", "tiny")
    lab.run("A", "plait", "rm", *(f"t{n}" for n in range(14) if n != 7))
    within(3, lambda: lab.run("A", "plait", "network", "rm", "tiny", check=False).returncode == 0)


def test_an_address_sticks_to_its_name_and_a_chosen_one_is_given_once(lab: Lab) -> None:
    first = run(lab, "B", "web")
    lab.run("B", "plait", "rm", "web")
    assert run(lab, "B", "other") != first
    assert run(lab, "B", "web") == first
    chosen = re.sub(r"\d+$", "77", first)
    assert run(lab, "B", "fixed", "--ip", chosen) == chosen
    again = lab.run("B", "plait", "run", "--name", "twin", "--ip", chosen, check=False)
    assert again.returncode == 1 and "in use by 'fixed'" in again.stderr


def test_names_come_and_go_on_every_host(lab: Lab) -> None:
    address = run(lab, "A", "web")
    for host in "ABC":
        within(1, partial(answers, lab, host, "web", address))
        assert resolves(lab, host, "WEB.plait") == address
    run(lab, "C", "asks")
    assert inside(lab, "C", "asks", f"getent hosts web | grep -q {address}"), "inside a sandbox, without being told"
    assert "NXDOMAIN" in lab.run("B", "dig", "@127.0.0.1", "nobody").stdout
    nodata = lab.run("B", "dig", "@127.0.0.1", "web", "AAAA").stdout
    assert "NOERROR" in nodata and "ANSWER: 0" in nodata
    lab.run("A", "plait", "rm", "web")
    for host in "ABC":
        within(1, partial(answers, lab, host, "web", ""))


def test_published_ports(lab: Lab) -> None:
    web = run(lab, "A", "web", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "80")
    far = run(lab, "B", "far")
    serving = server(lab, "A", "web", 80)
    try:
        ports = {row["host_port"]: row for row in shown(lab, "C", "ports")}
        free = next(port for port in ports if port not in (8080, 8081))
        for url in ("http://localhost:8080", "http://127.0.0.1:8081", "http://198.18.0.1:8080", f"http://127.0.0.1:{free}"):
            assert fetch(lab, "A", url), f"{url} from the host itself"
        assert fetch(lab, "B", "http://198.18.0.1:8080") == "198.18.0.2", "the client's address is kept"
        assert not fetch(lab, "B", "http://198.18.0.1:8081"), "published on loopback only"
        assert fetch(lab, "A", "http://198.18.0.1:8080", "web"), "hairpin: its own published port"
        assert fetch(lab, "B", f"http://{web}", "far") == far
        neighbour = run(lab, "A", "near")
        assert fetch(lab, "A", "http://198.18.0.1:8080", "near") == neighbour
        taken = lab.run("A", "plait", "run", "--name", "second", "-p", "8080:80", check=False)
        assert taken.returncode == 1 and "published for 'web'" in taken.stderr
        listener = lab.popen("A", "python3", "-m", "http.server", "9099", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        within(3, lambda: lab.run("A", "sh", "-c", "ss -ltn | grep -q ':9099 '", check=False).returncode == 0)
        busy = lab.run("A", "plait", "run", "--name", "third", "-p", "9099:80", check=False)
        assert busy.returncode == 1 and "python3 (pid" in busy.stderr
        stop(listener)
        assert {row["name"] for row in shown(lab, "A", "ps") if row["node"] == "A"} == {"web", "near"}, "a refusal leaves nothing"
    finally:
        stop(serving)
    lab.run("A", "plait", "rm", "web")
    assert not fetch(lab, "B", "http://198.18.0.1:8080")


HARM = {
    "all nft tables flushed": "nft flush ruleset",
    "the tunnel deleted": "ip link del pl-x1",
    "the routes deleted": "ip route flush proto 112",
    "the tunnel's MAC changed": "ip link set pl-x1 address 02:00:00:00:00:55",
    "the tunnel renamed": "ip link set pl-x1 down; ip link set pl-x1 name ens9; ip link set ens9 up",
    "the sandbox's link renamed": "l=$(ip -br link | grep -o 'pl-e[0-9a-f]*' | head -1); ip link set $l down; ip link set $l name ens9",
    "the tunnel set down": "ip link set pl-x1 down",
    "the neighbours deleted": "ip neigh flush dev pl-x1 nud permanent",
    "the sandbox's link deleted": "ip link del $(ip -br link | grep -o 'pl-e[0-9a-f]*' | head -1)",
}


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_repaired_within_a_second_and_nothing_foreign_is_touched(lab: Lab, harm: str) -> None:
    run(lab, "A", "a")
    target = run(lab, "B", "b")
    lab.run("A", "sh", "-c", "ip route replace 10.200.0.0/16 dev eth0")
    assert pings(lab, "A", "a", target)
    lab.run("A", "sh", "-c", HARM[harm])
    took = within(1, lambda: pings(lab, "A", "a", target, "-W 0.2"))
    print(f"{harm}: {took:.2f} s")
    within(1, lambda: shown(lab, "A", "plan", "--diff") == [])
    assert "10.200.0.0/16" in lab.run("A", "ip", "route").stdout
    lab.run("A", "ip", "route", "del", "10.200.0.0/16")
    assert lab.run("A", "plait", "status", check=False).returncode == 0


def test_a_foreign_chain_that_drops_is_named_with_the_way_out_and_left_alone(lab: Lab) -> None:
    run(lab, "A", "a")
    target = run(lab, "B", "b")
    chain = "nft 'add table ip other; add chain ip other forward { type filter hook forward priority 0; policy drop; }'"
    lab.run("A", "sh", "-c", chain)
    try:
        within(2, lambda: not pings(lab, "A", "a", target))
        assert not short_ways(lab), "nothing goes round rules of others"
        within(6, lambda: lab.run("A", "plait", "status", check=False).returncode == 1)
        said = lab.run("A", "plait", "status", check=False).stdout
        assert "ip other forward" in said and 'oifname "pl-*" accept' in said
        for side in "io":
            lab.run("A", "nft", f'insert rule ip other forward {side}ifname "pl-*" accept')
        assert pings(lab, "A", "a", target), "the rules that it names help"
        within(6, lambda: lab.run("A", "plait", "status", check=False).returncode == 0)
    finally:
        lab.run("A", "nft", "delete", "table", "ip", "other")
    within(2, lambda: short_ways(lab))


def short_ways(lab: Lab) -> bool:
    """Whether anything on A goes from device to device."""
    return " fwd " in lab.run("A", "nft", "list", "table", "netdev", "plait").stdout


def test_a_rule_of_the_administrator_holds_for_traffic_inside_a_network(lab: Lab) -> None:
    source, target = run(lab, "A", "a"), run(lab, "B", "b")
    assert pings(lab, "A", "a", target)
    lab.run("B", "nft", "add table inet admin; add chain inet admin fw { type filter hook forward priority 0; }")
    lab.run("B", "nft", f"add rule inet admin fw ip saddr {source} drop")
    try:
        within(2, lambda: not pings(lab, "A", "a", target))
    finally:
        lab.run("B", "nft", "delete", "table", "inet", "admin")
    within(2, lambda: pings(lab, "A", "a", target))


def test_a_killed_agent_loses_no_packet_of_running_sandboxes(lab: Lab) -> None:
    run(lab, "A", "a")
    target = run(lab, "B", "b")
    pinging = lab.popen("A", "plait", "exec", "a", "--", "ping", "-i", "0.01", "-c", "300", "-q", target, stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)
    for host in "AB":
        lab.kill_agent(host)
    time.sleep(0.3)
    for host in "BA":  # B starts while the store is away, from its own copy of the cluster
        lab.start_agent(host)
    out, _ = pinging.communicate(timeout=30)
    sent, received = (int(n) for n in re.findall(r"(\d+) packets transmitted, (\d+) received", out)[0])
    assert sent == 300 and received >= 297, out
    assert shown(lab, "A", "plan", "--diff") == []
    assert {row["name"] for row in shown(lab, "C", "ps")} == {"a", "b"}


def test_without_the_store_hosts_go_on_and_publish_afterwards(lab: Lab) -> None:
    old = run(lab, "B", "old")
    within(2, lambda: resolves(lab, "C", "old") == old)  # it may just be finding the store again
    lab.kill_agent("A")
    try:
        fresh = run(lab, "B", "fresh")
        assert resolves(lab, "B", "fresh") == fresh and resolves(lab, "C", "old") == old
        other = run(lab, "C", "other")
        assert pings(lab, "B", "fresh", other) and pings(lab, "C", "other", old)
        status = lab.run("B", "plait", "status", check=False)
        within(5, lambda: "store-unreachable" in lab.run("B", "plait", "status", "--json", check=False).stdout)
        assert status.returncode in (0, 1)
    finally:
        lab.start_agent("A")
    within(3, lambda: resolves(lab, "C", "fresh") == fresh)
    within(3, lambda: lab.run("B", "plait", "status", check=False).returncode == 0)


def test_a_dead_hosts_names_go_and_come_back_with_it(lab: Lab) -> None:
    for number, host in enumerate("CA"):  # A carries the store: the others must find out for themselves
        name = f"gone{number}"
        address = run(lab, host, name)
        others = [other for other in "ABC" if other != host]
        for other in others:
            within(1, partial(answers, lab, other, name, address))
        for other in others:
            lab.cut(host, other)
        for other in others:
            took = within(10, partial(answers, lab, other, name, ""))
            print(f"{host} seen dead by {other} after {took:.1f} s")
        lab.heal()
        for other in others:
            within(5, partial(answers, lab, other, name, address))
        within(5, lambda: all(lab.run(h, "plait", "status", check=False).returncode == 0 for h in "ABC"))


def test_a_rebooted_host_comes_back_clean(lab: Lab) -> None:
    run(lab, "C", "lost")
    lab.run("C", "rm", "-f", "/var/lib/plait/replica.bin")  # as if power was lost before the copy was first written
    lab.reboot("C")
    within(3, lambda: lab.run("C", "plait", "status", check=False).returncode == 0)
    assert not [row for row in shown(lab, "A", "ps") if row["node"] == "C"], "bare sandboxes end with their host"
    a = run(lab, "A", "a")
    run(lab, "C", "again")
    assert pings(lab, "C", "again", a)


def traces(lab: Lab, host: str) -> tuple[set[str], set[str], set[str]]:
    """Endpoint links, host routes and namespaces of plait on a host."""
    links = set(re.findall(r"pl-[ep][0-9a-f]{10}", lab.run(host, "ip", "-br", "link").stdout))
    routes = set(re.findall(r"^10\.\d+\.\d+\.\d+(?= dev pl-e)", lab.run(host, "ip", "route").stdout, re.MULTILINE))
    netns = set(lab.run(host, "sh", "-c", "ls /run/plait/netns 2>/dev/null", check=False).stdout.split())
    return links, routes, netns


def test_killed_at_random_moments_of_attach_and_detach_nothing_leaks(lab: Lab) -> None:
    """Kills in the middle of attaches and detaches on B; `tests/unit/test_operations.py` does the same a hundred times without hosts."""
    for number in range(12):
        work = "; ".join(f"plait run --name k{number}x{n}; plait rm k{number}x{n}" for n in range(4))
        busy = lab.popen("B", "sh", "-c", f"({work}) >/dev/null 2>&1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.11 + 0.037 * number)
        lab.kill_agent("B")
        busy.wait(30)
        lab.start_agent("B")
    left = [row["name"] for row in shown(lab, "B", "ps") if row["node"] == "B"]
    if left:
        lab.run("B", "plait", "rm", *left)
    within(2, lambda: shown(lab, "B", "plan", "--diff") == [])
    assert traces(lab, "B") == (set(), set(), set())
    assert not [row for row in shown(lab, "B", "ipam")["blocks"] if row["node"] == "B" and row["used"]]


def test_a_thousand_concurrent_attaches_give_no_address_twice(lab: Lab) -> None:
    """In eight threads a host, through the admin socket; a hundred a host here, a thousand and two in the unit tests."""
    script = (
        "import json,sys\nfrom concurrent.futures import ThreadPoolExecutor as P\nfrom plait.client.admin import AdminClient\n"
        "def make(n):\n c=AdminClient(); return c.create_sandbox(f'm{n}')['address']\n"
        "with P(8) as pool: print(json.dumps(list(pool.map(make, range(100)))))\n"
    )

    def on(host: str) -> list[str]:
        return json.loads(lab.run(host, sys.executable, "-c", script, timeout_s=100).stdout)

    with ThreadPoolExecutor(3) as pool:
        addresses = [address for found in pool.map(on, "ABC") for address in found]
    assert len(addresses) == len(set(addresses)) == 300


def test_junk_on_every_door_leaves_the_agent_running(lab: Lab) -> None:
    before = lab.run("A", "cat", "/run/plait/agent.lock").stdout
    script = r"""
import os, socket
def throw(sock, data):
    try:
        sock.settimeout(0.3); sock.sendall(data); sock.recv(100)
    except OSError: pass
    finally: sock.close()
for size in (1, 3, 12, 100, 3000, 70000):
    data = os.urandom(size)
    for port in (8500, 7470, 7471, 53, 8600):
        throw(socket.create_connection(("127.0.0.1", port), 1), data)
        throw(socket.create_connection(("127.0.0.1", port), 1), b"GET /" + data)
    for port in (53, 8600):
        u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(data[:1400], ("127.0.0.1", port)); u.close()
    u = socket.socket(socket.AF_UNIX); u.connect("/run/plait/plait.sock")
    throw(u, b"POST /v1/sandboxes HTTP/1.1\r\nContent-Length: 9\r\n\r\n" + data)
"""
    lab.run("A", "python3", "-c", script, timeout_s=60)
    assert lab.run("A", "cat", "/run/plait/agent.lock").stdout == before
    assert lab.run("A", "plait", "status", check=False).returncode == 0
    assert lab.run("A", *API, "http://plait/v1/ready").stdout.startswith('{"ready": true')


def test_a_stranger_gets_nothing_and_a_token_is_good_once(lab: Lab) -> None:
    ask = "import socket; s=socket.create_connection(('198.18.0.1',7470),2); s.settimeout(3); s.sendall(b'hello\\n'*50); print(s.recv(100))"
    assert lab.run("B", "python3", "-c", ask, check=False).stdout.strip() in ("b''", "")
    token = lab.run("A", "plait", "token", "create").stdout.split()[-1]
    again = lab.run("B", "plait", "join", "198.18.0.1", "--token", token, check=False)
    assert again.returncode == 1 and "node 'B' of a cluster already" in again.stderr


def test_leaving_leaves_nothing(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=3)
    run(lab, "C", "stays")
    lab.run("C", "plait", "down", "--purge")
    assert "pl-" not in lab.run("C", "ip", "-br", "link").stdout
    assert "proto 112" not in lab.run("C", "ip", "route").stdout
    assert "plait" not in lab.run("C", "nft", "list", "ruleset").stdout
    assert lab.run("C", "sh", "-c", "ls -d /run/plait /etc/plait/* /var/lib/plait/* 2>/dev/null", check=False).stdout.split() == []
    within(10, lambda: [row["name"] for row in shown(lab, "A", "nodes")] == ["A", "B"])
