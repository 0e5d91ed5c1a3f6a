# SPDX-License-Identifier: Apache-2.0
"""Records of the cluster <-> the bytes that the store holds (JSON).

Data in: frozen dataclasses of `model/cluster.py` (or any other). Data out: compact JSON with fields in declared order, so that equal
records give equal bytes. Unknown fields are ignored and missing ones take their default: old and new agents share a store.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address, ip_network
from typing import Any, TypeVar, cast

import msgspec

from plait.model.addr import EitherAddress, EitherNetwork
from plait.model.errors import ConfigError

T = TypeVar("T")

_ADDRESS_TYPES = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)
_READERS: Mapping[object, Callable[[str], Any]] = {kind: kind for kind in _ADDRESS_TYPES} | {
    EitherAddress: ip_address,
    EitherNetwork: ip_network,
}
_SHOWN = 120
"""Bytes of an undecodable value that an error shows."""


def _to_json(value: Any) -> str:
    if isinstance(value, _ADDRESS_TYPES):
        return str(value)
    raise NotImplementedError(f"no JSON form for {type(value).__name__}")


def _from_json(wanted: type[Any], value: Any) -> Any:
    read = _READERS.get(wanted)
    if read is not None and isinstance(value, str):
        return read(value)
    raise NotImplementedError(f"no {wanted.__name__} from {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_to_json)


@cache
def _decoder(wanted: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(wanted, dec_hook=_from_json)


def encode(record: object) -> bytes:
    """The JSON form of `record`; addresses and networks as text."""
    return _encoder.encode(record)


def decode(wanted: type[T], value: bytes, key: str) -> T:
    """The record of type `wanted` in `value`. Raises ConfigError that names `key` if the bytes do not hold one."""
    try:
        record: T = _decoder(cast(Hashable, wanted)).decode(value)
    except (msgspec.DecodeError, ValueError, NotImplementedError, RecursionError) as error:
        shown = value[:_SHOWN].decode("utf-8", "replace")
        raise ConfigError(
            f"store key {key}", shown, f"is no {wanted.__name__}: {error}", "delete the key or write it again with this version of plait"
        ) from error
    return record
