# SPDX-License-Identifier: Apache-2.0
"""Who this node is: made once by `init` or `join`, kept in /var/lib/plait/identity.json, never derived from an address."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Network, ip_address
from pathlib import Path

from plait.agent.config import Config
from plait.agent.files import replace_file
from plait.model.addr import IPAddress, at_port
from plait.model.errors import ConfigError, NotFound

_DAMAGED = "restore it, or leave with `plait down --purge` and join again"


@dataclass(frozen=True, slots=True)
class Identity:
    """`store` is "" on the node that carries the embedded store, else `address:port` of the store's server."""

    name: str
    id: str
    address: IPAddress
    store: str = ""
    pool: IPv4Network = IPv4Network("10.28.0.0/16")
    translated: bool = False
    """`address` was on no link of this host when it was given: somebody translates it, so that its absence means nothing."""


def new_id() -> str:
    return str(uuid.uuid4())


def save_identity(path: Path, identity: Identity) -> None:
    body = {key: str(value) for key, value in asdict(identity).items()}
    replace_file(path, json.dumps(body, indent=1) + "\n", 0o600)


def load_identity(path: Path) -> Identity:
    """Raises NotFound while the node is in no cluster, ConfigError if the file is damaged."""
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFound(
            "this host is in no cluster yet; run `plait init` on the first host, `plait join ADDR --token T` elsewhere"
        ) from error
    except ValueError as error:
        raise ConfigError(str(path), "", f"is damaged: {error}", _DAMAGED) from error
    try:
        return Identity(
            raw["name"], raw["id"], ip_address(raw["address"]), raw["store"], IPv4Network(raw["pool"]), raw.get("translated") == "True"
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            str(path), "", f"is damaged: {error!r}", "restore it, or leave with `plait down --purge` and join again"
        ) from error


def placed(identity: Identity, config: Config) -> Identity:
    """With the place of the store that the configuration tells, if it tells one. ConfigError if that is none."""
    if config.store == "none" or not identity.store:
        return identity
    from plait.store.join import split_address
    from plait.store.server import PORT

    return replace(identity, store=at_port(*split_address(config.store, PORT)))
