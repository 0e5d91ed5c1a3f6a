# SPDX-License-Identifier: Apache-2.0
"""What Prometheus scrapes: instances as target groups of its HTTP service discovery.

Data in: instances. Data out: a list of {targets: ["HOST:PORT"], labels: {…}}, one group for each port. Source of the format: the
documentation of Prometheus, "HTTP SD" and `<http_sd_config>`; the labels' names follow its Consul discovery with `plait` for `consul`.
Tags are joined by commas, with one at each end, so that `.*,blue,.*` finds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from plait.model.addr import at_port
from plait.model.cluster import Instance
from plait.services.checkviews import Json
from plait.services.views import Views

_PREFIX = "__meta_plait_"
_NO_LABEL = re.compile(r"[^A-Za-z0-9_]")


def target_groups(views: Views, instances: Iterable[Instance], port: str = "") -> Iterator[Json]:
    """In the order of the instances. `port`: only ports of that name, in any case. An instance without port is not scraped, nor is plait's
    own pseudo-service `consul`."""
    for instance in instances:
        if instance.id == instance.name == "consul":
            continue
        labels = _labels(views, instance)
        host = instance.address or views.directory.nodes[instance.node].address
        for name, number in _ports(instance):
            if number and port.lower() in ("", name.lower()):
                yield {
                    "targets": [at_port(host, number)],
                    "labels": {**labels, f"{_PREFIX}port_name": name, f"{_PREFIX}service_port": str(number)},
                }


def _ports(instance: Instance) -> Iterator[tuple[str, int]]:
    """(name, number): each named TCP port, and the instance's own if that has no name ("")."""
    yield from ((port.name, port.port) for port in instance.ports if port.protocol == "tcp")
    if not any(port.default for port in instance.ports):
        yield "", instance.port


def _labels(views: Views, instance: Instance) -> dict[str, str]:
    node = views.directory.nodes[instance.node]
    single = {
        "address": node.address,
        "dc": views.datacenter,
        "health": views.status(instance),
        "node": node.name,
        "service": instance.name,
        "service_address": instance.address,
        "service_id": instance.id,
        "tags": f",{','.join(instance.tags)},",
        "container": instance.container,
    }
    found = {_PREFIX + key: value for key, value in single.items()}
    for prefix, more in (("metadata_", node.meta), ("service_metadata_", instance.meta), ("label_", views.labels(instance))):
        found |= _spelled(_PREFIX + prefix, more)
    return found


def _spelled(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    """Their keys as names of labels; of two that are spelled alike the later one counts."""
    return {prefix + _NO_LABEL.sub("_", key): values[key] for key in sorted(values)}
