# SPDX-License-Identifier: Apache-2.0
"""What schemathesis is told of this API: what there is, not to wait for changes, and that a 500 must be a refusal, never a fault.

Loaded by schemathesis (SCHEMATHESIS_HOOKS) in a process of its own, with nothing of this project on the path. FUZZ_KNOWN: JSON, name of a
variable part of paths -> values that exist.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from typing import Any

import schemathesis

_DURATION = re.compile(r"((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+|0|")
_KNOWN: dict[str, list[str]] = json.loads(os.environ.get("FUZZ_KNOWN", "{}"))
_ENDING = re.compile(r"deregister|destroy")
_RIGHT = {
    "dc": "dc1",
    "ns": "default",
    "partition": "default",
    "sg": "default",
    "max_stale": "1s",
    "filter": 'Node != "x"',
    "selector": "a!=b",
    "enable": "1",
}
"""What nearly every other value of these parameters is refused before: the rest of the request would not be looked at."""


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """A query that would wait for a change waits a millisecond, unless its time is no time at all. Two requests of three are about
    something that exists, if they do not end it, and three of four have right values where wrong ones hide the rest; which ones depends on
    what they say."""
    query = case.query
    if query and ("index" in query or "hash" in query) and _DURATION.fullmatch(str(query.get("wait", ""))):
        query["wait"] = "1ms"
    chosen = zlib.crc32(repr((case.path, case.path_parameters, query, case.body)).encode(errors="replace"))
    if query and chosen % 4:
        query.update({name: value for name, value in _RIGHT.items() if name in query})
        if "consistent" in query:
            query.pop("stale", None), query.pop("cached", None)
    if case.method != "DELETE" and not _ENDING.search(case.path) and chosen % 3:
        for name in case.path_parameters or ():
            known = _KNOWN.get(name, [])
            if known:
                case.path_parameters[name] = known[chosen // 3 % len(known)]


@schemathesis.check
def no_fault(context: Any, response: Any, case: Any) -> None:
    """The agent's word for an exception that nobody foresaw."""
    assert b"error inside the agent" not in response.content, response.text[:500]
