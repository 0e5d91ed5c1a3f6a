# SPDX-License-Identifier: Apache-2.0
"""A call of the store's client that is given up."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.test_store_server import Served, lost, pki, served  # noqa: F401 - fixtures

from plait.store import remote as remote_module


async def test_who_gives_up_while_the_pause_ends_is_let_go(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Else an agent that is told to stop in that moment stops when the call has taken its whole time, and not at once."""
    monkeypatch.setattr(remote_module, "BACKOFF", (60.0, 60.0))
    client = await lost(served)
    client.connect_anew("test")  # the next pause is the long one
    held = asyncio.ensure_future(client.get("a"))
    await asyncio.sleep(0.2)
    client.look_at("127.0.0.1", served.port)
    await asyncio.sleep(0)  # what waited has its answer and has not gone on yet
    held.cancel()
    await asyncio.wait([held], timeout=2)
    assert held.cancelled()
    await client.close()
