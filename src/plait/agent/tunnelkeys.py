# SPDX-License-Identifier: Apache-2.0
"""This node's WireGuard key: made here, kept in one file that only root reads, never in the store, a log or a plan."""

from __future__ import annotations

import os
from pathlib import Path

from plait.agent.files import replace_file
from plait.backends.wireguard import DEVICE
from plait.kernel.linux.wgdevice import KEY_BYTES, key_bytes, key_text, public_of
from plait.model.errors import ConfigError


def key_file(lib: Path, device: str = DEVICE) -> Path:
    return lib / f"{device}.key"


def own_public_key(lib: Path, device: str = DEVICE) -> str:
    """The public half of the key of `device`, which is made if there is none. ConfigError if the file is damaged."""
    path = key_file(lib, device)
    try:
        return public_of(key_bytes(path.read_text()))
    except FileNotFoundError:
        return new_key(lib, device)
    except ValueError as error:
        raise ConfigError(str(path), "", f"is damaged: {error}", "delete the file: the next start makes another key") from error


def new_key(lib: Path, device: str = DEVICE) -> str:
    """Make another private key for `device`, durably; returns its public half. Any 32 bytes are one (RFC 7748, section 5)."""
    private = os.urandom(KEY_BYTES)
    replace_file(key_file(lib, device), key_text(private) + "\n", 0o600)
    return public_of(private)
