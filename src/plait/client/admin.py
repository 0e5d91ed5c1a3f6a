# SPDX-License-Identifier: Apache-2.0
"""Client of the local admin API, with nothing but the standard library, so that a command starts fast.

Data in: method calls of the command line. Data out: the agent's JSON answers in the shapes of `plait.model.report`. One connection per
call; every call is bounded in time.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import quote, urlencode

from plait.model.egressreport import EgressRow
from plait.model.errors import PlaitError
from plait.model.policyreport import AppliedRow, DropRow, NamespaceRow, PolicyPlan, PolicyRow, PolicyTest, PolicyView
from plait.model.report import (
    ClashRow,
    ContainerRow,
    ExposureView,
    FindingRow,
    IpamView,
    JoinView,
    LimitRow,
    NetworkRow,
    NetworkView,
    NodeRow,
    PathRow,
    PlanEntry,
    PortRow,
    SandboxView,
    StatusView,
    TokenView,
)
from plait.model.routingreport import RoutingView
from plait.model.servicereport import ServiceRow, ServiceView

SOCKET = Path("/run/plait/plait.sock")
TIMEOUT_S = 35.0
"""Longest wait for an answer; a little more than the agent allows a request, so that its own words arrive."""


class AgentNotRunning(PlaitError):
    """Nobody answers on the admin socket of this host."""


class Refused(PlaitError):
    """The agent's answer was an error. `kind` is the class name of the agent's own error, `status` the HTTP status."""

    def __init__(self, text: str, kind: str, status: int) -> None:
        super().__init__(text)
        self.kind, self.status = kind, status


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class AdminClient:
    """The agent of this host. Each method raises AgentNotRunning, or Refused with the agent's own words."""

    def __init__(self, path: Path = SOCKET, timeout_s: float = TIMEOUT_S) -> None:
        self._path, self._timeout_s = path, timeout_s

    def ready(self, timeout_s: float | None = None) -> str:
        """What the agent still waits for, "" once it serves containers. `timeout_s` bounds this call in place of the client's own."""
        status, raw = self._exchange("GET", "ready", timeout_s=timeout_s)
        answer = cast(dict[str, str], _decoded(200 if status == 503 else status, raw, "GET /v1/ready"))
        return answer["waiting"] if "waiting" in answer else answer["error"]

    def status(self) -> StatusView:
        return cast(StatusView, self._call("GET", "status"))

    def nodes(self) -> list[NodeRow]:
        return cast(list[NodeRow], self._call("GET", "nodes"))

    def rotate_key(self, name: str) -> None:
        """Have the node change its WireGuard key; returns when that is written down, not when it is done."""
        self._call("POST", f"nodes/{quote(name, '')}/key")

    def forget_node(self, name: str) -> None:
        self._call("DELETE", f"nodes/{quote(name, '')}")

    def networks(self) -> list[NetworkRow]:
        return cast(list[NetworkRow], self._call("GET", "networks"))

    def network(self, name: str) -> NetworkView:
        return cast(NetworkView, self._call("GET", f"networks/{quote(name, '')}"))

    def create_network(
        self,
        name: str,
        subnet: str | None = None,
        gateway: str | None = None,
        internal: bool = False,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        ip_range: str | None = None,
        ipv6: bool = False,
        subnet6: str | None = None,
        gateway6: str | None = None,
        excluded: Sequence[str] = (),
        force: bool = False,
    ) -> NetworkRow:
        """Make a network. `subnet` None: the next free one; `ip_range` None: addresses are handed out from all of it. With `ipv6`, or with
        one of the last two, it has IPv6 too."""
        body = {
            "name": name,
            "subnet": subnet,
            "gateway": gateway,
            "internal": internal,
            "labels": dict(labels or {}),
            "options": dict(options or {}),
            "ip_range": ip_range,
        }
        later = _given(ipv6=ipv6, subnet6=subnet6, gateway6=gateway6, excluded=list(excluded), force=force)
        return cast(NetworkRow, self._call("POST", "networks", body | later))

    def change_network(
        self, name: str, options: Mapping[str, str], ip_range: str | None = None, excluded: Sequence[str] | None = None
    ) -> list[NetworkRow]:
        """Give a network these options while it is used; it first, then those whose tunnel it shares and that changed with it. `ip_range`:
        what addresses are handed out from ("all" of the subnet), `excluded` what of it nobody gets; None as it is."""
        pool: dict[str, object] = {} if excluded is None else {"excluded": list(excluded)}
        body = {"options": dict(options)} | pool | _given(ip_range=ip_range)
        return cast(list[NetworkRow], self._call("PUT", f"networks/{quote(name, '')}", body))

    def remove_network(self, name: str, force: bool = False) -> None:
        self._call("DELETE", f"networks/{quote(name, '')}?force={int(force)}")

    def paths(self) -> list[PathRow]:
        return cast(list[PathRow], self._call("GET", "paths"))

    def routing(self) -> RoutingView:
        return cast(RoutingView, self._call("GET", "routing"))

    def reserve_address(self, network: str, name: str, address: str) -> None:
        self._call("POST", f"networks/{quote(network, '')}/reservations", {"name": name, "address": address})

    def unreserve_address(self, network: str, name: str) -> None:
        self._call("DELETE", f"networks/{quote(network, '')}/reservations?name={quote(name, '')}")

    def ipam(self) -> IpamView:
        return cast(IpamView, self._call("GET", "ipam"))

    def check_ipam(self) -> list[FindingRow]:
        return cast(list[FindingRow], self._call("GET", "ipam-check"))

    def reclaim_addresses(self, apply: bool) -> list[str]:
        return cast(list[str], self._call("POST", "ipam-reclaim", {"apply": apply}))

    def export_cluster(self) -> object:
        return self._call("GET", "cluster-export")

    def cluster_conflicts(self, other: bytes) -> list[ClashRow]:
        """`other`: the export of another cluster, as it was printed."""
        return cast(list[ClashRow], self._call("POST", "cluster-conflicts", other))

    def join_cluster(self, address: str, token: str, dry_run: bool = False, both_names: bool = False) -> JoinView:
        """Have the whole cluster of this host join that at `address`; the agents start anew afterwards."""
        body = {"address": address, "token": token, "dry_run": dry_run, "both_names": both_names}
        return cast(JoinView, self._call("POST", "cluster-join", body))

    def ports(self) -> list[PortRow]:
        return cast(list[PortRow], self._call("GET", "ports"))

    def publish(self, container: str, ports: Sequence[str], network: str = "", sources: Sequence[str] = (), nat: bool = False) -> list[str]:
        """`ports` as Docker spells them; `network` "": by whichever it answers; `sources`: who but the host may come. As published."""
        body = {"network": network, "ports": list(ports), "from": list(sources), "nat": nat}
        return cast(list[str], self._call("POST", f"containers/{quote(container, '')}/ports", body))

    def unpublish(self, container: str, ports: Sequence[str] = (), network: str = "") -> list[str]:
        """`ports` by their host side; none: all that were published by command. What is published no longer."""
        query = urlencode([("network", network), *(("port", port) for port in ports)])
        return cast(list[str], self._call("DELETE", f"containers/{quote(container, '')}/ports?{query}"))

    def limits(self) -> list[LimitRow]:
        return cast(list[LimitRow], self._call("GET", "limits"))

    def set_limits(self, container: str, network: str, words: Mapping[str, str], port: str = "") -> None:
        """`words`: in, out, burst, manner, packets-in, as people write them (`model.limits`); `network` "": all that it is
        attached to; `port` "": of all, else of that published port of the container."""
        self._call("PUT", f"limits/{quote(container, '')}", {"network": network, **words} | ({"port": port} if port else {}))

    def unset_limits(self, container: str, network: str, port: str = "") -> None:
        self._call("DELETE", f"limits/{quote(container, '')}?network={quote(network, '')}&port={quote(port, '')}")

    def ps(self) -> list[ContainerRow]:
        return cast(list[ContainerRow], self._call("GET", "ps"))

    def plan(self, diff: bool = False) -> list[PlanEntry]:
        """The desired state of this node, or (`diff`) what the next pass would change."""
        return cast(list[PlanEntry], self._call("GET", f"plan?diff={int(diff)}"))

    def create_token(self, ttl_s: int) -> TokenView:
        return cast(TokenView, self._call("POST", "tokens", {"ttl_s": ttl_s}))

    def set_gateway(self, enabled: bool) -> None:
        self._call("POST" if enabled else "DELETE", "gateway")

    def expose(self, network: str) -> ExposureView:
        """Give this host an address of its own in the network, or find the one that it has."""
        return cast(ExposureView, self._call("POST", f"networks/{quote(network, '')}/exposure"))

    def hide(self, network: str) -> None:
        self._call("DELETE", f"networks/{quote(network, '')}/exposure")

    def policies(self) -> list[PolicyRow]:
        return cast(list[PolicyRow], self._call("GET", "policies"))

    def policy(self, name: str) -> PolicyView:
        """`name`: NAMESPACE/NAME, or NAME where only one is called so."""
        return cast(PolicyView, self._call("GET", f"policies/{quote(name, '')}"))

    def apply_policies(self, text: bytes) -> list[AppliedRow]:
        """Take over all that a file holds, or nothing."""
        return cast(list[AppliedRow], self._call("POST", "policies", text))

    def plan_policies(self, text: bytes) -> PolicyPlan:
        """What applying a file would change; nothing is."""
        return cast(PolicyPlan, self._call("POST", "policies?dry_run=1", text))

    def remove_policy(self, name: str) -> None:
        self._call("DELETE", f"policies/{quote(name, '')}")

    def namespaces(self) -> list[NamespaceRow]:
        return cast(list[NamespaceRow], self._call("GET", "namespaces"))

    def policy_drops(self) -> list[DropRow]:
        """What policies dropped on this host, or would have."""
        return cast(list[DropRow], self._call("GET", "policy-drops"))

    def test_policy(self, source: str, destination: str, protocol: str, port: int) -> PolicyTest:
        body = {"from": source, "to": destination, "protocol": protocol, "port": port}
        return cast(PolicyTest, self._call("POST", "policy-test", body))

    def services(self) -> list[ServiceRow]:
        return cast(list[ServiceRow], self._call("GET", "services"))

    def service(self, name: str) -> ServiceView:
        """`name`: NAMESPACE/NAME, or NAME where only one is called so."""
        return cast(ServiceView, self._call("GET", f"services/{quote(name, '')}"))

    def create_service(self, wanted: Mapping[str, object]) -> ServiceView:
        """`wanted`: name, ports, selector, and what else the route knows."""
        return cast(ServiceView, self._call("POST", "services", wanted))

    def change_service(self, name: str, change: Mapping[str, object]) -> ServiceView:
        return cast(ServiceView, self._call("PUT", f"services/{quote(name, '')}", change))

    def remove_service(self, name: str) -> None:
        self._call("DELETE", f"services/{quote(name, '')}")

    def egresses(self) -> list[EgressRow]:
        return cast(list[EgressRow], self._call("GET", "egress"))

    def put_egress(self, name: str, network: str, selector: Mapping[str, str], via: Sequence[str]) -> EgressRow:
        """Make an egress rule, or another in its place. `via`: NODE or NODE=ADDRESS, in their order."""
        body = {"network": network, "selector": dict(selector), "via": list(via)}
        return cast(EgressRow, self._call("PUT", f"egress/{quote(name, '')}", body))

    def remove_egress(self, name: str) -> None:
        self._call("DELETE", f"egress/{quote(name, '')}")

    def create_sandbox(
        self,
        name: str,
        network: str = "",
        address: str | None = None,
        labels: Mapping[str, str] | None = None,
        ports: tuple[str, ...] = (),
        aliases: tuple[str, ...] = (),
        address6: str | None = None,
        share: str = "",
    ) -> SandboxView:
        """Make a sandbox; it stays until `remove_sandbox`, or until the process told to `sandbox_started` ends."""
        body = {
            "name": name,
            "network": network,
            "address": address,
            "labels": dict(labels or {}),
            "ports": list(ports),
            "aliases": list(aliases),
        }
        return cast(SandboxView, self._call("POST", "sandboxes", body | _given(address6=address6, share=share)))

    def sandbox(self, name: str) -> SandboxView:
        return cast(SandboxView, self._call("GET", f"sandboxes/{quote(name, '')}"))

    def sandbox_started(self, name: str, pid: int) -> None:
        self._call("POST", f"sandboxes/{quote(name, '')}/pid", {"pid": pid})

    def remove_sandbox(self, name: str) -> None:
        self._call("DELETE", f"sandboxes/{quote(name, '')}")

    def _call(self, method: str, path: str, body: object = None) -> object:
        """The decoded JSON answer of one request."""
        return _decoded(*self._exchange(method, path, body), f"{method} /v1/{path}")

    def _exchange(self, method: str, path: str, body: object = None, timeout_s: float | None = None) -> tuple[int, bytes]:
        """Status and body of the answer to one request, which may take `timeout_s` (None: the client's own limit)."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        connection = _Connection(self._path, timeout_s)
        try:
            connection.request(method, f"/v1/{path}", body=body if body is None or isinstance(body, bytes) else json.dumps(body))
            answer = connection.getresponse()
            raw = answer.read()
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise AgentNotRunning(
                f"the plait agent is not running (no answer on {self._path}); start it with `systemctl start plait` or `plait agent`"
            ) from error
        except PermissionError as error:
            raise PlaitError(f"not allowed to open {self._path}: run the command as root or as a member of the group `plait`") from error
        except TimeoutError as error:
            raise PlaitError(
                f"the plait agent did not answer {method} /v1/{path} within {timeout_s:g} s; look at its log (`journalctl -u plait`)"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise PlaitError(
                f"the plait agent broke off {method} /v1/{path} ({error!r}); try again, or look at its log (`journalctl -u plait`)"
            ) from error
        finally:
            connection.close()
        return answer.status, raw


def _given(**values: object) -> dict[str, object]:
    """Keys that came later than others: an older agent, which refuses what it does not know, is sent them only if they say something."""
    return {key: value for key, value in values.items() if value}


def _decoded(status: int, raw: bytes, what: str) -> object:
    """The answer's JSON; Refused if it is an error."""
    try:
        value: object = json.loads(raw)
    except ValueError as error:
        raise PlaitError(f"{what} on the agent's socket was answered with something that is not JSON (status {status})") from error
    if status < 400:
        return value
    told = value if isinstance(value, dict) else {}
    raise Refused(str(told.get("error", f"{what}: status {status}")), str(told.get("kind", "")), status)
