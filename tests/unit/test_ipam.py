# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from plait.ipam import (
    Reservation,
    block_of,
    blocks_of,
    check_network,
    choose_address,
    default_block_prefix,
    exhausted,
    free_blocks,
    next_subnet,
    usable,
)
from plait.model.addr import parse_range
from plait.model.cluster import Block, Network
from plait.model.errors import ConfigError, Conflict, NotFound, PoolExhausted


def net(subnet: str = "10.28.0.0/16", name: str = "default", gateway: str = "", block: int = 0) -> Network:
    cidr = IPv4Network(subnet)
    return Network(name, cidr, IPv4Address(gateway) if gateway else cidr[1], block or default_block_prefix(cidr))


A = IPv4Address
B = IPv4Network


@pytest.mark.parametrize(
    ("subnet", "prefix"),
    [("10.0.0.0/8", 24), ("10.28.0.0/16", 24), ("10.28.0.0/20", 24), ("10.1.2.0/24", 28), ("10.1.2.0/26", 30), ("10.1.2.0/30", 30)],
)
def test_block_size_follows_the_pool(subnet: str, prefix: int) -> None:
    assert default_block_prefix(B(subnet)) == prefix


def test_the_first_container_of_the_first_host_gets_10_28_0_2() -> None:
    network = net()
    assert next(free_blocks(network, [])) == B("10.28.0.0/24")
    assert choose_address(network, [B("10.28.0.0/24")], {}, "c1", tunnel=A("10.28.0.0")) == A("10.28.0.2")


def test_a_slash_28_gives_exactly_thirteen_addresses() -> None:
    network = net("10.9.0.0/28")
    blocks = list(blocks_of(network))
    held: dict[IPv4Address, Reservation] = {}
    for number in range(13):
        address = choose_address(network, blocks, held, f"c{number}")
        assert address is not None and address not in held
        held[address] = Reservation(network.name, address, f"c{number}")
    assert choose_address(network, blocks, held, "one more") is None
    assert not {A("10.9.0.0"), A("10.9.0.1"), A("10.9.0.15")} & set(held)


def test_a_range_is_all_that_is_leased_and_handed_out_unasked() -> None:
    part = B("10.28.4.0/28")
    network = replace(net(block=30), ip_range=part)
    blocks = [block for block, _ in zip(free_blocks(network, []), range(9), strict=False)]
    assert blocks == [B("10.28.4.0/30"), B("10.28.4.4/30"), B("10.28.4.8/30"), B("10.28.4.12/30")]
    held = {A("10.28.9.9"): Reservation("default", A("10.28.9.9"), "o", "web", live=False)}
    assert choose_address(network, [*blocks, B("10.28.9.8/30")], held, "x", "web") == A("10.28.4.0")
    assert choose_address(network, [B("10.28.9.8/30")], held, "x", "web") is None
    assert choose_address(network, [B("10.28.9.8/30")], held, "x", "web", A("10.28.9.9")) == A("10.28.9.9")
    assert "pool 10.28.4.0/28 of network 'default' is exhausted: 16 usable" in str(exhausted(network, [], {}))


def test_a_range_within_one_block_is_of_that_block() -> None:
    network = replace(net(block=24), ip_range=B("10.28.4.8/30"))
    assert list(free_blocks(network, [])) == [B("10.28.4.0/24")]
    assert list(usable(network, B("10.28.4.0/24"))) == [A(f"10.28.4.{n}") for n in (8, 9, 10, 11)]


def test_a_range_outside_the_subnet_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"10\.30\.0\.0/24"):
        check_network(replace(net(), ip_range=B("10.30.0.0/24")), [])


def test_same_owner_asks_again_and_gets_the_same() -> None:
    held = {A("10.28.0.7"): Reservation("default", A("10.28.0.7"), "me")}
    assert choose_address(net(), [B("10.28.0.0/24")], held, "me") == A("10.28.0.7")


def test_a_name_gets_its_address_back_and_others_do_not_take_it_while_fresh_ones_are_left() -> None:
    held = {A("10.28.0.2"): Reservation("default", A("10.28.0.2"), "old", "web", live=False, serial=1)}
    blocks = [B("10.28.0.0/24")]
    assert choose_address(net(), blocks, held, "new", "web") == A("10.28.0.2")
    assert choose_address(net(), blocks, held, "other", "db") == A("10.28.0.3")


def test_who_finds_its_address_taken_gets_that_of_who_took_it() -> None:
    """Of containers that start at the same moment one may have been given another's (docs/guide.md, "Addresses that stay")."""
    held = {
        A("10.28.0.3"): Reservation("default", A("10.28.0.3"), "o3", "api", live=False, serial=3),
        A("10.28.0.4"): Reservation("default", A("10.28.0.4"), "new", "api", serial=8),
        A("10.28.0.5"): Reservation("default", A("10.28.0.5"), "o5", "db", live=False, serial=5),
    }
    blocks = [B("10.28.0.0/24")]
    assert choose_address(net(), blocks, held, "other", "web") == A("10.28.0.3")
    assert choose_address(net(), blocks, held, "other", "db") == A("10.28.0.5"), "its own comes first"
    assert choose_address(net(), blocks, held, "other", "web", cooling={A("10.28.0.3")}) == A("10.28.0.2")
    assert choose_address(net(), blocks, held, "other", "web", elsewhere={A("10.28.0.3")}) == A("10.28.0.2")


