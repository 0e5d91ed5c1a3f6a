# SPDX-License-Identifier: Apache-2.0
"""Links that lie on a link of the host: macvlan and ipvlan, each an endpoint's own end, and tagged sub-interfaces <-> RTM_NEWLINK messages.

Sources: rtnetlink(7), include/uapi/linux/if_link.h. A child is made by one request that names the namespace where it shall lie, its
parent being looked up in the one of the socket; so nobody ever sees it anywhere else. There it is known by its alias, whatever it is
called; as long as it has none, by its name, kind and MAC.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux import route as routes
from plait.kernel.linux.inside import opened
from plait.kernel.linux.netns import inside
from plait.kernel.linux.sysctl import open_for_ipv6
from plait.model.addr import IPInterface
from plait.model.hostlinks import ChildLink, Key, VlanLink
from plait.model.objects import KernelObject

_IFLA_MTU = 4
_IFLA_IFNAME, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 5, 18, 28
_INFO_KIND, _INFO_DATA = 1, 2
PASSTHRU = "passthru"


def create_vlan(link: VlanLink, parent: int) -> nl.Message:
    body = links.head(up=True) + nl.attr_text(_IFLA_IFNAME, link.name) + nl.attr_u32(_IFLA_LINK, parent)
    body += nl.nested(_IFLA_LINKINFO, nl.attr_text(_INFO_KIND, "vlan"), nl.nested(_INFO_DATA, nl.attr_u16(links.VLAN_ID, link.vlan)))
    return nl.Message(links.RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body)


def create_child(link: ChildLink, index: int, parent: int, netns_fd: int | None) -> nl.Message:
    """In the namespace of `netns_fd` under its final name, or here under its own; not up yet. Its MTU is its parent's, or
    its own."""
    body = links.head(index) + nl.attr_text(_IFLA_IFNAME, link.name if netns_fd is None else link.ifname)
    body += nl.attr_u32(_IFLA_LINK, parent) + (nl.attr_u32(_IFLA_MTU, link.mtu) if link.mtu else b"")
    body += nl.attr(links.IFLA_ADDRESS, links.mac_bytes(link.mac)) if link.mac else b""
    body += nl.attr_u32(_IFLA_NET_NS_FD, netns_fd) if netns_fd is not None else b""
    mode = (nl.attr_u32 if link.kind == "macvlan" else nl.attr_u16)(links.MODE[link.kind], links.MODES[link.kind][link.mode])
    body += nl.nested(_IFLA_LINKINFO, nl.attr_text(_INFO_KIND, link.kind), nl.nested(_INFO_DATA, mode))
    return nl.Message(links.RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body)


class Children:
    """Children of links of this namespace, wherever they lie. `here` is a socket of this namespace."""

    def __init__(self, here: nl.NetlinkSocket) -> None:
        self._here = here

    def read(self, probe: Iterable[Key], names: Mapping[int, str]) -> list[KernelObject]:
        """Those of other namespaces that `probe` asks for; `names` are the links of this one by index."""
        found: list[KernelObject] = []
        for key in probe:
            if key[0] == "child" and key[2]:
                with contextlib.suppress(OSError), opened(key[2]) as (_, there):
                    held = ((one.link, names.get(one.parent, "")) for one in links.dump_links(there) if one.name == key[1])
                    found += [replace(link, parent=parent, netns=key[2]) for link, parent in held if isinstance(link, ChildLink)]
        return found

    def put(self, link: ChildLink, parent: int) -> None:
        """Make it anew, whatever it was. OSError; then it is not there."""
        if not link.netns:
            index = self._make(link, parent, self._here, None)
            _must(link, self._here, [links.set_link(index, alias=link.name)])
            return
        with opened(link.netns) as (fd, there):
            index = self._make(link, parent, there, fd)
            try:
                if link.inside6 is not None:
                    with inside(fd):
                        open_for_ipv6(link.ifname)
                own_mac = [links.set_link(index, mac=link.mac)] if link.mode == PASSTHRU and link.mac else []
                _must(link, there, [links.set_link(index, alias=link.name), *own_mac, *links.inside_messages(link, index)])
            except OSError:
                there.transact([links.delete_link(index)])
                raise

    def _make(self, link: ChildLink, parent: int, there: nl.NetlinkSocket, netns_fd: int | None) -> int:
        _must(link, there, [links.delete_link(index) for index in _found(link, there)])
        index = random.randrange(links.INDEX_FROM, 1 << 31)
        _must(link, self._here, [create_child(link, index, parent, netns_fd)])
        return index

    def remove(self, link: ChildLink) -> None:
        """OSError ENODEV if it is not there, ENOENT if its namespace is not."""
        if not link.netns:
            self._remove(link, self._here)
            return
        with opened(link.netns) as (_, there):
            self._remove(link, there)

    def _remove(self, link: ChildLink, there: nl.NetlinkSocket) -> None:
        found = _found(link, there)
        if not found:
            raise OSError(errno.ENODEV, f"no link with the alias {link.name}")
        _must(link, there, [links.delete_link(index) for index in found])


def readdress(link: ChildLink) -> bool:
    """Give the link that is there already, in its namespace, the address, routes and MTU of `link` in place of what it has. False:
    there is none. OSError."""
    with opened(link.netns) as (_, there):
        index = next((one.index for one in links.dump_links(there) if one.name == link.name), 0)
        if index:
            had = [one.address for one in routes.dump_addrs(there, {index: link.name}) if _is_ours(one.address)]
            _must(link, there, [*(links.drop_address(index, one) for one in had), *links.inside_messages(link, index)])
        return bool(index)


def _is_ours(address: IPInterface) -> bool:
    """One that was given, none that the sandbox's kernel made itself."""
    return address.version == 4 or (address.network.prefixlen == 128 and not address.ip.is_link_local)


def children_in(names: Collection[str], namespaces: Iterable[str]) -> list[Key]:
    """The keys of those of the children with these names that lie in one of the namespaces: an engine moved them there."""
    found: list[Key] = []
    for path in namespaces if names else ():
        with contextlib.suppress(OSError), opened(path) as (_, there):
            inside = (one.link for one in links.dump_links(there) if one.name in names)
            found += [("child", link.name, path) for link in inside if isinstance(link, ChildLink)]
    return found


def _found(link: ChildLink, there: nl.NetlinkSocket) -> list[int]:
    """Indexes of what is this link there."""
    named = links.dump_links(there)
    ours = [one.index for one in named if one.name == link.name]
    kinds = links.dump_facts(there)
    half_made = [
        index
        for index, facts in kinds.items()
        if link.netns and facts.name == link.ifname and facts.kind == link.kind and not facts.alias and facts.mac == link.mac
    ]
    return ours + half_made


def _must(link: ChildLink, sock: nl.NetlinkSocket, messages: Sequence[nl.Message]) -> None:
    for reply in sock.transact(messages):
        if reply.errno:
            raise OSError(reply.errno, f"{link.kind} of {link.parent}: {reply.text or os.strerror(reply.errno)}")
