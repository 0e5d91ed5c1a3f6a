# SPDX-License-Identifier: Apache-2.0
"""Header compression for HTTP/2 (RFC 7541), as far as a health check needs it: fields are sent as literals, and of what is received
every form is understood, but names of the static table are told only for `:status`; others come as "". Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

Field = tuple[str, str]
_STATUS = {8: "200", 9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}
_STATIC_SIZE = 61
_TABLE_SIZE = 4096
_ENTRY_COST = 32

_LENGTHS = {
    5: "012aceiost",
    6: " %-./3456789=A_bdfghlmnpru",
    7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: "&*,;XZ",
    10: '!"()?',
    11: "'+|",
    12: "#>",
    13: "\0$@[]~",
    14: "^}",
    15: "<`{",
    19: "\\",
}
"""Bits of each character's Huffman code (RFC 7541 appendix B). The code is canonical, so that this is all of it for ASCII."""


class HpackError(Exception):
    """A header block that cannot be read."""


def _codes() -> dict[tuple[int, int], str]:
    """(length, code) -> character."""
    found, code, before = {}, 0, 0
    for length, characters in _LENGTHS.items():
        code <<= length - before
        for character in characters:
            found[length, code] = character
            code += 1
        before = length
    return found


_CODES = _codes()


def encode(fields: Iterable[Field]) -> bytes:
    """Literal fields that nobody indexes; each name and value of at most 126 bytes of ASCII or UTF-8, or longer."""
    block = bytearray()
    for name, value in fields:
        block += b"\x00" + _string(name) + _string(value)
    return bytes(block)


def _string(text: str) -> bytes:
    raw = text.encode()
    return _integer(len(raw)) + raw


def _integer(number: int) -> bytes:
    if number < 127:
        return bytes([number])
    out, number = bytearray([127]), number - 127
    while number > 127:
        out.append(number % 128 | 128)
        number //= 128
    out.append(number)
    return bytes(out)


class Decoder:
    """The receiving side of one connection: blocks must be given in their order, all of them."""

    def __init__(self) -> None:
        self._table: deque[Field] = deque()
        self._size, self._limit = 0, _TABLE_SIZE

    def decode(self, block: bytes) -> list[Field]:
        """The fields of one header block. HpackError if it is none, or holds a character outside of ASCII in Huffman's code."""
        reader = _Reader(block)
        fields: list[Field] = []
        while not reader.ended:
            first = reader.peek()
            if first & 0x80:
                fields.append(self._entry(reader.integer(7)))
            elif first & 0xE0 == 0x20:
                self._limit = min(reader.integer(5), _TABLE_SIZE)
                self._evict()
            else:
                indexed = first & 0xC0 == 0x40
                index = reader.integer(6 if indexed else 4)
                field = (self._entry(index)[0] if index else reader.string(), reader.string())
                fields.append(field)
                if indexed:
                    self._table.appendleft(field)
                    self._size += _cost(field)
                    self._evict()
        return fields

    def _entry(self, index: int) -> Field:
        if 0 < index <= _STATIC_SIZE:
            return (":status", _STATUS[index]) if index in _STATUS else ("", "")
        try:
            return self._table[index - _STATIC_SIZE - 1] if index else _no_entry(index)
        except IndexError:
            return _no_entry(index)

    def _evict(self) -> None:
        while self._size > self._limit:
            self._size -= _cost(self._table.pop())


def _no_entry(index: int) -> Field:
    raise HpackError(f"there is no header field {index}")


def _cost(field: Field) -> int:
    return len(field[0]) + len(field[1]) + _ENTRY_COST


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def ended(self) -> bool:
        return self._at >= len(self._data)

    def peek(self) -> int:
        if self.ended:
            raise HpackError("a header block ends too early")
        return self._data[self._at]

    def integer(self, bits: int) -> int:
        """Of a prefix of `bits` bits (RFC 7541 section 5.1)."""
        number = self.peek() & ((1 << bits) - 1)
        self._at += 1
        if number < (1 << bits) - 1:
            return number
        for shift in range(0, 35, 7):
            byte = self.peek()
            self._at += 1
            number += (byte & 127) << shift
            if byte < 128:
                return number
        raise HpackError("a number in a header block is too large")

    def string(self) -> str:
        huffman = self.peek() & 0x80
        length = self.integer(7)
        raw = self._data[self._at : self._at + length]
        if len(raw) < length:
            raise HpackError("a header block ends too early")
        self._at += length
        return huffman_text(raw) if huffman else raw.decode("utf-8", "replace")


def huffman_text(raw: bytes) -> str:
    """What `raw` says in Huffman's code; the rest of the last byte is padding."""
    found: list[str] = []
    code = length = 0
    for byte in raw:
        for bit in range(7, -1, -1):
            code, length = code << 1 | byte >> bit & 1, length + 1
            character = _CODES.get((length, code))
            if character is not None:
                found.append(character)
                code = length = 0
            elif length > 19:
                raise HpackError("a header field is not ASCII")
    if length > 7 or code != (1 << length) - 1:
        raise HpackError("a header field ends within a character")
    return "".join(found)
