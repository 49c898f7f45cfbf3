"""Where the webhook's certificate comes from: made and renewed here, or from a folder that somebody fills.

Every replica looks after it, the one that waits for the Lease too: whoever is first writes at the version
that it has read, and the others take what they find.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fairserve_operator.clients.kubernetes_client import Written
from fairserve_operator.decide.certificates import Settling, Step, former, names_of_next, step
from fairserve_operator.errors import ApiServerError, ConflictError, ForeignSecretError
from fairserve_operator.handlers.serving_certificate import ServingCertificate
from fairserve_operator.manifests.certificates import Certificate, new_authority, new_serving
from fairserve_operator.manifests.webhook_configuration import WEBHOOK, has_webhook, trust_patch, trusted
from fairserve_operator.manifests.webhook_secret import (
    CERTIFICATE,
    KEY,
    Keys,
    is_ours,
    read_keys,
    webhook_secret,
)
from fairserve_operator.options import OwnCertificate

_log = logging.getLogger(__name__)

#: Between two looks at Secret and configuration, or at the folder: a `caBundle` that somebody wiped is put
#: right within that time.
_LOOK_S = 2.0
#: After somebody else was faster.
_AGAIN_S = 0.2


class Cluster(Protocol):
    """The API server, as far as the certificate goes. Raises errors.ApiServerError or one of its kinds."""

    async def read_secret(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """One Secret, None where there is none."""
        ...

    async def write_secret(self, manifest: Mapping[str, Any], fenced: bool = True) -> Written:
        """Replace it at its `resourceVersion`, or create it where the manifest has none."""
        ...

    async def read_webhook_configuration(self, name: str) -> Mapping[str, Any] | None:
        """One MutatingWebhookConfiguration, None where there is none."""
        ...

    async def patch_webhook_configuration(
        self, name: str, operations: Sequence[Mapping[str, Any]]
    ) -> Written:
        """Apply a JSON patch to one."""
        ...


class CertificateKeeper:
    """Keeps a certificate of our own in a Secret, and the API server trusting it."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        own: OwnCertificate,
        tls: ServingCertificate,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._own = own
        self._names = (own.host,) if own.host else (f"{own.service}.{namespace}.svc",)
        self._tls = tls
        self._now = now
        self._clock = clock
        self._settling = Settling()
        self._served: Certificate | None = None  #: the authority of the certificate that is served
        self._trusted: tuple[Certificate, ...] = ()  #: as the Secret had them last
        self._problems: dict[str, str] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            done = await self.look()
            await asyncio.sleep(_LOOK_S if done else _AGAIN_S)

    async def look(self) -> bool:
        """Bring all up to date once; false if somebody else was faster, and it must be looked again."""
        try:
            # In this order: whoever has seen this configuration sees the Secret that it was written by.
            configuration = await self._configuration()
            keys = await self._keys()
            if isinstance(configuration, Mapping):
                configuration = await self._publish(configuration, keys)
        except ConflictError:
            return False
        except (ApiServerError, ForeignSecretError) as problem:
            self._complain("certificate", str(problem))
            return True
        self._complain("certificate", "")
        self._serve(configuration, keys)
        return True

    async def _configuration(self) -> Mapping[str, Any] | ApiServerError | None:
        name = self._own.configuration
        try:
            body = await self._cluster.read_webhook_configuration(name)
        except ApiServerError as problem:
            self._complain("configuration", str(problem))
            return problem
        if body is None:
            self._complain("configuration", f"there is no MutatingWebhookConfiguration {name}")
        elif not has_webhook(body):
            self._complain("configuration", f"MutatingWebhookConfiguration {name} has no webhook {WEBHOOK}")
            return None
        else:
            self._complain("configuration", "")
        return body

    async def _keys(self) -> Keys:
        """What the Secret holds, after it was brought up to date."""
        body = await self._cluster.read_secret(self._namespace, self._own.secret)
        if body is not None and body.get("data") and not is_ours(body):
            raise ForeignSecretError(
                f"Secret {self._namespace}/{self._own.secret} is somebody else's: name another "
                "(--webhook-secret), or delete it"
            )
        present = None if body is None else read_keys(body)
        wanted, why = self._wanted(present)
        if wanted != present:
            version = None if body is None else body["metadata"]["resourceVersion"]
            manifest = webhook_secret(self._namespace, self._own.secret, wanted, version)
            await self._cluster.write_secret(manifest, fenced=False)
            _log.info("Secret %s/%s: wrote %s", self._namespace, self._own.secret, why)
        self._trusted = wanted.trusted
        return wanted

    def _wanted(self, present: Keys | None) -> tuple[Keys, str]:
        now = self._now()
        todo = step(present, self._names, now)
        names = names_of_next(present, self._names, now)
        if present is None or todo is Step.AUTHORITY:
            authority, others = new_authority(now), self._trusted if present is None else present.trusted
        else:
            authority, others = present.authority, present.former
        serving = None if present is None else present.serving
        if todo is not Step.KEEP:
            serving = new_serving(authority, names, now)
        kept = former(authority.certificate, others, self._served, now)
        why = "whom to trust" if todo is Step.KEEP else todo.value
        return Keys(authority, kept, serving), why

    async def _publish(self, configuration: Mapping[str, Any], keys: Keys) -> Mapping[str, Any]:
        """The configuration, after its `caBundle` was brought up to date."""
        operations = trust_patch(configuration, b"".join(each.pem for each in keys.trusted))
        if operations:
            name = self._own.configuration
            try:
                written = await self._cluster.patch_webhook_configuration(name, operations)
            except ConflictError:
                raise
            except ApiServerError as problem:
                self._complain("caBundle", str(problem))
                return configuration
            _log.info("MutatingWebhookConfiguration %s: wrote caBundle", name)
            configuration = written.body
        self._complain("caBundle", "")
        return configuration

    def _serve(self, configuration: Mapping[str, Any] | ApiServerError | None, keys: Keys) -> None:
        if isinstance(configuration, Mapping):
            self._settling.saw(trusted(configuration), keys.trusted, self._clock())
        assert keys.serving is not None
        current, authority = self._tls.current, keys.authority.certificate
        if current is not None and current.pem == keys.serving.certificate.pem:
            self._served = authority
            return
        if (
            current is None
            or current.expires_at <= self._now()
            or authority == self._served
            or configuration is None  # Nobody calls.
            or self._settling.settled(authority, self._clock())
        ):
            certificate = self._tls.load(keys.serving.certificate.pem, keys.serving.key)
            self._served = authority
            _log.info("serving by the certificate for %s", ", ".join(sorted(certificate.names)))

    def _complain(self, about: str, problem: str) -> None:
        if problem and problem != self._problems.get(about):
            _log.warning("the webhook's %s: %s", about, problem)
        self._problems[about] = problem


class CertificateFolder:
    """Follows a folder in which somebody else, such as cert-manager, keeps `tls.crt` and `tls.key`."""

    def __init__(self, folder: Path, tls: ServingCertificate) -> None:
        self._folder = folder
        self._tls = tls
        self._seen: tuple[bytes, bytes] | None = None
        self._problem = ""

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_S)

    def look(self) -> None:
        """Load what is there, if it is new. The one before stays where it can't be."""
        try:
            seen = (self._folder / CERTIFICATE).read_bytes(), (self._folder / KEY).read_bytes()
            if seen == self._seen:
                return
            certificate = self._tls.load(*seen)
        except (OSError, ValueError) as problem:
            if str(problem) != self._problem:
                _log.warning("--webhook-certificate-dir %s: %s", self._folder, problem)
            self._problem = str(problem)
            return
        self._seen, self._problem = seen, ""
        _log.info("serving by the certificate for %s", ", ".join(sorted(certificate.names)))
