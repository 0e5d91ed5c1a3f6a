# SPDX-License-Identifier: Apache-2.0
"""The options that a network is made with -> what they mean. Pure.

Data in: texts, as people give them to `plait network create` or to an engine. Data out: checked values; a ConfigError names the option,
what is wrong with it and what is allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count

from plait.backends.base import MODELS, Backend, OnHostLink, check_link
from plait.model.cluster import VXLAN_PORT, Network
from plait.model.errors import ConfigError
from plait.model.limits import OPTION_PREFIX, WORDS, limits_of
from plait.model.spoofing import OPTION as SPOOFING
from plait.model.spoofing import check_spoofing

HOST_LINK = ("parent", "mode", "vlan", "switch", "dns", "ipam", "ipam6")
"""Options of networks that lie on a link of the host."""
LIMITS = tuple(OPTION_PREFIX + word for word in WORDS)
"""How fast each endpoint of a network may be, if nobody says otherwise."""
PER_ENDPOINT = ("isolated", SPOOFING, *LIMITS)
"""What a host may do to what each endpoint of a network sends and gets."""
OPTIONS = ("model", "backend", "port", "vni", "layer2", "multicast", "lease", *HOST_LINK, *PER_ENDPOINT)
FLAGS = ("isolated", "layer2", "multicast")
WITH_VNI = frozenset({"vxlan"})
"""Kinds of path that a VNI and a port tell apart."""
LARGEST_VNI, LARGEST_PORT = (1 << 24) - 1, (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options of a network come to."""

    backend: Backend
    vni: int
    port: int


def settle(
    options: Mapping[str, str], backends: Collection[Backend], others: Iterable[Network], present: Network | None = None
) -> Settings:
    """What `options` mean beside the networks `others`, which share a tunnel where they have the same VNI; `present` gives what is not
    asked for anew. ConfigError says what is wrong."""
    check_names(options)
    backend = choose_backend(options, backends)
    port, vni = _number(options, "port", LARGEST_PORT), _number(options, "vni", LARGEST_VNI)
    for name in sorted(options.keys() - _options_of(backend)):
        fit = ", ".join(other.name for other in backends if name in _options_of(other))
        raise ConfigError(name, options[name], f"means nothing to backend {backend.name}", f"leave it out; it is an option of {fit}")
    if isinstance(backend, OnHostLink):
        backend.check(options)
    check_lease(options)
    check_spoofing(options, SPOOFING)
    limits_of({**(present.options if present is not None else {}), **options}, OPTION_PREFIX)
    layer2 = _check_flags({**(present.options if present is not None else {}), **options})
    if layer2 and "layer2" not in backend.options:
        raise ConfigError("backend", backend.name, "carries no network of layer 2", "make a second network for it")
    tunnels = {b.name for b in backends if has_tunnel(b)}
    tunnelled = [network for network in others if network.backend in tunnels]
    taken = {network.vni: network.port for network in tunnelled}
    alone = {network.vni: network.name for network in tunnelled if layer2 or network.layer2}
    if not vni:
        free = (v for v in count(1) if v not in alone and (not port or taken.get(v, port) == port))
        vni = present.vni if present is not None else next(free)
    if vni in alone and backend.name in tunnels:
        raise ConfigError(
            "vni", vni, f"is that of {alone[vni]}", "a network of layer 2 shares its own with none: give another, or leave it out"
        )
    if not port:
        port = taken.get(vni, present.port if present is not None else VXLAN_PORT)
    if taken.get(vni, port) != port:
        raise ConfigError(
            "port", port, f"is not that of the tunnel with VNI {vni}, {taken[vni]}", "give another vni, or leave out the port"
        )
    return Settings(backend, vni, port)


def _options_of(backend: Backend) -> frozenset[str]:
    """All that its networks can be given. Of an endpoint on a link of the host nothing lies on the host that could hold it back or
    watch over it."""
    return backend.options | {"model", "backend"} | (frozenset() if isinstance(backend, OnHostLink) else frozenset(PER_ENDPOINT))


