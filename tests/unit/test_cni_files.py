# SPDX-License-Identifier: Apache-2.0
"""The files that engines read: a list for each network, the plug-in, and nothing of others touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plait.agent.files import replace_file
from plait.model.errors import PlaitError
from plait.runtimes.cni import shim
from plait.runtimes.cni.files import Places, conflist, install_shim, remove_files, sync_conflists


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "net.d", tmp_path / "bin", tmp_path / "netavark", "1.0.0")


def sync(places: Places, *networks: str) -> dict[str, str]:
    return sync_conflists(places, networks, replace_file)


def names(places: Places) -> list[str]:
    return sorted(path.name for path in places.config.iterdir())


def test_there_is_a_list_for_each_network_and_none_for_others(places: Places) -> None:
    assert sync(places, "default", "mesh") == {}
    assert names(places) == ["50-plait-default.conflist", "50-plait-mesh.conflist"]
    written = json.loads((places.config / "50-plait-mesh.conflist").read_text())
    assert (written["cniVersion"], written["name"]) == ("1.0.0", "mesh")
    capabilities = {"aliases": True, "bandwidth": True, "dns": True, "ipRanges": True, "ips": True, "mac": True, "portMappings": True}
    assert written["plugins"] == [{"type": "plait", "network": "mesh", "capabilities": capabilities}]
    assert sync(places, "mesh") == {} and names(places) == ["50-plait-mesh.conflist"]


def test_what_is_as_it_should_be_is_not_written_again(places: Places) -> None:
    sync(places, "mesh")

    def refuse(path: Path, text: str, mode: int) -> None:
        raise AssertionError(f"{path} is written again")

    assert sync_conflists(places, ["mesh"], refuse) == {}


def test_the_files_of_others_stay(places: Places) -> None:
    places.config.mkdir()
    foreign = {
        "50-plait-gone.conflist": conflist("gone", "1.0.0").replace("written by", "once written by"),
        "87-podman-bridge.conflist": '{"name": "podman", "plugins": [{"type": "bridge"}]}',
        "10-mesh.conf": '{"name": "mesh", "type": "bridge"}',
        "11-own.conflist": '{"name": "own", "plugins": [{"type": "plait"}, {"type": "tuning"}]}',
        "12-broken.conflist": "{",
        "13-odd.conflist": '{"name": "odd", "plugins": []}',
        "notes.txt": "of the operator",
    }
    for name, text in foreign.items():
        (places.config / name).write_text(text)
    problems = sync(places, "mesh", "own", "odd")
    assert set(problems) == {"mesh"} and "10-mesh.conf" in problems["mesh"] and "'bridge'" in problems["mesh"]
    assert names(places) == sorted([*foreign, "50-plait-odd.conflist"]), "a list of the operator for a network takes the place of plait's"
    remove_files(places)
    assert {name: (places.config / name).read_text() for name in names(places)} == foreign


def test_a_list_gives_way_to_one_of_the_operator(places: Places) -> None:
    sync(places, "mesh")
    (places.config / "11-own.conflist").write_text('{"name": "mesh", "plugins": [{"type": "plait"}]}')
    assert sync(places, "mesh") == {} and names(places) == ["11-own.conflist"]
    (places.config / "11-own.conflist").unlink()
    assert sync(places, "mesh") == {} and names(places) == ["50-plait-mesh.conflist"]


def test_a_directory_that_cannot_be_written_is_told(places: Places) -> None:
    places.config.write_text("a file")
    with pytest.raises(PlaitError, match="cannot write the CNI configuration"):
        sync(places, "mesh")


def test_the_plug_in_is_installed_and_replaced_but_no_other_program(places: Places) -> None:
    assert places.netavark is not None
    install_shim(places, replace_file)
    own, other = places.plugins / "plait", places.netavark / "plait"
    assert own.read_text() == other.read_text() == Path(shim.__file__).read_text()
    assert own.stat().st_mode & 0o777 == 0o755 and own.read_text().startswith("#!/usr/bin/python3 -IS\n")
    own.write_text(own.read_text() + "# of an earlier version\n")
    other.write_bytes(b"\x7fELF in C")
    install_shim(places, replace_file)
    assert own.read_text() == Path(shim.__file__).read_text() and other.read_bytes() == b"\x7fELF in C"
    assert remove_files(places) == [own] and not own.exists() and other.exists()


def test_a_plug_in_that_cannot_be_installed_is_told(places: Places) -> None:
    places.plugins.write_text("a file")
    with pytest.raises(PlaitError, match=r"cni\.bin_dir"):
        install_shim(places, replace_file)
