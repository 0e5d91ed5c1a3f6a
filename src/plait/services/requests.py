# SPDX-License-Identifier: Apache-2.0
"""Consul's request bodies and parameters -> values. What is wrong raises BadRequest, with Consul's words where clients know them.

Data in: decoded JSON, texts. Data out: `Instance` values, seconds. Keys arrive in three spellings (Name, name, enable_tag_override):
they are compared in lower case without underscores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

from plait.model.cluster import Instance, NamedPort, Protocol
from plait.model.errors import PlaitError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_HOST = re.compile(r"[A-Za-z0-9._-]{0,253}")
_PORT_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,60}[A-Za-z0-9])?")
"""One label of DNS, with room for the underscore that RFC 2782 puts before it."""
_PROTOCOLS: Mapping[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}
_MAX_META, _MAX_META_VALUE, _MAX_WEIGHT, _MAX_PORTS = 64, 512, 65535, 64
_MAX_DURATION_S = ((1 << 63) - 1) / 1e9
_MAX_NAME = 512
"""Bytes of a service name or id: it must still fit into a key of the store, and into the path of a request that names it."""


class BadRequest(PlaitError):
    """The request is wrong; answered with status 400 and this text."""


class Refusal(BadRequest):
    """The request is understood and cannot be carried out; Consul answers these with status 500."""


class TooLarge(BadRequest):
    """More than one request may hold; answered with status 413."""


def duration_s(text: str) -> float:
    """A Go duration ("1m30s", "100ms", "0") in seconds (Go: time.ParseDuration). ValueError if it is none, negative, or too long."""
    if text == "0":
        return 0.0
    position, total = 0, 0.0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is not a duration")
        total += float(match.group(1)) * _UNITS[match.group(2)]
        position = match.end()
    if not text:
        raise ValueError("an empty text is not a duration")
    if total > _MAX_DURATION_S:
        raise ValueError(f"{text[:40]!r} is too long for a duration")
    return total


def fold(body: object) -> dict[str, object]:
    """The object's keys in lower case without underscores. BadRequest if it is no object."""
    if not isinstance(body, Mapping):
        raise BadRequest(f"Request decode failed: expected a JSON object, got {'nothing' if body is None else type(body).__name__}")
    return {str(key).lower().replace("_", ""): value for key, value in body.items()}


_KEPT: Mapping[str, type] = {"Kind": str, "Proxy": Mapping, "Locality": Mapping, "SocketPath": str}
"""Keys of a service that are kept and shown as they are, and what they must be."""


def parse_service(body: object, node: str) -> Instance:
    """A service definition as in `PUT /v1/agent/service/register`, on `node`. Unknown keys are ignored, as Consul does; its checks are read
    by `checkrequests`."""
    raw = fold(body)
    name = name_of(raw, "name")
    if not name:
        raise BadRequest("Missing service name")
    tagged = tagged_of(raw.get("taggedaddresses"))
    passing, warning = weights_of(raw.get("weights"))
    ports = ports_of(raw.get("ports"), port_of(raw.get("port")))
    return Instance(
        id=name_of(raw, "id") or name,
        name=name,
        node=node,
        address=address_of(raw),
        port=next((port.port for port in ports if port.default), port_of(raw.get("port"))),
        ports=ports,
        tags=tags_of(raw.get("tags")),
        meta=meta_of(raw.get("meta")),
        tagged_addresses={kind: address for kind, (address, _) in tagged.items()},
        tagged_ports={kind: port for kind, (_, port) in tagged.items() if port},
        enable_tag_override=flag_of(raw, "enabletagoverride"),
        extra=_kept_of(raw),
        weight_passing=passing,
        weight_warning=warning,
    )


def text_of(raw: Mapping[str, object], key: str) -> str:
    """The text under a folded key, without blanks around it; "" if it is absent."""
    value = raw.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"Request decode failed: {key} must be a text, got {type(value).__name__}")
    return value.strip()


def name_of(raw: Mapping[str, object], key: str) -> str:
    """A name or id: one that could not be written in a path could never be deregistered."""
    value = text_of(raw, key)
    if not value.isprintable() or len(value.encode()) > _MAX_NAME:
        raise BadRequest(f"Invalid service {key}: it must be printable characters of at most {_MAX_NAME} bytes")
    return value


def flag_of(raw: Mapping[str, object], key: str, default: bool = False) -> bool:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"Request decode failed: {key} must be true or false, got {value!r}")
    return value


