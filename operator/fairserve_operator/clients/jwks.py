"""Key sets that token issuers publish.

Whoever may write a Tenant chooses the URL, so an answer is bounded in time and size, redirects are not
followed, and of what went wrong nothing is told that the other side has chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import aiohttp

_CONNECT_TIMEOUT_S = 3.0
_TIMEOUT_S: Final = 10.0
MAX_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Unfetched:
    """Why there is no key set."""

    problem: str


class JwksClient:
    """Any number of issuers. Certificates are judged by the system's authorities (`SSL_CERT_FILE`)."""

    def __init__(self, allow_http: bool, timeout_s: float = _TIMEOUT_S) -> None:
        self._allow_http = allow_http
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str) -> bytes | Unfetched:
        """What is published at a URL, after 10 seconds at the latest."""
        if not self._allow_http and not url.startswith("https://"):
            return Unfetched(f"{url} is not https:// (the operator runs without --allow-http-jwks)")
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeout_s, connect=_CONNECT_TIMEOUT_S)
            # No cookies and no reuse: issuers are few and asked rarely.
            connector = aiohttp.TCPConnector(force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
            )
        try:
            async with self._session.get(
                url, allow_redirects=False, headers={"Accept": "application/json"}
            ) as answer:
                if answer.status != 200:
                    return Unfetched(f"{url} answers with HTTP {answer.status}")
                return await self._read(url, answer.content)
        except TimeoutError:
            return Unfetched(f"no answer from {url} within {self._timeout_s:g} s")
        except aiohttp.ClientSSLError:
            return Unfetched(f"{url} has no certificate that is trusted here")
        except (aiohttp.ClientError, ValueError) as problem:
            return Unfetched(f"no usable answer from {url}: {type(problem).__name__}")

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()

    async def _read(self, url: str, content: aiohttp.StreamReader) -> bytes | Unfetched:
        data = bytearray()
        async for chunk in content.iter_chunked(64 * 1024):
            data += chunk
            if len(data) > MAX_BYTES:
                return Unfetched(f"{url} answers with more than {MAX_BYTES // 1024} KiB")
        return bytes(data)