def test_the_longest_released_gives_way_when_nothing_fresh_is_left() -> None:
    network = net("10.9.0.0/29", block=29)
    held = {A(f"10.9.0.{n}"): Reservation("default", A(f"10.9.0.{n}"), f"o{n}", f"n{n}", live=False, serial=10 - n) for n in range(2, 7)}
    assert choose_address(network, list(blocks_of(network)), held, "x", "fresh") == A("10.9.0.6")


def test_a_wanted_address_is_checked() -> None:
    blocks = [B("10.28.0.0/24")]
    held = {A("10.28.0.9"): Reservation("default", A("10.28.0.9"), "o", "web")}
    assert choose_address(net(), blocks, held, "x", wanted=A("10.28.0.10")) == A("10.28.0.10")
    with pytest.raises(Conflict, match="in use by 'web'"):
        choose_address(net(), blocks, held, "x", wanted=A("10.28.0.9"))
    with pytest.raises(Conflict, match="kept for the network"):
        choose_address(net(), blocks, held, "x", wanted=A("10.28.0.1"))
    with pytest.raises(NotFound):
        choose_address(net(), blocks, held, "x", wanted=A("10.28.1.9"))


def test_exhaustion_names_pool_size_and_holders() -> None:
    network = net("10.9.0.0/28", "tiny")
    error = exhausted(network, [Block("tiny", B("10.9.0.0/30"), "A"), Block("other", B("10.8.0.0/30"), "B")], {"A": 3})
    assert isinstance(error, PoolExhausted)
    text = str(error)
    assert "10.9.0.0/28" in text and "13 usable" in text and "A: 1 blocks, 3 addresses in use" in text and "B:" not in text


@pytest.mark.parametrize(
    ("network", "word"),
    [
        (net("10.1.0.0/31", gateway="10.1.0.1", block=31), "too small"),
        (net("8.8.0.0/16"), "not a private"),
        (net("10.1.0.0/24", gateway="10.1.0.0"), "not a host address"),
        (net("10.1.0.0/24", gateway="10.2.0.1"), "not a host address"),
        (net("10.1.0.0/24", block=20), "between 24 and 30"),
        (net("10.1.0.0/32", gateway="10.1.0.0", block=32), "too small"),
        (net("10.1.0.0/24", gateway="10.1.0.255"), "not a host address"),
        (net("127.0.0.0/24"), "not a private unicast"),
        (net("169.254.0.0/24"), "not a private unicast"),
        (net("224.0.0.0/24"), "not a private unicast"),
        (replace(net("10.1.0.0/24"), excluded=(parse_range("10.1.0.200-10.1.1.3"),)), "no part of the subnet"),
        (replace(net("10.1.0.0/30"), excluded=(parse_range("10.1.0.2"),)), "leaves no address"),
        (replace(net("10.1.0.0/24"), ip_range=B("10.1.0.1/32")), "leaves no address"),
        (net("10.28.4.0/24", "other"), "overlaps 10.28.0.0/16 of network 'default'"),
    ],
)
def test_unsound_networks_are_refused_with_the_reason(network: Network, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        check_network(network, [net()])


def test_next_subnet_steps_over_what_is_taken() -> None:
    assert next_subnet([B("10.28.0.0/16")]) == B("10.29.0.0/16")
    assert next_subnet([B("10.29.0.0/24"), B("10.30.128.0/17")]) == B("10.31.0.0/16")
    with pytest.raises(PoolExhausted, match="--subnet"):
        next_subnet([B("10.0.0.0/8")])


def test_block_of_finds_the_block() -> None:
    assert block_of(net(), A("10.28.7.9")) == B("10.28.7.0/24")


def test_a_name_gets_the_address_it_had_last() -> None:
    held = {
        A("10.28.0.9"): Reservation("default", A("10.28.0.9"), "o1", "web", live=False, serial=3),
        A("10.28.0.4"): Reservation("default", A("10.28.0.4"), "o2", "web", live=False, serial=7),
        A("10.28.0.5"): Reservation("default", A("10.28.0.5"), "o3", "web", live=False, serial=5),
    }
    assert choose_address(net(), [B("10.28.0.0/24")], held, "new", "web") == A("10.28.0.4")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.1.0.1/24", "host bits"),
        ("10.1.0.9-10.1.0.2", "behind"),
        ("10.1.0.1-", "empty"),
        ("fd00::1", "4 octets"),
        ("web", "4 octets"),
    ],
)
def test_what_is_no_range_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_range(text)


def test_a_block_of_which_nothing_is_left_is_not_leased() -> None:
    excluded = tuple(map(parse_range, ("10.1.0.2", "10.1.0.3", "10.1.0.8-10.1.0.12", "10.1.0.14")))
    network = replace(net("10.1.0.0/28", block=30), excluded=excluded)
    assert list(free_blocks(network, [])) == [B("10.1.0.4/30"), B("10.1.0.12/30")]


def test_ranges_are_written_as_people_do() -> None:
    texts = ["10.1.0.9", "10.1.0.8/29", "10.1.0.9-10.1.0.12"]
    assert [str(parse_range(text)) for text in (*texts, "10.1.0.8-10.1.0.15", "10.1.0.9/32")] == [*texts, texts[1], texts[0]]
    assert parse_range("10.1.0.9").overlaps(parse_range("10.1.0.8/29")) and not parse_range("10.1.0.7").overlaps(parse_range(texts[1]))
