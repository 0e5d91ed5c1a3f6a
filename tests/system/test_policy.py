# SPDX-License-Identifier: Apache-2.0
"""Policies in a lab: what is applied on one host is in force on all, for containers that run, that come, and by published ports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from tests.support.sandboxes import address, inside, shown

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
ISOLATED = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 80}]
"""
SERVER = (
    "import http.server as h\n"
    "class H(h.BaseHTTPRequestHandler):\n"
    " def do_GET(s): s.send_response(200); s.send_header('Content-Length','0'); s.end_headers()\n"
    " def log_message(s,*a): pass\n"
    "h.ThreadingHTTPServer(('',80),H).serve_forever()\n"
)


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """On A a database and a client, on B two clients and another one that has no label; each answers on port 80."""
    made: Lab = make_lab(hosts=2)
    servers: list[subprocess.Popen[str]] = []
    try:
        for host, name, app in (("A", "db", "db"), ("A", "near", "web"), ("B", "far", "web"), ("B", "other", "none")):
            ports = ("-p", "8080:80") if name == "db" else ()
            made.run(host, "plait", "run", "--name", name, "--label", f"app={app}", *ports)
            servers.append(serve(made, host, name))
        yield made
    finally:
        for process in servers:
            process.terminate()
            process.wait(5)


@pytest.fixture(autouse=True)
def no_policies(lab: Lab) -> Iterator[None]:
    yield
    rows = shown(lab, "A", "policy", "ls")
    if rows:
        lab.run("A", "plait", "policy", "rm", *(f"{row['namespace']}/{row['name']}" for row in rows))


def outside(block: str) -> str:
    """A policy that lets in only addresses of a block."""
    return ISOLATED.replace("podSelector: {matchLabels: {app: web}}", f"ipBlock: {{cidr: {block}}}")


def serve(lab: Lab, host: str, name: str) -> subprocess.Popen[str]:
    process = lab.popen(host, "plait", "exec", name, "--", "python3", "-c", SERVER, stdout=subprocess.DEVNULL, text=True)
    until(f"{name} answers", lambda: "0:80" in inside(lab, host, name, "ss", "-ltnH").stdout, 20)
    return process


def apply(lab: Lab, host: str, text: str) -> str:
    return lab.run(host, "plait", "policy", "apply", "-f", "-", text=text).stdout


def gets(lab: Lab, host: str, name: str, to: str, wait_s: float = 1) -> bool:
    return inside(lab, host, name, "curl", "-s", "-o", "/dev/null", "--max-time", f"{wait_s:g}", f"http://{to}/").returncode == 0


def test_only_whom_a_policy_names_reaches_a_container(lab: Lab) -> None:
    db = address(lab, "db")
    for host, name in (("A", "near"), ("B", "far"), ("B", "other")):
        until(f"{name} reaches it", partial(gets, lab, host, name, db), 20)
    assert apply(lab, "B", ISOLATED) == "policy default/db created\n"
    until("the policy is in force", lambda: not gets(lab, "B", "other", db), 20)
    assert gets(lab, "A", "near", db, 5) and gets(lab, "B", "far", db, 5), "the others go on"
    assert inside(lab, "B", "far", "ping", "-c1", "-W1", db).returncode != 0, "by the port that is named, and no other way"
    by_port = lab.run("B", "curl", "-s", "--max-time", "1", f"http://{lab.address('A')}:8080/", check=False)
    assert by_port.returncode != 0, "a host is nobody that it names, by the published port either"
    assert lab.run("A", "curl", "-s", "--max-time", "5", f"http://{db}/", check=False).returncode == 0, "but for its own"
    lab.run("A", "plait", "policy", "rm", "db")
    for host, name in (("A", "near"), ("B", "far"), ("B", "other")):
        until(f"{name} reaches it again", partial(gets, lab, host, name, db), 20)


def test_by_a_published_port_the_clients_own_address_counts(lab: Lab) -> None:
    apply(lab, "A", outside(f"{lab.address('B')}/32"))
    assert lab.run("B", "curl", "-s", "--max-time", "5", f"http://{lab.address('A')}:8080/", check=False).returncode == 0
    apply(lab, "A", outside(f"0.0.0.0/0, except: [{lab.address('B')}/32]"))
    assert lab.run("B", "curl", "-s", "--max-time", "1", f"http://{lab.address('A')}:8080/", check=False).returncode != 0


