# SPDX-License-Identifier: Apache-2.0
"""What must be known of each container before it asks for an address, remembered over restarts of the agent and of the host.

Data in: full lists of the engine and inspections. Data out: records, durable. An engine that starts restarts its containers before it
answers anybody, so what it said before is all that there is.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from plait.runtimes.docker.enginetypes import ContainerDetails, ContainerRow
from plait.runtimes.docker.state import CONTAINERS, DockerState


@dataclass(frozen=True, slots=True)
class Known:
    """`mac`: what `--mac-address` chose, "" if the engine draws one at each start."""

    id: str
    name: str
    mac: str


class KnownContainers:
    """One engine's containers, by the Docker networks that they are on, running or not; without those where `--ip` chose the address."""

    def __init__(self, state: DockerState) -> None:
        self._state = state

    async def learn(self, rows: Sequence[ContainerRow], details: Mapping[str, ContainerDetails]) -> None:
        """`rows` is the full list: what it lacks is forgotten. Without an entry in `details` a container keeps the MAC that it had."""
        present = self._state.all(CONTAINERS)
        for row in rows:
            seen = details.get(row.id)
            mac = seen.mac if seen is not None else present.get(row.id, {}).get("mac", "")
            open_ones = ((name, settings.network_id) for name, settings in row.networks.items() if not settings.is_chosen)
            networks = {key for keys in open_ones for key in keys if key}
            labels = json.dumps(row.labels or {}, sort_keys=True)
            document = {"name": row.name, "networks": " ".join(sorted(networks)), "mac": mac, "labels": labels}
            await self._state.put(CONTAINERS, row.id, document)
        for key in present.keys() - {row.id for row in rows}:
            await self._state.delete(CONTAINERS, key)

    def labels(self, name: str) -> Mapping[str, str]:
        """Those of the container of that name."""
        found = next((d for d in self._state.all(CONTAINERS).values() if name and d.get("name") == name), {})
        labels: Mapping[str, str] = json.loads(found.get("labels", "{}"))
        return labels

    def on(self, networks: Collection[str]) -> list[Known]:
        """Those that are on any of these Docker networks (names or ids)."""
        return [
            Known(key, document["name"], document.get("mac", ""))
            for key, document in self._state.all(CONTAINERS).items()
            if document.get("name") and not set(document.get("networks", "").split()).isdisjoint(networks)
        ]
