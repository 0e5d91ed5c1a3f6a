# SPDX-License-Identifier: Apache-2.0
"""DHCP as a client: codecs of what goes over the wire, and the life of a lease as pure steps. No clock, no sockets, no chance."""
