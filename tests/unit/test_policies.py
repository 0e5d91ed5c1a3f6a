# SPDX-License-Identifier: Apache-2.0
"""The agent's part of `plait policy`: what gets into the store, when it is in force, what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.kernelwork import PassReport
from plait.agent.policies import Policies
from plait.model.cluster import PortMapping
from plait.model.errors import ConfigError, Conflict, KernelError, NotFound, StoreUnavailable
from plait.model.objects import NftChain, NftSet
from plait.policy.evaluate import Packet
from plait.runtimes.api import AttachRequest


class Counted:
    """A kernel that has counted `packets`."""

    def __init__(self, packets: Mapping[Packet, int] | None = None, able: bool = True) -> None:
        self.packets, self.able, self.broken = dict(packets or {}), able, False

    def capabilities(self) -> frozenset[str]:
        return frozenset({"counting"} if self.able else ())

    def judged(self) -> Mapping[Packet, int]:
        if self.broken:
            raise OSError("no answer")
        return dict(self.packets)


DENY = b"""apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}
"""
TEAM = b"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n"


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


def policies_of(node: FakeNode) -> Policies:
    return Policies(node.view, node.store, node.full_pass, Counted())


async def attach(node: FakeNode, name: str, app: str, *ports: PortMapping) -> str:
    request = AttachRequest(f"{node.name}.{name}", "default", "sandbox", name, name, labels={"app": app}, ports=ports)
    return str((await node.ops.attach(request)).address)


def elements(node: FakeNode, name: str) -> frozenset[str]:
    found = node.kernel.objects.get(("nft", "map" if name.startswith("policy_") else "set", name))
    return found.elements if isinstance(found, NftSet) else frozenset()


def entrance_of(node: FakeNode, dev: str) -> tuple[str, ...]:
    """The rules that what comes in by a link meets first."""
    found = node.kernel.objects.get(("nft", "chain", dev, "netdev"))
    return found.rules if isinstance(found, NftChain) else ()


async def test_a_file_is_taken_over_whole_and_said_what_of_it_was_new(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        policies = policies_of(a)
        assert [(row["name"], row["change"]) for row in await policies.apply(DENY + TEAM)] == [
            ("default/db", "created"),
            ("shop", "created"),
        ]
        assert [row["change"] for row in await policies.apply(DENY + TEAM)] == ["unchanged", "unchanged"]
        changed = DENY.replace(b"app: web", b"app: x") + TEAM.replace(b"labels: {team: a}", b"labels: {}")
        assert [row["change"] for row in await policies.apply(changed)] == ["changed", "removed"]
        await b.until(lambda: bool(b.view.snapshot.policies))
        assert b.view.snapshot.policies == a.view.snapshot.policies and not a.view.snapshot.namespaces


@pytest.mark.parametrize(
    ("wrong", "line"),
    [(DENY + b"---\nkind: Pod\napiVersion: v1\n", 6), (DENY + b"\xff", 5), (DENY[:-3], 5)],
    ids=["one of two", "bytes", "cut"],
)
async def test_of_a_wrong_file_nothing_is_taken_over(store: Cuttable, tmp_path: Path, wrong: bytes, line: int) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await policies_of(a).apply(DENY)
        before = await store.list("policies/")
        with pytest.raises(ConfigError, match=f"line {line}"):
            await policies_of(a).apply(wrong.replace(b"app: web", b"app: other"))
        assert await store.list("policies/") == before


async def test_it_is_in_force_here_when_apply_answers(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        a.fast_path = True
        address = await attach(a, "db", "db")
        await a.converge()
        assert ("nft", "chain", a.ops.endpoints("sandbox")["A.db"].dev, "netdev") in a.kernel.objects
        await policies_of(a).apply(DENY)
        assert elements(a, "policed") == {address}
        await policies_of(a).remove("db")
        await a.converge()
        assert not [key for key in a.kernel.objects if "polic" in " ".join(key)], "and nothing is left of it"


async def test_a_container_that_comes_has_its_policy_before_its_attach_answers_or_does_not_come(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        a.fast_path = True
        await policies_of(a).apply(DENY)
        address = await attach(a, "db", "db", PortMapping("tcp", 8080, 80))
        dev = a.ops.endpoints("sandbox")["A.db"].dev
        assert elements(a, "policed") == {address} and [e.split(" : ")[0] for e in elements(a, "policy_in")] == [address]
        assert ("link", dev) in a.kernel.objects and not [rule for rule in entrance_of(a, dev) if "fwd" in rule]
        assert await a.converge() == 0
        a.kernel.fail_next(("nft", "map", "policy_in"), times=2)
        with pytest.raises(KernelError):
            await attach(a, "db2", "db")
        assert "A.db2" not in a.ops.endpoints("sandbox") and not a.journal.load("endpoint").keys() - {"A.db"}
        await a.ops.detach("A.db")
        await a.converge()
        assert not elements(a, "policed") and ("nft", "chain", "policies") not in a.kernel.objects


async def test_ports_that_are_published_under_policies_leave_what_they_want_tracked(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        a.fast_path = True
        await attach(a, "db", "db")
        await policies_of(a).apply(DENY)
        await a.ops.publish("A.db", [PortMapping("tcp", 8080, 80)])
        within = a.kernel.objects["nft", "chain", "within"]
        assert isinstance(within, NftChain) and "ip daddr @policed accept" in within.rules
        assert await a.converge() == 0
        await a.ops.unpublish("A.db")
        assert await a.converge() == 0


async def test_what_the_kernel_refuses_is_told_and_is_the_clusters_will_all_the_same(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await attach(a, "db", "db")
        a.kernel.fail_next(("nft", "chain", "policies"))
        with pytest.raises(KernelError):
            await policies_of(a).apply(DENY)
        assert [row["name"] for row in policies_of(a).rows()] == ["db"]
        await a.converge()
        assert elements(a, "policed")


async def test_without_the_store_nothing_is_applied(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        store.away = True
        with pytest.raises(StoreUnavailable):
            await policies_of(a).apply(DENY)
        assert not a.view.snapshot.policies


async def test_what_there_is_and_what_it_decides_is_told(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        policies = policies_of(a)
        web, db = await attach(a, "web", "web"), await attach(a, "db", "db")
        await policies.apply(DENY + TEAM)
        (row,) = policies.rows()
        assert row == {
            "namespace": "default",
            "name": "db",
            "tier": "NetworkPolicy",
            "priority": 0,
            "ingress": 1,
            "egress": -1,
            "selects": 1,
            "audit": False,
            "allowed": 0,
            "denied": 0,
        }
        view = policies.show("default/db")
        assert view["workloads"] == ["A/db"] and "podSelector" in view["document"]
        assert policies.namespaces() == [
            {"name": "default", "labels": {}, "workloads": 2},
            {"name": "shop", "labels": {"team": "a"}, "workloads": 0},
        ]
        told = policies.test("web", "db", "tcp", 80)
        assert (
            told["allowed"]
            and told["source"] == f"web ({web}, default on A)"
            and told["destination"] == f"db ({db}, default on A) tcp port 80"
        )
        assert [(s["direction"], s["policy"], s["rule"]) for s in told["sides"]] == [
            ("egress", "", ""),
            ("ingress", "default/db", "ingress[0]"),
        ]
        assert not policies.test("198.51.100.9", db, "tcp", 80)["allowed"]
        assert policies.test("A", "db", "icmp", 0)["allowed"], "its own host"
        assert policies.test("198.51.100.9", "198.51.100.8", "tcp", 80)["sides"] == []


async def test_names_that_mean_nothing_or_too_much_are_refused(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        policies = policies_of(a)
        await policies.apply(DENY + b"---\n" + DENY.replace(b"{name: db}", b"{name: db, namespace: shop}"))
        for ident in ("A.web", "A.web2"):
            await a.ops.attach(AttachRequest(ident, "default", "sandbox", ident, "web"))
        with pytest.raises(Conflict, match=r"default/db, shop/db; say which"):
            policies.show("db")
        with pytest.raises(NotFound, match="no policy 'x'"):
            await policies.remove("x")
        with pytest.raises(NotFound, match="'x' is no address, container or node"):
            policies.test("x", "web", "tcp", 1)
        with pytest.raises(Conflict, match="name addresses"):
            policies.test("198.51.100.9", "web", "tcp", 1)
        with pytest.raises(Conflict, match="no addresses of one family"):
            policies.test("2001:db8::1", "web", "tcp", 1)
        await policies.remove("shop/db")
        assert policies.show("db")["namespace"] == "default"


async def test_a_kernel_that_cannot_be_read_lets_nobody_in_unguarded(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await policies_of(a).apply(DENY)
        refused = KernelError("list", "the kernel", 5)
        a.next_report = PassReport(0, {("pass",): refused})
        with pytest.raises(KernelError):
            await attach(a, "db", "db")
        await asyncio.sleep(0)
        assert not a.ops.endpoints("sandbox")
