# SPDX-License-Identifier: Apache-2.0
"""Network coordinates of the Consul-compatible API, and the order that `near` asks for.

Agents measure theirs (`agent/roundtrips.py`); clients may write them too (`coordinate/update`). A node of which nobody wrote one is at the
origin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from plait.http.message import Answer
from plait.model.cluster import Snapshot
from plait.model.kv import Coordinate
from plait.serve.consul_http import Call, Missing, Route, encoded, json_answer, read_headers, until
from plait.services.coordinates import DIMENSIONS, distance
from plait.services.requests import BadRequest, fold, name_of, text_of

Json = dict[str, object]
_MOST = 1e100
"""Far beyond every distance, and its square is still a number."""


class CoordinateBackend(Protocol):
    def snapshot(self) -> Snapshot: ...

    def last_contact_ms(self) -> int | None: ...

    def coordinate(self, node: str) -> tuple[Coordinate, int]:
        """Of that node, with the index of its last change; the origin if nobody wrote one."""
        ...

    def coordinates_index(self) -> int:
        """Of a query for all of them."""
        ...

    async def set_coordinate(self, coordinate: Coordinate) -> None:
        """Durable and seen here when it returns. StoreUnavailable."""
        ...

    async def coordinates_changed(self, timeout_s: float) -> None: ...


def near(backend: CoordinateBackend, node: str) -> Callable[[str], float] | None:
    """How far a node of that name is from `node`, itself 0; None if there is no such node, and so no order."""
    if node not in backend.snapshot().nodes:
        return None
    origin = backend.coordinate(node)[0]
    return lambda name: distance(origin, backend.coordinate(name)[0]) if name != node else 0.0


class CoordinateApi:
    def __init__(self, backend: CoordinateBackend, datacenter: str) -> None:
        self._backend, self._datacenter = backend, datacenter
        self.routes = (
            Route("coordinate/datacenters", "the coordinates of the servers", {"GET": self._datacenters}),
            Route("coordinate/nodes", "those of all nodes", {"GET": self._nodes}),
            Route("coordinate/node/<name>", "that of one node", {"GET": self._node}),
            Route("coordinate/update", "write that of one node", {"PUT": self._update}),
        )

    async def _datacenters(self, call: Call) -> Answer:
        found = [{"Node": row["Node"], "Segment": "", "Coord": row["Coord"]} for row in self._all()[0]]
        body = [{"Datacenter": self._datacenter, "AreaID": "wan", "Coordinates": found}]
        return json_answer(encoded(body, call.flag("pretty")))

    async def _nodes(self, call: Call) -> Answer:
        return await self._shown(call, self._all)

    async def _node(self, call: Call) -> Answer:
        name = call.part("node name")
        if name not in self._backend.snapshot().nodes:
            raise Missing("")
        return await self._shown(call, lambda: self._one(name))

    async def _shown(self, call: Call, look: Callable[[], tuple[list[Json], int]]) -> Answer:
        after = call.index()
        rows, index = look()
        if after:
            rows, index = await until(call.wait_s(), look, lambda found: found[1] > after, self._backend.coordinates_changed)
        headers = read_headers(index, self._backend.last_contact_ms(), call.consistency())
        return json_answer(encoded(rows, call.flag("pretty")), headers)

    def _one(self, name: str) -> tuple[list[Json], int]:
        coordinate, index = self._backend.coordinate(name)
        return [_row(coordinate)], index

    def _all(self) -> tuple[list[Json], int]:
        """By name; a node that leaves takes the index of its coordinate with it, but not that of the answer."""
        names = sorted(self._backend.snapshot().nodes)
        return [_row(self._backend.coordinate(name)[0]) for name in names], self._backend.coordinates_index()

    async def _update(self, call: Call) -> Answer:
        coordinate = parse_coordinate(call.json())
        if coordinate.node not in self._backend.snapshot().nodes:
            raise BadRequest(f"there is no node {coordinate.node!r}")
        await self._backend.set_coordinate(coordinate)
        return json_answer(b"true")


def parse_coordinate(body: object) -> Coordinate:
    """`{"Node", "Segment", "Coord": {"Vec", "Error", "Adjustment", "Height"}}`. BadRequest for anything else."""
    raw = fold(body)
    node = name_of(raw, "node")
    coord = fold(raw.get("coord") or {})
    vec = coord.get("vec")
    if not node:
        raise BadRequest("Must provide node")
    if not isinstance(vec, list) or len(vec) != DIMENSIONS:
        raise BadRequest(f"Request decode failed: Coord.Vec must be a list of {DIMENSIONS} numbers")
    numbers = [_number(entry, "Vec") for entry in vec]
    parts = [_number(coord.get(key, 0), key) for key in ("error", "adjustment", "height")]
    return Coordinate(node, text_of(raw, "segment"), tuple(numbers), *parts)


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MOST:
        raise BadRequest(f"Request decode failed: Coord.{key} must be a finite number, got {str(value)[:40]!r}")
    return float(value)


def _row(coordinate: Coordinate) -> Json:
    return {"Node": coordinate.node, "Segment": coordinate.segment, "Coord": coord_json(coordinate)}


def coord_json(coordinate: Coordinate) -> Json:
    """`Coord` as Consul writes it."""
    return {
        "Vec": list(coordinate.vec),
        "Error": coordinate.error,
        "Adjustment": coordinate.adjustment,
        "Height": coordinate.height,
    }
