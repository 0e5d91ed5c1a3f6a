# SPDX-License-Identifier: Apache-2.0
"""The many spellings of a name below the service domain -> the one under which the table holds it.

With domain `consul` and datacentre `dc1`:

| asked | canonical |
|---|---|
| `web.service.consul`, `web.service.dc1.consul`, `web.service.dc1.dc.consul` | `web.service.consul` |
| `http.web.service…` (everything left of the service is one tag) | `http.web.service.consul` |
| `_web._tcp.service…`, `_web._tcp.consul` (RFC 2782) | `web.service.consul` |
| `_web._http.service…`: any other protocol is a tag | `http.web.service.consul` |
| `http.port.web.service…`, `_http._tcp.web.service…` (a port by its name) | the same with `service.consul` |
| `b.node.dc1.consul` | `b.node.consul` |
| `0a1c0002.addr.consul`, 8 or 32 hex digits | no record: the address is in the name |
| `web.virtual.consul` | the same; where the service has no virtual address, `lookup` takes `web.service.consul` |
| `app--web.not--tier--test.label.consul` | none: see `labels_in_name` |
| `NAME.query.consul`, `_NAME._tcp.query.consul` | none: see `query_in_name` |
"""

from __future__ import annotations

KEYWORDS = frozenset((b"service", b"node", b"addr", b"virtual", b"label", b"query"))


def canonical(name: bytes, domain: bytes, datacenter: bytes) -> bytes:
    """The canonical form of dotted `name`, which lies below `domain`. A name of no known form is returned as it is, so
    that looking it up finds nothing."""
    labels = name[: -len(domain) - 1].split(b".")
    labels = _without_datacenter(labels, datacenter)
    if len(labels) == 2 and labels[0][:1] == b"_" == labels[1][:1]:
        labels.append(b"service")
    if len(labels) == 3 and labels[2] == b"service" and labels[0][:1] == b"_" == labels[1][:1]:
        service, tag = labels[0][1:], labels[1][1:]
        labels = [service, b"service"] if tag == b"tcp" else [tag, service, b"service"]
    return b".".join((*labels, domain))


def _without_datacenter(labels: list[bytes], datacenter: bytes) -> list[bytes]:
    """`labels` less a final `dc1` or `dc1.dc`, if what remains ends in a keyword or a protocol."""
    for suffix in ([datacenter, b"dc"], [datacenter]):
        rest = labels[: -len(suffix)]
        if labels[len(rest) :] == suffix and rest and (rest[-1] in KEYWORDS or rest[-1][:1] == b"_"):
            return rest
    return labels


def address_in_name(name: bytes, domain: bytes) -> bytes | None:
    """The packed address (4 or 16 bytes) that canonical `<hex>.addr.<domain>` spells, None for any other name."""
    digits, _, rest = name.partition(b".")
    if rest != b"addr." + domain or len(digits) not in (8, 32) or digits.strip(b"0123456789abcdef"):
        return None
    return bytes.fromhex(digits.decode())


def query_in_name(name: bytes, domain: bytes) -> bytes | None:
    """The name or id of the prepared query that canonical `NAME.query.<domain>` asks for, None for any other name. It may hold dots."""
    wanted = name.removesuffix(b".query." + domain)
    if wanted == name:
        return None
    labels = wanted.split(b".")
    return labels[0][1:] if len(labels) == 2 and labels[0][:1] == labels[1][:1] == b"_" else wanted


def labels_in_name(name: bytes, domain: bytes) -> tuple[list[list[bytes]], list[list[bytes]]] | None:
    """What canonical `<requirement>….label.<domain>` asks of an instance's labels, None for any other name: requirements that must hold,
    and such that must not. Each is a list of names in the table, of which the instance must have one.

    A requirement is one DNS label: `key` (there is such a label), `key--value`, `key--one--other` (one of the values), and `not--` before
    any of these. At least one must be without `not`. How keys and values are spelled: `records.label_word`.
    """
    left = name.removesuffix(b".label." + domain)
    if left == name:
        return None
    wanted: list[list[bytes]] = []
    unwanted: list[list[bytes]] = []
    for part in left.split(b"."):
        spelled = part.removeprefix(b"not--")
        key, *values = spelled.split(b"--")
        words = [key + b"--" + value for value in values] or [key]
        (wanted if spelled == part else unwanted).append([word + b".label." + domain for word in words])
    return (wanted, unwanted) if wanted else None