def test_a_container_that_comes_under_a_policy_was_never_open(lab: Lab) -> None:
    """From before it is there somebody asks it all the time, and it answers at once."""
    apply(lab, "A", ISOLATED)
    lab.run("A", "plait", "run", "--name", "late", "--label", "app=db")
    to = address(lab, "late")
    lab.run("A", "plait", "rm", "late")
    asking = lab.popen(
        "B", "plait", "exec", "other", "--", "ping", "-i", "0.01", "-c", "1000", "-W", "1", to, stdout=subprocess.PIPE, text=True
    )
    try:
        for _ in range(3):
            lab.run("A", "plait", "run", "--name", "late", "--ip", to, "--label", "app=db")
            assert inside(lab, "A", "near", "ping", "-c1", "-W1", to).returncode != 0
            lab.run("A", "plait", "rm", "late")
    finally:
        said, _ = asking.communicate(timeout=60)
    assert " 0 received" in said, said


def test_what_is_decided_is_explained(lab: Lab) -> None:
    apply(lab, "A", ISOLATED)
    allowed = lab.run("A", "plait", "policy", "test", "far", "db:80", check=False)
    assert allowed.returncode == 0 and "by policy default/db, ingress[0]" in allowed.stdout
    denied = lab.run("B", "plait", "policy", "test", "other", "db:80", check=False)
    assert denied.returncode == 1 and "isolated by default/db" in denied.stdout
    assert json.loads(lab.run("B", "plait", "policy", "test", "--udp", "far", "db:80", "--json", check=False).stdout)["allowed"] is False
    wrong = lab.run("A", "plait", "policy", "apply", "-f", "-", text=ISOLATED.replace("port: 80", "port: 0"), check=False)
    assert wrong.returncode == 1 and "line 8, spec.ingress[0].ports[0].port: 0 is not from 1 to 65535" in wrong.stderr
    assert [row["name"] for row in shown(lab, "A", "policy", "ls")] == ["db"], "the one in force stays"


def test_what_a_file_would_change_is_said_and_nothing_is_changed(lab: Lab) -> None:
    told = json.loads(lab.run("B", "plait", "policy", "plan", "-f", "-", "--json", text=ISOLATED).stdout)
    pairs = {(pair["source"], pair["destination"]): pair["after"] for pair in told["pairs"]}
    assert told["selected"] == ["A/db ingress"] and pairs["B/far", "A/db"] == "tcp 80" and pairs["B/other", "A/db"] == "nothing"
    assert shown(lab, "A", "policy", "ls") == [] and gets(lab, "B", "other", address(lab, "db"), 5)
    assert json.loads(lab.run("A", "plait", "policy", "plan", "-f", "-", "--json", text=ISOLATED).stdout)["added"] > 0


def test_what_rules_decide_is_counted_and_what_they_drop_is_listed(lab: Lab) -> None:
    apply(lab, "A", ISOLATED)
    db = address(lab, "db")
    until("the policy is in force", lambda: not gets(lab, "B", "other", db), 20)
    assert gets(lab, "B", "far", db, 5)
    dropped = [row for row in shown(lab, "A", "policy", "drops") if row["source"].startswith("other ")]
    assert [(row["port"], row["policies"], row["audit"]) for row in dropped] == [(80, ["default/db"], False)]
    rules = {rule["rule"]: rule for rule in shown(lab, "A", "policy", "show", "db")["rules"]}
    assert rules["ingress[0]"]["allowed"] >= 1 and rules[""]["denied"] >= 1
    assert shown(lab, "B", "policy", "drops") == [], "each host tells of its own"


def test_a_policy_to_audit_tells_what_it_would_drop(lab: Lab) -> None:
    db = address(lab, "db")
    apply(lab, "B", ISOLATED.replace("{name: db}", '{name: trial, annotations: {plait.audit: "true"}}'))

    def told() -> bool:
        assert gets(lab, "B", "other", db, 5), "nothing is dropped, from the first on"
        return "other (" in lab.run("A", "plait", "policy", "audit").stdout

    until("it is listed", told, 20)
    assert not [row for row in shown(lab, "A", "policy", "drops") if row["policies"] == ["default/trial"]]


def test_a_restart_of_the_agent_opens_nothing(lab: Lab) -> None:
    apply(lab, "A", ISOLATED)
    db = address(lab, "db")
    until("the policy is in force", lambda: not gets(lab, "B", "other", db), 20)
    lab.kill_agent("A")
    assert not gets(lab, "B", "other", db) and gets(lab, "B", "far", db, 5)
    lab.start_agent("A")
    until("the agent is ready", lambda: shown(lab, "A", "status").get("waiting") == "", 30)
    assert not gets(lab, "B", "other", db) and gets(lab, "B", "far", db, 5)
