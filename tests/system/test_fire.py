# SPDX-License-Identifier: Apache-2.0
"""Agents under fire on three hosts: killed at random moments, and asked for very many sandboxes at once."""

from __future__ import annotations

import contextlib
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import pytest

from plait.client.admin import AdminClient
from plait.lab.agents import SOCKET
from plait.lab.lab import Lab
from plait.model.errors import PlaitError

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
KILLS = 100
READ_JOURNAL = (
    "import json,sqlite3\n"
    "rows = sqlite3.connect('/var/lib/plait/journal.db').execute('SELECT kind, id, body FROM doc').fetchall()\n"
    "print(json.dumps([(kind, key, bytes(body).decode()) for kind, key, body in rows]))"
)
NAMES = ("k0", "k1", "k2")
LISTINGS = {
    "links": "ip -br link | sed 's/@.*//' | awk '{print $1}'",
    "addresses": "ip -o addr | awk '{print $2, $3, $4}'",
    "routes": "ip -4 route show table all",
    "rules": "ip rule",
    "neighbours": "ip neigh show nud permanent",
    "forwarding": "bridge fdb show | grep -v 33:33",
    "nft": "nft list ruleset",
    "namespaces": "ls /run/plait/netns 2>/dev/null; grep -c /run/plait/netns/ /proc/self/mountinfo",
}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(hosts=3)


def client(lab: Lab, host: str) -> AdminClient:
    return AdminClient(lab.path(host, SOCKET))


def rest_after(lab: Lab, host: str) -> None:
    """Wait until a pass over the host's kernel would write nothing."""
    end = time.monotonic() + 20
    while client(lab, host).plan(diff=True):
        assert time.monotonic() < end, "the kernel does not come to rest"
        time.sleep(0.1)


def journal(lab: Lab, host: str) -> Counter[str]:
    """What the host's agent has journalled: kinds with their ids, and how many reservations hold an address."""
    rows = json.loads(lab.run(host, sys.executable, "-c", READ_JOURNAL).stdout)
    found = Counter(f"{kind} {key}" for kind, key, _ in rows if kind != "reservation")
    found["live reservations"] = sum(bool(json.loads(body).get("live", True)) for kind, _, body in rows if kind == "reservation")
    return found


def traces(lab: Lab, host: str) -> dict[str, object]:
    """Everything that an attach makes on a host, counted line by line, in the kernel, on the disk and in the store."""
    found: dict[str, object] = {
        what: Counter(lab.run(host, "sh", "-c", command, check=False).stdout.splitlines()) for what, command in LISTINGS.items()
    }
    found["journal"] = journal(lab, host)
    found["used"] = sum(row["used"] for row in client(lab, host).ipam()["blocks"] if row["node"] == host)
    return found


def churn(lab: Lab, host: str, doing: list[str], stop: Event) -> None:
    """Attach and detach until the agent is killed. `doing` ends with the call that never came back."""
    for name in NAMES * 1000:
        for doing[0] in ("attach", "detach"):
            if stop.is_set():
                return
            with contextlib.suppress(PlaitError):
                agent = client(lab, host)
                agent.create_sandbox(name, ports=("0:80/udp",)) if doing[0] == "attach" else agent.remove_sandbox(name)
                continue
            if stop.wait(0.005):
                return


def remove_all(lab: Lab, host: str) -> None:
    for row in client(lab, host).ps():
        if row["node"] == host:
            client(lab, host).remove_sandbox(row["name"])


def test_a_hundred_kills_at_random_moments_of_attach_and_detach_leak_nothing(lab: Lab) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for name in NAMES:
        client(lab, "B").create_sandbox(name, ports=("0:80/udp",))
    remove_all(lab, "B")
    rest_after(lab, "B")
    before = traces(lab, "B")
    hit: Counter[str] = Counter()
    for _ in range(KILLS):
        doing, stop = ["attach"], Event()
        busy = Thread(target=churn, args=(lab, "B", doing, stop))
        busy.start()
        time.sleep(chance.uniform(0, 0.12))
        lab.kill_agent("B")
        stop.set()
        hit[doing[0]] += 1
        busy.join(30)
        lab.start_agent("B")
    print(f"killed in {dict(hit)}")
    assert hit["attach"] and hit["detach"], f"the kills met one kind of call only: {hit}"
    remove_all(lab, "B")
    rest_after(lab, "B")
    after = traces(lab, "B")
    assert {what: after[what] for what in after if after[what] != before[what]} == {}, before


@pytest.mark.alone  # a thousand namespaces at once: it takes both processors, and the kernel's locks, from whoever is beside it
def test_a_thousand_concurrent_attaches_give_no_address_twice_and_all_come_back(lab: Lab) -> None:
    """334 a host, in 50 threads each, through the admin socket of real agents."""
    hosts = "ABC"
    for host in hosts:
        remove_all(lab, host)
        rest_after(lab, host)
    script = (
        "import json,sys\nfrom concurrent.futures import ThreadPoolExecutor as P\nfrom plait.client.admin import AdminClient\n"
        "def make(n): return AdminClient(timeout_s=120).create_sandbox(f'm{n}')['address']\n"
        "def drop(n): AdminClient(timeout_s=120).remove_sandbox(f'm{n}')\n"
        "with P(50) as pool: print(json.dumps(list(pool.map(make if sys.argv[1] == 'make' else drop, range(334)))))\n"
    )

    def on(host: str, verb: str) -> list[str]:
        return json.loads(lab.run(host, sys.executable, "-c", script, verb, timeout_s=150).stdout)

    with ThreadPoolExecutor(3) as pool:
        started = time.monotonic()
        addresses = [address for found in pool.map(on, hosts, ["make"] * 3) for address in found]
        print(f"{len(addresses)} attaches in {time.monotonic() - started:.1f} s")
        started = time.monotonic()
        list(pool.map(on, hosts, ["drop"] * 3))
        print(f"as many detaches in {time.monotonic() - started:.1f} s")
    assert len(addresses) == len(set(addresses)) == 1002
    for host in hosts:
        rest_after(lab, host)
        found = traces(lab, host)
        assert not re.search(r"pl-[ep][0-9a-f]{10}", str(found)), f"links, addresses, routes or rules are left on {host}"
        kept = found["journal"]
        assert isinstance(kept, Counter) and not kept["live reservations"] and found["used"] == 0
        assert not [key for key in kept if key.startswith(("endpoint ", "sandbox "))]
