# SPDX-License-Identifier: Apache-2.0
"""How the files of tests/system are shared out to two processes, and what is told of a run: real pytest processes on tests of a line."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts.abreast import ROOT, SYSTEM, main, read_seconds, share, write_seconds

NAMES = st.lists(st.from_regex(r"test_[a-z]{1,4}\.py", fullmatch=True), unique=True, max_size=20)


@given(NAMES, st.randoms(use_true_random=False), st.dictionaries(st.from_regex(r"test_[a-z]{1,4}\.py", fullmatch=True), st.floats(1, 300)))
def test_every_file_is_in_one_share_whatever_the_order_and_no_share_is_longer_by_more_than_a_file(names, chance, seconds) -> None:
    seconds = {name: took for name, took in seconds.items() if name in names} | {name: 7.0 for name in names if name not in seconds}
    shares = share(names, seconds)
    assert sorted(name for found in shares for name in found) == sorted(names)
    assert all(found == sorted(found) for found in shares)
    mixed = list(names)
    chance.shuffle(mixed)
    assert share(mixed, seconds) == shares
    first, second = (sum(seconds[name] for name in found) for found in shares)
    assert abs(first - second) <= max(seconds.values(), default=0)


def test_a_file_that_is_not_listed_counts_as_an_average_one() -> None:
    assert share(["test_a.py", "test_b.py", "test_c.py"], {"test_a.py": 100}) == [["test_a.py"], ["test_b.py", "test_c.py"]]


def test_the_list_of_seconds_is_read_as_it_is_written_and_a_bad_line_is_named() -> None:
    assert read_seconds(write_seconds({"test_b.py": 2.6, "test_a.py": 0.1})) == {"test_a.py": 1, "test_b.py": 3}
    for bad in ("test_a.py", "test_a.py soon", "test_a.py 1 2"):
        with pytest.raises(ValueError, match=r"seconds\.txt, line 2: .*test_a\.py"):
            read_seconds(f"# head\n{bad}\n")


def test_the_list_of_seconds_names_no_file_that_is_gone() -> None:
    assert set(read_seconds((SYSTEM / "seconds.txt").read_text())) <= {path.name for path in SYSTEM.glob("test_*.py")}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Below this project, so that its settings of pytest hold."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as made:
        yield Path(made)


def files(folder: Path, **bodies: str) -> Path:
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(f"import pathlib, pytest, time\nTOLD = pathlib.Path({str(folder / 'told')!r})\n{body}\n")
    return folder


def test_two_run_side_by_side_and_what_stands_no_neighbour_afterwards(folder: Path) -> None:
    """Each of the two waits for the other: one after the other they would not end well."""
    meet = """
def test_meets():
    pathlib.Path(__file__).with_suffix(".here").touch()
    end = time.monotonic() + 20
    while len(list(TOLD.parent.glob("*.here"))) < 2:
        assert time.monotonic() < end, "nobody came"
        time.sleep(0.01)
    with TOLD.open("a") as told: told.write("beside ")
"""
    alone = '@pytest.mark.alone\ndef test_alone():\n    with TOLD.open("a") as told: told.write("alone ")\n'
    said: list[str] = []
    assert main(["--write"], files(folder, test_a=meet + alone, test_b=meet), said.append) == 0
    assert (folder / "told").read_text() == "beside beside alone "
    assert re.fullmatch(r"3 passed in \d+ s", said[-1])
    assert {tuple(line.split()[:2]) for line in said if " s  ." in line} == {
        ("[1]", "test_a.py"),
        ("[2]", "test_b.py"),
        ("[alone]", "test_a.py"),
    }
    assert set(read_seconds((folder / "seconds.txt").read_text())) == {"test_a.py", "test_b.py"}


def test_a_failure_is_shown_whole_and_a_skip_with_its_reason(folder: Path) -> None:
    files(
        folder,
        test_a='def test_bad():\n    print("seen before")\n    assert 6 * 9 == 42',
        test_b='def test_skipped():\n    pytest.skip("no such machine")\ndef test_good(): pass',
    )
    said: list[str] = []
    assert main([], folder, said.append) == 1
    text = "\n".join(said)
    assert re.fullmatch(r"1 passed in \d+ s, FAILED in \[1\]", said[-1])
    assert "===== [1]: the whole output" in text and "seen before" in text and "assert (6 * 9) == 42" in text
    assert re.search(r"^\[2\]  SKIPPED .* no such machine$", text, re.MULTILINE) and "[2]: the whole" not in text


@pytest.mark.parametrize("body", ["this is no Python", "def test_ends():\n    import os\n    os._exit(0)"])
def test_a_file_that_cannot_be_read_or_ends_the_process_is_no_success(folder: Path, body: str) -> None:
    said: list[str] = []
    assert main([], files(folder, test_a=body, test_b="def test_good(): pass"), said.append) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_both_take_down_what_they_made(folder: Path, number: signal.Signals) -> None:
    body = """
@pytest.fixture
def made():
    pathlib.Path(__file__).with_suffix(".up").touch()
    yield
    time.sleep(0.2)
    pathlib.Path(__file__).with_suffix(".down").touch()
def test_long(made): time.sleep(30)
"""
    files(folder, test_a=body, test_b=body)
    command = [sys.executable, "-c", f"import sys, pathlib, scripts.abreast as a; sys.exit(a.program([], pathlib.Path({str(folder)!r})))"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as running:
        end = time.monotonic() + 20
        while len(list(folder.glob("*.up"))) < 2:
            assert time.monotonic() < end and running.poll() is None
            time.sleep(0.02)
        running.send_signal(number)
        assert running.wait(20) == 130
    assert len(list(folder.glob("*.down"))) == 2
