# SPDX-License-Identifier: Apache-2.0
"""What the chain `policies` of a plan does with a packet that begins a connection, from the text of its rules and maps alone.

It knows just the rules that such a plan has, and fails at any other; elements that overlap fail too, as they do in the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from plait.model.objects import NFT_FAMILY, KernelObject, NftChain, NftSet
from plait.policy.evaluate import Packet

_NOT_NEW = ("ct state established,related accept", "icmpv6 type ")
_COUNTING = re.compile(r"ip6? saddr (?:!= )?@policed6?(?: ip6? daddr @policed6?)? jump judged6?")


class Walk:
    def __init__(self, objects: Iterable[KernelObject]) -> None:
        held = [obj for obj in objects if isinstance(obj, NftChain | NftSet) and obj.family == NFT_FAMILY]
        self.chains = {obj.name: obj for obj in held if isinstance(obj, NftChain)}
        self.sets = {obj.name: obj for obj in held if isinstance(obj, NftSet)}

    def passes(self, packet: Packet) -> bool:
        """Whether the packet leaves the chain."""
        return "policies" not in self.chains or self._chain("policies", packet) != "drop"

    def _chain(self, name: str, packet: Packet) -> str:
        for rule in self.chains[name].rules:
            verdict = self._rule(rule, packet)
            if verdict.startswith("jump "):
                verdict = self._chain(verdict[5:], packet)
                if verdict == "return":
                    continue
            if verdict.startswith("goto "):
                return self._chain(verdict[5:], packet)
            if verdict:
                return verdict
        return "return"

    def _rule(self, rule: str, packet: Packet) -> str:
        """The verdict of a rule, "" if it has none for the packet."""
        if rule.startswith(_NOT_NEW) or _COUNTING.fullmatch(rule):
            return ""
        if re.fullmatch(r"drop|return|goto \S+", rule):
            return rule
        family = "ip" if packet.source.version == 4 else "ip6"
        ends = {"saddr": packet.source, "daddr": packet.destination}
        if match := re.fullmatch(r"(ip6?) (saddr|daddr) vmap @(\S+)", rule):
            return self._found(match[3], (str(ends[match[2]]),)) if match[1] == family else ""
        if match := re.fullmatch(r"(ip6?) saddr \. ip6? daddr @(\S+) accept", rule):
            pair = f"{packet.source} . {packet.destination}"
            return "accept" if match[1] == family and pair in self.sets[match[2]].elements else ""
        if match := re.fullmatch(r"meta l4proto \. th dport vmap @(\S+)", rule):
            return self._found(match[1], (packet.protocol, str(packet.port)))
        raise AssertionError(f"a rule that is not known: {rule}")

    def _found(self, name: str, key: tuple[str, ...]) -> str:
        pairs = [element.partition(" : ") for element in self.sets[name].elements]
        found = [
            value for text, _, value in pairs if all(_matches(one, wanted) for one, wanted in zip(text.split(" . "), key, strict=True))
        ]
        assert len(found) < 2, f"{name} has {key} {len(found)} times"
        return found[0] if found else ""


def _matches(text: str, value: str) -> bool:
    first, dash, last = text.partition("-")
    if value.isdigit():
        return int(first) <= int(value) <= int(last if dash else first)
    if "." not in text and ":" not in text:
        return text == value
    address = ip_address(value)
    if dash:
        return int(ip_address(first)) <= int(address) <= int(ip_address(last))
    return address in ip_network(text)
