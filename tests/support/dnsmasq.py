# SPDX-License-Identifier: Apache-2.0
"""dnsmasq as a DHCP server on a lab's host."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from plait.lab.lab import Lab
from plait.lab.process import until

SECONDS = 120
"""Of the shortest lease that dnsmasq gives."""


@dataclass
class Dnsmasq:
    """On `eth0` of `host`, until `stop`. `leases` is its file in the host."""

    lab: Lab
    host: str
    process: subprocess.Popen[str]
    log: Path
    leases: str

    def rows(self) -> dict[str, str]:
        """Address -> name as the client said it, of what it has given of IPv4."""
        return {row[2]: row[3] for row in self._file() if ":" not in row[2]}

    def rows6(self) -> list[str]:
        """Addresses that it has given of IPv6."""
        return [row[2] for row in self._file() if ":" in row[2]]

    def clients(self) -> set[str]:
        """Ids of the clients in its file."""
        return {row[4] for row in self._file()}

    def _file(self) -> list[list[str]]:
        """A row each: when it ends, MAC or IAID, address, name, client's id."""
        lines = self.lab.run(self.host, "cat", self.leases, check=False).stdout.splitlines()
        return [row for row in map(str.split, lines) if len(row) == 5]

    def count(self, word: str, of: str = "") -> int:
        """Lines of its log with both."""
        return sum(1 for line in self.log.read_text().splitlines() if word in line and of in line)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def serve(lab: Lab, host: str, folder: Path, *options: str, name: str = "", first: str = "198.18.0.100") -> Dnsmasq:
    """Start one that gives 198.18.0.100 to 198.18.0.120 and asks to be asked again after seconds. `name`: its leases are those of one
    of that name that ran before."""
    log, leases = folder / f"dnsmasq-{host}-{len(list(folder.iterdir()))}.log", f"/run/dnsmasq-{name or host}.leases"
    command = ("dnsmasq", "-d", "-C", "/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces", "--dhcp-authoritative", "--no-ping")
    pool = f"--dhcp-range={first},198.18.0.120,255.255.255.0,{SECONDS}"
    with log.open("w") as out:
        process = lab.popen(host, *command, pool, f"--dhcp-leasefile={leases}", *options, stdout=out, stderr=subprocess.STDOUT, text=True)
    until("dnsmasq serves", lambda: "IP range" in log.read_text(), 5)
    return Dnsmasq(lab, host, process, log, leases)
