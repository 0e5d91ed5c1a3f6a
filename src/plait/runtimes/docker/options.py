# SPDX-License-Identifier: Apache-2.0
"""Options that a dockerd must be started with, so that its default bridge lies in the overlay. Pure.

Data in: the node's block of the network `default` that is Docker's, and the MTU inside containers. Data out: dockerd's arguments, and
the file that a systemd unit (`EnvironmentFile=`) or a start script sources.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

VARIABLE = "PLAIT_DOCKER_OPTS"


def dockerd_options(block: IPv4Network, mtu: int, dns: IPv4Address | None) -> str:
    """dockerd's arguments, separated by spaces: the bridge holds the first host address of `block`, packets between containers keep their
    source address (plait translates what leaves the overlay), and `dns` answers what Docker's own resolver does not know; None: whoever
    answers the host."""
    asks = f" --dns={dns}" if dns is not None else ""
    return f"--bip={block[1]}/{block.prefixlen} --mtu={mtu} --ip-masq=false{asks}"


def docker_env(block: IPv4Network, mtu: int, *, dns: bool = True) -> str:
    """The whole text of /run/plait/docker.env. The DNS server is the bridge's own address: the agent answers on it, unless not `dns`."""
    options = dockerd_options(block, mtu, block[1] if dns else None)
    return f'# Written by plait: start dockerd with these options.\n{VARIABLE}="{options}"\n'
