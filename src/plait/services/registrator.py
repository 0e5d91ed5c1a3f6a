# SPDX-License-Identifier: Apache-2.0
"""Services that a container names itself, in its environment and labels, by registrator's conventions and plait's own.

Data in: one container, the address of its node, what the operator chose. Data out: its instances with their checks. What a container says
is turned into the body that a client would have sent to `PUT /v1/agent/service/register`, so that the same rules and words apply.

`SERVICE_KEY=value` (environment, then labels of that name) says something of all ports of the container, `SERVICE_80_KEY` of one, which
wins. `plait.KEY` and `plait.80.KEY` (labels) are the same in plait's spelling and win over both. Keys, in lower case: `name` (plait:
`service`), `id`, `tags` (commas), `ignore`, `port`, `ports` (one instance with several named ports), `address`, `check_…`; any other is
metadata of the instance (plait: `plait.meta.KEY`). Facts about registrator: its user guide, "Services" and "Backends".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from plait.model.addr import at_port
from plait.model.cluster import Container, Instance
from plait.model.discovery import LAN4, LAN6, Check
from plait.model.labels import DNS_LABEL
from plait.services.checkrequests import service_checks
from plait.services.requests import BadRequest, parse_service

Which = Literal["off", "named", "published"]
"""Which containers are registered: none, those that name a service, or also every published port under the name of its image."""
Where = Literal["container", "host"]
"""Which address a service gets: the container's own, or the host's with the published port."""
ALIVE = frozenset({"running", "paused"})
_PREFIX, _OWN = "service_", "plait."
_INTERVAL = "10s"
_COMMA = re.compile(r"(?<!\\),")
_NAMED_PORT = re.compile(r"([^:/\s]+):(\d{1,5})(?:/(\w+))?")
_CHECKS: Mapping[str, str] = {
    "check_interval": "Interval",
    "check_timeout": "Timeout",
    "check_initial_status": "Status",
    "check_http_method": "Method",
    "check_deregister_after": "DeregisterCriticalServiceAfter",
    "check_initial_delay": "InitialDelay",
    "check_success_before_passing": "SuccessBeforePassing",
    "check_failures_before_critical": "FailuresBeforeCritical",
}
"""Keys that go into a check's body as they are."""
_PLAIN = frozenset({"name", "id", "tags", "ignore", "port", "ports", "address"})
_SWITCHES: Mapping[str, str] = {"check_tls_skip_verify": "TLSSkipVerify", "check_grpc_use_tls": "GRPCUseTLS"}
_NUMBERS = ("SuccessBeforePassing", "FailuresBeforeCritical")


