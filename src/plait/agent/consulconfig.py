# SPDX-License-Identifier: Apache-2.0
"""`consul agent`: its options and configuration files -> what an agent without a network of its own needs (`solo`).

Data in: option values, JSON files and directories in the order in which they were given. Data out: `SoloSettings`, and a warning for every
key that is unknown. Later files win, options win over all; lists and maps are merged. What belongs to parts of Consul that plait does not
have (gossip, Raft, Connect, the web page, telemetry) is accepted without effect, so that files written for Consul do. Source: Consul's
public reference of agent options.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, cast

from plait.agent.consultls import HttpsFiles, read_https
from plait.agent.dnssettings import DnsSettings, read_dns
from plait.model.errors import ConfigError

Raw = dict[str, Any]
_LOCAL = IPv4Address("127.0.0.1")
_UNIX = "unix://"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""Name of a header field (RFC 9110, section 5.6.2)."""
_LEVELS = {"trace": "debug", "debug": "debug", "info": "info", "notice": "info", "warn": "warning", "err": "error", "error": "error"}
_LISTED = ("service", "check")
"""Keys whose plural holds a list of the same."""
_EFFECTIVE_WORDS = """
node_name node_id node_meta datacenter domain bind_addr advertise_addr client_addr ports addresses data_dir recursors log_level log_json
enable_script_checks enable_local_script_checks services checks service check pid_file dev alt_domain dns_config http_config unix_sockets
tls ca_file ca_path cert_file key_file tls_min_version verify_incoming verify_incoming_https
"""
_EFFECTIVE = frozenset(_EFFECTIVE_WORDS.split())
_WITHOUT_EFFECT_WORDS = """
acl advertise_addr_ipv4 advertise_addr_ipv6 advertise_addr_wan advertise_reconnect_timeout audit auto_config
auto_encrypt autopilot bootstrap bootstrap_expect cache check_output_max_size check_update_interval
config_entries connect default_query_time disable_anonymous_signature disable_host_node_id
disable_http_unprintable_char_filter disable_kv_key_validation disable_keyring_file disable_remote_exec disable_update_check
discard_check_output discovery_max_stale enable_acl_replication enable_agent_tls_for_checks enable_central_service_config
enable_debug enable_syslog encrypt encrypt_verify_incoming encrypt_verify_outgoing experiments gossip_lan gossip_wan
leave_on_terminate license_path
limits log_file log_rotate_bytes log_rotate_duration log_rotate_max_files max_query_time partition peering performance
primary_datacenter protocol raft_boltdb raft_logstore raft_protocol raft_snapshot_interval raft_snapshot_threshold raft_trailing_logs
read_replica reconnect_timeout reconnect_timeout_wan rejoin_after_leave reporting retry_interval retry_interval_wan retry_join
retry_join_wan retry_max retry_max_wan rpc segment segments serf_lan serf_lan_allowed_cidrs serf_wan serf_wan_allowed_cidrs server
server_name server_rejoin_age_max session_ttl_min skip_leave_on_interrupt start_join start_join_wan syslog_facility telemetry
tls_cipher_suites tls_prefer_server_cipher_suites translate_wan_addrs ui ui_config ui_content_path ui_dir
use_streaming_backend verify_incoming_rpc verify_outgoing verify_server_hostname watches xds
"""
WITHOUT_EFFECT = frozenset(_WITHOUT_EFFECT_WORDS.split())

_HTTP_CONFIG = frozenset(("response_headers", "block_endpoints", "allow_write_http_from"))
_DNS_CONFIG = {
    "recursor_strategy": "upstream_strategy",
    "recursor_timeout": "upstream_timeout",
    **{key: key for key in ("node_ttl", "service_ttl", "only_passing", "soa", "a_record_limit", "udp_answer_limit", "enable_truncate")},
    "enable_additional_node_meta_txt": "enable_additional_node_meta_txt",
}
_DNS_KEYS = {"recursors": "upstreams", "alt_domain": "alt_domain"}


