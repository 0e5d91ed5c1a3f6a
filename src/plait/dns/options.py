# SPDX-License-Identifier: Apache-2.0
"""How answers are cut to size and how long they may be kept. Loaded by the DNS child, so free of heavy imports (see `message`)."""

from __future__ import annotations

from collections.abc import Mapping

Soa = tuple[int, int, int, int]
"""Refresh, retry, expire, minimum TTL, in seconds (RFC 1035 section 3.3.13; the last as RFC 2308 reads it)."""
OptionParts = tuple[int, dict[bytes, int], Soa, bytes, int, int, bool, bool, dict[bytes, int] | None]
MOST_PLAIN = 8
"""Most answers that `udp_answer_limit` allows a client without EDNS; a higher one counts as this."""


class Options:
    """`node_ttl`, `service_ttl`: seconds that an answer about a node or an address, or about a service, may be kept; the keys of the
    second are a service's name, a beginning followed by `*`, or `*`. `alt_domain`: a second name of the domain, dotted, b"" for
    none. `a_record_limit`: most records of an answer to A, AAAA or ANY; `udp_answer_limit`: to any question over UDP without EDNS;
    0 for neither. `truncate`: whether TC marks what did not fit. `node_meta_txt`: whether the meta of a node that an SRV record
    names stands beside its addresses. `near`: how far packed addresses are, by which answers are ordered; None:
    the order is drawn. Nothing changes a value after it was made."""

    __slots__ = ("a_record_limit", "alt_domain", "near", "node_meta_txt", "node_ttl", "service_ttl", "soa", "truncate", "udp_answer_limit")

    def __init__(
        self,
        node_ttl: int = 0,
        service_ttl: Mapping[bytes, int] | None = None,
        soa: Soa = (3600, 600, 86400, 0),
        alt_domain: bytes = b"",
        a_record_limit: int = 0,
        udp_answer_limit: int = 0,
        truncate: bool = True,
        node_meta_txt: bool = False,
        near: Mapping[bytes, int] | None = None,
    ) -> None:
        self.node_ttl, self.service_ttl, self.soa, self.alt_domain = node_ttl, dict(service_ttl or {}), soa, alt_domain
        self.a_record_limit, self.udp_answer_limit, self.truncate = a_record_limit, udp_answer_limit, truncate
        self.node_meta_txt = node_meta_txt
        self.near = None if near is None else dict(near)

    def with_near(self, near: Mapping[bytes, int] | None) -> Options:
        """These, but for the distances."""
        return Options(*self.parts()[:-1], near)

    def parts(self) -> OptionParts:
        """The options as plain values, `Options(*parts)` again on the other side."""
        return (
            self.node_ttl,
            self.service_ttl,
            self.soa,
            self.alt_domain,
            self.a_record_limit,
            self.udp_answer_limit,
            self.truncate,
            self.node_meta_txt,
            self.near,
        )

    def ttl_of_service(self, name: bytes) -> int:
        """The TTL of the service's own entry, else of the longest beginning with `*` that fits, `*` alone being the shortest; else 0."""
        if name in self.service_ttl:
            return self.service_ttl[name]
        fitting = [key for key in self.service_ttl if key[-1:] == b"*" and name.startswith(key[:-1])]
        return self.service_ttl[max(fitting, key=len)] if fitting else 0


DEFAULTS = Options()
