# SPDX-License-Identifier: Apache-2.0
"""kombu, the messaging library of Celery, over `consul://`: queues are keys, and a lock of sessions says who may take the next message."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.pypi import installed

from plait.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(200)]
LOCK = Path(__file__).parent / "kombu" / "requirements.lock"
MESSAGES = 40
PROGRAM = """
import json, queue, sys, time
from kombu import Connection
what, *words = sys.argv[1:]
with Connection("consul://127.0.0.1:8500") as connection:
    orders = connection.SimpleQueue("orders")
    found = None
    if what == "put":
        for number in range(*map(int, words)):
            orders.put({"order": number})
            time.sleep(0.002)  # the key of a message is the millisecond in which it was sent
    elif what == "take":
        found = []
        while len(found) < int(words[0]):
            try:
                message = orders.get(timeout=1)
            except queue.Empty:  # mostly: somebody else holds the lock
                continue
            found.append(message.payload["order"])
            message.ack()
            time.sleep(0.02)
    elif what == "clear":
        orders.clear()
    print(json.dumps(found))
    orders.close()
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(hosts=3)
    for host in "ABC":
        made.path(host, "/run/lab/orders.py").write_text(PROGRAM)
    return made


def argv(*words: str) -> list[str]:
    return ["env", f"PYTHONPATH={installed(LOCK)}", sys.executable, "/run/lab/orders.py", *words]


def orders(lab: Lab, host: str, *words: str) -> object:
    return json.loads(lab.run(host, *argv(*words), timeout_s=60).stdout)


def waiting(lab: Lab) -> int:
    """How many messages wait, as the directory says; kombu's own count waits ten seconds for a change first."""
    shown = lab.run("C", "curl", "-s", "http://127.0.0.1:8500/v1/kv/kombu/orders/msg/?keys").stdout
    return len(json.loads(shown)) if shown else 0


def test_what_one_host_sends_two_others_share_out(lab: Lab) -> None:
    """Each message is one's, and each gets its own in the order in which they were sent."""
    orders(lab, "A", "put", "0", str(MESSAGES))
    assert waiting(lab) == MESSAGES
    half = str(MESSAGES // 2)
    with (
        lab.popen("B", *argv("take", half), stdout=subprocess.PIPE, text=True) as one,
        lab.popen("C", *argv("take", half), stdout=subprocess.PIPE, text=True) as two,
    ):
        found = [json.loads(taker.communicate(timeout=100)[0]) for taker in (one, two)]
    assert sorted(found[0] + found[1]) == list(range(MESSAGES))
    assert all(part == sorted(part) for part in found)
    assert waiting(lab) == 0


def test_a_queue_can_be_emptied(lab: Lab) -> None:
    orders(lab, "A", "put", "0", "3")
    assert waiting(lab) == 3
    orders(lab, "C", "clear")
    assert waiting(lab) == 0
