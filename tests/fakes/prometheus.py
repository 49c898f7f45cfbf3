"""A Prometheus that answers instant queries as a test says, also wrongly, slowly or not at all."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True)
class Asked:
    """One query as it came."""

    promql: str
    timeout: str | None
    authorization: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a JSON document, or bytes as they are. Where it drips there is no end in sight."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drips: Literal["", "head", "body"] = ""


def vector(*series: tuple[dict[str, str], str]) -> Answer:
    """Several series."""
    return result("vector", [{"metric": labels, "value": [1.5, value]} for labels, value in series])


def number(value: str) -> Answer:
    """One series."""
    return vector(({}, value))


def result(kind: str, content: Any) -> Answer:
    """Success of any kind."""
    return Answer({"status": "success", "data": {"resultType": kind, "result": content}})


def error(status: int, message: str, kind: str = "bad_data") -> Answer:
    """Failure in Prometheus's own words."""
    return Answer({"status": "error", "errorType": kind, "error": message}, status)


class FakePrometheus:
    """`answer` is asked for each query; None means silence until the fake is closed."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self.answer: Callable[[Asked], Answer | None] = lambda _: number("5")
        self.asked: list[Asked] = []
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            scheme = "https"
        self.url = f"{scheme}://localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                target = urlsplit(self.path)
                query = parse_qs(target.query)
                asked = Asked(
                    query.get("query", [""])[0],
                    query.get("timeout", [None])[0],
                    self.headers.get("Authorization"),
                )
                fake.asked.append(asked)
                answer = fake.answer(asked) if target.path == "/api/v1/query" else Answer(b"no", 404)
                if answer is None:
                    fake._closing.wait()
                    self.close_connection = True
                    return
                self._send(answer)

            def _send(self, answer: Answer) -> None:
                body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(10**9 if answer.drips else len(body)))
                if answer.drips == "head":
                    self.flush_headers()
                    self.wfile.write(b"X-Endless:")
                else:
                    self.end_headers()
                    self.wfile.write(body)
                while answer.drips and not fake._closing.wait(0.02):
                    self.wfile.write(b" ")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves, or distrusts our certificate, is what tests are about."""


def certificate(folder: Path, name: str, host: str = "localhost") -> tuple[Path, Path]:
    """Make a certificate that has signed itself, and its key."""
    files = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{host}", "-days", "1"]
    command += ["-keyout", str(files[1]), "-out", str(files[0])]
    subprocess.run(command, check=True, capture_output=True)
    return files
