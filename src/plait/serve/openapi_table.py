# SPDX-License-Identifier: Apache-2.0
"""What each call of the HTTP API takes and answers: the one source of its OpenAPI description and of docs/http-api.md.

A row for each method of each `Route`; what a route is for stands at the route itself. A house test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from plait.serve.openapi_shapes import Shape

Json = dict[str, object]
EMPTY, TEXT, BYTES, EVENTS = "", "text/plain", "application/octet-stream", "text/event-stream"
ARCHIVE = "application/x-gzip"


class Operation(NamedTuple):
    """`takes`: names of `PARAMETERS`, blanks between. `answer`: a shape (JSON) or a content type; "": nothing; None: it is always refused.
    `body`: as `answer`, None: none. `more`: status -> what it means, beside those of `STATUSES`. `consistent`: the answer has the headers
    of a catalogue read."""

    takes: str = ""
    answer: Shape | None = EMPTY
    body: Shape | None = None
    more: Mapping[int, str] = {}
    consistent: bool = False
    carried: tuple[int, ...] = (200,)
    """Statuses whose body is `answer`; that of the others is text."""
    or_text: bool = False
    """The answer may be text, if the request asks for it."""


_DURATION = "a Go duration such as `1m30s`"
_PRESENT: Json = {"type": "boolean"}
_TEXT: Json = {"type": "string"}
_NUMBER: Json = {"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1}
_TEXTS: Json = {"type": "array", "items": _TEXT}

PARAMETERS: Mapping[str, tuple[Json, str]] = {
    "dc": (_TEXT, "the datacentre; there is only this cluster's"),
    "ns": (_TEXT, "the namespace; there is only `default`"),
    "partition": (_TEXT, "the partition; there is only `default`"),
    "sg": (_TEXT, "the sameness group; there is only `default`"),
    "pretty": (_PRESENT, "indent the answer by four blanks, as `plait consul agent -dev` always does"),
    "index": (_NUMBER, "wait until the result is newer than the answer that had this `X-Consul-Index`; 0: answer at once"),
    "wait": (_TEXT, f"how long `index` or `hash` may wait, {_DURATION}; 5m if absent, 10m at most, and up to a sixteenth more"),
    "stale": (_PRESENT, "this agent's copy is good enough, which it always answers from"),
    "consistent": (_PRESENT, "refuse (500) while the store is out of reach"),
    "cached": (_PRESENT, "tell `X-Cache` and `Age` too"),
    "max_stale": (_TEXT, f"accepted as `stale`, {_DURATION}"),
    "near": (_TEXT, "sort by the distance from this node, `_agent` for the agent's own"),
    "node-meta": (_TEXTS, "only nodes with this `key:value`; several: all of them"),
    "filter": (_TEXT, "only elements for which this expression holds; its regular expressions are RE2's"),
    "tag": (_TEXTS, "only instances with this tag; several: all of them"),
    "passing": (_PRESENT, "only instances all of whose checks pass"),
    "peer": (_TEXT, "a peer; there is none, so the answer is empty"),
    "selector": (_TEXT, "labels such as `app=web,tier!=test`, all of which must fit"),
    "service": (_TEXT, "the name of a service"),
    "port": (_TEXT, "only ports of this name"),
    "wan": (_PRESENT, "names with the datacentre behind them"),
    "hash": (_TEXT, "wait until the answer has another `X-Consul-ContentHash`"),
    "format": (_TEXT, "`text`: as text; `prometheus`: as its text format"),
    "note": (_TEXT, "the check's output"),
    "enable": (_PRESENT, "whether it begins or ends"),
    "reason": (_TEXT, "shown with the maintenance"),
    "replace-existing-checks": (_PRESENT, "the checks that are not in the body go"),
    "recurse": (_PRESENT, "all keys that begin like this"),
    "keys": (_PRESENT, "names only, of all keys that begin like this"),
    "separator": (_TEXT, "with `keys`: names up to and with this"),
    "raw": (_PRESENT, "the value alone"),
    "flags": (_NUMBER, "kept with the key"),
    "cas": (_NUMBER, "only if the record has this `ModifyIndex`; 0: only if there is none"),
    "acquire": (_TEXT, "lock the key for this session"),
    "release": (_TEXT, "unlock the key from this session"),
    "ttl": (_TEXT, f"after which the key goes by itself, {_DURATION}, 24h at most"),
    "node": (_TEXT, "the name of a node"),
    "name": (_TEXT, "only events of this name"),
    "limit": (_NUMBER, "at most so many instances; 0: all"),
    "id": (_TEXT, "the server's id"),
    "address": (_TEXT, "the server's address"),
    "loglevel": (_TEXT, "trace, debug, info, warn or err"),
    "logjson": (_PRESENT, "accepted; the lines are as the agent writes them"),
    "prune": (_PRESENT, "accepted, without effect"),
}
"""Parameters of the query: their schema, what they mean. One that is "boolean" counts as true without a value too."""
EVERYWHERE = "dc ns partition sg pretty"
CONSISTENCY = "stale consistent cached max_stale"
BLOCKING = f"index wait {CONSISTENCY}"
STATUSES: Mapping[int, str] = {
    200: "done",
    400: "the request is wrong; the text says how",
    500: "it cannot be carried out, or not now; the text says why",
}
"""Of every operation. Others that every request may get, of the server: 405 (Allow says what is possible), 408, 413, 431, 503."""

_NO_KEY = {404: "there is no such key"}
_UNKNOWN = {404: "there is none of that name or id"}
_TTL = {404: "there is no TTL check of that id"}
_LARGE = {413: "the body is too large"}
_BY_STATUS = {404: "there is none", 429: "it is warning", 503: "it is critical or in maintenance"}
_ALL_STATUSES = (200, *_BY_STATUS)


def _read(answer: Shape, takes: str = "node-meta filter") -> Operation:
    """A blocking read of the catalogue."""
    return Operation(f"{takes} near {BLOCKING}", answer, consistent=True)


_REFUSED = Operation(answer=None)
_NONE = Operation(CONSISTENCY, ["any"], consistent=True)
_NONE_FILTERED = _NONE._replace(takes=f"filter {CONSISTENCY}")
_TTL_SAID = Operation("note", more=_TTL)

OPERATIONS: Mapping[str, Operation] = {
    # --- this agent
    "GET agent/self": Operation(answer="@Self"),
    "GET agent/version": Operation(answer="@Version"),
    "GET agent/members": Operation("wan filter", ["@Member"]),
    "GET agent/services": Operation("filter", {"*": "@AgentService"}),
    "PUT agent/services": Operation(answer="@SeedService", body="@ServiceRequest", more=_LARGE),
    "GET agent/service/<id>": Operation("hash wait", "@AgentService", more=_UNKNOWN),
    "PUT agent/service/register": Operation("replace-existing-checks", body="@ServiceRequest", more=_LARGE),
    "PUT agent/service/deregister/<id>": Operation(more=_UNKNOWN),
    "PUT agent/service/maintenance/<id>": Operation("enable reason", more=_UNKNOWN),
    "PUT agent/maintenance": Operation("enable reason"),
    "GET agent/checks": Operation("filter", {"*": "@Check"}),
    "PUT agent/check/register": Operation(body="@CheckRequest", more={**_UNKNOWN, **_LARGE}),
    "PUT agent/check/deregister/<id>": Operation(more=_UNKNOWN),
    "PUT agent/check/pass/<id>": _TTL_SAID,
    "PUT agent/check/warn/<id>": _TTL_SAID,
    "PUT agent/check/fail/<id>": _TTL_SAID,
    "PUT agent/check/update/<id>": Operation(body="@CheckUpdate", more={**_TTL, **_LARGE}),
    "GET agent/health/service/name/<name>": Operation(
        "format", "@AgentHealths or null", more=_BY_STATUS, carried=_ALL_STATUSES, or_text=True
    ),
    "GET agent/health/service/id/<id>": Operation("format", "@AgentHealth", more=_BY_STATUS, carried=_ALL_STATUSES, or_text=True),
    "GET agent/metrics": Operation("format", "@Metrics", or_text=True),
    "GET agent/metrics/stream": Operation(answer=TEXT),
    "GET agent/monitor": Operation("loglevel logjson", TEXT),
    "GET agent/host": Operation(answer="@Machine"),
    "PUT agent/leave": Operation(),
    "PUT agent/reload": Operation(),
    "PUT agent/join/<address>": Operation("wan"),
    "PUT agent/force-leave/<node>": Operation("prune wan"),
    # --- the catalogue and its health
    "GET status/leader": Operation(answer="text"),
    "GET status/peers": Operation(answer=["text"]),
    "PUT catalog/register": Operation(answer="flag", body="@CatalogRegistration", more=_LARGE),
    "PUT catalog/deregister": Operation(answer="flag", body="@CatalogRemoval", more=_LARGE),
    "GET catalog/datacenters": Operation(answer=["text"]),
    "GET catalog/nodes": _read(["@Node"]),
    "GET catalog/services": _read({"*": ["text"]}),
    "GET catalog/service/<name>": _read(["@CatalogService"], "tag peer node-meta filter"),
    "GET catalog/node/<name>": _read("@NodeServices or null"),
    "GET catalog/node-services/<name>": _read("@NodeServiceList"),
    "GET health/service/<name>": _read(["@Entry"], "passing tag peer node-meta filter"),
    "GET health/services": _read({"*": ["@Entry"]}, "passing node-meta filter"),
    "GET health/node/<name>": _read(["@Check"]),
    "GET health/checks/<name>": _read(["@Check"]),
    "GET health/state/<state>": _read(["@Check"]),
    "GET internal/ui/services": _read(["@UiService"]),
    "GET internal/ui/nodes": _read(["@UiNode"]),
    "GET internal/ui/node/<name>": _read("@UiNode or null", "node-meta"),
    # --- beyond Consul
    "GET plait/instances": _read(["@LabelledEntry"], "selector service tag passing node-meta filter"),
    "GET plait/http_sd": Operation("selector service tag passing port node-meta", ["@TargetGroup"]),
    "GET plait/events": Operation("service selector", EVENTS),
    "GET plait/openapi.json": Operation(answer={"*": "any"}),
    # --- keys, sessions, transactions, events, queries
    "GET kv/<key>": Operation(f"recurse keys separator raw {BLOCKING}", "any", more=_NO_KEY, consistent=True, or_text=True),
    "PUT kv/<key>": Operation("flags cas acquire release ttl", "flag", BYTES, _LARGE),
    "DELETE kv/<key>": Operation("recurse cas", "flag"),
    "PUT session/create": Operation(answer="@Id", body="@SessionRequest", more=_LARGE),
    "PUT session/destroy/<id>": Operation(answer="flag"),
    "PUT session/renew/<id>": Operation(answer=["@Session"], more=_UNKNOWN),
    "GET session/info/<id>": Operation(BLOCKING, ["@Session"], consistent=True),
    "GET session/node/<node>": Operation(BLOCKING, ["@Session"], consistent=True),
    "GET session/list": Operation(BLOCKING, ["@Session"], consistent=True),
    "PUT txn": Operation(
        CONSISTENCY, "@Outcome", ["@Operation"], {409: "nothing was done; `Errors` says why", **_LARGE}, carried=(200, 409)
    ),
    "PUT event/fire/<name>": Operation("node service tag", "@Event", BYTES, _LARGE),
    "GET event/list": Operation("name index wait", ["@Event"], consistent=True),
    "GET query": Operation(CONSISTENCY, ["@Query"], consistent=True),
    "POST query": Operation(answer="@Id", body="@QueryRequest", more=_LARGE),
    "GET query/<id>": Operation(CONSISTENCY, ["@Query"], more=_UNKNOWN, consistent=True),
    "PUT query/<id>": Operation(body="@QueryRequest", more={**_UNKNOWN, **_LARGE}),
    "DELETE query/<id>": Operation(more=_UNKNOWN),
    "GET query/<id>/execute": Operation(f"near limit {CONSISTENCY}", "@QueryResult", more=_UNKNOWN, consistent=True),
    "GET query/<id>/explain": Operation(CONSISTENCY, {"Query": "@Query"}, more=_UNKNOWN, consistent=True),
    "GET coordinate/datacenters": Operation(answer=["@Area"]),
    "GET coordinate/nodes": Operation(BLOCKING, ["@Coordinate"], consistent=True),
    "GET coordinate/node/<name>": Operation(BLOCKING, ["@Coordinate"], more=_UNKNOWN, consistent=True),
    "PUT coordinate/update": Operation(answer="flag", body="@CoordinateRequest", more=_LARGE),
    # --- the operator's
    "GET snapshot": Operation(CONSISTENCY, ARCHIVE, consistent=True),
    "PUT snapshot": Operation(body=BYTES, more=_LARGE),
    "GET operator/raft/configuration": Operation(answer="@Raft"),
    "DELETE operator/raft/peer": Operation("id address"),
    "POST operator/raft/transfer-leader": _REFUSED,
    "GET operator/autopilot/configuration": Operation(answer="@Autopilot"),
    "PUT operator/autopilot/configuration": Operation("cas", "flag", "@AutopilotRequest", _LARGE),
    "GET operator/autopilot/health": Operation(answer="@ServersHealth", more={429: "it is not well"}, carried=(200, 429)),
    "GET operator/autopilot/state": Operation(answer="@ServersState"),
    **{f"{method} operator/keyring": _REFUSED for method in ("GET", "POST", "PUT", "DELETE")},
    "GET operator/usage": Operation(CONSISTENCY, "@Usage", consistent=True),
    # --- what plait does not have
    "GET agent/connect/ca/roots": _REFUSED,
    "GET agent/connect/ca/leaf/<service>": _REFUSED,
    "GET connect/ca/roots": _REFUSED,
    "GET connect/ca/configuration": _REFUSED,
    "PUT connect/ca/configuration": _REFUSED,
    "GET config/<kind>": _NONE._replace(more=_UNKNOWN),
    **dict.fromkeys(("GET connect/intentions", "GET peerings"), _NONE),
    **dict.fromkeys(("GET exported-services", "GET imported-services", "GET catalog/gateway-services/<name>"), _NONE),
    **dict.fromkeys(("GET health/connect/<name>", "GET health/ingress/<name>", "GET catalog/connect/<name>"), _NONE_FILTERED),
}
"""By method and path, as the routes have it."""
