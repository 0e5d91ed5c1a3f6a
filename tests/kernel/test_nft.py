# SPDX-License-Identifier: Apache-2.0
"""The nft table: what is written is read back equal, as little as possible is written and listed, and others' rules stay whole."""

from __future__ import annotations

import contextlib
import re
import socket
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.golden.test_plan import CASES, LOCALS
from tests.support.kernel import own_namespace, sh

from plait.kernel.linux.netns import in_thread
from plait.kernel.linux.nft import LibNft, Nft, NftError, ProgramNft, Ruleset, keep_nft, open_nft
from plait.kernel.linux.nftscript import FAMILIES
from plait.model.hostlinks import Key
from plait.model.objects import NFT_FAST_FAMILY, HookRule, KernelObject, NftChain, NftSet, Op, Plan
from plait.plan import Local, plan_node
from plait.plan.guard import ingress
from plait.reconcile import diff, order

pytestmark = pytest.mark.root
_LINK = re.compile(r'"([^"* ]+)"')
PORTS_TYPE = "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service"
SETS: tuple[KernelObject, ...] = (
    NftSet("pools", "ipv4_addr", frozenset({"10.28.0.0/16", "10.29.0.0/16"}), ("interval",)),
    NftSet("same", "ipv4_addr . ipv4_addr", frozenset({"10.28.0.0/16 . 10.28.0.0/16"}), ("interval",)),
    NftSet("hosts", "ipv4_addr", frozenset({"10.28.1.0", "10.28.2.0"})),
    NftSet("macs", "ether_addr", frozenset({"02:00:00:00:00:01"})),
    NftSet("devs", "ifname", frozenset({'"pl-e1"', '"pl-e2"'})),
    NftSet(
        "ports", PORTS_TYPE, frozenset({"10.0.0.1 . tcp . 80 : 10.28.1.2 . 8080", "10.0.0.1 . sctp . 80 : 10.28.1.2 . 8080"}), kind="map"
    ),
    NftSet("one", "inet_service : ipv4_addr", frozenset({"80 : 10.28.1.2", "443 : 10.28.1.3"}), kind="map"),
)
RULES = (
    "ct state established,related accept",
    "ct state established,related,untracked accept",
    "ct state invalid drop",
    "ct status dnat accept",
    "ct mark 0x00000001 accept",
    'iifname "pl-b*" oifname "pl-b*" meta pkttype { broadcast, multicast } accept',
    "ip saddr . ip daddr @same accept",
    "ip saddr @pools ip daddr != @pools accept",
    "ip saddr 127.0.0.0/8 drop",
    "ip daddr 224.0.0.0/4 drop",
    'iifname "pl-x*" accept',
    'iifname != "pl-x*" ip daddr @pools drop',
    'iifname "pl-e1" oifname "pl-e2" accept',
    "iifname @devs accept",
    "ether saddr @macs accept",
    "udp dport 4789 notrack",
    "tcp dport 80 counter accept",
    "tcp dport { 80, 443 } accept",
    "meta l4proto { tcp, udp } accept",
    "meta mark 0x00000001 accept",
    "ip saddr . meta l4proto . th sport @ports accept",
    "fib daddr type local accept",
    "tcp flags syn tcp option maxseg size set rt mtu",
    'log prefix "plait: " drop',
    "limit rate 10/second accept",
    "reject",
)
DNAT_RULES = (
    "dnat ip to ip daddr . meta l4proto . th dport map @ports",
    "fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @ports",
    "dnat ip to tcp dport map @one",
    "udp dport 53 redirect to :5353",
)
SNAT_RULES = (
    "ip saddr . ip daddr @same ct status dnat masquerade",
    'ip saddr @pools ip daddr != @pools oifname != "pl-*" masquerade',
    "ip saddr 127.0.0.0/8 masquerade",
    "snat ip to 10.28.1.0",
)
FILTER = "type filter hook forward priority filter; policy accept;"
NAT = "type nat hook prerouting priority dstnat; policy accept;"
SNAT = "type nat hook postrouting priority srcnat; policy accept;"
RAW = "type filter hook prerouting priority raw; policy accept;"
HOOK = HookRule("ip", "filter", "DOCKER-USER", 'oifname "pl-*" accept')


