# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: `/etc/plait/plait.toml` -> a frozen `Config`. Every option is declared once, in `OPTIONS`;
`docs/config.md` is generated from there. Unknown keys and wrong types are refused with the path and what is allowed."""

from __future__ import annotations

import shutil
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from plait.agent.configvalues import Getter
from plait.agent.dnssettings import KEYS as DNS_KEYS
from plait.agent.dnssettings import DnsSettings, read_dns
from plait.agent.ipamsettings import dhcp_timeout, forget_after
from plait.agent.uplink import UplinkSettings, uplink_settings
from plait.model.addr import EitherNetwork, IPAddress
from plait.model.errors import ConfigError
from plait.services.registrator import Where, Which


@dataclass(frozen=True, slots=True)
class Config:
    name: str
    address: IPAddress | None
    store: str
    fast_path: bool
    coordinates: bool
    path_mtu: bool
    rotate_days: int
    behind_nat: bool
    docker_enabled: bool
    docker_bridge: bool
    docker_socket: str
    cni_enabled: bool
    cni_config_dir: str
    cni_bin_dir: str
    cni_version: str
    cni_netavark_dir: str
    http_address: IPAddress
    http_port: int
    dns_domain: str
    datacenter: str
    search_domain: str
    dns_enabled: bool
    dns: DnsSettings
    script_checks: bool
    local_script_checks: bool
    register_services: Which
    register_address: Where
    parallel_checks: int
    reuse_after_s: float
    dhcp_timeout_s: float
    forget_after_s: float
    clients: tuple[EitherNetwork, ...]
    uplink: UplinkSettings
    policy_min_ttl_s: float
    log_level: str
    log_format: str


@dataclass(frozen=True, slots=True)
class Option:
    """One key of the file: `section.key`, what it may be, its default as text for the reference, and what it does."""

    path: str
    kind: str
    default: str
    doc: str


DNS_PORTS = (53, 8600)
"""Where DNS answers on loopback."""
OPTIONS = (
    Option("node.name", "text", "the host name", "Its name in the cluster. Used by `init` and `join` only; afterwards it is fixed."),
    Option(
        "node.address",
        "address",
        "source address of the default route",
        "Address on the underlay that other nodes send tunnel packets to. Set here it is pinned; otherwise this node follows the host to "
        "another one (DHCP, a move).",
    ),
    Option(
        "node.store",
        "HOST or HOST:PORT",
        "none",
        "Where the first node is, instead of what is known since `join`. Only needed "
        "when both this host and that one got other addresses while they could not hear each other.",
    ),
    Option(
        "node.fast_path",
        "true or false",
        "true",
        "Forward traffic inside a network where it is received (nft netdev `fwd`, an eBPF classifier), where the kernel can do that.",
    ),
    Option(
        "node.coordinates",
        "true or false",
        "true",
        "Measure round trips to other nodes (one ICMP echo every five seconds) for `near` and `/v1/coordinate`.",
    ),
    Option(
        "node.path_mtu",
        "true or false",
        "true",
        "Probe how large a packet reaches each other node (by ICMP echo, every two seconds; with more than 40 nodes 20 a second in turn) "
        "and follow it; otherwise both ends' links count.",
    ),
    Option(
        "encryption.behind_nat",
        "true or false",
        "false",
        "Other nodes cannot begin to talk to this one. Without a word it is noticed when another node hears it from another address.",
    ),
    Option(
        "encryption.rotate_days",
        "0 to 3650",
        "0",
        "Age in days at which this node changes its WireGuard key by itself; 0 = never (`plait keys rotate` does it at any time).",
    ),
    Option("docker.enabled", "true or false", "true if `dockerd` is installed", "Serve Docker's network plug-in and watch the engine."),
    Option(
        "docker.default_bridge",
        "true or false",
        "as docker.enabled",
        "Lease Docker's default bridge a block of the network `default`.",
    ),
    Option("docker.socket", "path", "/run/docker.sock", "The engine's API socket."),
    Option(
        "cni.enabled",
        "true or false",
        "true if /etc/cni/net.d is there",
        "Serve the plug-in of CNI and netavark (Podman, containerd, CRI-O), install it and write a configuration for each network.",
    ),
    Option("cni.config_dir", "path", "/etc/cni/net.d", "Where these configurations are written."),
    Option("cni.bin_dir", "path", "/opt/cni/bin", "Where the plug-in is installed for CNI."),
    Option("cni.version", "0.3.1, 0.4.0, 1.0.0 or 1.1.0", "1.0.0", "The version that these configurations are written in."),
    Option("cni.netavark_dir", "path", "none", "Where the plug-in is installed for netavark (Podman 5: /usr/local/libexec/netavark)."),
    Option("http.address", "address", "127.0.0.1", "Where the Consul-compatible HTTP API listens."),
    Option("http.port", "port", "8500", "Its port."),
    Option(
        "dns.enabled",
        "true or false",
        "true",
        "Answer DNS; if not, the host's ports 53 and 8600 stay free and containers have its resolvers.",
    ),
    Option("dns.domain", "name", "consul", "Domain of the service names (`web.service.<domain>`)."),
    Option("dns.datacenter", "name", "dc1", "Name of the datacentre in the API and in DNS names."),
    Option("dns.search", "name", "plait", "Domain under which container names answer, besides the bare name."),
    Option("dns.alt_domain", "name", "none", "A second name of `dns.domain`, answered alike."),
    Option("dns.node_ttl", "duration", "0s", "How long resolvers may keep answers about nodes and addresses; a number is seconds."),
    Option(
        "dns.service_ttl",
        "map of durations",
        "0s for all",
        "The same by service: its name, a beginning like `web-*`, or `*` for all others.",
    ),
    Option(
        "dns.soa",
        "map",
        "3600, 600, 86400, 0",
        "`refresh`, `retry`, `expire` and `min_ttl` of SOA records; the last is how long an absence is kept.",
    ),
    Option("dns.only_passing", "true or false", "false", "Name only instances of which all checks pass, none with a warning."),
    Option(
        "dns.near",
        "true or false",
        "false",
        "Name the instances nearest to this node first, by measured round trips (`node.coordinates`); else in an order drawn anew.",
    ),
    Option("dns.a_record_limit", "0 to 65536", "0", "Most records of an answer to A, AAAA or ANY, chosen anew each time; 0 = all."),
    Option("dns.udp_answer_limit", "0 to 65536", "0", "Most records of an answer over UDP without EDNS, never over 8; 0 = what fits."),
    Option("dns.enable_additional_node_meta_txt", "true or false", "false", "Tell the meta of the nodes that SRV records name too."),
    Option("dns.enable_truncate", "true or false", "true", "Mark what did not fit, so that clients ask again over TCP."),
    Option(
        "dns.upstreams",
        "list of addresses",
        "those of /etc/resolv.conf",
        "Resolvers that names outside plait are forwarded to: `192.0.2.53`, `192.0.2.53:5353`, `[2001:db8::53]:53`; `[]`: none.",
    ),
    Option(
        "dns.upstream_strategy",
        "sequential or random",
        "sequential",
        "In order, beginning with the last that answered; or drawn for each query.",
    ),
    Option("dns.upstream_timeout", "duration", "2s", "How long one of them has before the next is asked."),
    Option(
        "dns.upstream_limit",
        "1 to 10000",
        "256",
        "Most queries on their way to them; one more is answered SERVFAIL (`dns-forwards-refused`).",
    ),
    Option(
        "dns.client_rate",
        "0 to 1000000",
        "0",
        "Most queries a second from one address; more are not answered, and over TCP the connection ends (`dns-client-limited`); 0 = all.",
    ),
    Option(
        "dns.client_timeout",
        "duration",
        "5s",
        "How long clients wait: a query over UDP that had to wait longer for its turn is dropped (`dns-late`).",
    ),
    Option(
        "checks.enable_script_checks",
        "true or false",
        "false",
        "Run health checks that are commands (script, docker): whoever reaches the HTTP API can then run commands as root.",
    ),
    Option(
        "checks.enable_local_script_checks",
        "true or false",
        "false",
        "Run those that this host's own files define, and refuse those that come over the HTTP API.",
    ),
    Option(
        "checks.parallel",
        "1 to 10000",
        "512",
        "Health checks that run at once, of commands a sixteenth; those that wait for silent targets have four times as many places.",
    ),
    Option(
        "services.register",
        "off, named or published",
        "named",
        "Which containers are registered by themselves: none, those that name a service (`SERVICE_NAME`, `plait.service`), "
        "or every published port too.",
    ),
    Option(
        "services.address",
        "container or host",
        "container",
        "What these services get: the container's own address and port, or the host's with the published port.",
    ),
    Option(
        "ipam.reuse_after",
        "duration",
        "30s",
        "How long an address is kept from other names after its container is gone, unless nothing else is left; `0s`: not at all.",
    ),
    Option(
        "ipam.dhcp_timeout",
        "duration",
        "10s",
        "How long a DHCP server has to give a container an address, 1s to 12s; the engine's call waits for it.",
    ),
    Option(
        "ipam.forget_after",
        "duration",
        "0s",
        "How long a node may give no sign of life, and its host no echo, until this one removes it as `plait node rm` does; `0s`: never.",
    ),
    Option(
        "ports.from", "list of networks", "none", "Who but this host may come to published ports at all; `plait publish --from` narrows it."
    ),
    Option("uplink.rate", "rate", "none", "How fast the host's link sends (`940M`): priorities are kept there, by queues of this rate."),
    Option("uplink.weights", "N/N/N", "60/30/10", "What part of it guaranteed, normal and bulk containers have when all of them send."),
    Option(
        "policy.min_ttl", "duration", "60s", "How long an address of a name in a policy counts, even if DNS says less (`0s`: as it says)."
    ),
    Option("log.level", "debug, info, warning or error", "info", "Least level that is written."),
    Option("log.format", "text or json", "text", "Form of the log lines on standard error."),
)
_KNOWN = {option.path for option in OPTIONS}
_SECTIONS = " ".join(dict.fromkeys(f"[{option.path.partition('.')[0]}]" for option in OPTIONS))


def load_config(path: Path) -> Config:
    """Read the file; an absent one means all defaults. Raises ConfigError; nothing is changed."""
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raw = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "", f"is not valid TOML: {error}") from error
    return parse_config(raw, str(path))


def parse_config(raw: Mapping[str, object], where: str) -> Config:
    """A parsed TOML document -> Config."""
    get = Getter(_flat(raw, where), where)
    docker = get.flag("docker.enabled", lambda: shutil.which("dockerd") is not None)
    return Config(
        name=get.text("node.name", socket.gethostname().split(".")[0]),
        address=get.address("node.address"),
        store=get.text("node.store", "none"),
        fast_path=get.flag("node.fast_path", lambda: True),
        coordinates=get.flag("node.coordinates", lambda: True),
        path_mtu=get.flag("node.path_mtu", lambda: True),
        behind_nat=get.flag("encryption.behind_nat", lambda: False),
        rotate_days=get.count("encryption.rotate_days", 0, 3650, least=0),
        docker_enabled=docker,
        docker_bridge=docker and get.flag("docker.default_bridge", lambda: True),
        docker_socket=get.text("docker.socket", "/run/docker.sock"),
        cni_enabled=get.flag("cni.enabled", Path("/etc/cni/net.d").is_dir),
        cni_config_dir=get.text("cni.config_dir", "/etc/cni/net.d"),
        cni_bin_dir=get.text("cni.bin_dir", "/opt/cni/bin"),
        cni_version=get.choice("cni.version", ("0.3.1", "0.4.0", "1.0.0", "1.1.0"), "1.0.0"),
        cni_netavark_dir=get.text("cni.netavark_dir", "none"),
        http_address=get.address("http.address") or IPv4Address("127.0.0.1"),
        http_port=get.port("http.port", 8500),
        dns_domain=get.text("dns.domain", "consul").strip(".").lower(),
        datacenter=get.text("dns.datacenter", "dc1").lower(),
        search_domain=get.text("dns.search", "plait").strip(".").lower(),
        dns_enabled=get.flag("dns.enabled", lambda: True),
        dns=read_dns(get.section("dns", DNS_KEYS), {key: f"{where}: dns.{key}" for key in DNS_KEYS}),
        script_checks=get.flag("checks.enable_script_checks", lambda: False),
        local_script_checks=get.flag("checks.enable_local_script_checks", lambda: False),
        parallel_checks=get.count("checks.parallel", 512, 10000),
        reuse_after_s=get.duration("ipam.reuse_after", "30s"),
        dhcp_timeout_s=dhcp_timeout(get.duration("ipam.dhcp_timeout", "10s"), where),
        forget_after_s=forget_after(get.duration("ipam.forget_after", "0s"), where),
        register_services=get.choice("services.register", ("off", "named", "published"), "named"),
        register_address=get.choice("services.address", ("container", "host"), "container"),
        clients=get.networks("ports.from"),
        uplink=uplink_settings(get.text("uplink.rate", "none"), get.text("uplink.weights", "60/30/10"), where),
        policy_min_ttl_s=get.duration("policy.min_ttl", "60s"),
        log_level=get.choice("log.level", ("debug", "info", "warning", "error"), "info"),
        log_format=get.choice("log.format", ("text", "json"), "text"),
    )


def _flat(raw: Mapping[str, object], where: str) -> dict[str, object]:
    """Values by "section.key". ConfigError for what no option has."""
    flat: dict[str, object] = {}
    for section, body in raw.items():
        if not isinstance(body, Mapping):
            raise ConfigError(f"{where}: {section}", body, "stands outside a section", f"sections are {_SECTIONS}")
        for key, value in body.items():
            name = f"{section}.{key}"
            if name not in _KNOWN:
                raise ConfigError(f"{where}: {name}", value, "is not a known key", f"known are {', '.join(sorted(_KNOWN))}")
            flat[name] = value
    return flat


def check_node_name(name: str) -> str:
    """Node names become DNS labels and store keys: letters, digits and dashes, at most 63."""
    ok = 0 < len(name) <= 63 and name.replace("-", "a").isalnum() and name.isascii() and name[0] != "-" and name[-1] != "-"
    if not ok:
        raise ConfigError("node name", name, "is not a DNS label", "use letters, digits and dashes, at most 63; see --name")
    return name
