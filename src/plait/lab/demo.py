# SPDX-License-Identifier: Apache-2.0
"""The four-host case, played for an audience: every command is shown with its output, and what it must show is checked.

Data in: a place to write lines to. Data out: a `Verdict`. Hosts A, B and C have an agent and an engine; D has neither, only Debian's
nginx. The hosts are a lab that is gone afterwards, whatever happened.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from plait.lab.inside import CommandFailed
from plait.lab.lab import Lab, sweep
from plait.lab.spec import parse_toml
from plait.model.errors import PlaitError

FOUR_HOSTS = "".join(f'[[host]]\nname = "{name}"\n' for name in "ABC") + '[[host]]\nname = "D"\nagent = false\nengine = false\n'
NEEDED = {"dig": "bind9-dnsutils", "curl": "curl", "nginx": "nginx-light", "dockerd": "docker.io", "ping": "iputils-ping"}
POOL = "10.28.0.0/16"
FIRST = "10.28.0.2"
WIDTH = 100
# Pings per second while something is broken on purpose.
PING_RATE = 20

D_NGINX = """\
error_log /var/log/nginx/error.log;
events {}
http {
    resolver 10.28.0.1 valid=1s;
    resolver_timeout 1s;
    server {
        listen 80;
        location / {
            set $upstream web.service.consul;
            proxy_pass http://$upstream;
            proxy_connect_timeout 1s;
        }
    }
}
"""

Check = Callable[[str], bool]


@dataclass(slots=True)
class Verdict:
    """What came out: every check in order with whether it held, and the whole time in seconds."""

    checks: list[tuple[str, bool]] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def failed(self) -> list[str]:
        return [claim for claim, held in self.checks if not held]

    @property
    def is_good(self) -> bool:
        return bool(self.checks) and not self.failed


class Case:
    """The case on a lab that is up. `play` runs it; every line of the show goes to `say`."""

    def __init__(self, lab: Lab, say: Callable[[str], None]) -> None:
        self.lab, self.say, self.verdict = lab, say, Verdict()
        self.moved = ""  # web's address once it runs on C

    def play(self) -> None:
        """The whole case, in order. A check that fails is written down and does not stop the rest."""
        for scene in (
            self.web_on_the_default_bridge,
            self.registered_in_the_words_of_the_case,
            self.found_by_dns,
            self.mysql_on_another_host,
            self.proxy_on_a_host_without_agent,
            self.web_moves,
            self.everything_seen_from_everywhere,
            self.agent_killed_under_traffic,
            self.host_rebooted_under_traffic,
        ):
            try:
                scene()
            except PlaitError as error:
                self.check(str(error), False)

    def web_on_the_default_bridge(self) -> None:
        self.title("A starts web: plain Docker, no --network")
        self.show("A", "docker run -dit --name web -p 8080:80 nginx", "the container runs", lambda out: len(out.strip()) == 64)
        self.show(
            "A",
            "docker inspect -f '{{.NetworkSettings.IPAddress}}' web",
            f"it has the pool's first address, {FIRST}",
            lambda out: out.strip() == FIRST,
        )
        self.show("B", f"curl -sS http://{FIRST}", "host B reaches it by its own address", is_welcome, within_s=5)
        self.show("D", "curl -sS http://A:8080", "its published port answers too", is_welcome)

    def registered_in_the_words_of_the_case(self) -> None:
        self.title("web is registered; the empty address is filled in from the container")
        body = '{"ID": "web", "Name": "web", "Tags": ["http"], "Address": "", "Port": 80}'
        self.show("A", f"curl -sS http://localhost:8500/v1/agent/services -X PUT -d '{body}'", f"the answer has {FIRST}", is_registered)

    def found_by_dns(self) -> None:
        self.title("and found by DNS")
        self.show("A", "dig @localhost web.service.consul", "one A record, TTL 0, flags qr aa rd", is_one_record)
        self.show("C", "dig +short @localhost web.service.consul", "on every other host too", lambda out: out.strip() == FIRST, within_s=2)

    def mysql_on_another_host(self) -> None:
        self.title("B starts mysql; web and mysql talk across hosts")
        self.show(
            "B",
            "docker run -dit --name mysql -e MYSQL_ROOT_PASSWORD=password mysql",
            "the container runs",
            lambda out: len(out.strip()) == 64,
        )
        body = '{"ID": "mysql", "Name": "mysql", "Tags": ["sql"], "Address": "", "Port": 3306}'
        self.show("B", f"curl -sS http://localhost:8500/v1/agent/services -X PUT -d '{body}'", "registered", lambda out: '"mysql"' in out)
        address = self.quietly("B", "docker inspect -f '{{.NetworkSettings.IPAddress}}' mysql").strip()
        sql = "mysql -uroot -ppassword -h {} -e 'SELECT 6*7 AS answer, @@version AS version'"
        for target, how in (("mysql.service.consul", "by name"), (address, "by address")):
            self.show("A", f"docker exec web {sql.format(target)}", f"web on A asks mysql on B {how}", lambda out: "42" in out, within_s=20)
        self.show("B", f"docker exec mysql ping -c 2 {FIRST}", "and mysql reaches web by address", no_loss)
        self.show("B", "docker exec mysql ping -c 2 web.service.consul", "and by name", no_loss)

    def proxy_on_a_host_without_agent(self) -> None:
        self.title("D runs nginx and no agent: it reaches containers through A and finds them by discovery")
        self.show("A", "plait gateway enable", "A is a gateway for hosts without agent", anything)
        self.show("D", f"ip route add {POOL} via {self.lab.address('A')}", "D has a route to the pool", anything)
        self.lab.run("D", "tee", "/etc/nginx/nginx.conf", text=D_NGINX)
        self.show("D", "cat /etc/nginx/nginx.conf", "D's nginx asks plait's DNS for its upstream", anything)
        self.show("D", "nginx", "it runs", anything)
        self.show("D", "curl -sSi http://localhost", "D proxies to web", is_welcome, within_s=10)

    def web_moves(self) -> None:
        self.title("web moves from A to C, and D follows")
        self.show("A", "docker rm -f web", "web is gone from A", lambda out: "web" in out)
        self.show("C", "docker run -dit --restart always --name web -p 8080:80 nginx", "and runs on C", lambda out: len(out.strip()) == 64)
        body = '{"ID": "web", "Name": "web", "Tags": ["http"], "Address": "", "Port": 80}'
        self.show("C", f"curl -sS http://localhost:8500/v1/agent/services -X PUT -d '{body}'", "registered", lambda out: '"web"' in out)
        self.moved = self.quietly("C", "docker inspect -f '{{.NetworkSettings.IPAddress}}' web").strip()
        self.show(
            "A",
            "dig +short @localhost web.service.consul",
            f"the name is {self.moved} now",
            lambda out: out.strip() == self.moved,
            within_s=2,
        )
        served = self.quietly("C", "docker inspect -f '{{.Config.Hostname}}' web").strip()
        self.show("D", "curl -sSi http://localhost", "D's answers come from C", lambda out: served in out and is_welcome(out), within_s=5)

    def everything_seen_from_everywhere(self) -> None:
        self.title("Every host with an agent shows all containers of the cluster")
        for host in "ABC":
            self.show(host, "plait ps", f"{host} shows web and mysql", lambda out: {"web", "mysql"} <= set(out.split()), within_s=3)

    def agent_killed_under_traffic(self) -> None:
        self.title("The agent of C is killed (SIGKILL) and started again while mysql on B pings web on C")
        with Pings(self.lab, "B", "mysql", self.moved) as pings:
            time.sleep(1)
            self.lab.kill_agent("C")
            time.sleep(1.5)
            self.lab.start_agent("C")
            time.sleep(1)
        self.say(f"   {pings.summary}")
        self.check("no packet was lost", pings.sent > 0 and pings.lost == 0)
        self.show(
            "C", "dig +short @localhost web.service.consul", "C answers names again", lambda out: out.strip() == self.moved, within_s=5
        )

    def host_rebooted_under_traffic(self) -> None:
        self.title("Host C loses power and comes back while mysql on B pings web on C")
        with Pings(self.lab, "B", "mysql", self.moved) as pings:
            time.sleep(1)
            began = time.monotonic()
            self.lab.reboot("C")
            self.say(f"   C was back with its agent and engine after {time.monotonic() - began:.1f} s")
            pings.wait_for_answer(20)
        self.say(f"   {pings.summary}: {pings.lost / PING_RATE:.1f} s of silence")
        self.check("the traffic goes on by itself after the reboot", pings.answers_at_the_end)
        self.show(
            "C",
            "docker inspect -f '{{.NetworkSettings.IPAddress}}' web",
            "web has its address again",
            lambda out: out.strip() == self.moved,
            within_s=5,
        )
        self.show("D", "curl -sS http://localhost", "and D proxies to it", is_welcome, within_s=10)
        for host in "ABC":
            self.show(host, "plait status", f"{host} says that all is well", anything, within_s=10)

    def title(self, text: str) -> None:
        self.say("")
        self.say(f"── {text} ".ljust(WIDTH, "─"))

    def show(self, host: str, command: str, claim: str, check: Check, *, within_s: float = 0.0) -> None:
        """Run `command` in `host`, show it and its output, and check that its status is 0 and its output as claimed; again and again
        until it is or `within_s` is over (only the last output is shown)."""
        self.say(f"{host}# {command}")
        end = time.monotonic() + within_s
        while True:
            done = self._run(host, command)
            held = done.returncode == 0 and check(done.stdout)
            if held or time.monotonic() >= end:
                break
            time.sleep(0.1)
        for line in (done.stdout + ("" if held else done.stderr)).strip().splitlines():
            self.say(f"   {line.rstrip()}")
        self.check(claim, held)

    def check(self, claim: str, held: bool) -> None:
        """Show and write down one check."""
        self.say(f"   {'✓' if held else '✗'} {claim}")
        self.verdict.checks.append((claim, held))

    def quietly(self, host: str, command: str) -> str:
        """Output of a command that is not part of the show; "" if it fails."""
        return self._run(host, command).stdout

    def _run(self, host: str, command: str) -> subprocess.CompletedProcess[str]:
        try:
            return self.lab.run(host, "sh", "-c", command, check=False, timeout_s=30)
        except CommandFailed as error:
            return subprocess.CompletedProcess(command, 124, "", str(error))


class Pings:
    """A stream of pings from a container, PING_RATE a second, from enter to exit; then it knows what was lost."""

    def __init__(self, lab: Lab, host: str, container: str, target: str) -> None:
        # Not `-w 90`: that would end the stream at the first "host unreachable".
        words = ["docker", "exec", container, "ping", "-n", "-O", "-i", str(1 / PING_RATE), "-c", str(90 * PING_RATE), target]
        self._child = lab.popen(host, *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._lab, self._host, self._container = lab, host, container
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.answered: set[int] = set()
        self.sent = 0
        self._last_answer = 0.0

    def __enter__(self) -> Pings:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._lab.run(self._host, "docker", "exec", self._container, "pkill", "-INT", "ping", check=False)
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
        self._reader.join(5)
        if self._child.stdout is not None:
            self._child.stdout.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if found := re.search(r"icmp_seq=(\d+)", line):
                number = int(found[1])
                self.sent = max(self.sent, number)
                if "bytes from" in line:
                    self.answered.add(number)
                    self._last_answer = time.monotonic()

    def wait_for_answer(self, timeout_s: float) -> None:
        """Wait until pings are answered again (they were, within the last half second), at most `timeout_s`."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            time.sleep(0.5)
            if time.monotonic() - self._last_answer < 0.3:
                return

    @property
    def lost(self) -> int:
        """Pings without an answer; the last one may still have been under way."""
        return len(set(range(1, self.sent)) - self.answered)

    @property
    def answers_at_the_end(self) -> bool:
        return bool(self.answered & {self.sent, self.sent - 1, self.sent - 2})

    @property
    def summary(self) -> str:
        return f"{self.sent} pings sent, {self.lost} lost"


