# SPDX-License-Identifier: Apache-2.0
"""The Consul API over real HTTP on loopback, with a backend that keeps its instances in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession
from yarl import URL

from plait.http import server as http_server
from plait.http.server import HttpServer
from plait.model.cluster import Container, Instance, Node, Snapshot
from plait.serve import consul_router
from plait.serve.consul import ConsulApi

SEED = b'{"ID": "web", "Name": "web", "Tags": ["http"], "Address": "", "Port": 80}'


class Backend:
    """A cluster of A (which carries the store) and B, seen from A."""

    def __init__(self) -> None:
        nodes = {
            "A": Node("A", "id-a", IPv4Address("192.0.2.1"), meta={"server": "1"}),
            "B": Node("B", "id-b", IPv4Address("192.0.2.2"), meta={"rack": "r2"}),
        }
        self.now = Snapshot("A", 10, nodes, frozenset(nodes))
        self.contact: int | None = 0
        self.failure: Exception | None = None
        self.waiting: set[asyncio.Event] = set()

    def snapshot(self) -> Snapshot:
        return self.now

    def change(self, **fields: Any) -> None:
        self.now = replace(self.now, revision=self.now.revision + 1, **fields)
        for event in self.waiting:
            event.set()

    def add(self, instance: Instance) -> Instance:
        revision = self.now.revision + 1
        known = self.now.instances.get((instance.node, instance.id))
        made = replace(instance, create_index=known.create_index if known else revision, modify_index=revision)
        self.change(instances={**self.now.instances, (made.node, made.id): made})
        return made

    def run(self, container: Container) -> None:
        self.change(containers={**self.now.containers, (container.node, container.id): container})

    async def register(self, instance: Instance) -> Instance:
        if self.failure is not None:
            raise self.failure
        return self.add(instance)

    async def deregister(self, service_id: str) -> bool:
        if ("A", service_id) not in self.now.instances:
            return False
        self.change(instances={key: i for key, i in self.now.instances.items() if key != ("A", service_id)})
        return True

    async def changed(self, timeout_s: float) -> None:
        event = asyncio.Event()
        self.waiting.add(event)
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            pass
        finally:
            self.waiting.discard(event)

    def last_contact_ms(self) -> int | None:
        return self.contact


@dataclass
class Answer:
    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def index(self) -> int:
        return int(self.headers["X-Consul-Index"])


class Client:
    def __init__(self, session: ClientSession, port: int) -> None:
        self.session, self.port = session, port

    async def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """`path` is sent exactly as written."""
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self.session.request(method, url, data=body, headers=headers, allow_redirects=False) as answer:
            return Answer(answer.status, await answer.text(), answer.headers)

    async def get(self, path: str) -> Answer:
        return await self.ask("GET", path)

    async def put(self, path: str, body: object = None) -> Answer:
        return await self.ask("PUT", path, body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def api(backend: Backend) -> ConsulApi:
    return ConsulApi(backend, "A", "dc1")


@pytest.fixture
async def server(api: ConsulApi) -> AsyncIterator[HttpServer]:
    server = api.server()
    await server.start("127.0.0.1", 0)
    yield server
    await server.stop()


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[Client]:
    async with ClientSession(auto_decompress=False) as session:
        session.headers["Accept-Encoding"] = "identity"
        yield Client(session, server.port)


def web_box(node: str, address: str, network: str = "default") -> Container:
    return Container(f"{node}-web", "web", node, "docker", addresses={network: IPv4Address(address)})


# --- registration


async def test_the_seeds_curl_is_answered_with_the_containers_address(client: Client, backend: Backend) -> None:
    backend.run(web_box("B", "10.28.16.2"))
    backend.run(web_box("A", "10.28.0.2"))
    answer = await client.ask("PUT", "/v1/agent/services", SEED, **{"Content-Type": "application/x-www-form-urlencoded"})
    revision = backend.now.revision
    assert answer.status == 200
    assert list(answer.json.items()) == [
        ("ID", "web"),
        ("Name", "web"),
        ("Tags", ["http"]),
        ("Address", "10.28.0.2"),
        ("TaggedAddresses", {"lan": "10.28.0.2", "wan": "10.28.0.2"}),
        ("Meta", {}),
        ("Port", 80),
        ("EnableTagOverride", False),
        ("CreateIndex", revision),
        ("ModifyIndex", revision),
    ]
    assert backend.now.instances["A", "web"].container == "web"


async def test_a_container_elsewhere_gives_its_address_but_is_not_followed(client: Client, backend: Backend) -> None:
    backend.run(web_box("B", "10.28.16.2"))
    assert (await client.put("/v1/agent/services", SEED)).json["Address"] == "10.28.16.2"
    assert backend.now.instances["A", "web"].container == ""


async def test_registering_again_while_the_container_is_down_keeps_it_bound_and_down(client: Client, backend: Backend) -> None:
    backend.add(Instance("web", "web", "A", "10.28.0.2", 80, container="web", down=True))
    assert (await client.put("/v1/agent/service/register", SEED)).status == 200
    kept = backend.now.instances["A", "web"]
    assert (kept.address, kept.container, kept.down) == ("10.28.0.2", "web", True)
    health = (await client.get("/v1/health/service/web")).json
    assert [check["Status"] for check in health[0]["Checks"]] == ["passing", "critical"]
    assert (await client.get("/v1/health/service/web?passing")).json == []


async def test_a_given_address_is_kept(client: Client, backend: Backend) -> None:
    backend.run(web_box("A", "10.28.0.2"))
    await client.put("/v1/agent/service/register", {"Name": "web", "Address": "192.0.2.77"})
    assert backend.now.instances["A", "web"] == Instance(
        "web", "web", "A", "192.0.2.77", create_index=backend.now.revision, modify_index=backend.now.revision
    )


async def test_writes_succeed_with_an_empty_body(client: Client) -> None:
    made = await client.put("/v1/agent/service/register?replace-existing-checks=true", {"name": "web", "id": "w/1 ü"})
    assert (made.status, made.text) == (200, "")
    gone = await client.put("/v1/agent/service/deregister/w%2F1%20%C3%BC")
    assert (gone.status, gone.text) == (200, "")
    again = await client.put("/v1/agent/service/deregister/w%2F1%20%C3%BC")
    assert again.status == 404
    assert again.text == 'Unknown service ID "w/1 ü". Ensure that the service ID is passed, not the service name.'


async def test_the_registry_itself_cannot_be_registered(client: Client) -> None:
    assert (await client.put("/v1/agent/service/register", {"Name": "consul"})).status == 400


# --- this agent


async def test_agent_services_are_those_of_this_node(client: Client, backend: Backend) -> None:
    assert (await client.get("/v1/agent/services")).text == "{}"
    backend.add(Instance("x", "x", "B"))
    backend.add(Instance("web", "web", "A", "10.28.0.2", 80, ("http",), {"k": "v"}, weight_warning=0))
    answer = await client.get("/v1/agent/services")
    assert "X-Consul-Index" not in answer.headers
    assert answer.json == {
        "web": {
            "ID": "web",
            "Service": "web",
            "Tags": ["http"],
            "Meta": {"k": "v"},
            "Port": 80,
            "Address": "10.28.0.2",
            "Weights": {"Passing": 1, "Warning": 0},
            "EnableTagOverride": False,
            "Datacenter": "dc1",
        }
    }


async def test_one_agent_service_blocks_on_its_hash(client: Client, backend: Backend) -> None:
    assert (await client.get("/v1/agent/service/web")).text == "unknown service ID: web"
    backend.add(Instance("web", "web", "A", port=80))
    first = await client.get("/v1/agent/service/web")
    digest = first.headers["X-Consul-ContentHash"]
    assert first.json["ContentHash"] == digest
    assert (await client.get("/v1/agent/service/web?hash=other&wait=10s")).json == first.json
    waiter = asyncio.create_task(client.get(f"/v1/agent/service/web?hash={digest}&wait=10s"))
    await settled(backend)
    backend.add(Instance("other", "other", "A"))
    await settled(backend)
    assert not waiter.done()
    backend.add(Instance("web", "web", "A", port=81))
    assert (await waiter).json["Port"] == 81
    waiter = asyncio.create_task(
        client.get(f"/v1/agent/service/web?hash={(await client.get('/v1/agent/service/web')).json['ContentHash']}")
    )
    await settled(backend)
    await backend.deregister("web")
    assert (await waiter).status == 404


async def test_what_others_put_under_this_node_is_no_service_of_its_agent(client: Client, backend: Backend) -> None:
    backend.add(Instance("web", "web", "A", origin="catalog"))
    assert (await client.get("/v1/agent/services")).json == {}
    assert (await client.get("/v1/agent/service/web")).status == (await client.get("/v1/agent/service/consul")).status == 404
    assert (await client.get("/v1/agent/service/web?hash=x&wait=soon")).text == "Invalid wait time"


@pytest.mark.parametrize(
    "query",
    [
        "catalog/service/web?node-meta=rack:r1",
        "health/service/web?filter=Node.Meta.rack==r1",
        "health/checks/web?node-meta=rack:r1",
        "catalog/node/A?node-meta=rack:r1",
        "catalog/services?node-meta=rack:r1",
        "catalog/services?filter=NodeMeta.rack==r1",
        "catalog/nodes?filter=Meta.rack==r1",
        "health/services?filter=Node.Meta.rack==r1",
        "health/state/any?node-meta=rack:r1",
    ],
)
async def test_what_is_selected_by_nodes_sleeps_through_other_nodes(client: Client, backend: Backend, query: str) -> None:
    def racked(node: str, rack: str) -> None:
        backend.change(nodes={**backend.now.nodes, node: replace(backend.now.nodes[node], meta={"rack": rack})})

    racked("A", "r1")
    backend.add(Instance("web", "web", "A", container="web"))
    backend.add(Instance("web-b", "other", "B", container="b"))
    before = await client.get(f"/v1/{query}")
    waiter = asyncio.create_task(client.get(f"/v1/{query}&index={before.index}&wait=10s"))
    await settled(backend)
    racked("B", "r9")
    await settled(backend)
    backend.add(Instance("web-b", "other", "B", container="b", down=True))
    await settled(backend)
    assert not waiter.done()
    racked("A", "r9")
    after = await waiter
    assert after.index > before.index and after.text != before.text


async def test_agent_self_and_members(client: Client, backend: Backend) -> None:
    me = (await client.get("/v1/agent/self")).json
    assert me["Stats"]["consul"]["leader_addr"] == (await client.get("/v1/status/leader")).json
    assert me["Config"]["NodeName"] == "A" and me["Config"]["Datacenter"] == "dc1" and me["Config"]["Server"] is True
    assert me["Config"]["Version"].startswith("1.22.") and me["DebugConfig"]["SessionTTLMin"] == 10**10
    assert me["Member"]["Name"] == "A" and set(me["Stats"]) == {"agent", "consul", "raft", "serf_lan", "runtime"}
    backend.change(alive=frozenset({"A"}))
    assert [(m["Name"], m["Addr"], m["Status"]) for m in (await client.get("/v1/agent/members")).json] == [
        ("A", "192.0.2.1", 1),
        ("B", "192.0.2.2", 4),
    ]


async def test_status_names_the_node_with_the_store(client: Client, backend: Backend) -> None:
    assert (await client.get("/v1/status/leader")).text == '"192.0.2.1:8300"'
    assert (await client.get("/v1/status/peers")).json == ["192.0.2.1:8300"]
    backend.contact = None
    leader = await client.get("/v1/status/leader")
    assert (leader.status, leader.text) == (200, '""')


async def test_agent_checks_are_those_of_this_nodes_services(client: Client, backend: Backend) -> None:
    assert (await client.get("/v1/agent/checks")).text == "{}"
    backend.add(Instance("web", "web", "A", container="web"))
    backend.add(Instance("db", "db", "B", container="db"))
    assert list((await client.get("/v1/agent/checks")).json) == ["running:web"]


# --- catalogue and health


async def test_a_fresh_node_has_one_check_and_the_registry(client: Client, backend: Backend) -> None:
    backend.change(nodes={"A": backend.now.nodes["A"]})
    assert (await client.get("/v1/catalog/services")).json == {"consul": []}
    checks = (await client.get("/v1/health/state/any")).json
    assert [(check["CheckID"], check["ServiceID"], check["Status"]) for check in checks] == [("serfHealth", "", "passing")]
    assert len((await client.get("/v1/health/service/consul?passing")).json) == 1
    assert (await client.get("/v1/catalog/datacenters")).json == ["dc1"]


async def test_catalog_nodes_and_node(client: Client, backend: Backend) -> None:
    backend.add(Instance("web", "web", "B", "10.28.16.2", 80))
    rows = (await client.get("/v1/catalog/nodes")).json
    assert [row["Node"] for row in rows] == ["A", "B"]
    assert set(rows[0]) == {"ID", "Node", "Address", "Datacenter", "TaggedAddresses", "Meta", "CreateIndex", "ModifyIndex"}
    assert set(rows[0]["TaggedAddresses"]) == {"lan", "wan", "lan_ipv4", "wan_ipv4"}
    found = (await client.get("/v1/catalog/node/b")).json
    assert found["Node"] == rows[1] and list(found["Services"]) == ["web"]
    unknown = await client.get("/v1/catalog/node/nobody")
    assert (unknown.status, unknown.text) == (200, "null")


async def test_catalog_service_has_every_field_in_its_place(client: Client, backend: Backend) -> None:
    made = backend.add(Instance("web-1", "web", "B", "10.28.16.2", 80, ("http",), {"k": "v"}, {"lan": "10.28.16.2"}))
    (row,) = (await client.get("/v1/catalog/service/web")).json
    assert list(row)[:6] == ["ID", "Node", "Address", "Datacenter", "TaggedAddresses", "NodeMeta"]
    assert {key: value for key, value in row.items() if key.startswith("Service")} == {
        "ServiceKind": "",
        "ServiceID": "web-1",
        "ServiceName": "web",
        "ServiceTags": ["http"],
        "ServiceAddress": "10.28.16.2",
        "ServiceTaggedAddresses": {"lan": {"Address": "10.28.16.2", "Port": 80}},
        "ServiceWeights": {"Passing": 1, "Warning": 1},
        "ServiceMeta": {"k": "v"},
        "ServicePort": 80,
        "ServiceSocketPath": "",
        "ServiceEnableTagOverride": False,
        "ServiceProxy": {},
        "ServiceConnect": {},
        "ServiceLocality": None,
    }
    assert (row["ModifyIndex"], row["Address"], row["NodeMeta"]["rack"]) == (made.modify_index, "192.0.2.2", "r2")


async def test_dashboards_read_services_and_nodes_with_their_checks(client: Client, backend: Backend) -> None:
    backend.add(Instance("web-1", "web", "A", tags=("x",), container="web", down=True))
    backend.add(Instance("web-2", "Web", "B", tags=("y",), meta={"external-source": "nomad"}))
    web = next(row for row in (await client.get("/v1/internal/ui/services")).json if row["Name"] == "web")
    assert (web["Nodes"], web["Tags"], web["InstanceCount"], web["ExternalSources"]) == (["A", "B"], ["x", "y"], 2, ["nomad"])
    assert (web["ChecksPassing"], web["ChecksWarning"], web["ChecksCritical"]) == (2, 0, 1), "two nodes, and a container that is down"
    rows = (await client.get("/v1/internal/ui/nodes")).json
    assert [(row["Node"], [s["ID"] for s in row["Services"]]) for row in rows] == [("A", ["consul", "web-1"]), ("B", ["web-2"])]
    one = await client.get("/v1/internal/ui/node/b")
    assert one.json == rows[1] and [check["CheckID"] for check in one.json["Checks"]] == ["serfHealth"]
    assert (await client.get("/v1/internal/ui/node/nobody")).json is None, "as catalog/node says it"
    waiting = asyncio.create_task(client.get(f"/v1/internal/ui/node/B?index={one.index}&wait=60s"))
    await asyncio.sleep(0.05)
    backend.add(Instance("db", "db", "B"))
    assert [s["ID"] for s in (await waiting).json["Services"]] == ["db", "web-2"]
    filtered = await client.get("/v1/internal/ui/services?filter=" + quote('Name == "db"'))
    assert [row["Name"] for row in filtered.json] == ["db"]


async def test_tags_all_count_and_order_is_by_node_then_id(client: Client, backend: Backend) -> None:
    for node, service_id, tags in (("B", "1", ("x",)), ("A", "9", ("x", "y")), ("A", "2", ("y", "x", "z"))):
        backend.add(Instance(service_id, "web", node, tags=tags))
    ids = [row["ServiceID"] for row in (await client.get("/v1/catalog/service/web")).json]
    assert ids == ["2", "9", "1"]
    assert [row["ServiceID"] for row in (await client.get("/v1/catalog/service/web?tag=x&tag=y")).json] == ["2", "9"]
    assert [e["Service"]["ID"] for e in (await client.get("/v1/health/service/web?tag=z&near=_agent")).json] == ["2"]
    assert (await client.get("/v1/catalog/service/unknown")).text == "[]"
    assert [e["Service"]["ID"] for e in (await client.get("/v1/health/service/web?node-meta=rack:r2")).json] == ["1"]


@pytest.mark.parametrize(
    ("path", "expression", "kept"),
    [
        ("catalog/nodes", "Node == B", ["B"]),
        ("catalog/service/web", "y in ServiceTags", ["2"]),
        ("health/service/web", "Node.Meta.rack == r2", ["1"]),
        ("health/node/A", "Status == critical", []),
        ("agent/services", "Service == web", ["2"]),
        ("catalog/node/A", "Service == db", ["db"]),
        ("catalog/node-services/A", "Service == db", ["db"]),
        ("health/services", "Service.Service == db", ["db"]),
        ("catalog/node/nobody", "Service == db", []),
    ],
)
async def test_a_filter_keeps_what_fits(client: Client, backend: Backend, path: str, expression: str, kept: list[str]) -> None:
    for instance in (Instance("1", "web", "B"), Instance("2", "web", "A", tags=("y",)), Instance("db", "db", "A")):
        backend.add(instance)
    found = (await client.get(f"/v1/{path}?filter={quote(expression)}")).json
    if path.startswith("catalog/node") and isinstance(found, dict):
        found = found["Services"]
    names = list(found or []) if isinstance(found, dict) else [ident(row) for row in found or []]
    assert names == kept


def ident(row: dict[str, Any]) -> Any:
    """The id of a row's service, else its node."""
    return row.get("ServiceID") or row.get("ID", "").removeprefix("id-b") or row.get("Service", {}).get("ID") or row["Node"]


