# SPDX-License-Identifier: Apache-2.0
"""`plait consul agent`: configuration, and the program itself on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import dnslib
import pytest
from aiohttp import ClientSession

from plait.agent.consulconfig import WITHOUT_EFFECT, SoloSettings, UnixOwner, read_files, settings_of
from plait.agent.consultls import HttpsFiles, https_context
from plait.agent.journal import Journal, Write
from plait.agent.listeners import bind_unix
from plait.agent.solo import run_solo
from plait.http import unixsocket
from plait.model.errors import ConfigError, Conflict, PlaitError
from plait.services.figures import FIGURES, prometheus_name
from plait.store.pki import init_cluster

PROGRAM = [sys.executable, "-m", "plait.cli.main", "consul", "agent"]


def settings(**raw: object) -> SoloSettings:
    return settings_of({}, {"dev": True, **raw}, "host")[0]


def test_files_are_merged_in_their_order_and_options_win(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text('{"node_name": "a", "ports": {"http": 1}, "service": {"name": "x"}, "recursors": ["192.0.2.1"]}')
    (tmp_path / "2.json").write_text('{"node_name": "b", "ports": {"dns": 2}, "services": [{"name": "y"}], "log_level": "WARN"}')
    (tmp_path / "skipped.txt").write_text("?")
    found, warnings = settings_of(read_files([tmp_path]), {"dev": True, "datacenter": "EU"}, "host")
    assert (found.node_name, found.http_port, found.dns_port, found.log_level, found.datacenter) == ("b", 1, 2, "warning", "eu")
    assert [body["name"] for body in found.services] == ["x", "y"]  # type: ignore[index]
    assert found.dns.upstreams.places == (("192.0.2.1", 53),) and warnings == []


def test_unknown_keys_are_warnings_and_keys_of_other_parts_are_none() -> None:
    _, warnings = settings_of({"frobnicate": 1, "acl": {"enabled": True}, **dict.fromkeys(WITHOUT_EFFECT - {"acl"})}, {"dev": True}, "h")
    assert len(warnings) == 2 and "'frobnicate'" in warnings[0] and "acl.enabled" in warnings[1]


def test_ports_and_addresses() -> None:
    assert (settings(ports={"http": -1}).http_port, settings(ports={"dns": 0}).dns_port) == (0, 0)
    assert settings(client_addr="0.0.0.0").http_listen == (IPv4Address("0.0.0.0"),)
    several = settings(client_addr="127.0.0.1 127.0.0.2 127.0.0.1", addresses={"http": "unix:///run/a.sock 127.0.0.3"})
    assert several.http_listen == (Path("/run/a.sock"), IPv4Address("127.0.0.3"))
    assert several.dns_listen == (IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2"))
    assert settings(client_addr='{{ GetInterfaceIP "eth0" }}').http_listen == (IPv4Address("127.0.0.1"),)
    assert settings(unix_sockets={"mode": "0660", "group": "7"}).unix_owner == UnixOwner("", "7", 0o660)
    assert str(settings(bind_addr="0.0.0.0").address) == "127.0.0.1"
    assert str(settings(bind_addr="{{ GetPrivateIP }}", advertise_addr="192.0.2.9").address) == "192.0.2.9"
    assert settings().data_dir is None and settings(data_dir="/x").data_dir is None


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"log_level": "loud"}, "log_level"),
        ({"ports": {"http": 70000}}, "ports.http"),
        ({"ports": {"dns": True}}, "ports.dns"),
        ({"ports": 1}, "ports"),
        ({"client_addr": "nowhere"}, "client_addr"),
        ({"addresses": {"http": "127.0.0.1 nowhere"}}, "addresses.http"),
        ({"addresses": {"http": "unix://run/a.sock"}}, "addresses.http"),
        ({"addresses": {"dns": "unix:///run/a.sock"}}, "addresses.dns"),
        ({"addresses": "127.0.0.1"}, "addresses"),
        ({"unix_sockets": {"mode": "0888"}}, "unix_sockets.mode"),
        ({"unix_sockets": {"mode": "77777"}}, "unix_sockets.mode"),
        ({"http_config": {"block_endpoints": "/v1/kv"}}, "http_config.block_endpoints"),
        ({"http_config": {"allow_write_http_from": ["192.0.2.1/24"]}}, "http_config.allow_write_http_from"),
        ({"tls": {"https": 1}}, "tls.https"),
        ({"tls": {"https": {"tls_min_version": "SSLv3"}}}, "tls_min_version"),
        ({"http_config": {"response_headers": ["A: b"]}}, "http_config.response_headers"),
        ({"http_config": {"response_headers": {"A b": "c"}}}, "http_config.response_headers"),
        ({"http_config": {"response_headers": {"A": "b\r\nC: d"}}}, "http_config.response_headers"),
    ],
)
def test_bad_values_name_their_key(raw: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        settings(**raw)


def test_without_dev_a_data_directory_is_needed() -> None:
    with pytest.raises(ConfigError, match="data_dir"):
        settings_of({}, {}, "host")


def test_files_for_https_are_found_under_old_and_new_keys() -> None:
    old = {"cert_file": "a", "key_file": "b", "ca_file": "c", "verify_incoming": True, "verify_incoming_https": False}
    assert settings(**old).https == HttpsFiles("a", "b", "c")
    tls = {"defaults": {"cert_file": "d", "verify_incoming": True}, "https": {"key_file": "e", "tls_min_version": "TLSv1_3"}}
    assert settings(**old, tls=tls).https == HttpsFiles("d", "e", "c", verify=True, least=ssl.TLSVersion.TLSv1_3)
    assert settings(ports={"https": 8501}).https_port == 8501 and settings().https_port == 0
    assert settings(addresses={"https": "127.0.0.3"}).https_listen == (IPv4Address("127.0.0.3"),)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (HttpsFiles(), "needs tls.https.cert_file"),
        (HttpsFiles("/none.crt", "/none.key"), "cannot be used"),
        (HttpsFiles("a", "b", verify=True), "needs tls.https.ca_file"),
    ],
)
def test_https_without_its_files_is_refused(files: HttpsFiles, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        https_context(files)


@pytest.mark.parametrize(("text", "why"), [("{", "is not JSON"), ("[]", "JSON object"), (None, "cannot be read")])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_files([tmp_path / "a.json"])


# --- the program


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


class Running:
    def __init__(self, *options: str) -> None:
        self.http, self.dns = free_ports(2)
        command = [*PROGRAM, "-http-port", str(self.http), f"-dns-port={self.dns}", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        end = time.monotonic() + 30
        while True:
            try:
                self.ask("GET", "status/leader")
                return
            except HTTPError:
                raise
            except URLError:
                assert self.process.poll() is None and time.monotonic() < end, self.process.communicate(timeout=5)[0]
                time.sleep(0.02)

    def totals(self) -> dict[str, float]:
        """Figures since the start by Prometheus' names; of those with labels the last."""
        with urlopen(f"http://127.0.0.1:{self.http}/v1/agent/metrics?format=prometheus", timeout=10) as answer:
            rows = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name.partition("{")[0]: float(value) for name, value in rows}

    def ask(self, method: str, path: str, body: object = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        with urlopen(Request(f"http://127.0.0.1:{self.http}/v1/{path}", data, method=method), timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def resolves(self, name: str, address: str) -> bool:
        """Whether DNS answers so within five seconds."""
        query, end = dnslib.DNSRecord.question(name), time.monotonic() + 5
        while time.monotonic() < end:
            answer = dnslib.DNSRecord.parse(query.send("127.0.0.1", self.dns, timeout=5))
            if [str(rr.rdata) for rr in answer.rr] == [address]:
                return True
            time.sleep(0.01)
        return False

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> tuple[int, str]:
        said = self.process.communicate(timeout=15)[0]
        return self.process.returncode, said


@contextlib.contextmanager
def agent(*options: str) -> Iterator[Running]:
    running = Running(*options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()


def test_it_serves_the_directory_and_ends_when_asked(tmp_path: Path) -> None:
    (tmp_path / "web.json").write_text(json.dumps({"service": {"name": "web", "port": 80, "check": {"ttl": "60s", "status": "passing"}}}))
    with agent("-dev", "-node=n1", f"-config-dir={tmp_path}") as it:
        assert it.ask("GET", "catalog/services") == {"consul": [], "web": []}
        assert [node["Node"] for node in it.ask("GET", "catalog/nodes")] == ["n1"]
        assert it.resolves("web.service.consul", "127.0.0.1")
        with urlopen(f"http://127.0.0.1:{it.http}/v1/status/peers", timeout=10) as answer:
            assert answer.read() == b'[\n    "127.0.0.1:8300"\n]\n', "-dev indents"
        it.ask("PUT", "agent/service/register", {"Name": "db", "Address": "192.0.2.5"})
        assert it.resolves("db.service.consul", "192.0.2.5")
        assert it.ask("PUT", "kv/a/b", 1) is True
        (tmp_path / "web.json").write_text(json.dumps({"services": [{"name": "api"}, {"name": "web2"}]}))
        it.ask("PUT", "agent/reload")
        assert sorted(it.ask("GET", "agent/services")) == ["api", "db", "web2"]
        it.ask("PUT", "agent/leave")
        status, said = it.finish()
    assert status == 0 and "==> Consul agent running!" in said and "Node name: 'n1'" in said


def test_dns_follows_dns_config_and_prepared_queries(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    config: dict[str, Any] = {"alt_domain": "alt", "dns_config": {"service_ttl": {"*": "7s"}, "soa": {"min_ttl": 3}}, "recursors": ["::1"]}
    file.write_text(json.dumps(config))
    with agent("-dev", "-node=n1", f"-config-file={file}", "-recursor=127.0.0.9:5353") as it:

        def ttl(name: str) -> int:
            answer = dnslib.DNSRecord.parse(dnslib.DNSRecord.question(name).send("127.0.0.1", it.dns, timeout=5))
            assert answer.header.ra == 1, "there are recursors"
            return int((answer.rr or answer.auth)[0].ttl)

        for name, tag in (("one", "blue"), ("two", "green")):
            body = {"ID": name, "Name": "db", "Tags": [tag], "Address": f"192.0.2.{len(tag)}", "Port": 5432}
            it.ask("PUT", "agent/service/register", body)
        it.ask("POST", "query", {"Name": "greens", "Service": {"Service": "db", "Tags": ["!blue"]}, "DNS": {"TTL": "1m"}})
        it.ask(
            "POST",
            "query",
            {"Name": "", "Template": {"Type": "name_prefix_match"}, "Service": {"Service": "${name.full}", "Tags": ["blue"]}},
        )
        assert it.resolves("greens.query.consul", "192.0.2.5") and ttl("greens.query.consul") == 60
        assert it.resolves("db.query.alt", "192.0.2.4") and ttl("db.query.alt") == 7
        assert it.resolves("blue.db.service.alt", "192.0.2.4") and it.resolves("green.db.service.alt", "192.0.2.5")
        assert ttl("db.service.alt") == 7 and ttl("nix.service.consul") == 3
        config["dns_config"]["service_ttl"]["db"] = "9s"
        file.write_text(json.dumps(config))
        it.ask("PUT", "agent/reload")
        assert ttl("db.service.consul") == 9
        it.ask("PUT", "agent/service/deregister/two")
        assert it.resolves("db.service.consul", "192.0.2.4")
        assert ttl("greens.query.consul") == 3, "a query without instances does not exist"
        end = time.monotonic() + 5
        while not (totals := it.totals()).get("plait_dns_query_asked_total"):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert totals["plait_dns_forward_rejected_total"] == 0


def test_commands_are_run_for_files_alone_where_only_they_are_allowed(tmp_path: Path) -> None:
    checks = [{"id": "of-file", "name": "of-file", "args": ["true"], "interval": "1s"}]
    (tmp_path / "a.json").write_text(json.dumps({"enable_local_script_checks": True, "checks": checks}))
    with agent("-dev", "-node=n1", f"-config-dir={tmp_path}") as it:
        with pytest.raises(HTTPError) as caught:
            it.ask("PUT", "agent/check/register", {"Name": "of-client", "Args": ["true"], "Interval": "1s"})
        with caught.value as answer:
            assert b"from remote calls" in answer.read()
        end = time.monotonic() + 10
        while (shown := it.ask("GET", "agent/checks"))["of-file"]["Status"] != "passing":
            assert time.monotonic() < end, shown
            time.sleep(0.05)
        assert "of-client" not in shown


def test_what_it_keeps_is_there_again(tmp_path: Path) -> None:
    options = (f"-data-dir={tmp_path}/data", "-node", "n1")
    with agent(*options) as it:
        identity = it.ask("GET", "agent/self")["Config"]["NodeID"]
        it.ask("PUT", "agent/service/register", {"Name": "db", "Address": "192.0.2.5"})
        it.ask("PUT", "kv/a", 1)
        index = it.ask("GET", "kv/a")[0]["ModifyIndex"]
        assert it.end(signal.SIGINT)[0] == 0
    with agent(*options) as it:
        assert it.ask("GET", "agent/self")["Config"]["NodeID"] == identity
        assert sorted(it.ask("GET", "agent/services")) == ["db"]
        assert it.ask("GET", "kv/a")[0]["ModifyIndex"] == index


def over_unix(path: Path, method: str = "GET", target: str = "/v1/status/leader") -> tuple[int, dict[str, str]]:
    """Status and header fields of the answer to one request."""
    line = http.client.HTTPConnection("localhost")
    line.sock = socket.socket(socket.AF_UNIX)
    with contextlib.closing(line):
        line.sock.connect(str(path))
        line.request(method, target)
        answer = line.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def test_it_listens_on_several_addresses_and_unix_sockets(tmp_path: Path) -> None:
    sock, config = tmp_path / "consul.sock", tmp_path / "config.json"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(sock))  # as an agent that was killed leaves it
    config.write_text(
        json.dumps(
            {
                "addresses": {"http": f"127.0.0.1 127.0.0.2 unix://{sock}", "dns": "127.0.0.1 127.0.0.2"},
                "unix_sockets": {"mode": "0640", "user": str(os.getuid()), "group": str(os.getgid())},
                "ports": {"grpc": 8502},
            }
        )
    )
    with agent("-dev", f"-config-file={config}") as running:
        assert json.loads(urlopen(f"http://127.0.0.2:{running.http}/v1/status/leader", timeout=10).read())
        assert over_unix(sock)[0] == 200 and stat.S_IMODE(sock.stat().st_mode) == 0o640
        for host in ("127.0.0.1", "127.0.0.2"):
            answer = dnslib.DNSRecord.parse(dnslib.DNSRecord.question("consul.service.consul").send(host, running.dns, timeout=5))
            assert [str(rr.rdata) for rr in answer.rr] == ["127.0.0.1"]
        other = subprocess.run(
            [*PROGRAM, "-dev", f"-config-file={config}", "-http-port=-1", "-dns-port=-1"], capture_output=True, text=True
        )
        assert other.returncode != 0 and f"cannot listen on {sock}: a program answers there already" in other.stderr
        assert over_unix(sock)[0] == 200, "it is still there"
        code, output = running.end()
        assert code == 0 and "ports.grpc has no effect" in output
    assert not sock.exists()


def over_tls(running: Running, port: int, folder: Path, path: str, *, certificate: bool = True) -> tuple[int, bytes]:
    """Status and body of one read over HTTPS, trusting the CA in `folder`, with its certificate or none."""
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.check_hostname = False
    if certificate:
        context.load_cert_chain(folder / "node.crt", folder / "node.key")
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)) as line:
        line.request("GET", f"/v1/{path}")
        answer = line.getresponse()
        return answer.status, answer.read()


def test_https_serves_what_http_does_to_whom_it_shall(tmp_path: Path) -> None:
    init_cluster(tmp_path, "n1", "1", IPv4Address("127.0.0.1"))
    files: dict[str, object] = {"cert_file": f"{tmp_path}/node.crt", "key_file": f"{tmp_path}/node.key", "ca_file": f"{tmp_path}/ca.crt"}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"tls": {"https": files}}))
    (port,) = free_ports(1)
    with agent("-dev", f"-config-file={config}", f"-https-port={port}") as running:
        assert over_tls(running, port, tmp_path, "status/leader", certificate=False) == (200, b'"127.0.0.1:8300"\n')
        running.ask("PUT", "kv/large", "x" * 400_000)
        status, body = over_tls(running, port, tmp_path, "kv/large?raw")
        assert (status, len(body)) == (200, 400_002)
        index = json.loads(over_tls(running, port, tmp_path, "kv/large")[1])[0]["ModifyIndex"]
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(over_tls, running, port, tmp_path, f"kv/large?index={index}&wait=10s")
            time.sleep(0.2)
            running.ask("PUT", "kv/large", "small")
            assert json.loads(waits.result(5)[1])[0]["ModifyIndex"] > index
        with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as plain:
            plain.settimeout(5)
            plain.sendall(b"GET /v1/status/leader HTTP/1.1\r\nHost: a\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP"), "nothing is said in clear"
        config.write_text(json.dumps({"tls": {"https": {**files, "verify_incoming": True}}}))
        running.ask("PUT", "agent/reload")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            over_tls(running, port, tmp_path, "status/leader", certificate=False)
        assert over_tls(running, port, tmp_path, "status/leader")[0] == 200
        config.write_text(json.dumps({"tls": {"https": {**files, "cert_file": "/none"}}}))
        with pytest.raises(HTTPError) as caught:
            running.ask("PUT", "agent/reload")
        with caught.value as answer:
            assert answer.code == 500 and b"/none" in answer.read()
        assert over_tls(running, port, tmp_path, "status/leader")[0] == 200, "what was there before goes on"
        code, output = running.end()
        assert code == 0 and f"HTTPS: {port}" in output and "Traceback" not in output


