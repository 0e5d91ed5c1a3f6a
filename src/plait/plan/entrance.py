# SPDX-License-Identifier: Apache-2.0
"""The chain of the table `netdev plait` on an endpoint's link: all that its host does to what the container sends before its own stack has
it. First what is forged goes (`guard.py`), then what is for neighbours of networks that have none (`apart.py`), then what is more than it
may send (`limits.py`), then questions to neighbours are asked of everybody (`switching.py`), or the shortest way to others is taken
(`fastpath.py`), unless it has to wait for its turn (`limits.py`). Each has its rules there; this puts them in their order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from plait.model.addr import IPAddress
from plait.model.cluster import Endpoint, Network
from plait.model.objects import NFT_FAST_FAMILY, KernelObject, NftChain
from plait.plan.apart import apart_rules
from plait.plan.fastpath import Ways, fast_rules, on_fast_path
from plait.plan.guard import guard_rules, ingress
from plait.plan.limits import limit_rules
from plait.plan.residents import Made
from plait.plan.switching import switched_rules
from plait.shaping import Limiting

NO_WAYS, NO_LIMITS = Ways(), Limiting()


def entrance(
    network: Network,
    endpoint: Endpoint,
    own: Iterable[IPAddress] | None,
    fast: bool,
    ways: Ways = NO_WAYS,
    limiting: Limiting = NO_LIMITS,
) -> list[KernelObject]:
    """The chain, or nothing where it would be empty. `own`: the addresses of its container, None where the kernel cannot guard; `fast`:
    whether it may take the fast path, which what waits for its turn does not. An attach does not know the host's `ways`: the pass after
    it does."""
    dropped, led = limit_rules(network, endpoint, limiting)
    rules = [*(guard_rules(network, endpoint, own) if own is not None else ()), *apart_rules(network), *dropped]
    rules += [*switched_rules(network, endpoint), *led]
    if not led and fast and on_fast_path(network):
        rules += fast_rules(endpoint, network, ways)
    return [NftChain(endpoint.dev, tuple(rules), ingress(endpoint.dev), NFT_FAST_FAMILY)] if rules else []


def entrances(
    networks: Mapping[str, Network],
    endpoints: Iterable[Endpoint],
    own: Mapping[str, tuple[IPAddress, ...]],
    fast: Collection[str],
    ways: Ways,
    limiting: Limiting,
    made: Made,
) -> list[KernelObject]:
    """Those of all endpoints of this node. `own` as `guard.own_addresses` says, empty where the kernel cannot guard; `fast`: ids of those
    that take the fast path; `made` what they were before."""

    def chains(endpoint: Endpoint, own: Iterable[IPAddress] | None, fast: bool) -> list[KernelObject]:
        return entrance(networks[endpoint.network], endpoint, own, fast, ways, limiting)

    return made.of((networks, ways, limiting), ((e, own.get(e.id), e.id in fast) for e in endpoints), chains)
