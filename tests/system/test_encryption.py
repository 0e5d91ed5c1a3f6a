# SPDX-License-Identifier: Apache-2.0
"""Encrypted networks on real hosts, with wireguard-go for the kernel's WireGuard: what is on the wire, what happens without keys, with
wrong ones, with processes that crash, and what outsiders can do. The judge of the wire is tcpdump in the namespace of the switch."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support import sandboxes
from tests.support.wireguard import needs_wireguard_go

from plait.lab import inside
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180), needs_wireguard_go]
MARKER = "MARKER-0123456789-MARKER"
OUTSIDER = "X"
HOSTS = """
[[host]]
name = "A"
[[host]]
name = "B"
[[host]]
name = "C"
[[host]]
name = "X"
agent = false
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(toml=HOSTS)
    made.run("A", "plait", "network", "create", "secret", "--backend", "wireguard")
    for host in "AB":
        made.run(host, "plait", "run", "--name", f"in-{host}", "--network", "secret")
    proved(made)
    return made


def address(lab: Lab, host: str) -> str:
    """Of the sandbox there."""
    return sandboxes.address(lab, f"in-{host}", "secret", host=host)


def status(lab: Lab, host: str) -> Any:
    return sandboxes.shown(lab, host, "status")


def path(lab: Lab, host: str, node: str) -> dict[str, Any]:
    """The encrypted path of `host` to `node`."""
    return next(row for row in status(lab, host)["paths"] if row["node"] == node and row["encrypted"])


def proved(lab: Lab) -> None:
    for host, node in (("A", "B"), ("B", "A")):
        until(f"{host} proves its tunnel to {node}", lambda host=host, node=node: path(lab, host, node)["encrypted"] == "proved", 30)


def conditions(lab: Lab, host: str, code: str) -> dict[str, str]:
    """What is wrong of that kind, subject -> text."""
    return {row["subject"]: row["text"] for row in status(lab, host)["conditions"] if row["code"] == code}


def within_sandbox(lab: Lab, host: str, *command: str) -> subprocess.CompletedProcess[str]:
    return sandboxes.inside(lab, host, f"in-{host}", *command)


def reaches(lab: Lab, host: str, to: str) -> bool:
    return sandboxes.pings(lab, host, f"in-{host}", to)


def marked_ping(lab: Lab, host: str, to: str, count: int = 5) -> None:
    """Echoes whose payload is the marker again and again (ping -p takes 16 bytes)."""
    pattern = MARKER[:16].encode().hex()
    within_sandbox(lab, host, "ping", f"-c{count}", "-i0.05", "-W1", "-s", "400", "-p", pattern, to)


