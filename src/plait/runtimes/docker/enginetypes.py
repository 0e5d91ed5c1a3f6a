# SPDX-License-Identifier: Apache-2.0
"""What plait reads of the Docker Engine API's JSON. Unknown fields are ignored; Go's null is the default."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any

import msgspec
from msgspec import field

from plait.model.addr import IPAddress


class _Json(msgspec.Struct, frozen=True, rename="pascal"):
    """Base: field names are Go's."""


class EngineVersion(_Json, frozen=True):
    version: str = ""
    api: str = field(name="ApiVersion", default="")


class _Chosen(_Json, frozen=True):
    address: str = field(name="IPv4Address", default="")
    address6: str = field(name="IPv6Address", default="")

    @property
    def addresses(self) -> set[IPAddress]:
        """What can be read of them."""
        found: set[IPAddress] = set()
        for text in (self.address, self.address6):
            with contextlib.suppress(ValueError):
                found.add(ip_address(text))
        return found


class EndpointSettings(_Json, frozen=True):
    """One network of one container. Ids and addresses are "" while the container does not run; `chosen` is what `--ip` said."""

    network_id: str = field(name="NetworkID", default="")
    endpoint_id: str = field(name="EndpointID", default="")
    ip_address: str = field(name="IPAddress", default="")
    ip6_address: str = field(name="GlobalIPv6Address", default="")
    mac_address: str = ""
    aliases: list[str] | None = None
    chosen: _Chosen | None = field(name="IPAMConfig", default=None)

    @property
    def is_chosen(self) -> bool:
        """Whether the engine names the address when it asks for it."""
        return self.chosen is not None and bool(self.chosen.address)


class _Networks(_Json, frozen=True):
    networks: dict[str, EndpointSettings | None] | None = None


class ListedPort(_Json, frozen=True):
    private_port: int = 0
    public_port: int = 0
    type: str = "tcp"
    ip: str = field(name="IP", default="")


class _RestartPolicy(_Json, frozen=True):
    name: str = ""


class _HostConfig(_Json, frozen=True):
    network_mode: str = ""
    restart_policy: _RestartPolicy = field(default_factory=_RestartPolicy)


class ContainerRow(_Json, frozen=True):
    """One line of `GET /containers/json`. `created` in seconds of the epoch."""

    id: str
    names: list[str] | None = None
    image: str = ""
    state: str = ""
    status: str = ""
    created: int = 0
    labels: dict[str, str] | None = None
    ports: list[ListedPort] | None = None
    network_settings: _Networks | None = None
    host_config: _HostConfig = field(default_factory=_HostConfig)

    @property
    def name(self) -> str:
        """Its own name; names with a second slash are those that a link gave it."""
        own = [name[1:] for name in self.names or [] if name.count("/") == 1]
        return own[0] if own else ""

    @property
    def networks(self) -> dict[str, EndpointSettings]:
        found = (self.network_settings.networks if self.network_settings else None) or {}
        return {name: settings for name, settings in found.items() if settings is not None}

    def chosen(self, on: Collection[str]) -> set[IPAddress]:
        """What `--ip` and `--ip6` say for the Docker networks `on` (names or ids)."""
        found = (settings for name, settings in self.networks.items() if name in on or settings.network_id in on)
        return {address for settings in found if settings.chosen is not None for address in settings.chosen.addresses}

    @property
    def health(self) -> str:
        """What its HEALTHCHECK finds: starting, healthy, unhealthy; "" if it has none. The list says it in words only."""
        for state in ("healthy", "unhealthy"):
            if self.status.endswith(f"({state})"):
                return state
        return "starting" if self.status.endswith("(health: starting)") else ""


class _Probe(_Json, frozen=True):
    output: str = ""


class _Health(_Json, frozen=True):
    status: str = ""
    log: list[_Probe] | None = None


class _State(_Json, frozen=True):
    pid: int = 0
    running: bool = False
    started_at: str = ""
    error: str = ""
    health: _Health | None = None


class ContainerConfig(_Json, frozen=True):
    """What a container was made with; it never changes. `env` as "KEY=value", `exposed_ports` by "80/tcp"."""

    mac_address: str = ""
    env: list[str] | None = None
    exposed_ports: dict[str, Any] | None = None


class ContainerDetails(_Json, frozen=True):
    """`GET /containers/<id>/json`: what the list lacks."""

    id: str
    state: _State = field(default_factory=_State)
    network_settings: _Networks | None = None
    config: ContainerConfig = field(default_factory=ContainerConfig)
    host_config: _HostConfig = field(default_factory=_HostConfig)

    @property
    def restarts(self) -> bool:
        """Whether the engine is to start it again by itself."""
        return self.host_config.restart_policy.name not in ("", "no")

    @property
    def mac(self) -> str:
        """What somebody chose, "" if the engine draws one at each start."""
        return self.config.mac_address.lower()

    @property
    def networks(self) -> dict[str, EndpointSettings]:
        found = (self.network_settings.networks if self.network_settings else None) or {}
        return {name: settings for name, settings in found.items() if settings is not None}


class IpamConfig(_Json, frozen=True):
    """`ip_range`: what its addresses are handed out from, "" for all of the subnet. `aux`: what `--aux-address` keeps from it, by name."""

    subnet: str = ""
    gateway: str = ""
    ip_range: str = field(name="IPRange", default="")
    aux: dict[str, str] | None = field(name="AuxiliaryAddresses", default=None)


class _Ipam(_Json, frozen=True):
    driver: str = ""
    config: list[IpamConfig] | None = None


class Attached(_Json, frozen=True):
    """An endpoint as its network lists it, before its container's start is over too."""

    name: str = ""
    endpoint_id: str = field(name="EndpointID", default="")
    mac_address: str = ""
    address: str = field(name="IPv4Address", default="")
    address6: str = field(name="IPv6Address", default="")


class EngineNetwork(_Json, frozen=True):
    id: str
    name: str = ""
    driver: str = ""
    internal: bool = False
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    ipam: _Ipam = field(name="IPAM", default_factory=_Ipam)
    containers: dict[str, Attached] | None = None

    @property
    def pool(self) -> IpamConfig:
        """Its first pool of IPv4; all of it "" if it has none."""
        return next((config for config in self.ipam.config or [] if ":" not in config.subnet), IpamConfig())

    @property
    def pool6(self) -> IpamConfig:
        """Its first pool of IPv6; all of it "" if it has none."""
        return next((config for config in self.ipam.config or [] if ":" in config.subnet), IpamConfig())

    @property
    def subnet(self) -> str:
        return self.pool.subnet

    @property
    def subnet6(self) -> str:
        return self.pool6.subnet


class CreatedNetwork(_Json, frozen=True):
    id: str


class CreatedExec(_Json, frozen=True):
    id: str


class ExecState(_Json, frozen=True):
    """A command in a container. `exit_code` None while it runs."""

    running: bool = False
    exit_code: int | None = None


class _Actor(_Json, frozen=True):
    id: str = field(name="ID", default="")
    attributes: dict[str, Any] | None = None


class EngineEvent(_Json, frozen=True):
    """`time_nano` in nanoseconds of the engine's clock."""

    type: str = ""
    action: str = ""
    actor: _Actor = field(default_factory=_Actor)
    time_nano: int = field(name="timeNano", default=0)
