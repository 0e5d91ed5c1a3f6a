# SPDX-License-Identifier: Apache-2.0
"""CNI and netavark: one small program that the engines run, and what answers it in the agent."""
