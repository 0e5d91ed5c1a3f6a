# SPDX-License-Identifier: Apache-2.0
"""Sysctls of the host come back as they were, in a namespace of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.kernel import in_namespace, sh

from plait.kernel.linux import LinuxKernel, Sysctls
from plait.kernel.linux import sysctl as module
from plait.kernel.linux.sysctl import FORWARDING4, FORWARDING6

pytestmark = pytest.mark.root
NAMES = "net.ipv4.ip_forward net.ipv4.conf net.ipv6.conf"


def inside(body: Callable[[], None]) -> None:
    """Run `body` in a namespace with the links eth0 and pl-x1, which has forwarding off."""

    def work(_: LinuxKernel) -> None:
        sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv4.conf.all.accept_redirects=0")
        sh("ip link add eth1 type bridge && ip link add pl-x1 type bridge")
        body()

    in_namespace(work)


def values() -> dict[str, str]:
    lines = (line.split(" = ") for line in sh(f"sysctl {NAMES} 2>/dev/null").splitlines())
    return {line[0]: line[1] for line in lines if "pl-x1" not in line[0] and "stable_secret" not in line[0]}


def test_what_was_changed_comes_back_with_all_that_changed_with_it(tmp_path: Path) -> None:
    def body() -> None:
        sh("sysctl -qw net.ipv4.conf.eth1.forwarding=1 net.ipv6.conf.eth1.forwarding=1")
        before, sysctls = values(), Sysctls(tmp_path / "s")
        for path, value in ((FORWARDING4, "1"), (FORWARDING6, "1"), ("ipv4/conf/eth0/rp_filter", "2")):
            sysctls.write(path, value)
        assert values()["net.ipv6.conf.eth0.accept_ra"] == "2" and values()["net.ipv4.ip_forward"] == "1"
        said = Sysctls(tmp_path / "s").restore()
        assert values() == before and "set net.ipv4.ip_forward back to 0" in said
        assert not (tmp_path / "s").exists() and Sysctls(tmp_path / "s").restore() == []

    inside(body)


def test_what_the_administrator_set_meanwhile_and_what_docker_needs_stays(tmp_path: Path) -> None:
    def body() -> None:
        sysctls = Sysctls(tmp_path / "s")
        for path, value in ((FORWARDING4, "1"), (FORWARDING6, "1"), ("ipv4/conf/eth0/rp_filter", "2"), ("ipv4/conf/pl-x1/rp_filter", "2")):
            sysctls.write(path, value)
        sh("sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
        assert "pl-x1" not in (tmp_path / "s").read_text(), "what goes with its link"
        said = sysctls.restore({4})
        now = values()
        assert now["net.ipv4.conf.eth0.rp_filter"] == "1"
        assert (now["net.ipv4.ip_forward"], now["net.ipv4.conf.eth0.forwarding"], now["net.ipv6.conf.all.forwarding"]) == ("1", "1", "0")
        assert "left net.ipv4.ip_forward at 1: Docker needs it" in said

    inside(body)


def test_the_first_value_counts_and_that_of_an_earlier_boot_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        file = tmp_path / "s"
        for value in ("1", "2"):
            Sysctls(file).write("ipv4/conf/eth0/rp_filter", value)
        assert json.loads(file.read_text())["values"]["ipv4/conf/eth0/rp_filter"][0] == "0"
        monkeypatch.setattr(module, "_boot", lambda: "another")
        assert Sysctls(file).restore() == [] and values()["net.ipv4.conf.eth0.rp_filter"] == "2"

    inside(body)


@pytest.mark.parametrize("junk", ["", "[]", '{"boot": 1}', "\0", '{"values": {"a": "b"}}'])
def test_a_damaged_file_keeps_nothing_and_stops_nothing(junk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_boot", lambda: 1)
    (tmp_path / "s").write_text(junk)
    assert Sysctls(tmp_path / "s").restore() == []


def test_a_disk_that_refuses_changes_nothing(tmp_path: Path) -> None:
    def body() -> None:
        with pytest.raises(OSError, match="No such file"):
            Sysctls(tmp_path / "none" / "s").write("ipv4/conf/eth0/rp_filter", "2")
        assert values()["net.ipv4.conf.eth0.rp_filter"] == "0"

    inside(body)
