# SPDX-License-Identifier: Apache-2.0
"""`Routing` and what this node has -> the configuration of BIRD 2, which speaks BGP and OSPF for it.

Every table of the file is, for each family, one of BIRD's and one of the kernel's. This node's blocks are static routes there, which BIRD
hands to nobody but the sessions that export them; what is learned goes to the kernel table and to no other session, so a host is never a
way between routers. Routes stay in the kernel when BIRD ends (`persist`), and sessions ask routers to keep ours meanwhile (graceful
restart, RFC 4724).

The user guide of BIRD 2.0, chapters 3 to 6, is the source of all words.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address

from plait.model.addr import IPNetwork, in_order
from plait.model.routing import table_number
from plait.routing.channels import Channel, Facts, channels
from plait.routing.family import V4, Family, is_default
from plait.routing.settings import Bgp, Ospf, Routing

RESTART_S = 15
"""How long a new process waits for routers before it takes away what none of them announces any more."""
MOST_ROUTES = 20_000
"""Routes of a family that one session may bring; further ones are not taken."""
LOG_BYTES = 1 << 20
_EXTENDED = "    extended next hop on;\n"
_LEARNED = "RTS_BGP, RTS_OSPF, RTS_OSPF_IA, RTS_OSPF_EXT1, RTS_OSPF_EXT2"


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
        own = in_order(prefix for network in table.networks for prefix in facts.own.get(network, ()))
        for family in facts.families(table.networks):
            parts += _table(table.name, family, family.of(own))
    found = [channel for channel in channels(routing, facts) if not channel.closed]
    parts += [_bgp(one, routing.as_number, [each for each in found if each.name == one.name], facts) for one in routing.bgp]
    parts += [_ospf(one, each, facts) for one in routing.ospf for each in found if each.name == one.name(each.family)]
    return "\n".join(parts) + "\n"


def table_name(table: str, family: Family) -> str:
    """BIRD's, for one of the file."""
    return f"t{family.end}_{table}"


def _table(name: str, family: Family, own: Iterable[IPNetwork]) -> list[str]:
    """BIRD's table, how it goes to the kernel's, and what this node has. A static route must lead somewhere: nothing follows it."""
    routes = "".join(f"  route {prefix} blackhole;\n" for prefix in own)
    table, word, end = table_name(name, family), family.word, family.end
    return [
        f"{word} table {table};",
        f"protocol kernel k{end}_{name} {{\n  kernel table {table_number(name)};\n  persist;\n  graceful restart;\n  scan time 20;\n"
        f"  {word} {{ table {table}; import none; export where source ~ [ {_LEARNED} ]; }};\n}}",
        f"protocol static s{end}_{name} {{\n  {word} {{ table {table}; }};\n{routes}}}",
    ]


def _channel(channel: Channel, facts: Facts, more: str = "") -> str:
    family, session = channel.family, channel.session
    sent = family.of(in_order(prefix for network in session.exports for prefix in facts.own.get(network, ())))
    export = f"where source = RTS_STATIC && net ~ {_exactly(sent)}" if sent else "none"
    return (
        f"  {family.word} {{\n    table {table_name(session.table, family)};\n    import keep filtered;\n"
        f"    import filter {{\n{_import_rules(family.of(session.imports), family.of(in_order(facts.guarded)))}    }};\n"
        f"    receive limit {MOST_ROUTES} action block;\n    export {export};\n{more}  }};\n"
    )


def _import_rules(imports: list[IPNetwork], guarded: list[IPNetwork]) -> str:
    rules = [f"if net ~ {_within(guarded)} then reject;"] if guarded else []
    if imports:
        rules.append(f"if net ~ {_within(imports)} then accept;")
    return "".join(f"      {rule}\n" for rule in (*rules, "reject;"))


def _within(prefixes: Iterable[IPNetwork]) -> str:
    """Each and all that lies in it; of the default route itself alone."""
    return f"[ {', '.join(f'{one}' if is_default(one) else f'{one}+' for one in prefixes)} ]"


def _exactly(prefixes: Iterable[IPNetwork]) -> str:
    return f"[ {', '.join(map(str, prefixes))} ]"


def _bgp(one: Bgp, own: int, found: Iterable[Channel], facts: Facts) -> str:
    secret = f'  password "{one.password}";\n' if one.password else ""
    scope = one.neighbor.scope_id if isinstance(one.neighbor, IPv6Address) else None
    link = f'  interface "{scope}";\n' if scope else ""
    parts = (_channel(channel, facts, _next_hop(one, channel.family, facts)) for channel in found)
    return (
        f"protocol bgp {one.name} {{\n  local as {own};\n  neighbor {str(one.neighbor).partition('%')[0]} as {one.as_number};\n{link}"
        f"  hold time {one.hold_s};\n  connect delay time 1;\n  connect retry time 3;\n  error wait time 1, 30;\n"
        f"  graceful restart on;\n  bfd {'on' if one.bfd else 'off'};\n{secret}{''.join(parts)}}}"
    )


def _next_hop(one: Bgp, family: Family, facts: Facts) -> str:
    """This host's own address on the link; without one of IPv4 the session's, if the neighbour takes that (RFC 8950)."""
    extended = family is V4 and one.neighbor.version == 6 and not facts.has(V4, one.neighbor)
    return f"{_EXTENDED if extended else ''}    next hop self;\n"


def _ospf(one: Ospf, channel: Channel, facts: Facts) -> str:
    secret = f'      authentication cryptographic;\n      password "{one.password}";\n' if one.password else ""
    timers = f"      hello {one.hello_s};\n      dead {one.dead_s};\n      retransmit {max(2, one.hello_s)};\n"
    links = "".join(f'    interface "{link}" {{\n{timers}{secret}    }};\n' for link in one.links)
    return f"protocol ospf {channel.family.ospf} {channel.name} {{\n{_channel(channel, facts)}  area {one.area} {{\n{links}  }};\n}}"
