# SPDX-License-Identifier: Apache-2.0
"""The two languages in which WireGuard devices are asked, on bytes: against each other's decoder, the header of the kernel and words of
wireguard-go itself. The kernel's own can only be run where there is one; here its layout is what is tested."""

from __future__ import annotations

import re
import struct
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.kernel.linux import netlink as nl
from plait.kernel.linux import wgnetlink, wguapi
from plait.kernel.linux.wgdevice import Change, Device, Peer, PeerChange, key_bytes, key_text, public_of

HEADER = Path("/usr/include/linux/wireguard.h")
ONE, TWO = key_text(bytes([1]) * 32), key_text(bytes([2]) * 32)
NAMES = {
    "WGDEVICE_A_IFINDEX": wgnetlink.DEVICE_IFINDEX,
    "WGDEVICE_A_PRIVATE_KEY": wgnetlink.DEVICE_PRIVATE_KEY,
    "WGDEVICE_A_PUBLIC_KEY": wgnetlink.DEVICE_PUBLIC_KEY,
    "WGDEVICE_A_LISTEN_PORT": wgnetlink.DEVICE_LISTEN_PORT,
    "WGDEVICE_A_PEERS": wgnetlink.DEVICE_PEERS,
    "WGPEER_A_PUBLIC_KEY": wgnetlink.PEER_PUBLIC_KEY,
    "WGPEER_A_FLAGS": wgnetlink.PEER_FLAGS,
    "WGPEER_A_ENDPOINT": wgnetlink.PEER_ENDPOINT,
    "WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL": wgnetlink.PEER_KEEPALIVE,
    "WGPEER_A_LAST_HANDSHAKE_TIME": wgnetlink.PEER_HANDSHAKE,
    "WGPEER_A_RX_BYTES": wgnetlink.PEER_RX_BYTES,
    "WGPEER_A_TX_BYTES": wgnetlink.PEER_TX_BYTES,
    "WGPEER_A_ALLOWEDIPS": wgnetlink.PEER_ALLOWED,
    "WGALLOWEDIP_A_FAMILY": wgnetlink.ALLOWED_FAMILY,
    "WGALLOWEDIP_A_IPADDR": wgnetlink.ALLOWED_ADDRESS,
    "WGALLOWEDIP_A_CIDR_MASK": wgnetlink.ALLOWED_MASK,
    "WG_CMD_GET_DEVICE": wgnetlink.CMD_GET_DEVICE,
    "WG_CMD_SET_DEVICE": wgnetlink.CMD_SET_DEVICE,
}
keys = st.binary(min_size=32, max_size=32).map(key_text)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
endpoints = st.tuples(addresses, st.integers(1, 65535))
cidrs = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(lambda t: ip_network(t, strict=False)),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(lambda t: ip_network(t, strict=False)),
)
changes = st.builds(
    PeerChange, keys, st.just(False), st.none() | endpoints, st.integers(0, 65535), st.lists(cidrs, max_size=4, unique=True).map(tuple)
)


def enumerators(header: str) -> dict[str, int]:
    """Names of every enum in a C header -> their numbers."""
    found: dict[str, int] = {}
    for body in re.findall(r"enum \w+ \{(.*?)\};", header, re.DOTALL):
        number = 0
        for item in re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL).split(","):
            name, _, value = (part.strip() for part in item.partition("="))
            if re.fullmatch(r"\w+", name):
                number = int(value) if value.isdigit() else number
                found[name] = number
                number += 1
    return found


@pytest.mark.skipif(not HEADER.exists(), reason="the kernel's headers (linux-libc-dev) are not installed")
def test_the_numbers_are_those_of_the_kernels_header() -> None:
    there = enumerators(HEADER.read_text())
    assert {name: there[name] for name in NAMES} == NAMES
    text = HEADER.read_text()
    assert f'#define WG_GENL_NAME "{wgnetlink.FAMILY}"' in text and f"#define WG_GENL_VERSION {wgnetlink.VERSION}" in text
    assert re.search(r"WGPEER_F_REMOVE_ME = 1U << 0", text) and wgnetlink.PEER_F_REMOVE_ME == 1


def test_a_request_to_the_kernel_byte_by_byte() -> None:
    """Laid out by hand after the header: genlmsghdr, u32 index, key, u16 port, then peers as an array of nested attributes."""
    change = Change(bytes(32), 7472, (PeerChange(ONE, False, (ip_address("198.18.0.2"), 7472), 25, (ip_network("10.29.2.0/24"),)),))
    allowed = struct.pack("=HHHxx", 6, 1, 2) + struct.pack("=HH4s", 8, 2, bytes([10, 29, 2, 0])) + struct.pack("=HHBxxx", 5, 3, 24)
    rows = struct.pack("=HH", 8 + len(allowed), 0x8009) + struct.pack("=HH", 4 + len(allowed), 0x8000) + allowed
    endpoint = struct.pack("=HHHH", 20, 4, 2, int.from_bytes((7472).to_bytes(2, "big"), "little")) + bytes([198, 18, 0, 2]) + bytes(8)
    peer = struct.pack("=HH", 36, 1) + bytes([1]) * 32 + endpoint + struct.pack("=HHHxx", 6, 5, 25) + rows
    peers = struct.pack("=HH", 8 + len(peer), 0x8008) + struct.pack("=HH", 4 + len(peer), 0x8000) + peer
    head = struct.pack("=BBH", 1, 1, 0) + struct.pack("=HHI", 8, 1, 9)
    assert wgnetlink.set_body(9, change) == head + struct.pack("=HH", 36, 3) + bytes(32) + struct.pack("=HHHxx", 6, 6, 7472) + peers


