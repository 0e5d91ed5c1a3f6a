# SPDX-License-Identifier: Apache-2.0
"""Waiting for the replica."""

from __future__ import annotations

import asyncio

import pytest

from plait.agent import view
from plait.agent.view import View
from plait.model.errors import StoreUnavailable


async def test_who_waits_for_a_revision_goes_on_when_it_is_there_and_not_before() -> None:
    here = View("a")
    waits = {revision: asyncio.ensure_future(here.caught_up(revision)) for revision in (1, 2, 3, 4)}
    await asyncio.sleep(0)
    here.change([], 2)
    await asyncio.sleep(0.01)
    assert [revision for revision, wait in waits.items() if wait.done()] == [1, 2]
    here.change([], 5)
    await asyncio.wait_for(asyncio.gather(*waits.values(), here.caught_up(5)), 1)


async def test_who_waits_in_vain_is_told_so_and_one_that_goes_away_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "_CATCH_UP_S", 0.05)
    here = View("a")
    gone = asyncio.ensure_future(here.caught_up(7))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(StoreUnavailable, match="is at revision 0 and did not reach 9"):
        await here.caught_up(9)
    assert not here._waiters
