# SPDX-License-Identifier: Apache-2.0
"""Discovery, purely: Consul's views of a Snapshot, its request bodies, its durations and indexes."""
