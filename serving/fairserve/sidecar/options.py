"""What a sidecar is started with. Frozen; what may change while it runs is in the configuration instead."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path


class OptionError(ValueError):
    """An option that can't be used. The message names it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect. Port 0 lets the system choose when listening."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost before it is refused, in bytes and seconds."""

    max_head_bytes: int = 65_536  #: request line and headers: 431 above
    max_body_bytes: int = 64 * 1024 * 1024  #: 413 above
    unasked_body_bytes: int = 65_536  #: of a longer body no more is read if its head is enough to refuse it
    max_buffered_bytes: int = 65_536  #: unsent answer at which the engine's side is no longer read
    head_timeout_s: float = 20.0  #: from a request's first byte to the end of its headers: 408 after
    body_timeout_s: float = 120.0  #: from there to the end of its body: 408 after
    keep_alive_s: float = 75.0  #: an idle connection is closed after
    stall_timeout_s: float = 300.0  #: a client that takes none of its answer is dropped after
    idle_session_s: float = 300.0  #: a WebSocket on which nothing passes is closed after
    control_connections: int = 64  #: to the control port at once; above, strangers make room
    control_timeout_s: float = 20.0  #: a request to the control port may take, or its client to begin it
    connect_timeout_s: float = 2.0  #: how long connecting to the engine is tried for one call


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate with its chain, and its key, both PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class SidecarOptions:
    """Everything a sidecar needs to start."""

    listen: Address
    control: Address
    engine: Address
    control_token_file: Path
    control_tls: TlsFiles | None = None  #: None: the control port speaks plain HTTP
    config_file: Path | None = None  #: None: wait for PUT /config
    snapshot_file: Path | None = None  #: None: state dies with the process
    snapshot_interval_s: float = 10.0
    call_log: Path | None = None  #: None: no call log; "-": on standard output
    otlp_endpoint: str | None = None  #: a collector's URL without /v1/traces; None: no spans
    poll_interval_s: float = 0.25  #: between two readings of the engine's metrics
    grace_s: float = 30.0  #: how long running calls may go on after SIGTERM
    max_window: int = 256  #: calls that the engine ever holds at once
    engine_wait_s: float = 30.0  #: how long calls wait for an engine that is gone before they get 503
    engine_silence_s: float = 600.0  #: how long the engine may say nothing of a stream that it has begun
    engine_priority: bool = False  #: tell the engine each call's place in its queue
    seed: int | None = None  #: of jitter and sampling; None: from the system
    limits: Limits = field(default_factory=Limits)


def parse_address(option: str, text: str) -> Address:
    """HOST:PORT or [V6]:PORT. Raises OptionError."""
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise OptionError(f"{option}: {text!r} is not HOST:PORT")
    return Address(host, int(port))


def parse_engine(option: str, url: str) -> Address:
    """http://HOST:PORT of the engine. Raises OptionError; a path or https can't be served."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = 80 if parts.port is None else parts.port
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise OptionError(f"{option}: {url!r} is not http://HOST:PORT")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise OptionError(f"{option}: {url!r} has more than host and port")
    return Address(parts.hostname, port)


def parse_otlp(option: str, url: str | None) -> str | None:
    """http://HOST[:PORT][/PATH] of a collector, or https, without a slash at its end. Raises OptionError."""
    if url is None:
        return None
    parts = urllib.parse.urlsplit(url)
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or parts.username is not None:
        raise OptionError(f"{option}: {url!r} is not http://HOST:PORT or https://HOST:PORT")
    endpoint = url.rstrip("/")
    if endpoint.endswith("/v1/traces"):
        raise OptionError(f"{option}: leave out /v1/traces, it is added")
    return endpoint


def parse_tls(certificate: Path | None, key: Path | None) -> TlsFiles | None:
    """Both files, or neither. Raises OptionError for one alone."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise OptionError("--control-tls-cert and --control-tls-key go together")
    return TlsFiles(certificate, key)
