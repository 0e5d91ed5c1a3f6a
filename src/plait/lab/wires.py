# SPDX-License-Identifier: Apache-2.0
"""The wiring of a lab as text for `ip -batch` and `nft -f`. Pure.

Data in: a `LabSpec` and the process ids of the namespaces' holders. Data out: one batch per namespace. Each veth pair is made
inside the switch's namespace with its other end born in the host's (`netns PID`), so no end is ever seen in the machine's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plait.lab.spec import HostSpec, LabSpec, RouterSpec, SwitchSpec
from plait.model.addr import IPAddress

BRIDGE = "br0"


def port(member: str) -> str:
    """Name of the switch's end of the link to `member` (a host or a router)."""
    return f"p-{member}"


def switch_batch(switch: SwitchSpec) -> str:
    """The bridge of `switch`, run in its namespace before any leg is plugged."""
    return f"link add {BRIDGE} mtu {switch.mtu} type bridge stp_state 0 mcast_snooping 0\nlink set {BRIDGE} up\nlink set lo up\n"


def hardware(address: IPAddress) -> str:
    """Hardware address of the leg with this underlay address: it stays the same over a reboot, as a real card's does."""
    packed = address.packed if address.version == 4 else address.packed[6:8] + address.packed[14:]
    return "02:4c:" + ":".join(f"{byte:02x}" for byte in packed)


def _address(address: IPAddress, leg: str) -> str:
    """One of IPv6 is there at once: nobody else has it."""
    return f"address add {address}/24 brd + dev {leg}" if address.version == 4 else f"address add {address}/64 dev {leg} nodad"


def plug_batch(member: str, pid: int, mtu: int, address: IPAddress, leg: str = "eth0") -> str:
    """A link from the switch, in whose namespace this runs, to `leg` in the namespace of process `pid`.

    Its two ends never have one index: where they do, the kernel takes them for no pair and tells a second late that the link is up
    (`linkwatch_urgent_event`, measured), and IPv6 waits for that.
    """
    end, index = port(member), 0x10000 + int.from_bytes(address.packed[-2:])
    return (
        f"link add {end} index {index} mtu {mtu} type veth peer name {leg} mtu {mtu} address {hardware(address)} netns {pid}\n"
        f"link set {end} master {BRIDGE} up\n"
    )


def host_batch(spec: LabSpec, host: HostSpec) -> str:
    """Address and routes of `host`, run in its namespace once its leg is plugged."""
    lines = ["link set lo up", _address(host.address, "eth0"), "link set eth0 up"]
    lines += [_address(host.second, "eth0")] if host.second is not None else []
    lines += [f"route add {subnet} via {hop}" for subnet, hop in spec.routes(host.switch).items()]
    return "\n".join(lines) + "\n"


def router_batch(spec: LabSpec, router: RouterSpec) -> str:
    """Addresses and routes of `router`, run in its namespace once its legs are plugged."""
    lines = ["link set lo up"]
    for index, address in enumerate(router.addresses):
        lines += [_address(address, f"eth{index}"), f"link set eth{index} up"]
    known = {spec.switch(name).subnet for name in router.switches}
    for name, own in zip(router.switches, router.addresses, strict=True):
        for subnet, hop in spec.routes(name).items():
            if subnet not in known and hop != own:
                known.add(subnet)
                lines.append(f"route add {subnet} via {hop}")
    return "\n".join(lines) + "\n"


def cut_rules(spec: LabSpec, cuts: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """Switch name -> nft script that makes exactly `cuts` true there (replaces what an earlier one said; idempotent).

    Hosts on one switch are parted by port, so nothing passes whatever its addresses. Hosts on different switches are parted where
    each of them enters its switch, by the other's underlay address.
    """
    rules: dict[str, list[str]] = {switch.name: [] for switch in spec.switches}
    for first, second in sorted(cuts):
        a, b = spec.host(first), spec.host(second)
        for one, other in ((a, b), (b, a)):
            outer = "ip6" if other.address.version == 6 else "ip"
            match = f'oifname "{port(other.name)}"' if a.switch == b.switch else f"{outer} daddr {other.address}"
            rules[one.switch].append(f'    iifname "{port(one.name)}" {match} drop')
    return {name: _cut_table(lines) for name, lines in rules.items()}


def _cut_table(lines: list[str]) -> str:
    head = "table bridge cuts\ndelete table bridge cuts\n"
    if not lines:
        return head
    body = "\n".join(lines)
    return f"{head}table bridge cuts {{\n  chain forward {{\n    type filter hook forward priority 0; policy accept;\n{body}\n  }}\n}}\n"
