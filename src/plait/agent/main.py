# SPDX-License-Identifier: Apache-2.0
"""What `plait init`, `join`, `agent` and `down` do. The command line imports this module only when one of them is called."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from ipaddress import IPv4Network, ip_address
from pathlib import Path

from plait.agent.config import DNS_PORTS, Config, check_node_name, load_config
from plait.agent.files import Paths
from plait.agent.hostaddress import default_source, is_here
from plait.agent.identity import Identity, load_identity, new_id, placed, save_identity
from plait.agent.logs import set_up
from plait.agent.staging import Stage
from plait.model.addr import IPAddress, at_port
from plait.model.cluster import Endpoint
from plait.model.errors import ConfigError, Conflict, NotFound, PlaitError
from plait.model.hostlinks import Key
from plait.store.codec import decode
from plait.store.pki import init_cluster

log = logging.getLogger("plait.main")
DEFAULT_POOL = IPv4Network("10.28.0.0/16")
_STOP_TIMEOUT_S = 30.0
_DOCKERS = ("docker", "br-")
"""What the names of the engine's own bridges begin with. It switches forwarding on at its start and relies on it."""


def init(name: str | None = None, address: str | None = None, pool: str | None = None, paths: Paths | None = None) -> Identity:
    """Make a new cluster whose first node is this host. Conflict if the host is in one already, or somebody holds DNS's ports; ConfigError
    for bad values."""
    paths = paths or Paths()
    _refuse_member(paths)
    config = load_config(paths.config)
    _refuse_held_ports(config)
    node_name, own = check_node_name(name or config.name), _own_address(address, config)
    identity = Identity(node_name, new_id(), own, pool=_pool(pool), translated=not is_here(own))
    if identity.address in identity.pool:
        raise ConfigError("--pool", str(identity.pool), f"holds {identity.address}, this host's own address", "choose another range")
    init_cluster(paths.lib / "pki", identity.name, identity.id, identity.address)
    save_identity(paths.identity, identity)
    return identity


def join(server: str, token: str, name: str | None = None, address: str | None = None, paths: Paths | None = None) -> Identity:
    """Make this host a node of the cluster that `server` ("host" or "host:port") belongs to, with a token from there."""
    from plait.store.join import join_cluster

    paths = paths or Paths()
    _refuse_member(paths)
    config = load_config(paths.config)
    _refuse_held_ports(config)
    node_name, node_id, own = check_node_name(name or config.name), new_id(), _own_address(address, config)
    joined = asyncio.run(join_cluster(server, token, node_name, node_id, paths.lib / "pki"))
    pool = IPv4Network(joined.info.get("pool", str(DEFAULT_POOL)))
    identity = Identity(node_name, node_id, own, at_port(joined.store_host, joined.store_port), pool, not is_here(own))
    save_identity(paths.identity, identity)
    return identity


def run(paths: Paths | None = None) -> None:
    """Be the agent until SIGTERM or SIGINT. The kernel keeps what it has: a restart loses no packet."""
    paths = paths or Paths()
    config = load_config(paths.config)
    load_identity(paths.identity)
    set_up(config.log_level, config.log_format)
    with _only_agent(paths.run):
        Stage(paths).switch()
        if not _run(config, placed(load_identity(paths.identity), config), paths):
            return
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _run(config: Config, identity: Identity, paths: Paths) -> bool:
    """Be the agent; True if it is to be started anew because this node is one of another cluster now."""
    from plait.agent.joiner import Moved
    from plait.agent.process import tune
    from plait.agent.wiring import run_node

    tune()
    try:
        asyncio.run(_until_signal(run_node(config, identity, paths)))
    except BaseExceptionGroup as group:
        moved, rest = group.split(Moved)
        if moved is not None and rest is None:
            return True
        refused = group.subgroup(Conflict)
        if refused is None:
            raise
        raise _first(refused) from None  # what a copied host is told
    return False


def _first(group: BaseExceptionGroup[Conflict]) -> BaseException:
    """The first error in it, however deep."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def down(purge: bool = False, paths: Paths | None = None) -> list[str]:
    """Stop the agent and remove everything of plait from this host's kernel; with `purge` also leave the cluster and delete its
    files. Returns what was done, a line each. Idempotent."""
    from plait.agent.birdprocess import BirdProcess
    from plait.kernel.linux import LinuxKernel, Sysctls, delete_netns
    from plait.reconcile import diff, order
    from plait.serve.dns_handover import dismiss

    paths = paths or Paths()
    done: list[str] = []
    if _stop_agent(paths.run):
        done.append("stopped the agent")
    dismiss(paths.dns_successors)
    if asyncio.run(BirdProcess(paths.run).stop()):
        done.append("stopped BIRD")
    kernel = LinuxKernel(paths.lib)
    try:
        ops = order(diff({}, kernel.owned(_inside(paths)), True))
        result = kernel.apply(ops)
        kernel.flush_tables()
        bridged = {addr.address.version for addr in kernel.addresses() if addr.dev.startswith(_DOCKERS)}
    finally:
        kernel.close()
    for error in result.failed.values():
        raise error
    done.append(f"removed {len(ops)} objects from the kernel")
    done += Sysctls(paths.sysctls).restore(bridged)
    netns = paths.run / "netns"
    for path in sorted(netns.iterdir()) if netns.is_dir() else ():
        delete_netns(path)
    if purge:
        done += _purge(paths)
    paths.docker_plugin.unlink(missing_ok=True)
    shutil.rmtree(paths.run, ignore_errors=True)
    return done


def _inside(paths: Paths) -> list[Key]:
    """Where links of plait's are that lie in other namespaces altogether: sandboxes, and what engines moved theirs to."""
    from plait.agent.journal import Journal
    from plait.kernel.linux import children_in, running_netns

    file = paths.lib / "journal.db"
    if not file.exists():
        return []
    with contextlib.closing(Journal(file)) as journal:
        endpoints = [decode(Endpoint, body, key) for key, body in journal.load("endpoint").items()]
    moved = {endpoint.dev for endpoint in endpoints if not endpoint.netns}
    there = [("child", endpoint.dev, endpoint.netns) for endpoint in endpoints if endpoint.netns] + children_in(moved, running_netns())
    return there + [("child-guard", *place) for _, *place in there]


