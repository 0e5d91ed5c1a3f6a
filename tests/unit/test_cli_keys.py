# SPDX-License-Identifier: Apache-2.0
"""`plait keys`: what is asked of the agent, what is waited for, what is said when it does not come."""

from __future__ import annotations

from typing import Any

import pytest

from plait.cli import keys
from plait.cli.main import main
from plait.client.admin import AdminClient


class Agent(AdminClient):
    """An admin client whose node B changes its key at the third look, unless it is `stuck`."""

    def __init__(self, stuck: bool = False) -> None:
        super().__init__()
        self.stuck, self.looks, self.asked = stuck, 0, [""]

    def nodes(self) -> Any:
        self.looks += 1
        changed = "rotate" in self.asked[-1] and self.looks > 3 and not self.stuck
        rows = {"A": ("key-a", False, True), "B": ("key-b2" if changed else "key-b", not changed and self.looks > 1, False)}
        rows["C"] = ("", False, False)
        return [{"name": n, "key": key, "rotating": rotating, "me": me} for n, (key, rotating, me) in rows.items()]

    def rotate_key(self, name: str) -> None:
        self.asked.append(f"rotate {name}")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_EVERY_S", 0.0)


def test_keys_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "ls"], Agent()) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["A", "key-a", "in", "use"], ["B", "key-b", "in", "use"], ["C", "-", "in", "use"]]


def test_a_rotation_is_asked_for_and_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent()
    assert main(["keys", "rotate", "B"], agent) == 0
    assert agent.asked == ["", "rotate B"] and agent.looks == 4
    assert capsys.readouterr().out == "B key-b2\n"


def test_this_node_is_meant_if_none_is_named_and_nobody_waits_with_timeout_0() -> None:
    agent = Agent()
    assert main(["keys", "rotate", "--timeout", "0"], agent) == 0
    assert agent.asked == ["", "rotate A"] and agent.looks == 1


def test_what_does_not_come_is_an_error_that_says_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "rotate", "B", "--timeout", "0.05"], Agent(stuck=True)) == 1
    assert "node B has not changed its key within 0.05 s" in capsys.readouterr().err
    assert main(["keys", "rotate", "X"], Agent()) == 1
    assert "there is no node 'X'" in capsys.readouterr().err
