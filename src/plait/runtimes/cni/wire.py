# SPDX-License-Identifier: Apache-2.0
"""What the shim hands on -> typed requests of CNI, or a `CniError`.

Data in: the body of the shim's request (variables, each ended by a NUL, a NUL, the configuration's JSON). Data out: frozen values. Source:
the CNI specification, versions 0.3.1 to 1.1.0, and its conventions (runtimeConfig, args.cni, CNI_ARGS).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import Any, TypeVar, cast

import msgspec

from plait.model.cluster import PortMapping, Protocol
from plait.model.errors import ConfigError, Conflict, KernelError, NotFound, NotSupported, PlaitError, PoolExhausted, PortInUse
from plait.model.limits import LARGEST_RATE, LEAST_RATE, UNSAID, Limit, Limits, largest_burst

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The version of the configuration from which on a verb may be used; the others always."""
_NEEDS = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_LINK = re.compile(r"[^\s/:]{1,15}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")

INCOMPATIBLE, UNSUPPORTED, UNKNOWN, ENVIRONMENT, DECODE, INVALID, TRY_AGAIN = 1, 2, 3, 4, 6, 7, 11
UNAVAILABLE, LIMITED = 50, 51
"""Codes that the specification defines; those from 100 on are plait's own."""
CONFLICT, EXHAUSTED, PORT, KERNEL, CHANGED, INTERNAL = 100, 101, 102, 103, 104, 199
_CODES: tuple[tuple[type[PlaitError], int], ...] = (
    (ConfigError, INVALID),
    (NotFound, INVALID),
    (NotSupported, UNSUPPORTED),
    (Conflict, CONFLICT),
    (PoolExhausted, EXHAUSTED),
    (PortInUse, PORT),
    (KernelError, KERNEL),
)
T = TypeVar("T")


class CniError(PlaitError):
    """A refusal with the code that the specification has for it."""

    def __init__(self, code: int, text: str, details: str = "") -> None:
        super().__init__(text)
        self.code, self.details = code, details


def code_of(error: PlaitError) -> int:
    """The code of a deliberate error of the agent; 11 (try again later) for what is out of reach now."""
    if isinstance(error, CniError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), TRY_AGAIN)


class Port(msgspec.Struct, rename="camel"):
    host_port: int = 0
    container_port: int = 0
    protocol: str | None = None
    host_ip: str | None = msgspec.field(default=None, name="hostIP")


class Dns(msgspec.Struct):
    """Of a result, and of the capability `dns`, which says `servers` and `searches`."""

    nameservers: list[str] | None = None
    servers: list[str] | None = None
    search: list[str] | None = None
    searches: list[str] | None = None
    options: list[str] | None = None


class IpRange(msgspec.Struct, rename="camel"):
    """A part of the capability `ipRanges`; without ends, all of `subnet`."""

    subnet: str
    range_start: str | None = None
    range_end: str | None = None
    gateway: str | None = None


class Bandwidth(msgspec.Struct, rename="camel"):
    """Rates in bit/s, bursts in bits, seen from the container; 0: not limited, or not said."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class RuntimeConfig(msgspec.Struct, rename="camel"):
    port_mappings: list[Port] | None = None
    ips: list[str] | None = None
    mac: str | None = None
    aliases: list[str] | dict[str, list[str]] | None = None
    dns: Dns | None = None
    bandwidth: Bandwidth | None = None
    ip_ranges: list[list[IpRange]] | None = None


class Label(msgspec.Struct):
    key: str
    value: str = ""


class CniArgs(msgspec.Struct):
    labels: list[Label] | None = None
    ips: list[str] | None = None


class Args(msgspec.Struct):
    cni: CniArgs | None = None


class Valid(msgspec.Struct):
    container_id: str = msgspec.field(name="containerID")
    ifname: str


class Config(msgspec.Struct, rename="camel"):
    """The configuration of one call. `network` is the cluster's network, "" = the one called as the configuration is."""

    cni_version: str = "0.1.0"
    name: str = ""
    network: str = ""
    is_default_gateway: bool = True
    runtime_config: RuntimeConfig | None = None
    args: Args | None = None
    prev_result: dict[str, Any] | None = None
    valid_attachments: list[Valid] | None = msgspec.field(default=None, name="cni.dev/valid-attachments")

    @property
    def runtime(self) -> RuntimeConfig:
        return self.runtime_config or RuntimeConfig()


