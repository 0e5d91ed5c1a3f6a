# SPDX-License-Identifier: Apache-2.0
"""Backend `direct`: plain routes between nodes that were found to share a link, and nothing to the others.

It adds nothing to a packet and makes no device; the routes to next hops on the link are the plan's, for every backend that may use them.
"""

from plait.backends.base import DIRECT, NoTunnel


class DirectBackend(NoTunnel):
    name, model = DIRECT, "hybrid"
    ways = (DIRECT,)
