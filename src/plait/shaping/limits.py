# SPDX-License-Identifier: Apache-2.0
"""The limits of one endpoint -> kernel objects.

What comes to the container leaves the host by the host side of its link: a token bucket there (`tbf`) holds it back. What the container
sends comes in by that side, where there are no queues: it is led through a device of its own (`ifb`) and held back there. Both ways lie
outside of the container, which cannot change them.

A rate is goodput, the bucket counts whole frames: its rate is larger by what the headers of a full packet take, so that a connection with
full packets carries what was asked for (measured: `bench/limits.py`). Smaller packets carry less: they have as many headers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from plait.model.cluster import Endpoint, Network, PortMapping
from plait.model.limits import LABEL_PREFIX, OPTION_PREFIX, PORT_PREFIX, PRIORITY, UNSAID, Limit, Limits, read_or_unsaid
from plait.model.objects import PREFIX, KernelObject
from plait.model.tc import (
    BURST_STEP,
    FIRST_PORT_MINOR,
    OTHERS_MINOR,
    PORTS_MAJORS,
    WHOLE_MINOR,
    IfbLink,
    PortClass,
    PortQueues,
    Redirect,
    Tbf,
)
from plait.shaping.counts import EGRESS, METERED
from plait.shaping.priorities import QUEUES

MARKING = "ingress"
"""Rules that change frames."""
RULE, REDIRECT = "fwd", "redirect"
"""What may lead packets to the device that holds them back (`kernel.api.Kernel.capabilities`): a rule of nft, or else a filter of tc."""
NEEDS: Mapping[str, tuple[frozenset[str], ...]] = {
    "in": (frozenset({"tbf"}),),
    "out": (frozenset({"tbf", "ifb", RULE}), frozenset({"tbf", "ifb", REDIRECT})),
    "packets-in": (frozenset({METERED, EGRESS}),),
    "packets-out": (frozenset({METERED}),),
    "connections-in": (frozenset({METERED, EGRESS}),),
    "connections-out": (frozenset({METERED}),),
    PRIORITY: (frozenset({MARKING}),),
}
"""What is limited -> what the kernel must be able to do, in one way or another."""
PORT_NEEDS = {"in": frozenset({QUEUES}), "out": frozenset({QUEUES, "ifb", RULE})}
"""The same for the queues of published ports. What a port drops, and its numbers, need `METERED`."""
_FRAME, _HEADERS = 14, 52
"""Bytes of an Ethernet header, and of IPv4 and TCP headers with timestamps (RFC 791, 9293, 7323)."""
_BURST_S, _DROPPING_BURST_S = 0.002, 0.005
"""How long a bucket that nobody gave a size for lasts at its rate. Without a queue it must take what TCP sends at once: with two
milliseconds a connection had 0.89 of 100 Mbit/s."""
_LEAST_BURST = 16 << 10
_QUEUE_S = 0.05
"""How long what waits may wait: as long as tc(8)'s examples have it."""
_LEAST_FRAMES = 2
_LARGEST_PACKET = (64 << 10) + _FRAME
"""Of a TCP stream, as the host handles it at once."""


Queued = Mapping[str, Mapping[int, tuple[str, Limit]]]
"""As `Limiting.queues_of` says."""
_NONE: Queued = {}


@dataclass(frozen=True, slots=True)
class Means:
    """What a kernel can limit, of the words of `DIRECTIONS` and `COUNTED`, by what of that it is able to do."""

    able: frozenset[str] = frozenset()

    @classmethod
    def of(cls, able: Collection[str]) -> Means:
        """Of a kernel with these capabilities."""
        return cls(frozenset(able) & frozenset({QUEUES}.union(*(way for ways in NEEDS.values() for way in ways))))

    @property
    def words(self) -> frozenset[str]:
        return frozenset(word for word, ways in NEEDS.items() if any(way <= self.able for way in ways))

    @property
    def by_rule(self) -> bool:
        """Whether what containers send is held back when nft's rules have judged it."""
        return RULE in self.able

    def within(self, limits: Limits) -> Limits:
        """Those of `limits` that it can keep."""
        return limits.only(self.words) if limits != UNSAID else limits


