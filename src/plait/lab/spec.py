# SPDX-License-Identifier: Apache-2.0
"""What a lab consists of, as values: switches, routers and hosts, their addresses and routes. Pure.

Data in: a number of hosts, or the text of a lab file (docs/lab.md). Data out: a `LabSpec`, checked, from which the rest of the
room reads every address. The underlay of switch number i (from 0) is 198.18.<i>.0/24 (RFC 2544's range for test beds), or of IPv6
2001:2:0:<i>::/64 (RFC 5180's); host number n of a switch (from 1) is .n (::n), the routers count down from .254 (::fe).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, get_args

from plait.model.addr import IPAddress, IPNetwork
from plait.model.errors import ConfigError

MAX_SWITCHES = 100
MAX_HOSTS_PER_SWITCH = 200
MTU_RANGE = range(576, 65536)
Underlay = Literal["ipv4", "ipv6", "dual"]
"""What a link's hosts have: addresses of that family alone, or of both, with IPv4 as their nodes' address."""
HOST_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,11}")
LAB_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


@dataclass(frozen=True, slots=True)
class SwitchSpec:
    """One link: a bridge in a namespace of its own. `index` gives its subnets, `mtu` (bytes) is the default of its legs."""

    name: str
    index: int
    mtu: int = 1500
    underlay: Underlay = "ipv4"

    @property
    def subnet(self) -> IPNetwork:
        """Where the hosts' addresses lie."""
        return self.subnet6 if self.underlay == "ipv6" else IPv4Network((int(IPv4Address("198.18.0.0")) + (self.index << 8), 24))

    @property
    def subnet6(self) -> IPv6Network:
        return IPv6Network((int(IPv6Address("2001:2::")) + (self.index << 64), 64))


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One host with one leg, `eth0`. `agent` and `engine`: whether the lab runs them there. `mtu` is that of the leg, bytes.
    `second` is its address of the other family, on a link with both."""

    name: str
    switch: str
    address: IPAddress
    mtu: int = 1500
    agent: bool = True
    engine: bool = False
    second: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """A forwarding namespace with one leg `eth<i>` in each of `switches`; `addresses` are in the same order."""

    name: str
    switches: tuple[str, ...]
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A whole lab. Hosts are in the order of the file; the first one with an agent is the cluster's first node."""

    switches: tuple[SwitchSpec, ...]
    hosts: tuple[HostSpec, ...]
    routers: tuple[RouterSpec, ...] = field(default=())

    def switch(self, name: str) -> SwitchSpec:
        return next(switch for switch in self.switches if switch.name == name)

    def host(self, name: str) -> HostSpec:
        """The host of that name. ConfigError names the ones there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise ConfigError("host", name, "is not in this lab", f"hosts: {', '.join(host.name for host in self.hosts)}")

    def routes(self, switch: str) -> dict[IPNetwork, IPAddress]:
        """Subnet of every other switch that can be reached -> address of the next router on `switch` (fewest routers)."""
        found: dict[str, IPAddress] = {}
        frontier: list[tuple[str, IPAddress | None]] = [(switch, None)]
        while frontier:
            here, via = frontier.pop(0)
            for router in self.routers:
                if here not in router.switches:
                    continue
                hop = via or router.addresses[router.switches.index(here)]
                for there in router.switches:
                    if there != switch and there not in found:
                        found[there] = hop
                        frontier.append((there, hop))
        return {self.switch(name).subnet: hop for name, hop in found.items()}


def host_names(count: int) -> list[str]:
    """`count` names in order: A … Z, AA, AB, …"""
    names = []
    for number in range(1, count + 1):
        word, rest = "", number
        while rest:
            rest, digit = divmod(rest - 1, 26)
            word = chr(ord("A") + digit) + word
        names.append(word)
    return names


def simple(hosts: int, *, agents: bool = True, engines: bool = False) -> LabSpec:
    """One switch with `hosts` hosts A, B, C, … on it."""
    if not 1 <= hosts <= MAX_HOSTS_PER_SWITCH:
        raise ConfigError("--hosts", hosts, "is out of range", f"1 to {MAX_HOSTS_PER_SWITCH}")
    raw = {"switch": [{"name": "lan"}], "host": [{"name": name} for name in host_names(hosts)]}
    return parse(raw, agents=agents, engines=engines)


def parse_toml(text: str, *, agents: bool = True, engines: bool = False, where: str = "lab file") -> LabSpec:
    """The lab that `text` describes. ConfigError names the key and what is allowed; nothing else is raised."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(where, text[:40], f"is not TOML: {error}") from error
    return parse(raw, agents=agents, engines=engines)


def parse(raw: Mapping[str, object], *, agents: bool = True, engines: bool = False) -> LabSpec:
    """Check `raw` (a decoded lab file). `agents` False switches every agent off, whatever the file says; `engines` is the
    default of a host's `engine`."""
    _known("lab file", raw, ("switch", "router", "host"))
    switches = _switches(_tables(raw, "switch"))
    hosts = _hosts(_tables(raw, "host"), switches, agents=agents, engines=engines)
    routers = _routers(_tables(raw, "router"), switches)
    _unique([*(s.name for s in switches), *(r.name for r in routers), *(h.name for h in hosts)])
    return LabSpec(switches=switches, hosts=hosts, routers=routers)


