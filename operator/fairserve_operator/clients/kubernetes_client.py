"""Calls to the API server: Secrets, status, Events, Leases, the webhook's configuration and the census.

The only module that imports `kubernetes`. Of that library it uses the part that finds the cluster and signs
calls; bodies are plain dictionaries, because its models neither know custom resources nor are cheap at 10,000
objects. Watching is not done here: kopf does that, with the `Connection` that this module hands out.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import kubernetes.client
import kubernetes.config
import urllib3.exceptions

from fairserve_operator.errors import (
    ApiServerError,
    ConflictError,
    FencedError,
    NotFoundError,
    SetupError,
    UnreachableError,
)

_USER_AGENT = "fairserve-operator"

#: Calls in flight at once. More would only queue in the API server's own fairness queues.
_THREADS = 8
_CONNECT_TIMEOUT_S = 3.0
_READ_TIMEOUT_S = 15.0
_PAGE = 500

#: Mounted into every Pod that has a service account.
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_JSON = "application/json"
_JWKS = "application/jwk-set+json"
_APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the API server is and who we are: what kopf needs for its watches."""

    server: str
    ca_file: str | None
    verify: bool
    authorization: str | None  #: the whole header
    username: str | None
    password: str | None
    certificate_file: str | None
    key_file: str | None
    proxy_url: str | None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind and where its objects are found."""

    name: str
    api_version: str
    plural: str

    @property
    def prefix(self) -> str:
        """The path before `/namespaces/...`."""
        return f"/{'apis' if '/' in self.api_version else 'api'}/{self.api_version}"

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The path of one object, of a namespace's objects, or of all."""
        place = f"/namespaces/{quote(namespace)}" if namespace else ""
        return f"{self.prefix}{place}/{self.plural}" + (f"/{quote(name)}" if name else "")


TENANT = Kind("Tenant", "fairserve.dev/v1alpha1", "tenants")
APPLICATION = Kind("Application", "fairserve.dev/v1alpha1", "applications")
SERVING_POOL = Kind("ServingPool", "fairserve.dev/v1alpha1", "servingpools")
POD = Kind("Pod", "v1", "pods")
SECRET = Kind("Secret", "v1", "secrets")
EVENT = Kind("Event", "v1", "events")
INFERENCE_POOL = Kind("InferencePool", "inference.networking.k8s.io/v1", "inferencepools")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")
WEBHOOK_CONFIGURATION = Kind(
    "MutatingWebhookConfiguration", "admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations"
)
KINDS: Mapping[str, Kind] = {
    kind.name: kind for kind in (TENANT, APPLICATION, SERVING_POOL, POD, SECRET, EVENT)
}


@dataclass(frozen=True, slots=True)
class Written:
    """What the API server holds after a write."""

    resource_version: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Census:
    """Who existed of one kind at one moment: (namespace, name) to resource version."""

    resource_version: str
    objects: Mapping[tuple[str, str], str]


#: Told of each call: its kind ("PATCH tenants/status"), how it ended ("200", "409", "unreachable"), seconds.
Observer = Callable[[str, str, float], None]


