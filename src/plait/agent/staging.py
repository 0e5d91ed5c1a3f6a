# SPDX-License-Identifier: Apache-2.0
"""What a node keeps while its whole cluster joins another one: a certificate of the other's CA, and how far it is.

Everything is below /var/lib/plait/joining, apart from what the node runs with: it can be thrown away until the other cluster holds this
node. Then `switch` makes the node one of the other's, at the next start: each step is a file written whole, so that a crash at any point
is followed by the same steps once more. What the node had of its own cluster stays below /var/lib/plait/before-joining.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from plait.agent.files import Paths
from plait.agent.identity import load_identity, save_identity
from plait.agent.journal import Write, write_all
from plait.agent.keys import record_key
from plait.model.cluster import Block
from plait.store.codec import decode, encode
from plait.store.files import write_file
from plait.store.tls import CA_CERT, CA_KEY, NODE_CERT, NODE_KEY

_READY, _ASKED, _DECIDED = "ready.json", "asked", "decided.json"
_STORE = ("store.db", "store.db-wal", "store.db-shm")


@dataclass(frozen=True, slots=True)
class Ready:
    """The other cluster: the pin of its CA, where its store is, the addresses of its network `default`."""

    pin: str
    store: str
    pool: IPv4Network


class Stage:
    """The directory; there may be nothing in it."""

    def __init__(self, paths: Paths) -> None:
        self._paths, self.directory = paths, paths.lib / "joining"
        self.pki = self.directory / "pki"

    def ready(self) -> Ready | None:
        """The cluster that this node could be one of by now; None if there is none."""
        file = self.directory / _READY
        return decode(Ready, file.read_bytes(), str(file)) if file.exists() else None

    def set_ready(self, ready: Ready) -> None:
        """The certificate is there."""
        write_file(self.directory / _READY, encode(ready))

    @property
    def asked(self) -> bool:
        """Whether the other cluster may hold this one already: its store was asked to, and the answer was not written down."""
        return (self.directory / _ASKED).exists()

    def set_asked(self, asked: bool) -> None:
        if asked:
            write_file(self.directory / _ASKED, b"")
        else:
            (self.directory / _ASKED).unlink(missing_ok=True)

    def decide(self, blocks: Iterable[Block]) -> None:
        """The other cluster holds this node, with these blocks: from now on there is no way back."""
        write_file(self.directory / _DECIDED, encode(tuple(blocks)))

    def clear(self) -> None:
        """Throw everything away. Idempotent."""
        gone = self.directory.with_name("joining.gone")
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self.directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def switch(self) -> bool:
        """Make this host a node of the other cluster if that was decided; True if it was. Only while no agent runs."""
        file, ready = self.directory / _DECIDED, self.ready()
        if ready is None or not file.exists():
            return False
        blocks = decode(tuple[Block, ...], file.read_bytes(), str(file))
        write_all(self._paths.lib / "journal.db", [Write("block", record_key(block), encode(block)) for block in blocks])
        self._keep_what_was()
        for name in (CA_CERT, NODE_CERT, NODE_KEY):
            write_file(self._paths.lib / "pki" / name, (self.pki / name).read_bytes())
        save_identity(self._paths.identity, replace(load_identity(self._paths.identity), store=ready.store, pool=ready.pool))
        (self._paths.lib / "replica.bin").unlink(missing_ok=True)
        self.clear()
        return True

    def _keep_what_was(self) -> None:
        """Copies first, of what is written over; then what only the node that carried the store had."""
        lib, kept = self._paths.lib, self._paths.lib / "before-joining"
        kept.mkdir(mode=0o700, exist_ok=True)
        for file in (lib / "identity.json", *(lib / "pki" / name for name in (CA_CERT, NODE_CERT, NODE_KEY))):
            if not (kept / file.name).exists():
                write_file(kept / file.name, file.read_bytes())
        for file in (lib / "pki" / CA_KEY, *(lib / name for name in _STORE)):
            with contextlib.suppress(FileNotFoundError):
                file.rename(kept / file.name)
