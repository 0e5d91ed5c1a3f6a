# SPDX-License-Identifier: Apache-2.0
"""`LinuxKernel`: the kernel seam on rtnetlink and nftables, in the network namespace of the calling thread."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from plait.kernel.api import Result, changeable
from plait.kernel.linux import childguard, ethtool, fdb, openvswitch, portguard
from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux import route as routes
from plait.kernel.linux.announce import announce
from plait.kernel.linux.beside import Beside, ends_apart, parted
from plait.kernel.linux.child import Children
from plait.kernel.linux.classes import ClassControl
from plait.kernel.linux.devices import Indexes, completed, creation, index_of, names_here
from plait.kernel.linux.facts import BROKEN, STATE_DIR, HostFacts
from plait.kernel.linux.inside import opened
from plait.kernel.linux.narrow import Narrow
from plait.kernel.linux.netns import inside
from plait.kernel.linux.nft import Nft, Ruleset, keep_nft
from plait.kernel.linux.portqueues import PortQueueControl
from plait.kernel.linux.probe import probe_capabilities
from plait.kernel.linux.rows import row_message
from plait.kernel.linux.rule import dump_rules
from plait.kernel.linux.shortcut import Shortcuts
from plait.kernel.linux.sysctl import (
    Sysctls,
    answer_at_once,
    open_for_ipv6,
    read_sysctls,
    speak_no_ipv6,
    stay_silent,
)
from plait.kernel.linux.tc import TrafficControl
from plait.kernel.linux.watch import watch_kernel
from plait.kernel.linux.wireguard import Wireguard
from plait.model.errors import KernelError
from plait.model.hostlinks import ChildGuard, ChildLink, Key, PortGuard, SwitchPort, VlanLink
from plait.model.objects import BridgeLink, EndpointLink, InsideRoutes, KernelObject, Op, Sysctl, VxlanLink
from plait.model.routing import Rule
from plait.model.shortcut import Delivery, Shortcut
from plait.model.tc import Classes, IfbLink, PortQueues, Redirect, Tbf
from plait.model.wireguard import AllowedIp, WireguardLink, WireguardPeer

_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL}


class LinuxKernel(HostFacts):
    """See `kernel.api.Kernel`. Netlink sockets belong to the namespace in which the object is made. `keys` is the directory with
    the private keys of WireGuard devices and what is kept of `Narrow`, `sysctls` the file that keeps what sysctls were (see `Sysctls`),
    `nft` what its scripts are run by."""

    def __init__(self, keys: Path = STATE_DIR, sysctls: Path | None = None, nft: Nft | None = None) -> None:
        self._sock = nl.NetlinkSocket()
        self._ruleset = Ruleset(nft or keep_nft())
        self._renamed: dict[str, int] = {}
        """Indexes, by what they should be called, of links of ours that somebody had renamed when they were listed last."""
        self._macs = links.Macs()
        self._able: frozenset[str] = frozenset()
        self._wireguard, self._narrow, self._sysctls = Wireguard(keys), Narrow(keys), Sysctls(sysctls)
        self._children, self._shortcuts, self._tc = Children(self._sock), Shortcuts(self._sock), TrafficControl(self._sock)
        self._classes, self._queues = ClassControl(self._sock), PortQueueControl(self._sock)

    # --- reading

    def owned(self, probe: Iterable[Key] = ()) -> dict[Key, KernelObject]:
        probe = list(probe)
        try:
            return self._list(probe)
        except BROKEN as error:
            raise _kernel_error("list", ("kernel", "objects"), error) from error

    def _list(self, probe: Sequence[Key]) -> dict[Key, KernelObject]:
        found = self._macs.watch(links.dump_links(self._sock))
        self._renamed = {f.name: f.index for f in found if f.renamed}
        names = {f.index: f.name for f in found}
        ours = {f.index: f.name for f in found if f.link is not None}
        objects: list[KernelObject] = [completed(f.link, f, names) for f in found if f.link is not None]
        objects += [*self._children.read(probe, names), *childguard.read(probe), *openvswitch.held(set(names.values()))]
        objects += portguard.held({f.name: f.xdp for f in found if f.xdp})
        for item in found:
            if isinstance(item.link, WireguardLink):
                objects += self._wireguard.held(item.link, item.index)
        objects += routes.dump_addrs(self._sock, ours)
        objects += [*routes.dump_routes(self._sock, names), *dump_rules(self._sock), *self._narrow.held(set(ours.values()))]
        objects += routes.dump_neighs(self._sock, ours)
        for item in found:
            if isinstance(item.link, VxlanLink):
                objects += fdb.dump_fdbs(self._sock, item.index, item.name)
            elif isinstance(item.link, BridgeLink):
                objects += fdb.dump_bridge_fdbs(self._sock, item.index, ours)
        objects += [
            *self._shortcuts.read(names),
            *self._tc.read({f.index: f.name for f in found}),
            *self._classes.read(names),
            *self._queues.read(ours),
        ]
        held: dict[Key, KernelObject] = {obj.key: obj for obj in objects}
        held.update(self._ruleset.owned(probe, names))
        held.update(read_sysctls(probe))
        return held

    def rules_known(self) -> bool:
        try:
            return self._ruleset.known()
        except BROKEN as error:
            raise _kernel_error("list", ("kernel", "rules"), error) from error

    def capabilities(self, afresh: bool = False) -> frozenset[str]:
        """Looked for once, or again (`afresh`): a module may have been loaded, a program installed."""
        if afresh or not self._able:
            self._able = probe_capabilities()
        return self._able

    def watch(self) -> AsyncIterator[str]:
        return watch_kernel()

    @property
    def wireguard_repairs(self) -> int:
        """How often the process of a WireGuard device had ended by itself and was started again."""
        return self._wireguard.repairs

    # --- writing

    def apply(self, ops: Sequence[Op]) -> Result:
        failed: dict[Key, KernelError] = {}
        rules, rest = parted(ops)
        beside = Beside(lambda: self._apply_nft(rules)) if ends_apart(rules, rest) else None
        self._wireguard.forget()
        batch: list[tuple[Op, nl.Message]] = []
        indexes = Indexes()
        for op in rest:
            if op.verb == "del" and rules and beside is None:  # the fast path still sends to neighbours that go
                self._flush(batch, failed)
                failed |= self._apply_nft(rules)
                rules = []
            try:
                message = row_message(op, indexes)  # None: it takes more than that (links, sysctls)
                if message is not None:
                    batch.append((op, message))
                    continue
                self._flush(batch, failed)
                self._perform(op)
                indexes.clear()
            except BROKEN as error:
                refused = _kernel_error(op.verb, op.key, error)
                if op.verb == "put" or refused.errno not in _GONE:
                    failed[op.key] = refused
        self._flush(batch, failed)
        announce(self._sock, [op for op in rest if op.key not in failed] if failed else rest)
        if rules:
            failed |= beside.result() if beside is not None else self._apply_nft(rules)
        return Result(ops, failed)

    def _flush(self, batch: list[tuple[Op, nl.Message]], failed: dict[Key, KernelError]) -> None:
        try:
            replies = self._sock.transact([message for _, message in batch])
        except BROKEN as error:
            failed |= {op.key: _kernel_error(op.verb, op.key, error) for op, _ in batch}
            replies = []
        for (op, _), reply in zip(batch, replies, strict=False):
            if reply.errno and not _as_wanted(op, reply.errno):
                failed[op.key] = KernelError(op.verb, " ".join(op.key), reply.errno, reply.text)
        batch.clear()

    def _apply_nft(self, ops: Sequence[Op]) -> dict[Key, KernelError]:
        try:
            refused = self._ruleset.apply(ops)
        except BROKEN as error:
            return {op.key: _kernel_error(op.verb, op.key, error) for op in ops}
        return {key: KernelError("nft", " ".join(key), errno.EINVAL, str(error)) for key, error in refused.items()}

    def _perform(self, op: Op) -> None:
        match op.subject:
            case Sysctl(path, value):
                self._sysctls.write(path, value)
            case SwitchPort() as port:
                openvswitch.put(port) if op.verb == "put" else openvswitch.remove(port)
            case PortGuard(dev) as guard:
                index = index_of(dev)
                portguard.put(self._sock, index, guard) if op.verb == "put" else portguard.remove(self._sock, index)
            case Shortcut(dev, _, bare):
                self._shortcuts.put(dev, bare) if op.verb == "put" else self._shortcuts.remove(dev)
            case Delivery() as one:
                self._shortcuts.deliver(one) if op.verb == "put" else self._shortcuts.withdraw(one)
            case ChildLink() as one:
                self._children.put(one, index_of(one.parent)) if op.verb == "put" else self._children.remove(one)
            case ChildGuard() as guard:
                childguard.put(guard) if op.verb == "put" else childguard.remove(guard)
            case Tbf(dev) as qdisc:
                self._tc.put_tbf(qdisc, index_of(dev)) if op.verb == "put" else self._tc.remove_tbf(index_of(dev))
            case PortQueues(dev, _, major) as qdisc:
                self._queues.put(qdisc, index_of(dev)) if op.verb == "put" else self._queues.remove(index_of(dev), major)
            case Classes(dev) as qdisc:
                self._classes.put(qdisc, index_of(dev)) if op.verb == "put" else self._classes.remove(index_of(dev))
            case Redirect(dev, to):
                self._tc.redirect(index_of(dev), index_of(to)) if op.verb == "put" else self._tc.restore(index_of(dev))
            case VxlanLink() | BridgeLink() | WireguardLink() | EndpointLink() | VlanLink() | IfbLink() as link if op.verb == "del":
                self._must(links.delete_link(self._index(link.name)))
                if isinstance(link, WireguardLink):
                    self._wireguard.ended(link.name)
            case WireguardLink() as link:
                self._put_wireguard(link)
            case WireguardPeer(dev=dev) | AllowedIp(dev=dev):
                self._wireguard.apply(op, index_of(dev))
            case InsideRoutes() as wanted:
                self._narrow.bring(wanted, self._find(wanted.dev), op.verb == "put")
            case EndpointLink() as link:
                self._put_endpoint(link)
            case VxlanLink() | BridgeLink() | VlanLink() | IfbLink() as link:
                self._put_device(link)

    def _put_device(self, link: VxlanLink | BridgeLink | VlanLink | IfbLink) -> None:
        """Create, or bring in line; what cannot be changed on a living device (`changeable`) replaces it."""
        found = self._find(link.name)
        held = completed(found.link, found, names_here()) if found is not None and found.link is not None else None
        if found is not None and not changeable(held, link):
            self._must(links.delete_link(found.index))
            found = None
        before = found.link if found is not None else None
        if found is None:
            mtu = 0 if isinstance(link, VlanLink | IfbLink) else link.mtu
            self._must(creation(link), links.set_link(0, mtu, name=link.name, alias=link.name))
        elif isinstance(link, VlanLink | IfbLink):
            self._must(links.set_link(found.index, up=True))
        else:
            assert isinstance(found.link, VxlanLink | BridgeLink)
            mac = "" if found.link.mac == link.mac else link.mac  # being told the one it has makes it forget its neighbours too
            self._must(links.set_link(found.index, link.mtu, mac, up=True))
        if isinstance(link, VxlanLink):
            ethtool.set_tx_checksum(link.name, link.tx_checksum)
            if isinstance(before, VxlanLink) and before.inherits_tos != link.inherits_tos:
                self._must(links.inherit_tos(link, index_of(link.name)))
            if link.master:
                speak_no_ipv6(link.name)
            self._join(link, found)
        elif isinstance(link, BridgeLink) and link.querier != (isinstance(before, BridgeLink) and before.querier):
            self._must(*links.ask_for_members(link, index_of(link.name)))

    def _join(self, link: VxlanLink | EndpointLink, found: links.Found | None = None) -> None:
        """Make the link, which was `found` like that, a port of its bridge, or of none any longer."""
        if link.master or (found is not None and found.master):
            self._must(*links.join_bridge(link, index_of(link.name), index_of(link.master) if link.master else 0))

    def _put_wireguard(self, link: WireguardLink) -> None:
        """Create, or bring in line; a device for which nobody answers is replaced."""
        found = self._find(link.name)
        if found is not None:
            try:
                self._wireguard.set_up(link, found.index)
            except (ConnectionError, TimeoutError):
                self._must(links.delete_link(found.index))
                found = None
        if found is None:
            reply = self._sock.transact([links.create_wireguard(link)])[0]
            if reply.errno == errno.EOPNOTSUPP:
                self._wireguard.start(link.name)
            elif reply.errno:
                raise OSError(reply.errno, reply.text or os.strerror(reply.errno))
            self._wireguard.set_up(link, index_of(link.name))
        self._must(links.set_link(index_of(link.name), link.mtu, up=True, alias=link.name))

    def _put_endpoint(self, link: EndpointLink) -> None:
        found = self._find(link.name)
        if found is not None and not isinstance(found.link, EndpointLink):
            self._must(links.delete_link(found.index))
            found = None
        if found is not None:
            self._set_endpoint(found, link)
        elif link.netns:
            self._plumb_inside(link)
        else:
            self._create_pair(link, None)
        answer_at_once(link.name) if link.answers else stay_silent(link.name)

    def _set_endpoint(self, found: links.Found, link: EndpointLink) -> None:
        """The host side as wanted; the MTU on the other side too where that is known, for what one end sends longer than the other
        takes is lost without a word."""
        self._must(links.set_link(found.index, link.mtu, self._macs.lost(found), up=True, proxy_arp=link.answers))
        self._join(link, found)
        if link.netns and found.away and isinstance(found.link, EndpointLink) and found.link.mtu != link.mtu:
            with opened(link.netns) as (_, there):
                _all_done(link, there.transact([links.set_link(found.away, link.mtu)]))

    def _plumb_inside(self, link: EndpointLink) -> None:
        """The pair with its other end in the sandbox's namespace, and everything there, in two sends."""
        with opened(link.netns) as (fd, there):
            peer_index = self._create_pair(link, fd)
            try:
                if link.inside6 is not None:
                    with inside(fd):
                        open_for_ipv6(link.ifname)
                _all_done(link, there.transact(links.inside_messages(link, peer_index)))
            except OSError:
                with contextlib.suppress(OSError):
                    self._must(links.delete_link(index_of(link.name)))
                raise

    def _create_pair(self, link: EndpointLink, netns_fd: int | None) -> int:
        """Create the veth pair with indexes of our choice; returns that of the other end."""
        self._narrow.forget(link.name)
        index = random.randrange(links.INDEX_FROM, 1 << 31, 2)
        create = links.create_veth(link, index, index + 1, netns_fd)
        self._must(create, links.set_link(index, proxy_arp=link.answers, alias=link.name))
        self._join(link)
        return index + 1

    def _find(self, name: str) -> links.Found | None:
        try:
            index = self._index(name)
        except OSError:
            return None
        if name in self._renamed:
            self._call_again(index, name)
        for kind, body in self._sock.ask(nl.Message(links.RTM_GETLINK, 0, links.get_body(index))):
            if kind == links.RTM_NEWLINK:
                return links.decode_link(body)
        return None

    def _index(self, name: str) -> int:
        """As `index_of`, also where the link of ours has another name now."""
        return self._renamed.get(name) or index_of(name)

    def _call_again(self, index: int, name: str) -> None:
        """Give a link its name back; one that is up may have to go down for it (kernels before 6.2)."""
        del self._renamed[name]
        (reply,) = self._sock.transact([links.set_link(index, name=name)])
        if reply.errno == errno.EBUSY:
            self._must(links.set_link(index, up=False), links.set_link(index, name=name))
        elif reply.errno:
            raise OSError(reply.errno, reply.text or os.strerror(reply.errno))

    def _must(self, *messages: nl.Message) -> None:
        for reply in self._sock.transact(messages):
            if reply.errno:
                raise OSError(reply.errno, reply.text or os.strerror(reply.errno))

    def close(self) -> None:
        self._shortcuts.close()
        self._ruleset.close()
        self._sock.close()
        self._wireguard.close()


def _as_wanted(op: Op, number: int) -> bool:
    """Whether the refusal says that nothing was to be done."""
    return number in _GONE if op.verb == "del" else number == errno.EEXIST and isinstance(op.subject, Rule)


def _all_done(link: EndpointLink, replies: Iterable[nl.Reply]) -> None:
    for reply in replies:
        if reply.errno:
            raise OSError(reply.errno, f"inside {link.netns}: {reply.text or os.strerror(reply.errno)}")


def _kernel_error(op: str, key: Key, error: Exception) -> KernelError:
    """A failure below the seam as the seam's error: the errno if it has one; EINVAL for a value that fits no message."""
    if isinstance(error, OSError):
        return KernelError(op, " ".join(key), error.errno or errno.EIO, error.strerror or str(error))
    return KernelError(op, " ".join(key), errno.EBADMSG if isinstance(error, nl.NetlinkParseError) else errno.EINVAL, str(error))
