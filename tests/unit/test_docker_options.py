# SPDX-License-Identifier: Apache-2.0
"""What dockerd is started with."""

from __future__ import annotations

import shlex
from ipaddress import IPv4Network

from plait.runtimes.docker.options import VARIABLE, docker_env


def test_the_file_gives_a_shell_and_systemd_the_same_options() -> None:
    text = docker_env(IPv4Network("10.28.16.0/24"), 1450)
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    assert line == f'{VARIABLE}="--bip=10.28.16.1/24 --mtu=1450 --ip-masq=false --dns=10.28.16.1"'
    assert shlex.split(line) == [f"{VARIABLE}=--bip=10.28.16.1/24 --mtu=1450 --ip-masq=false --dns=10.28.16.1"]


def test_without_dns_containers_keep_the_hosts_resolvers() -> None:
    assert "--dns" not in docker_env(IPv4Network("10.28.16.0/24"), 1450, dns=False)