async def test_passing_leaves_out_what_is_on_a_dead_node(client: Client, backend: Backend) -> None:
    backend.add(Instance("1", "web", "A"))
    backend.add(Instance("2", "web", "B"))
    backend.change(alive=frozenset({"A"}))
    every = (await client.get("/v1/health/service/web?passing=false")).json
    assert [[check["Status"] for check in entry["Checks"]] for entry in every] == [["passing"], ["critical"]]
    assert every[1]["Checks"][0]["Output"] == "Agent not live or unreachable"
    for flag in ("passing", "passing=1", "passing=true"):
        assert [e["Service"]["ID"] for e in (await client.get(f"/v1/health/service/web?{flag}")).json] == ["1"]
    assert [check["Node"] for check in (await client.get("/v1/health/state/critical")).json] == ["B"]
    assert [check["CheckID"] for check in (await client.get("/v1/health/node/B")).json] == ["serfHealth"]
    assert (await client.get("/v1/health/node/nobody")).text == "[]"


async def test_health_checks_of_a_service_are_without_the_nodes(client: Client, backend: Backend) -> None:
    backend.add(Instance("1", "web", "A", container="web"))
    assert [check["CheckID"] for check in (await client.get("/v1/health/checks/web")).json] == ["running:1"]


# --- the frame of every answer


