# SPDX-License-Identifier: Apache-2.0
"""The whole desired state of this node, as a pure function of a Snapshot."""

from plait.plan.desired import Local, endpoint_objects, network_mtu, path_mtu, plan_node

__all__ = ["Local", "endpoint_objects", "network_mtu", "path_mtu", "plan_node"]