@dataclass(frozen=True, slots=True)
class Limiting:
    """What a node knows of limits besides its endpoints and networks: what was `told` of containers since they began (see `known_as`), and
    of their published `ports` (by that and `port_name`), what its kernel can keep, and whether queues of this host go by priorities."""

    told: Mapping[tuple[str, str], Limits] = field(default_factory=dict)
    means: Means = Means()
    ports: Mapping[tuple[str, str, str], Limits] = field(default_factory=dict)
    honours: bool = False

    def told_of(self, endpoint: Endpoint) -> Limits:
        return self.told.get(known_as(endpoint), UNSAID)

    def asked(self, endpoint: Endpoint, network: Network) -> Limits:
        """What counts for the endpoint, whether it can be kept or not."""
        return effective(endpoint, network, self.told_of(endpoint))

    def of(self, endpoint: Endpoint, network: Network) -> Limits:
        """What it is held to."""
        return self.means.within(self.asked(endpoint, network))

    def port_told(self, endpoint: Endpoint, port: str) -> Limits:
        return self.ports.get((*known_as(endpoint), port), UNSAID)

    def port_asked(self, endpoint: Endpoint, port: str) -> Limits:
        """What counts for the port of that name of the container as it is published, whether it can be kept or not."""
        return self.port_told(endpoint, port).over(read_or_unsaid(endpoint.labels, PORT_PREFIX)).holding()

    def ports_of(self, endpoint: Endpoint) -> dict[str, Limits]:
        """What the published ports that are held to anything are held to, by name."""
        asked = {name: self.port_asked(endpoint, name) for name in port_names(endpoint)}
        kept = {name: limits.only(set(limits.words()) - set(port_unmet(limits, self.means))) for name, limits in asked.items()}
        return {name: limits for name, limits in kept.items() if limits != UNSAID}

    def queues_of(self, endpoint: Endpoint) -> dict[str, dict[int, tuple[str, Limit]]]:
        """The published ports that have a queue, and what they are held to, by direction and minor number of their class. That is the
        port's place among all that the container publishes, so that it stays while limits of others come and go."""
        minors = {name: FIRST_PORT_MINOR + place for place, name in enumerate(port_names(endpoint))}
        held = [(name, limits.by_direction().items()) for name, limits in self.ports_of(endpoint).items()]
        found: dict[str, dict[int, tuple[str, Limit]]] = {}
        for name, word, limit in ((name, word, limit) for name, rates in held for word, limit in rates if not limit.drop):
            found.setdefault(word, {})[minors[name]] = name, limit
        return found


def port_name(port: PortMapping) -> str:
    """By what a published port is told of: the container's, which stays the same whatever port of the host leads to it."""
    return f"{port.container_port}/{port.proto}"


def port_names(endpoint: Endpoint) -> list[str]:
    """Of all ports that it publishes."""
    return sorted(set(map(port_name, endpoint.ports)))


def known_as(endpoint: Endpoint) -> tuple[str, str]:
    """By what a container is told of: network and name, or its id where it has no name."""
    return endpoint.network, endpoint.name or endpoint.container


def effective(endpoint: Endpoint, network: Network, told: Limits = UNSAID) -> Limits:
    """What counts for the endpoint, each word by itself: what was `told` since it began, what its engine asked for, its labels, what
    its network says. What is limited to nothing is not in it."""
    labels, default = read_or_unsaid(endpoint.labels, LABEL_PREFIX), read_or_unsaid(network.options, OPTION_PREFIX)
    return told.over(endpoint.limits or UNSAID).over(labels).over(default).holding()


def unmet(limits: Limits, means: Means) -> tuple[str, ...]:
    """What a kernel of these means cannot limit although `limits` says so."""
    return tuple(word for word in limits.words() if word not in means.words)


def port_unmet(limits: Limits, means: Means) -> tuple[str, ...]:
    """As `unmet`, of a published port."""
    queued = {word for word, limit in limits.by_direction().items() if not limit.drop}
    return tuple(word for word in limits.words() if not (PORT_NEEDS[word] if word in queued else {METERED}) <= means.able)


