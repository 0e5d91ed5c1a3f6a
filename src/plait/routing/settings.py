# SPDX-License-Identifier: Apache-2.0
"""A host's routing file (`routing.toml`) -> `Routing`. ConfigError names the entry and the key, and what is allowed there."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeVar

from plait.model.addr import IPAddress, IPNetwork, collapsed
from plait.model.errors import ConfigError
from plait.model.routing import RouteTable, table_number
from plait.routing.family import FAMILIES, V4, Family, is_default

_DEFAULTS: Mapping[str, IPNetwork] = {f"default{family.end}": family.default for family in FAMILIES}
"""How the file spells the default routes, which no other prefix includes."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,14}")
_NO_LETTER = re.compile(r"[^A-Za-z0-9]")
_LINK = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
_SECRET = re.compile(r"[!#-~]{1,80}")
"""Printable ASCII without quotation marks, as BIRD takes it between two of them."""
_TOP = frozenset({"as", "router_id", "table", "bgp", "ospf"})
_TABLE = frozenset({"name", "networks", "services"})
_SESSION = frozenset({"table", "import", "export"})
_BGP = _SESSION | {"neighbor", "as", "hold_s", "bfd", "password"}
_OSPF = _SESSION | {"links", "area", "hello_s", "dead_s", "password"}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of routes for the containers of `networks`. `services`: the virtual addresses of services there are announced too."""

    name: str
    networks: tuple[str, ...]
    services: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """What is common to all ways to speak with routers: whose routes (`table`), which destinations may be learned (`imports`, each with all
    that lies in it; 0.0.0.0/0 and ::/0 are the default routes alone), which networks are announced (`exports`)."""

    table: str
    imports: tuple[IPNetwork, ...]
    exports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bgp:
    """One neighbour; a link-local address says its link. `hold_s`: seconds of silence after which it is gone."""

    session: Session
    neighbor: IPAddress
    as_number: int
    hold_s: int = 9
    bfd: bool = False
    password: str = ""

    @property
    def name(self) -> str:
        return f"bgp_{_NO_LETTER.sub('_', str(self.neighbor))}"


@dataclass(frozen=True, slots=True)
class Ospf:
    """One area on some links of the host, of each family."""

    session: Session
    links: tuple[str, ...]
    area: IPv4Address = IPv4Address(0)
    hello_s: int = 2
    dead_s: int = 8
    password: str = ""

    def name(self, family: Family) -> str:
        return f"{family.area}_{self.session.table}_{_NO_LETTER.sub('_', str(self.area))}"


@dataclass(frozen=True, slots=True)
class Routing:
    """`as_number` is this host's own, 0 without BGP; `router_id` None: the node's address."""

    as_number: int = 0
    router_id: IPv4Address | None = None
    tables: tuple[Table, ...] = ()
    bgp: tuple[Bgp, ...] = ()
    ospf: tuple[Ospf, ...] = ()

    @property
    def sessions(self) -> tuple[Session, ...]:
        return (*(one.session for one in self.bgp), *(one.session for one in self.ospf))

    @property
    def serving(self) -> frozenset[str]:
        """Networks whose services are announced."""
        return frozenset(network for table in self.tables if table.services for network in table.networks)

    def route_tables(self) -> tuple[RouteTable, ...]:
        return tuple(RouteTable(table.name, table.networks, self._outside(table.name)) for table in self.tables)

    def _outside(self, table: str) -> tuple[IPNetwork, ...]:
        """As halves instead of the whole, which no set of ranges prints as it was written."""
        found = collapsed(prefix for one in self.sessions if one.table == table for prefix in one.imports)
        return tuple(part for one in found for part in (one.subnets(1) if is_default(one) else (one,)))


def parse_routing(text: str, path: str) -> Routing:
    """What the file says; an empty one: nothing is announced and nothing learned."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path, "", f"is not valid TOML: {error}") from error
    top = _Entry(raw, path, _TOP)
    tables = tuple(_table(entry) for entry in top.entries("table", _TABLE))
    bgp = tuple(_bgp(entry, tables) for entry in top.entries("bgp", _BGP))
    ospf = tuple(_ospf(entry, tables) for entry in top.entries("ospf", _OSPF))
    found = Routing(
        as_number=top.number("as", 1, 2**32 - 2, None if bgp else 0),
        router_id=top.address("router_id") if "router_id" in raw else None,
        tables=tables,
        bgp=bgp,
        ospf=ospf,
    )
    _check_apart(found, path)
    return found


def _table(entry: _Entry) -> Table:
    name = entry.matching("name", _NAME, "starts with a letter; letters, digits and '_' in lower case, at most 15")
    return Table(name, entry.texts("networks"), entry.flag("services"))


def _session(entry: _Entry, tables: tuple[Table, ...]) -> Session:
    names = {table.name: table for table in tables}
    if not names:
        raise entry.fail("table", "there is no [[table]]", 'add one: [[table]] with name = "red" and networks = ["default"]')
    which = entry.text("table", next(iter(names)) if len(names) == 1 else None)
    if which not in names:
        raise entry.fail("table", "is no [[table]] of this file", f"use one of {', '.join(names)}")
    networks = names[which].networks
    exports = entry.texts("export", networks)
    for name in exports:
        if name not in networks:
            raise entry.fail(
                "export", f"names {name!r}, which is none of the networks of table {which}", f"use some of {', '.join(networks)}"
            )
    return Session(which, entry.prefixes("import"), exports)


