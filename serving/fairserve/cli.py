"""The `fairserve` command. Each command imports its room when it runs, so that none pays for another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fairserve import __version__

app = typer.Typer(
    name="fairserve",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def fairserve(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Share one pool of vLLM engines between teams by weight."""


@app.command()
def emulator(
    listen: Annotated[str, typer.Option(help="Address to serve on, HOST:PORT.")] = "127.0.0.1:8100",
    served_model_name: Annotated[
        str, typer.Option(help="The model's name in requests and answers.")
    ] = "emulated",
    max_num_seqs: Annotated[int, typer.Option(help="Sequences in one batch, at most.", min=1)] = 64,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Tokens computed in one step, at most.", min=1)
    ] = 2048,
    kv_tokens: Annotated[int, typer.Option(help="Size of the KV pool, in tokens.", min=1)] = 65_536,
    max_model_len: Annotated[int, typer.Option(help="Tokens of prompt and output together.", min=1)] = 8192,
    step_ms: Annotated[
        float, typer.Option(help="Time of one step before what its tokens cost, in milliseconds.", min=0.1)
    ] = 10.0,
    cost_scale: Annotated[
        float,
        typer.Option(
            help="How much a step's tokens cost: 1 is the fit for Llama-2-7B on an A10G (VTC, OSDI '24).",
            min=0.0,
        ),
    ] = 0.25,
) -> None:
    """Serve vLLM's API without a model, for trying out and for tests.

    Text is made up, contention is real: batch slots, the step's token budget, the KV pool and preemption
    behave as in vLLM. Prefix caching is not emulated.

    Example: `fairserve emulator --listen 127.0.0.1:8100 --max-num-seqs 16 --kv-tokens 16384`
    """
    from fairserve.local.addresses import host_and_port
    from fairserve.local.emulator.serve import serve
    from fairserve.local.emulator.server import NOTICE
    from fairserve.sim.steps import EngineLimits, StepCost

    try:
        host, port = host_and_port(listen)
        limits = EngineLimits(max_num_seqs, max_num_batched_tokens, kv_tokens, max_model_len)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{NOTICE}; listening on http://{listen}")
    serve(host, port, limits, StepCost(step_ms, cost_scale), served_model_name)


_FOLDER = Annotated[
    Path, typer.Option("--file", "-f", help="Folder of manifests (*.yaml, *.yml, *.json), or one file.")
]
_POOL = Annotated[str | None, typer.Option(help="Which ServingPool, where the folder has several.")]


@app.command(context_settings={"allow_extra_args": True})
def up(
    context: typer.Context,
    file: _FOLDER = Path(),
    engine: Annotated[
        str,
        typer.Option(
            help="`emulator` (no model, made-up text), `vllm` (starts one), or the URL of an engine."
        ),
    ] = "emulator",
    model: Annotated[
        str | None,
        typer.Option(help="Model for vLLM to load, or the name the emulator answers to (default: emulated)."),
    ] = None,
    engine_python: Annotated[
        str | None, typer.Option(help="Python of the environment that has vLLM. Default: this one.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Port for clients; 0 takes a free one. Default: the pool's sidecar.port.", min=0),
    ] = None,
    control_port: Annotated[
        int | None,
        typer.Option(
            help="Port of /state and the like; 0 takes a free one. Default: the pool's sidecar.controlPort.",
            min=0,
        ),
    ] = None,
    pool: _POOL = None,
    prometheus: Annotated[
        str | None,
        typer.Option(help="Base URL of a Prometheus for overload signals that are queries, rates or times."),
    ] = None,
    engine_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds that the engine may take to become healthy. Default: 600, or 10 for a URL.", min=1
        ),
    ] = None,
) -> None:
    """Run a folder of manifests on this machine, without a cluster, until Ctrl-C.

    Puts a sidecar before an engine, follows edits of the folder, and evaluates overload. Arguments after
    `--` go to the engine.

    Example: `fairserve up -f examples/01-two-teams --engine emulator -- --max-num-seqs 16`
    """
    from fairserve.local.engines import EngineChoice, EngineError
    from fairserve.local.stack import StackOptions
    from fairserve.local.up import up as run_up

    if context.args and not context.args[0].startswith("-"):
        raise typer.BadParameter(f"unexpected argument {context.args[0]!r}: the folder is given with -f")
    try:
        choice = EngineChoice(engine, model, engine_python, tuple(context.args), engine_timeout)
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    options = StackOptions(file, choice, host, port, control_port, pool, prometheus)
    raise typer.Exit(run_up(options, typer.echo))


@app.command()
def check(file: _FOLDER = Path(), pool: _POOL = None) -> None:
    """Say what a cluster would make of a folder of manifests; exit status 1 if anything is refused.

    Example: `fairserve check -f examples/01-two-teams`
    """
    from rich.console import Console

    from fairserve.local.check import check as run_check

    raise typer.Exit(run_check(file, pool, Console()))