class KubernetesClient:
    """The API server, as whoever the kubeconfig or the Pod's service account says we are.

    All methods raise ApiServerError or one of its kinds. `close` waits for the calls in flight.
    """

    def __init__(self, kubeconfig: str | None = None) -> None:
        """Find the cluster. Raises SetupError where there is neither a kubeconfig nor a service account."""
        configuration = kubernetes.client.Configuration()
        #: Where we are at home: the Pod's namespace, or that of the kubeconfig's context.
        self.own_namespace = _load(configuration, kubeconfig)
        configuration.connection_pool_maxsize = _THREADS
        configuration.retries = False
        self._configuration = configuration
        self._api = kubernetes.client.ApiClient(configuration)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kubernetes")
        # Of their own: a renewal must not queue behind writes that hang.
        self._lease_threads = ThreadPoolExecutor(2, thread_name_prefix="lease")
        #: Whether anything but a Lease may be written at this moment.
        self.may_write: Callable[[], bool] = lambda: True
        self.observer: Observer = lambda call, outcome, seconds: None

    def connection(self) -> Connection:
        """Where and who, with a token that is fresh now."""
        own = self._configuration
        return Connection(
            server=own.host,
            ca_file=own.ssl_ca_cert,
            verify=own.verify_ssl,
            authorization=own.get_api_key_with_prefix("BearerToken", alias="authorization"),
            username=own.username or None,
            password=own.password or None,
            certificate_file=own.cert_file,
            key_file=own.key_file,
            proxy_url=own.proxy,
        )

    async def read_secret(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """One Secret, None where there is none."""
        try:
            return await self._call("GET", SECRET.path(namespace, name), f"Secret {namespace}/{name}")
        except NotFoundError:
            return None

    async def write_secret(self, manifest: Mapping[str, Any], fenced: bool = True) -> Written:
        """Replace the Secret at the manifest's `resourceVersion`, or create it where it has none.

        Raises ConflictError where it changed meanwhile, or exists: read it again and decide anew. Without
        `fenced` it is written whoever holds the Lease.
        """
        metadata = manifest["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        what = f"Secret {namespace}/{name}"
        if metadata.get("resourceVersion"):
            path = SECRET.path(namespace, name)
            body = await self._call("PUT", path, what, manifest, fenced=fenced)
        else:
            body = await self._call("POST", SECRET.path(namespace), what, manifest, fenced=fenced)
        return Written(body["metadata"]["resourceVersion"], body)

    async def apply_status(self, manifest: Mapping[str, Any], field_manager: str) -> Written:
        """Server-side apply of a `.status`: the manager's fields become these, whoever held them before."""
        kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        path = f"{kind.path(namespace, name)}/status"
        query = {"fieldManager": field_manager, "force": "true"}
        what = f"status of {kind.name} {namespace}/{name}"
        body = await self._call("PATCH", path, what, manifest, _APPLY, query=query)
        return Written(body["metadata"]["resourceVersion"], body)

    async def read_webhook_configuration(self, name: str) -> Mapping[str, Any] | None:
        """One MutatingWebhookConfiguration, None where there is none."""
        path = WEBHOOK_CONFIGURATION.path(None, name)
        try:
            return await self._call("GET", path, f"{WEBHOOK_CONFIGURATION.name} {name}")
        except NotFoundError:
            return None

    async def patch_webhook_configuration(
        self, name: str, operations: Sequence[Mapping[str, Any]]
    ) -> Written:
        """Apply a JSON patch, whoever holds the Lease. Raises ConflictError where the patch names another
        resource version than there is.
        """
        path, what = WEBHOOK_CONFIGURATION.path(None, name), f"{WEBHOOK_CONFIGURATION.name} {name}"
        body = await self._call("PATCH", path, what, operations, _JSON_PATCH, fenced=False)
        return Written(body["metadata"]["resourceVersion"], body)

    async def serving_pool(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """One ServingPool, None where there is none. Asked as a list, which is what we have the right to."""
        query = {"fieldSelector": f"metadata.name={name}"}
        what = f"{SERVING_POOL.name} {namespace}/{name}"
        page = await self._call("GET", SERVING_POOL.path(namespace), what, query=query)
        return next((each for each in page["items"] if each["metadata"]["name"] == name), None)

    async def issuer_keys(self) -> tuple[str, bytes]:
        """The issuer of the cluster's ServiceAccount tokens, and its key set as JSON.

        Every ServiceAccount may read both (`system:service-account-issuer-discovery`). The keys are asked of
        the API server itself, whatever address its discovery document gives to the world.
        """
        about = await self._call("GET", "/.well-known/openid-configuration", "the cluster's token issuer")
        keys = await self._call(
            "GET", "/openid/v1/jwks", "the keys of the cluster's token issuer", accept=_JWKS
        )
        return str(about.get("issuer", "")), json.dumps(keys).encode()

    async def create_event(self, manifest: Mapping[str, Any]) -> None:
        """Record an Event."""
        namespace = manifest["metadata"]["namespace"]
        await self._call("POST", EVENT.path(namespace), f"Event in {namespace}", manifest)

    async def read_lease(self, namespace: str, name: str, timeout_s: float) -> Mapping[str, Any] | None:
        """One Lease, None where there is none."""
        what = f"Lease {namespace}/{name}"
        try:
            return await self._call_lease("GET", LEASE.path(namespace, name), what, None, timeout_s)
        except NotFoundError:
            return None

    async def write_lease(self, manifest: Mapping[str, Any], timeout_s: float) -> Written:
        """Replace the Lease at the manifest's `resourceVersion`, or create it where it has none.

        Raises ConflictError where it changed meanwhile, or exists.
        """
        metadata = manifest["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        replaces = "resourceVersion" in metadata
        path = LEASE.path(namespace, name if replaces else None)
        what = f"Lease {namespace}/{name}"
        body = await self._call_lease("PUT" if replaces else "POST", path, what, manifest, timeout_s)
        return Written(body["metadata"]["resourceVersion"], body)

    async def inference_pools(self, namespace: str | None) -> list[Mapping[str, Any]]:
        """All InferencePools of a namespace or, for None, of the cluster; whole, since there are few.

        Raises NotFoundError where the kind is not installed.
        """
        pages = self._pages(INFERENCE_POOL, namespace)
        return [item async for page in pages for item in page.get("items") or ()]

    async def census(self, kind: str, namespace: str | None, field_selector: str = "") -> Census:
        """Who exists; only their metadata travels. `namespace` None means all."""
        objects: dict[tuple[str, str], str] = {}
        version = ""
        async for page in self._pages(KINDS[kind], namespace, _METADATA_ONLY, field_selector):
            version = page["metadata"]["resourceVersion"]
            for item in page.get("items") or ():
                metadata = item["metadata"]
                objects[metadata["namespace"], metadata["name"]] = metadata["resourceVersion"]
        return Census(version, objects)

    async def latest_version(self, kind: str, namespace: str | None) -> int:
        """The resource version of the list of a kind at this moment; hardly anything of it travels."""
        path, what = KINDS[kind].path(namespace), f"list of {KINDS[kind].plural}"
        page = await self._call("GET", path, what, accept=_METADATA_ONLY, query={"limit": "1"})
        return int(page["metadata"]["resourceVersion"])

    def close(self) -> None:
        """Let the calls in flight end and drop the connections."""
        for threads in (self._threads, self._lease_threads):
            threads.shutdown(wait=True, cancel_futures=True)
        self._api.rest_client.pool_manager.clear()

    async def _pages(
        self, kind: Kind, namespace: str | None, accept: str = _JSON, field_selector: str = ""
    ) -> AsyncIterator[dict[str, Any]]:
        """The list of a kind, page by page."""
        query = {"limit": str(_PAGE)} | ({"fieldSelector": field_selector} if field_selector else {})
        what = f"list of {kind.plural}" + (f" in {namespace}" if namespace else "")
        while True:
            page = await self._call("GET", kind.path(namespace), what, accept=accept, query=query)
            yield page
            token = page["metadata"].get("continue")
            if not token:
                return
            query = query | {"continue": token}

    async def _call(
        self,
        method: str,
        path: str,
        what: str,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        query: Mapping[str, str] | None = None,
        fenced: bool = True,
    ) -> dict[str, Any]:
        if fenced and method != "GET" and not self.may_write():
            raise FencedError(what)
        target = path + (f"?{urlencode(query)}" if query else "")
        call, began = _call_name(method, path), time.monotonic()
        try:
            answer = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._request, method, target, what, body, content_type, accept
            )
        except ApiServerError as problem:
            self.observer(call, str(problem.status or "unreachable"), time.monotonic() - began)
            raise
        self.observer(call, "200", time.monotonic() - began)
        return answer

    async def _call_lease(
        self, method: str, path: str, what: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(
            self._lease_threads, self._request, method, path, what, body, _JSON, _JSON, timeout_s
        )

    def _request(
        self,
        method: str,
        target: str,
        what: str,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        content_type: str,
        accept: str,
        timeout_s: float = _READ_TIMEOUT_S,
    ) -> dict[str, Any]:
        headers = {"Accept": accept, "User-Agent": _USER_AGENT}
        if body is not None:
            headers["Content-Type"] = content_type
        serialized = self._api.param_serialize(
            method, target, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            timeouts = min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s
            response = self._api.call_api(*serialized, _request_timeout=timeouts)
            data: bytes = response.read()  # type: ignore[no-untyped-call]
        except (urllib3.exceptions.HTTPError, kubernetes.client.ApiException) as problem:
            raise UnreachableError(what, 0, f"{type(problem).__name__}: {problem}") from problem
        if response.status >= 400:
            raise _refusal(what, response.status, data)
        answer: dict[str, Any] = json.loads(data)
        return answer


def _call_name(method: str, path: str) -> str:
    """Such as "PATCH tenants/status": as many as there are kinds, whatever the objects' names."""
    plural, _, below = path.partition("/namespaces/")[2].partition("/")[2].partition("/")
    name, _, subresource = below.partition("/")
    if not plural:  # Of no namespace.
        group, _, plural = path.rpartition("/")
        plural = WEBHOOK_CONFIGURATION.plural if group.endswith(WEBHOOK_CONFIGURATION.plural) else plural
    return f"{method} {plural}" + (f"/{subresource}" if name and subresource else "")


def _load(configuration: Any, kubeconfig: str | None) -> str:
    """Fill the configuration; returns the namespace that we are at home in."""
    library: Any = kubernetes.config
    try:
        if kubeconfig is None and _POD_NAMESPACE.exists():
            library.load_incluster_config(client_configuration=configuration)
            return _POD_NAMESPACE.read_text().strip()
        library.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        _, current = library.list_kube_config_contexts(config_file=kubeconfig)
    except (kubernetes.config.ConfigException, OSError) as problem:
        source = kubeconfig or "neither a Pod's service account nor a kubeconfig"
        raise SetupError(f"no cluster to talk to: {source}: {problem}") from problem
    return str(current["context"].get("namespace") or "default")


def _refusal(what: str, status: int, data: bytes) -> ApiServerError:
    try:
        words = str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        words = data[:200].decode(errors="replace")
    match status:
        case 404:
            return NotFoundError(what, status, words)
        case 409:
            return ConflictError(what, status, words)
        case _:
            return ApiServerError(what, status, words)
