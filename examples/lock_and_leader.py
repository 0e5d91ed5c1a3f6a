# SPDX-License-Identifier: Apache-2.0
"""One nightly job at a time, and one leader among several programs."""

from __future__ import annotations

import threading

from plait.client import Client, LockLost, NotAcquired


def nightly(client: Client) -> None:
    """Whoever comes second gives up at once. The fence goes with each write that must not come late."""
    try:
        with client.lock("example/jobs/nightly", timeout_s=0) as lock:
            assert lock.fence > 0
            print("the job runs")
            with client.lock("example/jobs/nightly", timeout_s=0):
                print("never reached")
    except NotAcquired:
        print("somebody is at it already")
    except LockLost as error:
        print(f"stopped in the middle: {error}")


def campaign(client: Client, name: str, terms: list[str]) -> None:
    client.lead("example/leader", name, lambda term: terms.append(name))


with Client() as client:
    nightly(client)
    terms: list[str] = []
    threads = [threading.Thread(target=campaign, args=(client, name, terms)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    print(f"each led once: {sorted(terms)}")
