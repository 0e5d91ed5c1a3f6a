# SPDX-License-Identifier: Apache-2.0
"""Services: register one, keep its registration alive, find the instances of one, and read the catalogue.

Data in: a Service to offer, names and filters to look for. Data out: operations (`Steps`) and queries. Endpoints: agent/service,
agent/check, health, catalog, agent/members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

from plait.client import durations, types
from plait.client.errors import ClientError
from plait.client.steps import Answer, Params, Request, Steps, call, call_json, clock, decoded, get, put, sleep
from plait.client.types import CheckState, Instance, Member, Node, Port
from plait.client.watch import Query, fetch
from plait.model.errors import ConfigError

Health = Literal["passing", "warning", "critical"]
REASSERT_S = 30.0
"""How often a registration without a TTL is looked for, and made again if the agent has lost it."""
REAP_S = 60.0
"""Least time after which an instance whose program died is removed, unless the service says otherwise."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check that the agent runs. Exactly one of `http` (URL), `tcp`, `udp`, `grpc` (HOST:PORT), `args` (a command) and `alias` (a service
    id) is given. Times in seconds."""

    http: str = ""
    tcp: str = ""
    udp: str = ""
    grpc: str = ""
    args: tuple[str, ...] = ()
    alias: str = ""
    interval_s: float = 10.0
    timeout_s: float = 0.0
    name: str = ""
    method: str = ""
    header: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    success_before_passing: int = 0
    failures_before_critical: int = 0
    status: Health | None = None

    def body(self) -> dict[str, Any]:
        kinds = {
            "HTTP": self.http,
            "TCP": self.tcp,
            "UDP": self.udp,
            "GRPC": self.grpc,
            "Args": list(self.args),
            "AliasService": self.alias,
        }
        given = {name: value for name, value in kinds.items() if value}
        if len(given) != 1:
            raise ConfigError("check", sorted(given), "is not exactly one kind of check", "give one of http, tcp, udp, grpc, args, alias")
        optional = {
            "Interval": "" if self.alias else durations.text(self.interval_s),
            "Timeout": durations.text(self.timeout_s) if self.timeout_s else "",
            "Name": self.name,
            "Method": self.method,
            "Header": {name: list(values) for name, values in self.header.items()},
            "SuccessBeforePassing": self.success_before_passing,
            "FailuresBeforeCritical": self.failures_before_critical,
            "Status": self.status,
        }
        return given | {name: value for name, value in optional.items() if value}


@dataclass(frozen=True, slots=True)
class Service:
    """An instance to offer. `id` "": the name; `address` "": the node's. `ports`: several ports with names; one of them is the service's
    own: the one marked `default`, else the one that is `port`, else (without `port`) the first.

    `ttl_s` > 0: the program vouches for itself by heartbeats; without one for so long it is critical, and removed `reap_s` (0: ten TTLs, a
    minute at least) after that. `checks` are run by the agent besides.
    """

    name: str
    port: int = 0
    id: str = ""
    address: str = ""
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    checks: tuple[Check, ...] = ()
    ttl_s: float = 0.0
    reap_s: float = 0.0
    weight: int = 1
    weight_warning: int = 1
    ports: tuple[Port, ...] = ()

    @property
    def key(self) -> str:
        return self.id or self.name

    @property
    def ttl_check(self) -> str:
        """The id of the heartbeat's check."""
        return f"service:{self.key}:ttl"

    def body(self, status: Health = "passing") -> dict[str, Any]:
        """What agent/service/register takes; the heartbeat's check starts as `status`."""
        if not self.name:
            raise ConfigError("service", self.name, "has no name")
        beat = {
            "CheckID": self.ttl_check,
            "Name": f"Heartbeat of {self.key}",
            "TTL": durations.text(self.ttl_s),
            "Status": status,
            "DeregisterCriticalServiceAfter": durations.text(self.reap_s or max(REAP_S, 10 * self.ttl_s)),
        }
        body: dict[str, Any] = {
            "ID": self.key,
            "Name": self.name,
            "Port": self.port,
            "Tags": list(self.tags),
            "Meta": dict(self.meta),
            "Weights": {"Passing": self.weight, "Warning": self.weight_warning},
            "Checks": ([beat] if self.ttl_s else []) + [check.body() for check in self.checks],
        }
        if self.address:
            body["Address"] = self.address
        if self.ports:
            body["Ports"] = [_port_body(port) for port in self.ports]
        if self.ports and not self.port:
            del body["Port"]  # 0 beside named ports would be a second word about it
        return body


