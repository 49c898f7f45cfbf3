"""How the operator is asked to run, apart from where."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairserve import __version__
from fairserve_operator.errors import SetupError
from fairserve_operator.manifests.injection import Settings

LEASE_NAME = "fairserve-operator"

#: Options and the settings that they are.
_SIDECAR = {
    "--sidecar-image": "image",
    "--sidecar-cpu": "cpu",
    "--sidecar-memory": "memory",
    "--drain-s": "drain_s",
}

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """A certificate that the operator makes and renews. Raises SetupError for what can be no such name."""

    service: str | None  #: by which the API server reaches the webhook, in the operator's own namespace ...
    host: str | None  #: ... or the host of the URL by which it does
    secret: str  #: in which it is kept, in the operator's own namespace
    configuration: str  #: the MutatingWebhookConfiguration whose `caBundle` follows it

    def __post_init__(self) -> None:
        """Raises SetupError."""
        for option, value in (
            ("--webhook-service", self.service),
            ("--webhook-secret", self.secret),
            ("--webhook-configuration", self.configuration),
        ):
            if value is not None and not _NAME.fullmatch(value):
                raise SetupError(f"{option} {value}: not a name")
        if self.host is not None and not _NAME.fullmatch(self.host) and not _is_address(self.host):
            raise SetupError(f"--webhook-host {self.host}: neither a DNS name nor an address")


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """The webhook that puts sidecars into Pods."""

    listen: tuple[str, int]
    certificate: OwnCertificate | Path  #: or the folder in which somebody else keeps one
    sidecar: Settings


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `python -m fairserve_operator` that reach its parts."""

    listen: tuple[str, int] | None = None  #: host and port of probes and metrics; None: no port
    leader_elect: bool = False
    lease_namespace: str | None = None  #: None: where we are at home
    lease_name: str = LEASE_NAME
    identity: str | None = None  #: None: the host's name
    webhook: WebhookOptions | None = None  #: None: there is none


def address(option: str, text: str) -> tuple[str, int]:
    """Host and port. Raises SetupError that names the option."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SetupError(f"{option} {text}: must be HOST:PORT, such as 0.0.0.0:8080")
    return host.strip("[]"), int(port)


def webhook_options(listen: str | None, given: Mapping[str, Any]) -> WebhookOptions | None:
    """The webhook at `listen`, with what is given of the options that it has, by option.

    Raises SetupError for what doesn't go together; it says what to do.
    """
    if listen is None:
        for option, value in given.items():
            if value is not None:
                raise SetupError(f"{option} needs --webhook")
        return None
    return WebhookOptions(
        address("--webhook", listen),
        _certificate(given),
        _sidecar({option: value for option, value in given.items() if value is not None}),
    )


def _certificate(given: Mapping[str, Any]) -> OwnCertificate | Path:
    own = ("--webhook-service", "--webhook-host", "--webhook-configuration", "--webhook-secret")
    service, host, configuration, secret = (given[option] for option in own)
    folder: Path | None = given["--webhook-certificate-dir"]
    if folder is not None:
        if too_many := [option for option in own if given[option] is not None]:
            raise SetupError(
                f"--webhook-certificate-dir and {too_many[0]} exclude each other: who fills the folder also "
                "says for whom the certificate is, and keeps caBundle right"
            )
        return folder
    if service is not None and host is not None:
        raise SetupError("--webhook-service and --webhook-host exclude each other: give the one in use")
    if secret is None or configuration is None or (service is None and host is None):
        raise SetupError(
            "--webhook needs --webhook-service (or --webhook-host), --webhook-configuration and "
            "--webhook-secret, or else --webhook-certificate-dir"
        )
    return OwnCertificate(service, host, secret, configuration)


def _sidecar(given: Mapping[str, Any]) -> Settings:
    settings = {_SIDECAR[option]: value for option, value in given.items() if option in _SIDECAR}
    try:
        return Settings(**{"image": f"fairserve-sidecar:{__version__}"} | settings)
    except ValueError as error:
        raise SetupError(f"--sidecar-{error}") from error


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
