# SPDX-License-Identifier: Apache-2.0
"""Values of the section `ipam` of the configuration that must lie in bounds."""

from __future__ import annotations

from plait.model.errors import ConfigError

LEAST_FORGET_S = 10.0
"""Shortest `ipam.forget_after`: a node that only restarts its agent must not lose its blocks each time."""
LONGEST_DHCP_S = 12.0
"""Longest `ipam.dhcp_timeout`: Docker's calls for an address end after 15 s (`runtimes/docker/plugin.py`)."""


def forget_after(seconds: float, where: str) -> float:
    """Never (0), or long enough."""
    if 0 < seconds < LEAST_FORGET_S:
        why, hint = "is shorter than a reboot takes", f"use at least {LEAST_FORGET_S:.0f}s, or 0s for never"
        raise ConfigError(f"{where}: ipam.forget_after", f"{seconds:g}s", why, hint)
    return seconds


def dhcp_timeout(seconds: float, where: str) -> float:
    """Less than an engine's call may take."""
    if not 1 <= seconds <= LONGEST_DHCP_S:
        raise ConfigError(f"{where}: ipam.dhcp_timeout", f"{seconds:g}s", "is not possible", f"use 1s to {LONGEST_DHCP_S:.0f}s")
    return seconds
