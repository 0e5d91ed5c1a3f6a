# SPDX-License-Identifier: Apache-2.0
"""Runs the files of tests/system in two pytest processes (or more) side by side, and then what stands no neighbour (marker `alone`).

Data in: the test files, and `seconds.txt` beside them, which says how long each takes; it serves to share them out evenly and for nothing
else. Data out: a line per file as soon as it has ended, the whole output of every process that failed, one verdict with the number of
tests; exit status 0, 1, or 130 when interrupted.

The shares follow from the names and `seconds.txt` alone and are worked through in the order of the names: a failure meets the same
neighbours the next time. SIGINT and SIGTERM are handed on to pytest, which then takes its labs down.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SYSTEM = ROOT / "tests" / "system"
ABREAST = 2
UNKNOWN_S = 30.0
"""What a file is taken to need that seconds.txt does not name."""
_PYTEST = (sys.executable, "-m", "pytest", "-o", "console_output_style=classic", "-p", "no:cacheprovider", "-p", "no:randomly")
_FILE = re.compile(r"(\S+/)?(test_\w+\.py) (\S+)\s*$")
_PASSED = re.compile(r"\b(\d+) passed\b")
_END = re.compile(r" in \d[\d.]*s\b")
_NOTHING_TO_RUN = 5  # pytest's exit status when no test is selected
Say = Callable[[str], None]


def share(files: Iterable[str], seconds: Mapping[str, float], shares: int = ABREAST) -> list[list[str]]:
    """The files in `shares` lists that take about the same time: the longest first, each to the list that is shortest by then. Each list
    is sorted. Depends on nothing but the arguments, whatever the order of `files`."""
    lists: list[list[str]] = [[] for _ in range(shares)]
    needed = [0.0] * shares
    for file in sorted(files, key=lambda name: (-seconds.get(name, UNKNOWN_S), name)):
        least = needed.index(min(needed))
        lists[least].append(file)
        needed[least] += seconds.get(file, UNKNOWN_S)
    return [sorted(found) for found in lists]


def read_seconds(text: str) -> dict[str, float]:
    """Seconds by file name of lines `test_x.py 12`; # begins a comment. ValueError says which line is something else."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            try:
                name, took = words
                found[name] = float(took)
            except ValueError:
                raise ValueError(f"seconds.txt, line {number}: {line!r} is not a file's name and its seconds") from None
    return found


def write_seconds(took: Mapping[str, float]) -> str:
    """The text that `read_seconds` reads."""
    head = (
        "# How long each file takes beside another one, in seconds: scripts/abreast.py shares them out by it, and --write makes it anew.\n"
    )
    return head + "".join(f"{name} {max(1, round(needed))}\n" for name, needed in sorted(took.items()))


@dataclass
class Run:
    """One pytest process. `label` begins its lines of progress, `lines` is all that it wrote, `took` has the seconds of each file."""

    label: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, label: str, *words: str) -> Run:
        """In a session of its own, so that an interrupt at the terminal reaches it once, from here."""
        process = subprocess.Popen(
            [*_PYTEST, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        return cls(label, process)

    def follow(self, say: Say) -> None:
        """Read to the end what the process writes. pytest ends the line of a file when it begins the next one."""
        began = time.monotonic()
        with self.process:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self.lines.append(line)
                if found := _FILE.match(line):
                    now = time.monotonic()
                    self.took[found[2]], began = now - began, now
                    say(f"{self.label}  {found[2]:32} {self.took[found[2]]:4.0f} s  {found[3]}")

    @property
    def is_good(self) -> bool:
        """It ended by itself after its last test, and none failed."""
        return self.process.returncode in (0, _NOTHING_TO_RUN) and _END.search("".join(self.lines[-1:])) is not None

    @property
    def passed(self) -> int:
        """How many tests passed, by pytest's last words."""
        found = _PASSED.search("".join(self.lines[-1:]))
        return int(found[1]) if found else 0

    def report(self) -> str:
        """All that it wrote if it failed; otherwise its summary (what was skipped and why, how many passed)."""
        if not self.is_good:
            return f"\n===== {self.label}: the whole output of pytest\n{''.join(self.lines)}"
        heads = [number for number, line in enumerate(self.lines) if "short test summary" in line]
        return "".join(f"{self.label}  {line}" for line in self.lines[heads[-1] if heads else -1 :])


def follow_all(runs: Sequence[Run], say: Say) -> None:
    """Until all have ended. An interrupt is handed on to each once; KeyboardInterrupt when they have ended."""
    with ThreadPoolExecutor(len(runs)) as pool:
        following = [pool.submit(run.follow, say) for run in runs]
        try:
            for one in following:
                one.result()
        except KeyboardInterrupt:
            for run in runs:
                run.process.send_signal(signal.SIGINT)
            raise


def main(words: Sequence[str], folder: Path = SYSTEM, say: Say = print) -> int:
    """Exit status. `folder` has the files and seconds.txt."""
    options = argparse.ArgumentParser(description="run tests/system in several pytest processes side by side")
    options.add_argument("--write", action="store_true", help="make seconds.txt anew from this run")
    options.add_argument("--abreast", type=int, default=ABREAST, metavar="N", help=f"so many at a time (default {ABREAST})")
    given = options.parse_args(words)
    files = {path.name: str(path) for path in folder.glob("test_*.py")}
    listed = folder / "seconds.txt"
    shares = share(files, read_seconds(listed.read_text()) if listed.exists() else {}, given.abreast)
    began = time.monotonic()
    runs = [
        Run.start(f"[{number}]", "-m", "not alone", *(files[name] for name in names)) for number, names in enumerate(shares, 1) if names
    ]
    follow_all(runs, say)
    last = Run.start("[alone]", "-m", "alone", *(files[name] for name in sorted(files)))
    follow_all([last], say)
    done = [*runs, last]
    for run in sorted(done, key=lambda run: not run.is_good):
        say(run.report().rstrip("\n"))
    if given.write:
        listed.write_text(write_seconds({name: took for run in runs for name, took in run.took.items()}))
    bad = [run.label for run in done if not run.is_good]
    passed = sum(run.passed for run in done)
    say(f"{passed} passed in {time.monotonic() - began:.0f} s" + (f", FAILED in {' '.join(bad)}" if bad else ""))
    return 0 if passed and not bad else 1


def program(words: Sequence[str], folder: Path = SYSTEM) -> int:
    """`main` as a program: 130 after SIGINT or SIGTERM."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        return main(words, folder)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(program(sys.argv[1:]))
