# SPDX-License-Identifier: Apache-2.0
"""Debian's Patroni keeps three PostgreSQL servers by plait's Consul API: it elects, replicates, fails over and takes the old leader back.

Each host's Patroni asks the host's own agent on 127.0.0.1:8500; sessions, locks, blocking reads and the registration of the service are
those of python-consul, which Debian ships with it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plait.lab import inside
from plait.lab.agents import log_of
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(300)]
HOSTS = "ABC"
HOME = "/var/lib/patroni"
BIN = next(Path("/usr/lib/postgresql").glob("*/bin/postgres"), Path("/usr/lib/postgresql/bin/postgres")).parent
TTL_S = 20
"""Patroni's least. It asks for sessions of half of it, which end after once to twice that time."""
FAILOVER_S = TTL_S + 15
AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "env", f"HOME={HOME}", "PGPASSWORD=secret")
CONFIG = """
scope: shop
name: {host}
restapi: {{listen: '{address}:8008', connect_address: '{address}:8008'}}
consul: {{host: '127.0.0.1:8500', register_service: true}}
bootstrap:
  dcs:
    ttl: {ttl}
    loop_wait: 1
    retry_timeout: 3
    synchronous_mode: true
    postgresql: {{use_pg_rewind: true, use_slots: true}}
  initdb: [{{encoding: UTF8}}, {{locale: C.UTF-8}}, data-checksums]
postgresql:
  listen: '{address}:5432'
  connect_address: '{address}:5432'
  data_dir: {home}/data
  bin_dir: {bin}
  pgpass: {home}/pgpass
  pg_hba: ['local all all trust', 'host all all 0.0.0.0/0 md5', 'host replication all 0.0.0.0/0 md5']
  authentication:
    superuser: {{username: postgres, password: secret}}
    replication: {{username: replicator, password: secret}}
    rewind: {{username: postgres, password: secret}}
  parameters: {{unix_socket_directories: {home}, shared_buffers: 16MB, max_connections: 20, fsync: 'off', wal_level: replica}}
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(hosts=3)
    for host in HOSTS:
        made.run(host, "install", "-d", "-o", "postgres", "-g", "postgres", "-m", "700", HOME)
        text = CONFIG.format(host=host, address=made.address(host), home=HOME, bin=BIN, ttl=TTL_S)
        made.path(host, f"{HOME}/patroni.yml").write_text(text)
        made.run(host, "chown", "postgres:", f"{HOME}/patroni.yml")
    return made


def start(lab: Lab, host: str) -> None:
    command = [*AS_POSTGRES, "patroni", f"{HOME}/patroni.yml"]
    inside.start_daemon(host, lab.state.holder(host), "patroni", command, log_of(lab.state, host).with_name(f"patroni-{host}.log"))


def roles(lab: Lab) -> dict[str, str]:
    """What each host's Patroni says of its server: the role if that runs, else the state; "" if it does not answer."""
    found = {}
    for host in HOSTS:
        shown = lab.run(host, "curl", "-s", "-m", "2", f"http://{lab.address(host)}:8008/patroni", check=False).stdout
        status = json.loads(shown) if shown.startswith("{") else {}
        found[host] = status.get("role", "") if status.get("state") == "running" else status.get("state", "")
    return found


def leader(lab: Lab) -> str:
    """The only one that says it leads, and that the directory names as such; "" if there is none."""
    leads = [host for host, role in roles(lab).items() if role in ("master", "primary")]
    return leads[0] if len(leads) == 1 else ""


def sql(lab: Lab, host: str, command: str) -> str:
    """What the server of `host` answers, asked over the network from A or B."""
    client = "A" if host != "A" else "B"
    psql = [*AS_POSTGRES, "PGCONNECT_TIMEOUT=3", str(BIN / "psql"), "-XAtq", "-h", lab.address(host), "-U", "postgres", "-c", command]
    return lab.run(client, *psql).stdout.strip()


def named(lab: Lab, host: str, name: str) -> set[str]:
    return set(lab.run(host, "dig", "+short", "@127.0.0.1", name).stdout.split())


def copies(lab: Lab, host: str) -> int:
    """How many servers follow that of `host`."""
    return int(sql(lab, host, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"))


def kill(lab: Lab, host: str) -> None:
    """Patroni and its server, at once and without a word."""
    pid = inside.daemon_pid(lab.state.holder(host), "patroni")
    assert pid is not None
    lab.run(host, "sh", "-c", f"kill -9 $(cat /run/lab/patroni.pid) $(head -1 {HOME}/data/postmaster.pid)")


def test_a_leader_is_elected_followed_replaced_and_taken_back(lab: Lab) -> None:
    for host in HOSTS:
        start(lab, host)
    until("there is a leader", lambda: leader(lab) != "", 60, 0.2)
    first = leader(lab)
    until("the others follow it", lambda: sorted(roles(lab).values())[1:] == ["replica", "replica"] and copies(lab, first) == 2, 60, 0.2)
    sql(lab, first, "CREATE TABLE orders (id int PRIMARY KEY)")
    sql(lab, first, "INSERT INTO orders SELECT generate_series(1, 1000)")
    for host in HOSTS:
        until(f"{host} has the rows", lambda host=host: sql(lab, host, "SELECT count(*) FROM orders") == "1000", 5)
    asker = "C" if first != "C" else "A"
    until("the directory names it", lambda: named(lab, asker, "master.shop.service.consul") == {lab.address(first)}, 10, 0.1)
    replicas = {lab.address(host) for host in HOSTS if host != first}
    until("and the others", lambda: named(lab, asker, "replica.shop.service.consul") == replicas, 10, 0.1)

    kill(lab, first)
    began = time.monotonic()
    until("another one leads", lambda: leader(lab) not in ("", first), FAILOVER_S, 0.1)
    second = leader(lab)
    print(f"failover after {time.monotonic() - began:.1f} s")
    assert sql(lab, second, "SELECT count(*) FROM orders") == "1000", "nothing that was acknowledged is lost"
    sql(lab, second, "INSERT INTO orders VALUES (1001)")
    until("the directory follows", lambda: named(lab, asker, "master.shop.service.consul") == {lab.address(second)}, 10, 0.1)

    start(lab, first)
    until("the old leader follows the new one", lambda: roles(lab)[first] == "replica" and copies(lab, second) == 2, 60, 0.2)
    until("and has what it missed", lambda: sql(lab, first, "SELECT max(id) FROM orders") == "1001", 10)
    assert leader(lab) == second
