# SPDX-License-Identifier: Apache-2.0
"""Parsing is not interrupted by what other tests left to the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """Python 3.11 fails in `ast.parse` (SystemError, cpython issue 106905) if a finalizer formats a traceback in it, which parses too."""
    gc.disable()
    yield
    gc.enable()