@dataclass(frozen=True, slots=True)
class Registration:
    """One instance of a container with its checks."""

    instance: Instance
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a container, 0 = none is known. `host` is where it is published, 0 = nowhere."""

    number: int
    proto: str = "tcp"
    host: int = 0


@dataclass(frozen=True, slots=True)
class _Words:
    """What a container says: of all of its ports, of some, and which of them are one service by their names (the service's own first)."""

    common: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    named: Mapping[str, Port] = field(default_factory=dict)

    def of(self, port: int) -> dict[str, str]:
        return {**self.common, **self.ports.get(port, {})}


def registrations(container: Container, host: str, which: Which, where: Where) -> tuple[list[Registration], list[str]]:
    """(its registrations, ordered by port, and what is wrong with those that could not be made, a sentence each). `host` is its node's
    address. Nothing for a container that does not run; those of a paused one are down."""
    if which == "off" or container.state not in ALIVE:
        return [], []
    words = _words(container)
    if "ignore" in words.common:
        return [], []
    try:
        words = replace(words, named=_named(container, words.common))
    except BadRequest as error:
        return [], [str(error)]
    made: list[Registration] = []
    problems: list[str] = []
    ports = _ports(container, words, which)
    for port in ports:
        said = words.of(port.number)
        if "ignore" in said or (which == "named" and not said.get("name")):
            continue
        try:
            made.append(_registration(container, port, said, words, len(ports) > 1, host, where))
        except BadRequest as error:
            problems.append(f"port {port.number}/{port.proto}: {error}")
    return made, problems


def _words(container: Container) -> _Words:
    common: dict[str, str] = {}
    ports: dict[int, dict[str, str]] = {}
    for key, value in _spoken(container):
        number, _, rest = key.partition("_")
        if number.isdecimal() and rest:
            ports.setdefault(int(number), {})[rest] = value
        else:
            common[key] = value
    return _Words(common, ports)


def _spoken(container: Container) -> Iterable[tuple[str, str]]:
    """(key, value) in registrator's spelling, lower case, those that count more last."""
    for source in (container.env, container.labels):
        for key, value in sorted(source.items()):
            if key.lower().startswith(_PREFIX):
                yield key.lower().removeprefix(_PREFIX), value
    for key, value in sorted(container.labels.items()):
        if key.startswith(_OWN) and key != DNS_LABEL:
            yield _translated(key.removeprefix(_OWN)), value


def _translated(key: str) -> str:
    """`80.check.http` -> `80_check_http`, `service` -> `name`; a key of metadata keeps its spelling."""
    number, _, rest = key.partition(".")
    prefix = ""
    if number.isdecimal() and rest:
        prefix, key = f"{number}_", rest
    if key.startswith("meta."):
        return prefix + key
    key = key.replace(".", "_").replace("-", "_").lower()
    return prefix + ("name" if key == "service" else key)


def _ports(container: Container, words: _Words, which: Which) -> list[Port]:
    """Those that services are registered for: the chosen one, else what is exposed, published or spoken of. With "published", of a
    container that names no service, only what is published. One without any has one service without a port."""
    if words.named:
        return [next(iter(words.named.values()))]
    published = _published(container)
    if "port" in words.common:
        number = int(words.common["port"]) if words.common["port"].isdecimal() else 0
        protos = [proto for known, proto in (*published, *container.exposed) if known == number] or ["tcp"]
        return [Port(number, protos[0], published.get((number, protos[0]), 0))]
    found = {*published}
    named = bool(words.common.get("name")) or any("name" in said for said in words.ports.values())
    if which == "named" or named:
        found |= set(container.exposed)
        found |= {(number, "tcp") for number in words.ports if number not in {known for known, _ in found}}
    if not found and named:
        return [Port(0)]
    return [Port(number, proto, published.get((number, proto), 0)) for number, proto in sorted(found)]


def _named(container: Container, said: Mapping[str, str]) -> dict[str, Port]:
    """The ports that `ports` names (`http:8080,dns:53/udp`), the service's own first: the one that `port` tells, else the first of them."""
    found: dict[str, Port] = {}
    published = _published(container)
    for part in filter(None, (part.strip() for part in said.get("ports", "").split(","))):
        match = _NAMED_PORT.fullmatch(part)
        if match is None:
            raise BadRequest(f"ports must be NAME:PORT or NAME:PORT/PROTOCOL, parted by commas, not {part!r}")
        number, proto = int(match[2]), (match[3] or "tcp").lower()
        if match[1] in found:
            raise BadRequest(f"ports names {match[1]!r} twice")
        found[match[1]] = Port(number, proto, published.get((number, proto), 0))
    if found and "port" in said:
        own = next((name for name, port in found.items() if str(port.number) == said["port"]), None)
        if own is None:
            raise BadRequest(f"port must be one of those that ports names, not {said['port']!r}")
        return {own: found[own], **found}
    return found


def _published(container: Container) -> dict[tuple[int, str], int]:
    return {(mapping.container_port, mapping.proto): mapping.host_port for mapping in container.ports}


def _registration(
    container: Container, port: Port, said: Mapping[str, str], words: _Words, grouped: bool, host: str, where: Where
) -> Registration:
    address, number = _place(container, port, host, said.get("address", where))
    name = said.get("name") or _default_name(container)
    if grouped and "name" not in words.ports.get(port.number, {}):
        name = f"{name}-{port.number}"
    udp = port.proto == "udp"
    given = f"{container.node}:{container.name}"
    if not words.named:
        given += (f":{port.number}" if port.number else "") + (":udp" if udp else "")
    body = {
        "Name": name,
        "ID": said.get("id") or given,
        "Tags": [tag for tag in (part.strip().replace("\\,", ",") for part in _COMMA.split(said.get("tags", ""))) if tag] + ["udp"] * udp,
        "Address": address,
        "Port": number,
        "Ports": _ports_body(container, words, host, said.get("address", where)),
        "Meta": _meta(said),
    }
    instance = parse_service(body, container.node)
    tagged = _tagged(container, address)
    bound = replace(
        instance, tagged_addresses=tagged, container=container.name, runtime=container.runtime, down=container.state == "paused"
    )
    checks = service_checks({"Check": _check(said, address, number, container)}, bound)
    return Registration(bound, tuple(replace(check, runtime=container.runtime) for check in checks))


def _place(container: Container, port: Port, host: str, where: str) -> tuple[str, int]:
    """(address, port) by which it is reached. BadRequest if there is no way."""
    if where not in ("container", "host"):
        raise BadRequest(f"address must be container or host, not {where!r}")
    if container.host_network:
        return host, port.number
    own = [address for _, address in sorted(container.addresses.items(), key=lambda item: (item[0] != "default", item[0]))]
    if where == "container" and own:
        return str(own[0]), port.number
    if port.host:
        return host, port.host
    raise BadRequest("it has no address that other hosts reach; publish the port, or put the container on a network of plait")


def _tagged(container: Container, address: str) -> dict[str, str]:
    """Both addresses of a container that has IPv6 on the network where it has `address`, by their kind."""
    six = (container.addresses6.get(network) for network, own in container.addresses.items() if str(own) == address)
    return next(({LAN4: address, LAN6: str(other)} for other in six if other is not None), {})


def _ports_body(container: Container, words: _Words, host: str, where: str) -> list[dict[str, object]]:
    """Its named ports, where they are reached; the first is the service's own."""
    return [
        {"Name": name, "Port": _place(container, port, host, where)[1], "Protocol": port.proto, "Default": not number}
        for number, (name, port) in enumerate(words.named.items())
    ]


def _default_name(container: Container) -> str:
    """That of its service in compose, else its image's without registry and tag."""
    if compose := container.labels.get("com.docker.compose.service"):
        return compose
    return container.image.rpartition("/")[2].partition("@")[0].partition(":")[0] or container.name


def _meta(said: Mapping[str, str]) -> dict[str, str]:
    """Whatever is none of the keys with a meaning."""
    plain = {k: v for k, v in said.items() if k not in _PLAIN and not k.startswith("check_")}
    return {key.removeprefix("meta."): value for key, value in plain.items()}


def _check(said: Mapping[str, str], address: str, port: int, container: Container) -> dict[str, object] | None:
    """The body of its check, None if it asks for none."""
    kind = _kind(said, at_port(address, port), container)
    if kind is None:
        return None
    body: dict[str, object] = {theirs: said[ours] for ours, theirs in _CHECKS.items() if ours in said}
    for key in _NUMBERS:
        if key in body:
            body[key] = int(text) if (text := str(body[key])).isdecimal() else text
    body |= {theirs: _is_true(said[ours]) for ours, theirs in _SWITCHES.items() if ours in said}
    if "TTL" not in kind:
        body.setdefault("Interval", _INTERVAL)
    return {**body, **kind}


def _kind(said: Mapping[str, str], place: str, container: Container) -> dict[str, object] | None:
    """What is checked, and by which means; the first that is named."""
    for scheme in ("http", "https"):
        if path := said.get(f"check_{scheme}"):
            return {"HTTP": f"{scheme}://{place}{path if path.startswith('/') else '/' + path}"}
    for key, name in (("tcp", "TCP"), ("udp", "UDP"), ("h2ping", "H2PING"), ("grpc", "GRPC")):
        if _is_true(said.get(f"check_{key}", "")):
            return {name: place}
    if command := said.get("check_cmd"):
        return {"DockerContainerID": container.id, "Args": ["sh", "-c", command]}
    if script := said.get("check_script"):
        address, _, port = place.rpartition(":")
        return {"Args": ["sh", "-c", script.replace("$SERVICE_IP", address.strip("[]")).replace("$SERVICE_PORT", port)]}
    if ttl := said.get("check_ttl"):
        return {"TTL": ttl}
    return None


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "yes", "on")
