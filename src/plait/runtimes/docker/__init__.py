# SPDX-License-Identifier: Apache-2.0
"""Docker: plait as its network and address driver, its networks kept in line with the cluster's, its containers watched."""
