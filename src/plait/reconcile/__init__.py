# SPDX-License-Identifier: Apache-2.0
"""What must be done to bring the kernel from what it holds to what the plan says, and in which order."""

from plait.reconcile.diff import diff
from plait.reconcile.order import order, stages

__all__ = ["diff", "order", "stages"]
