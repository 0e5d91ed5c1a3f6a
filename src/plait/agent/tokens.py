# SPDX-License-Identifier: Apache-2.0
"""Tokens by which further nodes join."""

from __future__ import annotations

import time
from pathlib import Path

from plait.agent.storeplace import StorePlace
from plait.model.report import TokenView
from plait.store.api import Store
from plait.store.join import split_address
from plait.store.server import PORT
from plait.store.tls import cluster_pin
from plait.store.token import create_token


class Tokens:
    """`pki`: the folder with the cluster's certificate. Tokens name where the store is now (`place`)."""

    def __init__(self, store: Store, pki: Path, place: StorePlace) -> None:
        self._store, self._pki, self._place = store, pki, place

    async def create(self, ttl_s: int) -> TokenView:
        now = time.time()
        token = await create_token(self._store, cluster_pin(self._pki), ttl_s, now)
        return {"token": token, "address": split_address(self._place.address, PORT)[0], "expires": now + ttl_s}
