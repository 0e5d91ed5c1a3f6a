# SPDX-License-Identifier: Apache-2.0
"""plait: one network and one service directory for containers on many Linux hosts."""

__version__ = "0.1.0"
