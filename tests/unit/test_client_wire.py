# SPDX-License-Identifier: Apache-2.0
"""Bytes of HTTP, settings, records."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from plait.client import Port, Service, durations, types
from plait.client.settings import Settings, settings
from plait.client.steps import Answer, Request
from plait.client.wire import HEAD_MAX, Reader, WireError, failure, request_bytes
from plait.model.errors import ConfigError


def read(raw: bytes, piece: int, end: bool = False) -> Reader:
    reader = Reader(body_max=1000)
    for at in range(0, len(raw), piece):
        if reader.answer is None:
            reader.feed(raw[at : at + piece])
    if end and reader.answer is None:
        reader.feed(b"")
    return reader


BY_LENGTH = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize("piece", [1, 2, 7, 4096])
@pytest.mark.parametrize(
    ("raw", "keep"),
    [
        (BY_LENGTH, True),
        (CHUNKED, True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + BY_LENGTH, True),
        (BY_LENGTH.replace(b"X-Consul-Index: 7", b"Connection: close"), False),
        (BY_LENGTH.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (BY_LENGTH.replace(b"\r\n", b"\n"), True),
    ],
)
def test_an_answer_is_read_whatever_the_pieces(raw: bytes, keep: bool, piece: int) -> None:
    reader = read(raw, piece)
    assert reader.answer is not None
    assert (reader.answer.status, reader.answer.body, reader.keep) == (200, b"hello", keep)


def test_the_index_is_read() -> None:
    assert read(BY_LENGTH, 9).answer == Answer(200, {"x-consul-index": "7", "content-length": "5"}, b"hello")
    assert [Answer(200, {"x-consul-index": text}).index for text in ("12", "", "-1", "x", "²")] == [12, 0, 0, 0, 0]


def test_a_body_may_end_with_the_connection() -> None:
    reader = read(b"HTTP/1.1 200 OK\r\n\r\nhello", 3, end=True)
    assert reader.answer is not None and reader.answer.body == b"hello" and not reader.keep
    assert read(b"HTTP/1.1 204 No Content\r\n\r\n", 3).answer == Answer(204, {}, b"")


def test_what_follows_an_answer_makes_the_connection_unfit() -> None:
    assert not read(BY_LENGTH + b"x", 4096).keep


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (HEAD_MAX + 1),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * HEAD_MAX,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000,
        b"",
        b"HTTP/1.1 200",
        BY_LENGTH[:-1],
        CHUNKED[:-2],
    ],
)
def test_what_is_no_answer_is_refused(raw: bytes) -> None:
    for piece in (3, 100_000):
        with pytest.raises(WireError):
            read(raw, piece, end=True)


def test_a_request_has_its_token_in_a_header_and_nothing_can_be_smuggled_into_it() -> None:
    place = Settings(token="s3cret", datacenter="dc2")
    raw = request_bytes(Request("PUT", "kv/a b/ü?\r\nX: y", (("flags", "1 &x"),), b"body"), place)
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "PUT /v1/kv/a%20b/%C3%BC%3F%0D%0AX%3A%20y?flags=1%20%26x&dc=dc2 HTTP/1.1"
    assert "X-Consul-Token: s3cret" in lines and "Content-Length: 4" in lines and body == b"body"
    assert "s3cret" not in lines[0]
    assert request_bytes(Request("GET", "a", (("dc", "dc9"),)), place).startswith(b"GET /v1/a?dc=dc9 HTTP/1.1\r\n")


def test_a_failure_says_what_on_whom_why_and_what_is_unknown() -> None:
    write, place = Request("PUT", "kv/a", timeout_s=2), Settings()
    assert str(failure(write, place, ConnectionRefusedError(111, "Connection refused"), False)) == (
        "PUT /v1/kv/a at http://127.0.0.1:8500 failed: Connection refused"
    )
    assert "no answer within 2 s; whether it was carried out is not known" in str(failure(write, place, TimeoutError(), True))
    assert "no such name" in str(failure(write, place, socket.gaierror(-2, "no such name"), False))
    assert "bad certificate" in str(failure(write, place, ssl.SSLError(1, "bad certificate"), False))
    assert "is not known" not in str(failure(Request("GET", "kv/a"), place, EOFError(), True))


@pytest.mark.parametrize(
    ("address", "env", "where"),
    [
        (None, {}, "http://127.0.0.1:8500"),
        (None, {"CONSUL_HTTP_ADDR": "192.0.2.1:18500"}, "http://192.0.2.1:18500"),
        (None, {"CONSUL_HTTP_ADDR": "192.0.2.1:8501", "CONSUL_HTTP_SSL": "true"}, "https://192.0.2.1:8501"),
        ("https://host", {"CONSUL_HTTP_ADDR": "other"}, "https://host:8501"),
        ("[::1]:8500", {}, "http://[::1]:8500"),
        ("unix:///run/x.sock", {}, "unix:///run/x.sock"),
    ],
)
def test_addresses(address: str | None, env: dict[str, str], where: str) -> None:
    assert settings(address, environ=env).where == where


@pytest.mark.parametrize(
    "address", ["unix://", "ftp://h:1", "http://", "h:99999", "http://h/v1", "http://u@h:1", "h:port", "http://[::1:8500"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="give http"):
        settings(address)


def test_the_environment_is_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert settings(environ={"CONSUL_HTTP_TOKEN_FILE": str(file)}).token == "from-file"
    assert settings(environ={"CONSUL_HTTP_TOKEN_FILE": str(file), "CONSUL_HTTP_TOKEN": "x"}).token == "x"
    assert settings(token="", environ={"CONSUL_HTTP_TOKEN": "x"}).token == ""
    assert not settings(environ={"CONSUL_HTTP_SSL_VERIFY": "false"}).verify
    for env in ({"CONSUL_HTTP_TOKEN_FILE": str(tmp_path / "no")}, {"CONSUL_HTTP_SSL": "maybe"}, {"CONSUL_HTTP_TOKEN": "a\nb"}):
        with pytest.raises(ConfigError):
            settings(environ=env)
    with pytest.raises(ConfigError, match="TLS files"):
        settings("https://h", environ={"CONSUL_CACERT": str(file)}).tls_context()
    with pytest.raises(ConfigError, match="timeout_s"):
        settings(timeout_s=0)


def test_durations_are_written_as_documented() -> None:
    assert [durations.text(seconds) for seconds in (15, 0, 1.5, 0.25, 90.0)] == ["15s", "0s", "1500ms", "250ms", "90s"]


def check(status: str, name: str = "c") -> dict[str, str]:
    return {"CheckID": name, "Status": status}


def test_an_instance_has_its_nodes_address_unless_it_has_its_own_and_its_worst_status() -> None:
    raw = {
        "Node": {"Node": "a", "Address": "192.0.2.1", "Meta": None, "Datacenter": "dc1"},
        "Service": {"ID": "w1", "Service": "web", "Tags": None, "Port": 80, "Weights": {"Passing": 10, "Warning": 3}},
        "Checks": [check("passing"), check("warning")],
    }
    found = types.instance(raw)
    assert (found.address, found.endpoint, found.status, found.weight, found.tags, found.key) == (
        "192.0.2.1", "192.0.2.1:80", "warning", 3, (), ("a", "w1"),
    )  # fmt: skip
    raw["Checks"] = [check("critical"), check("critical", "_service_maintenance:w1"), check("warning")]
    raw["Service"] = {"ID": "w1", "Service": "web", "Address": "2001:db8::1", "Port": 80}
    found = types.instance(raw)
    assert (found.endpoint, found.status, found.weight) == ("[2001:db8::1]:80", "maintenance", 0)
    raw["Checks"] = [check("strange")]
    assert types.instance(raw).status == "critical", "an unknown status is not trusted"


def test_a_service_says_its_ports() -> None:
    body = Service("web", ports=(Port("http", 80), Port("dns", 53, "udp", default=True))).body()
    assert body["Ports"] == [
        {"Name": "http", "Port": 80, "Default": False},
        {"Name": "dns", "Port": 53, "Default": True, "Protocol": "udp"},
    ]
    assert "Port" not in body and Service("web", 80, ports=(Port("http", 80),)).body()["Port"] == 80


def test_an_output_alone_is_no_change() -> None:
    assert types.check(check("passing") | {"Output": "a"}) == types.check(check("passing") | {"Output": "b"})
    assert types.check(check("passing")) != types.check(check("warning"))
