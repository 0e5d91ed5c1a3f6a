# SPDX-License-Identifier: Apache-2.0
"""Where a node keeps its files, and how it replaces one so that a crash loses nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a node keeps its files. Fixed in production; tests give their own."""

    etc: Path = Path("/etc/plait")
    lib: Path = Path("/var/lib/plait")
    run: Path = Path("/run/plait")
    docker_plugin: Path = Path("/run/docker/plugins/plait.sock")

    @property
    def config(self) -> Path:
        return self.etc / "plait.toml"

    @property
    def ranges(self) -> Path:
        return self.etc / "ranges.toml"

    @property
    def routing(self) -> Path:
        return self.etc / "routing.toml"

    @property
    def admin_socket(self) -> Path:
        return self.run / "plait.sock"

    @property
    def cni_socket(self) -> Path:
        return self.run / "cni.sock"

    @property
    def cni_spool(self) -> Path:
        """Where the plug-in leaves removals while the agent is away."""
        return self.lib / "cni-pending"

    @property
    def dns_successors(self) -> Path:
        """Where the DNS process waits for the next agent's."""
        return self.run / "dns.sock"

    @property
    def answered(self) -> Path:
        """What DNS answered of names that policies are for."""
        return self.run / "answered"

    @property
    def sysctls(self) -> Path:
        """What the host's sysctls were before plait."""
        return self.lib / "sysctls.json"

    @property
    def identity(self) -> Path:
        return self.lib / "identity.json"


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write `text` to `path` so that a reader and a crash see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
