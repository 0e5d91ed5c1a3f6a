# SPDX-License-Identifier: Apache-2.0
"""Kernel objects that limit how fast a link carries packets (see `objects`, and `shaping`), spelled as tc(8) prints them."""

from __future__ import annotations

from dataclasses import dataclass

from plait.model.hostlinks import Key


@dataclass(frozen=True, slots=True)
class IfbLink:
    """A device that packets are led through on their way in, so that its queueing discipline holds them back (ifb: intermediate functional
    block)."""

    name: str
    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.name)


BURST_STEP = 1 << 10
"""The kernel keeps a burst as the time that it takes: so many bytes are told apart at every rate."""


@dataclass(frozen=True, slots=True)
class Tbf:
    """The queueing discipline `tbf` of what the link `dev` sends: `rate` bytes a second with their Ethernet headers; `burst` bytes, a
    multiple of `BURST_STEP`, may pass at once after a rest; `limit` bytes wait, what comes beyond is dropped."""

    dev: str
    rate: int
    burst: int
    limit: int

    @property
    def key(self) -> Key:
        return ("qdisc", self.dev)


@dataclass(frozen=True, slots=True)
class Redirect:
    """That all that the link `dev` receives, but what asks for neighbours, goes through the device `to` before anything else of this host
    sees it. One that somebody has taken a part of names no device."""

    dev: str
    to: str

    @property
    def key(self) -> Key:
        return ("redirect", self.dev)


@dataclass(frozen=True, slots=True)
class PortClass:
    """A class of `PortQueues`: `rate` bytes a second that it has by itself, and up to `ceil` while the others leave theirs; `burst` bytes,
    a multiple of `BURST_STEP`, may pass at once after a rest; `limit` bytes wait, 0 where nothing does."""

    minor: int
    rate: int
    ceil: int
    burst: int
    limit: int


PORTS_MAJORS = {"in": 0x71, "out": 0x72}
"""The handles of these queues by direction. A frame that is switched to a neighbour keeps the class of its way out: there it means none."""
WHOLE_MINOR, OTHERS_MINOR, FIRST_PORT_MINOR = 1, 2, 0x10
"""Classes of `PortQueues`: that of all, to which the others belong if it is there; of what goes by no limited port; of the first port."""


@dataclass(frozen=True, slots=True)
class PortQueues:
    """The queueing discipline `htb` of what the link `dev` of ours sends, with a class for each published port that has a queue, and by
    minor number. A packet says its class as its priority; what says none and finds no class for others passes at once."""

    dev: str
    classes: tuple[PortClass, ...]
    major: int = PORTS_MAJORS["in"]

    @property
    def key(self) -> Key:
        return ("qdisc", self.dev)


CLASSES_MAJOR = 0x7070
"""The handle of ours at the root of a link of the host, so that it is told from others'."""
CLASS_MINORS = (0x10, 0x20, 0x30)
"""Of the classes, in the order of `model.limits.PRIORITIES`."""


@dataclass(frozen=True, slots=True)
class Classes:
    """The queueing discipline `htb` of what the link `dev` of the host sends, with a class for each priority: `rate` bytes a second for
    all, `shares` of it that each has by itself, and may exceed while others leave theirs."""

    dev: str
    rate: int
    shares: tuple[int, int, int]

    @property
    def key(self) -> Key:
        return ("qdisc", self.dev)