class Spy:
    """Remembers the scripts on their way to nft."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self.scripts: list[str] = []

    def run(self, script: str, handles: bool = False) -> str:
        self.scripts.append(script)
        return self._nft.run(script, handles)

    def close(self) -> None:
        self._nft.close()

    def taken(self) -> list[str]:
        """The scripts since the last call."""
        scripts, self.scripts = self.scripts, []
        return scripts


Body = Callable[[Ruleset, Spy], None]


def with_ruleset(body: Body, nft: Callable[[], Nft] = LibNft) -> None:
    def work() -> None:
        own_namespace()
        spy = Spy(nft())
        with contextlib.closing(Ruleset(spy)) as ruleset:
            body(ruleset, spy)

    in_thread(work)


def bring(ruleset: Ruleset, *objects: KernelObject) -> dict[Key, NftError]:
    """One pass to exactly these objects."""
    plan: Plan = {obj.key: obj for obj in objects}
    return ruleset.apply(order(diff(plan, ruleset.owned([]), True)))


@pytest.mark.parametrize("nft", [LibNft, ProgramNft])
@pytest.mark.parametrize(("hook", "rules"), [(FILTER, RULES), (NAT, DNAT_RULES), (SNAT, SNAT_RULES), (RAW, RULES[:5]), ("", RULES[:5])])
def test_every_rule_is_read_back_as_it_was_written(nft: Callable[[], Nft], hook: str, rules: tuple[str, ...]) -> None:
    def body(ruleset: Ruleset, _: Spy) -> None:
        chain = NftChain("c", rules, hook)
        assert not bring(ruleset, *SETS, chain)
        sh("nft add table inet other")  # makes a generation, so that the table is listed and not remembered
        assert ruleset.owned([]) == {obj.key: obj for obj in (*SETS, chain)}

    with_ruleset(body, nft)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("gateway", [True, False])
def test_the_tables_of_a_plan_are_read_back_as_they_were_written(name: str, gateway: bool) -> None:
    """Bridges stand for all links that chains hang at, or send to."""
    local = LOCALS.get(name, Local(fast_path=True, underlay="eth0"))
    plan = [obj for obj in plan_node(CASES[name], replace(local, gateway=gateway)).values() if isinstance(obj, NftChain | NftSet)]

    def body(ruleset: Ruleset, _: Spy) -> None:
        for link in sorted({link for obj in plan if obj.family == NFT_FAST_FAMILY for link in _LINK.findall(repr(obj))} - {"lo"}):
            sh(f"ip link add {link} type bridge")
        assert not bring(ruleset, *plan)
        sh("nft add table inet other")
        assert ruleset.owned([]) == {obj.key: obj for obj in plan}

    with_ruleset(body)


@pytest.mark.parametrize("nft", [LibNft, ProgramNft])
def test_a_refused_script_says_why_and_leaves_the_table_as_it_was(nft: Callable[[], Nft]) -> None:
    def body(ruleset: Ruleset, _: Spy) -> None:
        good, bad = NftChain("good", ("accept",)), NftChain("bad", ("ip saddr @nowhere accept",))
        refused = bring(ruleset, good, bad)
        assert set(refused) == {good.key, bad.key}
        assert "bad ip saddr @nowhere accept" in str(refused[bad.key]), "the line that is wrong is quoted"
        assert ruleset.owned([]) == {}

    with_ruleset(body, nft)


HOSTS = NftSet("hosts", "ipv4_addr", frozenset({"10.28.1.0"}))
LINK_SET = NftSet("links", "ifname", frozenset({'"pl-e1"'}), family=NFT_FAST_FAMILY)


def test_both_tables_are_written_in_one_transaction() -> None:
    def body(ruleset: Ruleset, spy: Spy) -> None:
        bring(ruleset, LINK_SET, HOSTS)
        spy.taken()
        more = (replace(HOSTS, elements=HOSTS.elements | {"10.28.7.0"}), replace(LINK_SET, elements=frozenset({'"pl-e2"'})))
        assert not bring(ruleset, *more)
        assert [script.count("element") for script in spy.taken()] == [3]
        assert ruleset.owned([]) == {obj.key: obj for obj in more} and spy.taken() == [], "what the kernel holds is known without a listing"
        sh("nft add table inet other")
        assert ruleset.owned([]) == {obj.key: obj for obj in more}

    with_ruleset(body)


@pytest.mark.parametrize("bad_family", FAMILIES)
def test_what_one_table_refuses_is_no_matter_of_the_other(bad_family: str) -> None:
    def body(ruleset: Ruleset, _: Spy) -> None:
        bad = NftChain("bad", ("ip saddr @nowhere accept",), family=bad_family)
        good = HOSTS if bad_family == NFT_FAST_FAMILY else LINK_SET
        assert set(bring(ruleset, bad, good)) == {bad.key}
        assert ruleset.owned([]) == {good.key: good}

    with_ruleset(body)


class Strict(LibNft):
    """As kernels before 6.16, which have no chain of a link that is not there."""

    def run(self, script: str, handles: bool = False, counters: bool = False) -> str:
        here = {name for _, name in socket.if_nameindex()}
        if missing := set(re.findall(r'device "([^"]+)"', script)) - here:
            raise NftError(f"Could not process rule: No such file or directory: {missing}")
        return super().run(script, handles, counters)


def test_a_link_of_others_that_goes_before_its_chain_is_written_is_no_refusal_and_one_of_ours_is() -> None:
    """What else was to be written is."""

    def chain(dev: str) -> NftChain:
        return NftChain(dev, ("ether saddr 02:00:00:00:00:01 drop",), ingress(dev), NFT_FAST_FAMILY)

    def body(ruleset: Ruleset, _: Spy) -> None:
        sh("ip link add vethhere type veth peer name vethin")
        kept = (HOSTS, LINK_SET, chain("vethhere"))
        assert not bring(ruleset, *kept, chain("vethgone"))
        assert ruleset.owned([]) == {obj.key: obj for obj in kept}
        assert not bring(ruleset, *kept)
        assert set(bring(ruleset, *kept, chain("pl-egone"))) == {chain("pl-egone").key}

    with_ruleset(body, Strict)


def test_a_missing_program_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NftError, match="install the package nftables"):
        ProgramNft().run("list ruleset\n")


def test_a_changed_set_sends_its_changed_elements_only() -> None:
    before = NftSet("ports", PORTS_TYPE, frozenset(f"10.0.0.1 . tcp . {n} : 10.28.1.2 . 80" for n in range(1, 400)), kind="map")
    after = replace(before, elements=before.elements - {"10.0.0.1 . tcp . 7 : 10.28.1.2 . 80"} | {"10.0.0.1 . tcp . 999 : 10.28.1.2 . 80"})
    user = NftChain("c", ("dnat ip to ip daddr . meta l4proto . th dport map @ports",), NAT)

    def body(ruleset: Ruleset, spy: Spy) -> None:
        bring(ruleset, before, user)
        spy.taken()
        bring(ruleset, after, user)
        assert [line for script in spy.taken() for line in script.splitlines()] == [
            "add table inet plait",
            "delete element inet plait ports { 10.0.0.1 . tcp . 7 }",
            "add element inet plait ports { 10.0.0.1 . tcp . 999 : 10.28.1.2 . 80 }",
        ]
        sh("nft add table inet other")
        assert ruleset.owned([]) == {obj.key: obj for obj in (after, user)}

    with_ruleset(body)


@pytest.mark.parametrize(("old", "new"), [("10.28.0.0/16", "10.28.0.0/17"), ("10.28.0.0/17", "10.28.0.0/16")])
@pytest.mark.parametrize("twice", [False, True])
def test_an_interval_may_give_way_to_one_that_overlaps_it(old: str, new: str, twice: bool) -> None:
    def made(cidr: str) -> NftSet:
        return NftSet(
            "s", "ipv4_addr . ipv4_addr" if twice else "ipv4_addr", frozenset({f"{cidr} . {cidr}" if twice else cidr}), ("interval",)
        )

    def body(ruleset: Ruleset, _: Spy) -> None:
        bring(ruleset, made(old))
        assert not bring(ruleset, made(new))
        sh("nft add table inet other")
        assert ruleset.owned([]) == {made(new).key: made(new)}

    with_ruleset(body)


REDECLARED = {
    "type": (HOSTS, replace(HOSTS, type="inet_service", elements=frozenset({"80"})), "tcp dport @hosts accept"),
    "flags": (HOSTS, replace(HOSTS, flags=("interval",), elements=frozenset({"10.28.0.0/16"})), "ip saddr @hosts accept"),
    "map": (
        HOSTS,
        NftSet("hosts", "ipv4_addr : ipv4_addr", frozenset({"10.28.1.0 : 10.28.2.0"}), kind="map"),
        "dnat ip to ip daddr map @hosts",
    ),
}


@pytest.mark.parametrize("case", REDECLARED)
@pytest.mark.parametrize("remembered", [True, False])
def test_a_set_may_change_its_declaration_under_the_rules_that_use_it(case: str, remembered: bool) -> None:
    old, new, rule = REDECLARED[case]
    hook = NAT if new.kind == "map" else FILTER
    other = NftChain("other", ("ct state established accept",), FILTER)

    def body(ruleset: Ruleset, _: Spy) -> None:
        bring(ruleset, old, other, NftChain("c", ("ip saddr @hosts accept",), hook))
        wanted = (new, other, NftChain("c", (rule,), hook))
        ops = order(diff({obj.key: obj for obj in wanted}, ruleset.owned([]), True))
        if not remembered:
            sh("nft add table inet foreign")
        assert not ruleset.apply(ops)
        sh("nft add table inet foreign2")
        assert ruleset.owned([]) == {obj.key: obj for obj in wanted}

    with_ruleset(body)


@pytest.mark.parametrize("remembered", [True, False])
def test_rules_that_stay_as_they_are_survive_a_new_declaration_of_their_set(remembered: bool) -> None:
    user = NftChain("c", ("ip saddr @hosts accept", "drop"), FILTER)
    new = replace(HOSTS, flags=("interval",), elements=frozenset({"10.28.0.0/16"}))

    def body(ruleset: Ruleset, _: Spy) -> None:
        bring(ruleset, HOSTS, user)
        ops = order(diff({obj.key: obj for obj in (new, user)}, ruleset.owned([]), True))
        assert [op.key for op in ops] == [new.key]
        if not remembered:
            sh("nft add table inet foreign")
        assert not ruleset.apply(ops)
        sh("nft add table inet foreign2")
        assert ruleset.owned([]) == {obj.key: obj for obj in (new, user)}

    with_ruleset(body)


def test_nothing_is_listed_after_a_commit_of_our_own() -> None:
    chain = NftChain("c", ("ip saddr @hosts accept",), FILTER)

    def body(ruleset: Ruleset, spy: Spy) -> None:
        ruleset.owned([])
        bring(ruleset, HOSTS, chain)
        more = replace(HOSTS, elements=frozenset({"10.28.1.0", "10.28.2.0"}))
        bring(ruleset, more, chain)
        bring(ruleset, chain, more)
        spy.taken()
        held = ruleset.owned([])
        assert spy.taken() == []
        sh("nft add table inet foreign")
        assert ruleset.owned([]) == held == {obj.key: obj for obj in (more, chain)}
        assert "list table inet plait\n" in spy.taken()

    with_ruleset(body)


def test_what_others_did_between_a_listing_and_a_commit_is_noticed() -> None:
    chain = NftChain("c", ("accept",), FILTER)

    def body(ruleset: Ruleset, _: Spy) -> None:
        bring(ruleset, HOSTS, chain)
        ops = order(diff({HOSTS.key: replace(HOSTS, elements=frozenset()), chain.key: chain}, ruleset.owned([]), True))
        sh("nft flush chain inet plait c")
        ruleset.apply(ops)
        assert ruleset.owned([])[chain.key] == replace(chain, rules=())

    with_ruleset(body)


def test_a_put_that_did_not_know_what_was_there_is_followed_by_a_listing() -> None:
    def body(ruleset: Ruleset, _: Spy) -> None:
        bring(ruleset, HOSTS)
        ruleset.owned([])
        other = replace(HOSTS, elements=frozenset({"10.28.9.0"}))
        ruleset.apply([Op("put", other)])
        assert ruleset.owned([])[HOSTS.key] == replace(HOSTS, elements=HOSTS.elements | other.elements)

    with_ruleset(body)


def test_a_hook_holds_our_rule_once_at_its_top_and_everything_of_others() -> None:
    def body(ruleset: Ruleset, _: Spy) -> None:
        sh("nft 'add table ip filter; add chain ip filter DOCKER-USER'")
        sh("nft add rule ip filter DOCKER-USER ip daddr 10.0.0.1 counter accept comment '\"mine\"'")
        sh("nft add rule ip filter DOCKER-USER return")
        before = sh("nft list chain ip filter DOCKER-USER")
        for _ in range(2):
            assert not ruleset.apply([Op("put", HOOK)])
        lines = [line.strip() for line in sh("nft list chain ip filter DOCKER-USER").splitlines()]
        assert lines[2] == 'oifname "pl-*" accept comment "plait"' and len(lines) == len(before.splitlines()) + 1
        assert ruleset.owned([HOOK.key]) == {HOOK.key: HOOK}
        for _ in range(2):
            assert not ruleset.apply([Op("del", None, HOOK)])
        assert sh("nft list chain ip filter DOCKER-USER") == before

    with_ruleset(body)


def test_a_hook_that_appears_later_gets_its_rule() -> None:
    """Docker makes its chain when it starts, which may be after the agent."""

    def body(ruleset: Ruleset, _: Spy) -> None:
        assert ruleset.owned([HOOK.key]) == {HOOK.key: HOOK}, "an absent chain leaves nothing to do"
        assert not ruleset.apply([Op("put", HOOK)])
        sh("nft 'add table ip filter; add chain ip filter DOCKER-USER'")
        assert ruleset.owned([HOOK.key]) == {}
        ruleset.apply([Op("put", HOOK)])
        assert ruleset.owned([]) == {HOOK.key: HOOK}

    with_ruleset(body)


def test_a_hook_that_is_not_there_is_asked_for_again_when_rules_have_changed() -> None:
    def body(ruleset: Ruleset, spy: Spy) -> None:
        for number in range(3):
            held = ruleset.owned([HOOK.key])
            assert held[HOOK.key] == HOOK
            if number:
                assert spy.taken() == [], "our own commit makes no chain of others"
            bring(ruleset, replace(HOSTS, elements=frozenset({f"10.28.{number}.0"})))
            spy.taken()
        assert ruleset.known()
        sh("nft 'add table ip filter; add chain ip filter DOCKER-USER'")
        assert not ruleset.known()
        assert HOOK.key not in ruleset.owned([HOOK.key]) and ruleset.known()

    with_ruleset(body)


def test_what_others_did_during_a_commit_is_noticed() -> None:
    chain = NftChain("c", ("accept",), FILTER)

    class Meddler(LibNft):
        def run(self, script: str, handles: bool = False) -> str:
            if "delete element" in script:
                sh("nft flush chain inet plait c")
            return super().run(script, handles)

    def body(ruleset: Ruleset, _: Spy) -> None:
        bring(ruleset, HOSTS, chain)
        bring(ruleset, replace(HOSTS, elements=frozenset()), chain)
        assert ruleset.owned([])[chain.key] == replace(chain, rules=())

    with_ruleset(body, Meddler)


class Watched:
    """libnftables, where it is counted how many threads are in it at once."""

    def __init__(self, lib: object) -> None:
        self._lib, self.within, self.most = lib, 0, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._lib, name)

    def nft_run_cmd_from_filename(self, context: int, path: bytes) -> int:
        self.within += 1
        self.most = max(self.most, self.within)
        time.sleep(0.02)
        self.within -= 1
        return 0


def test_threads_enter_the_library_one_at_a_time() -> None:
    """It keeps state outside its contexts: with two of them in it, agents ended by a segmentation fault under 50 attaches at once."""
    one, other = LibNft(), LibNft()
    watched = Watched(one._lib)
    one._lib = other._lib = watched  # type: ignore[assignment]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda nft: nft.run(""), (one, other) * 4))
    assert watched.most == 1


def test_the_library_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask where it is starts a program each time."""
    first = open_nft()
    monkeypatch.setattr("ctypes.util.find_library", lambda name: pytest.fail(f"{name} was looked for again"))
    assert open_nft() is first