def ifb_name(dev: str) -> str:
    """The device that what comes in by the endpoint's link `dev` is led through."""
    return dev.replace(f"{PREFIX}e", f"{PREFIX}i", 1)


def limit_objects(dev: str, mtu: int, limits: Limits, by_rule: bool = False, ports: Queued = _NONE) -> list[KernelObject]:
    """All that holds the endpoint with the host side `dev` to `limits` and gives its `ports` queues (`Limiting.queues_of`), in the order in
    which it can be made; `by_rule`: but for what leads packets to the device that holds back what it sends (`led_away`)."""
    objects: list[KernelObject] = []
    if limits.incoming is not None or "in" in ports:
        objects.append(_held_back(dev, "in", limits.incoming, ports, mtu))
    if limits.outgoing is not None or "out" in ports:
        through = ifb_name(dev)
        objects += [IfbLink(through), _held_back(through, "out", limits.outgoing, ports, mtu)]
        objects += [] if by_rule else [Redirect(dev, through)]
    return objects


def led_away(dev: str) -> tuple[str, ...]:
    """The last rules of the chain of the link `dev` where what comes in by it is held back. What was led away meets no chain of the link
    any more when it comes back (kernel: tc_skip_classify), so the rules before have judged it by then. What asks for neighbours is not
    held back."""
    return ("arp operation request accept", "icmpv6 type nd-neighbor-solicit accept", f'fwd to "{ifb_name(dev)}"')


def burst_of(obj: KernelObject) -> int:
    """Bytes that what it holds back may have at once after a rest: all that goes through it, not by some port alone."""
    if isinstance(obj, PortQueues):
        return next((one.burst for one in obj.classes if one.minor == WHOLE_MINOR), 0)
    return obj.burst if isinstance(obj, Tbf) else 0


def _held_back(dev: str, direction: str, whole: Limit | None, ports: Queued, mtu: int) -> Tbf | PortQueues:
    """A bucket for all, or a class for each port. With a limit of all, each class has an equal part of that for itself, as far as it may
    use it, and what the others leave."""
    queued, major = ports.get(direction, {}), PORTS_MAJORS[direction]
    if whole is not None and not queued:
        return _bucket(dev, whole, mtu)
    buckets = {minor: _bucket(dev, limit, mtu) for minor, (_, limit) in queued.items()}
    if whole is None:
        return PortQueues(dev, tuple(_class(minor, one, one.rate, one.rate) for minor, one in sorted(buckets.items())), major)
    most = _bucket(dev, whole, mtu)
    part = max(most.rate // (len(buckets) + 1), 1)
    classes = [PortClass(WHOLE_MINOR, most.rate, most.rate, most.burst, 0), _class(OTHERS_MINOR, most, part, most.rate)]
    classes += [_class(minor, one, min(one.rate, part), min(one.rate, most.rate)) for minor, one in sorted(buckets.items())]
    return PortQueues(dev, tuple(classes), major)


def _class(minor: int, bucket: Tbf, rate: int, ceil: int) -> PortClass:
    """Its queue takes the largest packet, which no class divides as a bucket does."""
    return PortClass(minor, rate, ceil, bucket.burst, max(bucket.limit, _LARGEST_PACKET))


def _bucket(dev: str, limit: Limit, mtu: int) -> Tbf:
    """A packet larger than the bucket would never pass. Dropping is a queue no longer than the bucket: a token bucket needs one to have
    packets wait for the next token at all."""
    frame = mtu + _FRAME
    rate = -(-limit.rate * frame // ((mtu - _HEADERS) * 8))
    usual = int(rate * (_DROPPING_BURST_S if limit.drop else _BURST_S))
    burst = max(limit.burst or max(usual, _LEAST_BURST), _LEAST_FRAMES * frame)
    burst = -(-burst // BURST_STEP) * BURST_STEP
    queue = burst if limit.drop else burst + max(int(rate * _QUEUE_S), _LEAST_BURST)
    return Tbf(dev, rate, burst, queue)