def _switches(tables: Sequence[Mapping[str, object]]) -> tuple[SwitchSpec, ...]:
    found = []
    for index, table in enumerate(tables or [{"name": "lan"}]):
        where = f"switch[{index}]"
        _known(where, table, ("name", "mtu", "underlay"))
        found.append(SwitchSpec(_name(where, table), index, _mtu(where, table, 1500), _underlay(where, table)))
    if len(found) > MAX_SWITCHES:
        raise ConfigError("switch", len(found), "are too many", f"at most {MAX_SWITCHES}")
    return tuple(found)


def _hosts(
    tables: Sequence[Mapping[str, object]], switches: tuple[SwitchSpec, ...], *, agents: bool, engines: bool
) -> tuple[HostSpec, ...]:
    used: dict[str, int] = {}
    found = []
    for index, table in enumerate(tables):
        where = f"host[{index}]"
        _known(where, table, ("name", "switch", "mtu", "agent", "engine"))
        switch = _switch(f"{where}.switch", table.get("switch", switches[0].name), switches)
        number = used[switch.name] = used.get(switch.name, 0) + 1
        if number > MAX_HOSTS_PER_SWITCH:
            raise ConfigError(where, switch.name, "has too many hosts", f"at most {MAX_HOSTS_PER_SWITCH} on one switch")
        mtu = _mtu(where, table, switch.mtu)
        if mtu > switch.mtu:
            raise ConfigError(f"{where}.mtu", mtu, f"is above that of switch {switch.name}", f"at most {switch.mtu}")
        host = HostSpec(
            name=_name(where, table),
            switch=switch.name,
            address=switch.subnet[number],
            mtu=mtu,
            agent=_flag(where, table, "agent", True) and agents,
            engine=_flag(where, table, "engine", engines),
            second=switch.subnet6[number] if switch.underlay == "dual" else None,
        )
        found.append(host)
    if not found:
        raise ConfigError("host", [], "is empty", "a lab needs at least one [[host]]")
    return tuple(found)


def _routers(tables: Sequence[Mapping[str, object]], switches: tuple[SwitchSpec, ...]) -> tuple[RouterSpec, ...]:
    used: dict[str, int] = {}
    found = []
    for index, table in enumerate(tables):
        where = f"router[{index}]"
        _known(where, table, ("name", "switches"))
        raw = table.get("switches")
        if not isinstance(raw, list) or len(raw) < 2 or len(set(map(str, raw))) != len(raw):
            raise ConfigError(f"{where}.switches", raw, "is not a list of different switches", "at least two names")
        legs = [_switch(f"{where}.switches", name, switches) for name in raw]
        if len({leg.subnet.version for leg in legs}) > 1:
            raise ConfigError(f"{where}.switches", raw, "are of different families", "a router forwards either IPv4 or IPv6")
        addresses = []
        for leg in legs:
            used[leg.name] = used.get(leg.name, 0) + 1
            addresses.append(leg.subnet[255 - used[leg.name]])
        found.append(RouterSpec(_name(where, table), tuple(leg.name for leg in legs), tuple(addresses)))
    return tuple(found)


def _tables(raw: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    value = raw.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ConfigError(key, value, "is not a list of tables", f"write [[{key}]]")
    return value


def _known(where: str, table: Mapping[str, object], allowed: tuple[str, ...]) -> None:
    for key in table:
        if key not in allowed:
            raise ConfigError(where, key, "is not a known key", f"allowed: {', '.join(allowed)}")


def _name(where: str, table: Mapping[str, object]) -> str:
    name = table.get("name")
    if not isinstance(name, str) or not HOST_NAME.fullmatch(name):
        raise ConfigError(f"{where}.name", name, "is not a name", "a letter, then letters, digits and '-', 12 in all")
    return name


def _mtu(where: str, table: Mapping[str, object], default: int) -> int:
    mtu = table.get("mtu", default)
    if not isinstance(mtu, int) or isinstance(mtu, bool) or mtu not in MTU_RANGE:
        raise ConfigError(f"{where}.mtu", mtu, "is not an MTU", f"a number of bytes from {MTU_RANGE.start} to {MTU_RANGE.stop - 1}")
    return mtu


def _underlay(where: str, table: Mapping[str, object]) -> Underlay:
    value = table.get("underlay", "ipv4")
    for word in get_args(Underlay):
        if value == word:
            return word  # type: ignore[no-any-return]
    raise ConfigError(f"{where}.underlay", value, "is not known", f"one of {', '.join(get_args(Underlay))}")


def _flag(where: str, table: Mapping[str, object], key: str, default: bool) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}.{key}", value, "is not a truth value", "true or false")
    return value


def _switch(where: str, name: object, switches: tuple[SwitchSpec, ...]) -> SwitchSpec:
    for switch in switches:
        if switch.name == name:
            return switch
    raise ConfigError(where, name, "is not a switch of this file", f"switches: {', '.join(s.name for s in switches)}")


def _unique(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("name", name, "is used twice", "switches, routers and hosts share one set of names")


def lab_name(name: str) -> str:
    """`name` if it may name a lab, else ConfigError. It becomes part of paths."""
    if not LAB_NAME.fullmatch(name):
        raise ConfigError("--name", name, "is not a lab name", "a small letter, then small letters, digits and '-', 31 in all")
    return name
