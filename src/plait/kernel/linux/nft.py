# SPDX-License-Identifier: Apache-2.0
"""The nft tables `inet plait` and `netdev plait`: written in one transaction, read back and compared as text.

Data in: NftChain, NftSet and HookRule operations. Data out: a script for libnftables, or the objects that the table holds now. Rules are
written in the spelling in which nft prints them, so reading back gives equal values (the contract suite proves it for every rule
that a plan holds). libnftables is called in the process by ctypes: one transaction costs 0.14 ms against 4 ms for the program.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import os
import re
import struct
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.devices import names_here
from plait.kernel.linux.nftscript import FAMILIES, family_of, parse_table, redeclared, script_of, table_of, with_dependents
from plait.model.errors import NotSupported, PlaitError
from plait.model.hostlinks import Key
from plait.model.nfttext import hooked_device
from plait.model.objects import HOOK_COMMENT, NFT_FAMILY, NFT_FAST_FAMILY, PREFIX, HookRule, KernelObject, NftChain, NftElement, NftSet, Op

_NFT_CTX_OUTPUT_HANDLE, _NFT_CTX_OUTPUT_STATELESS = 1 << 3, 1 << 2
_NFNL_SUBSYS_NFTABLES, _NFT_MSG_GETGEN, _NFT_MSG_NEWGEN, _NFTA_GEN_ID = 10, 16, 15, 1
_PROGRAM_TIMEOUT_S = 10.0
_ONE_AT_A_TIME = threading.Lock()
"""The library keeps state of its own outside its contexts: two threads in it at once end the process (seen as a segmentation fault)."""
_HOOKS = (("ip", "filter", "DOCKER-USER"), ("ip6", "filter", "DOCKER-USER"))
"""Chains of other programs that are documented as places for local rules, and in which plait may keep rules."""


class NftError(PlaitError):
    """nft refused a script; nothing of it was applied. The text is nft's own."""


class Nft(Protocol):
    def run(self, script: str, handles: bool = False, counters: bool = False) -> str:
        """Run a script as one transaction, return its output, if asked for with handles or the figures of counters. NftError if refused."""
        ...

    def close(self) -> None: ...


class LibNft:
    """libnftables.so.1 by ctypes. Works in the network namespace of the calling thread; one that `keeps` its context in that of the first
    call, until it is closed.

    A context has a socket, and whoever closes a netfilter socket waits until the kernel has freed what was deleted before, 4-20 ms
    (Linux 6.18: `nft_rcv_nl_event`), while the element itself takes 0.5 ms. Only a context that printed nothing is kept: one that
    listed a table has it in memory."""

    def __init__(self, keeps: bool = False) -> None:
        self._keeps = keeps
        self._kept: int | None = None
        name = ctypes.util.find_library("nftables") or "libnftables.so.1"
        try:
            self._lib = ctypes.CDLL(name)
        except OSError as error:
            raise NotSupported(f"cannot load {name}: {error}; install the package libnftables1") from error
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        self._lib.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        self._lib.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        for function in (
            self._lib.nft_ctx_free,
            self._lib.nft_ctx_buffer_output,
            self._lib.nft_ctx_buffer_error,
            self._lib.nft_ctx_get_output_buffer,
            self._lib.nft_ctx_get_error_buffer,
        ):
            function.argtypes = [ctypes.c_void_p]
        self._lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        self._lib.nft_run_cmd_from_filename.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

    def run(self, script: str, handles: bool = False, counters: bool = False) -> str:
        """The script goes by way of a file in memory: of a plain text libnftables quotes the wrong line when it refuses one."""
        with _ONE_AT_A_TIME:
            return self._run(script, (_NFT_CTX_OUTPUT_HANDLE if handles else 0) | (0 if counters else _NFT_CTX_OUTPUT_STATELESS))

    def _run(self, script: str, flags: int) -> str:
        descriptor = os.memfd_create("nft")
        context, self._kept = self._kept or self._context(), None
        try:
            os.write(descriptor, script.encode())
            self._lib.nft_ctx_output_set_flags(context, flags)
            path = f"/proc/self/fd/{descriptor}"
            failed = self._lib.nft_run_cmd_from_filename(context, path.encode())
            output = (self._lib.nft_ctx_get_output_buffer(context) or b"").decode("utf-8", "replace")
            if failed:
                error = (self._lib.nft_ctx_get_error_buffer(context) or b"").decode("utf-8", "replace")
                raise NftError(error.strip().replace(path, "script"))
            self._kept = context if self._keeps and not output else None
            return output
        finally:
            if self._kept is None:
                self._lib.nft_ctx_free(context)
            os.close(descriptor)

    def _context(self) -> int:
        context: int = self._lib.nft_ctx_new(0)
        self._lib.nft_ctx_buffer_output(context)
        self._lib.nft_ctx_buffer_error(context)
        return context

    def close(self) -> None:
        """Let go of what is kept; the next call makes it anew."""
        with _ONE_AT_A_TIME:
            kept, self._kept = self._kept, None
            if kept is not None:
                self._lib.nft_ctx_free(kept)


