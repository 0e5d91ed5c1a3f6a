# SPDX-License-Identifier: Apache-2.0
"""What a call of the client library can end with, apart from success. Messages say what was tried, on whom, and why it failed."""

from __future__ import annotations

from plait.model.errors import PlaitError


class ClientError(PlaitError):
    """Base of every error of this library."""


class Unreachable(ClientError):
    """The agent could not be talked to: refused, timed out, broken off, or its answer was not HTTP.

    `sent`: the request had left when it failed, so whether a write took place is unknown. False: nothing was changed.
    """

    def __init__(self, text: str, sent: bool = False) -> None:
        super().__init__(text)
        self.sent = sent


class ApiError(ClientError):
    """The agent refused the request. `status` is the HTTP status, `text` its own words."""

    def __init__(self, what: str, status: int, text: str) -> None:
        super().__init__(f"{what}: the agent answered {status}" + (f" ({text})" if text else ""))
        self.what, self.status, self.text = what, status, text


class BadAnswer(ClientError):
    """The answer is well-formed HTTP but not what Consul's API documents for this request."""


class Closed(ClientError):
    """The client, watch or lock was closed by this program while the call was under way."""


class NoInstances(ClientError):
    """A service has no instance that may be used now."""


class NotAcquired(ClientError):
    """A lock or a place of a semaphore was not free within the time given. Nothing is held."""


class LockLost(ClientError):
    """A lock that was held is not, or may not be, held any more: somebody else may have it."""
