# SPDX-License-Identifier: Apache-2.0
"""Figures beside peers, in one interleaved run each. `python -m bench [NAME…]` runs all or some and writes docs/benchmarks.md."""