class ProgramNft:
    """The same through the program `nft`, where the library cannot be loaded."""

    def run(self, script: str, handles: bool = False, counters: bool = False) -> str:
        command = ["nft", *([] if counters else ["-s"]), *(["-a"] if handles else []), "-f", "-"]
        try:
            done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=_PROGRAM_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NftError(f"cannot run {' '.join(command)}: {error}; install the package nftables") from error
        if done.returncode:
            raise NftError(done.stderr.strip())
        return done.stdout

    def close(self) -> None:
        """Nothing is kept."""


@functools.cache
def open_nft() -> Nft:
    """The library if it can be loaded, else the program. Looked for once: to ask where it is starts a program, for which the whole process
    stops for a millisecond, and other programs' rules are looked at several times a second."""
    try:
        return LibNft()
    except NotSupported:
        return ProgramNft()


def keep_nft() -> Nft:
    """One for a single namespace, which whoever asked for it closes."""
    return LibNft(keeps=True) if isinstance(open_nft(), LibNft) else ProgramNft()


def counted(nft: Nft, chains: Iterable[str]) -> int:
    """Packets that the counters in these chains of our table have counted since the chains were written; 0 where there are none. For chains
    of a few rules: listing costs by their length."""
    total = 0
    for chain in chains:
        with contextlib.suppress(NftError):
            text = nft.run(f"list chain {table_of(NFT_FAMILY)} {chain}\n", counters=True)
            total += sum(int(packets) for packets in re.findall(r"counter packets (\d+)", text))
    return total


_COUNTED = re.compile(
    r'(?:"([^"]+)"|\b((?:[\da-f]{2}:){5}[\da-f]{2})) (?:limit rate over \S+(?: burst \d+ packets)? )?counter packets (\d+)'
)
"""An element that is a link or a MAC, and how many packets."""


def counted_links(nft: Nft, name: str) -> dict[str, int]:
    """Packets by link, or by MAC, that rules have counted in the set `name` of our table of links, where its elements have limits those
    that were too many; empty where there is no such set. Links that are gone are left out. For sets of a few elements: listing costs by
    their number."""
    try:
        text = nft.run(f"list set {table_of(NFT_FAST_FAMILY)} {name}\n", counters=True)
    except NftError:
        return {}
    return {link or mac: int(packets) for link, mac, packets in _COUNTED.findall(text)}


def counted_elements(nft: Nft, name: str) -> dict[str, int]:
    """Packets by element, without its limit, that were too many for it, in the set `name` of our table `inet`; empty if there is none."""
    try:
        text = nft.run(f"list set {table_of(NFT_FAMILY)} {name}\n", counters=True)
    except NftError:
        return {}
    found = re.findall(r"[{,]\s+([^{},]+?) limit rate over [^,}]*? counter packets (\d+)", text)
    return {" ".join(key.split()): int(packets) for key, packets in found}


class _Seen(NamedTuple):
    """What there was at a generation of the ruleset: the indexes of links, our objects, and which chains of others were not there."""

    generation: int
    indexes: dict[str, int]
    found: dict[Key, KernelObject]
    absent: set[tuple[str, ...]]