def refused(running: Running, method: str, path: str, body: object = "x") -> tuple[int, str]:
    with pytest.raises(HTTPError) as caught:
        running.ask(method, path, body)
    with caught.value as answer:
        return answer.code, answer.read().decode()


def test_writes_and_paths_are_refused_as_http_config_says(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    sock = tmp_path / "consul.sock"
    blocked = {"block_endpoints": ["/v1/snapshot", "/v1/agent/f"], "allow_write_http_from": ["192.0.2.0/24"]}
    config.write_text(json.dumps({"http_config": blocked, "addresses": {"http": f"127.0.0.1 unix://{sock}"}}))
    with agent("-dev", f"-config-file={config}") as running:
        assert refused(running, "PUT", "kv/a") == (403, "Access is restricted")
        assert refused(running, "GET", "snapshot") == (403, "Endpoint is blocked by agent configuration")
        assert refused(running, "DELETE", "kv/a")[0] == 403 and refused(running, "GET", "agent/force-leave/x")[0] == 403
        assert running.ask("GET", "agent/services") == {}
        assert over_unix(sock, "PUT", "/v1/agent/reload")[0] == 200, "its file says who may"
        config.write_text(json.dumps({"http_config": {"allow_write_http_from": ["127.0.0.0/8", "::1/128"]}}))
        assert over_unix(sock, "PUT", "/v1/agent/reload")[0] == 200
        assert running.ask("PUT", "kv/a", 1) is True
        assert refused(running, "GET", "agent/force-leave/x")[0] == 405


def test_flags_of_go_may_have_a_value(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"enable_script_checks": True}))
    given = ("--dev=true", "-server=true", "-bootstrap=1", "-ui=false", "-enable-script-checks=F", "-alt-domain=alt", "-log-rotate-bytes=1")
    with agent(*given, f"-config-file={config}", "-node=n1", "-client", "127.0.0.1") as running:
        status, text = refused(running, "PUT", "agent/check/register", {"Name": "c", "Args": ["true"], "Interval": "1s"})
        assert status == 400 and "Scripts are disabled" in text, "the option wins over the file"
        assert running.resolves("n1.node.alt", "127.0.0.1")
        for wanted, count in (("n1", 2), ("nobody", 1)):
            members = [*PROGRAM[:-1], "members", f"-http-addr=127.0.0.1:{running.http}", f"-filter=Name == {wanted}"]
            listed = subprocess.run(members, capture_output=True, text=True, timeout=20)
            assert len(listed.stdout.splitlines()) == count, listed
    said = subprocess.run([*PROGRAM, "-dev=perhaps"], capture_output=True, text=True, timeout=20)
    assert said.returncode == 2 and "true or false" in said.stderr


