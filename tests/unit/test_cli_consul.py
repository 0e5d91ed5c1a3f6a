# SPDX-License-Identifier: Apache-2.0
"""`plait consul`: options and output as scripts know them from Consul's own program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.fake_consul import FakeConsul, Server, serve

from plait.cli.consul_run import seconds
from plait.cli.main import main
from plait.client import Client, Service
from plait.client.lock import LOCK_FLAGS
from plait.model.errors import ConfigError
from plait.services.archive import Archive, pack

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(FakeConsul(time.monotonic)) as server:
        yield server


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """(exit status, standard output, standard error) of `plait consul …`."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", server.url)

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["consul", *words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


def test_keys_are_written_read_and_deleted(run: Run, tmp_path: Path) -> None:
    assert run("kv", "put", "a/b", "hello") == (0, "Success! Data written to: a/b\n", "")
    assert run("kv", "get", "a/b") == (0, "hello\n", "")
    assert run("kv", "get", "-base64", "/a/b") == (0, "aGVsbG8=\n", "")
    for words in (("--base64", "a/b"), ("a/b", "-base64"), ("--token=x", "-base64", "a/b"), ("-token", "x", "-base64", "a/b")):
        assert run("kv", "get", *words) == (0, "aGVsbG8=\n", ""), "options as Go's programs take them"
    assert run("kv", "get", "-nonsense", "a/b")[0] == 2
    assert run("kv", "get", "none") == (1, "", "Error! No key exists at: none\n")
    assert run("kv", "get") == (1, "", "Error! Missing KEY argument\n")
    (tmp_path / "value").write_bytes(b"from a file")
    assert run("kv", "put", "-flags=42", "a/c", f"@{tmp_path}/value")[0] == 0
    assert run("kv", "get", "-recurse", "a/") == (0, "a/b:hello\na/c:from a file\n", "")
    assert run("kv", "get", "-keys", "a") == (0, "a/\n", "")
    details = dict(line.split(maxsplit=1) for line in run("kv", "get", "-detailed", "a/c")[1].splitlines())
    assert (details["Flags"], details["Key"], details["Session"], details["Value"]) == ("42", "a/c", "-", "from a file")
    index = details["ModifyIndex"]
    assert run("kv", "put", "-cas", "-modify-index=1", "a/c", "x") == (1, "", "Error! Did not write to a/c: CAS failed\n")
    assert run("kv", "put", "-cas", f"-modify-index={index}", "a/c", "x")[0] == 0
    assert run("kv", "delete", "-cas", "-modify-index=1", "a/c") == (1, "", "Error! Did not delete key a/c: CAS failed\n")
    assert run("kv", "delete", "a/c") == (0, "Success! Deleted key: a/c\n", "")
    assert run("kv", "delete", "-recurse", "-cas", "a") == (1, "", "Cannot specify both -cas and -recurse!\n")
    assert run("kv", "delete", "-recurse", "a") == (0, "Success! Deleted keys with prefix: a\n", "")


def test_a_keys_lock_is_taken_and_given_back(run: Run, server: Server) -> None:
    with Client(server.url) as client:
        session = client.sessions.create()
    assert run("kv", "put", "-acquire", "a", "x") == (1, "", "Error! Missing -session: it is needed with -acquire and -release\n")
    assert run("kv", "put", "-acquire", "-cas", f"-session={session}", "a", "x")[0] == 1
    assert run("kv", "put", "-acquire", f"-session={session}", "a", "x") == (0, "Success! Lock acquired on: a\n", "")
    assert run("kv", "put", "-release", f"-session={session}", "a", "x") == (0, "Success! Lock released on: a\n", "")
    assert run("kv", "put", "-release", f"-session={session}", "a", "x") == (1, "", "Error! Did not release lock\n")


def test_keys_are_exported_and_imported(run: Run) -> None:
    run("kv", "put", "-flags=7", "a/b", "ü")
    exported = run("kv", "export", "a/")[1]
    assert json.loads(exported) == [{"key": "a/b", "flags": 7, "value": "w7w="}]
    assert run("kv", "import", "-prefix=copy/", exported) == (0, "Imported: copy/a/b\n", "")
    assert run("kv", "get", "copy/a/b") == (0, "ü\n", "")
    for wrong in ("[", "{}", '[{"key": "x"}]', '[{"key": "ok", "value": ""}, {"key": "x", "value": "%"}]'):
        status, _, said = run("kv", "import", wrong)
        assert (status, said.startswith("Cannot unmarshal data")) == ((0, False) if wrong == "{}" else (1, True))
    assert run("kv", "get", "ok")[0] == 1, "nothing is written of data that cannot be read"


def test_the_catalogue_is_listed(run: Run, server: Server) -> None:
    with Client(server.url) as client:
        client.register(Service("web", 80, tags=("b", "a")))
    assert run("catalog", "services") == (0, "consul\nweb\n", "")
    assert run("catalog", "services", "-tags") == (0, "consul\nweb     a,b\n", "")
    assert run("catalog", "nodes") == (0, "Node    ID        Address    DC\nnode-a  00000000  192.0.2.1  dc1\n", "")
    assert "zone=a" in run("catalog", "nodes", "-detailed")[1]
    head, row = run("members")[1].splitlines()
    assert head.split() == ["Node", "Address", "Status", "Type", "Build", "Protocol", "DC", "Partition", "Segment"]
    assert row.split()[:3] == ["node-a", "192.0.2.1:8301", "alive"]
    assert run("members", "-status=failed")[1].splitlines() == [" ".join(head.split()).replace(" ", "  ")]
    assert run("members", "-detailed")[1].splitlines()[0].split() == ["Node", "Address", "Status", "Tags"]
    assert run("version")[1].startswith("Consul v1.22")


def test_the_services_of_a_node(run: Run, server: Server) -> None:
    with Client(server.url) as client:
        client.register(Service("web", 80, tags=("b", "a")))
    assert run("catalog", "datacenters") == (0, "dc1\n", "")
    assert run("catalog", "services", "-tags", "-node=node-a") == (0, "web  a,b\n", "")
    assert run("catalog", "services", "-node=nobody")[1].startswith("No services match")


def test_a_snapshot_is_saved_and_restored(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "backup.snap"
    run("kv", "put", "a", "1")
    status, said, _ = run("snapshot", "save", str(file))
    assert status == 0 and said.startswith("Saved and verified snapshot to index ")
    run("kv", "put", "a", "2")
    assert run("snapshot", "restore", str(file)) == (0, "Restored snapshot\n", "")
    assert run("kv", "get", "a") == (0, "1\n", "")
    saved = file.read_bytes()
    assert run("snapshot", "save", "-http-addr=127.0.0.1:1", str(file))[0] == 1
    assert file.read_bytes() == saved and list(tmp_path.iterdir()) == [file], "a snapshot that fails spoils no older one"
    assert run("snapshot", "restore", str(tmp_path / "none"))[0] == 2


def test_what_a_snapshot_holds_is_told_without_an_agent(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "backup.snap"
    keys = (("app/db/host", b"x" * 2000), ("app/db/port", b"5432"), ("app/web", b"1"), ("other", b""))
    file.write_bytes(pack(Archive(42, tuple((f"kv/{key}", value) for key, value in keys))))
    status, said, _ = run("snapshot", "inspect", str(file))
    lines = said.splitlines()
    assert status == 0 and [line.split()[0] for line in lines[:5]] == ["ID", "Size", "Index", "Term", "Version"]
    assert lines[1].split()[1] == str(file.stat().st_size) and lines[2].split()[1] == "42"
    assert [line.split() for line in lines[6:]] == [
        ["Type", "Count", "Size"],
        ["----"] * 3,
        ["KVS", "4", "2.0KB"],
        ["----"] * 3,
        ["Total", "2.0KB"],
    ]
    told = json.loads(run("snapshot", "inspect", "-format=json", "-kvdetails", "-kvfilter=app", str(file))[1])
    assert told["Meta"]["Index"] == 42 and told["Stats"] == [{"Name": "KVS", "Sum": 2051, "Count": 4}]
    assert [(row["Name"], row["Count"]) for row in told["StatsKV"]] == [("app/db", 2), ("app/web", 1)]
    assert "other" in run("snapshot", "inspect", "-kvdetails", "-kvdepth=1", str(file))[1].splitlines()[-3]
    file.write_bytes(b"\x1f\x8bno archive")
    status, _, said = run("snapshot", "inspect", str(file))
    assert status == 1 and "is not one that plait saved" in said


def test_an_event_is_fired(run: Run, server: Server) -> None:
    status, said, _ = run("event", "-name=deploy", "now")
    assert (status, said) == (0, f"Event ID: {server.fake.events[0]['ID']}\n")
    assert run("event", "now")[0] == 2


def test_what_is_watched_is_printed_once_without_a_child(run: Run, server: Server) -> None:
    run("kv", "put", "a", "x")
    assert json.loads(run("watch", "-type=key", "-key=a")[1])["Value"] == "eA=="
    assert [row["Key"] for row in json.loads(run("watch", "-type=keyprefix", "-prefix=a")[1])] == ["a"]
    assert json.loads(run("watch", "-type=key", "-key=none")[1]) is None
    assert json.loads(run("watch", "-type=services")[1]) == {"consul": []}
    assert json.loads(run("watch", "-type=service", "-service=web", "-passingonly", "-tag=x")[1]) == []
    assert [row["CheckID"] for row in json.loads(run("watch", "-type=checks", "-state=passing")[1])] == ["serfHealth"]
    assert json.loads(run("watch", "-type=event", "-name=x")[1]) == []
    for words in (("-type=key",), ("-type=strange",)):
        status, _, said = run("watch", *words)
        assert status == 1 and said.startswith("Failed to parse watch")


def program(server: Server, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CONSUL_HTTP_ADDR": server.url}
    command = [sys.executable, "-m", "plait.cli.main", "consul", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_child_is_run_at_each_change(server: Server) -> None:
    with Client(server.url) as client:
        client.kv.put("a", b"1")
        process = program(server, "watch", "-type=key", "-key=a", "sh", "-c", "grep Value; echo $CONSUL_INDEX >&2")
        try:
            assert process.stdout is not None and process.stderr is not None
            assert '"MQ=="' in process.stdout.readline() and int(process.stderr.readline()) > 0
            client.kv.put("other", b"x")
            client.kv.put("a", b"2")
            assert '"Mg=="' in process.stdout.readline()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
        assert process.returncode == 130


def test_a_child_runs_while_the_lock_is_held(run: Run, server: Server) -> None:
    with Client(server.url) as client, client.lock("job/.lock", lock_delay_s=0):
        status, _, said = run("lock", "-timeout=200ms", "job", "echo", "never")
        assert status == 1 and "Lock acquisition failed" in said
    assert run("lock", "job", "sh", "-c", "echo $CONSUL_LOCK_HELD") == (0, "true\n", "")
    assert run("lock", "-n=2", "other", "echo one shell line")[:2] == (0, "one shell line\n")
    assert run("lock", "job", "exit 3")[0] == 0 and run("lock", "-child-exit-code", "job", "exit 3")[0] == 2
    status, _, said = run("lock", "job", "/no/such/program", "x")
    assert status == 1 and "cannot be run" in said
    assert server.fake.kv["job/.lock"]["Flags"] == LOCK_FLAGS and server.fake.leases == {}


def test_a_child_is_ended_when_its_lock_is_lost(run: Run, server: Server) -> None:
    with Client(server.url) as client:
        threading.Timer(0.5, lambda: client.sessions.destroy(client.sessions.list()[0].id)).start()
        began = time.monotonic()
        status, _, said = run("lock", "job", "sleep 30")
    assert status == 1 and "Lock lost" in said and time.monotonic() - began < 20


def test_options_of_every_command(run: Run, server: Server, tmp_path: Path) -> None:
    assert run("kv", "put", "a", "1")[0] == 0
    (tmp_path / "token").write_text("secret\n")
    assert run("kv", "get", "-stale", f"-token-file={tmp_path}/token", "-ca-file=/x", "a") == (0, "1\n", "")
    assert run("kv", "get", "-stale=false", "a") == (0, "1\n", "")
    status, _, said = run("kv", "get", f"-token-file={tmp_path}/none", "a")
    assert status == 1 and "CONSUL_HTTP_TOKEN_FILE" in said
    status, _, said = run("kv", "get", "-http-addr=https://127.0.0.1:1", "-ca-file=/none", "a")
    assert status == 1 and "/none" in said


def test_versions_and_members_in_other_forms(run: Run) -> None:
    found = json.loads(run("version", "-format=json")[1])
    assert found["Version"].startswith("1.22.") and set(found) >= {"Version", "Revision"}
    assert run("members", "-wan")[0] == 0
    assert len(run("members", "-status=^al")[1].splitlines()) == 2 and len(run("members", "-status=left|failed")[1].splitlines()) == 1
    assert run("members", "-status=(")[0] == 1


def test_lock_takes_consuls_options_and_refuses_others(run: Run, server: Server) -> None:
    with Client(server.url) as client, client.lock("job/.lock", lock_delay_s=0):
        assert run("lock", "-try=200ms", "job", "echo", "never")[0] == 1
    status, out, _ = run("lock", "-verbose", "-monitor-retry=1", "-pass-stdin", "-shell=false", "job", "sh")
    assert (status, out.splitlines()[0]) == (0, "Setting up lock at path: job")
    assert run("lock", "-shell=false", "job", "exit 3")[0] == 1, "that is no program"
    assert run("lock", "-nonsense", "job", "true")[0] == 2
    assert run("lock", "job", "sh", "-c", "exit 0", "-shell=false")[:2] == (0, ""), "what follows the child is the child's"


def test_the_service_of_an_agent_is_watched(run: Run, server: Server) -> None:
    with Client(server.url) as client:
        client.register(Service("web", port=80))
    status, out, _ = run("watch", "-type=agent_service", "-service=web")
    assert status == 0 and json.loads(out)["Service"] == "web"
    assert run("watch", "-type=agent_service")[0] == 1


def test_a_watch_whose_first_read_is_refused_says_so_at_once(run: Run) -> None:
    for kind in (["-type=connect_roots"], ["-type=connect_leaf", "-service=web"], ["-type=services", "-http-addr=127.0.0.1:1"]):
        for child in ([], ["true"]):
            status, out, said = run("watch", *kind, *child)
            assert (status, out) == (1, "") and said.count("\n") == 1
    assert run("watch", "-type=connect_leaf")[2].endswith("needs -service\n")


def test_the_agent_that_is_away_is_named(run: Run) -> None:
    status, _, said = run("kv", "get", "-http-addr=127.0.0.1:1", "a")
    assert status == 1 and "127.0.0.1:1" in said


def test_durations() -> None:
    assert [seconds(text) for text in ("10s", "1.5m", "500ms", "1h")] == [10, 90, 0.5, 3600]
    for wrong in ("10", "s", "-1s", "1 s", "²s"):
        with pytest.raises(ConfigError):
            seconds(wrong)
