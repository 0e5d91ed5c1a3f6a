# SPDX-License-Identifier: Apache-2.0
"""A runtime of CNI for tests, as the specification has it (libcni's part): it runs the plug-ins of a configuration list one after another
and hands each the result of the one before. In a lab host, or (`lab` None) here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.lab.lab import Lab


class Refused(Exception):
    """A plug-in's error, as the JSON that it printed."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error.get("msg"))
        self.error = error


@dataclass
class Runner:
    """`config` is a configuration list. `path`: directories of plug-ins, the first that has one counts. `capabilities`: what a runtime may
    hand on to the plug-ins that declare it."""

    lab: Lab | None
    host: str
    config: Mapping[str, Any]
    path: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)

    def add(self, container: str, netns: str, ifname: str = "eth0", **given: Any) -> dict[str, Any]:
        """The result of the last plug-in. As libcni does, nothing is taken back after a failure: that is the runtime's DEL."""
        result: dict[str, Any] | None = None
        for plugin in self.config["plugins"]:
            result = self._call("ADD", plugin, container, netns, ifname, result, given)
        assert result is not None
        return result

    def check(self, container: str, netns: str, previous: Mapping[str, Any], ifname: str = "eth0", **given: Any) -> None:
        for plugin in self.config["plugins"]:
            self._call("CHECK", plugin, container, netns, ifname, previous, given)

    def delete(self, container: str, netns: str, previous: Mapping[str, Any] | None = None, ifname: str = "eth0", **given: Any) -> None:
        for plugin in reversed(self.config["plugins"]):
            self._call("DEL", plugin, container, netns, ifname, previous, given)

    def collect(self, *valid: tuple[str, str]) -> None:
        attachments = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        for plugin in self.config["plugins"]:
            self._call("GC", {**plugin, "cni.dev/valid-attachments": attachments}, "", "", "", None, {})

    def status(self) -> None:
        for plugin in self.config["plugins"]:
            self._call("STATUS", plugin, "", "", "", None, {})

    def _call(
        self,
        verb: str,
        plugin: Mapping[str, Any],
        container: str,
        netns: str,
        ifname: str,
        previous: Mapping[str, Any] | None,
        given: Mapping[str, Any],
    ) -> Any:
        config = {**plugin, "cniVersion": self.config["cniVersion"], "name": self.config["name"]}
        config.pop("capabilities", None)
        runtime = {key: value for key, value in given.items() if key in plugin.get("capabilities", {})}
        if runtime:
            config["runtimeConfig"] = runtime
        if previous is not None:
            config["prevResult"] = previous
        variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname}
        variables |= {"CNI_PATH": ":".join(self.path), "CNI_ARGS": given.get("args", "")} | dict(self.environ)
        words = [f"{key}={value}" for key, value in variables.items() if value]
        find = f"for d in {' '.join(self.path)}; do [ -x $d/{plugin['type']} ] && exec $d/{plugin['type']}; done; exit 127"
        done = self._run(["env", *words, "sh", "-c", find], json.dumps(config))
        if done.returncode:
            raise Refused(json.loads(done.stdout or "{}") | {"status": done.returncode, "stderr": done.stderr})
        return json.loads(done.stdout) if done.stdout else None

    def _run(self, command: list[str], text: str) -> subprocess.CompletedProcess[str]:
        if self.lab is None:
            return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        return self.lab.run(self.host, *command, text=text, check=False)