def test_a_file_in_the_place_of_a_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(Conflict, match="is no socket"):
        bind_unix(tmp_path / "precious", UnixOwner())
    assert (tmp_path / "precious").read_text() == "mine"
    with pytest.raises(PlaitError, match=r"cannot listen on .*nowhere"):
        bind_unix(tmp_path / "nowhere" / "sock", UnixOwner())
    with pytest.raises(PlaitError, match="nobody-of-that-name"):
        bind_unix(tmp_path / "sock", UnixOwner(user="nobody-of-that-name"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(Conflict, match="is no socket"):
        bind_unix(tmp_path / "folder", UnixOwner())


def test_it_is_never_open_to_others_before_its_owner_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "chown", lambda path, *_: seen.append(stat.S_IMODE(os.stat(path).st_mode)))
    before = os.umask(0)
    try:
        bind_unix(tmp_path / "sock", UnixOwner("7", "7", 0o666)).close()
    finally:
        os.umask(before)
    assert seen == [0o600] and stat.S_IMODE((tmp_path / "sock").stat().st_mode) == 0o666


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refused)
    with pytest.raises(PlaitError, match="Operation not permitted"):
        bind_unix(tmp_path / "sock", UnixOwner(user="7"))
    assert not (tmp_path / "sock").exists()


