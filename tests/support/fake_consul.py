# SPDX-License-Identifier: Apache-2.0
"""A strict stand-in for an agent's HTTP API, written from the contract.

What is not documented is refused, so that a client that leans on it fails. `FakeConsul` is pure: requests and a clock in, answers out.
`serve` puts it behind real sockets; `Timeline` runs operations of the client's core against it
under a clock of its own: minutes pass in no time.
"""

from __future__ import annotations

import heapq
import json
import threading
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from plait.client.errors import Unreachable
from plait.client.steps import Answer, Request, Sleep, Steps

NODE = "node-a"
SESSION_TTL_FACTOR = 2
COMMON = {"dc", "token", "stale", "consistent", "index", "wait"}
SERVICE_FIELDS = {"ID", "Name", "Tags", "Address", "Port", "Meta", "Checks", "Weights", "EnableTagOverride", "Ports"}
CHECK_FIELDS = {
    "CheckID", "Name", "TTL", "Status", "DeregisterCriticalServiceAfter", "HTTP", "TCP", "UDP", "GRPC", "Args", "AliasService",
    "Interval", "Timeout", "Method", "Header", "SuccessBeforePassing", "FailuresBeforeCritical", "Notes",
}  # fmt: skip
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Refuse(Exception):
    """An error answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def seconds(text: str) -> float:
    """A duration as the contract writes it: one number and one unit."""
    for unit in ("ms", "s", "m", "h"):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return float(number) * UNITS[unit]
    raise Refuse(400, f"fake: {text!r} is not a duration")


def refuse_unknown(given: Mapping[str, Any] | set[str], known: set[str]) -> None:
    if unknown := set(given) - known:
        raise Refuse(400, f"fake: not documented: {sorted(unknown)}")


@dataclass
class Beat:
    """One TTL check."""

    raw: dict[str, Any]
    ttl: float
    reap: float
    due: float
    dead_since: float = 0.0


@dataclass
class Lease:
    """One session. `ends` 0: no TTL."""

    raw: dict[str, Any]
    ttl: float
    delay: float
    ends: float


@dataclass
class Found:
    """An answer that blocks on `index` (0: does not); `hashed`: only while the index asked with is equal."""

    body: object
    index: int = 0
    status: int = 200
    raw: bytes | None = None
    hashed: bool = False

    def answer(self) -> Answer:
        body = self.raw if self.raw is not None else json.dumps(self.body).encode()
        return Answer(self.status, {"x-consul-index": str(self.index)} if self.index else {}, body)


@dataclass
class FakeConsul:
    """One agent that is its own cluster. `now` gives seconds; `log` holds (method, path) of each request."""

    now: Callable[[], float]
    index: int = 10
    log: list[tuple[str, str]] = field(default_factory=list)
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    beats: dict[str, Beat] = field(default_factory=dict)
    other_checks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    kv: dict[str, dict[str, Any]] = field(default_factory=dict)
    tombs: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    failing: int = 0
    """Status that every request is answered with while it is not 0."""

    def forget(self) -> None:
        """What a restart without state does: everything is gone, indexes begin anew."""
        self.__init__(self.now, log=self.log)  # type: ignore[misc]

    def poll(self, request: Request, began: float) -> Answer | None:
        """The answer, or None while the request is held back; `began` is when it came."""
        self._tick()
        params = request.params
        try:
            if self.failing:
                raise Refuse(self.failing, "No cluster leader")
            found = self._route(request.method, request.path, params, request.body or b"")
        except Refuse as refusal:
            return Answer(refusal.status, {}, refusal.text.encode())
        given = dict(params)
        index = int(given.get("index", "0"))
        same = index == found.index if found.hashed else index >= found.index
        if found.index and index and same and self.now() < began + seconds(given.get("wait", "300s")):
            return None
        return found.answer()

    # the routes

    def _route(self, method: str, path: str, params: tuple[tuple[str, str], ...], body: bytes) -> Found:
        names = {name for name, _ in params}
        if {"index", "wait"} & names and method != "GET":
            raise Refuse(400, "fake: only reads block")
        head, _, tail = path.partition("/")
        if head == "kv":
            return self._kv(method, tail, params, body)
        for prefix, wanted, known, work in self._table():
            if (path == prefix or (prefix.endswith("/") and path.startswith(prefix) and path != prefix)) and method == wanted:
                refuse_unknown(names, COMMON | known)
                return work(path[len(prefix) :], params, body)
        raise Refuse(404, "Invalid URL path: not a recognized HTTP API endpoint")

    def _table(self) -> list[tuple[str, str, set[str], Callable[[str, tuple[tuple[str, str], ...], bytes], Found]]]:
        return [
            ("status/leader", "GET", set(), lambda *_: Found("127.0.0.1:8300")),
            ("agent/self", "GET", set(), lambda *_: Found({"Config": {"NodeName": NODE, "Datacenter": "dc1"}})),
            (
                "agent/members",
                "GET",
                {"wan"},
                lambda *_: Found([{"Name": NODE, "Addr": "192.0.2.1", "Port": 8301, "Status": 1, "Tags": {}}]),
            ),
            ("agent/service/register", "PUT", {"replace-existing-checks"}, self._register),
            ("agent/service/deregister/", "PUT", set(), self._deregister),
            ("agent/service/maintenance/", "PUT", {"enable", "reason"}, self._maintenance),
            ("agent/service/", "GET", {"hash"}, self._agent_service),
            ("agent/check/update/", "PUT", set(), self._update),
            ("catalog/services", "GET", {"filter", "node-meta"}, lambda *_: Found(self._names(), max(self.index, 1))),
            ("catalog/nodes", "GET", {"near", "filter"}, lambda *_: Found([self._node()], 5)),
            ("health/service/", "GET", {"near", "tag", "node-meta", "passing", "filter"}, self._health),
            ("health/checks/", "GET", {"near", "filter"}, lambda name, *_: Found(self._checks_named(name), self._service_index(name))),
            ("health/state/", "GET", {"near", "filter"}, self._state),
            ("session/create", "PUT", set(), self._session_create),
            ("session/destroy/", "PUT", set(), lambda key, *_: (self._end(key), Found(True))[1]),
            ("session/renew/", "PUT", set(), self._session_renew),
            ("session/info/", "GET", set(), lambda key, *_: Found([self.leases[key].raw] if key in self.leases else [], self.index)),
            ("session/list", "GET", set(), lambda *_: Found([lease.raw for lease in self.leases.values()], self.index)),
            (
                "session/node/",
                "GET",
                set(),
                lambda node, *_: Found([x.raw for x in self.leases.values() if x.raw["Node"] == node], self.index),
            ),
            ("txn", "PUT", set(), self._txn),
            ("snapshot", "GET", set(), lambda *_: Found(None, self.index, raw=json.dumps(self.kv).encode())),
            ("snapshot", "PUT", set(), self._restore),
            ("catalog/datacenters", "GET", set(), lambda *_: Found(["dc1"])),
            ("catalog/node/", "GET", {"filter"}, self._of_node),
            ("event/fire/", "PUT", {"node", "service", "tag"}, self._fire),
            ("event/list", "GET", {"name"}, self._event_list),
        ]

    # services

    def _register(self, _: str, __: object, body: bytes) -> Found:
        raw = json.loads(body)
        refuse_unknown(raw, SERVICE_FIELDS)
        if not raw.get("Name"):
            raise Refuse(400, "Missing service name")
        key = raw.get("ID") or raw["Name"]
        checks = []
        self._drop_checks(key)
        for number, check in enumerate(raw.get("Checks") or (), 1):
            refuse_unknown(check, CHECK_FIELDS)
            made = {
                "CheckID": check.get("CheckID") or f"service:{key}:{number}",
                "Name": check.get("Name") or f"Service '{raw['Name']}' check",
            }
            made |= {"Status": check.get("Status", "critical"), "Output": "", "Node": NODE, "ServiceID": key, "ServiceName": raw["Name"]}
            if "TTL" in check:
                ttl, reap = seconds(check["TTL"]), seconds(check.get("DeregisterCriticalServiceAfter", "0s"))
                self.beats[made["CheckID"]] = Beat(made, ttl, reap, self.now() + ttl)
            elif not check.get("Interval") and "AliasService" not in check:
                raise Refuse(400, "Invalid check: Interval must be > 0")
            checks.append(made)
        self.other_checks[key] = checks
        if ports := raw.get("Ports"):
            ports = [{**port, "Default": port.get("Default") or (not raw.get("Port") and port == raw["Ports"][0])} for port in ports]
            raw |= {"Ports": ports, "Port": raw.get("Port") or next(port["Port"] for port in ports if port["Default"])}
        self.services[key] = {**raw, "ID": key, "ModifyIndex": self._next()}
        self.gone[raw["Name"]] = self.index
        return Found(None, raw=b"")

    def _deregister(self, key: str, *_: object) -> Found:
        if key not in self.services:
            raise Refuse(404, f'Unknown service ID "{key}". Ensure that the service ID is passed, not the service name.')
        self._drop_checks(key)
        self.gone[self.services.pop(key)["Name"]] = self._next()
        return Found(None, raw=b"")

    def _maintenance(self, key: str, params: tuple[tuple[str, str], ...], _: bytes) -> Found:
        enable = dict(params).get("enable")
        if key not in self.services or enable not in ("true", "false"):
            raise Refuse(404 if key not in self.services else 400, "Missing value for enable")
        name = f"_service_maintenance:{key}"
        kept = [check for check in self.other_checks[key] if check["CheckID"] != name]
        mark = {"CheckID": name, "Name": "Service Maintenance Mode", "Status": "critical", "ServiceID": key, "Node": NODE}
        self.other_checks[key] = [*kept, mark] if enable == "true" else kept
        self._touch(key)
        return Found(None, raw=b"")

    def _agent_service(self, key: str, *_: object) -> Found:
        if key not in self.services:
            raise Refuse(404, f"unknown service ID: {key}")
        return Found({"ID": key, "Service": self.services[key]["Name"]})

    def _update(self, key: str, _: object, body: bytes) -> Found:
        raw = json.loads(body)
        refuse_unknown(raw, {"Status", "Output"})
        if raw["Status"] not in ("passing", "warning", "critical"):
            raise Refuse(400, f"Invalid check status: '{raw['Status']}'")
        if key not in self.beats:
            raise Refuse(404, f'Unknown check ID "{key}". Ensure that the check ID is passed, not the check name.')
        beat = self.beats[key]
        beat.due = self.now() + beat.ttl
        self._set_status(beat, raw["Status"], raw.get("Output", ""))
        return Found(None, raw=b"")

    def _health(self, name: str, params: tuple[tuple[str, str], ...], _: bytes) -> Found:
        tags = {value for key, value in params if key == "tag"}
        given = dict(params)
        if given.get("passing", "true") not in ("", "1", "true"):
            raise Refuse(400, "Invalid value for ?passing")
        entries = [self._entry(key) for key in sorted(self.services) if self.services[key]["Name"] == name]
        found = [entry for entry in entries if tags <= set(entry["Service"]["Tags"])]
        if "passing" in given:
            found = [entry for entry in found if all(check["Status"] == "passing" for check in entry["Checks"])]
        return Found(found, self._service_index(name))

    def _entry(self, key: str) -> dict[str, Any]:
        raw = self.services[key]
        service = {
            "ID": key,
            "Service": raw["Name"],
            "Tags": raw.get("Tags") or [],
            "Address": raw.get("Address", ""),
            "Port": raw.get("Port", 0),
        }
        service |= {"Meta": raw.get("Meta") or {}, "Weights": raw.get("Weights") or {"Passing": 1, "Warning": 1}}
        service |= {"Ports": raw["Ports"]} if raw.get("Ports") else {}
        own = {"CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing", "Node": NODE, "ServiceID": ""}
        return {"Node": self._node(), "Service": service | {"ModifyIndex": raw["ModifyIndex"]}, "Checks": [own, *self.other_checks[key]]}

    def _checks_named(self, name: str) -> list[dict[str, Any]]:
        return [check for key in sorted(self.services) if self.services[key]["Name"] == name for check in self.other_checks[key]]

    def _state(self, status: str, *_: object) -> Found:
        own = {"CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing", "Node": NODE, "ServiceID": ""}
        every = [own, *(check for key in sorted(self.services) for check in self.other_checks[key])]
        return Found([check for check in every if status in ("any", check["Status"])], self.index)

    def _names(self) -> dict[str, list[str]]:
        names: dict[str, set[str]] = {"consul": set()}
        for raw in self.services.values():
            names.setdefault(raw["Name"], set()).update(raw.get("Tags") or [])
        return {name: sorted(tags) for name, tags in names.items()}

    def _node(self) -> dict[str, Any]:
        return {
            "ID": str(uuid.UUID(int=1)),
            "Node": NODE,
            "Address": "192.0.2.1",
            "Datacenter": "dc1",
            "Meta": {"zone": "a"},
            "ModifyIndex": 5,
        }

    def _service_index(self, name: str) -> int:
        return max(self.gone.get(name, 1), 1)

    def _touch(self, key: str) -> None:
        self.gone[self.services[key]["Name"]] = self._next()

    def _set_status(self, beat: Beat, status: str, output: str) -> None:
        if (beat.raw["Status"], beat.raw["Output"]) != (status, output):
            beat.raw |= {"Status": status, "Output": output}
            beat.dead_since = self.now() if status == "critical" else 0.0
            self._touch(beat.raw["ServiceID"])

    def _drop_checks(self, key: str) -> None:
        self.beats = {name: beat for name, beat in self.beats.items() if beat.raw["ServiceID"] != key}
        self.other_checks.pop(key, None)

    # keys

    def _kv(self, method: str, key: str, params: tuple[tuple[str, str], ...], body: bytes) -> Found:
        given = dict(params)
        known = {
            "GET": {"recurse", "keys", "separator", "raw"},
            "PUT": {"flags", "cas", "acquire", "release"},
            "DELETE": {"recurse", "cas"},
        }
        if method not in known:
            raise Refuse(405, f"method {method} not allowed")
        refuse_unknown(given, COMMON | known[method])
        if key.startswith("/"):
            raise Refuse(400, "fake: a key begins with no slash")
        if method == "GET":
            return self._kv_get(key, given)
        if method == "DELETE":
            return Found(self._kv_delete(key, given))
        if len({"cas", "acquire", "release"} & set(given)) > 1:
            raise Refuse(400, "Conflicting flags: only one of cas, acquire and release")
        if not key:
            raise Refuse(400, "Missing key name")
        if len(body) > 512 * 1024:
            raise Refuse(413, "Request body too large, max size: 524288 bytes")
        return Found(self._kv_put(key, given, body))

    def _kv_get(self, key: str, given: dict[str, str]) -> Found:
        if not {"recurse", "keys"} & set(given):
            if not key:
                raise Refuse(400, "Missing key name")
            found = self.kv.get(key)
            return Found([found], found["ModifyIndex"]) if found else Found(None, self._kv_index(""), 404, b"")
        names = sorted(name for name in self.kv if name.startswith(key))
        index = self._kv_index(key)
        if not names:
            return Found([], index) if "keys" in given and not key else Found(None, index, 404, b"")
        if "recurse" in given:
            return Found([self.kv[name] for name in names], index)
        mark = given.get("separator", "")
        return Found(sorted({key + name[len(key) :].partition(mark)[0] + (mark if mark in name[len(key) :] else "") for name in names})
                     if mark else names, index)  # fmt: skip

    def _kv_index(self, prefix: str) -> int:
        entries = [entry["ModifyIndex"] for name, entry in self.kv.items() if name.startswith(prefix)]
        return max([1, *entries, *(index for name, index in self.tombs.items() if name.startswith(prefix))])

    def _kv_put(self, key: str, given: dict[str, str], body: bytes) -> bool:
        old = self.kv.get(key)
        if "cas" in given and int(given["cas"]) != (old["ModifyIndex"] if old else 0):
            return False
        holder = old.get("Session") if old else None
        session, locks = holder, old["LockIndex"] if old else 0
        if "acquire" in given:
            session = given["acquire"]
            if session not in self.leases:
                raise Refuse(500, f'invalid session "{session}"')
            if holder not in (None, session) or (holder is None and self.now() < self.delays.get(key, 0.0)):
                return False
            locks += holder is None
        if "release" in given:
            if holder is None or holder != given["release"]:
                return False
            session = None
        self._kv_store(key, body, int(given.get("flags", "0")), session, locks)
        return True

    def _kv_store(self, key: str, body: bytes, flags: int, session: str | None, locks: int) -> None:
        old = self.kv.get(key, {})
        new = {"Key": key, "Value": b64encode(body).decode() if body else None, "Flags": flags, "LockIndex": locks}
        new |= {"Session": session} if session else {}
        if old and {**old, **new} == old and old.get("Session") == session:
            return
        index = self._next()
        self.kv[key] = {**new, "CreateIndex": old.get("CreateIndex", index), "ModifyIndex": index}

    def _kv_delete(self, key: str, given: dict[str, str]) -> bool:
        if {"recurse", "cas"} <= set(given):
            raise Refuse(400, "Conflicting flags: recurse and cas")
        names = [name for name in self.kv if name.startswith(key)] if "recurse" in given else [key] if key in self.kv else []
        if "cas" in given and names and self.kv[key]["ModifyIndex"] != int(given["cas"]):
            return False
        if names:
            index = self._next()
            for name in names:
                del self.kv[name]
                self.tombs[name] = index
        return True

    def _txn(self, _: str, __: object, body: bytes) -> Found:
        saved = (dict(self.kv), dict(self.tombs), self.index)
        results, errors = [], []
        for place, item in enumerate(json.loads(body)):
            op = item["KV"]
            refuse_unknown(op, {"Verb", "Key", "Value", "Flags", "Index", "Session"})
            value, key = b64decode(op.get("Value") or ""), op["Key"]
            if op["Verb"] == "check-not-exists" and key in self.kv:
                errors.append({"OpIndex": place, "What": f'key "{key}" exists'})
            elif op["Verb"] == "get" and key not in self.kv:
                errors.append({"OpIndex": place, "What": f'key "{key}" doesn\'t exist'})
            elif op["Verb"] == "cas" and not self._kv_put(key, {"cas": str(op["Index"])}, value):
                errors.append({"OpIndex": place, "What": f'failed to set key "{key}", index is stale'})
            elif op["Verb"] == "set":
                self._kv_put(key, {"flags": str(op.get("Flags", 0))}, value)
            elif op["Verb"] == "delete":
                self._kv_delete(key, {})
                continue
            if key in self.kv:
                results.append({"KV": self.kv[key] if op["Verb"] == "get" else {**self.kv[key], "Value": None}})
        if errors:
            self.kv, self.tombs, self.index = saved
            return Found({"Results": None, "Errors": errors}, status=409)
        return Found({"Results": results, "Errors": None})

    def _restore(self, _: str, __: object, body: bytes) -> Found:
        self.kv = json.loads(body)
        return Found(None, raw=b"")

    def _of_node(self, name: str, *_: object) -> Found:
        if name != NODE:
            return Found(None, self.index)
        return Found({"Node": self._node(), "Services": {key: self._entry(key)["Service"] for key in self.services}}, self.index)

    # sessions and events

    def _session_create(self, _: str, __: object, body: bytes) -> Found:
        raw = json.loads(body or b"{}")
        refuse_unknown(raw, {"Name", "Node", "LockDelay", "Behavior", "TTL", "Checks", "NodeChecks", "ServiceChecks"})
        ttl = seconds(raw["TTL"]) if raw.get("TTL") else 0.0
        if ttl and not 10 <= ttl <= 86400:
            raise Refuse(500, f"Invalid Session TTL '{raw['TTL']}', must be between [10s=24h0m0s]")
        key, delay = str(uuid.uuid4()), seconds(raw.get("LockDelay", "15s"))
        made = {"ID": key, "Name": raw.get("Name", ""), "Node": NODE, "LockDelay": int(delay * 1e9), "TTL": raw.get("TTL", "")}
        made |= {"Behavior": raw.get("Behavior", "release"), "CreateIndex": self._next(), "ModifyIndex": self.index}
        self.leases[key] = Lease(made, ttl, delay, self.now() + SESSION_TTL_FACTOR * ttl if ttl else 0.0)
        return Found({"ID": key})

    def _session_renew(self, key: str, *_: object) -> Found:
        lease = self.leases.get(key)
        if lease is None:
            raise Refuse(404, f"Session id '{key}' not found")
        lease.ends = self.now() + SESSION_TTL_FACTOR * lease.ttl if lease.ttl else 0.0
        return Found([lease.raw])

    def _end(self, key: str) -> None:
        lease = self.leases.pop(key, None)
        for name, entry in list(self.kv.items()) if lease else ():
            if lease and entry.get("Session") == key:
                self.delays[name] = self.now() + lease.delay
                if lease.raw["Behavior"] == "delete":
                    self._kv_delete(name, {})
                else:
                    self._kv_store(name, b64decode(entry["Value"] or ""), entry["Flags"], None, entry["LockIndex"])

    def _fire(self, name: str, params: tuple[tuple[str, str], ...], body: bytes) -> Found:
        given = dict(params)
        made = {"ID": str(uuid.uuid4()), "Name": name, "Payload": b64encode(body).decode() if body else None, "Version": 1, "LTime": 0}
        made |= {"NodeFilter": given.get("node", ""), "ServiceFilter": given.get("service", ""), "TagFilter": given.get("tag", "")}
        self.events = [*self.events, made][-256:]
        self._next()
        return Found(made)

    def _event_list(self, _: str, params: tuple[tuple[str, str], ...], __: bytes) -> Found:
        given = dict(params)
        found = [event for event in self.events if given.get("name", event["Name"]) == event["Name"]]
        last = uuid.UUID(found[-1]["ID"]).int if found else 1
        index = (last >> 64) ^ (last & (1 << 64) - 1) or 1
        return Found(found, index, hashed=True)

    def _next(self) -> int:
        self.index += 1
        return self.index

    def _tick(self) -> None:
        """What time alone does: heartbeats run out, dead instances are removed, sessions end."""
        for beat in list(self.beats.values()):
            if beat.raw["Status"] != "critical" and self.now() >= beat.due:
                self._set_status(beat, "critical", "TTL expired")
            elif beat.raw["Status"] == "critical" and beat.reap and self.now() >= (beat.dead_since or beat.due) + beat.reap:
                self._deregister(beat.raw["ServiceID"])
        for key, lease in list(self.leases.items()):
            if lease.ends and self.now() >= lease.ends:
                self._end(key)


# real sockets

POLL_S = 0.01


class Server(ThreadingHTTPServer):
    """The fake behind a socket. `reset` cuts every connection, `paused` makes it answer nobody."""

    daemon_threads = True
    fake: FakeConsul

    def __init__(self, fake: FakeConsul, port: int = 0) -> None:
        self.fake, self.lock, self.lines, self.connections = fake, threading.Lock(), set[Any](), 0
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is nothing to write about."""

    def reset(self) -> None:
        for line in list(self.lines):
            try:
                line.shutdown(2)
            except OSError:
                pass  # closed already


