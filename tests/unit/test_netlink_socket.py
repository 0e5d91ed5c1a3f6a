# SPDX-License-Identifier: Apache-2.0
"""The netlink core before a kernel that interrupts, is late, refuses or talks nonsense."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from plait.kernel.linux import netlink as nl

KIND, DATA = 24, 99
MULTI, INTERRUPTED, CAPPED, TLVS = 0x2, 0x10, 0x100, 0x200


def message(kind: int, sequence: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + b"\0" * (-len(body) % 4)


def error(sequence: int, number: int, text: str = "") -> bytes:
    attributes = nl.attr_text(1, text) if text else b""
    return message(nl.NLMSG_ERROR, sequence, struct.pack("=i", -number) + b"\0" * 16 + attributes, CAPPED | (TLVS if text else 0))


class Kernel:
    """Stands for the raw socket: `answer` turns each sent datagram into those that come back."""

    def __init__(self, answer: Callable[[bytes], list[bytes]]) -> None:
        self.sent: list[bytes] = []
        self._answer, self._waiting = answer, deque[bytes]()

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        self._waiting.extend(self._answer(data))

    def recv(self, _: int) -> bytes:
        if not self._waiting:
            raise TimeoutError("timed out")
        return self._waiting.popleft()


def connected(answer: Callable[[bytes], list[bytes]]) -> tuple[nl.NetlinkSocket, Kernel]:
    sock, kernel = nl.NetlinkSocket(), Kernel(answer)
    sock.close()
    sock._socket = kernel  # type: ignore[assignment]
    return sock, kernel


def sequences(data: bytes) -> list[int]:
    return [sequence for _, _, sequence, _ in nl.parse_messages(data)]


def test_each_message_has_its_reply_in_order_and_the_text_of_its_refusal() -> None:
    def answer(data: bytes) -> list[bytes]:
        numbers = sequences(data)
        return [error(numbers[1], 17, "it is there already") + error(numbers[3], 3), error(numbers[4], 0)]

    sock, _ = connected(answer)
    replies = sock.transact([nl.Message(KIND, 0, bytes(n)) for n in range(5)])
    assert replies == [nl.Reply(0), nl.Reply(17, "it is there already"), nl.Reply(0), nl.Reply(3), nl.Reply(0)]


def test_a_long_list_is_several_sends_and_loses_none() -> None:
    sock, kernel = connected(lambda data: [error(sequences(data)[-1], 0)])
    messages = [nl.Message(KIND, 0, bytes(1000)) for _ in range(200)]
    assert sock.transact(messages) == [nl.Reply(0)] * 200
    assert 6 < len(kernel.sent) < 12 and all(len(data) <= 33 * 1024 for data in kernel.sent)
    numbers = [sequence for data in kernel.sent for sequence in sequences(data)]
    assert numbers == list(range(numbers[0], numbers[0] + 200))


def test_nothing_to_send_sends_nothing() -> None:
    sock, kernel = connected(lambda data: [])
    assert sock.transact([]) == [] and kernel.sent == []


def test_a_late_answer_to_an_earlier_question_is_not_taken_for_this_one() -> None:
    sock, _ = connected(lambda data: [error(sequences(data)[0] - 1, 22), message(KIND, 1), error(sequences(data)[0], 0)])
    assert sock.transact([nl.Message(KIND, 0, b"")]) == [nl.Reply(0)]
    assert sock.ask(nl.Message(KIND, 0, b"")) == []


def test_silence_ends_in_a_timeout() -> None:
    sock, _ = connected(lambda data: [])
    with pytest.raises(TimeoutError):
        sock.transact([nl.Message(KIND, 0, b"")])


def test_nonsense_is_a_parse_error() -> None:
    sock, _ = connected(lambda data: [b"\x05\0\0\0nonsense........"])
    with pytest.raises(nl.NetlinkParseError):
        sock.transact([nl.Message(KIND, 0, b"")])
    with pytest.raises(nl.NetlinkParseError):
        sock.dump(KIND, b"")


def interrupted(times: int) -> Callable[[bytes], list[bytes]]:
    left: Iterator[bool] = iter([True] * times)

    def answer(data: bytes) -> list[bytes]:
        (number,) = sequences(data)
        flag = INTERRUPTED if next(left, False) else 0
        return [message(DATA, number, b"part", MULTI), message(DATA, number, b"rest", MULTI | flag), message(nl.NLMSG_DONE, number)]

    return answer


@pytest.mark.parametrize("times", [0, 1, 4])
def test_an_interrupted_dump_is_asked_again_and_nothing_of_it_is_used(times: int) -> None:
    sock, kernel = connected(interrupted(times))
    assert sock.dump(KIND, b"") == [(DATA, b"part"), (DATA, b"rest")]
    assert len(kernel.sent) == times + 1


def test_a_dump_that_is_always_interrupted_is_given_up() -> None:
    sock, kernel = connected(interrupted(100))
    with pytest.raises(OSError, match="interrupted 5 times"):
        sock.dump(KIND, b"")
    assert len(kernel.sent) == 5


def test_a_refused_dump_or_question_is_an_error_with_the_kernels_words() -> None:
    sock, _ = connected(lambda data: [error(sequences(data)[0], 22, "no such filter")])
    for attempt in (lambda: sock.dump(KIND, b""), lambda: sock.ask(nl.Message(KIND, 0, b""))):
        with pytest.raises(OSError, match="no such filter") as caught:
            attempt()
        assert caught.value.errno == 22
