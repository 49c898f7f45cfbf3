"""The few HTTP calls that the parts make to themselves, with the standard library alone."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

#: The parts listen on loopback; a proxy of the environment could not reach them.
_NO_PROXY = urllib.request.ProxyHandler({})


class Client:
    """Calls one server on loopback."""

    def __init__(self, url: str, *, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Take the server's base URL, and the bearer token and TLS settings that it wants."""
        self.url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        handlers = [urllib.request.HTTPSHandler(context=tls)] if tls else []
        self._opener = urllib.request.build_opener(_NO_PROXY, *handlers)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> str:
        """Send a call with a JSON body (none when None) and return the answer's text.

        Raises urllib.error.HTTPError, with the answer's text in its message, for a status of 400 and more,
        and another OSError when the server can't be reached.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        for name, value in {**self._headers, "Content-Type": content_type, **(headers or {})}.items():
            request.add_header(name, value)
        try:
            with self._opener.open(request, timeout=timeout_s) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                error.msg = f"{error.msg}: {method} {path}: {error.read().decode(errors='replace')[:2000]}"
            raise

    def json(self, method: str, path: str, body: object = None, **options: Any) -> Any:
        """Send a call like `call` does and return the answer's JSON."""
        return json.loads(self.call(method, path, body, **options))

    def answers(self, path: str) -> bool:
        """Whether a GET of the path succeeds."""
        try:
            self.call("GET", path, timeout_s=5.0)
        except OSError:
            return False
        return True
