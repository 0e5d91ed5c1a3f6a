# SPDX-License-Identifier: Apache-2.0
"""The commands, run as `main` runs them, against a client whose answers are given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plait.cli.main import COMMANDS, cli, main
from plait.cli.status import page
from plait.client.admin import AdminClient, AgentNotRunning, Refused
from plait.model.report import AddressRow, ConditionRow, NodeRow, PathState, StatusView


def node(name: str, alive: bool = True) -> NodeRow:
    return {
        "name": name,
        "id": f"id-{name}",
        "address": "198.18.0.1",
        "tunnel": "",
        "mtu": 1500,
        "version": "0.1.0",
        "alive": alive,
        "me": name == "A",
        "gateway": name == "B",
        "blocks": ["10.28.0.0/20"],
    }


def status_of(**changes: Any) -> StatusView:
    view: StatusView = {
        "well": True,
        "waiting": "",
        "node": "A",
        "version": "0.1.0",
        "uptime_s": 11520.5,
        "store": {"role": "embedded", "address": "198.18.0.1:7470", "reachable": True, "revision": 42},
        "nodes": [node("A"), node("B")],
        "networks": [
            {
                "name": "default",
                "subnet": "10.28.0.0/16",
                "gateway": "10.28.0.1",
                "ip_range": "",
                "model": "overlay",
                "backend": "vxlan",
                "vni": 1,
                "port": 4789,
                "internal": False,
                "block_prefix": 20,
                "endpoints": 1,
                "labels": {},
                "options": {},
            }
        ],
        "engines": [{"runtime": "docker", "reachable": True, "version": "20.10.24", "containers": 3, "error": ""}],
        "blocks": [
            {"network": "default", "cidr": "10.28.0.0/20", "node": "A", "purpose": "bridge", "size": 4093, "used": -1},
            {"network": "default", "cidr": "10.28.16.0/20", "node": "A", "purpose": "pool", "size": 4096, "used": 7},
            {"network": "default", "cidr": "10.28.32.0/20", "node": "B", "purpose": "pool", "size": 4096, "used": 9},
        ],
        "paths": [{"node": "B", "address": "198.18.0.2", "backend": "vxlan", "mtu": 1450, "probed": True, "error": ""}],
        "conditions": [],
    }
    view.update(changes)  # type: ignore[typeddict-item]
    return view


LOST: ConditionRow = {
    "code": "node-lost",
    "severity": "warning",
    "subject": "B",
    "title": "A node gives no sign of life",
    "text": "silent for 12 s",
    "todo": "Look at that host",
    "since": 1.0,
}


class Canned(AdminClient):
    """Remembers requests; answers each with what `answers` holds for "METHOD path", else with {}."""

    def __init__(self, **answers: object) -> None:
        super().__init__(Path("/nonexistent"))
        self.answers = answers
        self.asked: list[tuple[str, str, object]] = []

    def _call(self, method: str, path: str, body: object = None) -> object:
        self.asked.append((method, path, body))
        answer = self.answers.get(path.replace("/", "_").partition("?")[0], {})
        if isinstance(answer, BaseException):
            raise answer
        return answer


def run(capsys: pytest.CaptureFixture[str], client: AdminClient, *words: str) -> tuple[int, str, str]:
    status = main(words, obj=client)
    out, err = capsys.readouterr()
    return status, out, err


def test_status_is_one_screen_and_its_exit_status_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, Canned(status=status_of()), "status")
    assert status == 0
    assert out == (
        "A: all is well  (plait 0.1.0, up 3h 12m)\n"
        "\n"
        "store     in this agent, reachable, revision 42\n"
        "nodes     2 of 2 alive: A, B\n"
        "networks  default 10.28.0.0/16 (vxlan, 1 endpoint)\n"
        "engines   docker 20.10.24, 3 containers\n"
        "blocks    default: 10.28.0.0/20, 10.28.16.0/20; 7 of 4096 addresses used\n"
        "paths     1 of 1 usable: B (vxlan, mtu 1450)\n"
    )


def test_status_names_what_is_wrong_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    broken: PathState = {"node": "B", "address": "198.18.0.2", "backend": "vxlan", "mtu": 1450, "probed": True, "error": "node lost"}
    view = status_of(well=False, nodes=[node("A"), node("B", alive=False)], paths=[broken], conditions=[LOST])
    status, out, _ = run(capsys, Canned(status=view), "status")
    assert status == 1
    assert out.startswith("A: 1 thing needs attention")
    assert "LOST: B" in out and "0 of 1 usable\n          to B (198.18.0.2): node lost" in out
    assert "WARNING node-lost [B]: A node gives no sign of life\n    silent for 12 s\n    -> Look at that host\n" in out


def test_status_says_which_path_was_not_probed() -> None:
    silent: PathState = {"node": "B", "address": "198.18.0.2", "backend": "vxlan", "mtu": 1450, "probed": False, "error": ""}
    assert any("1 of 1 usable: B (vxlan, mtu 1450 not probed)" in line for line in page(status_of(paths=[silent])))


def test_status_as_json_keeps_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    view = status_of(well=False, conditions=[LOST])
    status, out, _ = run(capsys, Canned(status=view), "status", "--json")
    assert (status, json.loads(out)) == (1, view)


def test_status_of_a_large_cluster_still_fits_a_screen() -> None:
    nodes = [node(f"n{i}", alive=i % 3 > 0) for i in range(100)]
    paths: list[PathState] = [
        {"node": n["name"], "address": "198.18.0.2", "backend": "vxlan", "mtu": 1450, "probed": True, "error": "" if n["alive"] else "lost"}
        for n in nodes
    ]
    blocks = [{"network": f"net{i}", "cidr": f"10.{i}.0.0/20", "node": "A", "purpose": "pool", "size": 1, "used": 0} for i in range(50)]
    lines = list(page(status_of(well=False, nodes=nodes, paths=paths, blocks=blocks, networks=status_of()["networks"] * 40)))
    assert len(lines) <= 30
    assert any("66 of 100 alive" in line and "and 58 more" in line for line in lines)
    assert any("and 42 networks more" in line for line in lines)


@pytest.mark.parametrize(
    "state", [{"engines": [], "paths": [], "blocks": [], "networks": []}, {"well": False, "waiting": "its first block"}]
)
def test_status_of_an_empty_node(state: dict[str, Any]) -> None:
    lines = "\n".join(page(status_of(**state)))
    assert ("A: not ready, waits for its first block  (" in lines) == ("well" in state)
    assert ("no other node" in lines and "none on this host" in lines) == ("paths" in state)


USED: AddressRow = {
    "network": "default",
    "address": "10.28.0.2",
    "address6": "",
    "node": "A",
    "state": "used",
    "name": "web",
    "shared_by": ["log"],
    "runtime": "docker",
    "endpoint": "e" * 64,
    "container": "c1",
    "reserved_for": "web",
    "lent_by": "B",
    "started": 0.0,
}
IPAM = {
    "pools": [
        {
            "network": "default",
            "pool": "10.28.0.0/16",
            "size": 65533,
            "used": 2,
            "used_by": {"A": 1, "B": 1},
            "reserved": 1,
            "remembered": 0,
            "free": 65530,
            "excluded": ["10.28.9.9"],
        }
    ],
    "blocks": status_of()["blocks"],
    "addresses": [USED, {**USED, "network": "other", "started": 1.0}],
}


def test_addresses_are_listed_by_network(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, Canned(ipam=IPAM), "ipam", "ls", "default")
    assert status == 0 and len(out.splitlines()) == 2
    assert "default  10.28.0.2  used   A     web, log  docker   -    reserved for web, lent by B, endpoint eeee" in out
    assert json.loads(run(capsys, Canned(ipam=IPAM), "ipam", "ls", "--json")[1]) == IPAM["addresses"]


def test_a_check_that_finds_something_fails(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"kind": "twice", "node": "A", "network": "default", "address": "10.28.0.2", "text": "web: db has it too"}
    client = Canned(**{"ipam-check": [row]})
    assert run(capsys, client, "ipam", "check")[:2] == (
        1,
        "KIND   NODE  NETWORK  ADDRESS    WHAT\ntwice  A     default  10.28.0.2  web: db has it too\n",
    )


def test_an_export_goes_to_the_agent_as_it_is_and_a_conflict_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert json.loads(run(capsys, Canned(**{"cluster-export": {"version": 1}}), "cluster", "export")[1]) == {"version": 1}
    (tmp_path / "other.json").write_text('{"version": 1}')
    row = {"kind": "block", "here": "A", "there": "B", "todo": "choose", "stops": True}
    client = Canned(**{"cluster-conflicts": [row]})
    words = ("cluster", "conflicts", str(tmp_path / "other.json"))
    assert run(capsys, client, *words)[:2] == (1, "KIND   HERE  THERE  TO DO\nblock  A     B      choose\n")
    assert client.asked == [("POST", "cluster-conflicts", b'{"version": 1}')]
    assert run(capsys, Canned(**{"cluster-conflicts": [row | {"stops": False}]}), *words)[0] == 0, "joining settles it"
    assert run(capsys, Canned(**{"cluster-conflicts": []}), *words)[:2] == (0, "no conflicts\n")


def test_reclaim_is_a_rehearsal_unless_applied(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(**{"ipam-reclaim": ["address 10.28.0.9: unused"]})
    assert run(capsys, client, "ipam", "reclaim")[1] == "would free address 10.28.0.9: unused\n"
    assert run(capsys, client, "ipam", "reclaim", "--apply")[1] == "freed address 10.28.0.9: unused\n"
    assert [body for _, _, body in client.asked] == [{"apply": False}, {"apply": True}]
    assert run(capsys, Canned(**{"ipam-reclaim": []}), "ipam", "reclaim")[2] == "nothing to reclaim\n"


ROWS: dict[tuple[str, ...], tuple[str, object, str]] = {
    ("nodes",): ("nodes", [node("A"), node("B"), node("C", alive=False)], "A*    alive           198.18.0.1  -       1500  0.1.0"),
    ("ps",): (
        "ps",
        [
            {
                "id": "1",
                "name": "web",
                "node": "B",
                "runtime": "docker",
                "state": "running",
                "image": "nginx",
                "labels": {"tier": "front"},
                "addresses": {"default": "10.28.0.2", "mesh": "10.29.0.7"},
                "ports": ["0.0.0.0:8080->80/tcp"],
                "started": 1.0,
            }
        ],
        "B     web   default=10.28.0.2 mesh=10.29.0.7  running  docker   nginx  0.0.0.0:8080->80/tcp  tier=front",
    ),
    ("ports",): (
        "ports",
        [
            {
                "node": "A",
                "container": "web",
                "network": "mesh",
                "proto": "udp",
                "host_ip": "0.0.0.0",
                "host_port": 53,
                "address": "10.29.0.7",
                "container_port": 5353,
            }
        ],
        "A     0.0.0.0:53  udp    web        mesh     10.29.0.7:5353",
    ),
    ("ipam",): ("ipam", IPAM, "default  10.28.0.0/16  65533  2     1         0           65530  10.28.9.9  A=1 B=1"),
    ("ipam", "check"): ("ipam-check", [], "no differences"),
    ("network", "ls"): (
        "networks",
        status_of()["networks"],
        "default  10.28.0.0/16  10.28.0.1  overlay  vxlan    1    no        -        1",
    ),
}


@pytest.mark.parametrize("words", list(ROWS), ids=" ".join)
def test_listings_as_table_and_as_json(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    path, rows, line = ROWS[words]
    status, out, _ = run(capsys, Canned(**{path: rows}), *words)
    assert status == 0
    assert any(text.startswith(line) for text in out.splitlines()), out
    status, out, _ = run(capsys, Canned(**{path: rows}), *words, "--json")
    assert (status, json.loads(out)) == (0, rows)


def test_network_inspect_shows_holders_and_attachments(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint = {
        "id": "e1",
        "name": "web",
        "node": "B",
        "runtime": "docker",
        "address": "10.28.16.1",
        "mac": "02:00:00:00:00:01",
        "aliases": ["www"],
        "ports": [],
    }
    view = {
        **status_of()["networks"][0],
        "ip_range": "10.28.16.0/20",
        "labels": {"a": "b"},
        "held": status_of()["blocks"],
        "attached": [endpoint],
    }
    status, out, _ = run(capsys, Canned(networks_default=view), "network", "inspect", "default")
    assert status == 0
    assert "default: 10.28.0.0/16, addresses from 10.28.16.0/20, gateway 10.28.0.1, with a way out\n" in out
    assert "model overlay, backend vxlan, vni 1, port 4789, blocks of /20\nlabels: a=b\n" in out
    assert "10.28.16.1  web   B     docker   -      www" in out
    status, out, _ = run(capsys, Canned(networks_default=view), "network", "inspect", "default", "--json")
    assert json.loads(out) == view


def test_plan_prints_commands_and_says_when_nothing_is_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{"verb": "put", "key": ["route", "10.28.16.0/20"], "commands": ["ip route replace 10.28.16.0/20 dev pl-x1"]}]
    client = Canned(plan=entries)
    assert run(capsys, client, "plan") == (0, "ip route replace 10.28.16.0/20 dev pl-x1\n", "")
    assert run(capsys, Canned(plan=[]), "plan", "--diff") == (0, "", "nothing to do: the kernel is as planned\n")
    assert client.asked == [("GET", "plan?diff=0", None)]


def test_token_is_the_last_word_of_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(tokens={"token": "abc.def", "address": "198.18.0.1", "expires": 1e9})
    assert run(capsys, client, "token", "create", "--ttl", "15m") == (0, "abc.def\n", "")
    assert client.asked == [("POST", "tokens", {"ttl_s": 900})]


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (("gateway", "enable"), ("POST", "gateway", None)),
        (("gateway", "disable"), ("DELETE", "gateway", None)),
        (("expose", "mesh", "--off"), ("DELETE", "networks/mesh/exposure", None)),
        (("node", "rm", "B"), ("DELETE", "nodes/B", None)),
        (
            ("ipam", "reserve", "mesh", "db", "10.30.0.7"),
            ("POST", "networks/mesh/reservations", {"name": "db", "address": "10.30.0.7"}),
        ),
        (("ipam", "unreserve", "mesh", "db"), ("DELETE", "networks/mesh/reservations?name=db", None)),
        (("network", "rm", "--force", "mesh"), ("DELETE", "networks/mesh?force=1", None)),
    ],
)
def test_orders_reach_the_agent(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], request_: tuple[object, ...]) -> None:
    client = Canned()
    assert run(capsys, client, *words)[0] == 0
    assert client.asked == [request_]


def test_expose_prints_the_hosts_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    made = {"network": "mesh", "address": "10.30.0.3", "address6": "fd00:30::3"}
    client = Canned(networks_mesh_exposure=made)
    assert run(capsys, client, "expose", "mesh") == (0, "10.30.0.3 fd00:30::3\n", "")
    assert client.asked == [("POST", "networks/mesh/exposure", None)]
    assert json.loads(run(capsys, client, "expose", "mesh", "--json")[1]) == made


def test_network_create_passes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(networks={"name": "mesh", "subnet": "10.30.0.0/16"})
    words = [
        "network",
        "create",
        "mesh",
        "--subnet",
        "10.30.0.0/16",
        "--gateway",
        "10.30.0.9",
        "--ip-range",
        "10.30.4.0/24",
        "--exclude",
        "10.30.4.9",
        "--exclude",
        "10.30.4.32-10.30.4.40",
        "--force",
        "--internal",
        "--label",
        "a=b=c",
        "-o",
        "extra=1",
        "--model",
        "sandbox",
        "--backend",
        "none",
        "--label",
        "d",
    ]
    assert run(capsys, client, *words) == (0, "mesh 10.30.0.0/16\n", "")
    wanted = {
        "name": "mesh",
        "subnet": "10.30.0.0/16",
        "gateway": "10.30.0.9",
        "internal": True,
        "labels": {"a": "b=c", "d": ""},
        "options": {"extra": "1", "model": "sandbox", "backend": "none"},
        "ip_range": "10.30.4.0/24",
        "excluded": ["10.30.4.9", "10.30.4.32-10.30.4.40"],
        "force": True,
    }
    assert client.asked == [("POST", "networks", wanted)]


def test_network_set_says_what_changed_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"backend": "vxlan", "vni": 1, "port": 8472}
    client = Canned(networks_mesh=[{"name": "mesh", **row}, {"name": "default", **row}])
    said = "mesh vxlan vni 1 port 8472\ndefault vxlan vni 1 port 8472\n"
    assert run(capsys, client, "network", "set", "mesh", "-o", "port=8472") == (0, said, "")
    assert client.asked == [("PUT", "networks/mesh", {"options": {"port": "8472"}})]
    assert run(capsys, client, "network", "set", "mesh")[0] == 2, "nothing to set"


@pytest.mark.parametrize(
    ("words", "body", "part"),
    [
        (("--ip-range", "10.30.4.0/24"), {"ip_range": "10.30.4.0/24"}, "10.30.4.0/24"),
        (("--ip-range", "all", "--exclude", "10.30.0.9"), {"ip_range": "all", "excluded": ["10.30.0.9"]}, "10.30.0.0/16"),
        (("--exclude", "none"), {"excluded": []}, "10.30.0.0/16"),
    ],
)
def test_network_set_changes_the_range(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], body: object, part: str) -> None:
    row = {"backend": "vxlan", "vni": 1, "port": 4789, "name": "mesh", "subnet": "10.30.0.0/16"}
    client = Canned(networks_mesh=[row | {"ip_range": part if part.endswith("24") else ""}])
    said = f"mesh vxlan vni 1 port 4789, addresses from {part}\n"
    assert run(capsys, client, "network", "set", "mesh", *words) == (0, said, "")
    assert client.asked == [("PUT", "networks/mesh", {"options": {}} | body)]  # type: ignore[operator]


def test_join_merge_lists_refuses_and_tells(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("join", "198.18.0.1", "--token", "T", "--merge")
    row = {"kind": "block", "here": "A", "there": "B", "todo": "gives it up", "stops": False}
    found = {"clashes": [row], "nodes": ["C", "D"], "locks": ["leader"], "joined": True}
    client = Canned(**{"cluster-join": found})
    code, said, _ = run(capsys, client, *words)
    assert code == 0 and "WHAT HAPPENS" in said and "locks of: leader" in said and "nodes C, D are of the cluster at 198.18.0.1" in said
    assert client.asked == [("POST", "cluster-join", {"address": "198.18.0.1", "token": "T", "dry_run": False, "both_names": False})]
    code, said, _ = run(capsys, Canned(**{"cluster-join": found | {"joined": False}}), *words, "--dry-run")
    assert code == 0 and "nothing was changed" in said
    stopped = found | {"clashes": [row, row | {"stops": True, "todo": "make it again"}], "joined": False}
    code, said, error = run(capsys, Canned(**{"cluster-join": stopped}), *words)
    assert code == 1 and said.count("\n") == 2 and "make it again" in said and "the token is still good" in error
    for wrong in (("--name", "X"), ("--address", "198.18.0.9")):
        assert run(capsys, Canned(), *words, *wrong)[0] == 2
    assert run(capsys, Canned(), "join", "198.18.0.1", "--token", "T", "--dry-run")[0] == 2


def test_run_without_a_command_makes_a_sandbox_that_stays(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned()
    words = ["run", "--name", "web", "--network", "mesh", "--ip", "10.30.0.7", "--label", "k=v", "-p", "8080:80", "-p", "53:53/udp"]
    assert run(capsys, client, *words) == (0, "web\n", "")
    body = {
        "name": "web",
        "network": "mesh",
        "address": "10.30.0.7",
        "labels": {"k": "v"},
        "ports": ["8080:80", "53:53/udp"],
        "aliases": [],
    }
    assert client.asked == [("POST", "sandboxes", body)]


def test_what_is_asked_of_ipv6_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(networks={"name": "mesh", "subnet": "10.30.0.0/16", "subnet6": "fd00:30::/64"})
    words = ["network", "create", "mesh", "--ipv6", "--subnet6", "fd00:30::/64", "--gateway6", "fd00:30::9"]
    assert run(capsys, client, *words) == (0, "mesh 10.30.0.0/16 fd00:30::/64\n", "")
    assert run(capsys, client, "run", "--name", "web", "--ip6", "fd00:30::7") == (0, "web\n", "")
    (_, _, made), (_, _, started) = client.asked
    assert (made["ipv6"], made["subnet6"], made["gateway6"], started["address6"]) == (True, "fd00:30::/64", "fd00:30::9", "fd00:30::7")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["network", "create", "m", "--subnet6", "10.0.0.0/8"], "is not an IPv6 network such as fd12:3456:789a::/64"),
        (["network", "create", "m", "--gateway6", "10.0.0.1"], "is not an IPv6 address"),
        (["run", "--name", "w", "--ip6", "10.0.0.1"], "is not an IPv6 address"),
    ],
)
def test_ipv4_where_ipv6_is_wanted_is_a_usage_error(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    client = Canned()
    status, _, error = run(capsys, client, *words)
    assert status == 2 and says in error and client.asked == []


def test_both_families_are_shown_and_older_agents_rows_too(capsys: pytest.CaptureFixture[str]) -> None:
    old = {"node": "A", "name": "old", "addresses": {"m": "10.30.0.2"}, "state": "running", "runtime": "docker", "image": "", "ports": []}
    rows = [old | {"labels": {}}, old | {"labels": {}, "name": "new", "addresses6": {"m": "fd00:30::2"}}]
    _, out, _ = run(capsys, Canned(ps=rows), "ps")
    assert [line.split()[1:3] for line in out.splitlines()[1:]] == [["old", "m=10.30.0.2"], ["new", "m=10.30.0.2,fd00:30::2"]]
    blocks = [{"network": "m", "cidr": "10.30.0.0/24", "cidr6": "fd00:30::/120", "node": "A", "purpose": "pool", "used": 1, "size": 2}]
    rows = [USED | {"address6": "fd00:30::2"}]
    view = {"pools": [], "blocks": blocks, "addresses": rows}
    assert "10.30.0.0/24 fd00:30::/120" in run(capsys, Canned(ipam=view), "ipam")[1]
    assert "10.28.0.2 fd00:30::2" in run(capsys, Canned(ipam=view), "ipam", "ls")[1]


@pytest.mark.parametrize(
    "words",
    [
        "run",
        "run --name x -d",
        "run --name x --ip 10.28.0.300",
        "run --name x --label =v",
        "network create m --subnet 10.28.0.1/16",
        "token create --ttl 5",
        "token create --ttl 0s",
        "nothing",
        "join 198.18.0.1",
        "exec x",
        "exec x --",
        "status --unknown",
    ],
)
def test_wrong_usage_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    client = Canned()
    status, out, err = run(capsys, client, *words.split())
    assert (status, out) == (2, "")
    assert err.startswith("plait: ") and err.count("\n") == 1
    assert client.asked == []


def test_refusals_are_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    refused = Refused("network 'mesh' is in use by web on B; remove it first", "Conflict", 409)
    assert run(capsys, Canned(networks_mesh=refused), "network", "rm", "mesh") == (
        1,
        "",
        "plait: network 'mesh' is in use by web on B; remove it first\n",
    )


def test_rm_goes_on_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    gone = Refused("there is no sandbox 'a' on this node", "NotFound", 404)
    client = Canned(sandboxes_a=gone, sandboxes_b={"netns": "/nonexistent/b"})
    status, out, err = run(capsys, client, "rm", "a", "b")
    assert (status, out, err) == (1, "b\n", "plait: there is no sandbox 'a' on this node\n")
    assert client.asked[-1] == ("DELETE", "sandboxes/b", None)


def test_only_root_enters_a_sandbox(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    client = Canned()
    for words in (["run", "--name", "x", "--", "true"], ["exec", "x", "--", "true"]):
        status, _, err = run(capsys, client, *words)
        assert status == 1 and "sudo" in err
    assert client.asked == []


def test_no_agent_is_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(AgentNotRunning):
        AdminClient(tmp_path / "s").nodes()
    status, _, err = run(capsys, AdminClient(tmp_path / "s"), "ps")
    assert status == 1
    assert err.startswith("plait: the plait agent is not running (no answer on ") and err.count("\n") == 1


def test_every_command_is_found_and_has_a_help_text() -> None:
    import click

    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None and command.name == name and command.help


HEAVY = ("asyncio", "aiohttp", "msgspec", "cryptography", "plait.agent", "plait.store", "plait.kernel", "plait.serve", "plait.lab")


@pytest.mark.parametrize("module", sorted(set(COMMANDS.values())))
def test_a_command_imports_nothing_heavy(module: str) -> None:
    program = (
        f"import sys, plait.cli.main, plait.client.admin, {module}; "
        f"print(*[m for m in sys.modules if m.split('.')[0] in {HEAVY!r} or '.'.join(m.split('.')[:2]) in {HEAVY!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == []


def test_a_reader_that_goes_away_makes_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-m", "plait.cli.main", "version"]
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=30)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (PermissionError(1, "Operation not permitted", "/etc/plait"), (1, "", "plait: Operation not permitted: /etc/plait\n")),
        (OSError("strange"), (1, "", "plait: strange\n")),
        (KeyboardInterrupt(), (130, "", "\n")),
    ],
    ids=["with-path", "bare", "interrupt"],
)
def test_failures_of_the_system_are_one_line(
    capsys: pytest.CaptureFixture[str], failure: BaseException, expected: tuple[int, str, str]
) -> None:
    assert run(capsys, Canned(nodes=failure), "nodes") == expected


def limit_row(**changes: Any) -> dict[str, Any]:
    row = {
        "container": "web",
        "network": "mesh",
        "port": "",
        "direction": "in",
        "rate": 10_000_000,
        "burst": 16384,
        "manner": "shape",
        "by": "command",
    }
    return row | {"port": "", "what": "rate", "running": True, "held": True, "dropped": 0} | changes


def test_limits_are_listed_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        limit_row(),
        limit_row(direction="out", rate=0, held=False),
        limit_row(what="packets", rate=500, burst=0, manner="drop", dropped=12, by="network"),
        limit_row(what="connections", port="80/tcp", rate=0, burst=0, manner="drop"),
        limit_row(container="old", running=False, held=False, manner="drop"),
    ]
    status, out, _ = run(capsys, Canned(limits=rows), "limit", "ls")
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["CONTAINER", "NETWORK", "PORT", "LIMIT", "RATE", "BURST", "MANNER", "DROPPED", "BY", "STATE"],
        ["web", "mesh", "-", "in", "10mbit", "16384", "shape", "-", "command", "in", "force"],
        ["web", "mesh", "-", "out", "none", "16384", "shape", "-", "command", "not", "possible"],
        ["web", "mesh", "-", "packets-in", "500/s", "-", "drop", "12", "network", "in", "force"],
        ["web", "mesh", "80/tcp", "connections-in", "none", "-", "drop", "0", "command", "in", "force"],
        ["old", "mesh", "-", "in", "10mbit", "16384", "drop", "-", "command", "kept"],
    ]
    _, out, _ = run(capsys, Canned(limits=rows), "limit", "ls", "--json")
    assert json.loads(out) == rows


def test_a_limit_is_set_and_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned()
    assert run(capsys, client, "limit", "set", "web", "--in", "10M", "--burst", "64k", "--drop", "--network", "mesh")[0] == 0
    assert run(capsys, client, "limit", "set", "web", "--out", "none")[0] == 0
    assert run(capsys, client, "limit", "set", "web", "--packets-in", "9k", "--connections-out", "5")[0] == 0
    assert run(capsys, client, "limit", "set", "web", "--port", "80", "--in", "9M", "--connections-in", "5")[0] == 0
    assert run(capsys, client, "limit", "set", "web", "--port", "80", "--out", "9M", "--shape")[0] == 0
    assert run(capsys, client, "limit", "rm", "web", "--network", "mesh")[0] == 0
    assert run(capsys, client, "limit", "rm", "web", "--port", "53/udp")[0] == 0
    assert client.asked == [
        ("PUT", "limits/web", {"network": "mesh", "in": "10M", "burst": "64k", "manner": "drop"}),
        ("PUT", "limits/web", {"network": "", "out": "none", "manner": "shape"}),
        ("PUT", "limits/web", {"network": "", "packets-in": "9k", "connections-out": "5"}),
        ("PUT", "limits/web", {"network": "", "in": "9M", "connections-in": "5", "port": "80"}),
        ("PUT", "limits/web", {"network": "", "out": "9M", "manner": "shape", "port": "80"}),
        ("DELETE", "limits/web?network=mesh&port=", None),
        ("DELETE", "limits/web?network=&port=53%2Fudp", None),
    ]
    status, _, err = run(capsys, client, "limit", "set", "web", "--drop")
    assert status == 2 and "say what to limit" in err
    status, _, err = run(capsys, client, "limit", "set", "web", "--packets-in", "9", "--burst", "64k")
    assert status == 2 and "--burst is of a rate" in err
    for wrong in (("--in", "9M", "--burst", "64k"), ("--connections-out", "5")):
        status, _, err = run(capsys, client, "limit", "set", "web", "--port", "80", *wrong)
        assert status == 2 and "of a published port --burst, --connections-out and --priority cannot be said" in err


def test_ports_are_published_and_given_up_and_told_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(containers_web_ports=["0.0.0.0:8080->80/tcp", "0.0.0.0:33000->53/udp"])
    done = run(
        capsys, client, "publish", "web", "8080:80", "53/udp", "--from", "10.0.0.0/8", "--from", "fd00::/8", "--nat", "--network", "m"
    )
    assert done == (0, "0.0.0.0:8080->80/tcp\n0.0.0.0:33000->53/udp\n", "")
    assert run(capsys, client, "publish", "web", "80")[0] == 0
    assert run(capsys, client, "unpublish", "web", "127.0.0.1:8080", "9/udp", "--network", "m")[0] == 0
    assert run(capsys, client, "unpublish", "web")[0] == 0
    assert client.asked == [
        ("POST", "containers/web/ports", {"network": "m", "ports": ["8080:80", "53/udp"], "from": ["10.0.0.0/8", "fd00::/8"], "nat": True}),
        ("POST", "containers/web/ports", {"network": "", "ports": ["80"], "from": [], "nat": False}),
        ("DELETE", "containers/web/ports?network=m&port=127.0.0.1%3A8080&port=9%2Fudp", None),
        ("DELETE", "containers/web/ports?network=", None),
    ]
    status, _, err = run(capsys, client, "publish", "web")
    assert status == 2 and "PORT" in err


@pytest.mark.parametrize(("word", "value"), [("--isolated", "true"), ("--open", "false")])
def test_a_network_is_isolated_or_open_when_it_is_made_and_afterwards(capsys: pytest.CaptureFixture[str], word: str, value: str) -> None:
    client = Canned(networks={"name": "mesh", "subnet": "10.29.0.0/16"}, networks_mesh=[])
    assert run(capsys, client, "network", "create", "mesh", word, "-o", "vni=7")[0] == 0
    assert run(capsys, client, "network", "set", "mesh", word)[0] == 0
    (_, _, created), (_, _, changed) = client.asked
    assert isinstance(created, dict) and isinstance(changed, dict)
    assert (created["options"], changed["options"]) == ({"vni": "7", "isolated": value}, {"isolated": value})


def test_limits_at_the_start_are_labels_and_of_networks_options(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(sandboxes={"name": "job"}, networks={"name": "mesh", "subnet": "10.29.0.0/16"}, networks_mesh=[])
    run(capsys, client, "run", "--name", "job", "--label", "a=b", "--limit-in", "10M", "--limit-out", "5M")
    run(capsys, client, "network", "create", "mesh", "--limit-in", "1G")
    run(capsys, client, "network", "set", "mesh", "--limit-out", "none", "-o", "limit-manner=drop")
    (_, _, sandbox), (_, _, created), (_, _, changed) = client.asked
    assert isinstance(sandbox, dict) and isinstance(created, dict) and isinstance(changed, dict)
    assert sandbox["labels"] == {"a": "b", "plait.limit.in": "10M", "plait.limit.out": "5M"}
    assert created["options"] == {"limit-in": "1G"}
    assert changed["options"] == {"limit-out": "none", "limit-manner": "drop"}
