# SPDX-License-Identifier: Apache-2.0
"""Backend `none`: a network that stays on its host. Nothing is sent between nodes."""

from plait.backends.base import NoTunnel


class NoneBackend(NoTunnel):
    name, model = "none", "sandbox"
    ways: tuple[str, ...] = ()