@app.command()
def inject(
    file: Annotated[str, typer.Option("--file", "-f", help="Manifests to read, `-` for standard input.")],
    pool: Annotated[
        str | None,
        typer.Option(
            help="ServingPool of all Pod templates in which vLLM is found. Default: only those with the label"
            " fairserve.dev/inject, which names it."
        ),
    ] = None,
    image: Annotated[str, typer.Option(help="Image of the sidecar.")] = f"fairserve-sidecar:{__version__}",
    control_port: Annotated[
        int, typer.Option(help="The ServingPool's sidecar.controlPort.", min=1, max=65535)
    ] = 8001,
    drain_s: Annotated[
        int, typer.Option(help="Seconds that running calls may go on when a Pod ends.", min=0, max=86_400)
    ] = 30,
    cpu: Annotated[str, typer.Option(help="CPU that the sidecar asks for.")] = "500m",
    memory: Annotated[str, typer.Option(help="Memory that the sidecar asks for, and may use.")] = "1Gi",
) -> None:
    """Put a sidecar in front of vLLM in manifests.

    The sidecar takes over the port that clients use, so Services, probes and scrapes stay as they are;
    vLLM goes to a port of 127.0.0.1. What is not injected comes out unchanged; if anything is refused
    nothing comes out and the exit status is 1. To inject again changes nothing, or brings the sidecar up to
    date.

    In the template, the annotation fairserve.dev/container names the container that is vLLM,
    fairserve.dev/port the port that clients use, and fairserve.dev/engine-port a port of 127.0.0.1 to which
    your own script binds vLLM. More in docs/reference/injection.md.

    Example: `fairserve inject -f deployment.yaml --pool llm | kubectl apply -f -`
    """
    from fairserve.local.inject import inject_file
    from fairserve_operator.manifests.injection import Settings

    try:
        settings = Settings(image, control_port, drain_s, cpu, memory)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    raise typer.Exit(
        inject_file(
            file,
            pool,
            settings,
            write=lambda text: typer.echo(text, nl=False),
            say=lambda line: typer.echo(line, err=True),
        )
    )


@app.command()
def demo(
    file: _FOLDER = Path("examples/01-two-teams"),
    pool: _POOL = None,
    seconds: Annotated[
        float, typer.Option(help="Time to measure, over all phases; warm-up and ends come on top.", min=20)
    ] = 50.0,
    seed: Annotated[int, typer.Option(help="Seed of the clients' prompts and pauses.")] = 1,
) -> None:
    """Show two teams, a flood, and what fairserve makes of it; exit status 0 only if it all holds.

    Runs `fairserve up` on an engine emulator and free ports, and sends the load itself. The folder has
    Tenants team-a and team-b with an API key each, and Applications chat and agent.

    Example: `fairserve demo -f examples/01-two-teams --seconds 50`
    """
    from rich.console import Console

    from fairserve.local.demo.run import demo as run_demo

    raise typer.Exit(run_demo(file, pool, seconds, seed, Console()))


