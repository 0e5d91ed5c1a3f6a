# SPDX-License-Identifier: Apache-2.0
"""netavark's plug-in protocol, by which Podman 5 asks for networks of others."""
