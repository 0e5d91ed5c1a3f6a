# SPDX-License-Identifier: Apache-2.0
"""Offer a service while a block runs, find it by name, take it out of use and back."""

from __future__ import annotations

from plait.client import Client, Service

with Client() as client:
    offered = Service("example-web", port=8080, tags=("v1",), ttl_s=10)
    with client.registration(offered) as registration:
        for instance in client.resolve("example-web", tags=("v1",)):
            print(f"{instance.name} at port {instance.port} of {instance.node}: {instance.status}")
        registration.critical("the database is away")
        print(f"usable now: {len(client.resolve('example-web'))}")
        registration.passing()
        print(f"usable again: {len(client.resolve('example-web'))}")
    print(f"after the block: {len(client.resolve('example-web', passing=False))}")