def address_of(raw: Mapping[str, object]) -> str:
    """An IP address or a host name; "" if there is none. Addresses that mean "every address" are nobody's."""
    address = text_of(raw, "address")
    if address in ("0.0.0.0", "::", "[::]"):
        raise BadRequest("Invalid service address")
    try:
        ip_address(address)
    except ValueError:
        if not _HOST.fullmatch(address):
            raise BadRequest("Invalid service address") from None
    return address


def port_of(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise BadRequest(f"Request decode failed: port must be a number from 0 to 65535, got {value!r}")
    return value


def ports_of(value: object, own: int) -> tuple[NamedPort, ...]:
    """A service's `Ports`: objects {Name, Port, Default?, Protocol?}. One of them is the default and so the port of the service itself: the
    one that says so, else the one that has the port `own`, else (there is no `own`) the first."""
    if not value:
        return ()
    if not isinstance(value, list) or len(value) > _MAX_PORTS:
        raise BadRequest(f"Invalid Ports: must be a list of at most {_MAX_PORTS} objects with Name and Port")
    found = [_named_port(entry) for entry in value]
    if len({port.name.lower() for port in found}) < len(found):
        raise BadRequest("Invalid Ports: each needs a name of its own, in whatever case")
    chosen = [port for port in found if port.default]
    if len(chosen) > 1:
        raise BadRequest("Invalid Ports: only one can be the default")
    if chosen and own not in (0, chosen[0].port):
        raise BadRequest(f"Invalid Ports: Port is {own}, but the default port {chosen[0].name!r} is {chosen[0].port}; give one of them")
    default = next(iter(chosen or [port for port in found if own in (0, port.port)]), None)
    return tuple(replace(port, default=port is default) for port in found)


def _named_port(value: object) -> NamedPort:
    raw = fold(value)
    name, port, protocol = text_of(raw, "name"), port_of(raw.get("port")), text_of(raw, "protocol").lower() or "tcp"
    if not _PORT_NAME.fullmatch(name):
        raise BadRequest(f"Invalid Ports: {name!r} is no name of a port: letters, digits, - and _ inside, at most 62 characters")
    if not port:
        raise BadRequest(f"Invalid Ports: {name!r} needs a port from 1 to 65535")
    if protocol not in _PROTOCOLS:
        raise BadRequest(f"Invalid Ports: the protocol of {name!r} must be one of {', '.join(_PROTOCOLS)}, got {protocol!r}")
    return NamedPort(name, port, flag_of(raw, "default"), _PROTOCOLS[protocol])


def _kept_of(raw: Mapping[str, object]) -> dict[str, object]:
    found = {key: raw[key.lower()] for key in _KEPT if raw.get(key.lower())}
    for key, value in found.items():
        if not isinstance(value, _KEPT[key]):
            raise BadRequest(f"Request decode failed: {key.lower()} must be {'a text' if _KEPT[key] is str else 'an object'}")
    return found


def tags_of(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise BadRequest("Request decode failed: tags must be a list of texts")
    return tuple(value)


def meta_of(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(entry, str) for entry in value.values()):
        raise BadRequest("Invalid Service Meta: must be a map of texts")
    if len(value) > _MAX_META:
        raise BadRequest(f"Invalid Service Meta: Node metadata cannot contain more than {_MAX_META} key/value pairs")
    for key, entry in value.items():
        if not _META_KEY.fullmatch(key) or key.startswith("consul-"):
            raise BadRequest(f"Invalid Service Meta: Couldn't load metadata pair ({key!r}, {entry!r}): Key contains invalid characters")
        if len(entry) > _MAX_META_VALUE:
            raise BadRequest(f"Invalid Service Meta: Value is too long (limit: {_MAX_META_VALUE} characters)")
    return dict(value)


def tagged_of(value: object) -> dict[str, tuple[str, int]]:
    """Kind -> (address, port; 0 = the service's own). Consul's objects {Address, Port}, and plain texts as in the answer of the seed."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest("Request decode failed: taggedaddresses must be a map")
    found: dict[str, tuple[str, int]] = {}
    for kind, entry in value.items():
        raw = {"address": entry} if isinstance(entry, str) else fold(entry)
        found[str(kind)] = (address_of(raw), port_of(raw.get("port")))
    return found


def weights_of(value: object) -> tuple[int, int]:
    if value is None:
        return 1, 1
    raw = fold(value)
    passing, warning = raw.get("passing", 1), raw.get("warning", 1)
    if type(passing) is int and type(warning) is int and 1 <= passing <= _MAX_WEIGHT and 0 <= warning <= _MAX_WEIGHT:
        return passing, warning
    raise BadRequest(f"Invalid Weights: Passing must be from 1 and Warning from 0 to {_MAX_WEIGHT}")
