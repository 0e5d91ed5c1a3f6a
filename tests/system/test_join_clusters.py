# SPDX-License-Identifier: Apache-2.0
"""Two clusters that grew apart become one: conflicts are refused whole, crashes leave both whole, and no container notices."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from plait.client.admin import AdminClient
from plait.lab import inside
from plait.lab.agents import SOCKET
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
HOSTS = "ABCD"
TOML = "".join(f'[[host]]\nname = "{name}"\nagent = false\n' for name in HOSTS)
CONFIG = '[node]\nname = "{name}"\naddress = "{address}"\n[docker]\nenabled = false\n'
STOP = "/run/lab/enough"
PINGS = f"while [ ! -e {STOP} ]; do ping -q -i 0.005 -c 100 -W 1 $0; done"
KV = "http://127.0.0.1:8500/v1/kv"
NEIGHBOURS = ("neighbours-full", "neighbours-scarce")
"""All labs of a machine share the kernel's one table."""
READY = "/var/lib/plait/joining/ready.json"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A and B are one cluster, C and D another one with a network more. Both began with the same addresses."""
    lab = make_lab(toml=TOML)
    for host in HOSTS:
        lab.path(host, "/etc/plait/plait.toml").write_text(CONFIG.format(name=host, address=lab.address(host)))
    for first, second in ("AB", "CD"):
        lab.run(first, "plait", "init")
        lab.start_agent(first)
        lab.run(second, "plait", "join", lab.address(first), "--token", token(lab, first))
        lab.start_agent(second)
    client(lab, "C").create_network("mesh")
    until("D knows mesh", lambda: any(row["name"] == "mesh" for row in client(lab, "D").networks()), 10)
    for host, name in zip(HOSTS, ("web", "db", "shop", "log"), strict=True):
        lab.run(host, "plait", "run", "--name", name)
    for host in "CD":
        lab.run(host, "plait", "run", "--name", f"m{host}", "--network", "mesh")
    return lab


def client(lab: Lab, host: str) -> AdminClient:
    return AdminClient(lab.path(host, SOCKET), timeout_s=40)


def token(lab: Lab, host: str) -> str:
    return client(lab, host).create_token(300)["token"]


def nodes(lab: Lab, host: str) -> str:
    return "".join(row["name"] for row in client(lab, host).nodes() if row["alive"])


def addresses(lab: Lab, host: str) -> dict[str, str]:
    return {row["name"]: next(iter(row["addresses"].values())) for row in client(lab, host).ps()}


def join(lab: Lab, key: str, *more: str, host: str = "C") -> subprocess.CompletedProcess[Any]:
    return lab.run(host, "plait", "join", lab.address("A"), "--token", key, "--merge", *more, check=False, timeout_s=60)


def put(lab: Lab, host: str, key: str, value: str) -> None:
    assert lab.run(host, "curl", "-sS", "-X", "PUT", "-d", value, f"{KV}/{key}").stdout == "true"


def inside_of(host: str, name: str, *command: str) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/plait/netns/{name}", *command)


def reaches(lab: Lab, host: str, name: str, target: str) -> bool:
    return lab.run(host, *inside_of(host, name, "ping", "-c1", "-W1", target), check=False).returncode == 0


def resolves(lab: Lab, host: str, name: str, address: str) -> bool:
    return address in lab.run(host, "dig", "+short", "@127.0.0.1", f"{name}.plait", check=False).stdout.split()


def test_conflicts_are_listed_and_nothing_is_changed(lab: Lab) -> None:
    assert addresses(lab, "A")["web"] == addresses(lab, "C")["shop"], "both clusters gave their first address"
    put(lab, "A", "colour", "red")
    put(lab, "C", "colour", "blue")
    put(lab, "C", "size", "9")
    key = token(lab, "A")
    said = join(lab, key)
    assert said.returncode == 1, said.stdout + said.stderr
    rows = [line.split()[0] for line in said.stdout.splitlines()[1:]]
    assert sorted(rows) == ["address", "address", "kv"], said.stdout
    assert "web on node A" in said.stdout and "shop on node C" in said.stdout and "key colour" in said.stdout
    assert (nodes(lab, "A"), nodes(lab, "C")) == ("AB", "CD") and not lab.path("C", READY).exists()
    elsewhere = join(lab, key, host="D")
    assert elsewhere.returncode == 1 and "carries its store" in elsewhere.stderr, elsewhere.stderr

    lab.run("C", "curl", "-sS", "-X", "DELETE", f"{KV}/colour")
    for host, name, address in (("C", "shop", "10.28.0.77"), ("D", "log", "10.28.2.77")):
        lab.run(host, "plait", "rm", name)
        lab.run(host, "plait", "run", "--name", name, "--ip", address)
    rehearsed = join(lab, key, "--dry-run")
    assert rehearsed.returncode == 0, rehearsed.stdout + rehearsed.stderr
    assert "gives it up" in rehearsed.stdout and "nothing was changed" in rehearsed.stdout
    assert (nodes(lab, "A"), nodes(lab, "C")) == ("AB", "CD") and not lab.path("C", READY).exists()


def test_crashes_leave_both_whole_and_nobody_behind(lab: Lab) -> None:
    key = token(lab, "A")
    command = ["plait", "join", lab.address("A"), "--token", key, "--merge"]
    leading = lab.popen("C", *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until("D is ready to go", lambda: lab.path("D", READY).exists(), 20, every_s=0.01)
    lab.kill_agent("C")
    leading.communicate(timeout=20)
    assert leading.returncode != 0
    lab.start_agent("C")
    until("C has D again", lambda: nodes(lab, "C") == "CD", 15)
    assert nodes(lab, "A") == "AB" and resolves(lab, "C", "log", "10.28.2.77")
    put(lab, "C", "late", "yes")

    ways = [("C", "shop", addresses(lab, "C")["log"]), ("D", "log", addresses(lab, "C")["shop"]), ("C", "mC", addresses(lab, "C")["mD"])]
    running = {}
    for host, name, target in ways:
        until(f"{name} reaches {target}", lambda h=host, n=name, t=target: reaches(lab, h, n, t), 10)
        running[name] = lab.popen(host, *inside_of(host, name, "sh", "-c", PINGS, target), stdout=subprocess.PIPE, text=True)
    tunnel = lambda: next(row["tunnel"] for row in client(lab, "C").nodes() if row["name"] == "D")  # noqa: E731
    assert tunnel() == "10.28.2.0", "as B's is"
    leading = lab.popen("C", *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until("D has another tunnel address", lambda: tunnel() != "10.28.2.0", 20, every_s=0.02)
    lab.kill_agent("D")  # it is ready and has made way; the others go without waiting for it
    said, why = leading.communicate(timeout=40)
    assert leading.returncode == 0, said + why
    until("A has C", lambda: "C" in nodes(lab, "A"), 10)
    lab.start_agent("D")
    for host in HOSTS:
        until(f"{host} knows all", lambda host=host: _calm(lambda: nodes(lab, host)) == HOSTS, 30)
        until(f"{host} rests", lambda host=host: _calm(lambda: client(lab, host).plan(diff=True)) == [], 15)
    for host in HOSTS:
        lab.path(host, STOP).touch()
    for name, process in running.items():
        rounds = re.findall(r"(\d+) packets transmitted, (\d+) received", process.communicate(timeout=30)[0])
        lost = [(sent, received) for sent, received in rounds if sent != received]
        assert len(rounds) > 3 and lost == [], (name, len(rounds))


def _calm(ask: Callable[[], Any]) -> Any:
    """Its answer; None while the agent starts anew."""
    from plait.model.errors import PlaitError

    try:
        return ask()
    except PlaitError:
        return None


def test_all_hosts_are_one_cluster(lab: Lab) -> None:
    known = addresses(lab, "A")
    assert (known["shop"], known["log"]) == ("10.28.0.77", "10.28.2.77"), "they keep their addresses"
    at = dict(zip(("web", "db", "shop", "log"), HOSTS, strict=True))
    for name, host in at.items():
        for other in at.keys() - {name}:
            until(f"{name} reaches {other}", lambda n=name, h=host, o=other: reaches(lab, h, n, known[o]), 10)
            until(f"{host} resolves {other}", lambda h=host, o=other: resolves(lab, h, o, known[o]), 5)
    for host in HOSTS:
        got = {key: lab.run(host, "curl", "-sS", f"{KV}/{key}?raw").stdout for key in ("colour", "size", "late")}
        assert got == {"colour": "red", "size": "9", "late": "yes"}
        lab.run(host, "plait", "run", "--name", f"new{host}")
        lab.run(host, "plait", "run", "--name", f"mesh{host}", "--network", "mesh")
    known = addresses(lab, "A")
    assert len(set(known.values())) == len(known), known
    until("A's mesh reaches D's", lambda: reaches(lab, "A", "meshA", known["mD"]), 10)
    for host in HOSTS:
        found = json.loads(lab.run(host, "plait", "ipam", "check", "--json", check=False).stdout)
        assert [row for row in found if row["kind"] != "outside"] == [], found
    assert {row["code"] for row in client(lab, "C").status()["conditions"]} <= {"block-lost", *NEIGHBOURS}


def test_the_joined_store_is_the_only_one(lab: Lab) -> None:
    assert {client(lab, host).status()["store"]["address"].partition(":")[0] for host in HOSTS} == {lab.address("A")}
    assert lab.path("C", "/var/lib/plait/before-joining/store.db").exists() and not lab.path("C", "/var/lib/plait/pki/ca.key").exists()
    for host in "CD":
        lab.kill_agent(host)
        lab.start_agent(host)
    until("C and D are there", lambda: nodes(lab, "A") == HOSTS, 10)
    assert inside.daemon_pid(lab.state.holder("C"), "agent") is not None
