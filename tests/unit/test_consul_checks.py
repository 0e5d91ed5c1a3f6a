# SPDX-License-Identifier: Apache-2.0
"""Checks, maintenance, agent health and the foreign part of the catalogue over HTTP, through the agent's own parts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import ClientSession
from tests.support.cluster import FakeNode, nodes

from plait.agent.catalog import Catalog
from plait.agent.checkup import CheckPolicy, Checkup
from plait.agent.discovery import Discovery
from plait.agent.journal import Write
from plait.agent.outside import OutsideCatalog
from plait.model.cluster import Instance
from plait.model.discovery import Check, CheckDefinition
from plait.serve.consul import ConsulApi
from plait.services.health import Result
from plait.store.memory import MemoryStore


class Never:
    async def run(self, definition: CheckDefinition) -> Result:
        raise AssertionError("no check is run here")


class Api:
    def __init__(self, session: ClientSession, port: int) -> None:
        self._session, self._url = session, f"http://127.0.0.1:{port}/v1/"

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
        async with self._session.request(method, self._url + path, data=json.dumps(body), headers=headers) as answer:
            return answer.status, await answer.text()

    async def put(self, path: str, body: object = None) -> tuple[int, str]:
        return await self.ask("PUT", path, body)

    async def get(self, path: str) -> Any:
        status, text = await self.ask("GET", path)
        assert status == 200, text
        return json.loads(text)

    async def statuses(self, service: str) -> list[tuple[str, str]]:
        """(check, status) of the service's first instance."""
        return [(check["CheckID"], check["Status"]) for check in (await self.get(f"health/service/{service}"))[0]["Checks"]]


@contextlib.asynccontextmanager
async def served(node: FakeNode, scripts: bool = False) -> AsyncIterator[Api]:
    catalog = Catalog(node.view, node.journal, node.publisher.publish, lambda: 0)
    checkup = Checkup(node.view, node.journal, Never(), CheckPolicy(scripts), catalog.deregister, time.monotonic, lambda: 0.9)
    api = ConsulApi(catalog, node.name, "dc1", checks=checkup, outside=OutsideCatalog(node.view, node.store))
    server = api.server()
    await server.start("127.0.0.1", 0)
    try:
        async with ClientSession() as session:
            yield Api(session, server.port)
    finally:
        await server.stop()
        await checkup.flush()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    store = MemoryStore()
    async with nodes(store, tmp_path, "A") as (made,):
        yield made
    await store.close()


@pytest.fixture
async def api(node: FakeNode) -> AsyncIterator[Api]:
    async with served(node) as made:
        yield made


OK = (200, "")


async def test_a_ttl_check_is_registered_with_its_service_and_told_of(api: Api) -> None:
    assert await api.put("agent/service/register", {"Name": "web", "Check": {"TTL": "1h"}}) == OK
    assert await api.statuses("web") == [("serfHealth", "passing"), ("service:web", "critical")]
    assert await api.get("health/service/web?passing") == []
    for word, status in (("pass", "passing"), ("warn", "warning"), ("fail", "critical")):
        assert await api.put(f"agent/check/{word}/service:web?note=so%20{word}") == OK
        check = (await api.get("agent/checks"))["service:web"]
        assert (check["Status"], check["Output"], check["Type"], check["ServiceName"]) == (status, f"so {word}", "ttl", "web")
    assert await api.put("agent/check/update/service:web", {"Status": "passing", "Output": "x" * 5000}) == OK
    (check,) = await api.get("health/checks/web")
    assert check["Output"] == "x" * 4096 + " ... (captured 4096 of 5000 bytes)"
    assert len(await api.get("health/service/web?passing=1")) == 1
    assert [c["CheckID"] for c in await api.get("health/state/passing")] == ["serfHealth", "service:web"]


async def test_checks_of_the_node_count_for_every_service(api: Api) -> None:
    await api.put("agent/service/register", {"Name": "web"})
    assert await api.put("agent/check/register", {"Name": "disk", "TTL": "1h", "Status": "warning"}) == OK
    assert await api.statuses("web") == [("disk", "warning"), ("serfHealth", "passing")]
    assert await api.put("agent/check/deregister/disk") == OK
    assert await api.statuses("web") == [("serfHealth", "passing")]


