# SPDX-License-Identifier: Apache-2.0
"""Consul's request bodies and parameters -> values. What is wrong raises ConfigError with Consul's words where clients know them.

Keys arrive in three spellings (Name, name, enable_tag_override): they are compared in lower case without underscores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address

from plait.model.cluster import Instance
from plait.model.errors import PlaitError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MAX_META, _MAX_META_VALUE, _MAX_WEIGHT = 64, 512, 65535
_CHECK_KEYS = ("check", "checks")


class BadRequest(PlaitError):
    """The request is wrong; answered with status 400 and this text."""


def duration_s(text: str) -> float:
    """A Go duration ("1m30s", "100ms") in seconds. ValueError if it is none."""
    position, total = 0, 0.0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is not a duration")
        total += float(match.group(1)) * _UNITS[match.group(2)]
        position = match.end()
    if not text:
        raise ValueError("an empty text is not a duration")
    return total


def fold(body: object) -> dict[str, object]:
    """The object's keys in lower case without underscores. BadRequest if it is no object."""
    if not isinstance(body, Mapping):
        raise BadRequest(f"Request decode failed: expected an object, got {type(body).__name__}")
    return {str(key).lower().replace("_", ""): value for key, value in body.items()}


def parse_service(body: object, node: str) -> Instance:
    """A service definition as in `PUT /v1/agent/service/register`, on `node`."""
    raw = fold(body)
    name = _text(raw, "name")
    if not name:
        raise BadRequest("Missing service name")
    if any(raw.get(key) for key in _CHECK_KEYS):
        raise BadRequest("Invalid check: health checks are not run by this version; register the service without Check and Checks")
    address = _text(raw, "address")
    _check_address(address)
    passing, warning = _weights(raw.get("weights"))
    return Instance(
        id=_text(raw, "id") or name,
        name=name,
        node=node,
        address=address,
        port=_port(raw.get("port")),
        tags=_tags(raw.get("tags")),
        meta=_meta(raw.get("meta")),
        tagged_addresses=_tagged(raw.get("taggedaddresses")),
        enable_tag_override=bool(raw.get("enabletagoverride")),
        weight_passing=passing,
        weight_warning=warning,
    )


def _text(raw: Mapping[str, object], key: str) -> str:
    value = raw.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"Request decode failed: {key} must be a text, got {type(value).__name__}")
    return value.strip()


def _check_address(address: str) -> None:
    if address in ("0.0.0.0", "::", "[::]"):
        raise BadRequest("Invalid service address")
    try:
        ip_address(address)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9._-]*", address):
            raise BadRequest("Invalid service address") from None


def _port(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise BadRequest(f"Request decode failed: port must be a number from 0 to 65535, got {value!r}")
    return value


def _tags(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise BadRequest("Request decode failed: tags must be a list of texts")
    return tuple(value)


def _meta(value: object) -> dict[str, str]:
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


def _tagged(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest("Request decode failed: taggedaddresses must be a map")
    found: dict[str, str] = {}
    for kind, entry in value.items():
        found[str(kind)] = entry if isinstance(entry, str) else _text(fold(entry), "address")
    return found


def _weights(value: object) -> tuple[int, int]:
    if value is None:
        return 1, 1
    raw = fold(value)
    passing, warning = raw.get("passing", 1), raw.get("warning", 1)
    if isinstance(passing, int) and isinstance(warning, int) and 1 <= passing <= _MAX_WEIGHT and 0 <= warning <= _MAX_WEIGHT:
        return passing, warning
    raise BadRequest(f"Invalid Weights: Passing must be from 1 and Warning from 0 to {_MAX_WEIGHT}")
