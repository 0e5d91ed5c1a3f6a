# SPDX-License-Identifier: Apache-2.0
"""A write on its way to the disk is awaited like any future."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from plait.store.state import Commit
from plait.store.write import Write


def write() -> Write[str]:
    return Write(1, Commit(7), 1, "done")


async def waits(one: Write[str]) -> str:
    return await one


async def test_a_task_goes_on_with_the_value() -> None:
    one = write()
    tasks = [asyncio.create_task(waits(one)) for _ in range(2)]
    await asyncio.sleep(0)
    one.tell()
    assert not tasks[0].done(), "in the next round of the loop"
    assert await asyncio.gather(*tasks) == ["done", "done"]
    assert await one == "done" and one.done() and one.result() == "done" and one.exception() is None


async def test_a_task_gets_the_error() -> None:
    one = write()
    task = asyncio.create_task(waits(one))
    await asyncio.sleep(0)
    one.tell(OSError("the disk is full"))
    with pytest.raises(OSError, match="the disk is full"):
        await task
    assert isinstance(one.exception(), OSError)


@pytest.mark.parametrize("wrapped", [asyncio.shield, asyncio.ensure_future, asyncio.gather, lambda one: asyncio.wait_for(one, 5)])
async def test_asyncio_takes_it_for_a_future(wrapped: Callable[[Write[str]], asyncio.Future[object]]) -> None:
    one = write()
    asyncio.get_running_loop().call_soon(one.tell)
    assert await wrapped(one) in ("done", ["done"])


async def test_who_gives_up_does_not_stop_the_write() -> None:
    one = write()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waits(one), 0.01)
    assert one.cancelled() and not one.cancel()
    with pytest.raises(asyncio.CancelledError):
        one.exception()
    one.tell()
    assert one.cancelled(), "as it was told first"


async def test_callbacks_are_called_at_once_in_their_order() -> None:
    one, called = write(), list[str]()
    for name in "abc":
        one.add_done_callback(lambda _, name=name: called.append(name))
    gone = called.append
    one.add_done_callback(gone)
    assert one.remove_done_callback(gone) == 1 and one.remove_done_callback(gone) == 0
    one.tell()
    assert called == ["a", "b", "c"]
    one.add_done_callback(lambda _: called.append("late"))
    assert called[-1] == "c"
    await asyncio.sleep(0)
    assert called[-1] == "late"


async def test_a_fault_of_one_callback_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    one, called = write(), list[str]()
    one.add_done_callback(lambda _: called.remove("nothing"))
    one.add_done_callback(lambda _: called.append("second"))
    with caplog.at_level(logging.ERROR, "asyncio"):
        one.tell()
    assert called == ["second"] and "write of revision 7" in caplog.text and "ValueError" in caplog.text


async def test_nothing_is_known_before_it_is_told() -> None:
    one = write()
    for ask in (one.result, one.exception):
        with pytest.raises(asyncio.InvalidStateError, match="on its way"):
            ask()
    assert not one.done() and not one.cancelled() and one.get_loop() is asyncio.get_running_loop()