@given(st.lists(changes, max_size=5, unique_by=lambda change: change.public))
def test_what_is_written_to_the_kernel_reads_back(peers: list[PeerChange]) -> None:
    body = wgnetlink.set_body(7, Change(port=7472, peers=tuple(peers)))
    expected = tuple(Peer(p.public, p.endpoint, p.keepalive or 0, allowed=p.allowed) for p in peers)
    assert wgnetlink.decode([body]) == Device("", 7472, expected)


@given(st.lists(changes, max_size=5, unique_by=lambda change: change.public), st.binary(min_size=32, max_size=32).filter(any))
def test_what_is_written_to_wireguard_go_reads_back(peers: list[PeerChange], private: bytes) -> None:
    request = wguapi.encode(Change(private, 7472, tuple(peers)))
    assert request.startswith(b"set=1\n") and request.endswith(b"\n\n") and request.count(b"\n\n") == 1
    expected = tuple(Peer(p.public, p.endpoint, p.keepalive or 0, allowed=p.allowed) for p in peers)
    assert wguapi.decode(request[6:-1] + b"errno=0\n\n") == Device(public_of(private), 7472, expected)


def test_a_device_in_several_messages_is_put_together() -> None:
    """The kernel cuts a long list of rows and goes on in the next message under the same key."""
    first, second = (ip_network(f"10.29.{n}.0/24") for n in (2, 3))
    told = nl.attr(wgnetlink.DEVICE_PUBLIC_KEY, key_bytes(TWO)) + nl.attr_u16(wgnetlink.DEVICE_LISTEN_PORT, 7472)
    time = nl.attr(wgnetlink.PEER_HANDSHAKE, struct.pack("=qq", 1700000000, 500_000_000))
    counts = nl.attr(wgnetlink.PEER_RX_BYTES, struct.pack("=Q", 1 << 40)) + nl.attr(wgnetlink.PEER_TX_BYTES, struct.pack("=Q", 148))

    def rows(cidr: object) -> bytes:
        return wgnetlink.set_body(1, Change(peers=(PeerChange(ONE, allowed=(cidr,)),)))[12:]  # type: ignore[arg-type]

    head = struct.pack("=BBH", 0, 1, 0)
    one = dict(nl.each_attr(rows(first)))[wgnetlink.DEVICE_PEERS]
    element = dict(nl.each_attr(one))[0] + time + counts
    bodies = [head + told + nl.nested(wgnetlink.DEVICE_PEERS, nl.nested(0, element)), head + rows(second)]
    assert wgnetlink.decode(bodies) == Device(TWO, 7472, (Peer(ONE, None, 0, 1700000000.5, 1 << 40, 148, (first, second)),))


def test_the_number_of_the_family() -> None:
    asked = wgnetlink.family_body()
    assert asked == struct.pack("=BBH", 3, 1, 0) + struct.pack("=HH", 14, 2) + b"wireguard\0" + bytes(2)
    assert wgnetlink.decode_family(struct.pack("=BBH", 1, 2, 0) + struct.pack("=HHHxx", 6, 1, 29)) == 29
    with pytest.raises(nl.NetlinkParseError):
        wgnetlink.decode_family(struct.pack("=BBH", 1, 2, 0))


WORDS = (
    "private_key=50ff6a3da54de7637c7a32245283893dbdc04e5ddbd6fc2989c260ba8997ce44\nlisten_port=7472\nfwmark=1\n"
    f"public_key={'01' * 32}\npreshared_key={'00' * 32}\nprotocol_version=1\nendpoint=[fe80::1%eth0]:7000\n"
    "last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=250000000\ntx_bytes=532\nrx_bytes=476\n"
    f"persistent_keepalive_interval=25\nallowed_ip=10.29.4.0/24\nallowed_ip=fd00::/64\npublic_key={'02' * 32}\nerrno=0\n\n"
)


def test_words_of_wireguard_go() -> None:
    rows = (ip_network("10.29.4.0/24"), ip_network("fd00::/64"))
    first = Peer(ONE, (ip_address("fe80::1"), 7000), 25, 1700000000.25, 476, 532, rows)
    device = wguapi.decode(WORDS.encode())
    assert device.peers == (first, Peer(TWO)) and device.port == 7472 and len(key_bytes(device.public)) == 32
    assert wguapi.decode(f"private_key={'00' * 32}\nerrno=0\n\n".encode()) == Device("", 0)


@pytest.mark.parametrize("answer", [b"", b"listen_port=1\n\n", b"\xff\n\n", b"listen_port=x\nerrno=0\n\n", b"public_key=zz\nerrno=0\n\n"])
def test_an_answer_that_is_none_is_a_value_error(answer: bytes) -> None:
    with pytest.raises(ValueError):
        wguapi.decode(answer)


def test_a_refusal_has_its_errno() -> None:
    with pytest.raises(OSError, match="EINVAL") as refused:
        wguapi.decode(b"errno=-22\n\n")
    assert refused.value.errno == 22


@given(st.binary(max_size=300))
def test_any_bytes_from_the_kernel_give_a_device_or_a_parse_error(data: bytes) -> None:
    try:
        wgnetlink.decode([data])
    except (nl.NetlinkParseError, ValueError):
        pass


@pytest.mark.parametrize("text", ["", "short", "!" * 44, key_text(bytes(31))])
def test_what_is_no_key_is_said_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        key_bytes(text)
    assert not text or text not in str(refused.value)


def test_the_public_half_is_that_of_the_base_point() -> None:
    """X25519 of 9 once (RFC 7748, section 5.2)."""
    scalar = bytes([9, *bytes(31)])
    assert key_bytes(public_of(scalar)).hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
