# SPDX-License-Identifier: Apache-2.0
"""A client that others wrote is the judge: all of py-consul's own tests, each against an agent that was started for it by
`plait consul agent` as they would start Consul's. docs/from-consul.md lists what is left out here, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import pyconsul

from plait.lab.lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "from-consul.md"
_NO_ACL = "there are no access control lists: every token is accepted, and what manages them answers `ACL support disabled`"
_NO_CONNECT = "there is no Connect: no certificates for services, no intentions, no gateways, no sidecars"
_NO_CONFIG = "there are no central configuration entries"
LEFT_OUT = {
    "api/test_acl.py": _NO_ACL,
    "api/test_acl_templated_policy.py": _NO_ACL,
    "api/test_agent.py::TestAgent::test_agent_token_set": _NO_ACL,
    "api/test_snapshot.py::TestSnapshot::test_snapshot_requires_management_token": _NO_ACL,
    "api/test_agent.py::TestAgent::test_agent_service_connect": _NO_CONNECT,
    "api/test_catalog.py::TestCatalog::test_catalog_gateway_services": _NO_CONNECT,
    "api/test_connect.py": _NO_CONNECT,
    "api/test_config.py": _NO_CONFIG,
    "api/test_discovery_chain.py": _NO_CONFIG,
}
"""File, or test -> why it is not run."""


@pytest.fixture(scope="module")
def one(make_lab) -> Lab:
    return make_lab(hosts=1, agents=False)


def test_py_consul_finds_what_it_expects(one: Lab) -> None:
    files = [name for name in pyconsul.files() if name not in LEFT_OUT]
    outcomes, text = pyconsul.run(one, "A", files, [name for name in LEFT_OUT if "::" in name])
    bad = {name: outcome for name, outcome in outcomes.items() if outcome != "PASSED"}
    assert not bad, text[-8000:]
    assert {name.partition("::")[0] for name in outcomes} == set(files), "each file has tests, and they ran"
    assert len(outcomes) > 120


def test_what_is_left_out_is_written_down() -> None:
    rows = [line.strip("| ").split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith("| `api/")]
    assert {name.strip("`"): why for name, why in rows} == LEFT_OUT
