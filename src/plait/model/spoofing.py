# SPDX-License-Identifier: Apache-2.0
"""Whether containers may send under addresses that are not their own: the words of a label and of a network's option. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from plait.model.errors import ConfigError

OPTION, LABEL = "spoofing", "plait.spoofing"
DROP, ALLOW = "drop", "allow"


def check_spoofing(texts: Mapping[str, str], key: str) -> None:
    """ConfigError if what `texts` say under `key` is no word for it."""
    if texts.get(key, DROP) not in (DROP, ALLOW):
        raise ConfigError(key, texts[key], "is not possible", f"{DROP}, or {ALLOW} for routers and whoever takes over addresses of others")


def may_spoof(labels: Mapping[str, str], options: Mapping[str, str]) -> bool:
    """What counts for a container with these labels on a network with these options: its own word, else the network's."""
    return labels.get(LABEL, options.get(OPTION, DROP)) == ALLOW
