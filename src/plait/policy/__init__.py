# SPDX-License-Identifier: Apache-2.0
"""Who may talk to whom: policies read from files, whom they select, what they decide."""