@dataclass(frozen=True, slots=True)
class CniCall:
    """One call. `args` is CNI_ARGS taken apart."""

    verb: str
    container: str
    netns: str
    ifname: str
    args: Mapping[str, str]
    config: Config

    @property
    def version(self) -> str:
        return self.config.cni_version

    @property
    def network(self) -> str:
        return self.config.network or self.config.name

    @property
    def key(self) -> str:
        """What an attachment is known by: the specification's network name, container and interface."""
        return f"cni.{self.config.name}.{self.container}.{self.ifname}"


def split_body(body: bytes) -> tuple[dict[str, str], bytes]:
    """The variables and the input. CniError if the body is nothing that the shim sends."""
    head, gap, given = body.partition(b"\0\0")
    if not gap:
        raise CniError(DECODE, "the request holds no variables: it is no call of plait's plug-in")
    pairs = (field.decode(errors="replace").partition("=") for field in head.split(b"\0"))
    return {name: value for name, _, value in pairs}, given


def read_call(variables: Mapping[str, str], given: bytes) -> CniCall:
    """CniError with the code of what is wrong."""
    verb = variables.get("CNI_COMMAND", "")
    if verb not in _NEEDS:
        raise CniError(ENVIRONMENT, f"CNI_COMMAND {verb!r} is unknown: use one of {', '.join(_NEEDS)}, VERSION")
    config = read_json(Config, given, "the network configuration")
    _check_version(verb, config.cni_version)
    missing = [name for name in _NEEDS[verb] if not variables.get(name)]
    if missing:
        raise CniError(ENVIRONMENT, f"{verb} needs {', '.join(missing)}")
    if not _NAME.fullmatch(config.name):
        raise CniError(INVALID, f"the network's name {config.name!r} is not possible: it begins with a letter or digit, then also _ . -")
    container, ifname = variables.get("CNI_CONTAINERID", ""), variables.get("CNI_IFNAME", "")
    if container and not _NAME.fullmatch(container):
        raise CniError(ENVIRONMENT, f"CNI_CONTAINERID {container!r} is not possible: it begins with a letter or digit, then also _ . -")
    if ifname and (not _LINK.fullmatch(ifname) or ifname in (".", "..")):
        raise CniError(ENVIRONMENT, f"CNI_IFNAME {ifname!r} is no name of an interface: at most 15 characters without space, / and :")
    return CniCall(verb, container, variables.get("CNI_NETNS", ""), ifname, _args(variables.get("CNI_ARGS", "")), config)


def read_json(wanted: type[T], given: bytes, what: str) -> T:
    """CniError 6 (failed to decode) if it is no such JSON."""
    try:
        return msgspec.json.decode(given, type=wanted)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CniError(DECODE, f"{what} cannot be read: {error}") from error