def _port_body(port: Port) -> dict[str, Any]:
    other = {} if port.protocol == "tcp" else {"Protocol": port.protocol}  # Consul's own API has no such field
    return {"Name": port.name, "Port": port.number, "Default": port.default, **other}


def register(service: Service) -> Steps[None]:
    """Offer the service on the agent's node; what the agent had under this id is replaced, checks included."""
    yield from call(put("agent/service/register", ("replace-existing-checks", "true"), body=service.body()))


def deregister(service_id: str) -> Steps[bool]:
    """Withdraw an instance. False if the agent did not have it."""
    return (yield from call(put(f"agent/service/deregister/{service_id}"), 404)).status == 200


def update_check(check_id: str, status: Health, output: str = "") -> Steps[None]:
    """Say the status of a TTL check; `output` is shown beside it (4096 bytes are kept). ApiError if there is no such check."""
    yield from call(put(f"agent/check/update/{check_id}", body={"Status": status, "Output": output}))


def maintenance(service_id: str, on: bool, reason: str = "") -> Steps[None]:
    """Take an instance out of use, or back into it, without withdrawing it."""
    given = (("reason", reason),) if on and reason else ()
    yield from call(put(f"agent/service/maintenance/{service_id}", ("enable", "true" if on else "false"), *given))


_GLANCE_S = 0.005
"""Between two looks whether a heartbeat has arrived."""


class Keeper:
    """Keeps one registration alive: heartbeats at a third of the TTL, and the registration again when the agent has lost it.

    `word` is what the next heartbeat says (status, output); replaced as a whole, because threads may do it while another one sends.
    `trouble` is why the last heartbeat failed, None while all is well.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.word: tuple[Health, str] = ("passing", "")
        self.trouble: ClientError | None = None
        self._beating = False

    @property
    def period_s(self) -> float:
        return self.service.ttl_s / 3 if self.service.ttl_s else REASSERT_S

    def start(self) -> Steps[None]:
        """Register with the present status."""
        body = self.service.body(self.word[0])
        yield from call(put("agent/service/register", ("replace-existing-checks", "true"), body=body))

    def say(self, status: Health, output: str = "") -> Steps[None]:
        """Change the status and tell the agent now. A service without TTL has nothing to say: ConfigError."""
        if not self.service.ttl_s:
            raise ConfigError("ttl_s", 0, f"means that the agent's own checks decide about {self.service.key}", "register it with a TTL")
        self.word = status, output
        while self._beating:  # what it says may be older, and arrive after this
            yield from sleep(_GLANCE_S)
        yield from self.beat()

    def beat(self) -> Steps[None]:
        """One heartbeat; registers again if the agent does not know the check or the service. A word that was changed while it was on its
        way is sent after it, so that the last word is the last to arrive."""
        told = None
        while told is not self.word:
            told = self.word
            if not (yield from self._tell(*told)):
                yield from self.start()

    def _tell(self, status: Health, output: str) -> Steps[bool]:
        """False if the agent does not know us."""
        if not self.service.ttl_s:
            return (yield from call(get(f"agent/service/{self.service.key}"), 404)).status == 200
        request = put(f"agent/check/update/{self.service.ttl_check}", body={"Status": status, "Output": output})
        return (yield from call(request, 404, 500)).status == 200

    def run(self) -> Steps[None]:
        """Heartbeats for ever, closer together while they fail."""
        pause = self.period_s
        while True:
            yield from sleep(pause)
            began = yield from clock()
            self._beating = True
            try:
                yield from self.beat()
                self.trouble, pause = None, self.period_s
            except ClientError as error:
                self.trouble, pause = error, self.period_s / 4
            finally:
                self._beating = False
            pause = max(pause - ((yield from clock()) - began), self.period_s / 10)

    def stop(self) -> Steps[None]:
        """Withdraw the registration. With a TTL an agent that is away is no error: it removes the instance by itself later."""
        try:
            yield from deregister(self.service.key)
        except ClientError:
            if not self.service.ttl_s:
                raise


class Search(TypedDict, total=False):
    """Which instances of a service are meant.

    tags: those that have all of them. passing (True): without those that have any check that is not. near: a node's name or "_agent":
    sorted by round trip from there; otherwise the order is node, then id. node_meta: of nodes with all these values. filter: an
    expression of the API's filter language. datacenter: another one than the agent's. stale: any agent may answer from what it has. port:
    only instances with a port of that name, which is their `port` then.
    """

    tags: tuple[str, ...]
    passing: bool
    near: str
    node_meta: Mapping[str, str]
    filter: str
    datacenter: str
    stale: bool
    port: str


def instances(name: str, **search: Unpack[Search]) -> Query[tuple[Instance, ...]]:
    """The instances of a service; what may be given besides its name is described at `plait.client.discovery.Search`."""
    params: Params = tuple(("tag", tag) for tag in search.get("tags", ()))
    params += (("passing", "true"),) if search.get("passing", True) else ()
    params += tuple(("node-meta", f"{key}:{value}") for key, value in search.get("node_meta", {}).items())
    named = {"near": search.get("near"), "filter": search.get("filter"), "dc": search.get("datacenter")}
    params += tuple((key, value) for key, value in named.items() if value) + ((("stale", ""),) if search.get("stale") else ())
    parse = partial(_instances, port=search.get("port", ""))
    return Query(Request("GET", f"health/service/{_named('service', name)}", params), parse)


def resolve(name: str, **search: Unpack[Search]) -> Steps[tuple[Instance, ...]]:
    """The instances of a service now; none is an empty tuple. What may be given is described at `plait.client.discovery.Search`."""
    return (yield from fetch(instances(name, **search)))


def services(filter: str = "") -> Query[Mapping[str, tuple[str, ...]]]:
    """Every service's name with the tags of all its instances."""
    return Query(Request("GET", "catalog/services", (("filter", filter),) if filter else ()), _services)


