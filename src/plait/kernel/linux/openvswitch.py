# SPDX-License-Identifier: Apache-2.0
"""Ports of Open vSwitch's bridges, kept in its database: `ovs-vsctl` without the process.

In: which links shall be ports of which bridge, and in which VLAN. Out: transactions of the OVSDB protocol (RFC 7047) on the socket of
`ovsdb-server`; what is plait's carries `external_ids:plait` there. Tables and columns: ovs-vswitchd.conf.db(5). A host without that socket
has no Open vSwitch, and no ports.

Its userspace datapath (`datapath_type=netdev`) passes packets on as a packet socket reads them, without the checksums that their sender
left to a card: the container's end computes its own then.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from plait.kernel.linux import ethtool
from plait.kernel.linux.netns import inside
from plait.model.hostlinks import SwitchPort

SOCKET = Path("/var/run/openvswitch/db.sock")
_DATABASE = "Open_vSwitch"
_MARK = ["map", [["plait", "endpoint"]]]
_TIMEOUT_S, _RECV_BYTES = 2.0, 1 << 16
Row = dict[str, Any]


def held(links: Collection[str]) -> list[SwitchPort]:
    """plait's ports; of bridge "" where the link itself is none of `links`, those that are there. None while the database does not answer:
    who wants one then is told by `put`."""
    if not SOCKET.exists():
        return []
    try:
        ports, bridges = _transact(
            {"op": "select", "table": "Port", "where": [["external_ids", "includes", _MARK]], "columns": ["_uuid", "name", "tag"]},
            {"op": "select", "table": "Bridge", "where": [], "columns": ["name", "ports"]},
        )
    except OSError:
        return []
    of = {port: bridge["name"] for bridge in bridges["rows"] for port in _uuids(bridge["ports"])}
    found = ((row["name"], of.get(row["_uuid"][1], ""), _number(row["tag"])) for row in ports["rows"])
    return [SwitchPort(bridge if dev in links else "", dev, tag) for dev, bridge, tag in found]


def put(port: SwitchPort) -> None:
    """Make the link that port, from whichever bridge it was one of. Idempotent. OSError."""
    if not SOCKET.exists():
        raise OSError(errno.ENOENT, f"this host runs no Open vSwitch: there is no {SOCKET}")
    _, bridges, *_ = found = _transact(*_named(port.dev), _bridge(port.bridge))
    (bridge,) = found[-1]["rows"] or [None]
    if bridge is None:
        raise OSError(errno.ENODEV, f"Open vSwitch has no bridge {port.bridge}")
    if bridge["datapath_type"] == "netdev":
        _own_checksums(port)
    if found[0]["rows"]:
        _transact(*_without(found[0]["rows"], bridges["rows"]))
        _wait_for_switch()
    _transact(*_with(port))


def remove(port: SwitchPort) -> None:
    """Make the link no port. OSError ENODEV if it is none."""
    ports, bridges = _transact(*_named(port.dev)) if SOCKET.exists() else ({"rows": []}, {"rows": []})
    if not ports["rows"]:
        raise OSError(errno.ENODEV, f"{port.dev} is no port")
    _transact(*_without(ports["rows"], bridges["rows"]))


def _named(dev: str) -> list[Row]:
    return [
        {"op": "select", "table": "Port", "where": [["name", "==", dev]], "columns": ["_uuid"]},
        {"op": "select", "table": "Bridge", "where": [], "columns": ["_uuid", "ports"]},
    ]


def _bridge(name: str) -> Row:
    return {"op": "select", "table": "Bridge", "where": [["name", "==", name]], "columns": ["datapath_type"]}


def _without(ports: list[Row], bridges: list[Row]) -> list[Row]:
    """Operations that take ports out of their bridges; what no bridge has is collected by the database."""
    gone = {row["_uuid"][1] for row in ports}
    return [
        {
            "op": "mutate",
            "table": "Bridge",
            "where": [["_uuid", "==", bridge["_uuid"]]],
            "mutations": [["ports", "delete", ["set", [["uuid", uuid] for uuid in sorted(gone)]]]],
        }
        for bridge in bridges
        if gone & set(_uuids(bridge["ports"]))
    ]


def _with(port: SwitchPort) -> list[Row]:
    made = {"name": port.dev, "interfaces": ["named-uuid", "i"], "tag": port.tag, "external_ids": _MARK}
    return [
        {"op": "insert", "table": "Interface", "row": {"name": port.dev}, "uuid-name": "i"},
        {"op": "insert", "table": "Port", "row": made, "uuid-name": "p"},
        {
            "op": "mutate",
            "table": "Bridge",
            "where": [["name", "==", port.bridge]],
            "mutations": [["ports", "insert", ["named-uuid", "p"]]],
        },
    ]


def _wait_for_switch() -> None:
    """Until `ovs-vswitchd` has done what is in the database, a moment at most: a port that goes and comes at once it would leave with the
    link that it knew, which may not be there any more. Its own mark for that are `next_cfg` and `cur_cfg`."""
    raised = {"op": "mutate", "table": _DATABASE, "where": [], "mutations": [["next_cfg", "+=", 1]]}
    done = {"op": "select", "table": _DATABASE, "where": [], "columns": ["next_cfg", "cur_cfg"]}
    (row,) = _transact(raised, done)[1]["rows"]
    end = time.monotonic() + _TIMEOUT_S
    while _transact(done)[0]["rows"][0]["cur_cfg"] < row["next_cfg"] and time.monotonic() < end:
        time.sleep(0.01)


def _own_checksums(port: SwitchPort) -> None:
    """Have the container's end compute them; once an engine has taken it away it does already."""
    if not port.netns:
        with contextlib.suppress(OSError):
            ethtool.set_tx_checksum(port.inside, False)
        return
    fd = os.open(port.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(fd):
            ethtool.set_tx_checksum(port.inside, False)
    finally:
        os.close(fd)


def _transact(*operations: Row) -> list[Row]:
    """Results in order. OSError with what the database says of the first that it refuses: then none is done."""
    request = json.dumps({"method": "transact", "params": [_DATABASE, *operations], "id": 0})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(str(SOCKET))
        except OSError as error:
            raise OSError(error.errno, f"Open vSwitch's database does not answer on {SOCKET}: {error.strerror}") from error
        sock.sendall(request.encode())
        answer = _answer(sock)
    results: list[Row] = answer["result"] or []
    refused = next((one for one in results if one and "error" in one), answer["error"])
    if refused:
        raise OSError(errno.EINVAL, f"Open vSwitch's database: {refused.get('error')}: {refused.get('details', '')}")
    return results


def _answer(sock: socket.socket) -> Row:
    """The one JSON value that comes; nothing in the protocol says how long it is."""
    text = b""
    while True:
        data = sock.recv(_RECV_BYTES)
        if not data:
            raise OSError(errno.ECONNRESET, "Open vSwitch's database closed the connection")
        text += data
        if data.endswith(b"}"):
            with contextlib.suppress(json.JSONDecodeError):
                answer: Row = json.loads(text)
                return answer


def _uuids(value: list[Any]) -> list[str]:
    """Of a column of references: one, or a set of them."""
    return [value[1]] if value[0] == "uuid" else [one[1] for one in value[1]]


def _number(value: int | list[Any]) -> int:
    """Of a column with a number or none."""
    return value if isinstance(value, int) else 0
