# SPDX-License-Identifier: Apache-2.0
"""The whole desired state of this node, as a pure function of a Snapshot."""

from plait.plan.desired import carried, endpoint_objects, plan_node, prompt_objects
from plait.plan.firewall import guarded, guards_of
from plait.plan.local import Local
from plait.plan.paths import choose, inhabited, inner_mtu, member, network_mtu, next_hop, next_hop6, path_mtu, plain6, tunnel_devices

__all__ = [
    "Local",
    "carried",
    "choose",
    "endpoint_objects",
    "guarded",
    "guards_of",
    "inhabited",
    "inner_mtu",
    "member",
    "network_mtu",
    "next_hop",
    "next_hop6",
    "path_mtu",
    "plain6",
    "plan_node",
    "prompt_objects",
    "tunnel_devices",
]