def test_what_deletes_elements_does_not_wait_until_the_kernel_has_freed_them() -> None:
    """Whoever closes a socket of nft does: 4-20 ms."""
    fewer, took = replace(HOSTS, elements=frozenset()), list[float]()

    def body(ruleset: Ruleset, _: Spy) -> None:
        bring(ruleset, HOSTS)
        for number in range(42):
            before, after = (HOSTS, fewer) if number % 2 == 0 else (fewer, HOSTS)
            began = time.perf_counter()
            assert not ruleset.apply([Op("put", after, before)])
            took.append(time.perf_counter() - began)

    with_ruleset(body, keep_nft)
    assert statistics.median(took) < 0.003


def test_a_kept_context_is_another_one_after_a_refusal_and_after_a_listing() -> None:
    made: list[object] = []

    class Counted(LibNft):
        def _context(self) -> int:
            made.append(None)
            return super()._context()

    def body(_: Ruleset, spy: Spy) -> None:
        for script in ("add table inet plait\n", "add chain inet plait c\n"):
            spy.run(script)
        assert len(made) == 1
        with pytest.raises(NftError, match="No such file"):
            spy.run("add rule inet plait nowhere accept\n")
        spy.run("add rule inet plait c accept\n")
        assert len(made) == 2, "nothing of a refusal is left for the next one"
        assert "accept" in spy.run("list table inet plait\n")
        spy.run("add rule inet plait c drop\n")
        assert len(made) == 3, "what was listed is in memory no longer"
        spy.close()
        spy.run("delete table inet plait\n")
        assert len(made) == 4, "closed is not the end"

    with_ruleset(body, lambda: Counted(keeps=True))
