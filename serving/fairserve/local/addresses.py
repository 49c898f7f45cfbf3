"""Addresses of things on this machine."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit


def host_and_port(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` (IPv6 hosts in brackets). Raises ValueError that says what is wrong with `text`."""
    parts = urlsplit(f"//{text}")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if not parts.hostname or port is None or parts.path or parts.query or parts.username:
        raise ValueError(f"{text!r} is not HOST:PORT, for example 127.0.0.1:8000")
    return parts.hostname, port


def is_loopback(url: str) -> bool:
    """Whether the host of a URL is this machine's loopback, by address or as `localhost`."""
    host = urlsplit(url).hostname
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_port(host: str = "127.0.0.1") -> int:
    """Find a TCP port of `host` that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
