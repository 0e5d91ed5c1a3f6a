# SPDX-License-Identifier: Apache-2.0
"""What the blocking and the asyncio client have in common beyond the core.

Data in: operations and what is held. Data out: the bases of `sync_parts` and `aio_parts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, Protocol, TypeVar

from plait.client.discovery import Keeper, Service
from plait.client.errors import ClientError, LockLost
from plait.client.lock import Hold

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound="Flag")


class Operation(Generic[P, R_co]):
    """A function of the core that a class shows as a method of its own; documented where it is defined."""

    def __init__(self, core: Callable[P, R_co]) -> None:
        self._core = core
        self.__doc__ = core.__doc__
        self.__wrapped__ = core


class Flag(Protocol):
    """threading.Event and asyncio.Event."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...


class LockState(Generic[F]):
    """What can be asked of a lock without waiting. `taken`: it was acquired here and not released.

    `lost` is set when it is not held any more without having been released here, and `why_lost` says why.
    """

    def __init__(self, hold: Hold, lost: F) -> None:
        self._hold, self.lost = hold, lost
        self.taken = False
        self.why_lost = ""

    @property
    def key(self) -> str:
        """The key, or the prefix of a semaphore."""
        return self._hold.spec.key

    @property
    def held(self) -> bool:
        """Whether it is held as far as is known here."""
        return self.taken and not self.lost.is_set()

    @property
    def fence(self) -> int:
        """A number that is larger for each later holder; give it to what must refuse a late writer."""
        return self._hold.fence

    def check(self) -> None:
        """LockLost unless it is held."""
        if not self.held:
            raise LockLost(f"the lock {self.key} is not held" + (f": {self.why_lost}" if self.why_lost else ""))

    def _lose(self, why: str) -> None:
        self.why_lost = why
        self.lost.set()

    def _begin(self) -> None:
        if self.taken:
            raise ClientError(f"the lock {self.key} is taken already by this object; release it first")


class Kept:
    """A registration that is kept alive."""

    def __init__(self, service: Service) -> None:
        self._keeper = Keeper(service)

    @property
    def trouble(self) -> ClientError | None:
        """Why the last heartbeat failed, None while all is well."""
        return self._keeper.trouble