@app.command()
def sidecar(
    engine: Annotated[str, typer.Option(help="The engine in front of which it stands, http://HOST:PORT.")],
    control_token_file: Annotated[
        Path,
        typer.Option(
            help="File with the token that the control port wants, or several, one a line. It may rotate:"
            " what it holds now counts."
        ),
    ],
    listen: Annotated[str, typer.Option(help="Address for clients, HOST:PORT.")] = "0.0.0.0:8000",
    control: Annotated[str, typer.Option(help="Address for the operator, HOST:PORT.")] = "0.0.0.0:8001",
    control_tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="Certificate of the control port with its chain, PEM; followed when it changes."
            " Default: plain HTTP."
        ),
    ] = None,
    control_tls_key: Annotated[
        Path | None, typer.Option(help="Key of that certificate, PEM. Default: plain HTTP.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration to boot from, JSON or gzip. Default: wait for PUT /config."),
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(
            help="File that keeps counters and open interactions. Default: they die with the process."
        ),
    ] = None,
    snapshot_interval_s: Annotated[
        float, typer.Option(help="Seconds between snapshots; one more is written at the end.", min=0.1)
    ] = 10.0,
    call_log: Annotated[
        Path | None,
        typer.Option(
            help="File for one JSON line per call, `-` for standard output; it may be rotated. Users are"
            " pseudonyms, keys and texts are not in it. Default: no call log."
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            help="OpenTelemetry collector for a span of each call's wait, http://HOST:PORT without"
            " /v1/traces; needs the extra `otel`. Default: no spans."
        ),
    ] = None,
    poll_interval_s: Annotated[
        float,
        typer.Option(
            help="Seconds between readings of the engine's metrics while calls wait; four times that else.",
            min=0.05,
        ),
    ] = 0.25,
    grace_s: Annotated[
        float,
        typer.Option(
            help="Seconds that running calls may go on after SIGTERM; then they end with an error.", min=0.0
        ),
    ] = 30.0,
    max_window: Annotated[int, typer.Option(help="Calls that the engine ever holds at once.", min=1)] = 256,
    engine_wait_s: Annotated[
        float,
        typer.Option(
            help="Seconds that calls wait for an engine that is gone or hangs, before they get 503.", min=0.0
        ),
    ] = 30.0,
    engine_silence_s: Annotated[
        float,
        typer.Option(
            help="Seconds that the engine may say nothing of a stream that it has begun, or of any call while"
            " it does not answer /health, before the call ends with an error.",
            min=1.0,
        ),
    ] = 600.0,
    engine_priority: Annotated[
        bool,
        typer.Option(
            help="Tell the engine each call's place in its queue, for vLLM with"
            " `--scheduling-policy priority`; it does not say by itself that it has that."
        ),
    ] = False,
    max_body_bytes: Annotated[
        int, typer.Option(help="Longest request body, in bytes; 413 above.", min=1)
    ] = 67_108_864,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the jitter in Retry-After, any whole number. Default: from the system."),
    ] = None,
) -> None:
    """Stand before one engine: queue, order, throttle and account for its calls, until SIGTERM.

    Example: `fairserve sidecar --engine http://127.0.0.1:8100 --control-token-file token --config c.json`
    """
    from fairserve.sidecar.options import (
        Limits,
        OptionError,
        SidecarOptions,
        parse_address,
        parse_engine,
        parse_otlp,
        parse_tls,
    )
    from fairserve.sidecar.process import run

    try:
        options = SidecarOptions(
            listen=parse_address("--listen", listen),
            control=parse_address("--control", control),
            engine=parse_engine("--engine", engine),
            control_token_file=control_token_file,
            control_tls=parse_tls(control_tls_cert, control_tls_key),
            config_file=config,
            snapshot_file=snapshot,
            snapshot_interval_s=snapshot_interval_s,
            call_log=call_log,
            otlp_endpoint=parse_otlp("--otlp-endpoint", otlp_endpoint),
            poll_interval_s=poll_interval_s,
            grace_s=grace_s,
            max_window=max_window,
            engine_wait_s=engine_wait_s,
            engine_silence_s=engine_silence_s,
            engine_priority=engine_priority,
            seed=seed,
            limits=Limits(max_body_bytes=max_body_bytes),
        )
    except OptionError as error:
        raise typer.BadParameter(str(error)) from error
    raise typer.Exit(run(options))


sim_app = typer.Typer(no_args_is_help=True, help="Try schedulers on a simulated engine.")
app.add_typer(sim_app, name="sim")


@sim_app.command("run")
def sim_run(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (docs/concepts/simulator.md).")],
    policy: Annotated[
        str, typer.Option(help="Schedulers to compare, with commas between.")
    ] = "FCFS,RPM,VTC,FairServe",
    seeds: Annotated[int, typer.Option(help="How many seeds, from 1 on.", min=1)] = 1,
    trace: Annotated[
        Path | None, typer.Option(help="CSV file with the calls, in place of the scenario's clients.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write every figure to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write plots (SVG) of the first seed to this folder.")
    ] = None,
) -> None:
    """Run a scenario under several schedulers: the very same core, an engine model, simulated time.

    Example: `fairserve sim run bench/scenarios/noisy-neighbour.yaml --policy FCFS,FairServe --seeds 5`
    """
    from rich.console import Console

    from fairserve.local.simulation import run

    policies = [name.strip() for name in policy.split(",") if name.strip()]
    raise typer.Exit(run(scenario, policies, seeds, trace, json, plot, Console()))


@sim_app.command("calibrate")
def sim_calibrate(
    url: Annotated[str, typer.Option(help="The engine to measure, http://HOST:PORT; idle otherwise.")],
    output: Annotated[Path, typer.Option(help="Calibration file to write (YAML).")] = Path(
        "calibration.yaml"
    ),
    step_tokens: Annotated[
        int, typer.Option(help="The engine's --max-num-batched-tokens; it doesn't tell.", min=1)
    ] = 2048,
    rounds: Annotated[
        int, typer.Option(help="How often each shape of request is measured; the median counts.", min=1)
    ] = 3,
) -> None:
    """Measure an engine over HTTP and fit the simulator's step costs to it.

    A quarter of the measurements is held back from the fit and says how wrong it is. A scenario names the
    file in `engines.calibration`.

    Example: `fairserve sim calibrate --url http://127.0.0.1:8100 --output vllm-cpu.yaml`
    """
    from rich.console import Console

    from fairserve.local.calibrate import calibrate

    raise typer.Exit(calibrate(url, output, step_tokens, rounds, Console()))


def main() -> None:
    """Entry point of the installed command."""
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("fairserve", "fairserve_operator"):
            raise
        sys.exit(
            f"fairserve: this command needs {error.name}, which is not installed: "
            "pip install 'fairserve[local]' (or 'fairserve[sidecar]' for the sidecar alone)"
        )


if __name__ == "__main__":
    main()
