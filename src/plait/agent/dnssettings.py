# SPDX-License-Identifier: Apache-2.0
"""The keys of DNS in a configuration -> what the DNS child is told. Pure.

Read alike from the section `dns` of plait.toml and from a file written for Consul, whose names for the same are brought to these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from plait.dns.options import Options, Soa
from plait.dns.records import dotted, is_name
from plait.model.errors import ConfigError
from plait.serve.dns_link import Limits, Upstreams
from plait.services.requests import duration_s

_WORDS = """
upstreams upstream_strategy upstream_timeout upstream_limit alt_domain node_ttl service_ttl only_passing soa a_record_limit
udp_answer_limit enable_truncate enable_additional_node_meta_txt client_rate client_timeout near
"""
KEYS = frozenset(_WORDS.split())
STRATEGIES = ("sequential", "random")
LONGEST_TTL_S = (1 << 31) - 1
"""RFC 2181 section 8."""
MOST_FORWARDS, MOST_QUERIES = 10000, 1000000
_SOA = {"refresh": 3600, "retry": 600, "expire": 86400, "min_ttl": 0}


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """`only_passing`: instances with a warning are not named. `near`: the nearest ones are named first. `follow_host`: no upstreams were
    named, so those of the host may count."""

    options: Options
    upstreams: Upstreams
    limits: Limits
    only_passing: bool = False
    near: bool = False
    follow_host: bool = False


def read_dns(raw: Mapping[str, object], where: Mapping[str, str]) -> DnsSettings:
    """The settings that `raw`, whose keys are among `KEYS`, asks for; what is absent has its default. `where` says what the user calls a
    key. ConfigError names that."""
    get = _Reader(raw, where)
    options = Options(
        node_ttl=get.seconds("node_ttl"),
        service_ttl=get.service_ttls(),
        soa=get.soa(),
        alt_domain=get.domain("alt_domain"),
        a_record_limit=get.count("a_record_limit", 0, 0, 1 << 16),
        udp_answer_limit=get.count("udp_answer_limit", 0, 0, 1 << 16),
        truncate=get.flag("enable_truncate", True),
        node_meta_txt=get.flag("enable_additional_node_meta_txt", False),
    )
    upstreams = Upstreams(
        get.resolvers(),
        get.strategy() == "random",
        get.duration("upstream_timeout", 2.0),
        get.count("upstream_limit", 256, 1, MOST_FORWARDS),
    )
    limits = Limits(get.count("client_rate", 0, 0, MOST_QUERIES), get.duration("client_timeout", 5.0))
    return DnsSettings(options, upstreams, limits, get.flag("only_passing", False), get.flag("near", False), "upstreams" not in raw)


def resolver(text: str) -> tuple[str, int]:
    """(address, port) of `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:5353`; port 53 if none is
    given. ValueError if it is none of these."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        address: IPv4Address | IPv6Address = IPv6Address(host)
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not [address]:port")
        port = rest[1:] if rest else "53"
    elif text.count(":") > 1:
        address, port = IPv6Address(text), "53"
    else:
        host, colon, port = text.partition(":")
        address, port = ip_address(host), port if colon else "53"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is not a port number from 1 to 65535")
    return str(address), int(port)


class _Reader:
    """Typed access; each method raises ConfigError that names the key."""

    def __init__(self, raw: Mapping[str, object], where: Mapping[str, str]) -> None:
        self._raw, self._where = raw, where

    def _fail(self, key: str, why: str, hint: str = "") -> ConfigError:
        return ConfigError(self._where.get(key, key), self._raw[key], why, hint)

    def flag(self, key: str, default: bool) -> bool:
        value = self._raw.get(key, default)
        if not isinstance(value, bool):
            raise self._fail(key, "must be true or false")
        return value

    def count(self, key: str, default: int, least: int, most: int) -> int:
        value = self._raw.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._fail(key, f"must be a whole number from {least} to {most}")
        return value

    def strategy(self) -> str:
        value = self._raw.get("upstream_strategy", "sequential")
        if value not in STRATEGIES:
            raise self._fail("upstream_strategy", "is not possible", f"use one of {', '.join(STRATEGIES)}")
        return str(value)

    def duration(self, key: str, default: float) -> float:
        value = self._seconds(key, self._raw.get(key, default))
        if not value:
            raise self._fail(key, "must be longer than nothing")
        return value

    def seconds(self, key: str) -> int:
        return int(self._seconds(key, self._raw.get(key, 0)))

    def _seconds(self, key: str, value: object) -> float:
        """A number of seconds, or a duration like "10s"."""
        try:
            found = duration_s(value) if isinstance(value, str) else value
        except ValueError as error:
            raise self._fail(key, f"holds {value!r}, which is no duration", 'write seconds, or a text like "10s" or "1m30s"') from error
        if not isinstance(found, int | float) or isinstance(found, bool) or not 0 <= found <= LONGEST_TTL_S:
            raise self._fail(key, f"holds {value!r}, which is no duration", 'write seconds, or a text like "10s" or "1m30s"')
        return found

    def service_ttls(self) -> dict[bytes, int]:
        value = self._raw.get("service_ttl", {})
        if not isinstance(value, Mapping):
            raise self._fail("service_ttl", 'must map names of services to durations, like {"*" = "5s", "web" = "30s"}')
        return {dotted(str(name)): int(self._seconds("service_ttl", ttl)) for name, ttl in value.items()}

    def soa(self) -> Soa:
        value = self._raw.get("soa", {})
        if not isinstance(value, Mapping) or not value.keys() <= _SOA.keys():
            raise self._fail("soa", f"must be a map with keys among {', '.join(_SOA)}")
        refresh, retry, expire, min_ttl = (int(self._seconds("soa", value.get(key, default))) for key, default in _SOA.items())
        return refresh, retry, expire, min_ttl

    def domain(self, key: str) -> bytes:
        value = self._raw.get(key, "")
        if not isinstance(value, str) or (value and not is_name(dotted(value.strip(".")))):
            raise self._fail(key, "is not a domain name")
        return dotted(value.strip("."))

    def resolvers(self) -> tuple[tuple[str, int], ...]:
        value = self._raw.get("upstreams", [])
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self._fail("upstreams", 'must be a list of addresses like ["192.0.2.53", "192.0.2.54:5353", "[2001:db8::53]:53"]')
        found = dict[tuple[str, int], None]()
        for entry in value:
            try:
                found[resolver(entry)] = None
            except ValueError as error:
                raise self._fail("upstreams", f"holds {entry!r}: {error}", "write address, address:port or [address]:port") from error
        return tuple(found)