def _check_version(verb: str, version: str) -> None:
    if version not in VERSIONS:
        raise CniError(INCOMPATIBLE, f"CNI version {version} is not among those that plait has", ", ".join(VERSIONS))
    since = SINCE.get(verb, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise CniError(INCOMPATIBLE, f"{verb} came with CNI {since}, the configuration says {version}")


def _args(text: str) -> dict[str, str]:
    """`K=V;K=V`; what is no pair is left out."""
    return {key: value for key, equals, value in (part.partition("=") for part in text.split(";")) if equals}


# --- what an ADD asks for


def wanted_limits(bandwidth: Bandwidth | None) -> Limits:
    """CniError 7 for a rate or burst that is none."""
    if bandwidth is None:
        return UNSAID
    incoming = _limit("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst)
    return Limits(incoming, _limit("egress", bandwidth.egress_rate, bandwidth.egress_burst))


def _limit(what: str, rate: int, bits: int) -> Limit | None:
    """A burst of more than a second, such as the 2^31-1 bits that Kubernetes' runtimes say for "any", would be no limit: then it goes by
    the rate."""
    if not rate and not bits:
        return None
    if not LEAST_RATE <= rate <= LARGEST_RATE or bits < 0:
        raise CniError(
            INVALID, f"bandwidth: {what}Rate {rate} with {what}Burst {bits} is not possible: {LEAST_RATE} to {LARGEST_RATE} bit/s"
        )
    burst = -(-bits // 8)
    return Limit(rate, burst if burst <= largest_burst(rate) else 0)


def wanted_addresses(call: CniCall) -> tuple[IPv4Address | None, IPv6Address | None]:
    """The addresses asked for by the capability `ips`, args.cni.ips, or IP in CNI_ARGS (several: A,B), in this order; a prefix length is
    ignored."""
    cni = call.config.args.cni if call.config.args is not None else None
    asked = call.config.runtime.ips or (cni.ips if cni is not None else None) or list(filter(None, call.args.get("IP", "").split(",")))
    try:
        return one_of_each(asked)
    except ValueError as error:
        raise CniError(INVALID, f"the addresses asked for, {', '.join(asked)}, are none: {error}") from error


def one_of_each(asked: Sequence[str]) -> tuple[IPv4Address | None, IPv6Address | None]:
    """The address of each family, None where none is asked for. ValueError; NotSupported for a second one."""
    found = [ip_interface(text).ip for text in asked]
    four, six = [a for a in found if isinstance(a, IPv4Address)], [a for a in found if isinstance(a, IPv6Address)]
    if len(four) > 1 or len(six) > 1:
        raise NotSupported(f"a container has one address of each family of a network, not {len(found)}: {', '.join(asked)}")
    return next(iter(four), None), next(iter(six), None)


def wanted_mac(call: CniCall) -> str:
    """By the capability `mac` or MAC in CNI_ARGS, lower case; "" = any."""
    return checked_mac(call.config.runtime.mac or call.args.get("MAC", ""))


def checked_mac(mac: str) -> str:
    """In lower case; "" = any. CniError 7 if it is none."""
    if mac and not _MAC.fullmatch(mac):
        raise CniError(INVALID, f"the MAC address asked for, {mac!r}, is none: six bytes such as 02:42:0a:1c:00:02")
    return mac.lower()


def wanted_aliases(call: CniCall) -> tuple[str, ...]:
    """Further names: a list, or (Podman) a list by network."""
    found = call.config.runtime.aliases or []
    if isinstance(found, dict):
        found = found.get(call.config.name, [])
    return tuple(dict.fromkeys(found))


def wanted_ports(ports: list[Port] | None) -> tuple[PortMapping, ...]:
    """Entries without a host port are no publications (as the plug-in portmap has it)."""
    return tuple(_mapping(port) for port in ports or () if port.host_port)


def _mapping(port: Port) -> PortMapping:
    proto = (port.protocol or "tcp").lower()
    if proto not in ("tcp", "udp", "sctp"):
        raise CniError(INVALID, f"portMappings: protocol {port.protocol!r} is not tcp, udp or sctp")
    if not 0 < port.host_port < 65536 or not 0 < port.container_port < 65536:
        raise CniError(INVALID, f"portMappings: {port.host_port}:{port.container_port} names a port outside 1 to 65535")
    try:
        address = ip_address(port.host_ip or "0.0.0.0")
    except ValueError as error:
        raise CniError(INVALID, f"portMappings: hostIP {port.host_ip!r} is no address: {error}") from error
    return PortMapping(cast(Protocol, proto), port.host_port, port.container_port, address)


def wanted_name(call: CniCall) -> str:
    """The name of the container or pod (K8S_POD_NAME), else the beginning of its id."""
    return call.args.get("K8S_POD_NAME") or call.container[:12]


def wanted_labels(call: CniCall) -> dict[str, str]:
    """args.cni.labels, and what Kubernetes' runtimes say of the pod."""
    cni = call.config.args.cni if call.config.args is not None else None
    labels = {label.key: label.value for label in (cni.labels if cni is not None else None) or ()}
    words = {"K8S_POD_NAMESPACE": "io.kubernetes.pod.namespace", "K8S_POD_UID": "io.kubernetes.pod.uid"}
    return labels | {label: call.args[word] for word, label in words.items() if call.args.get(word)}