class Ruleset:
    """Reads and writes our tables. Listing is skipped while the kernel's ruleset generation is the one of our own last look, or the one
    after it if that is our own commit: a table of 5,000 ports takes 0.1 s to list. The indexes of links (`devices`: index -> name) are
    compared too: a chain may go with its device, and an element that names one changes, without a new generation."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._sock: nl.NetlinkSocket | None = None
        self._seen: _Seen | None = None

    def owned(self, probe: Iterable[Key], devices: Mapping[int, str] | None = None) -> dict[Key, KernelObject]:
        """Chains, sets and maps of the tables, our rules in others' hooks; a probed hook whose chain does not exist counts as held,
        for there is nothing to be done about it."""
        generation = self._generation()
        indexes = {name: index for index, name in (devices or {}).items()}
        absent = set[tuple[str, ...]]()
        found = None
        if self._seen is not None and self._seen.generation == generation:
            found, absent = self._seen.found, self._seen.absent
        if found is None:
            found = self._listed(FAMILIES)
            for hook in _HOOKS:
                found.update({rule.key: rule for rule in self._hook_rules(hook)})
        elif self._seen is not None and _replaced(found, self._seen.indexes, indexes):
            others = {key: obj for key, obj in found.items() if isinstance(obj, HookRule) or family_of(obj) != NFT_FAST_FAMILY}
            found = others | self._listed([NFT_FAST_FAMILY])
        held = dict(found)
        for key in probe:
            if key[0] == "hook" and key not in held and (key[1:4] in absent or not self._chain_exists(key[1:4])):
                absent.add(key[1:4])
                held[key] = HookRule(key[1], key[2], key[3], key[4])
        self._seen = _Seen(generation, indexes, found, absent)
        return held

    def known(self) -> bool:
        """Whether nobody has changed a rule since our own last look or commit."""
        return self._seen is not None and self._seen.generation == self._generation()

    def _listed(self, families: Iterable[str]) -> dict[Key, KernelObject]:
        return {obj.key: obj for family in families for obj in self._table(family)}

    def _table(self, family: str) -> list[KernelObject]:
        try:
            return parse_table(self._nft.run(f"list table {table_of(family)}\n"), family)
        except NftError:
            return []

    def _hook_rules(self, hook: Sequence[str]) -> list[HookRule]:
        return [HookRule(hook[0], hook[1], hook[2], rule) for rule, _ in self._marked(hook)]

    def _marked(self, hook: Sequence[str]) -> list[tuple[str, str]]:
        """(rule, handle) of the rules in a foreign chain that carry our comment."""
        try:
            text = self._nft.run(f"list chain {' '.join(hook)}\n", handles=True)
        except NftError:
            return []
        marked = re.findall(rf'^\s*(.+?) comment "{HOOK_COMMENT}" # handle (\d+)$', text, re.MULTILINE)
        return [(rule.strip(), handle) for rule, handle in marked]

    def _chain_exists(self, hook: Sequence[str]) -> bool:
        try:
            self._nft.run(f"list chain {' '.join(hook)}\n")
        except NftError:
            return False
        return True

    def apply(self, ops: Sequence[Op]) -> dict[Key, NftError]:
        """The operations on our tables in one transaction (the kernel waits for its readers once for each), of each table in its own if
        that is refused; then hook rules one by one. Returns what was refused, by key."""
        of_tables = [[op for op in ops if not isinstance(op.subject, HookRule) and _family(op) == family] for family in FAMILIES]
        failed = self._apply_apart([table for table in of_tables if table])
        for family, table in zip(FAMILIES, of_tables, strict=True):
            if table and all(op.verb == "del" and op.key not in failed for op in table):
                self._drop_empty_table(family)
        for op in ops:
            if isinstance(op.subject, HookRule):
                try:
                    self._apply_hook(op.subject, op.verb == "put")
                except NftError as error:
                    failed[op.key] = error
        return failed

    def _apply_apart(self, tables: Sequence[Sequence[Op]]) -> dict[Key, NftError]:
        """All of them together, or each for itself: what one table refuses is no matter of the other."""
        failed = self._apply_tables([op for table in tables for op in table]) if tables else {}
        if failed and len(tables) > 1:
            failed = {key: error for table in tables for key, error in self._apply_tables(table).items()}
        return failed

    def _apply_tables(self, ops: Sequence[Op]) -> dict[Key, NftError]:
        """All of them or none."""
        generation = self._generation()
        seen, self._seen = self._seen, None
        held = seen.found if seen is not None and seen.generation == generation else None
        elements = any(isinstance(op.subject, NftElement) for op in ops)
        if held is None and (elements or redeclared(ops)):
            known: Mapping[Key, KernelObject] = self._listed({_family(op) for op in ops})
        else:
            known = held or {}
        try:
            whole = [_of_set(op, known) for op in ops] if elements else list(ops)
            self._nft.run(script_of(with_dependents(whole, known) if redeclared(whole) else whole))
        except NftError as error:
            rest = [op for op in ops if not _came_too_late(op)]
            return self._apply_tables(rest) if len(rest) < len(ops) else dict.fromkeys((op.key for op in ops), error)
        if seen is not None and held is not None and _predictable(whole, held):
            after = dict(held)  # a commit of somebody else would have made it one generation more
            for op in whole:
                after.pop(op.key, None)
            after.update({op.key: op.new for op in whole if op.new is not None})
            self._seen = _Seen(generation + 1, seen.indexes, after, seen.absent)
        return {}

    def _drop_empty_table(self, family: str) -> None:
        if not self._table(family):
            with contextlib.suppress(NftError):
                self._nft.run(f"delete table {table_of(family)}\n")

    def _apply_hook(self, rule: HookRule, wanted: bool) -> None:
        hook = (rule.family, rule.table, rule.chain)
        if not self._chain_exists(hook):
            return
        present = [handle for text, handle in self._marked(hook) if text == rule.rule]
        if wanted and not present:
            self._nft.run(f'insert rule {" ".join(hook)} {rule.rule} comment "{HOOK_COMMENT}"\n')
        if not wanted:
            for handle in present:
                self._nft.run(f"delete rule {' '.join(hook)} handle {handle}\n")

    def _generation(self) -> int:
        """The ruleset generation of this namespace: it changes with every committed transaction of anybody. Its socket is kept too."""
        if self._sock is None:
            self._sock = nl.NetlinkSocket(nl.NETLINK_NETFILTER)
        message = nl.Message(_NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETGEN, 0, struct.pack("!BBH", 0, 0, 0))
        for kind, body in self._sock.ask(message):
            if kind == _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_NEWGEN:
                return int.from_bytes(nl.parse_attrs(body[4:]).get(_NFTA_GEN_ID, b""), "big")
        return -1

    def close(self) -> None:
        self._nft.close()
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _family(op: Op) -> str:
    subject = op.subject
    return family_of(subject.of if isinstance(subject, NftElement) else subject)


def _came_too_late(op: Op) -> bool:
    """Whether it is a chain of somebody else's link that has gone meanwhile, as they do when they like: that is nothing to be refused."""
    dev = hooked_device(op.new.hook) if isinstance(op.new, NftChain) else ""
    return bool(dev) and not dev.startswith(PREFIX) and dev not in names_here().values()


def _of_set(op: Op, held: Mapping[Key, KernelObject]) -> Op:
    """An operation on one element as one on its set, which must be there already: NftError if it is not."""
    subject = op.subject
    if not isinstance(subject, NftElement):
        return op
    whole = held.get(subject.of.key)
    if not isinstance(whole, NftSet):
        raise NftError(f"there is no {subject.of.kind} {subject.of.name} in the table {table_of(subject.of.family)}")
    return Op("put", whole.with_element(subject.element), whole)


def _replaced(held: Mapping[Key, KernelObject], before: Mapping[str, int], now: Mapping[str, int]) -> bool:
    """Whether a device that has a chain is gone or another one than when the tables were last looked at."""
    names = {dev for obj in held.values() if isinstance(obj, NftChain) and (dev := hooked_device(obj.hook))}
    return any(now.get(name) != before.get(name, now.get(name)) for name in names)


def _predictable(ops: Sequence[Op], held: Mapping[Key, KernelObject]) -> bool:
    """Whether what the table holds after `ops` follows from what it held before: the operations knew the truth, and one of them
    changes something (a script that changes nothing makes no generation, so the next one would be somebody else's)."""
    return all(op.old == held.get(op.key) for op in ops) and any(op.new != op.old for op in ops)
