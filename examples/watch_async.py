# SPDX-License-Identifier: Apache-2.0
"""Follow the instances of a service with asyncio; nothing is reported but real changes."""

from __future__ import annotations

import asyncio

from plait.client import AsyncClient, Service


async def deploy(client: AsyncClient) -> None:
    """Somebody else: two instances come, one goes."""
    for port in (8080, 8081):
        await client.register(Service("example-api", port, id=f"example-api-{port}"))
        await asyncio.sleep(0.2)
    await client.deregister("example-api-8080")


async def main() -> None:
    async with AsyncClient() as client, asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(deploy(client))
        async for instances in client.watch("example-api"):
            ports = [instance.port for instance in instances]
            print(f"instances: {ports}")
            if ports == [8081]:
                break
        await client.deregister("example-api-8081")


asyncio.run(main())