def nodes(near: str = "") -> Query[tuple[Node, ...]]:
    """Every node of the catalogue, by name, or by round trip from `near`."""
    return Query(
        Request("GET", "catalog/nodes", (("near", near),) if near else ()),
        lambda request, answer: types.records(decoded(request, answer), types.node, request.what),
    )


def checks(name: str) -> Query[tuple[CheckState, ...]]:
    """The checks of the instances of a service."""
    return Query(Request("GET", f"health/checks/{_named('service', name)}"), _checks)


def state(status: str = "any") -> Query[tuple[CheckState, ...]]:
    """Every check with this status: any, passing, warning or critical."""
    return Query(Request("GET", f"health/state/{_named('status', status)}"), _checks)


def list_services() -> Steps[Mapping[str, tuple[str, ...]]]:
    """Every service's name with the tags of all its instances."""
    return (yield from fetch(services()))


def list_nodes(near: str = "") -> Steps[tuple[Node, ...]]:
    """Every node of the catalogue, by name, or by round trip from `near`."""
    return (yield from fetch(nodes(near)))


def list_checks(name: str) -> Steps[tuple[CheckState, ...]]:
    """The checks of the instances of a service."""
    return (yield from fetch(checks(name)))


def list_state(status: str = "any") -> Steps[tuple[CheckState, ...]]:
    """Every check with this status: any, passing, warning or critical."""
    return (yield from fetch(state(status)))


def members() -> Steps[tuple[Member, ...]]:
    """The agents of the cluster as this one sees them."""
    return types.records((yield from call_json(get("agent/members"))), types.member, "agent/members")


def leader() -> Steps[str]:
    """The address of the cluster's leader, "" if there is none now."""
    return str((yield from call_json(get("status/leader"))))


def agent_self() -> Steps[Mapping[str, Any]]:
    """What the agent says about itself, as it says it: Config, Member, Meta, …"""
    found = yield from call_json(get("agent/self"))
    return found if isinstance(found, dict) else {}


def _instances(request: Request, answer: Answer, port: str) -> tuple[Instance, ...]:
    found = types.records(decoded(request, answer), types.instance, request.what)
    return tuple(at for one in found if (at := one.at(port))) if port else found


def _checks(request: Request, answer: Answer) -> tuple[CheckState, ...]:
    return types.records(decoded(request, answer), types.check, request.what)


def _services(request: Request, answer: Answer) -> Mapping[str, tuple[str, ...]]:
    return types.record(decoded(request, answer), lambda raw: {name: tuple(tags) for name, tags in raw.items()}, request.what)


def _named(what: str, name: str) -> str:
    if not name or "/" in name:
        raise ConfigError(what, name, "is not a name", "it may not be empty or contain a slash")
    return name