async def test_headers_of_a_catalogue_read(client: Client, backend: Backend) -> None:
    headers = (await client.get("/v1/catalog/nodes")).headers
    assert headers["Vary"] == "Accept-Encoding" and headers["X-Consul-Default-Acl-Policy"] == "allow"
    assert headers["X-Consul-KnownLeader"] == "true" and headers["X-Consul-LastContact"] == "0"
    assert headers["X-Consul-Effective-Consistency"] == "leader" and headers["X-Consul-Query-Backend"] == "blocking-query"
    assert "ETag" not in headers and "X-Cache" not in headers
    backend.contact = 1500
    headers = (await client.get("/v1/catalog/nodes?stale&cached&max_stale=10s")).headers
    assert headers["X-Consul-LastContact"] == "1500" and headers["X-Consul-Effective-Consistency"] == "stale"
    assert (headers["X-Cache"], headers["Age"]) == ("HIT", "1")


async def test_a_consistent_read_needs_the_store_and_a_stale_one_does_not(client: Client, backend: Backend) -> None:
    backend.contact = None
    refused = await client.get("/v1/catalog/nodes?consistent")
    assert (refused.status, refused.text) == (500, "No cluster leader")
    served = await client.get("/v1/catalog/nodes?stale")
    assert (served.status, served.headers["X-Consul-KnownLeader"]) == (200, "false")


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v1/kv/a%2Fb", 404, "Invalid URL path: not a recognized HTTP API endpoint"),
        ("GET", "/v1/", 404, "Invalid URL path: not a recognized HTTP API endpoint"),
        ("GET", "/v2/x", 404, "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'"),
        ("GET", "/v1/acl/tokens", 401, "ACL support disabled"),
        ("PUT", "/v1/agent/token/agent", 401, "ACL support disabled"),
        ("GET", "/v1/catalog/service/a%00b", 400, "Invalid URL path: it holds characters that cannot be printed"),
        ("POST", "/v1/catalog/nodes", 405, "method POST not allowed"),
        ("GET", "/v1/agent/service/register", 405, "method GET not allowed"),
        ("GET", "/v1/agent/service/deregister/x", 405, "method GET not allowed"),
        ("GET", "/v1/catalog/service/", 400, "Missing service name"),
        ("GET", "/v1/health/service/", 400, "Missing service name"),
        ("GET", "/v1/catalog/node/", 400, "Missing node name"),
        ("PUT", "/v1/agent/service/deregister/", 400, "Missing service ID"),
        ("GET", "/v1/health/service/web?passing=maybe", 400, "Invalid value for ?passing"),
        ("GET", "/v1/catalog/nodes?index=x", 400, "Invalid index"),
        ("GET", "/v1/catalog/nodes?index=-1", 400, "Invalid index"),
        ("GET", "/v1/catalog/nodes?index=%C2%B2", 400, "Invalid index"),
        ("GET", "/v1/catalog/nodes?index=%D9%A1", 400, "Invalid index"),
        ("GET", "/v1/catalog/nodes?index=18446744073709551616", 400, "Invalid index"),
        ("GET", "/v1/catalog/nodes?index=1" + "0" * 5000, 400, "Invalid index"),
        ("GET", "/v1/catalog/nodes?index=9&wait=10", 400, "Invalid wait time"),
        ("GET", "/v1/catalog/nodes?wait=soon", 400, "Invalid wait time"),
        ("GET", "/v1/catalog/nodes?sg=group", 400, 'Invalid query parameter: "sg" - Namespaces are a Consul Enterprise feature'),
        ("GET", "/v1/catalog/nodes?stale&consistent", 400, "Cannot specify ?stale with ?consistent, conflicting semantics."),
        ("GET", "/v1/catalog/nodes?cached&consistent", 400, "Cannot specify ?cached with ?consistent, conflicting semantics."),
        ("GET", "/v1/catalog/nodes?max_stale=x", 400, 'Invalid max_stale value "x"'),
        ("GET", "/v1/catalog/nodes?dc=elsewhere", 500, "No path to datacenter"),
        ("GET", "/v1/catalog/nodes?ns=team", 400, 'Invalid query parameter: "ns" - Namespaces are a Consul Enterprise feature'),
        ("GET", "/v1/catalog/datacenters?filter=a==b", 400, "filter does not apply to /v1/catalog/datacenters"),
        ("GET", "/v1/catalog/nodes?filter=no==A", 400, 'Failed to create boolean expression evaluator: Selector "no" is not valid'),
    ],
)
async def test_what_is_wrong_is_said_in_consuls_words(client: Client, method: str, path: str, status: int, text: str) -> None:
    answer = await client.ask(method, path)
    assert (answer.status, answer.text) == (status, text)
    assert answer.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"Name": "web", "Tags": ["\\ud800"]}',
        b"[" * 100_000,
        b'{"Name": "web", "Check": {"TTL": "9s"}}',
    ],
)
async def test_a_wrong_body_is_refused_and_nothing_is_registered(client: Client, backend: Backend, body: bytes) -> None:
    answer = await client.put("/v1/agent/service/register", body)
    assert answer.status == 400 and answer.text
    assert backend.now.instances == {}