def _bgp(entry: _Entry, tables: tuple[Table, ...]) -> Bgp:
    return Bgp(
        session=_session(entry, tables),
        neighbor=entry.neighbor("neighbor"),
        as_number=entry.number("as", 1, 2**32 - 2, None),
        hold_s=entry.number("hold_s", 3, 65535, 9),
        bfd=entry.flag("bfd"),
        password=entry.matching("password", _SECRET, "is printable ASCII without blanks and quotation marks, at most 80", ""),
    )


def _ospf(entry: _Entry, tables: tuple[Table, ...]) -> Ospf:
    links = entry.texts("links")
    if any(not _LINK.fullmatch(link) for link in links):
        raise entry.fail("links", "holds what is no name of a link", 'write one like ["eth0"]')
    hello = entry.number("hello_s", 1, 65535, 2)
    return Ospf(
        session=_session(entry, tables),
        links=links,
        area=entry.address("area", IPv4Address(0)),
        hello_s=hello,
        dead_s=entry.number("dead_s", hello + 1, 65535, 4 * hello),
        password=entry.matching("password", re.compile(_SECRET.pattern.replace("80", "16")), "is printable ASCII, at most 16", ""),
    )


def _check_apart(found: Routing, path: str) -> None:
    for what, names in (
        ("name of a [[table]]", [table.name for table in found.tables]),
        ("neighbor of a [[bgp]]", [str(one.neighbor) for one in found.bgp]),
        ("link of an [[ospf]]", [link for one in found.ospf for link in one.links]),
        ("area of an [[ospf]] of its table", [one.name(V4) for one in found.ospf]),
        ("network of a [[table]]", [network for table in found.tables for network in table.networks]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(path, twice[0], f"is the {what} twice", "say it once")
    numbers = {table_number(table.name): table.name for table in found.tables}
    for table in found.tables:
        if numbers[table_number(table.name)] != table.name:
            raise ConfigError(path, table.name, f"and {numbers[table_number(table.name)]} have the same number of table", "rename one")


class _Entry:
    """One table of the file. Every method raises ConfigError naming the place; a `default` of None: it must be said."""

    def __init__(self, raw: Mapping[str, object], where: str, known: frozenset[str]) -> None:
        self._raw, self._where = raw, where
        unknown = sorted(raw.keys() - known)
        if unknown:
            raise ConfigError(where, unknown[0], "is not a known key", f"known are {', '.join(sorted(known))}")

    def fail(self, key: str, why: str, hint: str = "") -> ConfigError:
        return ConfigError(f"{self._where}: {key}", self._raw.get(key, ""), why, hint)

    def entries(self, key: str, known: frozenset[str]) -> list[_Entry]:
        found = self._raw.get(key, [])
        if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
            raise self.fail(key, f"must be a list of [[{key}]]")
        return [_Entry(one, f"{self._where}: {key} {number}", known) for number, one in enumerate(found, 1)]

    def text(self, key: str, default: str | None = None) -> str:
        value = self._raw.get(key, default)
        if not isinstance(value, str) or (not value and key in self._raw) or (default is None and key not in self._raw):
            raise self.fail(key, "must be a text that is not empty")
        return value

    def matching(self, key: str, pattern: re.Pattern[str], rule: str, default: str | None = None) -> str:
        value = self.text(key, default)
        if value != default and not pattern.fullmatch(value):
            raise self.fail(key, f"is not possible: it {rule}")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = self._raw.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
            raise self.fail(key, "must be a list of texts that is not empty")
        return tuple(value)

    def flag(self, key: str) -> bool:
        value = self._raw.get(key, False)
        if not isinstance(value, bool):
            raise self.fail(key, "must be true or false")
        return value

    def number(self, key: str, least: int, most: int, default: int | None) -> int:
        value = self._raw.get(key, default)
        if value == default and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.fail(key, f"must be a whole number from {least} to {most}")
        return value

    def address(self, key: str, default: IPv4Address | None = None) -> IPv4Address:
        return self._parsed(key, self.text(key, str(default) if default is not None else None), IPv4Address, "must be an IPv4 address")

    def neighbor(self, key: str) -> IPAddress:
        found = self._parsed(key, self.text(key), ip_address, "must be an IPv4 or IPv6 address")
        scope = found.scope_id if isinstance(found, IPv6Address) else None
        if found.is_link_local and found.version == 6 and not (scope and _LINK.fullmatch(scope)):
            raise self.fail(key, "is on every link", f"name the one that you mean: {found}%eth0")
        if scope and not found.is_link_local:
            raise self.fail(key, "is on one link alone", "leave the link out")
        return found

    def prefixes(self, key: str) -> tuple[IPNetwork, ...]:
        if key not in self._raw:
            return ()
        return tuple(self._prefix(key, text) for text in self.texts(key))

    def _prefix(self, key: str, text: str) -> IPNetwork:
        if text in _DEFAULTS:
            return _DEFAULTS[text]
        found = self._parsed(key, text, ip_network, f"holds {text!r}, which is no network")
        if is_default(found):
            word = next(word for word, prefix in _DEFAULTS.items() if prefix == found)
            raise self.fail(key, f"holds {text!r}", f'write "{word}" for the default route alone, or the networks that you mean')
        return found

    def _parsed(self, key: str, text: str, kind: Callable[[str], T], why: str) -> T:
        try:
            return kind(text)
        except ValueError as error:
            raise self.fail(key, f"{why}: {error}") from error
