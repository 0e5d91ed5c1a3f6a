# SPDX-License-Identifier: Apache-2.0
"""`plait init`, `join`, `down` and `agent` for real, on empty disks and in a network namespace of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.root
EMPTY_DISKS = "for folder in /etc /var/lib /run; do mount -t tmpfs none $folder; done; "
PLAIT = f"{sys.executable} -m plait.cli.main"


def on_a_new_host(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `plait` is the program, with nothing on /etc, /var/lib and /run and without any link."""
    text = f'plait() {{ {PLAIT} "$@"; }}; {EMPTY_DISKS} {script}'
    return subprocess.run(["unshare", "--mount", "--net", "sh", "-c", text], capture_output=True, text=True, timeout=50)


def test_init_makes_a_node_once_and_purge_unmakes_it() -> None:
    done = on_a_new_host(
        "plait init --name A --address 198.18.0.1 --pool 10.40.0.0/16; plait init; echo $?; "
        "plait down --purge; ls -A /var/lib; echo again; plait init --name B --address 198.18.0.2"
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("node A at 198.18.0.1 is the first of a new cluster; start the agent with")
    assert lines[1] == "1" and "this host is node 'A' of a cluster already" in done.stderr
    assert "deleted /var/lib/plait" in lines
    assert lines[-2:] == ["again", lines[0].replace("node A at 198.18.0.1", "node B at 198.18.0.2")]
    assert "Traceback" not in done.stderr


def test_purge_takes_the_files_of_cni_and_none_of_others() -> None:
    write = (
        "from pathlib import Path; from plait.agent.config import load_config; from plait.agent.files import replace_file; "
        "from plait.agent.engines import places_of; "
        "from plait.runtimes.cni.files import install_shim, sync_conflists; p = places_of(load_config(Path('/etc/plait/plait.toml'))); "
        "install_shim(p, replace_file); sync_conflists(p, ['mesh'], replace_file)"
    )
    done = on_a_new_host(
        "plait init --name A --address 198.18.0.1; mkdir -p /etc/cni/net.d /etc/plait; echo '{}' >/etc/cni/net.d/10-other.conf; "
        f'printf \'[cni]\\nbin_dir = "/etc/bin"\\n\' >/etc/plait/plait.toml; {sys.executable} -c "{write}"; '
        "find /etc/cni /etc/bin -type f; plait down; plait down --purge; echo after; find /etc/cni /etc/bin -type f"
    )
    lines = done.stdout.splitlines()
    assert {"/etc/bin/plait", "/etc/cni/net.d/50-plait-mesh.conflist", "/etc/cni/net.d/10-other.conf"} < set(lines), done.stderr
    assert lines[lines.index("after") :] == ["after", "/etc/cni/net.d/10-other.conf"]
    assert "deleted /etc/cni/net.d/50-plait-mesh.conflist" in lines and "deleted /etc/bin/plait" in lines


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("init --name not_a_label", "is not a DNS label"),
        ("init", "--address"),
        ("join 198.18.0.9 --token nonsense --name B --address 198.18.0.2", "token"),
        ("agent", "plait init"),
    ],
    ids=["bad-name", "no-address", "bad-token", "no-cluster"],
)
def test_what_cannot_be_done_is_one_line(words: str, told: str) -> None:
    done = on_a_new_host(f"plait {words}")
    assert done.returncode == 1
    assert done.stderr.startswith("plait: ") and done.stderr.count("\n") == 1
    assert told in done.stderr


def test_down_is_success_where_nothing_is() -> None:
    done = on_a_new_host("plait down")
    assert (done.returncode, done.stderr) == (0, "")