async def test_a_check_is_added_to_a_service_and_goes_with_it(api: Api) -> None:
    await api.put("agent/service/register", {"Name": "web", "ID": "web-1"})
    await api.put("agent/check/register", {"Name": "extra", "ServiceID": "web-1", "TTL": "1h"})
    assert ("extra", "critical") in await api.statuses("web")
    assert await api.put("agent/service/deregister/web-1") == OK
    assert await api.get("agent/checks") == {}


ADDING = (
    ("agent/check/register", {"Name": "more", "ServiceID": "web", "TTL": "1h"}),
    ("agent/service/maintenance/web?enable=true", None),
    ("agent/service/register", {"Name": "web", "Check": {"TTL": "2h"}}),
)


@pytest.mark.parametrize(("path", "body"), ADDING, ids=["check", "maintenance", "service"])
async def test_no_check_is_left_without_its_service(
    api: Api, node: FakeNode, path: str, body: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is deregistered while the check is on its way to the journal."""
    assert await api.put("agent/service/register", {"Name": "web", "Check": {"TTL": "1h"}}) == OK
    write, on_its_way = node.journal.write, asyncio.Event()

    async def slow(writes: Sequence[Write]) -> None:
        if any(one.kind == "check" and one.body is not None for one in writes):
            on_its_way.set()
            await asyncio.sleep(0.3)
        await write(writes)

    monkeypatch.setattr(node.journal, "write", slow)
    adding = asyncio.create_task(api.put(path, body))
    await on_its_way.wait()
    removing = asyncio.create_task(api.put("agent/service/deregister/web"))
    assert [await adding, await removing] == [OK, OK]
    assert await api.get("agent/services") == {} and not [r for r in node.view.own_records().values() if isinstance(r, Check)]
    assert node.journal.load("check") == {}


async def test_a_service_that_was_critical_for_too_long_goes_in_its_turn(node: FakeNode) -> None:
    """Not while a client is about to add a check to it."""
    catalog = Catalog(node.view, node.journal, node.publisher.publish, lambda: 0)
    checkup = Checkup(node.view, node.journal, Never(), CheckPolicy(), catalog.deregister, time.monotonic, lambda: 0.9)
    await catalog.register(Instance("web", "web", "A"))
    async with checkup.changing("web"):
        removing = asyncio.create_task(Discovery.remove(cast(Any, SimpleNamespace(catalog=catalog, checkup=checkup)), "web"))
        await asyncio.sleep(0.1)
        assert ("A", "web") in node.view.snapshot.instances
        await checkup.add([Check("more", "A", "more", service_id="web", definition=CheckDefinition("ttl", ttl=60.0))])
    await removing
    assert ("A", "web") not in node.view.snapshot.instances and not checkup.of_service("web")


async def test_checks_stay_unless_they_are_to_be_replaced(api: Api) -> None:
    await api.put("agent/service/register", {"Name": "web", "Check": {"CheckID": "one", "TTL": "1h"}})
    await api.put("agent/service/register", {"Name": "web", "Check": {"CheckID": "two", "TTL": "1h"}})
    assert sorted(await api.get("agent/checks")) == ["one", "two"]
    await api.put("agent/service/register?replace-existing-checks", {"Name": "web", "Check": {"CheckID": "three", "TTL": "1h"}})
    assert sorted(await api.get("agent/checks")) == ["three"]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("agent/check/register", {"TTL": "1s"}, 400, "Missing check name"),
        ("agent/check/register", {"Name": "c", "TTL": "1s", "ServiceID": "no"}, 404, 'ServiceID "no" does not exist'),
        ("agent/check/deregister/no", None, 404, 'Unknown check ID "no". Ensure that the check ID is passed, not the check name.'),
        ("agent/check/pass/no", None, 404, 'Unknown check ID "no". Ensure that the check ID is passed, not the check name.'),
        ("agent/check/pass/", None, 400, "Missing check ID"),
        ("agent/check/update/no", {"Status": "great"}, 400, "Invalid check status: 'great'"),
        ("agent/check/pass/http", None, 500, 'CheckID "http" does not have associated TTL'),
        ("agent/maintenance", None, 400, "Missing value for enable"),
        ("agent/maintenance?enable=x", None, 400, 'Invalid value for enable: "x"'),
        ("agent/service/maintenance/?enable=true", None, 400, "Missing service ID"),
        ("agent/service/maintenance/web", None, 400, "Missing value for enable"),
        ("catalog/register", {"Node": "far"}, 400, "Must provide address if SkipNodeUpdate is not set"),
        ("catalog/deregister", {}, 400, "Must provide node"),
    ],
)
async def test_what_is_wrong_is_said(api: Api, path: str, body: object, status: int, text: str) -> None:
    await api.put("agent/check/register", {"Name": "http", "HTTP": "http://127.0.0.1:1/", "Interval": "1h"})
    assert await api.put(path, body) == (status, text)


async def test_commands_are_refused_unless_the_operator_allows_them(node: FakeNode) -> None:
    body = {"Name": "web", "Check": {"Args": ["true"], "Interval": "1h"}}
    async with served(node) as api:
        status, text = await api.put("agent/service/register", body)
        assert status == 400 and "Scripts are disabled on this agent" in text
        assert await api.get("agent/services") == {}
    async with served(node, scripts=True) as api:
        assert await api.put("agent/service/register", body) == OK


async def test_maintenance_of_a_service_and_of_the_node(api: Api) -> None:
    await api.put("agent/service/register", {"Name": "web"})
    for _ in range(2):
        assert await api.put("agent/service/maintenance/web?enable=true&reason=new%20disk") == OK
    check = (await api.get("agent/checks"))["_service_maintenance:web"]
    assert (check["Status"], check["Notes"], check["ServiceID"]) == ("critical", "new disk", "web")
    assert await api.get("health/service/web?passing") == []
    assert await api.put("agent/service/maintenance/web?enable=false") == OK
    assert await api.put("agent/maintenance?enable=true") == OK
    assert (await api.get("agent/checks"))["_node_maintenance"]["Notes"].startswith("Maintenance mode is enabled for this node")
    assert await api.get("health/service/web?passing") == []
    assert await api.put("agent/maintenance?enable=false") == OK
    assert len(await api.get("health/service/web?passing")) == 1
    status, text = await api.put("agent/service/maintenance/no?enable=true")
    assert status == 404 and text.startswith('Unknown service ID "no"')


@pytest.mark.parametrize(("status", "code"), [("passing", 200), ("warning", 429), ("critical", 503)])
async def test_the_agent_tells_health_by_its_status_code(api: Api, status: str, code: int) -> None:
    await api.put("agent/service/register", {"Name": "web", "ID": "w", "Check": {"TTL": "1h", "Status": status}})
    await api.put("agent/service/register", {"Name": "web", "ID": "good"})
    for path in ("agent/health/service/name/web", "agent/health/service/id/w"):
        assert await api.ask("GET", f"{path}?format=text") == (code, status)
        assert await api.ask("GET", path, Accept="text/plain") == (code, status)
        answered, body = await api.ask("GET", path)
        found = json.loads(body)
        one = found[-1] if isinstance(found, list) else found
        assert (answered, one["AggregatedStatus"], one["Service"]["ID"], len(one["Checks"])) == (code, status, "w", 1)
    assert await api.ask("GET", "agent/health/service/id/good?format=text") == (200, "passing")


async def test_health_of_what_is_not_there(api: Api) -> None:
    assert await api.ask("GET", "agent/health/service/name/no?format=text") == (404, "ServiceName no Not Found")
    status, body = await api.ask("GET", "agent/health/service/id/no")
    assert (status, json.loads(body)) == (404, {"AggregatedStatus": "critical", "Service": None, "Checks": None})


async def test_what_no_agent_owns_is_put_into_the_catalogue_and_removed(api: Api) -> None:
    far = {"Node": "far", "Address": "far.example", "Service": {"Service": "db", "Port": 5432}}
    assert await api.put("catalog/register", {**far, "Check": {"Name": "up", "Status": "passing", "ServiceID": "db"}}) == (200, "true")
    assert [n["Node"] for n in await api.get("catalog/nodes")] == ["A", "far"]
    assert [c["CheckID"] for c in await api.get("health/node/far")] == ["up"]
    ((entry,), listed) = (await api.get("health/service/db?passing"), await api.get("catalog/node-services/far"))
    assert (entry["Node"]["Address"], entry["Service"]["Port"]) == ("far.example", 5432)
    assert [service["ID"] for service in listed["Services"]] == ["db"]
    assert await api.put("catalog/register", {"Node": "far", "SkipNodeUpdate": True, "Service": {"Service": "db", "ID": "db2"}}) == (
        200,
        "true",
    )
    assert await api.put("catalog/deregister", {"Node": "far", "ServiceID": "db"}) == (200, "true")
    assert await api.get("health/node/far") == []
    assert [s["ServiceID"] for s in await api.get("catalog/service/db")] == ["db2"]
    for _ in range(2):
        assert await api.put("catalog/deregister", {"Node": "far"}) == (200, "true")
    assert await api.get("catalog/node/far") is None


async def test_an_agents_own_registration_counts_and_the_other_is_kept(api: Api) -> None:
    await api.put("agent/service/register", {"Name": "web", "Port": 80})
    await api.put("catalog/register", {"Node": "A", "Address": "192.0.2.99", "Service": {"Service": "web", "Port": 81}})
    assert [s["ServicePort"] for s in await api.get("catalog/service/web")] == [80]
    assert [n["Address"] for n in await api.get("catalog/nodes")] == ["198.18.0.1"]
    await api.put("catalog/deregister", {"Node": "A"})
    assert list(await api.get("agent/services")) == ["web"]
    await api.put("catalog/register", {"Node": "A", "Address": "192.0.2.99", "Service": {"Service": "web", "Port": 81}})
    await api.put("agent/service/deregister/web")
    assert [s["ServicePort"] for s in await api.get("catalog/service/web")] == [81]
    assert await api.get("agent/services") == {}


async def test_all_healthy_services_in_one_answer(api: Api) -> None:
    await api.put("agent/service/register", {"Name": "web"})
    await api.put("agent/service/register", {"Name": "sick", "Check": {"TTL": "1h"}})
    assert list(await api.get("health/services")) == ["web"]
    assert list(await api.get("health/services?passing=false")) == ["sick", "web"]


async def test_checks_are_published_and_survive_a_restart(node: FakeNode) -> None:
    async with served(node) as api:
        await api.put("agent/service/register", {"Name": "web", "Check": {"TTL": "1h", "Status": "passing"}})
        await node.publisher.publish()
        assert {key for key in ("checks/A/service:web", "instances/A/web") if node.view.item(key)} == {
            "checks/A/service:web",
            "instances/A/web",
        }
    await node.stop()
    await node.start()
    async with served(node) as api:
        assert await api.statuses("web") == [("serfHealth", "passing"), ("service:web", "passing")]
        await api.put("agent/service/deregister/web")
        await node.publisher.publish()
        assert node.view.item("checks/A/service:web") is None


async def test_a_check_wakes_who_asks_for_its_service_only(api: Api, node: FakeNode) -> None:
    await api.put("agent/service/register", {"Name": "web", "Check": {"TTL": "1h"}})
    await api.put("agent/service/register", {"Name": "db"})
    await node.publisher.publish()

    async def index(path: str) -> str:
        async with api._session.get(api._url + path) as answer:
            return answer.headers["X-Consul-Index"]

    web_index = await index("health/service/web")
    others = [await index("health/service/db"), await index("catalog/service/web")]
    waiting = asyncio.create_task(index(f"health/service/web?index={web_index}&wait=60s"))
    await asyncio.sleep(0.05)
    await api.put("agent/check/pass/service:web")
    assert int(await asyncio.wait_for(waiting, 5)) > int(web_index)
    assert [await index("health/service/db"), await index("catalog/service/web")] == others
