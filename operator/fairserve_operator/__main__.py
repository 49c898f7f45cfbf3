"""`python -m fairserve_operator`: put the parts together and run them until told to stop."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from fairserve_operator import logs
from fairserve_operator.errors import OperatorError, SetupError
from fairserve_operator.options import LEASE_NAME, Options

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
        for option, value in (("--lease-namespace", lease_namespace), ("--lease-name", lease_name)):
            if value is not None and not leader_elect:
                raise SetupError(f"{option} needs --leader-elect")
            if value is not None and not _NAMESPACE.fullmatch(value):
                raise SetupError(f"{option} {value}: not a name")
        options = Options(
            None if listen is None else _address(listen),
            leader_elect,
            lease_namespace,
            lease_name or LEASE_NAME,
            identity,
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


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SetupError(f"--listen {text}: must be HOST:PORT, such as 0.0.0.0:8080")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    app(prog_name="python -m fairserve_operator")
