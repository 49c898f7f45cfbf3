"""What `fairserve up` says to its sidecar, and reads from it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import aiohttp

from fairserve.config import SchedulerConfig

_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


class SidecarError(RuntimeError):
    """The sidecar refused, or can't be reached; the message is its own."""


class Sidecar:
    """A client of one sidecar: its control port and the /metrics of its data port."""

    def __init__(self, data_url: str, control_url: str, token: str) -> None:
        self.data_url = data_url
        self.control_url = control_url
        self._authorization = {"Authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def put_config(self, config: SchedulerConfig) -> int:
        """Put a configuration in force and return the generation that runs then."""
        answer = await self._control("PUT", "/config", data=config.to_bytes())
        return int(answer["generation"])

    async def put_overload(self, armed: bool, lease_s: float, reason: str) -> None:
        """Arm or disarm throttling for at most `lease_s` seconds."""
        await self._control("PUT", "/overload", json={"armed": armed, "lease_s": lease_s, "reason": reason})

    async def state(self) -> dict[str, Any]:
        """GET /state."""
        return await self._control("GET", "/state")

    async def ready(self) -> bool:
        """Whether it takes calls."""
        try:
            async with self._http.get(f"{self.control_url}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def metrics(self) -> str:
        """The text of /metrics: the engine's and the sidecar's own."""
        return await self._text("GET", f"{self.data_url}/metrics")

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used outside its `async with`")
        return self._session

    async def _control(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        url = self.control_url + path
        try:
            async with self._http.request(method, url, headers=self._authorization, **body) as answer:
                if answer.status != 200:
                    raise SidecarError(f"{method} {path}: {answer.status}: {await answer.text()}")
                content: dict[str, Any] = await answer.json()
                return content
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SidecarError(f"{method} {url}: {error!r}") from error

    async def _text(self, method: str, url: str) -> str:
        try:
            async with self._http.request(method, url) as answer:
                if answer.status != 200:
                    raise SidecarError(f"{method} {url}: {answer.status}")
                return await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SidecarError(f"{method} {url}: {error!r}") from error
