# SPDX-License-Identifier: Apache-2.0
"""What the API's records are here: frozen, compared by what matters (two instances that differ in an index only are equal).

Data in: decoded JSON. Data out: records. Unknown fields are ignored; null lists and maps are empty; a record without the fields that every
agent gives is a BadAnswer.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from plait.client.errors import BadAnswer

T = TypeVar("T")
Status = Literal["passing", "warning", "critical", "maintenance"]
_WORSE: Mapping[str, int] = {"passing": 0, "warning": 1, "critical": 2, "maintenance": 3}
_MAINTENANCE = ("_node_maintenance", "_service_maintenance")


@dataclass(frozen=True, slots=True)
class CheckState:
    """One health check of a node (`service_id` "") or of an instance. Output is not compared: it changes with each run."""

    id: str
    name: str
    status: str
    node: str = ""
    service_id: str = ""
    service_name: str = ""
    notes: str = ""
    output: str = field(default="", compare=False)
    modify_index: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Port:
    """One of several ports of an instance. `default`: it is the instance's own, which those find who ask for none by name."""

    name: str
    number: int
    protocol: str = "tcp"
    default: bool = False


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service. `address` is its own, else its node's; `status` the worst of its and its node's checks.

    `weight` is the weight for its status (passing or warning; 0 when critical). `ports`: those that have names, in the order of the
    registration. Key of an instance: (node, id).
    """

    id: str
    name: str
    node: str
    address: str
    port: int
    status: Status = "passing"
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    node_meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    weight: int = 1
    datacenter: str = ""
    checks: tuple[CheckState, ...] = ()
    ports: tuple[Port, ...] = ()
    modify_index: int = field(default=0, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        return self.node, self.id

    @property
    def endpoint(self) -> str:
        """host:port, an IPv6 address in brackets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def at(self, port: str) -> Instance | None:
        """The same instance with its port of that name (in any case) as its `port`; None if it has none."""
        found = next((one for one in self.ports if one.name.lower() == port.lower()), None)
        return None if found is None else replace(self, port=found.number)


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the catalogue."""

    name: str
    address: str
    id: str = ""
    datacenter: str = ""
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    modify_index: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class CatalogService:
    """A service of a node as the catalogue holds it, without what its checks say. `id` "": the name; `address` "": the node's."""

    node: str
    name: str
    id: str = ""
    address: str = ""
    port: int = 0
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    weight: int = 1
    weight_warning: int = 1
    modify_index: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Member:
    """One agent of the cluster. `status`: alive, leaving, left or failed."""

    name: str
    address: str
    port: int
    status: str
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of the store. `session` holds its lock ("": nobody); `lock_index` counts how often the lock was taken."""

    key: str
    value: bytes
    flags: int = 0
    session: str = ""
    lock_index: int = 0
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """One session. `lock_delay_s` in seconds; `ttl` as the API writes it ("15s"), "" for none."""

    id: str
    name: str = ""
    node: str = ""
    behavior: str = "release"
    ttl: str = ""
    lock_delay_s: float = 15.0
    create_index: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Event:
    """One fired event; the filters are regular expressions, "" where all are meant."""

    id: str
    name: str
    payload: bytes = b""
    node_filter: str = ""
    service_filter: str = ""
    tag_filter: str = ""
    time: int = 0


def records(raw: Any, parse: Callable[[Any], T], what: str) -> tuple[T, ...]:
    """A JSON list (null: empty) as records; BadAnswer if it is not a list or one of them lacks what it must have."""
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise BadAnswer(f"{what}: a list was expected, not {type(raw).__name__}")
    return tuple(record(item, parse, what) for item in raw)


def record(raw: Any, parse: Callable[[Any], T], what: str) -> T:
    try:
        return parse(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer(f"{what}: the answer is not as documented ({error!r})") from error


def entry(raw: Any) -> Entry:
    return Entry(
        raw["Key"],
        b64decode(raw.get("Value") or "", validate=True),
        raw.get("Flags", 0),
        raw.get("Session") or "",
        raw.get("LockIndex", 0),
        raw.get("CreateIndex", 0),
        raw["ModifyIndex"],
    )


def session(raw: Any) -> Session:
    return Session(
        raw["ID"],
        raw.get("Name") or "",
        raw.get("Node") or "",
        raw.get("Behavior") or "release",
        raw.get("TTL") or "",
        raw.get("LockDelay", 15e9) / 1e9,
        raw.get("CreateIndex", 0),
    )


def event(raw: Any) -> Event:
    return Event(
        raw["ID"],
        raw["Name"],
        b64decode(raw.get("Payload") or "", validate=True),
        raw.get("NodeFilter") or "",
        raw.get("ServiceFilter") or "",
        raw.get("TagFilter") or "",
        raw.get("LTime", 0),
    )


def node(raw: Any) -> Node:
    return Node(
        raw["Node"], raw["Address"], raw.get("ID") or "", raw.get("Datacenter") or "", raw.get("Meta") or {}, raw.get("ModifyIndex", 0)
    )


def member(raw: Any) -> Member:
    names = {1: "alive", 2: "leaving", 3: "left", 4: "failed"}
    return Member(raw["Name"], raw["Addr"], raw["Port"], names.get(raw["Status"], "none"), raw.get("Tags") or {})


def check(raw: Any) -> CheckState:
    return CheckState(
        raw["CheckID"],
        raw.get("Name") or "",
        raw["Status"],
        raw.get("Node") or "",
        raw.get("ServiceID") or "",
        raw.get("ServiceName") or "",
        raw.get("Notes") or "",
        raw.get("Output") or "",
        raw.get("ModifyIndex", 0),
    )


def instance(raw: Any) -> Instance:
    """An entry of health/service."""
    host, service = raw["Node"], raw["Service"]
    checks = tuple(check(item) for item in raw.get("Checks") or ())
    status = worst(checks)
    weights = service.get("Weights") or {}
    return Instance(
        service["ID"],
        service["Service"],
        host["Node"],
        service.get("Address") or host["Address"],
        service.get("Port") or 0,
        status,
        tuple(service.get("Tags") or ()),
        service.get("Meta") or {},
        host.get("Meta") or {},
        {"passing": weights.get("Passing", 1), "warning": weights.get("Warning", 1)}.get(status, 0),
        host.get("Datacenter") or "",
        checks,
        tuple(port(item) for item in service.get("Ports") or ()),
        service.get("ModifyIndex", 0),
    )


def catalog_service(raw: Any, host: str) -> CatalogService:
    """A service as answers about a node show it."""
    weights = raw.get("Weights") or {}
    return CatalogService(
        host,
        raw["Service"],
        raw["ID"],
        raw.get("Address") or "",
        raw.get("Port") or 0,
        tuple(raw.get("Tags") or ()),
        raw.get("Meta") or {},
        weights.get("Passing", 1),
        weights.get("Warning", 1),
        raw.get("ModifyIndex", 0),
    )


def port(raw: Any) -> Port:
    return Port(raw["Name"], raw["Port"], raw.get("Protocol") or "tcp", raw.get("Default") or False)


def worst(checks: tuple[CheckState, ...]) -> Status:
    """The status of an instance with these checks: maintenance, critical, warning, passing, the first that any has."""
    found: Status = "passing"
    for item in checks:
        status = "maintenance" if item.id.startswith(_MAINTENANCE) else item.status
        if _WORSE.get(status, 2) > _WORSE[found]:
            found = status if status in ("warning", "maintenance") else "critical"  # type: ignore[assignment]
    return found
