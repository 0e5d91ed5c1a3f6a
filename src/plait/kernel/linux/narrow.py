# SPDX-License-Identifier: Apache-2.0
"""Routes of ours in the namespaces of sandboxes (`InsideRoutes`). What lies there is not listed with every pass, for that would mean to
enter every namespace: what was made is remembered, and in a file which sandboxes have any, for an agent that is started again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from plait.kernel.linux import netlink as nl
from plait.kernel.linux import route as routes
from plait.kernel.linux.inside import opened
from plait.kernel.linux.link import Found
from plait.model.objects import InsideRoutes, Route

FILE = "inside-routes.json"
_ANOTHERS = {errno.EEXIST}
"""A route that the container has made itself, and keeps."""


class Narrow:
    """`folder`: where the file is, which is made with the first such route."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._held: dict[str, InsideRoutes] = {dev: InsideRoutes(dev, path, "", ()) for dev, path in self._load().items()}

    def held(self, links: Collection[str]) -> list[InsideRoutes]:
        """What lies in the namespaces at the other ends of `links`. Of what an agent of before made only that there is some: no plan says
        that, so the next pass makes it true, or removes it."""
        self._held = {dev: held for dev, held in self._held.items() if dev in links}
        return list(self._held.values())

    def forget(self, dev: str) -> None:
        """The link is a new one."""
        self._held.pop(dev, None)

    def bring(self, subject: InsideRoutes, link: Found | None, wanted: bool) -> None:
        """Make exactly these routes of ours be there, none if they are not `wanted`. OSError; ENODEV if there is no `link` of that name, or
        its other end lies in no other namespace."""
        if wanted:
            self._held[subject.dev] = InsideRoutes(subject.dev, subject.netns, "", ())
        else:
            self._held.pop(subject.dev, None)
        self._save()
        if link is None or not link.away:
            raise OSError(errno.ENODEV, f"the link {subject.dev} leads into no sandbox")
        self._make(subject.netns, subject.routes if wanted else (), link.away)
        if wanted:
            self._held[subject.dev] = subject

    def _make(self, netns: str, wanted: Sequence[Route], index: int) -> None:
        with opened(netns) as (_, there):
            due = {route.dst: route for route in wanted}
            name = next((route.dev for route in wanted), "eth0")
            present = {r.dst: r for r in routes.dump_routes(there, {index: name}) if r.dev == name}
            messages = [routes.del_route(route, index) for dst, route in present.items() if dst not in due]
            for dst, route in due.items():
                if dst not in present:
                    made = routes.put_route(route, index)
                    messages.append(nl.Message(made.type, nl.NLM_F_CREATE | nl.NLM_F_EXCL, made.body))
                elif present[dst] != route:
                    messages.append(routes.put_route(route, index))
            for reply in there.transact(messages) if messages else ():
                if reply.errno and reply.errno not in _ANOTHERS:
                    raise OSError(reply.errno, reply.text or os.strerror(reply.errno))

    def _load(self) -> dict[str, str]:
        try:
            return {str(dev): str(path) for dev, path in json.loads(self._file.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _save(self) -> None:
        """Before the routes are made."""
        paths = {dev: held.netns for dev, held in self._held.items()}
        if paths != self._load():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._file.with_suffix(".new")
            fresh.write_text(json.dumps(paths))
            fresh.replace(self._file)