async def test_a_body_that_is_too_large_is_refused(client: Client) -> None:
    assert (await client.put("/v1/agent/service/register", b" " * (consul_router.MAX_BODY + 1))).status == 413


async def test_own_names_of_scope_are_accepted(client: Client) -> None:
    for query in ("dc=DC1", "dc=", "ns=default&partition=default", "index=0&wait=30s"):
        assert (await client.get(f"/v1/catalog/nodes?{query}")).status == 200


async def test_options_and_head(client: Client) -> None:
    options = await client.ask("OPTIONS", "/v1/agent/services")
    assert (options.status, options.headers["Allow"]) == (200, "OPTIONS,GET,PUT")
    assert (await client.ask("HEAD", "/v1/agent/services")).status == 405
    assert (await client.get("/")).text.startswith("Consul Agent: UI disabled")
    assert (await client.get("/ui/")).status == 404


@pytest.mark.parametrize("path", ["/v1/catalog/nodes", "/v1/agent/self", "/v1/agent/service/register"])
async def test_a_namespace_in_a_header_is_refused_as_one_in_the_query(client: Client, path: str) -> None:
    method = "PUT" if "register" in path else "GET"
    for name in ("X-Consul-Namespace", "X-Consul-Partition"):
        assert (await client.ask(method, path, SEED, **{name: "default"})).status == 200
        refused = await client.ask(method, path, SEED, **{name: "team"})
        assert (refused.status, refused.text) == (400, f'Invalid header: "{name}" - Namespaces are a Consul Enterprise feature')