def anything(_: str) -> bool:
    """The command's status says enough."""
    return True


def is_welcome(out: str) -> bool:
    """nginx's page."""
    return "Welcome to nginx!" in out


def no_loss(out: str) -> bool:
    """ping's last lines without a loss."""
    return " 0% packet loss" in out


def is_registered(out: str) -> bool:
    """The answer that the case shows, field by field."""
    try:
        answer = json.loads(out)
        tagged = answer["TaggedAddresses"]
        filled = (answer["ID"], answer["Name"], answer["Tags"], answer["Address"], answer["Port"]) == ("web", "web", ["http"], FIRST, 80)
        plain = tagged["lan"] == tagged["wan"] == FIRST
        return filled and plain and {"Meta", "EnableTagOverride", "CreateIndex", "ModifyIndex"} <= answer.keys()
    except (ValueError, KeyError, TypeError):
        return False


def is_one_record(out: str) -> bool:
    """dig's page: the one address, TTL 0, and exactly the flags of an authoritative answer."""
    records = re.findall(r"^web\.service\.consul\.\s+(\d+)\s+IN\s+A\s+(\S+)$", out, re.MULTILINE)
    flags = re.search(r"flags: ([a-z ]+);", out)
    return records == [("0", FIRST)] and flags is not None and flags[1] in {"qr aa rd", "qr aa rd ra"}


def run(say: Callable[[str], None]) -> Verdict:
    """Play the case on a lab of its own and remove it; what an earlier show left when it was killed is removed first. PlaitError if the
    lab cannot be made; what a check finds is in the verdict."""
    missing = sorted({package for program, package in NEEDED.items() if shutil.which(program) is None})
    if missing:
        raise PlaitError(
            f"the four-host case needs programs of Debian packages that are not installed: apt-get install {' '.join(missing)}"
        )
    sweep()
    began = time.monotonic()
    say("Four hosts: A, B and C with plait's agent and a Docker Engine, D with neither.")
    lab = Lab.up(parse_toml(FOUR_HOSTS, engines=True), f"demo-{os.getpid()}", owned=True, progress=say)
    case = Case(lab, say)
    try:
        case.play()
    finally:
        lab.down()
    verdict = case.verdict
    verdict.took_s = time.monotonic() - began
    say("")
    say("═" * WIDTH)
    for claim in verdict.failed:
        say(f"✗ {claim}")
    good = len(verdict.checks) - len(verdict.failed)
    say(f"{'✓' if verdict.is_good else '✗'} {good} of {len(verdict.checks)} checks held ({verdict.took_s:.0f} s); everything is removed")
    return verdict
