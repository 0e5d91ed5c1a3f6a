# SPDX-License-Identifier: Apache-2.0
"""What the chain `judged` of `inet plait` has counted (`plan/policy.py`): connections by source, destination, protocol and port.

Elements go a minute after their last packet, so whoever wants all of them looks more often than that.
"""

from __future__ import annotations

import contextlib
import re
from ipaddress import ip_address

from plait.kernel.linux.nft import Nft, NftError
from plait.kernel.linux.nftscript import table_of
from plait.model.objects import NFT_FAMILY
from plait.plan.dual import V4, V6
from plait.plan.policy import JUDGED, JUDGED_PORTLESS
from plait.policy.evaluate import Packet

_SETS = [f"{name}{family.end}" for name in (JUDGED, JUDGED_PORTLESS) for family in (V4, V6)]
_ELEMENT = re.compile(r"([0-9a-f.:]+) \. ([0-9a-f.:]+) \. ([\w-]+)(?: \. (\d+))? counter packets (\d+)")


def read_judged(nft: Nft) -> dict[Packet, int]:
    """How many packets that begin a connection each kind had since it was last not there at all. Sets that are not there hold nothing."""
    found: dict[Packet, int] = {}
    for name in _SETS:
        with contextlib.suppress(NftError):
            found |= parse_judged(nft.run(f"list set {table_of(NFT_FAMILY)} {name}\n", counters=True))
    return found


def parse_judged(text: str) -> dict[Packet, int]:
    """What nft prints of one of the sets."""
    return {
        Packet(ip_address(source), ip_address(destination), protocol, int(port or 0)): int(count)
        for source, destination, protocol, port, count in _ELEMENT.findall(text)
    }
