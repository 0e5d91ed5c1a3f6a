# SPDX-License-Identifier: Apache-2.0
"""HTTPS of an agent of the directory alone: Consul's keys -> the files they name -> a TLS context.

`tls.https` wins over `tls.defaults`, both over the keys of before Consul 1.12 (`cert_file`, `verify_incoming_https`, …). Source: Consul's
public reference of agent options. TLS 1.2 (RFC 5246) is the least that is spoken, whatever they ask for.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plait.model.errors import ConfigError
from plait.store.tls import shrink_tls_buffers

_FILES = ("cert_file", "key_file", "ca_file", "ca_path")
_LEAST = {
    "": ssl.TLSVersion.TLSv1_2,
    **dict.fromkeys(("TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "tls10", "tls11", "tls12"), ssl.TLSVersion.TLSv1_2),
    **dict.fromkeys(("TLSv1_3", "tls13"), ssl.TLSVersion.TLSv1_3),
}


@dataclass(frozen=True, slots=True)
class HttpsFiles:
    """Paths of PEM files, "" where none is named. `verify`: only clients with a certificate of `ca_file` or `ca_path` are served."""

    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    ca_path: str = ""
    verify: bool = False
    least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2


def read_https(raw: Mapping[str, Any]) -> HttpsFiles:
    """What a configuration says of HTTPS. ConfigError names the key."""
    found: dict[str, Any] = {key: raw[key] for key in (*_FILES, "tls_min_version", "verify_incoming") if raw.get(key) is not None}
    if raw.get("verify_incoming_https") is not None:
        found["verify_incoming"] = raw["verify_incoming_https"]
    tls = _map(raw, "tls", "tls")
    for part in ("defaults", "https"):
        found |= {key: value for key, value in _map(tls, part, f"tls.{part}").items() if value is not None}
    least = str(found.get("tls_min_version", ""))
    if least not in _LEAST:
        raise ConfigError("tls.https.tls_min_version", least, "is not possible", "use TLSv1_2 or TLSv1_3")
    paths = {key: str(found.get(key) or "") for key in _FILES}
    return HttpsFiles(**paths, verify=bool(found.get("verify_incoming")), least=_LEAST[least])


def https_context(files: HttpsFiles) -> ssl.SSLContext:
    """For the listener. ConfigError if a file is missing or cannot be used."""
    shrink_tls_buffers()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_files(context, files)
    return context


def load_files(context: ssl.SSLContext, files: HttpsFiles) -> None:
    """Use these files for connections from now on. ConfigError as `https_context`; what was used before then goes on to be."""
    if not (files.cert_file and files.key_file):
        hint = "name both, or switch it off with ports.https = -1"
        raise ConfigError("ports.https", "", "needs tls.https.cert_file and tls.https.key_file", hint)
    if files.verify and not (files.ca_file or files.ca_path):
        hint = "name those whose certificates clients may have"
        raise ConfigError("tls.https.verify_incoming", True, "needs tls.https.ca_file or tls.https.ca_path", hint)
    try:
        context.load_cert_chain(files.cert_file, files.key_file)
        if files.verify:
            context.load_verify_locations(files.ca_file or None, files.ca_path or None)
    except (OSError, ValueError) as error:
        named = " ".join(filter(None, (files.cert_file, files.key_file, files.ca_file, files.ca_path)))
        raise ConfigError("tls.https", named, f"cannot be used: {error}") from error
    context.minimum_version = files.least
    context.verify_mode = ssl.CERT_REQUIRED if files.verify else ssl.CERT_NONE


def _map(raw: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(name, value, "must be a map")
    return value
