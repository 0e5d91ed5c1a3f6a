# SPDX-License-Identifier: Apache-2.0
"""Where the agent is and how it is talked to: arguments first, then the environment variables that Consul's own tools read.

Data in: an address, a token, the environment. Data out: Settings. CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE,
CONSUL_HTTP_SSL, CONSUL_HTTP_SSL_VERIFY, CONSUL_CACERT, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY, CONSUL_TLS_SERVER_NAME.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from plait.model.errors import ConfigError

ADDRESS = "http://127.0.0.1:8500"
_TRUE = ("1", "t", "true")
_FALSE = ("0", "f", "false")


@dataclass(frozen=True, slots=True)
class Settings:
    """`host` is a name or address, or the path of a Unix socket (`port` 0). `timeout_s` bounds one request apart from what it may block."""

    host: str = "127.0.0.1"
    port: int = 8500
    tls: bool = False
    token: str = ""
    datacenter: str = ""
    timeout_s: float = 10.0
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True
    server_name: str = ""
    stale: bool = False
    """Whether reads say that they may be answered from what any agent has."""

    def __post_init__(self) -> None:
        if any(not char.isprintable() or char == " " for char in self.token):
            raise ConfigError("token", "(not shown)", "has blanks or control characters")
        if not self.timeout_s > 0:
            raise ConfigError("timeout_s", self.timeout_s, "is not a positive number of seconds")

    @property
    def unix(self) -> bool:
        return self.port == 0

    @property
    def host_header(self) -> str:
        if self.unix:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def where(self) -> str:
        """The address for messages."""
        return f"unix://{self.host}" if self.unix else f"{'https' if self.tls else 'http'}://{self.host_header}"

    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS is made with, None without TLS. ConfigError if a file cannot be read."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except (OSError, ssl.SSLError) as error:
            files = " ".join(filter(None, (self.ca_file, self.cert_file, self.key_file)))
            raise ConfigError("TLS files", files, f"cannot be used ({error})") from error
        if not self.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


def settings(
    address: str | None = None,
    token: str | None = None,
    datacenter: str = "",
    timeout_s: float = 10.0,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings of `address` (URL, host:port or unix:///path) and `token`; what is None comes from the environment, then the defaults."""
    env: Mapping[str, str] = environ or {}
    given = address or env.get("CONSUL_HTTP_ADDR") or ADDRESS
    tls = _flag(env, "CONSUL_HTTP_SSL", False)
    host, port, tls = _place(given, tls)
    return Settings(
        host=host,
        port=port,
        tls=tls,
        token=_token(env) if token is None else token,
        datacenter=datacenter,
        timeout_s=timeout_s,
        ca_file=env.get("CONSUL_CACERT", ""),
        cert_file=env.get("CONSUL_CLIENT_CERT", ""),
        key_file=env.get("CONSUL_CLIENT_KEY", ""),
        verify=_flag(env, "CONSUL_HTTP_SSL_VERIFY", True),
        server_name=env.get("CONSUL_TLS_SERVER_NAME", ""),
    )


def _place(address: str, tls: bool) -> tuple[str, int, bool]:
    """(host or socket path, port or 0, whether TLS is spoken)"""
    hint = "give http://HOST:PORT, https://HOST:PORT or unix:///PATH"
    if address.startswith("unix://"):
        if not address[7:]:
            raise ConfigError("address", address, "names no socket", hint)
        return address[7:], 0, False
    url = address if "://" in address else f"{'https' if tls else 'http'}://{address}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError("address", address, f"is not an address ({error})", hint) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise ConfigError("address", address, "is not the address of an agent", hint)
    return parts.hostname, port or (8501 if parts.scheme == "https" else 8500), parts.scheme == "https"


def _token(env: Mapping[str, str]) -> str:
    file = env.get("CONSUL_HTTP_TOKEN_FILE", "")
    if env.get("CONSUL_HTTP_TOKEN") or not file:
        return env.get("CONSUL_HTTP_TOKEN", "")
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise ConfigError("CONSUL_HTTP_TOKEN_FILE", file, f"cannot be read ({error.strerror})") from error


def _flag(env: Mapping[str, str], name: str, default: bool) -> bool:
    text = env.get(name, "").lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text:
        raise ConfigError(name, text, "is neither true nor false")
    return default