@pytest.mark.parametrize("value", ["max-age=30", "no-cache", "max-age=0, must-revalidate, stale-if-error=60", "Max-Age=5,,", ""])
async def test_what_a_client_says_of_caches_is_read(client: Client, value: str) -> None:
    assert (await client.ask("GET", "/v1/catalog/nodes?cached", **{"Cache-Control": value})).status == 200


@pytest.mark.parametrize("value", ["max-age=soon", "max-age", "stale-if-error=-1", "must-revalidate, max-age=", "a b", "max-age=1e3"])
async def test_what_is_no_cache_control_is_refused(client: Client, value: str) -> None:
    for _ in range(2):
        answer = await client.ask("GET", "/v1/catalog/nodes", **{"Cache-Control": value})
        assert (answer.status, answer.text) == (400, "Invalid Cache-Control header.")
    assert (await client.get("/v1/catalog/nodes")).status == 200


async def test_a_development_agent_indents_every_answer(client: Client, api: ConsulApi) -> None:
    api.router.pretty = True
    for path in ("/v1/catalog/nodes", "/v1/agent/self", "/v1/catalog/nodes?pretty", "/v1/status/peers"):
        answer = await client.get(path)
        assert "\n    " in answer.text and answer.text.endswith("\n"), path


async def test_pretty_and_gzip_only_if_asked_for(client: Client, backend: Backend) -> None:
    for number in range(20):
        backend.add(Instance(str(number), "web", "A"))
    plain = await client.get("/v1/health/service/web")
    pretty = await client.get("/v1/health/service/web?pretty")
    assert "Content-Encoding" not in plain.headers and "\n" not in plain.text
    assert pretty.text.startswith('[\n    {\n        "Node"') and pretty.text.endswith("]\n") and pretty.json == plain.json
    url = URL(f"http://127.0.0.1:{client.port}/v1/health/service/web")
    async with client.session.get(url, headers={"Accept-Encoding": "deflate, gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert len(await answer.read()) < len(plain.text)


async def test_a_fault_inside_is_an_answer_and_a_log_record(client: Client, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    backend.failure = ZeroDivisionError("oops")
    answer = await client.put("/v1/agent/service/register", SEED)
    assert answer.status == 500 and "oops" in answer.text
    assert [record.message for record in caplog.records if record.name == "plait.consul"] == ["request_failed"]


# --- blocking queries


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


async def settled(backend: Backend) -> None:
    """Until a query waits for the next change, having looked at the last one."""
    await until(lambda: bool(backend.waiting) and not any(event.is_set() for event in backend.waiting))


MOVES = [
    ("health/service/web", lambda b: b.add(Instance("2", "web", "B"))),
    ("health/service/web", lambda b: b.add(Instance("1", "web", "A", down=True, container="web"))),
    ("health/service/web", lambda b: b.change(alive=frozenset({"B"}))),
    ("health/service/web", lambda b: b.change(instances={})),
    ("health/service/web?passing", lambda b: b.change(alive=frozenset({"B"}))),
    ("health/service/absent", lambda b: b.add(Instance("n", "absent", "B"))),
    ("catalog/service/web", lambda b: b.add(Instance("1", "web", "A", tags=("new",)))),
    ("catalog/services", lambda b: b.add(Instance("n", "new", "B"))),
    ("catalog/services?node-meta=zone:z", lambda b: b.change(nodes={"A": replace(b.now.nodes["A"], meta={"server": "1", "zone": "z"})})),
    (
        "catalog/services?filter=NodeMeta.zone==z",
        lambda b: b.change(nodes={"A": replace(b.now.nodes["A"], meta={"server": "1", "zone": "z"})}),
    ),
    ("catalog/nodes", lambda b: b.change(nodes={"A": b.now.nodes["A"]})),
    ("catalog/node/A", lambda b: b.add(Instance("n", "new", "A"))),
    ("health/node/B", lambda b: b.change(alive=frozenset({"A"}))),
    ("health/state/critical", lambda b: b.change(alive=frozenset({"A"}))),
]


@pytest.mark.parametrize(("path", "move"), MOVES, ids=[f"{number}-{path}" for number, (path, _) in enumerate(MOVES)])
async def test_a_change_of_the_result_wakes_and_moves_the_index(client: Client, backend: Backend, path: str, move: Any) -> None:
    backend.add(Instance("1", "web", "A", container="web"))
    before = await client.get(f"/v1/{path}")
    waiter = asyncio.create_task(client.get(f"/v1/{path}{'&' if '?' in path else '?'}index={before.index}&wait=60s"))
    await settled(backend)
    move(backend)
    after = await asyncio.wait_for(waiter, 5)
    assert after.index > before.index and after.text != before.text


@pytest.mark.parametrize(
    "path",
    [
        "health/service/web",
        "health/service/web?passing",
        "health/service/absent",
        "catalog/service/web",
        "catalog/node/A",
        "catalog/nodes",
        "health/node/A",
    ],
)
async def test_an_unrelated_change_wakes_nobody(client: Client, backend: Backend, path: str) -> None:
    backend.add(Instance("1", "web", "A"))
    before = await client.get(f"/v1/{path}")
    again = f"/v1/{path}{'&' if '?' in path else '?'}index={before.index}&wait=60s"
    waiter = asyncio.create_task(client.get(again))
    await settled(backend)
    for number in range(3):
        backend.add(Instance(f"x{number}", "other", "B"))
        backend.run(web_box("B", f"10.28.16.{number + 2}"))
        await settled(backend)
    assert not waiter.done()
    waiter.cancel()
    assert (await client.get(f"/v1/{path}")).index == before.index


async def test_near_follows_distances_that_change_while_the_catalogue_does_not(client: Client, api: ConsulApi, backend: Backend) -> None:
    backend.add(Instance("1", "web", "A"))
    backend.add(Instance("2", "web", "B"))
    for far, first in (("B", "A"), ("A", "B")):
        api.set_coordinates(dict, lambda _, far=far: lambda node: float(node == far))
        assert (await client.get("/v1/catalog/service/web?near=_agent")).json[0]["Node"] == first


async def test_index_is_never_zero_and_a_late_client_is_answered_at_once(client: Client, backend: Backend) -> None:
    backend.now = replace(backend.now, revision=0)
    first = await client.get("/v1/health/service/web")
    assert first.index == 1
    backend.add(Instance("1", "web", "A"))
    second = await asyncio.wait_for(client.get(f"/v1/health/service/web?index={first.index}&wait=60s"), 5)
    assert len(second.json) == 1 and second.index == 2


async def test_after_the_wait_the_same_result_comes_with_the_same_index(client: Client) -> None:
    before = await client.get("/v1/catalog/nodes")
    clock = asyncio.get_running_loop().time
    started = clock()
    after = await client.get(f"/v1/catalog/nodes?index={before.index}&wait=200ms")
    assert (after.text, after.index) == (before.text, before.index)
    assert 0.19 < clock() - started < 2
    ahead = await client.get(f"/v1/catalog/nodes?index={before.index + 1000}&wait=50ms")
    assert ahead.index == before.index


async def test_a_hundred_that_wait_for_the_same_all_get_it_at_once(client: Client, api: ConsulApi, backend: Backend) -> None:
    before = await client.get("/v1/health/service/web")
    waiters = [asyncio.create_task(client.get(f"/v1/health/service/web?index={before.index}")) for _ in range(100)]
    await until(lambda: api.answers.waiters() == 100)
    backend.add(Instance("1", "web", "A"))
    answers = await asyncio.wait_for(asyncio.gather(*waiters), 10)
    assert {answer.index for answer in answers} == {before.index + 1}
    await until(lambda: not api.answers.waiters() and not backend.waiting)


async def test_a_client_that_hangs_up_frees_its_waiter(client: Client, api: ConsulApi, backend: Backend) -> None:
    before = await client.get("/v1/catalog/nodes")
    waiters = [asyncio.create_task(client.get(f"/v1/catalog/nodes?index={before.index}&wait=60s")) for _ in range(2)]
    await until(lambda: api.answers.waiters() == 2)
    waiters[0].cancel()
    await until(lambda: api.answers.waiters() == 1)
    backend.change(alive=frozenset("A"))  # touches the other one, which still follows
    await settled(backend)
    waiters[1].cancel()
    await until(lambda: not api.answers.waiters() and not backend.waiting)


async def test_a_fault_while_changes_are_followed_is_an_answer_to_those_who_wait(client: Client, backend: Backend) -> None:
    before = await client.get("/v1/health/service/web")
    waiter = asyncio.create_task(client.get(f"/v1/health/service/web?index={before.index}&wait=60s"))
    await settled(backend)
    backend.change(nodes=None)
    assert (await asyncio.wait_for(waiter, 5)).status == 500


async def test_a_stop_does_not_wait_for_blocking_queries(client: Client, backend: Backend, server: HttpServer) -> None:
    before = await client.get("/v1/catalog/nodes")
    waiter = asyncio.create_task(client.get(f"/v1/catalog/nodes?index={before.index}&wait=60s"))
    await settled(backend)
    await asyncio.wait_for(server.stop(), http_server.STOP_S + 4)
    await asyncio.gather(waiter, return_exceptions=True)


async def test_services_are_filtered_by_their_instances(client: Client, backend: Backend) -> None:
    backend.add(Instance("1", "web", "A", tags=("prod", "x")))
    backend.add(Instance("2", "web", "A", tags=("test",)))
    assert (await client.get("/v1/catalog/services?filter=prod+in+ServiceTags")).json == {"web": ["prod", "x"]}
    assert (await client.get("/v1/catalog/services?filter=nobody+in+ServiceTags")).json == {}


async def test_nothing_comes_from_a_peer(client: Client, backend: Backend) -> None:
    backend.add(Instance("1", "web", "A"))
    for path in ("catalog/service/web", "health/service/web"):
        assert len((await client.get(f"/v1/{path}")).json) == 1
        assert (await client.get(f"/v1/{path}?peer=other")).json == []


# --- instances by label


def labelled(backend: Backend) -> None:
    for node, ident, meta in (("B", "b1", {"app": "web"}), ("A", "a2", {"app": "web", "tier": "test"}), ("A", "a1", {"app": "db"})):
        backend.add(Instance(ident, ident[0], node, "10.28.0.9", 80, ("x",) if ident == "a2" else (), meta=meta))


async def chosen(client: Client, query: str) -> list[str]:
    answer = await client.get(f"/v1/plait/instances?{query}")
    assert answer.status == 200, answer.text
    return [row["Service"]["ID"] for row in answer.json]


async def test_instances_by_selector(client: Client, backend: Backend) -> None:
    labelled(backend)
    assert await chosen(client, "") == ["a1", "a2", "consul", "b1"]
    assert await chosen(client, "selector=app%3Dweb") == ["a2", "b1"]
    assert await chosen(client, "selector=app=web,tier!=test") == ["b1"]
    assert await chosen(client, "selector=app+in+(db,web)&service=A") == ["a1", "a2"]
    assert await chosen(client, "selector=app&tag=X") == ["a2"]
    assert await chosen(client, "selector=app&node-meta=rack:r2") == ["b1"]
    assert await chosen(client, "selector=app&filter=" + quote('Node.Node == "A" and Service.Meta.app == "db"')) == ["a1"]
    backend.change(alive=frozenset("A"))
    assert await chosen(client, "selector=app&passing") == ["a1", "a2"]
    row = (await client.get("/v1/plait/instances?selector=app=db")).json[0]
    assert row["Labels"] == {"app": "db"} and row["Node"]["Node"] == "A" and row["Checks"][0]["CheckID"] == "serfHealth"
    assert row.keys() == {"Node", "Service", "Checks", "Labels"}


@pytest.mark.parametrize(("selector", "why"), [("app%3D%3D%3Dx", "'app===x'"), ("app,", "last comma"), ("%21", "'!'")])
async def test_a_bad_selector_is_refused_with_the_reason(client: Client, selector: str, why: str) -> None:
    answer = await client.get(f"/v1/plait/instances?selector={selector}")
    assert answer.status == 400 and answer.text.startswith("Invalid selector: ") and why in answer.text


async def test_a_selector_blocks_until_its_own_instances_change(client: Client, backend: Backend) -> None:
    labelled(backend)
    backend.run(Container("3f0", "box", "A", "docker", labels={"team": "x"}))
    backend.add(Instance("boxed", "boxed", "A", "10.28.0.8", 80, container="box"))
    path = "/v1/plait/instances?selector=team"
    first = await client.get(path)
    assert [row["Labels"] for row in first.json] == [{"team": "x"}]
    waiting = asyncio.create_task(client.get(f"{path}&index={first.index}&wait=20s"))
    await asyncio.sleep(0.1)
    backend.add(Instance("b1", "b", "B", "10.28.0.7", 80, meta={"app": "web"}))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    backend.run(Container("3f0", "box", "A", "docker", labels={"other": "x"}))
    answer = await waiting
    assert (answer.json, answer.index > first.index) == ([], True)


# --- Prometheus


async def test_the_answer_is_what_prometheus_takes(client: Client, backend: Backend) -> None:
    backend.add(Instance("w1", "Web", "B", "10.28.0.2", 80, meta={"app": "web"}))
    backend.add(Instance("db", "db", "A", "10.28.0.3", 5432, meta={"app": "db"}))
    answer = await client.get("/v1/plait/http_sd")
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/json"
    assert [group["targets"] for group in answer.json] == [["10.28.0.3:5432"], ["10.28.0.2:80"]], "consul itself is not scraped"
    assert [group["targets"] for group in (await client.get("/v1/plait/http_sd?selector=app=web&service=WEB")).json] == [["10.28.0.2:80"]]
    backend.change(alive=frozenset("A"))
    assert {g["labels"]["__meta_plait_health"] for g in (await client.get("/v1/plait/http_sd?service=web")).json} == {"critical"}
    assert [g["targets"] for g in (await client.get("/v1/plait/http_sd?passing")).json] == [["10.28.0.3:5432"]]
    assert (await client.get("/v1/plait/http_sd?service=nobody")).json == []
    assert (await client.get("/v1/plait/http_sd?selector=%3D")).status == 400
