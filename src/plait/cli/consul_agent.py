# SPDX-License-Identifier: Apache-2.0
"""`plait consul agent`: an agent of the directory alone, started as `consul agent` is, for test suites and without containers."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import click

from plait.cli.consul_common import GoCommand
from plait.model.errors import PlaitError

_TEXTS = {
    "node": ("node_name", "Name of the node; else the host's."),
    "node-id": ("node_id", "A UUID; else one is made and kept."),
    "datacenter": ("datacenter", "Name of the datacentre."),
    "domain": ("domain", "Domain of the names."),
    "bind": ("bind_addr", "Address that the node is registered with."),
    "advertise": ("advertise_addr", "The same, and more."),
    "client": ("client_addr", "Addresses that HTTP and DNS listen on, with blanks in between."),
    "data-dir": ("data_dir", "Directory for what must outlive the agent."),
    "log-level": ("log_level", "trace, debug, info, warn or err."),
    "pid-file": ("pid_file", "File for the process's number."),
    "alt-domain": ("alt_domain", "A second domain of the names."),
}
_PORTS = {"http-port": "http", "https-port": "https", "dns-port": "dns"}
_FLAGS = {
    "dev": ("dev", "Keep everything in memory."),
    "enable-script-checks": ("enable_script_checks", "Run health checks that are commands."),
    "enable-local-script-checks": ("enable_local_script_checks", "Run those of the configuration files."),
    "log-json": ("log_json", "Log lines as JSON."),
}
_IDLE_FLAGS = (
    "server", "bootstrap", "ui", "disable-host-node-id", "disable-keyring-file", "rejoin", "syslog", "auto-reload-config", "read-replica",
    "non-voting-server",
)  # fmt: skip
_IDLE_TEXTS = (
    "bootstrap-expect", "join", "join-wan", "retry-join", "retry-join-wan", "retry-interval", "retry-interval-wan", "retry-max",
    "retry-max-wan", "encrypt", "grpc-port", "grpc-tls-port", "serf-lan-port", "serf-wan-port", "server-port", "protocol", "raft-protocol",
    "log-file", "log-rotate-bytes", "log-rotate-duration", "log-rotate-max-files", "config-format", "ui-dir", "ui-content-path",
    "advertise-wan", "serf-lan-bind", "serf-wan-bind", "serf-lan-allowed-cidrs", "serf-wan-allowed-cidrs", "segment", "partition",
    "primary-datacenter", "primary-gateway", "check_output_max_size", "default-query-time", "max-query-time", "hcl",
)  # fmt: skip
"""Taken without effect: they are about parts of Consul that plait does not have."""


_IDLE = "Taken, without effect: plait has no such part."


def _with_options(command: Any) -> Any:
    for name, (_, about) in _TEXTS.items():
        command = click.option(f"-{name}", name.replace("-", "_"), default=None, help=about)(command)
    for name in _PORTS:
        command = click.option(f"-{name}", name.replace("-", "_"), type=int, default=None, help="Its port, -1 for none.")(command)
    for name, (_, about) in _FLAGS.items():
        command = click.option(f"-{name}", name.replace("-", "_"), is_flag=True, default=None, help=about)(command)
    for name in _IDLE_FLAGS:
        command = click.option(f"-{name}", name.replace("-", "_"), is_flag=True, help=_IDLE)(command)
    for name in _IDLE_TEXTS:
        command = click.option(f"-{name}", name.replace("-", "_"), multiple=True, help=_IDLE)(command)
    return command


@click.command(cls=GoCommand)
@click.option("-config-file", "files", multiple=True, type=Path, help="A JSON file, or a directory of them; may be repeated.")
@click.option("-config-dir", "folders", multiple=True, type=Path, help="A directory of JSON files; may be repeated.")
@click.option("-recursor", "recursors", multiple=True, help="Resolver for other names; may be repeated.")
@click.option("-node-meta", "node_meta", multiple=True, help="KEY:VALUE of the node; may be repeated.")
@click.option("-allow-write-http-from", "writers", multiple=True, help="Network that writes may come from; may be repeated.")
@_with_options
def agent(
    files: tuple[Path, ...],
    folders: tuple[Path, ...],
    recursors: tuple[str, ...],
    node_meta: tuple[str, ...],
    writers: tuple[str, ...],
    **given: Any,
) -> None:
    """Serve the directory alone: HTTP API, health checks and DNS, without a network or a cluster."""
    import asyncio

    from plait.agent.consulconfig import SoloSettings, read_files, settings_of
    from plait.agent.identity import Identity
    from plait.agent.logs import set_up
    from plait.agent.process import tune
    from plait.agent.solo import run_solo

    options = _options(given, recursors, node_meta, writers)

    def read() -> tuple[SoloSettings, list[str]]:
        return settings_of(read_files([*files, *folders]), options, socket.gethostname().partition(".")[0])

    def ready(identity: Identity) -> None:
        _banner(settings, identity)
        if settings.pid_file is not None:
            settings.pid_file.write_text(f"{os.getpid()}\n")

    settings, warnings = read()
    for warning in warnings:
        click.echo(f"==> WARNING: {warning}", err=True)
    set_up(settings.log_level, settings.log_form)
    click.echo("==> Starting Consul agent...")
    tune()
    try:
        asyncio.run(run_solo(settings, lambda: read()[0], ready))
    except* PlaitError as caught:
        raise caught.exceptions[0] from None
    finally:
        if settings.pid_file is not None:
            with contextlib.suppress(FileNotFoundError):
                settings.pid_file.unlink()


def _options(given: dict[str, Any], recursors: tuple[str, ...], node_meta: tuple[str, ...], writers: tuple[str, ...]) -> dict[str, Any]:
    """As the keys of a configuration file."""
    found: dict[str, Any] = {key: given[n.replace("-", "_")] for n, (key, _) in _TEXTS.items() if given[n.replace("-", "_")] is not None}
    found |= {key: on for name, (key, _) in _FLAGS.items() if (on := given[name.replace("-", "_")]) is not None}
    ports = {key: given[name.replace("-", "_")] for name, key in _PORTS.items() if given[name.replace("-", "_")] is not None}
    if ports:
        found["ports"] = ports
    if recursors:
        found["recursors"] = list(recursors)
    if writers:
        found["http_config"] = {"allow_write_http_from": list(writers)}
    if node_meta:
        found["node_meta"] = {key: value for key, _, value in (pair.partition(":") for pair in node_meta)}
    return found


def _banner(settings: Any, identity: Any) -> None:
    """What programs that start an agent wait for."""
    from plait.cli.consul import IMITATED

    where = " ".join(map(str, settings.http_listen))
    rows = (
        ("Version", f"'{IMITATED}'"),
        ("Node ID", f"'{identity.id}'"),
        ("Node name", f"'{settings.node_name}'"),
        ("Datacenter", f"'{settings.datacenter}' (Segment: '<all>')"),
        ("Server", "true (Bootstrap: true)"),
        (
            "Client Addr",
            f"[{where}] (HTTP: {settings.http_port or -1}, HTTPS: {settings.https_port or -1}, gRPC: -1, DNS: {settings.dns_port or -1})",
        ),
        ("Cluster Addr", f"{settings.address} (LAN: -1, WAN: -1)"),
    )
    click.echo("\n".join(f"{key:>18}: {value}" for key, value in rows))
    click.echo("\n==> Consul agent running!\n==> Log data will now stream in as it occurs:\n")
    click.echo("    agent: Synced node info")