class Handler(BaseHTTPRequestHandler):
    """One connection with any number of requests."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.lines.add(self.connection)
        self.server.connections += 1

    def finish(self) -> None:
        self.server.lines.discard(self.connection)
        try:
            super().finish()
        except OSError:
            pass  # cut on purpose

    def _do(self) -> None:
        parts = urlsplit(self.path)
        params = tuple(parse_qsl(parts.query, keep_blank_values=True))
        path = unquote(parts.path).removeprefix("/v1/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request, began = Request(self.command, path, params, body), self.server.fake.now()
        with self.server.lock:
            self.server.fake.log.append((self.command, path))
        while True:
            with self.server.lock:
                answer = self.server.fake.poll(request, began)
            if answer is not None:
                break
            time.sleep(POLL_S)
        self._reply(answer)

    def _reply(self, answer: Answer) -> None:
        """Every second answer in chunks, so that both framings are met."""
        chunked = self.server.connections % 2 == 0
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding" if chunked else "Content-Length", "chunked" if chunked else str(len(answer.body)))
            self.end_headers()
            pieces = [answer.body[at : at + 100] for at in range(0, len(answer.body), 100)] if chunked else [answer.body]
            for piece in pieces:
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" if chunked else piece)
            self.wfile.write(b"0\r\n\r\n" if chunked else b"")
            self.wfile.flush()
        except OSError:
            self.close_connection = True

    do_GET = do_PUT = do_DELETE = do_POST = _do  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(fake: FakeConsul, port: int = 0) -> Iterator[Server]:
    """The fake on a loopback port until the block ends."""
    server = Server(fake, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.reset()
        server.server_close()
        thread.join()


# a clock of its own


class Timeline:
    """Runs operations against a fake in a time that only passes when all of them wait. `cut`: names whose requests do not arrive."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fake = FakeConsul(lambda: self.now)
        self.cut: set[str] = set()
        self.results: dict[str, Any] = {}
        self.ended: dict[str, float] = {}
        self._running: dict[str, _Running] = {}
        self._planned: list[tuple[float, int, Callable[[], None]]] = []

    def start(self, name: str, steps: Steps[Any]) -> None:
        self._running[name] = _Running(name, steps)
        self._advance(self._running[name], None)

    def stop(self, name: str) -> None:
        """As if the program had died."""
        self._running.pop(name).steps.close()

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something when so much time has passed since the beginning."""
        heapq.heappush(self._planned, (1000.0 + seconds, len(self._planned), do))

    def run(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self.now < until:
            while self._planned and self._planned[0][0] <= self.now:
                heapq.heappop(self._planned)[2]()
            for running in list(self._running.values()):
                self._poll(running)
            self.now = round(self.now + step, 6)

    def finish(self, name: str, limit: float = 600.0) -> Any:
        """Let time pass until an operation ends, and return its result; an error of it is raised."""
        while name in self._running:
            assert limit > 0, f"{name} does not end"
            self.run(0.05)
            limit -= 0.05
        result = self.results[name]
        if isinstance(result, Exception):
            raise result
        return result

    def do(self, steps: Steps[Any]) -> Any:
        self.start("", steps)
        return self.finish("")

    def _poll(self, running: _Running) -> None:
        for _ in range(200):
            effect = running.effect
            if running.name not in self._running or effect is None:
                return
            if isinstance(effect, Request):
                away, answer = running.name in self.cut, None
                if not away:
                    if not running.arrived:
                        self.fake.log.append((effect.method, effect.path))
                    running.arrived = True
                    answer = self.fake.poll(effect, running.since)
                if answer is not None:
                    self._advance(running, answer)
                elif self.now - running.since >= effect.limit(10.0):
                    self._advance(running, Unreachable("cut", True))
                else:
                    return
            elif isinstance(effect, Sleep):
                if self.now < running.since + effect.seconds:
                    return
                self._advance(running, None)
            else:
                self._advance(running, self.now)
        raise AssertionError(f"{running.name} makes 200 requests at once")

    def _advance(self, running: _Running, value: object) -> None:
        try:
            running.effect = running.steps.throw(value) if isinstance(value, Exception) else running.steps.send(value)
            running.since, running.arrived = self.now, False
        except StopIteration as done:
            self._end(running.name, done.value)
        except Exception as error:
            self._end(running.name, error)

    def _end(self, name: str, result: object) -> None:
        del self._running[name]
        self.results[name], self.ended[name] = result, self.now


@dataclass
class _Running:
    name: str
    steps: Steps[Any]
    effect: object = None
    since: float = 0.0
    arrived: bool = False
