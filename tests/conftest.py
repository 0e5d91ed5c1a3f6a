# SPDX-License-Identifier: Apache-2.0
"""For all tests. How long an example takes on a busy machine says nothing about the code, so hypothesis does not judge by it. And a suite
that a shell runs in the background is born ignoring SIGINT and SIGQUIT, as would be every program that it starts and means to interrupt."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("plait", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plait")
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
