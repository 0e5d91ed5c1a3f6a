# SPDX-License-Identifier: Apache-2.0
"""Health checks at work: when each is due (`wheel`), how many run at once (`scheduler`), and how each kind is run."""
