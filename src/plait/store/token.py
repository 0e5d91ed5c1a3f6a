# SPDX-License-Identifier: Apache-2.0
"""Join tokens: what lets a host without a certificate into the cluster, once and not for long.

Data in: a lifetime. Data out: the token's text for a person to carry, `plait1.<id>.<secret>.<pin of the CA>`, and in the store at
`tokens/<id>` a hash of the secret, so that who reads the store cannot join. The pin lets the joiner know the cluster before it tells the
secret to anyone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from plait.model.errors import ConfigError, Conflict
from plait.store.api import Compare, Put, Store
from plait.store.codec import encode

PREFIX = "plait1"
MAX_TTL_S = 86_400.0
_ID_BYTES, _SECRET_BYTES, _PIN_CHARS = 6, 32, 43


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What the store holds of a token. `expires` in seconds since the epoch; `uses` left."""

    hash: str
    expires: float
    uses: int = 1


@dataclass(frozen=True, slots=True)
class Token:
    """A token as a joiner holds it."""

    id: str
    secret: str
    pin: str

    def __str__(self) -> str:
        return f"{PREFIX}.{self.id}.{self.secret}.{self.pin}"


def token_key(token_id: str) -> str:
    return f"tokens/{token_id}"


def hash_of(secret: str) -> str:
    """SHA-256, hex. Enough without salt or stretching: the secret has 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def admits(record: TokenRecord, secret: str, now: float) -> bool:
    """Whether `secret` is the token's, and the token is neither used nor expired. Takes the same time for any wrong secret."""
    right = hmac.compare_digest(record.hash, hash_of(secret))
    return right and record.uses > 0 and now < record.expires


def parse_token(text: str) -> Token:
    """Raises ConfigError if `text` is no token. The message does not repeat it: it is a secret."""
    parts = text.strip().split(".")
    if len(parts) != 4 or parts[0] != PREFIX or not all(_is_word(part) for part in parts[1:]) or len(parts[3]) != _PIN_CHARS:
        raise ConfigError(
            "token", f"{text.strip()[:8]}…", "is no join token", f"it looks like {PREFIX}.<id>.<secret>.<pin>: copy the whole of it"
        )
    return Token(*parts[1:])


def _is_word(part: str) -> bool:
    return bool(part) and part.isascii() and all(char.isalnum() or char in "-_" for char in part)


async def create_token(store: Store, pin: str, ttl_s: float, now: float) -> str:
    """Make a token that is good once within `ttl_s` seconds of `now` (seconds since the epoch) and return its text.

    `pin` is that of the cluster's CA (`tls.cluster_pin`). The record hangs on a lease, so that an unused one leaves the store too.
    """
    if not 0 < ttl_s <= MAX_TTL_S:
        raise ConfigError("token lifetime", ttl_s, f"must be above 0 and at most {MAX_TTL_S:.0f} seconds")
    secret = base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).rstrip(b"=").decode()
    token = Token(secrets.token_hex(_ID_BYTES), secret, pin)
    key = token_key(token.id)
    lease = await store.grant(ttl_s)
    if not (await store.txn([Compare(key, 0)], [Put(key, encode(TokenRecord(hash_of(secret), now + ttl_s)), lease)])).ok:
        raise Conflict("make a join token: its id was taken; try again")
    return str(token)
