# SPDX-License-Identifier: Apache-2.0
"""Whatever owners come and go: no address is held twice, nothing outside the blocks is given, and exactly all of them can be."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from plait.ipam import Reservation, blocks_of, choose_address, usable, usable_count
from plait.model.addr import AddressRange, parse_range
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


BASE = int(NETWORK.subnet.network_address)
OFFSETS = st.integers(0, NETWORK.subnet.num_addresses - 1)
RANGES = st.tuples(OFFSETS, OFFSETS).map(lambda ends: AddressRange(IPv4Address(BASE + min(ends)), IPv4Address(BASE + max(ends))))


@given(st.integers(0, (1 << 32) - 1), st.integers(0, 1 << 16))
def test_a_range_is_read_as_it_is_written(first: int, more: int) -> None:
    made = AddressRange(IPv4Address(first), IPv4Address(min(first + more, (1 << 32) - 1)))
    assert parse_range(str(made)) == made


@given(st.lists(RANGES, max_size=4), st.one_of(st.none(), st.sampled_from(list(NETWORK.subnet.subnets(new_prefix=29)))))
def test_the_count_is_that_of_the_addresses(excluded: list[AddressRange], part: IPv4Network | None) -> None:
    network = replace(NETWORK, excluded=tuple(excluded), ip_range=part)
    everything = [a for block in blocks_of(network) for a in usable(network, block)]
    assert usable_count(network) == len(everything) == len(set(everything))
    assert not [a for a in everything if any(a in one for one in excluded)]


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.sets(OFFSETS, max_size=8), st.sets(OFFSETS, max_size=8)), max_size=60)
)
def test_what_is_refused_is_never_given_and_what_cools_only_to_its_name(steps: list[tuple[str, bool, set[int], set[int]]]) -> None:
    held: dict[IPv4Address, Reservation] = {}
    for serial, (owner, attach, barred, cool) in enumerate(steps):
        refused = {IPv4Address(BASE + n) for n in barred}
        cooling = {IPv4Address(BASE + n) for n in cool}
        if not attach:
            for address, r in list(held.items()):
                if r.owner == owner and r.live:
                    held[address] = replace(r, live=False, serial=serial)
            continue
        has = {a for a, r in held.items() if r.live and r.owner == owner}
        found = choose_address(NETWORK, BLOCKS, held, owner, owner, None, None, (), lambda a, no=refused: "no" if a in no else "", cooling)
        if has:
            assert {found} == has
            continue
        last = held.get(found) if found is not None else None
        if found is None:
            free = {a for a in USABLE - refused if a not in held or not held[a].live}
            assert all(a in held and a in cooling and held[a].name != owner for a in free)
            continue
        assert found in USABLE - refused and (last is None or not last.live)
        assert last is None or last.name == owner or found not in cooling
        held[found] = Reservation("n", found, owner, owner, True, serial)
