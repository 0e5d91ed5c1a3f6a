# SPDX-License-Identifier: Apache-2.0
"""Whatever owners come and go: no address is held twice, nothing outside the blocks is given, and exactly all of them can be."""

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from plait.ipam import Reservation, blocks_of, choose_address
from plait.model.cluster import Network

NETWORK = Network("n", IPv4Network("10.9.0.0/27"), IPv4Address("10.9.0.1"), 29)
BLOCKS = list(blocks_of(NETWORK))[:2]
USABLE = {a for b in BLOCKS for a in b} - {IPv4Address("10.9.0.0"), IPv4Address("10.9.0.1")}


@given(st.lists(st.tuples(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.booleans()), max_size=120))
def test_allocation(steps: list[tuple[str, bool]]) -> None:
    held: dict[IPv4Address, Reservation] = {}
    live: dict[str, IPv4Address] = {}
    last: dict[str, IPv4Address] = {}
    for serial, (owner, attach) in enumerate(steps):
        if not attach:
            address = live.pop(owner, None)
            if address is not None:
                held[address] = Reservation("n", address, owner, owner, False, serial)
            continue
        found = choose_address(NETWORK, BLOCKS, held, owner, owner)
        if found is None:
            assert set(live.values()) == USABLE
            continue
        assert found in USABLE
        assert found not in {a for o, a in live.items() if o != owner}
        remembered = held.get(last.get(owner, IPv4Address(0)))
        if owner not in live and remembered is not None and remembered.name == owner:
            assert found == last[owner]
        held[found] = Reservation("n", found, owner, owner, True, serial)
        live[owner] = last[owner] = found
