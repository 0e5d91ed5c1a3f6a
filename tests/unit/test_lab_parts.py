# SPDX-License-Identifier: Apache-2.0
"""Small parts of the lab that need no root: written state, configuration, recipes, the pings' bookkeeping."""

from __future__ import annotations

import json
import os
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from plait.lab import agents, images, inside, process
from plait.lab import state as states
from plait.lab.images import builder, rootfs
from plait.lab.spec import parse_toml, simple
from plait.model.errors import Conflict, NotFound, PlaitError


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for place in ("RUN", "DISKS", "CGROUPS"):
        monkeypatch.setattr(states, place, tmp_path / place.lower())
    return tmp_path / "run"


def test_state_survives_writing(run_dir: Path) -> None:
    spec = parse_toml(
        '[[switch]]\nname = "a"\n[[switch]]\nname = "b"\n[[router]]\nname = "R"\nswitches = ["a", "b"]\n[[host]]\nname = "A"\n'
    )
    state = states.new_state("one", spec, owned=True)
    states.create(state)
    state = states.update("one", lambda now: replace(states.add_cut(now, "B", "A"), holders={"A": state.maker}))
    assert states.load("one") == state
    assert state.cuts == (("A", "B"),)
    with pytest.raises(Conflict, match="lab one is there already"):
        states.create(state)
    with pytest.raises(NotFound, match="there: one"):
        states.load("two")


def test_what_another_version_wrote_down_beside_it_is_ignored(run_dir: Path) -> None:
    state = states.new_state("one", parse_toml('[[switch]]\nname = "a"\n[[host]]\nname = "A"\n'), owned=True)
    states.create(replace(state, holders={"A": state.maker}))
    path = run_dir / "one.json"
    raw = json.loads(path.read_text())
    spec = raw["spec"]
    for record in (raw, spec, spec["switches"][0], spec["hosts"][0], raw["maker"], raw["owner"], raw["holders"]["A"]):
        record["novelty"] = 1
    path.write_text(json.dumps(raw))
    assert states.list_labs() == [replace(state, holders={"A": state.maker})]
    states.forget("one")
    states.forget("one")
    assert not run_dir.exists()


def test_what_labs_share_goes_with_the_last_one_and_never_under_one_that_is_being_made(run_dir: Path) -> None:
    one, two = (states.new_state(name, simple(1), owned=True) for name in ("one", "two"))
    groups = [states.CGROUPS / "memory/plait-lab", states.CGROUPS / "plait-lab"]
    for group in groups:
        group.mkdir(parents=True)
    states.create(one)
    states.create(two)
    assert one.disks.is_dir() and two.disks.is_dir(), "the end of the last lab cannot take the place of the next one"
    for lab in (one, two):
        lab.disks.rmdir()
    states.forget("one")
    assert states.DISKS.is_dir() and all(group.is_dir() for group in groups), "two has made nothing yet, and needs them"
    states.forget("two")
    assert not any(place.exists() for place in (run_dir, states.DISKS, *groups))


def test_a_lab_of_another_version_is_listed(run_dir: Path) -> None:
    states.create(states.new_state("one", simple(2), owned=True))
    path = run_dir / "one.json"
    raw = json.loads(path.read_text())
    raw["spec"]["switches"][0]["colour"] = raw["spec"]["hosts"][0]["colour"] = "blue"
    path.write_text(json.dumps(raw))
    (found,) = states.list_labs()
    assert found.spec == simple(2)
    states.forget("one")


def test_changes_at_the_same_time_are_all_written_down(run_dir: Path) -> None:
    """As when several hosts are rebooted at once."""
    states.create(states.new_state("one", simple(8), owned=True))

    def reboot(host: str) -> None:
        def change(now: states.State) -> states.State:
            time.sleep(0.01)
            return replace(now, holders={**now.holders, host: now.maker})

        states.update("one", change)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reboot, "ABCDEFGH"))
    assert set(states.load("one").holders) == set("ABCDEFGH")
    states.forget("one")
    with pytest.raises(NotFound):
        states.update("one", lambda now: now)


def test_what_makes_a_lab_dead(run_dir: Path) -> None:
    mine = states.new_state("one", simple(1), owned=True)
    gone = replace(mine.maker, start=mine.maker.start - 1)
    assert not mine.is_dead
    assert replace(mine, boot="another").is_dead
    assert replace(mine, maker=gone).is_dead
    up = replace(mine, phase="up", maker=gone)
    assert not up.is_dead
    assert replace(up, owner=gone).is_dead
    assert not replace(up, owner=None).is_dead


def test_the_agents_configuration() -> None:
    (host,) = simple(1, engines=True).hosts
    config = tomllib.loads(agents.config_text(host))
    assert config == {"node": {"name": "A", "address": "198.18.0.1"}, "docker": {"enabled": True, "default_bridge": True}}


def test_recipes_name_packages_and_the_key_follows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rootfs.package_list("# none\na b  # c\n\nd\n") == ["a", "b", "d"]
    monkeypatch.setattr(builder, "RECIPES", tmp_path)
    for image in images.IMAGES:
        (tmp_path / f"{image}.Dockerfile").write_text("FROM scratch\n")
    before = builder.key()
    assert builder.key() == before
    (tmp_path / "nginx.Dockerfile").write_text("FROM scratch\nEXPOSE 80\n")
    assert builder.key() != before


def test_a_process_is_more_than_its_number() -> None:
    me = process.identify(os.getpid())
    assert me is not None
    assert process.is_alive(me)
    assert not process.is_alive(replace(me, start=me.start + 1))
    assert process.identify(2**22 + 1) is None


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert inside.tail(log) == ""
    log.write_bytes(b"".join(b"%d\n" % number for number in range(30)) + b"\xff")
    assert inside.tail(log, 2) == "29\n�"


def test_who_waits_by_commands_takes_half_of_a_processor_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asking, resting = 0.0, 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        resting.append(seconds)

    def check() -> bool:
        nonlocal now, asking
        now += 0.2
        asking += 0.2
        return asking > 1.9

    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    process.until("it is so", check, 10)
    assert sum(resting) == pytest.approx(1.8) and asking == pytest.approx(2.0)
    resting.clear()
    with pytest.raises(PlaitError, match="it is never so: not within 1 s"):
        process.until("it is never so", lambda: False, 1)
    assert set(resting) == {0.02}
