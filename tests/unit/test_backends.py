# SPDX-License-Identifier: Apache-2.0
"""What the options of a network mean, which networks share a tunnel, and what is refused with which words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from plait.backends import BACKENDS, MODELS, backend_of, changed, on_link, settle
from plait.model.cluster import Network
from plait.model.errors import ConfigError

ONE = Network("one", IPv4Network("10.28.0.0/16"), IPv4Address("10.28.0.1"), 24)
TWO, SEVEN = replace(ONE, name="two"), replace(ONE, name="seven", vni=7, port=8472, backend="hybrid")
LOCAL = replace(ONE, name="local", backend="none", vni=9)
ALL = (ONE, TWO, SEVEN, LOCAL)


def came_to(options: dict[str, str], *others: Network) -> tuple[str, int, int]:
    settled = settle(options, BACKENDS.values(), others)
    return settled.backend.name, settled.vni, settled.port


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({}, "vxlan"),
        ({"model": "overlay"}, "vxlan"),
        ({"model": "sandbox"}, "bridge"),
        ({"model": "sandbox", "isolated": "true"}, "bridge"),
        ({"model": "hybrid"}, "hybrid"),
        ({"model": "hybrid", "backend": "direct"}, "direct"),
        ({"backend": "none"}, "none"),
        ({"model": "overlay", "backend": "vxlan"}, "vxlan"),
    ],
)
def test_a_model_has_a_backend_and_a_backend_a_model(options: dict[str, str], backend: str) -> None:
    assert came_to(options) == (backend, 1, 4789)
    assert {backend.model for backend in BACKENDS.values()} <= MODELS.keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "mesh"}, "'mesh' is not known; use one of sandbox, overlay, hybrid"),
        ({"backend": "ipsec"}, "backend: 'ipsec' is not known; use one of .*none, vlan, vxlan"),
        ({"model": "overlay", "backend": "none"}, r"is of the model sandbox and cannot promise what overlay does .*use one of vxlan"),
        ({"model": "sandbox", "backend": "vxlan"}, r"of the model overlay and cannot promise what sandbox does .isolated containers"),
        ({"bakend": "vxlan"}, "'bakend' is not known; use one of model, backend, port, vni, layer2"),
        ({"port": "0"}, "port: '0' is not possible; a number from 1 to 65535"),
        ({"port": "65536"}, "a number from 1 to 65535"),
        ({"port": "\u0663"}, "a number from 1 to 65535"),
        ({"vni": "16777216"}, "a number from 1 to 16777215"),
        ({"vni": ""}, "a number from 1 to 16777215"),
        ({"backend": "none", "vni": "3"}, "vni: '3' means nothing to backend none; leave it out; it is an option of vxlan, hybrid"),
        ({"backend": "direct", "port": "3"}, "means nothing to backend direct"),
        ({"backend": "macvlan", "parent": "eth1", "isolated": "true"}, "means nothing to backend macvlan; leave it out"),
        ({"backend": "bridge", "isolated": "yes"}, "isolated: 'yes' is not possible; true or false"),
        ({"backend": "macvlan"}, "parent: '' is no link of a host; name the link that the containers shall be on: -o parent=eth1"),
        ({"backend": "macvlan", "parent": "pl-gw"}, "parent: 'pl-gw' is no link of a host"),
        ({"backend": "macvlan", "parent": "a/b"}, "parent: 'a/b' is no link of a host"),
        ({"backend": "macvlan", "parent": "sixteencharacter"}, "is no link of a host"),
        ({"backend": "macvlan", "parent": "eth1", "mode": "l2"}, "mode: 'l2' is no mode .*bridge, private, vepa, passthru"),
        ({"backend": "ipvlan", "parent": "eth1", "mode": "bridge"}, "'bridge' is no mode of ipvlan here; use one of l2, l3, l3s"),
        ({"backend": "macvlan", "parent": "eth1", "vlan": "4"}, "vlan: '4' means nothing to backend macvlan; .* option of vlan"),
        ({"backend": "vlan", "parent": "eth1"}, "vlan: '' is no VLAN; give a number from 1 to 4094: -o vlan=42"),
        ({"backend": "vlan", "parent": "eth1", "vlan": "4095"}, "vlan: '4095' is no VLAN"),
        ({"backend": "vlan", "parent": "eth1", "vlan": "042"}, "vlan: '042' is no VLAN"),
        ({"backend": "vlan", "parent": "br0", "vlan": "4", "switch": "linux"}, "switch: 'linux' is not known; use openvswitch"),
        (
            {"backend": "vlan", "parent": "br0", "vlan": "4", "switch": "openvswitch", "mode": "vepa"},
            "mode: 'vepa' means nothing to a port",
        ),
        ({"backend": "macvlan", "parent": "eth1", "dns": "no"}, "dns: 'no' is not possible; true, or false"),
        ({"backend": "none", "parent": "eth1"}, "parent: 'eth1' means nothing to backend none; .*macvlan, ipvlan, vlan"),
        ({"vni": "1", "port": "8472"}, "port: 8472 is not that of the tunnel with VNI 1, 4789; give another vni"),
    ],
)
def test_what_cannot_be_is_refused_with_words(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        came_to(options, *ALL)


@pytest.mark.parametrize(
    ("options", "vni", "port"),
    [
        ({}, 1, 4789),
        ({"port": "4789"}, 1, 4789),
        ({"port": "8472"}, 2, 8472),
        ({"port": "8472", "vni": "7"}, 7, 8472),
        ({"vni": "7"}, 7, 8472),
        ({"vni": "9"}, 9, 4789),
        ({"vni": "9", "port": "9"}, 9, 9),
    ],
)
def test_a_tunnel_is_shared_by_those_of_its_vni_and_one_that_fits_a_port_is_found(options: dict[str, str], vni: int, port: int) -> None:
    assert came_to(options, *ALL) == ("vxlan", vni, port)


def test_a_new_network_follows_the_port_that_its_tunnel_was_given() -> None:
    assert came_to({}, replace(ONE, port=8472)) == ("vxlan", 1, 8472)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"port": "8472"}, [("one", "vxlan", 1, 8472), ("two", "vxlan", 1, 8472)]),
        ({"vni": "7"}, [("one", "vxlan", 7, 8472)]),
        ({"vni": "3"}, [("one", "vxlan", 3, 4789)]),
        ({"vni": "3", "port": "9"}, [("one", "vxlan", 3, 9)]),
        ({"backend": "hybrid"}, [("one", "hybrid", 1, 4789)]),
        ({"model": "overlay"}, [("one", "vxlan", 1, 4789)]),
    ],
)
def test_a_change_takes_along_who_shares_the_tunnel(options: dict[str, str], wanted: list[Any]) -> None:
    found = changed(ONE, options, BACKENDS.values(), ALL)
    assert [(n.name, n.backend, n.vni, n.port) for n in found] == wanted
    assert found[0].options == options and not any(other.options for other in found[1:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "none"}, "'none' is of another kind than vxlan; make a second network"),
        ({"model": "hybrid"}, "cannot promise what hybrid does"),
        ({"vni": "7", "port": "4789"}, "is not that of the tunnel with VNI 7, 8472"),
        ({"subnet": "10.0.0.0/8"}, "'subnet' is not known"),
    ],
)
def test_a_change_that_containers_cannot_follow_is_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        changed(ONE, options, BACKENDS.values(), ALL)


@pytest.mark.parametrize(("before", "after"), [("none", "bridge"), ("bridge", "none")])
def test_containers_do_not_become_neighbours_or_cease_to_be(before: str, after: str) -> None:
    with pytest.raises(ConfigError, match=f"'{after}' is of another kind than {before}; make a second network"):
        changed(replace(ONE, backend=before), {"backend": after}, BACKENDS.values(), ALL)


def test_isolation_changes_while_the_network_is_used() -> None:
    (found,) = changed(replace(ONE, backend="bridge"), {"isolated": "true"}, BACKENDS.values(), ALL)
    assert found == replace(ONE, backend="bridge", options={"isolated": "true"})


FLAT = replace(ONE, name="flat", vni=4, options={"layer2": "true"})


def test_a_network_of_layer_2_has_a_vni_of_its_own() -> None:
    assert came_to({"layer2": "true"}, ONE, TWO, SEVEN, FLAT) == ("vxlan", 2, 4789)
    assert came_to({"layer2": "true", "multicast": "true", "vni": "9", "port": "9"}, *ALL) == ("vxlan", 9, 9)
    assert came_to({"port": "8000"}, ONE, replace(FLAT, vni=2)) == ("vxlan", 3, 8000), "nor does another one come into it"
    assert came_to({"layer2": "false"}, *ALL) == ("vxlan", 1, 4789)
    for options, others, owner in (({"layer2": "true", "vni": "7"}, ALL, "seven"), ({"vni": "4"}, (FLAT,), "flat")):
        with pytest.raises(ConfigError, match=f"is that of {owner}; a network of layer 2 shares its own with none"):
            came_to(options, *others)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer2": "yes"}, "layer2: 'yes' is not possible; true or false"),
        ({"layer2": "true", "multicast": "1"}, "multicast: '1' is not possible; true or false"),
        ({"multicast": "true"}, "multicast: 'true' needs containers that are on one link; add -o layer2=true"),
        ({"layer2": "true", "backend": "hybrid"}, "means nothing to backend hybrid; leave it out; it is an option of vxlan"),
        ({"layer2": "true", "backend": "wireguard"}, "means nothing to backend wireguard; leave it out; it is an option of vxlan"),
        ({"layer2": "true", "model": "sandbox"}, "means nothing to backend bridge"),
        ({"layer2": "true", "isolated": "true", "multicast": "true"}, "isolated: 'true' leaves multicast=true nobody to send to"),
    ],
)
def test_what_layer_2_cannot_be_combined_with_is_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        came_to(options)


def test_of_a_network_of_layer_2_its_tunnel_and_multicast_may_change_and_nothing_else() -> None:
    (loud,) = changed(FLAT, {"multicast": "true"}, BACKENDS.values(), (ONE, FLAT))
    assert loud == replace(FLAT, options={"layer2": "true", "multicast": "true"}) and loud.multicast
    (moved,) = changed(FLAT, {"vni": "8", "port": "9"}, BACKENDS.values(), (ONE, FLAT))
    assert (moved.vni, moved.port) == (8, 9)
    for network, options, words in (
        (FLAT, {"layer2": "false"}, "would change what the containers of flat are on; make a second network"),
        (ONE, {"layer2": "true", "vni": "5"}, "would change what the containers of one are on; make a second network"),
        (FLAT, {"backend": "hybrid"}, "'hybrid' carries no network of layer 2; make a second network"),
        (FLAT, {"vni": "1"}, "is that of one"),
        (ONE, {"multicast": "true"}, "needs containers that are on one link"),
    ):
        with pytest.raises(ConfigError, match=words):
            changed(network, options, BACKENDS.values(), (ONE, FLAT))


def test_the_backend_of_a_network_is_its_own_kind_where_that_is_layer_2() -> None:
    flat, one = backend_of(FLAT), backend_of(ONE)
    assert on_link(FLAT) and not on_link(ONE)
    assert (flat.ways, one.ways) == (("vxlan",), ("vxlan", "direct")) and flat.needs() == one.needs() | {"bridge", "ingress"}
    assert flat.device(FLAT) == flat.bridge(FLAT) != flat.bridge(replace(FLAT, name="other")) and one.device(ONE) == "pl-x1"
    assert flat.overhead() == one.overhead() and (flat.name, flat.model, flat.options) == (one.name, one.model, one.options)
