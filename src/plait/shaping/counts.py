# SPDX-License-Identifier: Apache-2.0
"""Limits of packets and of new connections a second -> rules and sets of nft.

Each is an element of a set, keyed by the link and with a limit and a counter of its own, and a rule that drops what the look-up lets
through: an element within its limit does not match. So a number changes, and is counted, without a rule that is written anew, and who has
no such limit meets no rule of it. What a container sends is judged at the ingress of its link, what comes to it at the egress.

A new connection is a TCP segment that asks for one (SYN without ACK), tried again or not: nothing needs to be tracked for it. A packet is
what the host handles at once: up to 64 KB of a TCP stream are one.
"""

from __future__ import annotations

from collections.abc import Iterable

from plait.model.limits import COUNTED, Limits
from plait.model.objects import NFT_FAST_FAMILY, KernelObject, NftChain, NftSet

METERED, EGRESS = "metered", "egress"
"""What the kernel must be able to do (`kernel.api.Kernel.capabilities`): sets whose elements have limits; chains at a link's egress."""
METER, BYTE_METER = ("limit rate over 1/second counter",), ("limit rate over 1 bytes/second counter",)
"""How such a set is declared; its elements say the numbers."""
_DEFAULT_BURST = 5
"""Packets: nft does not print a burst of so many."""
_LEAST_PACKETS = 10
_LARGEST_PACKETS = 2 << 16
"""Bytes: two of the largest packets that there are."""
_FULL_PACKET, _HEADERS = 1500, 52
_WHICH = {"packets": "meta protocol != arp", "connections": "tcp flags syn / fin,syn,rst,ack"}


def set_name(word: str) -> str:
    """The set for the `word` of `COUNTED`."""
    return word.replace("-", "_")


def metered(key: str, word: str, number: int) -> str:
    """An element that holds `key` to so many a second. After a rest a tenth of a second's packets may come at once, or a second's
    connections: programs open several at a time."""
    burst = max(number // 10, _LEAST_PACKETS) if word.startswith("packets") else number
    most = "" if burst == _DEFAULT_BURST else f" burst {burst} packets"
    return f"{key} limit rate over {number}/second{most} counter"


def policed(key: str, rate: int) -> str:
    """An element that holds `key` to so many bit/s of goodput. The kernel lets a second of the rate pass at once after a rest, and this
    burst besides, without which the largest packet would never pass at a small rate. Headers are counted with each packet, be that 64 KB of
    a TCP stream or one full packet of it: a quarter of what full packets have of them is added (measured: `bench/limits.py`)."""
    payload = _FULL_PACKET - _HEADERS
    whole = rate * (4 * payload + _HEADERS) // (32 * payload)
    return f"{key} limit rate over {_bytes(whole)}/second burst {_bytes(_LARGEST_PACKETS)} counter"


def _bytes(number: int) -> str:
    """As nft prints it: in the largest unit that it is whole in."""
    power = next((power for power in (2, 1) if number % (1 << 10 * power) == 0), 0)
    return f"{number >> 10 * power} {('bytes', 'kbytes', 'mbytes')[power]}"


def counted_rules(limits: Limits, direction: str) -> tuple[str, ...]:
    """Those of the chain of a link at its ingress ("out": the container sends) or egress ("in")."""
    link = "iifname" if direction == "out" else "oifname"
    words = [word for word in limits.counts() if word.endswith(f"-{direction}")]
    return tuple(f"{_WHICH[word.partition('-')[0]]} {link} @{set_name(word)} drop" for word in words)


def counted_objects(held: Iterable[tuple[str, Limits]]) -> list[KernelObject]:
    """What holds endpoints, each by its link and limits, but for the rules of their chains at the ingress."""
    held = [(dev, limits) for dev, limits in held if limits.counts()]
    objects: list[KernelObject] = []
    for word in COUNTED:
        found = frozenset(metered(f'"{dev}"', word, limits.counts()[word]) for dev, limits in held if word in limits.counts())
        objects += [NftSet(set_name(word), "ifname", found, family=NFT_FAST_FAMILY, bounds=METER)] if found else []
    for dev, limits in held:
        if rules := counted_rules(limits, "in"):
            hook = f'type filter hook egress device "{dev}" priority filter; policy accept;'
            objects.append(NftChain(f"to_{dev}", rules, hook, NFT_FAST_FAMILY))
    return objects
