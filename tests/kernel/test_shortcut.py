# SPDX-License-Identifier: Apache-2.0
"""The shortcut's program on frames that a test made, run by the kernel without a link (BPF_PROG_TEST_RUN), and on real ones."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from tests.support.kernel import converge, in_namespace, sh

from plait.kernel.linux import LinuxKernel, bpf, shortcut
from plait.kernel.linux.shortcut import Shortcuts
from plait.model.objects import EndpointLink, Plan
from plait.model.shortcut import Delivery, Shortcut

pytestmark = pytest.mark.root
_TEST_RUN = 10
LEFT, DELIVERED = 0xFFFFFFFF, 7
"""TC_ACT_UNSPEC, TC_ACT_REDIRECT."""
DELIVERY = Delivery(
    "lo", IPv4Address("10.29.0.2"), IPv4Network("10.29.0.0/16"), "pl-e1", IPv4Address("198.18.0.2"), 7, 4789, "02:00:00:00:00:0b"
)
MACS = b"\x02\xaa\0\0\0\1", b"\x02\xbb\0\0\0\2"


@dataclass(frozen=True)
class Packet:
    """A VXLAN packet as the link receives it."""

    outer_to: str = "198.18.0.2"
    outer_fragment: int = 0
    outer_options: bytes = b""
    outer_protocol: int = socket.IPPROTO_UDP
    port: int = 4789
    checksum: int = 0
    flags: int = 0x08000000
    vni: int = 7
    ethertype: int = 0x0800
    source: str = "10.29.2.1"
    to: str = "10.29.0.2"
    options: bytes = b""
    ttl: int = 64
    ident: int = 1
    payload: bytes = bytes(range(40))
    macs: bytes = bytes(12)

    @property
    def inner(self) -> bytes:
        return header(self.source, self.to, 17, self.payload, self.ttl, options=self.options, ident=self.ident)

    @property
    def frame(self) -> bytes:
        wrapped = struct.pack("!II", self.flags, self.vni << 8) + self.macs + struct.pack("!H", self.ethertype) + self.inner
        udp = struct.pack("!HHHH", 50000, self.port, 8 + len(wrapped), self.checksum) + wrapped
        outer = header("198.18.0.1", self.outer_to, self.outer_protocol, udp, 64, self.outer_fragment, self.outer_options)
        return bytes(12) + b"\x08\0" + outer


def header(source: str, to: str, protocol: int, payload: bytes, ttl: int, fragment: int = 0, options: bytes = b"", ident: int = 1) -> bytes:
    """With what follows it."""
    length = 20 + len(options)
    start = struct.pack("!BBHHHBB", 0x40 | length // 4, 0, length + len(payload), ident, fragment, ttl, protocol)
    rest = socket.inet_aton(source) + socket.inet_aton(to) + options
    return start + struct.pack("!H", checksum(start + rest)) + rest + payload


def checksum(data: bytes) -> int:
    """Of an IP header (RFC 1071); 0 over one that has its own."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


Judge = Callable[[bytes], tuple[int, bytes]]


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    """What the program says to a frame, and how the frame is afterwards, where what is delivered was routed."""
    with judging(framed=False) as made:
        yield made


@pytest.fixture(scope="module")
def switch() -> Iterator[Judge]:
    """The same where frames are delivered."""
    with judging(framed=True) as made:
        yield made


@pytest.fixture(scope="module")
def bare() -> Iterator[Judge]:
    with judging(framed=False, program_of=shortcut._bare_program) as made:
        yield made


@contextlib.contextmanager
def judging(framed: bool, program_of: Callable[[int], bytes] = shortcut._program) -> Iterator[Judge]:
    with contextlib.ExitStack() as stack:
        table = bpf.create_hash(4, shortcut._VALUE.size, 8, "test")
        stack.callback(os.close, table)
        program = bpf.load_classifier(program_of(table), "test")
        stack.callback(os.close, program)
        words = DELIVERY.source.network_address.packed, DELIVERY.source.netmask.packed, DELIVERY.local.packed
        numbers = struct.pack("!I", DELIVERY.vni << 8), struct.pack("!H", DELIVERY.port)
        bpf.put(table, DELIVERY.address.packed, shortcut._VALUE.pack(1, *words, *numbers, framed, *MACS))

        def run(frame: bytes) -> tuple[int, bytes]:
            given, made = ctypes.create_string_buffer(frame, len(frame)), ctypes.create_string_buffer(4096)
            addresses = map(ctypes.addressof, (given, made))
            attr = bytearray(struct.pack("=4I2Q2I80x", program, 0, len(frame), 4096, *addresses, 1, 0))
            bpf._bpf(_TEST_RUN, attr)
            _, verdict, _, length = struct.unpack_from("=4I", attr)
            return verdict, made.raw[:length]

        yield run


