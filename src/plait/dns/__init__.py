# SPDX-License-Identifier: Apache-2.0
"""Names of containers, services, nodes and addresses: a Snapshot becomes a table, a question and a table become an answer. Pure."""