def test_a_socket_that_cannot_be_asked_is_named_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program takes no more connections."""
    monkeypatch.setattr(unixsocket, "_PROBE_S", 0.05)
    with contextlib.ExitStack() as open_ones:
        busy = open_ones.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
        busy.bind(str(tmp_path / "sock"))
        busy.listen(0)
        open_ones.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX))).connect(str(tmp_path / "sock"))
        with pytest.raises(PlaitError, match="cannot listen on"):
            bind_unix(tmp_path / "sock", UnixOwner())
        assert (tmp_path / "sock").exists()


def test_header_fields_of_every_answer(tmp_path: Path) -> None:
    config = tmp_path / "config.json"

    def write(**fields: str) -> None:
        config.write_text(json.dumps({"http_config": {"response_headers": fields, "max_header_bytes": 4096}}))

    def fields(running: Running, path: str) -> Message:
        try:
            with urlopen(f"http://127.0.0.1:{running.http}/v1/{path}", timeout=10) as answer:
                return cast(Message, answer.headers)
        except HTTPError as error:
            return error.headers

    write(**{"Access-Control-Allow-Origin": "*", "vary": "Origin", "content-type": "image/png"})
    with agent("-dev", f"-config-file={config}") as running:
        for path in ("status/leader", "no/such/path", "kv/none"):
            got = fields(running, path)
            assert got.get_all("Access-Control-Allow-Origin") == ["*"]
            assert got.get_all("Vary") == ["Accept-Encoding"], "what an answer says of itself stands"
            assert "image/png" not in (got.get_all("Content-Type") or [])
        write(**{"X-Now": "there"})
        running.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 5
        while fields(running, "status/leader")["X-Now"] is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert fields(running, "status/leader")["Access-Control-Allow-Origin"] is None
        assert "http_config.max_header_bytes has no effect" in running.end()[1]


async def test_a_service_that_is_deregistered_during_a_reload_has_its_check_or_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    body = {"Name": "web", "Check": {"TTL": "1h"}}
    given = settings(dev=False, data_dir=str(tmp_path), services=[body], ports={"http": port, "dns": -1})
    ready, on_its_way, write = asyncio.Event(), asyncio.Event(), Journal.write

    async def slow(journal: Journal, writes: Sequence[Write]) -> None:
        if any(one.kind == "check" and one.body is not None for one in writes):
            on_its_way.set()
            await asyncio.sleep(0.3)
        await write(journal, writes)

    async def put(session: ClientSession, path: str) -> int:
        async with session.put(f"http://127.0.0.1:{port}/v1/agent/{path}") as answer:
            return answer.status

    running = asyncio.create_task(run_solo(given, lambda: given, lambda _: ready.set()))
    async with asyncio.timeout(20), ClientSession() as session:
        await ready.wait()
        monkeypatch.setattr(Journal, "write", slow)
        reloading = asyncio.create_task(put(session, "reload"))
        await on_its_way.wait()
        assert await put(session, "service/deregister/web") == 200
        assert await reloading == 200
        assert await put(session, "leave") == 200
        await running
    kept = Journal(tmp_path / "journal.db")
    assert bool(kept.load("instance")) == bool(kept.load("check"))
    kept.close()


def test_a_port_that_is_taken_is_named() -> None:
    with agent("-dev") as it:
        done = subprocess.run([*PROGRAM, "-dev", "-http-port", str(it.http), "-dns-port=-1"], capture_output=True, text=True, timeout=30)
        assert done.returncode == 1 and f"listening for HTTP on 127.0.0.1:{it.http}" in done.stderr


def test_metrics_coordinates_and_log_lines() -> None:
    with agent("-dev", "-node=n1") as it:
        it.ask("PUT", "kv/a", 1)
        it.ask("PUT", "agent/check/register", {"Name": "up", "TCP": f"127.0.0.1:{it.http}", "Interval": "1s", "Status": "passing"})
        of_nodes = ("plait.kernel.", "plait.encrypted.", "plait.spoofed.", "plait.roundtrips")
        names = {name for name in FIGURES if not name.startswith(of_nodes)}
        wanted = {prometheus_name(name) + "_count" * (FIGURES[name].kind == "summary") for name in names}
        end = time.monotonic() + 10
        while missing := wanted - it.totals().keys():
            assert time.monotonic() < end, missing
            time.sleep(0.1)
        found = it.ask("GET", "agent/metrics")
        assert {row["Name"]: row["Value"] for row in found["Gauges"]}["consul.state.kv_entries"] == 1
        assert {row["Name"]: row["Count"] for row in found["Samples"]}["consul.kvs.apply"] == 1
        with urlopen(f"http://127.0.0.1:{it.http}/v1/agent/metrics?format=prometheus", timeout=10) as answer:
            judged = subprocess.run(["promtool", "check", "metrics"], input=answer.read(), capture_output=True, timeout=30)
        assert (judged.returncode, judged.stdout + judged.stderr) == (0, b"")
        with urlopen(f"http://127.0.0.1:{it.http}/v1/agent/metrics/stream", timeout=25) as lines:
            it.ask("PUT", "kv/a", 2)
            told = json.loads(lines.readline())
        assert {row["Name"]: row["Count"] for row in told["Samples"]}["consul.kvs.apply"] in (1, 2), "of ten seconds"
        assert told == it.ask("GET", "agent/metrics")
        host = it.ask("GET", "agent/host")
        assert host["Host"]["os"] == "linux" and 0 < host["Disk"]["used"] < host["Disk"]["total"]
        (row,) = it.ask("GET", "coordinate/node/n1")
        assert row["Coord"]["Vec"] == [0.0] * 8
        moved = {"Vec": [0.1] * 8, "Error": 0.5, "Adjustment": 0, "Height": 0.001}
        assert it.ask("PUT", "coordinate/update", {"Node": "n1", "Coord": moved}) is True
        assert it.ask("GET", "coordinate/nodes")[0]["Coord"] == moved
        with urlopen(f"http://127.0.0.1:{it.http}/v1/agent/monitor?loglevel=info", timeout=10) as lines:
            it.ask("PUT", "agent/service/register", {"Name": "db"})
            assert b"service_registered" in lines.readline()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("coordinate/update", {"Node": "n1"}, 400),
        ("coordinate/update", {"Node": "n1", "Coord": {"Vec": [1e400] * 8}}, 400),
        ("coordinate/update", {"Node": "nobody", "Coord": {"Vec": [0] * 8}}, 400),
        ("agent/force-leave/nobody", None, 500),
        ("agent/join/192.0.2.1", None, 500),
        ("catalog/register", {"Datacenter": "dc2", "Node": "x", "Address": "192.0.2.1"}, 500),
    ],
)
def test_what_is_refused(shared: Running, path: str, body: object, status: int) -> None:
    with pytest.raises(HTTPError) as caught:
        shared.ask("PUT", path, body)
    with caught.value as answer:
        assert (answer.code, answer.read() != b"") == (status, True)


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with agent("-dev", "-node=n1") as running:
        yield running
