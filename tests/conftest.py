# SPDX-License-Identifier: Apache-2.0
"""For all tests: how long an example takes on a busy machine says nothing about the code, so hypothesis does not judge by it."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("plait", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plait")