@contextmanager
def captured(lab: Lab, file: Path) -> Iterator[None]:
    """Everything that passes on the ports of the switch goes into `file`."""
    words = ["tcpdump", "-i", "any", "-s0", "-U", "--immediate-mode", "-w", str(file)]
    dump = subprocess.Popen(inside.net_argv(lab.state.holders["lan"], words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    listening(dump)
    try:
        yield
        time.sleep(0.2)
    finally:
        dump.send_signal(signal.SIGINT)
        dump.communicate(timeout=5)


def listening(dump: subprocess.Popen[str]) -> None:
    """Wait until a tcpdump says that it is."""
    assert dump.stderr is not None
    for line in dump.stderr:
        if "listening" in line:
            return
    raise AssertionError(f"tcpdump ended: {dump.wait(5)}")


def shown(file: Path, *expression: str) -> list[str]:
    """The packets of a capture that an expression selects, a line each."""
    return subprocess.run(["tcpdump", "-nn", "-r", str(file), *expression], capture_output=True, text=True, check=True).stdout.splitlines()


def wireguard_pid(lab: Lab, host: str) -> int:
    return int(lab.run(host, "pgrep", "-fx", "wireguard-go pl-wg").stdout)


def counted(lab: Lab, host: str) -> int:
    """Packets that the guarding chains of `host` dropped."""
    text = "".join(lab.run(host, "nft", "list", "chain", "inet", "plait", chain).stdout for chain in ("raw", "clear_out"))
    return sum(int(packets) for packets in re.findall(r"counter packets (\d+)", text))


def test_on_the_wire_there_is_nothing_but_the_tunnel(lab: Lab, tmp_path: Path) -> None:
    """A control first: the same bytes over a plain network are found by the same capture."""
    file, plain = tmp_path / "secret.pcap", tmp_path / "plain.pcap"
    with captured(lab, file):
        marked_ping(lab, "A", address(lab, "B"))
        marked_ping(lab, "B", address(lab, "A"))
    with captured(lab, plain):
        pattern = MARKER[:16].encode().hex()
        lab.run("A", "ping", "-c3", "-i0.05", "-s", "400", "-p", pattern, lab.address("B"))
    assert plain.read_bytes().count(MARKER[:16].encode()) > 0
    assert file.read_bytes().count(MARKER[:16].encode()) == 0
    net = "net 10.29.0.0/16"
    assert shown(file, "udp port 7472") and not shown(file, net)
    assert not [line for line in shown(file, "udp port 4789") if "10.29." in line], "the plain tunnel carries none of it"


def test_the_largest_packet_passes_and_no_larger(lab: Lab) -> None:
    """1500 less 60 for WireGuard over IPv4; 28 are the heads of the echo."""
    to = address(lab, "B")
    assert within_sandbox(lab, "A", "ping", "-c1", "-W2", "-M", "do", "-s", "1412", to).returncode == 0
    assert within_sandbox(lab, "A", "ping", "-c1", "-W2", "-M", "do", "-s", "1413", to).returncode != 0


def test_status_says_what_is_proved_and_how_old_the_handshake_is(lab: Lab) -> None:
    until("the tunnel is proved", lambda: path(lab, "A", "B")["encrypted"] == "proved", 10)
    row = path(lab, "A", "B")
    assert row["backend"] == "wireguard" and row["mtu"] == 1440 and row["error"] == ""
    assert 0 <= time.time() - row["handshake"] < 200
    page = lab.run("A", "plait", "status", check=False).stdout
    assert re.search(r"B \(wireguard, mtu 1440, encrypted proved, handshake \d+", page), page
    assert lab.run("A", "stat", "-c", "%a", "/var/lib/plait/pl-wg.key").stdout.strip() == "600"


def test_the_private_key_is_in_no_log_plan_or_record(lab: Lab) -> None:
    for host in "AB":
        private = lab.path(host, "/var/lib/plait/pl-wg.key").read_text().strip().encode()
        hexadecimal = subprocess.run(["base64", "-d"], input=private, capture_output=True, check=True).stdout
        log = (lab.state.disks / host / "agent.log").read_bytes()
        plan = lab.run(host, "plait", "plan").stdout.encode()
        state = lab.path(host, "/var/lib/plait").rglob("*")
        stored = b"".join(file.read_bytes() for file in state if file.is_file() and file.suffix != ".key")
        for secret in (private, hexadecimal, hexadecimal.hex().encode()):
            assert secret not in log and secret not in plan and secret not in stored


@contextmanager
def pinging(lab: Lab, host: str, to: str) -> Iterator[list[int]]:
    """Up to 100 echoes a second all the while; afterwards the list holds the numbers of those that came back."""
    words = ("ping", "-i0.01", "-n", to)
    enter = ("nsenter", f"--net=/run/plait/netns/in-{host}")
    process = lab.popen(host, *enter, *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until("ping runs", lambda: lab.run(host, "pgrep", "-fx", " ".join(words), check=False).returncode == 0, 10)
    came: list[int] = []
    try:
        yield came
    finally:
        lab.run(host, "pkill", "-INT", "-fx", " ".join(words), check=False)
        text, _ = process.communicate(timeout=10)
        came += [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", text)]
        assert came, text


def whole(came: list[int], least: int) -> bool:
    """None is missing up to the last that came (one more may have been on its way when ping was stopped)."""
    return len(came) >= least and sorted(came) == list(range(1, max(came) + 1))


def test_a_killed_agent_loses_no_packet_and_the_next_one_takes_the_process_over(lab: Lab) -> None:
    pid = wireguard_pid(lab, "A")
    with pinging(lab, "A", address(lab, "B")) as came:
        lab.kill_agent("A")
        time.sleep(1)
        lab.start_agent("A")
        time.sleep(1)
    assert whole(came, 100), came
    assert wireguard_pid(lab, "A") == pid
    assert lab.run("A", "plait", "plan", "--diff").stdout.strip() == ""


def test_a_crashed_process_is_started_again_and_counted(lab: Lab) -> None:
    pid = wireguard_pid(lab, "B")
    lab.run("B", "kill", "-KILL", str(pid))
    to = address(lab, "A")
    until("the tunnel works again", lambda: reaches(lab, "B", to), 20)
    assert wireguard_pid(lab, "B") != pid
    proved(lab)
    metrics = lab.run("B", "curl", "-sS", "http://127.0.0.1:8500/v1/agent/metrics?format=prometheus").stdout
    assert "plait_encrypted_repairs_total 1.0\n" in metrics


def key_files(lab: Lab, host: str) -> list[str]:
    return lab.run(host, "sh", "-c", "ls /var/lib/plait/pl-wg*").stdout.split()


def test_keys_are_rotated_every_few_seconds_under_load_without_losing_a_packet(lab: Lab) -> None:
    """100 echoes a second both ways, and a rotation every 5 s (or as long as one takes here), of both ends and of both at once."""

    def key(node: str) -> str:
        return str(next(row["key"] for row in json.loads(lab.run("A", "plait", "keys", "ls", "--json").stdout) if row["node"] == node))

    proved(lab)
    seen = {(node, key(node)) for node in "AB"}
    with pinging(lab, "A", address(lab, "B")) as there, pinging(lab, "B", address(lab, "A")) as back:
        for nodes in ("A", "B", "AB"):
            began = time.monotonic()
            for node in nodes[1:]:
                lab.run("A", "plait", "keys", "rotate", node, "--timeout", "0")
            lab.run("A", "plait", "keys", "rotate", nodes[0], timeout_s=100)
            until("both have ended", lambda: "rotating" not in lab.run("A", "plait", "keys", "ls").stdout, 60)
            seen |= {(node, key(node)) for node in "AB"}
            time.sleep(max(0.0, 5 - (time.monotonic() - began)))
    assert whole(there, 500), there
    assert whole(back, 500), back
    assert len(seen) == 6, "three keys of each"
    for host in "ABC":
        until(f"no spare device on {host}", lambda host=host: "pl-wgs" not in left(lab, host), 10)
        until(f"its key is gone on {host}", lambda host=host: key_files(lab, host) == ["/var/lib/plait/pl-wg.key"], 10)
    assert "key_rotation_alone" not in (lab.state.disks / "A" / "agent.log").read_text()


FORGED = """
import socket, struct, sys
from ipaddress import IPv4Address as A
def head(src, dst, proto, size):
    h = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, 1, 0, 64, proto, 0, A(src).packed, A(dst).packed)
    total = sum(struct.unpack("!10H", h)); total = (total >> 16) + (total & 0xffff); total += total >> 16
    return h[:10] + struct.pack("!H", ~total & 0xffff) + h[12:]
kind, src, dst, via, mac, vni = sys.argv[1:]
data = struct.pack("!HHHH", 5000, 5000, 8 + 400, 0) + (b"FORGED-BY-AN-OUTSIDER-16" * 17)[:400]
packet = head(src, dst, 17, len(data)) + data
if kind == "vxlan":
    frame = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("020000000001") + b"\\x08\\x00" + packet
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(struct.pack("!BBHI", 8, 0, 0, int(vni) << 8) + frame, (via, 4789))
else:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind(("eth0", 0x0800))
        s.send(bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("020000000001") + b"\\x08\\x00" + packet)
"""


@pytest.mark.parametrize("kind", ["vxlan", "plain"])
@pytest.mark.parametrize("source", ["inside", "outside"])
def test_what_an_outsider_forges_is_dropped_and_counted(lab: Lab, kind: str, source: str) -> None:
    """A VXLAN packet for an encrypted container, and one that is just routed there; with a source of the network and with another."""
    target = address(lab, "B")
    device = "pl-x1" if kind == "vxlan" else "eth0"
    mac = lab.run("B", "cat", f"/sys/class/net/{device}/address").stdout.strip()
    before = counted(lab, "B")
    sniffer = lab.popen(
        "B", "plait", "exec", "in-B", "--", "timeout", "2", "tcpdump", "-i", "eth0", "-nn", "-l", "udp port 5000",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    listening(sniffer)
    src = address(lab, "A") if source == "inside" else lab.address(OUTSIDER)
    for _ in range(3):
        lab.run(OUTSIDER, "python3", "-c", FORGED, kind, src, target, lab.address("B"), mac, "1")
    seen, _ = sniffer.communicate(timeout=10)
    assert "5000" not in seen, "it came through"
    assert counted(lab, "B") - before == 3
    until("status names it", lambda: bool(conditions(lab, "B", "clear-traffic")), 10)


CAREFUL = """add table inet careful {{
    chain gate {{
        type filter hook {hook} priority filter; policy drop;
        ct state established accept
        {name} {{ "lo", "pl-*" }} accept
        tcp dport {{ 7470, 7471 }} accept
        tcp sport {{ 7470, 7471 }} accept
    }}
}}"""


def past_the_link(lab: Lab, host: str, begins: str) -> bool:
    """Whether what `begins` sends comes into the sandbox of `host` without being sent by its link."""
    link = re.search(r"dev (pl-e\w+)", lab.run(host, "ip", "route", "get", address(lab, host)).stdout)
    assert link is not None
    sent = f"/sys/class/net/{link[1]}/statistics/tx_packets"
    before = int(lab.run(host, "cat", sent).stdout)
    told = within_sandbox(lab, begins, "ping", "-c20", "-i0.01", "-W1", address(lab, host))
    assert told.returncode == 0, told.stdout
    return int(lab.run(host, "cat", sent).stdout) < before + 10


def test_what_is_decrypted_goes_straight_into_the_sandbox_if_nobody_judges_what_its_host_receives(lab: Lab) -> None:
    until("it does", lambda: past_the_link(lab, "A", "B"), 10)
    lab.run("A", "kill", "-9", str(wireguard_pid(lab, "A")))
    until("the tunnel is back", lambda: reaches(lab, "B", address(lab, "A")), 15)
    until("it does by the new device", lambda: past_the_link(lab, "A", "B"), 10)
    lab.run("A", "nft", "add table inet careful; add chain inet careful c { type filter hook input priority 0; }")
    try:
        lab.run("A", "nft", 'add rule inet careful c iifname "eth9" drop')
        until("somebody may judge it", lambda: not past_the_link(lab, "A", "B"), 10)
    finally:
        lab.run("A", "nft", "delete table inet careful")
    until("nobody does any more", lambda: past_the_link(lab, "A", "B"), 10)


@pytest.mark.parametrize(("hook", "begins", "other"), [("input", "A", "B"), ("output", "B", "A")], ids=["input", "output"])
def test_a_host_that_lets_pass_what_is_established_keeps_its_tunnel(lab: Lab, hook: str, begins: str, other: str) -> None:
    """While nobody judges them the tunnel's packets are not tracked, as soon as somebody does they are."""

    def tracked() -> bool:
        return "7472" not in lab.run("A", "nft", "list chain inet plait raw_output").stdout

    until("A does not track the tunnel's packets", lambda: not tracked(), 10)
    lab.run("A", "nft", CAREFUL.format(hook=hook, name="iifname" if hook == "input" else "oifname"))
    try:
        until("A does", tracked, 10)
        told = lab.run(begins, "plait", "exec", f"in-{begins}", "--", "ping", "-c5", "-i0.2", "-W1", address(lab, other), check=False)
        assert told.returncode == 0, told.stdout
    finally:
        lab.run("A", "nft", "delete table inet careful")
    until("A does not any more", lambda: not tracked(), 10)


def test_with_a_wrong_key_nothing_passes_and_status_says_since_when_and_with_whom(lab: Lab, tmp_path: Path) -> None:
    """B's key file is damaged and its device has another key: B says so, and everybody else that B is silent."""
    key, to = "/var/lib/plait/pl-wg.key", address(lab, "A")
    change = f"cp -p {key} /run/kept; echo damaged > {key}; wg genkey > /run/other; wg set pl-wg private-key /run/other; rm /run/other"
    lab.run("B", "sh", "-c", f"umask 077; {change}")
    try:
        file = tmp_path / "wrong.pcap"
        with captured(lab, file):
            assert lab.run("B", "ping", "-c2", "-W1", to, check=False).returncode != 0
        assert not shown(file, "net 10.29.0.0/16") and not shown(file, "udp port 4789 and greater 300")
        until("A misses B", lambda: "B" in conditions(lab, "A", "tunnel-silent"), 40)
        text = conditions(lab, "A", "tunnel-silent")["B"]
        assert "nothing comes back from B since 2" in text and "handshake" in text and "another key" in text, text
        assert path(lab, "A", "B")["encrypted"] == "unproved"
        assert key in conditions(lab, "B", "kernel-refused")["link pl-wg"]
    finally:
        lab.run("B", "mv", "/run/kept", key)
    proved(lab)
    until("the condition ends", lambda: not conditions(lab, "A", "tunnel-silent"), 15)


def test_a_blocked_port_is_named_and_a_key_that_somebody_set_is_put_right(lab: Lab) -> None:
    lab.run("B", "nft", "add table inet block; add chain inet block in { type filter hook input priority 0; }")
    lab.run("B", "nft", "add rule inet block in udp dport 7472 drop")
    try:
        until("A misses B", lambda: "B" in conditions(lab, "A", "tunnel-silent"), 40)
        assert f"UDP to {lab.address('B')}:7472 is blocked" in conditions(lab, "A", "tunnel-silent")["B"]
    finally:
        lab.run("B", "nft", "delete table inet block")
    proved(lab)
    before = lab.run("B", "wg", "show", "pl-wg", "public-key").stdout
    lab.run("B", "sh", "-c", "umask 077; wg genkey > /run/other; wg set pl-wg private-key /run/other; rm /run/other")
    until("B has its key again", lambda: lab.run("B", "wg", "show", "pl-wg", "public-key").stdout == before, 10)
    proved(lab)


def test_a_host_that_cannot_encrypt_is_named_and_has_no_way_out(lab: Lab, tmp_path: Path) -> None:
    """C has no wireguard-go: its containers get ICMP's unreachable, and nobody sends there in clear."""
    lab.kill_agent("C")
    lab.run("C", "sh", "-c", "mkdir -p /run/nothing && mount --bind /run/nothing /dev/net")
    lab.run("C", "sh", "-c", "ip link del pl-wg")
    lab.start_agent("C")
    try:
        until("C is named", lambda: "secret" in conditions(lab, "C", "kernel-lacks"), 10)
        assert "apt install wireguard-go" in conditions(lab, "C", "kernel-lacks")["secret"]
        lab.run("C", "plait", "run", "--name", "in-C", "--network", "secret")
        file = tmp_path / "without.pcap"
        with captured(lab, file):
            refused = within_sandbox(lab, "C", "ping", "-c1", "-W5", address(lab, "A"))
            within_sandbox(lab, "A", "ping", "-c1", "-W1", address(lab, "C"))
        assert "Unreachable" in refused.stdout
        assert not shown(file, "net 10.29.0.0/16") and not shown(file, "udp port 4789 and greater 140")
        row = path(lab, "A", "C")
        assert row["encrypted"] == "unproved" and "C cannot encrypt" in row["error"]
    finally:
        lab.run("C", "umount", "/dev/net")
    until("C finds its program", lambda: not conditions(lab, "C", "kernel-lacks"), 30)
    until("C is reached", lambda: reaches(lab, "A", address(lab, "C")), 20)


def test_without_an_encrypted_network_there_is_no_process_and_after_down_nothing_at_all(make_lab: Callable[..., Lab]) -> None:
    lone = make_lab(hosts=1)
    assert left(lone, "A") == ""
    for _ in range(2):
        lone.run("A", "plait", "network", "create", "secret", "--backend", "wireguard")
        until("a tunnel", lambda: "pl-wg" in left(lone, "A"), 10)
        lone.run("A", "plait", "network", "rm", "secret")
        until("no tunnel", lambda: not left(lone, "A"), 10)
    lone.run("A", "plait", "network", "create", "secret", "--backend", "wireguard")
    until("a tunnel", lambda: "pl-wg" in left(lone, "A"), 10)
    lone.run("A", "plait", "down", "--purge")
    assert left(lone, "A") == ""
    assert lone.run("A", "sh", "-c", "nft list ruleset; ip rule; ls /var/lib/plait 2>/dev/null", check=False).stdout.count("plait") == 0


def left(lab: Lab, host: str) -> str:
    """Traces of tunnels: process, device, socket."""
    look = "pgrep -f '^wireguard-go'; ls /sys/class/net | grep pl-wg; ls -d /var/run/wireguard /var/run/wireguard/*; wg show interfaces"
    return lab.run(host, "sh", "-c", f"({look}) 2>/dev/null", check=False).stdout.strip()