def _give_back(paths: Paths) -> list[str]:
    """Addresses of DHCP servers, which would keep them until the leases end."""
    from plait.agent.dhcp import give_back, steady
    from plait.agent.journal import Journal
    from plait.kernel.linux import PacketSocket

    file = paths.lib / "journal.db"
    if not file.exists():
        return []
    with contextlib.closing(Journal(file)) as journal:
        told = give_back(journal, PacketSocket, steady())
    return [f"gave back {told} leases"] if told else []


def _purge(paths: Paths) -> list[str]:
    done = _give_back(paths)
    with contextlib.suppress(NotFound, ConfigError):
        identity = placed(load_identity(paths.identity), load_config(paths.config))
        if identity.store:
            from plait.agent.stores import leave

            done.append(asyncio.run(leave(identity, paths)))
        else:
            done.append("deleted the cluster's store, which this node carried")
    with contextlib.suppress(ConfigError):
        from plait.agent.engines import places_of
        from plait.runtimes.cni.files import remove_files

        done += [f"deleted {path}" for path in remove_files(places_of(load_config(paths.config)))]
    for folder in (paths.lib, paths.etc):
        shutil.rmtree(folder, ignore_errors=True)
        done.append(f"deleted {folder}")
    return done


def _refuse_held_ports(config: Config) -> None:
    """Before anything is made: names would not work on this host. An agent that finds them held later goes on and says so."""
    from plait.serve.dns_holder import held

    if config.dns_enabled and (what := held("127.0.0.1", DNS_PORTS)):
        hint = "stop that program or have it listen elsewhere, then run this again; or set dns.enabled = false in /etc/plait/plait.toml"
        raise Conflict(f"DNS of this host cannot be plait's: {what}; {hint}")


def _refuse_member(paths: Paths) -> None:
    try:
        known = load_identity(paths.identity)
    except NotFound:
        return
    raise Conflict(
        f"this host is node {known.name!r} of a cluster already; leave it first with `plait down --purge`, or have all of it "
        "join another one with `plait join --merge`"
    )


def _own_address(text: str | None, config: Config) -> IPAddress:
    """The underlay address: the one given, the configured one, or the source address of the default route, of IPv4 if there is one."""
    if text is not None:
        try:
            return ip_address(text)
        except ValueError as error:
            raise ConfigError("--address", text, "is not an IP address") from error
    if config.address is not None:
        return config.address
    if (found := default_source(4, 6)) is not None:
        return found
    raise PlaitError(
        "this host's address on the underlay cannot be guessed, there is no default route; "
        "give it with --address, or as node.address in /etc/plait/plait.toml"
    )


def _pool(text: str | None) -> IPv4Network:
    if text is None:
        return DEFAULT_POOL
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise ConfigError("--pool", text, f"is not an IPv4 network: {error}", "for example 10.28.0.0/16") from error


async def _until_signal(work: Coroutine[None, None, None]) -> None:
    """Run the coroutine `work` until it fails or a signal asks to stop."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextlib.contextmanager
def _only_agent(run_dir: Path) -> Iterator[None]:
    """Hold the lock that says which process is the agent of this host. Conflict if another one is."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / "agent.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise Conflict(f"an agent runs on this host already (pid {lock.read().strip() or '?'}); stop it first") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _stop_agent(run_dir: Path) -> bool:
    """Ask the agent of this host to stop and wait. False if none runs; PlaitError if it does not stop."""
    path = run_dir / "agent.lock"
    if not path.exists():
        return False
    with open(path) as lock:
        end = time.monotonic() + _STOP_TIMEOUT_S
        asked = False
        while time.monotonic() < end:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return asked
            except OSError:
                lock.seek(0)
                text = lock.read().strip()
                if not asked and text.isdigit():
                    os.kill(int(text), signal.SIGTERM)
                    asked = True
                time.sleep(0.05)
    raise PlaitError(f"the agent (pid {path.read_text().strip()}) did not stop within {_STOP_TIMEOUT_S:.0f} s; end it by hand")
