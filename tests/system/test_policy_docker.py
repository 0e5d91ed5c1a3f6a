# SPDX-License-Identifier: Apache-2.0
"""Policies for Docker's containers: on networks of plait's, and on Docker's own bridge, by the labels of `docker run`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support.mesh import docker

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(240)]
POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}
"""


def test_labels_of_docker_run_decide_who_reaches_a_container(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(hosts=1, engines=True)
    docker(lab, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "mesh")
    lab.run("A", "plait", "policy", "apply", "-f", "-", text=POLICY)
    for network, end in (("mesh", ""), ("bridge", "-b")):
        for name, app in (("db", "db"), ("web", "web"), ("other", "none")):
            docker(lab, "A", "run", "-d", "--name", f"{name}{end}", "--network", network, "--label", f"app={app}", "nginx")
        shown = f"{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}"
        address = docker(lab, "A", "inspect", "-f", shown, f"db{end}").strip()
        until(f"web{end} reaches it", lambda end=end, address=address: gets(lab, f"web{end}", address, 1), 30)
        if end:  # Docker attached them by itself
            until("other-b does not", lambda address=address: not gets(lab, "other-b", address, 1), 30)
        assert not gets(lab, f"other{end}", address, 1)
        assert gets(lab, f"web{end}", address, 5)
    assert "policy-unenforced" not in lab.run("A", "plait", "status", check=False).stdout


def gets(lab: Lab, name: str, to: str, wait_s: float) -> bool:
    done = lab.run("A", "docker", "exec", name, "curl", "-s", "-o", "/dev/null", "--max-time", f"{wait_s:g}", f"http://{to}/", check=False)
    return done.returncode == 0