@dataclass(frozen=True, slots=True)
class UnixOwner:
    """Of a socket's file: names or numbers, "" = who runs the agent."""

    user: str = ""
    group: str = ""
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class SoloSettings:
    """`data_dir` None: everything is in memory and gone at the end. Ports 0 = not served. `services` and `checks` are bodies as a client
    would send them."""

    node_name: str
    node_id: str = ""
    node_meta: Mapping[str, str] = field(default_factory=dict)
    datacenter: str = "dc1"
    domain: str = "consul"
    address: IPv4Address = _LOCAL
    http_listen: tuple[IPv4Address | Path, ...] = (_LOCAL,)
    """A path is a Unix socket's."""
    http_port: int = 8500
    https_listen: tuple[IPv4Address, ...] = (_LOCAL,)
    https_port: int = 0
    https: HttpsFiles = field(default_factory=HttpsFiles)
    response_headers: tuple[tuple[str, str], ...] = ()
    blocked: tuple[str, ...] = ()
    """Beginnings of paths that are not answered."""
    writers: tuple[IPv4Network | IPv6Network, ...] = ()
    """Where writes may come from over TCP; () = from anywhere."""
    unix_owner: UnixOwner = field(default_factory=UnixOwner)
    dns_listen: tuple[IPv4Address, ...] = (_LOCAL,)
    dns_port: int = 8600
    data_dir: Path | None = None
    dns: DnsSettings = field(default_factory=lambda: read_dns({}, {}))
    script_checks: bool = False
    local_script_checks: bool = False
    log_level: str = "info"
    log_form: str = "text"
    pid_file: Path | None = None
    services: tuple[object, ...] = ()
    checks: tuple[object, ...] = ()

    def may_write(self, address: str) -> bool:
        """Whether writes are taken from there; "" is a Unix socket, whose file says who may."""
        return not (self.writers and address) or any(ip_address(address) in network for network in self.writers)


def read_files(paths: Iterable[Path]) -> Raw:
    """The files, and those below directories that end in .json, in their order, merged. ConfigError names the file."""
    merged: Raw = {}
    for path in paths:
        found = sorted(entry for entry in path.iterdir() if entry.suffix in (".json", ".hcl")) if path.is_dir() else [path]
        for file in found:
            merged = _merged(merged, _read(file))
    return merged


