"""`python -m fairserve_operator`: put the parts together and run them until told to stop."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from fairserve import __version__
from fairserve_operator import logs
from fairserve_operator.errors import OperatorError, SetupError
from fairserve_operator.options import LEASE_NAME, Options, address, webhook_options

_log = logging.getLogger("fairserve_operator")

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def main(
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            "-n",
            help="Serve this namespace; give it again for more. Needs a Role in each, no cluster-wide right.",
            show_default="the kubeconfig's or the Pod's own",
        ),
    ] = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Serve every namespace. Needs a ClusterRole.")
    ] = False,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            help="How to reach the cluster.",
            exists=True,
            dir_okay=False,
            show_default="the Pod's service account, else $KUBECONFIG, else ~/.kube/config",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Answer /healthz, /readyz and /metrics at http://HOST:PORT.",
            show_default="no such port",
        ),
    ] = None,
    leader_elect: Annotated[
        bool,
        typer.Option(
            "--leader-elect",
            help="Act only while holding a Lease, for two replicas of which one acts. The others know "
            "everything and take over within 15 s, or at once if the first ends in order.",
        ),
    ] = False,
    lease_namespace: Annotated[
        str | None,
        typer.Option(help="Where the Lease is.", show_default="the kubeconfig's or the Pod's own"),
    ] = None,
    lease_name: Annotated[
        str | None,
        typer.Option(
            help="Name of the Lease. Operators of different namespaces need different ones.",
            show_default=LEASE_NAME,
        ),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(
            help="How it calls itself in the Lease, where a part of chance is added, and to sidecars.",
            show_default="the host's name, which is the Pod's",
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Put a sidecar into Pods labelled fairserve.dev/inject: POOL, as the mutating webhook at "
            "https://HOST:PORT/inject. Every replica answers.",
            show_default="no webhook",
        ),
    ] = None,
    webhook_service: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The Service, in the operator's own namespace, by which the API server reaches the webhook.",
        ),
    ] = None,
    webhook_host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="Instead of a Service, for an operator outside of the cluster: the DNS name or address in "
            "the clientConfig.url by which the API server reaches the webhook.",
        ),
    ] = None,
    webhook_configuration: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The MutatingWebhookConfiguration whose caBundle the operator keeps right."
        ),
    ] = None,
    webhook_secret: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The Secret, in the operator's own namespace, in which it keeps the certificate that it "
            "makes and renews; one for all replicas.",
        ),
    ] = None,
    webhook_certificate_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Instead of all these: a folder in which somebody else, such as cert-manager, keeps tls.crt "
            "and tls.key; followed when they change.",
        ),
    ] = None,
    sidecar_image: Annotated[
        str | None,
        typer.Option(help="Image of the sidecar.", show_default=f"fairserve-sidecar:{__version__}"),
    ] = None,
    sidecar_cpu: Annotated[
        str | None, typer.Option(help="CPU that the sidecar asks for.", show_default="500m")
    ] = None,
    sidecar_memory: Annotated[
        str | None,
        typer.Option(help="Memory that the sidecar asks for, and may use.", show_default="1Gi"),
    ] = None,
    drain_s: Annotated[
        int | None,
        typer.Option(
            help="Seconds that running calls may go on when a Pod ends.", min=0, max=86_400, show_default="30"
        ),
    ] = None,
    allow_http_jwks: Annotated[
        bool,
        typer.Option(
            "--allow-http-jwks",
            help="Fetch token issuers' keys from http:// too. Whoever is on the way can forge tokens then.",
        ),
    ] = False,
    log_format: Annotated[
        logs.LogFormat, typer.Option(help="json for machines, plain for people.")
    ] = logs.LogFormat.JSON,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what kopf and each decision are about.")
    ] = False,
) -> None:
    """Run the operator of fairserve.

    It watches **Tenants**, **Applications** and **ServingPools** (`kubectl get fairserve`), compiles them
    into one document per pool, writes that to the Secret `fairserve-<pool>` from which sidecars boot, and
    pushes it to the control port of every Pod of the pool. It asks the pool's Prometheus whether the pool
    is overloaded and tells the sidecars. What came of it stands in each object's status.

    The custom resource definitions (`crds/`) and the rights in `examples/operator/rbac.yaml` must be
    applied first.

    Try it on a cluster that your kubeconfig reaches: `python -m fairserve_operator -n default --log-format
    plain`

    It ends with status 0 on SIGTERM and SIGINT, with status 1 and a sentence where it can't run. Sidecars
    go on with their last document while it is away.
    """
    logs.configure(log_format, verbose)
    try:
        if namespace and all_namespaces:
            raise SetupError("--namespace and --all-namespaces exclude each other")
        for name in namespace or ():
            if not _NAMESPACE.fullmatch(name):
                raise SetupError(f"--namespace {name}: not the name of a namespace; patterns are not served")
        _check_lease(leader_elect, {"--lease-namespace": lease_namespace, "--lease-name": lease_name})
        needing_webhook = {
            "--webhook-service": webhook_service,
            "--webhook-host": webhook_host,
            "--webhook-configuration": webhook_configuration,
            "--webhook-secret": webhook_secret,
            "--webhook-certificate-dir": webhook_certificate_dir,
            "--sidecar-image": sidecar_image,
            "--sidecar-cpu": sidecar_cpu,
            "--sidecar-memory": sidecar_memory,
            "--drain-s": drain_s,
        }
        options = Options(
            None if listen is None else address("--listen", listen),
            leader_elect,
            lease_namespace,
            lease_name or LEASE_NAME,
            identity,
            webhook_options(webhook, needing_webhook),
        )
        uvloop.run(_operate(tuple(namespace or ()), all_namespaces, kubeconfig, options, allow_http_jwks))
    except OperatorError as problem:
        _log.error("%s", problem)
        raise typer.Exit(1) from problem


async def _operate(
    namespaces: tuple[str, ...],
    everywhere: bool,
    kubeconfig: Path | None,
    options: Options,
    allow_http_jwks: bool,
) -> None:
    # Imported late: --help and a mistyped option should not wait for kopf and kubernetes.
    from fairserve_operator.clients.kubernetes_client import KubernetesClient
    from fairserve_operator.handlers.running import run

    cluster = KubernetesClient(None if kubeconfig is None else str(kubeconfig))
    try:
        scope = (None,) if everywhere else namespaces or (cluster.own_namespace,)
        await run(cluster, scope, options, allow_http_jwks)
    finally:
        cluster.close()


def _check_lease(leader_elect: bool, given: Mapping[str, str | None]) -> None:
    for option, value in given.items():
        if value is not None and not leader_elect:
            raise SetupError(f"{option} needs --leader-elect")
        if value is not None and not _NAMESPACE.fullmatch(value):
            raise SetupError(f"{option} {value}: not a name")


if __name__ == "__main__":
    app(prog_name="python -m fairserve_operator")