def changed(network: Network, options: Mapping[str, str], backends: Collection[Backend], networks: Iterable[Network]) -> list[Network]:
    """`network` with these options instead of what it has, and the other ones whose tunnel changes with it. ConfigError if that cannot be
    while containers are attached."""
    everyone = [other for other in networks if other.name != network.name]
    known = {backend.name: backend for backend in backends}
    shared = "port" in options and "vni" not in options
    along = [n for n in everyone if shared and n.vni == network.vni and has_tunnel(known[n.backend])]
    kept = {name: network.options[name] for name in HOST_LINK if name in network.options}
    wanted = {"backend": network.backend, **kept, **options}
    settled = settle(wanted, backends, [other for other in everyone if other not in along], network)
    if _kind(settled.backend, network) != _kind(known[network.backend], network):
        raise ConfigError("backend", settled.backend.name, f"is of another kind than {network.backend}", "make a second network for it")
    own = replace(network, backend=settled.backend.name, vni=settled.vni, port=settled.port, options={**network.options, **options})
    if own.layer2 != network.layer2:
        raise ConfigError(
            "layer2", options["layer2"], f"would change what the containers of {network.name} are on", "make a second network"
        )
    if own.internal and own.options.get("lease"):
        raise ConfigError("lease", own.options["lease"], f"means nothing to {own.name}, which has no way out", "leave it out")
    if own.by_dhcp6 != network.by_dhcp6:
        raise ConfigError("ipam6", options["ipam6"], f"would change what containers of {network.name} have", "make a second network for it")
    if own.by_dhcp != network.by_dhcp or (own.by_dhcp and own.options["parent"] != network.options["parent"]):
        what = "ipam" if own.by_dhcp != network.by_dhcp else "parent"
        raise ConfigError(what, options[what], f"would take the addresses of {network.name} from elsewhere", "make a second network for it")
    if own.encrypted != network.encrypted:
        raise ConfigError("backend", own.backend, f"would change whether {network.name} is encrypted", "make a second network for it")
    return [own, *(replace(other, port=settled.port) for other in along)]


def _kind(backend: Backend, network: Network) -> tuple[bool, bool, str]:
    """What of a backend its containers are made for: whether they reach other hosts, whether they are on one bridge, and the backend itself
    where they are on a link of the host."""
    return bool(backend.ways), bool(backend.bridge(network)), backend.name if isinstance(backend, OnHostLink) else ""


def has_tunnel(backend: Backend) -> bool:
    """Whether its networks have a tunnel of a VNI and port that may be chosen."""
    return any(way in WITH_VNI for way in backend.ways)


def _check_flags(options: Mapping[str, str]) -> bool:
    """Whether they ask for layer 2. ConfigError for a value that is none, and for multicast between hosts without layer 2."""
    for name in FLAGS:
        if options.get(name, "true") not in ("true", "false"):
            raise ConfigError(name, options[name], "is not possible", "true or false")
    layer2 = options.get("layer2") == "true"
    if options.get("multicast") == "true" and not layer2:
        raise ConfigError("multicast", "true", "needs containers that are on one link", "add -o layer2=true")
    if options.get("multicast") == options.get("isolated") == "true":
        raise ConfigError("isolated", "true", "leaves multicast=true nobody to send to", "leave one of them out")
    return layer2


def check_lease(options: Mapping[str, str]) -> None:
    """ConfigError if the host cannot lease an address on such a link. "": it shall have none."""
    if options.get("lease"):
        check_link("lease", options["lease"], "name the link on which a host is to lease an address: -o lease=eth1")


def _number(options: Mapping[str, str], name: str, largest: int) -> int:
    """A number from 1 to `largest`, 0 if it is not asked for."""
    text = options.get(name)
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= largest):
        raise ConfigError(name, text, "is not possible", f"a number from 1 to {largest}")
    return int(text)


def check_names(options: Mapping[str, str]) -> None:
    """ConfigError for an option that no network has."""
    for name in sorted(options.keys() - set(OPTIONS)):
        raise ConfigError("network option", name, "is not known", f"use one of {', '.join(OPTIONS)}")


def choose_backend(options: Mapping[str, str], backends: Iterable[Backend]) -> Backend:
    """The backend that `options` ask for: by its name, else the first of the model, else the first of all. `backends` in the order in which
    they are preferred. ConfigError for unknown names, and for a backend that does not keep what the model promises."""
    known = {backend.name: backend for backend in backends}
    model, name = options.get("model", ""), options.get("backend", "")
    if model and model not in MODELS:
        raise ConfigError("model", model, "is not known", f"use one of {', '.join(MODELS)}")
    if name and name not in known:
        raise ConfigError("backend", name, "is not known", f"use one of {', '.join(sorted(known))}")
    fitting = [backend for backend in known.values() if model in ("", backend.model)]
    if not name:
        return fitting[0]
    if known[name] not in fitting:
        promise = f"is of the model {known[name].model} and cannot promise what {model} does ({MODELS[model]})"
        raise ConfigError("backend", name, promise, f"use one of {', '.join(backend.name for backend in fitting)}, or leave the model out")
    return known[name]