@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("payload", [bytes(20), bytes(range(256)), b"\xff" * 1300])
def test_what_is_delivered_is_the_inner_packet_one_hop_older(judge: Judge, ttl: int, payload: bytes) -> None:
    packet = Packet(ttl=ttl, payload=payload, checksum=0x1234, outer_fragment=0x4000)
    verdict, frame = judge(packet.frame)
    assert verdict == DELIVERED
    assert frame == MACS[0] + MACS[1] + b"\x08\0" + replace(packet, ttl=ttl - 1).inner
    assert checksum(frame[14:34]) == 0


@pytest.mark.parametrize("ttl", [2, 64])
def test_a_frame_is_delivered_as_it_was_sent(switch: Judge, ttl: int) -> None:
    packet = Packet(ttl=ttl, payload=bytes(range(256)), macs=MACS[0] + b"\x02\xcc\xdd\xee\xff\x09")
    assert switch(packet.frame) == (DELIVERED, packet.macs + b"\x08\0" + packet.inner)


@pytest.mark.parametrize("to", [MACS[1], b"\xff" * 6, MACS[0][:5] + b"\0", b"\0" + MACS[0][1:]], ids=lambda mac: mac.hex())
def test_a_frame_for_another_mac_is_not(switch: Judge, to: bytes) -> None:
    packet = Packet(macs=to + MACS[1])
    assert switch(packet.frame) == (LEFT, packet.frame)


@pytest.mark.parametrize("sum_before", [b"\xfe\xff", b"\xfe\xfe", b"\xfd\xff", b"\xff\xfe", b"\x00\x00"])
def test_a_checksum_keeps_its_carry(judge: Judge, sum_before: bytes) -> None:
    packet = next(one for n in range(1 << 16) if (one := Packet(ident=n)).inner[10:12] == sum_before)
    verdict, frame = judge(packet.frame)
    assert (verdict, frame[14:]) == (DELIVERED, replace(packet, ttl=packet.ttl - 1).inner)


@pytest.mark.parametrize(
    "packet",
    [
        Packet(to="10.29.0.3"),
        Packet(source="10.28.2.1"),
        Packet(outer_to="198.18.0.9"),
        Packet(outer_fragment=0x2000),
        Packet(outer_fragment=0x0007),
        Packet(outer_options=b"\1\1\1\1"),
        Packet(outer_protocol=socket.IPPROTO_TCP),
        Packet(port=4790),
        Packet(vni=8),
        Packet(flags=0x00000000),
        Packet(flags=0x0C000000),
        Packet(ethertype=0x0806),
        Packet(ethertype=0x86DD),
        Packet(options=b"\1\1\1\1"),
        Packet(ttl=1),
        Packet(ttl=0),
        Packet(payload=b""),
    ],
    ids=lambda p: ",".join(f"{name}={getattr(p, name)}" for name in Packet.__annotations__ if getattr(p, name) != getattr(Packet(), name)),
)
def test_what_it_does_not_know_for_sure_it_leaves_as_it_was(judge: Judge, packet: Packet) -> None:
    verdict, frame = judge(packet.frame)
    if packet.payload:
        assert (verdict, frame) == (LEFT, packet.frame)
    else:
        assert verdict == DELIVERED, "the shortest that there is"


@pytest.mark.parametrize("length", range(34, 84))
def test_a_frame_that_ends_too_early_is_left(judge: Judge, length: int) -> None:
    frame = Packet(payload=b"").frame[:length]
    assert judge(frame) == (LEFT, frame)


@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("payload", [b"", bytes(range(256)), b"\xff" * 1300])
def test_from_a_bare_link_a_packet_gets_its_frame(bare: Judge, ttl: int, payload: bytes) -> None:
    packet = Packet(ttl=ttl, payload=payload)
    verdict, frame = bare(packet.inner)
    assert (verdict, frame) == (DELIVERED, MACS[0] + MACS[1] + b"\x08\0" + replace(packet, ttl=ttl - 1).inner)
    assert checksum(frame[14:34]) == 0


@pytest.mark.parametrize(
    "packet",
    [Packet(to="10.29.0.3"), Packet(source="10.28.2.1"), Packet(options=b"\1\1\1\1"), Packet(ttl=1), Packet(ttl=0)],
    ids=["to", "source", "options", "last hop", "too old"],
)
def test_what_it_does_not_know_for_sure_it_leaves_on_a_bare_link_too(bare: Judge, packet: Packet) -> None:
    assert bare(packet.inner) == (LEFT, packet.inner)


def test_on_a_bare_link_packets_of_ipv6_and_such_as_end_too_early_are_left(bare: Judge) -> None:
    packet = Packet(payload=b"").inner
    for other in (b"\x65" + packet[1:], *(packet[:length] for length in range(14, 20))):
        assert bare(other) == (LEFT, other)


def plan(*objects: Shortcut | Delivery | EndpointLink) -> Plan:
    return {obj.key: obj for obj in objects}


LINK = EndpointLink("pl-e1", 1450, peer="pl-p1", mac="02:00:00:00:00:0b")


def hooked() -> list[int]:
    """Ids of the programs of the loopback link."""
    return bpf.attached(socket.if_nametoindex("lo"))


