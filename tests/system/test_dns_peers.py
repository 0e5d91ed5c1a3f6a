# SPDX-License-Identifier: Apache-2.0
"""Those who ask plait's DNS in earnest: HAProxy (servers from SRV), nginx (resolver), dnsmasq and unbound (forwarding), dig."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from plait.lab import inside
from plait.lab.agents import log_of
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(120)]
WWW, PORT = "/run/lab/www", 8081
HAPROXY = """
global
  stats socket /run/lab/haproxy.sock
defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
resolvers plait
  nameserver here 127.0.0.1:53
  accepted_payload_size 4096
  timeout resolve 200ms
  timeout retry 200ms
  hold valid 200ms
  hold obsolete 0s
frontend all
  bind 127.0.0.1:8090
  default_backend web
backend web
  balance roundrobin
  option redispatch
  server-template web 5 _web._tcp.service.consul resolvers plait resolve-prefer ipv4 init-addr none
"""
NGINX = """
daemon off; pid /run/lab/peer-nginx.pid; error_log stderr;
events {}
http {
  access_log off;
  resolver 127.0.0.1:53 valid=1s ipv6=off;
  server { listen 127.0.0.1:8091; location / { set $web web.service.consul; proxy_pass http://$web:8081; proxy_connect_timeout 1s; } }
}
"""
UNBOUND = """
server:
  interface: 127.0.0.1@5302
  do-daemonize: no
  use-syslog: no
  chroot: ""
  username: ""
  pidfile: /run/lab/unbound-own.pid
  do-not-query-localhost: no
  domain-insecure: consul
  local-zone: consul. nodefault
  module-config: "iterator"
  cache-max-ttl: 0
  cache-max-negative-ttl: 0
forward-zone:
  name: consul
  forward-addr: 127.0.0.1@8600
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A web server on A and on B that says where it is; whoever asks is on C."""
    made = make_lab(hosts=3)
    for host in "AB":
        folder = made.path(host, WWW)
        folder.mkdir()
        (folder / "who").write_text(host)
        daemon(made, host, "web", sys.executable, "-m", "http.server", str(PORT), "--directory", WWW)
    for name, text in (("haproxy.cfg", HAPROXY), ("nginx.conf", NGINX), ("unbound.conf", UNBOUND)):
        made.path("C", f"/run/lab/{name}").write_text(text)
    return made


def daemon(lab: Lab, host: str, name: str, *command: str) -> None:
    inside.start_daemon(host, lab.state.holder(host), name, command, log_of(lab.state, host).with_name(f"{name}-{host}.log"))


def put(lab: Lab, host: str, path: str, body: object = None) -> None:
    command = ["curl", "-sS", "--fail-with-body", "-X", "PUT", f"http://127.0.0.1:8500/v1/{path}"]
    lab.run(host, *command, *(["-d", json.dumps(body)] if body is not None else []))


def serve(lab: Lab, *hosts: str) -> None:
    """The service web is on those hosts and on no other."""
    for host in "AB":
        if host in hosts:
            put(lab, host, "agent/service/register", {"ID": f"web-{host}", "Name": "web", "Address": lab.address(host), "Port": PORT})
        else:
            lab.run(host, "curl", "-s", "-X", "PUT", f"http://127.0.0.1:8500/v1/agent/service/deregister/web-{host}")


def answered(lab: Lab, port: int) -> set[str]:
    """Who answers eight requests to that port of C; what is no web server is left out."""
    asked = f"for n in 1 2 3 4 5 6 7 8; do curl -s -m 2 http://127.0.0.1:{port}/who; echo; done"
    return {line for line in lab.run("C", "sh", "-c", asked).stdout.splitlines() if line in ("A", "B")}


def dig(lab: Lab, *words: str) -> str:
    return lab.run("C", "dig", "+time=2", "+tries=2", *words, check=False).stdout


def addresses(lab: Lab, *words: str) -> set[str]:
    return set(dig(lab, "+short", *words).split())


def test_outside_names_go_to_the_hosts_own_resolvers_which_may_change(lab: Lab) -> None:
    """And to them alone who may go outside: a container of an internal network is told nothing."""
    where = lab.address("A")
    daemon(
        lab,
        "A",
        "outside",
        *f"dnsmasq -k -C /dev/null -R -h -a {where} -z -u root -x /run/lab/outside.pid -A /outside.example/192.0.2.80".split(),
    )
    lab.run("C", "plait", "network", "create", "sealed", "--internal")
    for name, network in (("free", "default"), ("shut", "sealed")):
        lab.run("C", "plait", "run", "--name", name, "--network", network)

    def found(name: str) -> str:
        return lab.run("C", "plait", "exec", name, "--", "getent", "hosts", "www.outside.example", check=False).stdout

    assert "REFUSED" in dig(lab, "@127.0.0.1", "www.outside.example"), "the lab's hosts ask themselves, which is no resolver"
    lab.run("C", "sh", "-c", f"echo nameserver {where} > /etc/resolv.conf")
    try:
        until("C follows its file", lambda: addresses(lab, "@127.0.0.1", "www.outside.example") == {"192.0.2.80"}, 10)
        assert found("free").startswith("192.0.2.80") and found("shut") == ""
        assert lab.run("C", "plait", "exec", "shut", "--", "getent", "hosts", "shut", check=False).stdout, "names inside it knows"
    finally:
        lab.run("C", "sh", "-c", "echo nameserver 127.0.0.1 > /etc/resolv.conf")
        lab.run("C", "plait", "rm", "free", "shut")
    until("and back again", lambda: "REFUSED" in dig(lab, "@127.0.0.1", "www.outside.example"), 10)
    lab.run("C", "plait", "network", "rm", "sealed")


@pytest.mark.parametrize(
    ("name", "port", "command"),
    [("haproxy", 8090, ("haproxy", "-db", "-f", "/run/lab/haproxy.cfg")), ("peer", 8091, ("nginx", "-c", "/run/lab/nginx.conf"))],
)
def test_a_proxy_finds_its_servers_and_follows_them(lab: Lab, name: str, port: int, command: tuple[str, ...]) -> None:
    serve(lab, "A")
    daemon(lab, "C", name, *command)
    for hosts in ("A", "AB", "B", "AB", "A"):
        serve(lab, *hosts)
        until(f"{name} uses {hosts}", lambda hosts=hosts: answered(lab, port) == set(hosts), 8, 0.1)


@pytest.mark.parametrize(
    ("name", "port", "command"),
    [
        (
            "dnsmasq", 5301,
            ("dnsmasq", "-k", "-C", "/dev/null", "-R", "-h", "-p", "5301", "-a", "127.0.0.1", "-z", "-c", "0", "-u", "root",
             "-x", "/run/lab/dnsmasq-own.pid", "-S", "/consul/127.0.0.1#8600"),
        ),
        ("unbound", 5302, ("unbound", "-d", "-c", "/run/lab/unbound.conf")),
    ],
)  # fmt: skip
def test_a_resolver_forwards_the_domain(lab: Lab, name: str, port: int, command: tuple[str, ...]) -> None:
    serve(lab, "A", "B")
    daemon(lab, "C", name, *command)
    here = ("@127.0.0.1", "-p", str(port))
    both = {lab.address("A"), lab.address("B")}
    until(f"{name} answers", lambda: addresses(lab, *here, "web.service.consul") == both, 8, 0.1)
    shown = dig(lab, *here, "web.service.consul", "SRV")
    assert len(re.findall(r"\tSRV\t1 1 8081 ", shown)) == 2
    assert addresses(lab, *here, "+tcp", "web.service.consul") == both
    assert "status: NXDOMAIN" in dig(lab, *here, "nobody.service.consul")
    nodata = dig(lab, *here, "web.service.consul", "MX")
    assert "status: NOERROR" in nodata and "ANSWER: 0" in nodata
    serve(lab, "B")
    until("a change is seen", lambda: addresses(lab, *here, "web.service.consul") == {lab.address("B")}, 5, 0.1)


def test_dig_sees_what_the_protocol_asks_for(lab: Lab) -> None:
    serve(lab, "A")
    address, here = lab.address("A"), "@127.0.0.1"
    for words in ((), ("+tcp",), ("+bufsize=4096",), ("+noedns",), ("+norec",), ("-p", "8600")):
        assert addresses(lab, here, *words, "web.service.consul") == {address}, words
    shown = dig(lab, here, "WeB.sErVice.CoNsUl")
    assert "WeB.sErVice.CoNsUl.\t" in shown and re.search(r"flags: qr aa", shown)
    assert addresses(lab, here, "-x", address) == {"a.node.dc1.consul."}
    assert "SOA" in dig(lab, here, "consul", "SOA", "+noall", "+answer")
    assert "status: NOERROR" not in dig(lab, here, "version.bind", "CH", "TXT")
    put(lab, "A", "agent/service/register", {"ID": "many", "Name": "many", "Address": address, "Port": 1})
    for number in range(2, 60):
        put(lab, "A", "agent/service/register", {"ID": f"many-{number}", "Name": "many", "Address": f"192.0.2.{number}", "Port": number})
    until("all are there", lambda: len(addresses(lab, here, "+tcp", "many.service.consul")) == 59, 5)
    assert re.search(r"flags: [^;]*\btc\b", dig(lab, here, "+noedns", "+ignore", "many.service.consul"))
    assert len(addresses(lab, here, "+noedns", "many.service.consul")) == 59, "dig asks again by TCP"


@pytest.mark.parametrize("how", ["TERM", "KILL"])
def test_no_query_is_lost_while_the_agent_ends_and_comes_back(lab: Lab, how: str) -> None:
    """Over UDP, over TCP connections that go over to the next DNS process, and between the agents, when nobody but the old one is there."""
    serve(lab, "A", "B")
    until("C knows the name", lambda: len(addresses(lab, "@127.0.0.1", "web.service.consul")) == 2, 5)
    names = lab.path("C", "/run/lab/names")
    names.write_text("web.service.consul A\nc.node.consul A\n")
    asking = ("dnsperf", "-s", "127.0.0.1", "-p", "8600", "-d", "/run/lab/names", "-l6", "-T1", "-c4", "-q32", "-Q1000", "-t4")
    clients = [lab.popen("C", *asking, *more, stdout=subprocess.PIPE, text=True) for more in ((), ("-mtcp",))]
    for _ in range(2):
        time.sleep(0.8)
        pid = inside.daemon_pid(lab.state.holder("C"), "agent")
        lab.run("C", "kill", f"-{how}", str(pid))
        until("the agent has ended", lambda: inside.daemon_pid(lab.state.holder("C"), "agent") is None, 5, 0.01)
        time.sleep(0.5)
        lab.start_agent("C")
    for shown in [client.communicate(timeout=30)[0] for client in clients]:
        assert re.search(r"Queries lost:\s+0 ", shown) and re.search(r"Response codes:\s+NOERROR \d+ \(100.00%\)", shown), shown
        print(*re.findall(r"Queries (?:sent|lost): +\d+|Average Latency.*", shown))