def _read(path: Path) -> Raw:
    try:
        raw = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError("-config-file", str(path), f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError("-config-file", str(path), f"is not JSON: {error}", "HCL is not read; write it as JSON") from error
    if not isinstance(raw, dict):
        raise ConfigError("-config-file", str(path), "must hold a JSON object")
    return _plural(raw)


def _plural(raw: Raw) -> Raw:
    """`service` and `check` as one more of `services` and `checks`."""
    found = dict(raw)
    for one in _LISTED:
        if one in found:
            found[f"{one}s"] = [*(found.get(f"{one}s") or []), found.pop(one)]
    return found


def _merged(first: Raw, second: Raw) -> Raw:
    found = dict(first)
    for key, value in second.items():
        known = found.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            found[key] = _merged(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            found[key] = [*known, *value]
        else:
            found[key] = value
    return found


def settings_of(files: Raw, options: Raw, host: str) -> tuple[SoloSettings, list[str]]:
    """(settings, warnings). `host` is the host name. ConfigError names the key."""
    raw = _merged(files, options)
    ports, addresses, http = (_map(raw, key) for key in ("ports", "addresses", "http_config"))
    client = _addresses(raw, "client_addr", (_LOCAL,))
    own = _address(raw, "advertise_addr", _address(raw, "bind_addr", _LOCAL))
    level = str(raw.get("log_level", "info")).lower()
    if level not in _LEVELS:
        raise ConfigError("log_level", level, "is not possible", f"use one of {', '.join(_LEVELS)}")
    settings = SoloSettings(
        node_name=str(raw.get("node_name") or host),
        node_id=str(raw.get("node_id") or ""),
        node_meta={str(key): str(value) for key, value in _map(raw, "node_meta").items()},
        datacenter=str(raw.get("datacenter") or "dc1").lower(),
        domain=str(raw.get("domain") or "consul").strip(".").lower(),
        address=own if int(own) else _LOCAL,
        http_listen=_http_listen(addresses, client),
        http_port=_port(ports, "http", 8500),
        https_listen=_addresses(addresses, "https", client, "addresses.https"),
        https_port=_port(ports, "https", -1),
        https=read_https(raw),
        response_headers=_fields(http.get("response_headers")),
        blocked=tuple(str(path) for path in _list(http, "block_endpoints")),
        writers=tuple(_network(text) for text in _list(http, "allow_write_http_from")),
        unix_owner=_unix_owner(_map(raw, "unix_sockets")),
        dns_listen=_addresses(addresses, "dns", client, "addresses.dns"),
        dns_port=_port(ports, "dns", 8600),
        data_dir=Path(raw["data_dir"]) if raw.get("data_dir") and not raw.get("dev") else None,
        dns=_dns(raw),
        script_checks=bool(raw.get("enable_script_checks")),
        local_script_checks=bool(raw.get("enable_local_script_checks")),
        log_level=_LEVELS[level],
        log_form="json" if raw.get("log_json") else "text",
        pid_file=Path(raw["pid_file"]) if raw.get("pid_file") else None,
        services=tuple(raw.get("services") or ()),
        checks=tuple(raw.get("checks") or ()),
    )
    if settings.data_dir is None and not raw.get("dev"):
        raise ConfigError("data_dir", "", "cannot be empty", "give -data-dir, or -dev for an agent that keeps nothing")
    return settings, [*_warnings(raw)]


def _warnings(raw: Raw) -> Iterator[str]:
    """What of the configuration is without effect although it looks as if it had some."""
    yield from (f"unknown key {key!r} has no effect" for key in sorted(raw.keys() - _EFFECTIVE - WITHOUT_EFFECT))
    if isinstance(raw.get("acl"), dict) and raw["acl"].get("enabled"):
        yield "acl.enabled has no effect: there are no access control lists, every token is accepted"
    yield from (f"http_config.{key} has no effect" for key in sorted(_map(raw, "http_config").keys() - _HTTP_CONFIG))
    ports = _map(raw, "ports")
    yield from (f"ports.{key} has no effect: it is not served" for key in ("grpc", "grpc_tls") if ports.get(key, -1) not in (-1, 0))


def _dns(raw: Mapping[str, Any]) -> DnsSettings:
    """`dns_config`, `recursors` and `alt_domain`. What of the first is about Consul's own caches and replicas is without effect: answers
    always are what the directory holds."""
    asked = _map(raw, "dns_config")
    found = {key: asked[name] for name, key in _DNS_CONFIG.items() if asked.get(name) is not None}
    found |= {key: raw[name] for name, key in _DNS_KEYS.items() if raw.get(name) is not None}
    return read_dns(
        found, {key: f"dns_config.{name}" for name, key in _DNS_CONFIG.items()} | {key: name for name, key in _DNS_KEYS.items()}
    )


def _map(raw: Mapping[str, Any], key: str) -> Raw:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(key, value, "must be a map")
    return value


def _address(raw: Mapping[str, Any], key: str, default: IPv4Address) -> IPv4Address:
    """An IPv4 address; the first of several."""
    return _addresses(raw, key, (default,))[0]


def _addresses(raw: Mapping[str, Any], key: str, default: tuple[IPv4Address, ...], name: str = "") -> tuple[IPv4Address, ...]:
    """IPv4 addresses with blanks in between, each once, in their order. A template of go-sockaddr is the default."""
    return tuple(dict.fromkeys(_one_address(name or key, text) for text in _texts(raw, key))) or default


def _texts(raw: Mapping[str, Any], key: str) -> list[str]:
    """What is separated by blanks; nothing of a template of go-sockaddr."""
    texts = str(raw.get(key) or "")
    return [] if "{{" in texts else texts.split()


def _one_address(key: str, text: str) -> IPv4Address:
    if text == "localhost":
        return _LOCAL
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise ConfigError(key, text, "is not an IPv4 address") from error


def _http_listen(addresses: Mapping[str, Any], client: tuple[IPv4Address, ...]) -> tuple[IPv4Address | Path, ...]:
    """`addresses.http`: like the others, and `unix://PATH`."""
    found: list[IPv4Address | Path] = []
    for text in _texts(addresses, "http"):
        path = text.removeprefix(_UNIX)
        if path != text and not path.startswith("/"):
            raise ConfigError("addresses.http", text, "must name a path from the root", "write unix:///run/consul.sock")
        found.append(Path(path) if path != text else _one_address("addresses.http", text))
    return tuple(dict.fromkeys(found)) or client


def _unix_owner(raw: Mapping[str, Any]) -> UnixOwner:
    mode = str(raw.get("mode") or f"{UnixOwner().mode:o}")
    if not mode.isascii() or not mode.isdecimal() or set(mode) & set("89") or int(mode, 8) > 0o777:
        raise ConfigError("unix_sockets.mode", mode, "is not a mode of a file in octal", "write 0660, for one")
    return UnixOwner(str(raw.get("user") or ""), str(raw.get("group") or ""), int(mode, 8))


def _fields(raw: object) -> tuple[tuple[str, str], ...]:
    """Header fields of every answer (RFC 9110, section 5)."""
    if not isinstance(raw or {}, dict):
        raise ConfigError("http_config.response_headers", raw, "must be a map of names and values")
    fields = tuple((str(name), str(value)) for name, value in cast(Raw, raw or {}).items())
    for name, value in fields:
        if not _TOKEN.fullmatch(name) or not value.isprintable():
            raise ConfigError("http_config.response_headers", f"{name}: {value}", "is not possible in a header section")
    return fields


def _list(http: Mapping[str, Any], key: str) -> list[Any]:
    value = http.get(key) or []
    if not isinstance(value, list):
        raise ConfigError(f"http_config.{key}", value, "must be a list")
    return value


def _network(text: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(text))
    except ValueError as error:
        raise ConfigError("http_config.allow_write_http_from", text, "is not a network such as 192.0.2.0/24") from error


def _port(ports: Mapping[str, Any], key: str, default: int) -> int:
    """-1 and 0 switch it off."""
    value = ports.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < 1 << 16:
        raise ConfigError(f"ports.{key}", value, "must be a port number, or -1 for none")
    return max(value, 0)