def test_it_leaves_the_link_as_it_was() -> None:
    def body(kernel: LinuxKernel) -> None:
        before = sh("tc qdisc show dev lo")
        converge(kernel, plan(LINK, Shortcut("lo"), DELIVERY))
        assert len(hooked()) == 1
        assert sh("tc qdisc show dev lo") == before, "no queueing discipline, which would stop what the link sends"
        converge(kernel, plan(LINK))
        assert hooked() == []

    in_namespace(body)


def test_programs_of_others_stay() -> None:
    def body(kernel: LinuxKernel) -> None:
        with contextlib.ExitStack() as stack:
            table = bpf.create_hash(4, shortcut._VALUE.size, 8, "other")
            stack.callback(os.close, table)
            program = bpf.load_classifier(shortcut._program(table), "other")
            stack.callback(os.close, program)
            bpf.attach(socket.if_nametoindex("lo"), program)
        before = hooked()
        converge(kernel, plan(LINK, Shortcut("lo"), DELIVERY))
        assert converge(kernel, plan(LINK, Shortcut("lo"), DELIVERY)) == 0
        assert len(hooked()) == 2
        converge(kernel, plan(LINK))
        assert hooked() == before

    in_namespace(body)


def test_it_outlives_its_maker_and_another_finds_it() -> None:
    def body(kernel: LinuxKernel) -> None:
        wanted = plan(LINK, Shortcut("lo"), DELIVERY)
        converge(kernel, wanted)
        with contextlib.closing(LinuxKernel()) as successor:
            assert converge(successor, wanted) == 0
            converge(successor, plan(LINK, Shortcut("lo")))
        assert DELIVERY.key not in kernel.owned()

    in_namespace(body)


def test_another_releases_program_is_replaced_and_its_deliveries_come_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(kernel: LinuxKernel) -> None:
        wanted = plan(LINK, Shortcut("lo"), DELIVERY)
        with monkeypatch.context() as patched:
            patched.setattr(shortcut, "_NAME", "plait_012345678")
            converge(kernel, wanted)
        assert kernel.owned()["shortcut", "lo"] == Shortcut("lo", current=False)
        assert converge(kernel, wanted) == 2
        assert converge(kernel, wanted) == 0
        assert len(hooked()) == 1

    in_namespace(body)


def test_one_of_another_kind_is_replaced_and_its_deliveries_come_anew() -> None:
    def body(kernel: LinuxKernel) -> None:
        nothing_around = replace(DELIVERY, local=IPv4Address(0), vni=0, port=0)
        converge(kernel, plan(LINK, Shortcut("lo"), DELIVERY))
        wanted = plan(LINK, Shortcut("lo", bare=True), nothing_around)
        assert converge(kernel, wanted) == 2
        assert converge(kernel, wanted) == 0
        assert kernel.owned()["shortcut", "lo"] == Shortcut("lo", bare=True) and len(hooked()) == 1

    in_namespace(body)


def test_of_links_of_plaits_own_those_of_encrypted_tunnels_are_looked_at() -> None:
    def body(kernel: LinuxKernel) -> None:
        converge(kernel, plan(LINK))
        sh("ip tuntap add dev pl-wg mode tun")
        delivery = replace(DELIVERY, dev="pl-wg", local=IPv4Address(0), vni=0, port=0)
        names = {socket.if_nametoindex(name): name for name in ("pl-wg", "pl-e1")}
        with contextlib.closing(Shortcuts(kernel._sock)) as shortcuts:
            shortcuts.put("pl-wg", bare=True)
            shortcuts.deliver(delivery)
            assert shortcuts.read(names) == [Shortcut("pl-wg", bare=True), delivery]
            shortcuts.remove("pl-wg")
            assert shortcuts.read(names) == []

    in_namespace(body)


def test_a_delivery_without_shortcut_or_link_is_refused_by_name() -> None:
    def body(kernel: LinuxKernel) -> None:
        converge(kernel, plan(LINK))
        with contextlib.closing(Shortcuts(kernel._sock)) as shortcuts:
            with pytest.raises(OSError, match="lo has no shortcut"):
                shortcuts.deliver(DELIVERY)
            shortcuts.put("lo")
            with pytest.raises(OSError, match="no link named pl-e9"):
                shortcuts.deliver(replace(DELIVERY, link="pl-e9"))
            with pytest.raises(OSError, match="no link named eth9"):
                shortcuts.put("eth9")
            shortcuts.withdraw(DELIVERY)

    in_namespace(body)


def test_a_program_that_is_none_is_refused_with_the_verifiers_words() -> None:
    with pytest.raises(OSError, match="the verifier refuses the program: "):
        bpf.load_classifier(bytes(8), "broken")


def test_many_deliveries_are_read_back_whole() -> None:
    def body(kernel: LinuxKernel) -> None:
        many = [replace(DELIVERY, address=DELIVERY.source.network_address + n) for n in range(2, 1002)]
        wanted = plan(LINK, Shortcut("lo"), *many)
        converge(kernel, wanted)
        assert converge(kernel, wanted) == 0

    in_namespace(body)
