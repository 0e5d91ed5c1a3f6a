# SPDX-License-Identifier: Apache-2.0
"""A client that others wrote is the judge: py-consul's own tests against a real agent."""

from __future__ import annotations

import pytest
from tests.support import pyconsul

from plait.lab.lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
FILES = (
    "api/test_kv.py", "api/test_txn.py", "api/test_session.py", "api/test_event.py", "api/test_query.py", "api/test_operator.py",
    "api/test_snapshot.py", "api/test_status.py", "test_std.py", "test_base.py", "test_callback.py", "test_utils.py",
)  # fmt: skip
EXCLUDED = {
    "api/test_snapshot.py::TestSnapshot::test_snapshot_requires_management_token": "there are no access control lists: no token is refused",
}
"""Test -> why it is not run."""


@pytest.fixture(scope="module")
def one(make_lab) -> Lab:
    return make_lab(hosts=1)


def test_py_consul_finds_what_it_expects(one: Lab) -> None:
    outcomes, text = pyconsul.run(one, "A", FILES, EXCLUDED)
    bad = {name: outcome for name, outcome in outcomes.items() if outcome != "PASSED"}
    assert not bad, text[-8000:]
    assert {name.partition("::")[0] for name in outcomes} == set(FILES), "each file has tests, and they ran"
