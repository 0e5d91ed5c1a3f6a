# SPDX-License-Identifier: Apache-2.0
"""`Routing` and what this node has -> the configuration of BIRD 2, which speaks BGP and OSPF for it.

Every table of the file is one of BIRD's and one of the kernel's. This node's blocks are static routes there, which BIRD hands to nobody but
the sessions that export them; what is learned goes to the kernel table and to no other session, so a host is never a way between routers.
Routes stay in the kernel when BIRD ends (`persist`), and sessions ask routers to keep ours meanwhile (graceful restart, RFC 4724).

The user guide of BIRD 2.0, chapters 3 to 6, is the source of all words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from plait.model.routing import table_number
from plait.routing.settings import DEFAULT_ROUTE, Bgp, Ospf, Routing, Session

RESTART_S = 15
"""How long a new process waits for routers before it takes away what none of them announces any more."""
MOST_ROUTES = 20_000
"""Routes that one session may bring; further ones are not taken."""
LOG_BYTES = 1 << 20
_NEXT_HOP = "    next hop self;\n"
_LEARNED = "RTS_BGP, RTS_OSPF, RTS_OSPF_IA, RTS_OSPF_EXT1, RTS_OSPF_EXT2"


@dataclass(frozen=True, slots=True)
class Facts:
    """What this node knows and the file does not say: its id as a router, what it announces of each network (blocks and single
    addresses), and what nobody outside may announce."""

    router_id: IPv4Address
    own: Mapping[str, tuple[IPv4Network, ...]]
    guarded: tuple[IPv4Network, ...]


def bird_config(routing: Routing, facts: Facts, log: str) -> str:
    """The whole file. `log`: where BIRD writes its own."""
    parts = [
        f'log "{log}" {LOG_BYTES} "{log}.1" all;',
        f"router id {routing.router_id or facts.router_id};",
        f"graceful restart wait {RESTART_S};",
        "protocol device {\n  scan time 10;\n}",
    ]
    if any(one.bfd for one in routing.bgp):
        parts.append('protocol bfd {\n  interface "*" { min rx interval 300 ms; min tx interval 300 ms; multiplier 3; };\n}')
    for table in routing.tables:
        own = sorted({prefix for network in table.networks for prefix in facts.own.get(network, ())})
        parts += _table(table.name, own)
    parts += [_bgp(one, routing.as_number, facts) for one in routing.bgp]
    parts += [_ospf(one, facts) for one in routing.ospf]
    return "\n".join(parts) + "\n"


def _table(name: str, own: Iterable[IPv4Network]) -> list[str]:
    """BIRD's table, how it goes to the kernel's, and what this node has. A static route must lead somewhere: nothing follows it."""
    routes = "".join(f"  route {prefix} blackhole;\n" for prefix in own)
    return [
        f"ipv4 table t_{name};",
        f"protocol kernel k_{name} {{\n  kernel table {table_number(name)};\n  persist;\n  graceful restart;\n  scan time 20;\n"
        f"  ipv4 {{ table t_{name}; import none; export where source ~ [ {_LEARNED} ]; }};\n}}",
        f"protocol static s_{name} {{\n  ipv4 {{ table t_{name}; }};\n{routes}}}",
    ]


def _channel(session: Session, facts: Facts, more: str = "") -> str:
    sent = sorted({prefix for network in session.exports for prefix in facts.own.get(network, ())})
    export = f"where source = RTS_STATIC && net ~ {_exactly(sent)}" if sent else "none"
    return (
        f"  ipv4 {{\n    table t_{session.table};\n    import keep filtered;\n"
        f"    import filter {{\n{_import_rules(session, facts)}    }};\n"
        f"    receive limit {MOST_ROUTES} action block;\n    export {export};\n{more}  }};\n"
    )


def _import_rules(session: Session, facts: Facts) -> str:
    rules = [f"if net ~ {_within(facts.guarded)} then reject;"] if facts.guarded else []
    if session.imports:
        rules.append(f"if net ~ {_within(session.imports)} then accept;")
    return "".join(f"      {rule}\n" for rule in (*rules, "reject;"))


def _within(prefixes: Iterable[IPv4Network]) -> str:
    """Each and all that lies in it; of the default route itself alone."""
    return f"[ {', '.join(f'{one}' if one == DEFAULT_ROUTE else f'{one}+' for one in prefixes)} ]"


def _exactly(prefixes: Iterable[IPv4Network]) -> str:
    return f"[ {', '.join(map(str, prefixes))} ]"


def _bgp(one: Bgp, own: int, facts: Facts) -> str:
    secret = f'  password "{one.password}";\n' if one.password else ""
    return (
        f"protocol bgp {one.name} {{\n  local as {own};\n  neighbor {one.neighbor} as {one.as_number};\n"
        f"  hold time {one.hold_s};\n  connect delay time 1;\n  connect retry time 3;\n  error wait time 1, 30;\n"
        f"  graceful restart on;\n  bfd {'on' if one.bfd else 'off'};\n{secret}"
        f"{_channel(one.session, facts, _NEXT_HOP)}}}"
    )


def _ospf(one: Ospf, facts: Facts) -> str:
    secret = f'      authentication cryptographic;\n      password "{one.password}";\n' if one.password else ""
    timers = f"      hello {one.hello_s};\n      dead {one.dead_s};\n      retransmit {max(2, one.hello_s)};\n"
    links = "".join(f'    interface "{link}" {{\n{timers}{secret}    }};\n' for link in one.links)
    return f"protocol ospf v2 {one.name} {{\n{_channel(one.session, facts)}  area {one.area} {{\n{links}  }};\n}}"
