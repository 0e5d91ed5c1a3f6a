# SPDX-License-Identifier: Apache-2.0
"""Every error that plait raises on purpose.

A message says what was attempted, on what, why it failed and what to do. Foreign exceptions are mapped
to these at the edge of layer 3 with `raise … from`. Either log an error or raise it, never both.
"""


class PlaitError(Exception):
    """Base of all deliberate errors. `str(error)` is fit to be shown to a user as it is."""


class ConfigError(PlaitError):
    """A configuration value, flag or request body is wrong. Nothing was changed."""

    def __init__(self, where: str, value: object, why: str, hint: str = "") -> None:
        super().__init__(f"{where}: {value!r} {why}" + (f"; {hint}" if hint else ""))
        self.where, self.value, self.why, self.hint = where, value, why, hint


class NotFound(PlaitError):
    """The named thing does not exist (network, endpoint, container, node)."""


class Conflict(PlaitError):
    """The thing exists already, is in use, or was changed by somebody else meanwhile."""


class PoolExhausted(PlaitError):
    """No address or block is left. The message names the pool, its size and its holders."""


class LeaseFailed(PlaitError):
    """No DHCP server gave an address in time. The message names the link and what was tried; nothing was changed."""


class PortInUse(PlaitError):
    """A published host port is taken; the message names the holder."""


class NotSupported(PlaitError):
    """The kernel or engine lacks a feature that the request needs."""


class KernelError(PlaitError):
    """The kernel refused one operation. `errno` is the positive errno of the acknowledgement."""

    def __init__(self, op: str, key: object, errno: int, detail: str = "") -> None:
        import errno as names

        word = names.errorcode.get(errno, str(errno))
        super().__init__(f"{op} {key}: {word}" + (f" ({detail})" if detail else ""))
        self.op, self.key, self.errno, self.detail = op, key, errno, detail


class NotSaved(PlaitError):
    """The disk refuses what a node must not forget. What needed it is undone."""


class StoreUnavailable(PlaitError):
    """The shared state cannot be reached now. Retry; nothing was changed as far as is known."""


class EngineUnavailable(PlaitError):
    """A container engine does not answer on its socket, or not in time. What it holds is unknown, not nothing."""


class Compacted(PlaitError):
    """A watch asked for a revision that the store no longer holds: list again, then watch from there."""
