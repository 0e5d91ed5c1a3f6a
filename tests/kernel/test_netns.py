# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from plait.kernel.linux import create_netns, delete_netns, netns_exists

pytestmark = pytest.mark.root


def test_a_namespace_lives_at_its_path_until_it_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "dir" / "web"
    assert not netns_exists(path)
    create_netns(path)
    inode = path.stat().st_ino
    assert netns_exists(path)
    create_netns(path)
    assert path.stat().st_ino == inode, "an existing namespace must be kept, its processes would be cut off"
    delete_netns(path)
    delete_netns(path)
    assert not path.exists()
